"""Search in more descriptors than memory holds: a FAISS index on disk, read where a query looks.

Every descriptor is put on the list of the nearest of many centres (an inverted file); a query reads
only the few lists whose centres are nearest to it. That is quick, and approximate:
:func:`sslpath.neighbours.neighbours` is exact, and the better choice as long as all descriptors fit
into memory and the wait is bearable. The query's own group is left out in the same way.
What this module does not do: the table of tiles itself has to fit into memory.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from sslpath.descriptor_files import provenance_or_nothing, read_failures
from sslpath.descriptors import read_descriptors
from sslpath.errors import ConfigError, DescriptorError
from sslpath.files import only_one, write_json
from sslpath.neighbours import group_codes, unit_length
from sslpath.progress import hide_bar

# Files of an index; the last one is written when the others are whole.
CENTRES, LISTS, ABOUT = "index.faiss", "lists.ivfdata", "index.json"
PARTS = ".index.faiss.parts"  # while it is built; a name that is nobody else's
CODES = ("flat", "bytes", "quarter")
# FAISS asks for 39 descriptors for each centre that it learns, and for 256 to learn quarters.
LEARN_FROM, LEARN_MOST, LEARN_QUARTERS = 39, 64, 256
LEARN_SLIDES = 2000
SHARD_TILES = 1_000_000


def build_index(
    tiles: pd.DataFrame,
    descriptors: str | Path,
    out: str | Path,
    *,
    code: str = "bytes",
    shard_tiles: int = SHARD_TILES,
    seed: int = 0,
    progress: bool = True,
) -> "Index":
    """Build an index of the descriptors of a table of tiles.

    Memory grows with ``shard_tiles``, not with the tiles; while it builds, the disk holds the
    descriptors' codes twice.

    Args:
        tiles: The table of n tiles; those without a descriptor are left out.
        descriptors: Folder of descriptors, one file a slide.
        out: Folder of the index.
        code: How a descriptor is kept: ``flat`` as float32, ``bytes`` one byte a number,
            ``quarter`` one byte for four numbers (product quantisation). Eight bytes more say
            whose it is.
        shard_tiles: Descriptors held in memory at a time.
        seed: Of the sample that centres are learned from, below 2^31.
        progress: Show a bar.

    Raises:
        ConfigError: If FAISS is not installed, the settings make no sense, there are too few tiles
            to learn quarters from, or the folder holds other files of the names of an index.
        DescriptorError: If descriptors are damaged or not of one encoder.
        BusyError: If another process builds there.
    """
    faiss, out = _faiss(), Path(out)
    if code not in CODES or shard_tiles < 1 or not 0 <= seed < 2**31:
        raise ConfigError(
            f"code must be one of {', '.join(CODES)}, shard_tiles 1 or more, seed 0 to 2^31 - 1."
        )
    rows = _rows(tiles, descriptors)
    with only_one(out):
        _refuse_others(out)
        sample = _sample(tiles, rows, descriptors, shard_tiles, seed)
        length = sample.shape[1]
        cells = max(1, min(round(4 * math.sqrt(len(rows))), len(sample) // LEARN_FROM))
        kept = {"flat": "Flat", "bytes": "SQ8", "quarter": f"PQ{_quarter(length)}x8"}[code]
        if code == "quarter" and len(sample) < LEARN_QUARTERS:
            raise ConfigError(f"{len(sample)} tiles are too few for quarters; choose another code.")
        empty = faiss.index_factory(length, f"IVF{cells},{kept}")
        empty.cp.seed = seed
        empty.train(sample)
        parts = out / PARTS
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir()  # as long as it is there, the other files are of an index that is being built
        (out / ABOUT).unlink(missing_ok=True)
        files: list[str] = []
        made_by, count = provenance_or_nothing(descriptors, tiles), 0
        with tqdm(total=len(rows), unit="tile", disable=hide_bar(progress)) as bar:
            for start in range(0, len(rows), shard_tiles):
                some = rows[start : start + shard_tiles]
                part = tiles.iloc[some]
                found, there = read_descriptors(descriptors, part, missing="drop")
                if provenance_or_nothing(descriptors, part) != made_by or found.shape[1] != length:
                    raise DescriptorError(
                        f"The descriptors in {descriptors} are not all of one encoder; run "
                        "`sslpath embed` into an empty folder."
                    )
                shard = faiss.clone_index(empty)
                shard.add_with_ids(unit_length(found), some[there].astype(np.int64))
                files.append(str(parts / f"{len(files)}.faiss"))
                faiss.write_index(shard, files[-1])
                count += len(found)
                bar.update(len(some))
        _merge(faiss, empty, files, out)
        about = {
            "tiles": len(tiles), "kept": count, "length": length, "cells": cells, "code": code,
            "table": _fingerprint(tiles), "made_by": made_by,
            "bytes": {name: (out / name).stat().st_size for name in (CENTRES, LISTS)},
        }  # fmt: skip
        write_json(out / ABOUT, about)
        shutil.rmtree(parts)
    return Index(out, tiles)


class Index:
    """An index on disk, open for queries.

    Args:
        folder: Where :func:`build_index` put it.
        tiles: The table that it was built from.

    Attributes:
        about: How many ``tiles`` the table has, how many of them are ``kept``, the ``length`` of
            their descriptors and what they were ``made_by``, the number of lists (``cells``).

    Raises:
        ConfigError: If FAISS is not installed.
        DescriptorError: If it is missing, unfinished, damaged, or of another table.
    """

    def __init__(self, folder: str | Path, tiles: pd.DataFrame) -> None:
        faiss, folder = _faiss(), Path(folder)
        again = "run `sslpath index` to build a new one."
        if not (folder / ABOUT).exists():
            raise DescriptorError(f"{folder} holds no finished index; {again}")
        try:
            self.about: dict[str, Any] = json.loads((folder / ABOUT).read_text())
            for name, size in self.about["bytes"].items():
                if (folder / name).stat().st_size != size:
                    raise OSError(f"{name} does not have the {size:,} bytes that it should")
            table = self.about["table"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DescriptorError(f"The index in {folder} is damaged ({error}); {again}") from error
        if table != _fingerprint(tiles):
            raise DescriptorError(f"The index in {folder} is from another table of tiles; {again}")
        # The lists stay on disk, wherever the folder has moved since. FAISS has a flag for lists in
        # the same folder, but prints when it is set.
        flags = faiss.IO_FLAG_SKIP_IVF_DATA | faiss.IO_FLAG_READ_ONLY
        self._index = faiss.read_index(str(folder / CENTRES), flags)
        lists = faiss.downcast_InvertedLists(faiss.extract_index_ivf(self._index).invlists)
        lists.filename = str(folder / LISTS)
        lists.do_mmap()

    def neighbours(
        self,
        queries: ArrayLike,
        query_groups: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        k: int = 10,
        *,
        probes: int = 32,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As :func:`sslpath.neighbours.neighbours`, approximately.

        Args:
            queries: Descriptors, ``(q, d)``; scaled to length 1 as those of the index are.
            query_groups: Patient or slide of each query, ``(q,)``; None leaves nothing out.
            groups: The same of each row of the table, ``(n,)``.
            k: How many.
            probes: Lists that a query looks into: more find more, and take longer.

        Returns:
            Rows of the table ``(q, k)``, nearest first, and distances ``(q, k)`` to the descriptors
            as they are kept; -1 at distance infinity where the lists hold fewer.

        Raises:
            ConfigError: If ``k``, ``probes`` or the groups make no sense.
            DescriptorError: If the queries are not of the index's length, or not finite.
        """
        faiss, x = _faiss(), unit_length(np.atleast_2d(np.asarray(queries)))
        if k < 1 or probes < 1:
            raise ConfigError(f"k = {k}, probes = {probes}: both must be 1 or more.")
        if x.shape[1] != self.about["length"] or not np.isfinite(x).all():
            raise DescriptorError(
                f"Queries of {x.shape[1]} numbers must be finite and {self.about['length']} long, "
                "like the descriptors of the index."
            )
        asked, codes = group_codes(query_groups, groups, len(x), self.about["tiles"])
        order = np.argsort(codes, kind="stable")
        ordered = codes[order]
        found = np.full((len(x), k), -1, np.int64)
        squared = np.full((len(x), k), np.inf, np.float32)
        for code in np.unique(asked):
            these = np.flatnonzero(asked == code)
            own = order[slice(*np.searchsorted(ordered, [code, code + 1]))].astype(np.int64)
            # Given to the constructor, which keeps it alive: older versions of FAISS do not else.
            rule = {"sel": faiss.IDSelectorNot(faiss.IDSelectorBatch(own))} if len(own) else {}
            settings = faiss.SearchParametersIVF(nprobe=min(probes, self.about["cells"]), **rule)
            squared[these], found[these] = self._index.search(x[these], k, params=settings)
        squared[found < 0] = np.inf
        return found, np.sqrt(np.maximum(squared, 0))


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ConfigError("An index needs FAISS: pip install faiss-cpu.") from error
    return faiss


