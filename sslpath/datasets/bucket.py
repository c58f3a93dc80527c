"""Download many files of a public S3 bucket, without an account.

The bucket is listed (ListObjectsV2, page by page), then files come in parallel, each as
:func:`sslpath.datasets.download.download` does it: resumed, checked, moved into place when whole.
A file that is there with the size that the bucket states is not fetched again; ``verify`` compares
checksums, too. Nothing outside of the target folder is ever written, whatever the bucket says.
"""

import re
import shutil
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from xml.etree.ElementTree import ParseError

import defusedxml
import defusedxml.ElementTree
from tqdm import tqdm

from sslpath.datasets.download import download, fetch
from sslpath.errors import ChecksumError, DataError
from sslpath.progress import hide_bar

# What a folder of ours may hold: plain names, no drive, no way up.
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]*")

MAX_PAGES = 10_000  # of 1,000 files each, as S3 makes them


class Remote(NamedTuple):
    """A file of a bucket: its key, and its size in bytes."""

    key: str
    size: int


class Lost(NamedTuple):
    """A file that did not come, and why."""

    key: str
    error: str


def list_bucket(url: str, prefix: str, *, attempts: int = 5, wait_s: float = 2.0) -> list[Remote]:
    """All files of a bucket whose key starts with ``prefix``.

    Args:
        url: Address of the bucket.
        prefix: Such as ``CAMELYON16/``.
        attempts: Tries of each page.
        wait_s: Seconds before the second try; doubles with every further one.

    Raises:
        DataError: If the bucket does not answer, or with something that is no listing.
    """
    found: list[Remote] = []
    token: str | None = None
    for _ in range(MAX_PAGES):
        query = {"list-type": "2", "prefix": prefix}
        if token is not None:
            query["continuation-token"] = token
        page = f"{url}/?{urllib.parse.urlencode(query)}"
        try:
            root = defusedxml.ElementTree.fromstring(fetch(page, attempts=attempts, wait_s=wait_s))
            # Keys and sizes of either namespace, or none.
            for one in root.iterfind("{*}Contents"):
                key, size = one.findtext("{*}Key"), one.findtext("{*}Size")
                found.append(Remote(str(key or ""), int(size or "")))
        except (ParseError, ValueError, defusedxml.DefusedXmlException) as error:
            raise DataError(f"{page} did not answer with the listing of a bucket.") from error
        following = root.findtext("{*}NextContinuationToken")
        if root.findtext("{*}IsTruncated") != "true" or not following or following == token:
            return found
        token = following
    raise DataError(f"The listing of {url} has no end; it is no bucket to fetch from.")


def place_of(key: str, prefix: str, folder: Path) -> Path:
    """Where a file of the bucket belongs in ``folder``.

    Raises:
        DataError: If that would be outside of it, or the name is one that no such file has.

    Example:
        >>> place_of("CAMELYON16/images/normal_001.tif", "CAMELYON16/", Path("data")).as_posix()
        'data/images/normal_001.tif'
    """
    parts = PurePosixPath(key.removeprefix(prefix)).parts
    target = folder.joinpath(*parts)
    plain = bool(parts) and all(PLAIN.fullmatch(part) for part in parts)
    # A link in the folder may lead out of it.
    if not plain or not target.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"The bucket names a file {key!r} that does not belong in {folder}.")
    return target


def read_checksums(text: str) -> dict[str, str]:
    """Checksums by file name, of lines such as ``<hexadecimal>  images/normal_001.tif``.

    Lines of another form are passed over; so are names that come with two different checksums.

    Example:
        >>> sorted(read_checksums("d41d8cd98f00b204e9800998ecf8427e *./a/B.tif").items())
        [('b.tif', 'd41d8cd98f00b204e9800998ecf8427e')]
    """
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        match = re.fullmatch(r"([0-9a-fA-F]{32}|[0-9a-fA-F]{64})\s+\*?(.+)", line.strip())
        if match:
            name = PurePosixPath(match[2].strip()).name.lower()
            found.setdefault(name, set()).add(match[1].lower())
    return {name: sums.pop() for name, sums in found.items() if len(sums) == 1}


