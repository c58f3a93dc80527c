"""Search in more descriptors than memory holds: a FAISS index on disk, read where a query looks.

Every descriptor is put on the list of the nearest of many centres (an inverted file), at one byte a
number or less; a query reads only the few lists whose centres are nearest to it. That is quick, and
approximate: :func:`sslpath.neighbours.neighbours` is exact, and the better choice as long as all
descriptors fit into memory and the wait is bearable. The query's own group is left out in the
same way.
What this module does not do: the table of tiles itself has to fit into memory.
"""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from sslpath.descriptors import read_descriptors
from sslpath.errors import ConfigError, DescriptorError
from sslpath.files import only_one, write_json
from sslpath.neighbours import unit_length

# Files of an index; the last one is written when the others are whole.
CENTRES, LISTS, ABOUT = "index.faiss", "lists.ivfdata", "index.json"
CODES = {"flat": "Flat", "bytes": "SQ8", "quarter": "PQ{quarter}x8"}
# FAISS wants 39 descriptors for each centre that it learns; of more than 64 it gains little.
LEARN_FROM, LEARN_MOST = 39, 64
LEARN_SLIDES, MOST_CELLS = 2000, 65_536  # so that learning them takes hours at the worst
SHARD_TILES = 1_000_000  # held in memory at a time


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
    """Build an index of the descriptors of a table of tiles; memory is bounded by ``shard_tiles``.

    Args:
        tiles: The table of n tiles; those without a descriptor are left out.
        descriptors: Folder of descriptors, one file a slide.
        out: Folder of the index.
        code: How a descriptor is kept: ``flat`` as float32, ``bytes`` one byte a number,
            ``quarter`` one byte for four numbers (product quantisation).
        shard_tiles: Descriptors held in memory at a time.
        seed: Of the sample that centres are learned from.
        progress: Show a bar.

    Raises:
        ConfigError: If FAISS is not installed or the settings make no sense.
        DescriptorError: If descriptors are damaged or not of one encoder.
        BusyError: If another process builds there.
    """
    faiss = _faiss()
    if code not in CODES or shard_tiles < 1:
        raise ConfigError(f"code must be one of {', '.join(CODES)}, and shard_tiles 1 or more.")
    out = Path(out)
    with only_one(out):
        (out / ABOUT).unlink(missing_ok=True)
        sample = _sample(tiles, descriptors, seed)
        length, cells = sample.shape[1], _cells(len(tiles), len(sample))
        kept = CODES[code].format(quarter=max(1, length // 4))
        empty = faiss.index_factory(length, f"IVF{cells},{kept}")
        empty.cp.seed = seed
        empty.train(sample)
        parts = out / "parts"
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir()
        files: list[str] = []
        count = 0
        with tqdm(total=len(tiles), unit="tile", disable=not progress) as bar:
            for rows, found in _shards(tiles, descriptors, shard_tiles):
                shard = faiss.clone_index(empty)
                shard.add_with_ids(found, rows.astype(np.int64))
                files.append(str(parts / f"{len(files)}.faiss"))
                faiss.write_index(shard, files[-1])
                count += len(found)
                bar.update(len(rows))
        _merge(faiss, empty, files, out)
        shutil.rmtree(parts)
        about = {"tiles": len(tiles), "kept": count, "length": length, "cells": cells,
                 "code": code, "table": _fingerprint(tiles)}  # fmt: skip
        write_json(out / ABOUT, about)
    return Index(out, tiles)


class Index:
    """An index on disk, open for queries.

    Args:
        folder: Where :func:`build_index` put it.
        tiles: The table that it was built from.

    Raises:
        ConfigError: If FAISS is not installed.
        DescriptorError: If it is missing, unfinished, or of another table.
    """

    def __init__(self, folder: str | Path, tiles: pd.DataFrame) -> None:
        faiss, folder = _faiss(), Path(folder)
        if not (folder / ABOUT).exists():
            raise DescriptorError(
                f"{folder} holds no finished index; `sslpath index` makes it, anew if it was "
                "interrupted."
            )
        self.about: dict[str, Any] = json.loads((folder / ABOUT).read_text())
        if self.about["table"] != _fingerprint(tiles):
            raise DescriptorError(f"The index in {folder} is of another table of tiles.")
        # The lists stay on disk, wherever the folder has been moved to.
        self._index = faiss.read_index(str(folder / CENTRES), faiss.IO_FLAG_ONDISK_SAME_DIR)

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
            Rows of the table ``(q, k)``, nearest first, and distances ``(q, k)`` of the descriptors
            as they are kept; -1 at distance infinity where the lists hold fewer.
        """
        faiss, x = _faiss(), unit_length(np.atleast_2d(np.asarray(queries)))
        if x.shape[1] != self.about["length"]:
            raise DescriptorError(
                f"Queries of {x.shape[1]} numbers; the index has {self.about['length']}."
            )
        if (query_groups is None) != (groups is None):
            raise ConfigError("Give the groups of both queries and table, or of neither.")
        found = np.full((len(x), k), -1, np.int64)
        squared = np.full((len(x), k), np.inf, np.float32)
        for these, left_out in _left_out(query_groups, groups, len(x)):
            asked = faiss.SearchParametersIVF(nprobe=min(probes, self.about["cells"]))
            if left_out is not None:
                asked.sel = faiss.IDSelectorNot(faiss.IDSelectorBatch(left_out))
            squared[these], found[these] = self._index.search(x[these], k, params=asked)
        squared[found < 0] = np.inf
        return found, np.sqrt(np.maximum(squared, 0))


def _left_out(
    query_groups: ArrayLike | None, groups: ArrayLike | None, n: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.int64] | None]]:
    """Queries that leave the same rows out, and these rows."""
    if query_groups is None:
        yield np.arange(n), None
        return
    codes = pd.factorize(np.concatenate([np.asarray(query_groups), np.asarray(groups)]))[0]
    order = np.argsort(codes[n:], kind="stable")
    ordered = codes[n:][order]
    for code in np.unique(codes[:n]):
        start, end = np.searchsorted(ordered, [code, code + 1])
        yield np.flatnonzero(codes[:n] == code), order[start:end].astype(np.int64)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ConfigError("An index needs FAISS: pip install faiss-cpu.") from error
    return faiss


def _cells(tiles: int, sample: int) -> int:
    """How many lists: four times the root of the tiles, if there are enough to learn them."""
    return max(1, min(round(4 * math.sqrt(tiles)), MOST_CELLS, sample // LEARN_FROM))


def _sample(tiles: pd.DataFrame, folder: str | Path, seed: int) -> NDArray[np.float32]:
    """Descriptors to learn centres from: of some slides, drawn, as many as FAISS has use for."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(tiles["slide_id"].unique())[:LEARN_SLIDES]
    rows = np.flatnonzero(tiles["slide_id"].isin(ids))
    wanted = min(len(rows), LEARN_MOST * _cells(len(tiles), len(tiles)))
    some = tiles.iloc[np.sort(rng.permutation(rows)[:wanted])]
    return unit_length(read_descriptors(folder, some, missing="drop")[0])


def _shards(
    tiles: pd.DataFrame, folder: str | Path, shard_tiles: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
    """Rows of the table that have a descriptor, slide by slide, and the descriptors."""
    order = np.argsort(pd.factorize(tiles["slide_id"])[0], kind="stable")
    for start in range(0, len(order), shard_tiles):
        rows = order[start : start + shard_tiles]
        found, kept = read_descriptors(folder, tiles.iloc[rows], missing="drop")
        yield rows[kept], unit_length(found)


def _merge(faiss: Any, empty: Any, files: list[str], out: Path) -> None:
    """Copy the lists of all shards into one file, list by list, and point ``empty`` to it."""
    opened = [faiss.read_index(file, faiss.IO_FLAG_MMAP) for file in files]
    lists = faiss.InvertedListsPtrVector()
    for shard in opened:
        lists.push_back(shard.invlists)
    merged = faiss.OnDiskInvertedLists(empty.nlist, empty.code_size, str(out / LISTS))
    count = merged.merge_from_multiple(lists.data(), lists.size())
    empty.ntotal = count
    empty.replace_invlists(merged)
    faiss.write_index(empty, str(out / CENTRES))


def _fingerprint(tiles: pd.DataFrame) -> int:
    """A number that another table, or the same in another order, would hardly have."""
    hashed = pd.util.hash_pandas_object(tiles[["slide_id", "x", "y"]], index=False)
    places = np.arange(1, len(hashed) + 1, dtype=np.uint64)
    return int((hashed.to_numpy(np.uint64) * places).sum() >> np.uint64(11))