def _rows(tiles: pd.DataFrame, folder: str | Path) -> NDArray[np.intp]:
    """Rows of the table slide by slide, without those that could not be described."""
    key = ["slide_id", "x", "y"]
    failed = pd.MultiIndex.from_frame(read_failures(folder)[key])
    lost = pd.MultiIndex.from_frame(tiles[key]).isin(failed)
    order = np.argsort(pd.factorize(tiles["slide_id"])[0], kind="stable")
    rows = order[~lost[order]]
    if not len(rows):
        raise DescriptorError(f"No descriptors in {folder} for these {len(tiles)} tiles.")
    return np.asarray(rows)


def _sample(
    tiles: pd.DataFrame, rows: NDArray[np.intp], folder: str | Path, most: int, seed: int
) -> NDArray[np.float32]:
    """Descriptors to learn centres from, of some slides, drawn."""
    rng = np.random.default_rng(seed)
    slides = tiles["slide_id"].iloc[rows]
    there = rows[slides.isin(rng.permutation(slides.unique())[:LEARN_SLIDES])]
    wanted = min(most, LEARN_MOST * round(4 * math.sqrt(len(rows))))
    some = tiles.iloc[np.sort(rng.permutation(there)[:wanted])]
    return unit_length(read_descriptors(folder, some, missing="drop")[0])


