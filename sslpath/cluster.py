"""Many machines: the same work on each slide, done by the workers of a Dask scheduler.

A job is a function of one slide that leaves its result in a file or returns it; it may be done
twice, if a worker is lost in the middle of it. Slides and folders must have the same paths on all
machines, as on the shared disk of a cluster.
What this module does not do: start workers. `dask worker ADDRESS` does, or dask-jobqueue for SLURM
and its like.
"""

import warnings
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from sslpath.errors import ConfigError, SlideError

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(
    scheduler: str, job: Callable[[Item], Result], items: Sequence[Item]
) -> Generator[tuple[int, Result | SlideError], None, None]:
    """Do ``job`` on every item; yields the item's position and its result, as they come.

    An item that took several workers down with it yields a :class:`SlideError` instead. How long to
    wait for the scheduler is Dask's setting ``distributed.comm.timeouts.connect``.

    Args:
        scheduler: Address of the Dask scheduler, such as ``tcp://10.0.0.5:8786``.
        job: What to do; it and the items travel to the workers.
        items: What to do it on.

    Raises:
        ConfigError: If Dask is not installed, or no scheduler answers.
    """
    try:
        import cloudpickle
        from distributed import Client, KilledWorker, as_completed
    except ImportError as error:
        raise ConfigError(
            "A scheduler needs Dask: pip install distributed, here and on its workers."
        ) from error
    try:
        client: Any = Client(scheduler, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"No Dask scheduler answers at {scheduler} ({error}). Start one with `dask scheduler`, "
            "and workers with `dask worker ADDRESS`."
        ) from error
    with client:
        # Sent once, not with each item, as it may hold a network; and as a task, which can be done
        # again, since what is scattered is lost with the workers that have it.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sending large graph")
            shared = client.submit(cloudpickle.loads, cloudpickle.dumps(job), pure=False)
        futures = {client.submit(_do, shared, item, pure=False): i for i, item in enumerate(items)}
        given_up = []
        for future in as_completed(list(futures), loop=client.loop):
            try:
                yield futures[future], future.result()
            except KilledWorker:
                given_up.append(futures[future])
        # A lost worker is laid to all items that waited there: each is tried once more, alone.
        for i in given_up:
            try:
                yield i, client.submit(_do, shared, items[i], pure=False).result()
            except KilledWorker as error:
                said = f"Every worker that took it on was lost ({error}). Try it without a "
                said += "scheduler; if it works there, give workers more memory."
                yield i, SlideError(said)


def _do(job: Callable[[Item], Result], item: Item) -> Result:
    return job(item)