def download_all(
    files: Iterable[Remote],
    url: str,
    prefix: str,
    folder: str | Path,
    *,
    checksums: Mapping[str, str] | None = None,
    workers: int = 4,
    verify: bool = False,
    strict: bool = False,
    progress: bool = True,
    attempts: int = 5,
    wait_s: float = 2.0,
) -> list[Lost]:
    """Download files of a bucket into ``folder``; one that fails does not stop the others.

    Args:
        files: As :func:`list_bucket` gives them.
        url: Address of the bucket.
        prefix: What of the keys the folder does not repeat.
        folder: Where files go.
        checksums: By file name, see :func:`read_checksums`; a wrong file is fetched once more.
        workers: Files at a time.
        verify: Whether to compare the checksums of files that are there already.
        strict: Whether the first failure stops all.
        progress: Whether to draw a bar.
        attempts: Tries of each file.
        wait_s: Seconds before the second try; doubles with every further one.

    Returns:
        The files that did not come.

    Raises:
        DataError: If the disk is too small, a name would lead out of the folder, or, with
            ``strict``, a file does not come.
    """
    files, folder, known = list(files), Path(folder), checksums or {}
    places = {one.key: place_of(one.key, prefix, folder) for one in files}
    folder.mkdir(parents=True, exist_ok=True)
    have = {one.key: _have(one, places[one.key], verify) for one in files}
    missing = sum(one.size - have[one.key] for one in files)
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise DataError(
            f"{missing / 1e9:.1f} GB are missing and {folder} has {free / 1e9:.1f} GB free. Free "
            "some space, choose another folder, or fewer slides."
        )
    lost: dict[str, Lost] = {}
    bar = tqdm(
        total=sum(one.size for one in files), initial=sum(have.values()), unit="B",
        unit_scale=True, desc="download", disable=hide_bar(progress),
    )  # fmt: skip

    def get(one: Remote) -> None:
        if have[one.key] == one.size and places[one.key].exists() and not verify:
            return
        address = f"{url}/{urllib.parse.quote(one.key)}"
        checksum = known.get(places[one.key].name.lower())
        _get(address, places[one.key], checksum, bar.update, attempts, wait_s)
        came = places[one.key].stat().st_size
        if came != one.size:
            raise DataError(
                f"{places[one.key]} has {came} bytes, {one.size} are listed. Delete it and run "
                "the same command again."
            )

    with bar, ThreadPoolExecutor(workers) as pool:
        jobs = {pool.submit(get, one): one for one in files}
        try:
            for job in as_completed(jobs):
                try:
                    job.result()
                except DataError as error:
                    if strict:
                        raise
                    lost[jobs[job].key] = Lost(jobs[job].key, str(error))
        finally:
            pool.shutdown(cancel_futures=True)
    return [lost[one.key] for one in files if one.key in lost]


def _have(one: Remote, place: Path, verify: bool) -> int:
    """Bytes of a file that need not come any more."""
    if place.exists():
        # Files are moved into place when they are whole. Another size is another file.
        return one.size if place.stat().st_size == one.size or verify else 0
    part = place.with_name(place.name + ".part")
    return min(one.size, part.stat().st_size) if part.exists() else 0


def _get(
    address: str,
    place: Path,
    checksum: str | None,
    advance: Callable[[int], object],
    attempts: int,
    wait_s: float,
) -> None:
    once = partial(
        download, address, place,
        checksum=checksum, advance=advance, attempts=attempts, wait_s=wait_s,
    )  # fmt: skip
    try:
        once()
    except ChecksumError:
        if place.exists():  # there before, and wrong: whoever put it there may want it
            raise
        once()