def _quarter(length: int) -> int:
    """How many bytes stand for a descriptor: one for four numbers, or the next that divides."""
    return next(n for n in range(max(1, length // 4), 0, -1) if length % n == 0)


def _refuse_others(out: Path) -> None:
    """Refuse a folder in which something else has the name of a file of an index."""
    there = [name for name in (CENTRES, LISTS, ABOUT) if (out / name).exists()]
    if not there or (out / PARTS).is_dir():
        return
    try:
        about = json.loads((out / ABOUT).read_text(encoding="utf-8"))
        if {"tiles", "cells", "code", "table", "bytes"} <= about.keys():
            return
    except (OSError, ValueError, AttributeError):
        pass
    raise ConfigError(
        f"{out} holds {', '.join(there)}, but not an sslpath index: nothing there is overwritten. "
        "Choose another folder, or move what is there away if it is not needed."
    )


def _merge(faiss: Any, empty: Any, files: list[str], out: Path) -> None:
    """Copy the lists of all shards into one file, and point ``empty`` to it.

    A list is its codes, then its ids; FAISS finds each list by the lengths of those before it.
    ``faiss.contrib.ondisk.merge_ondisk`` does the same, but prints.
    """
    shards = [faiss.read_index(name, faiss.IO_FLAG_MMAP) for name in files]
    parts = [faiss.extract_index_ivf(shard).invlists for shard in shards]
    code = empty.code_size
    sizes = np.zeros(empty.nlist, np.uint64)
    (out / LISTS).unlink(missing_ok=True)  # another process may be reading it
    with (out / LISTS).open("wb") as file:
        for i in range(empty.nlist):
            held = [(part, part.list_size(i)) for part in parts if part.list_size(i)]
            sizes[i] = sum(n for _, n in held)
            for part, n in held:
                file.write(faiss.rev_swig_ptr(part.get_codes(i), n * code))
            for part, n in held:
                file.write(faiss.rev_swig_ptr(part.get_ids(i), n))
        total = file.tell()
    lists = faiss.OnDiskInvertedLists(empty.nlist, code, str(out / LISTS))
    lists.set_all_lists_sizes(faiss.swig_ptr(sizes))
    lists.totsize = total
    empty.replace_invlists(lists, True)
    lists.this.disown()  # `empty` frees it
    empty.ntotal = int(sizes.sum())
    faiss.write_index(empty, str(out / CENTRES))


def _fingerprint(tiles: pd.DataFrame) -> int:
    """A number that another table, or the same in another order, would hardly have."""
    hashed = pd.util.hash_pandas_object(tiles[["slide_id", "x", "y"]], index=False)
    places = np.arange(1, len(hashed) + 1, dtype=np.uint64)
    return int((hashed.to_numpy(np.uint64) * places).sum() >> np.uint64(11))
