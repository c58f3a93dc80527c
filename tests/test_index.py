"""The index on disk: against exact search, the own patient left out, whole or not at all."""

import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from sslpath.descriptor_files import write_failures
from sslpath.descriptors import descriptor_path
from sslpath.embed import store
from sslpath.errors import ConfigError, DescriptorError
from sslpath.index import ABOUT, CENTRES, LISTS, Index, build_index
from sslpath.neighbours import neighbours, unit_length
from sslpath.table import make_table

SLIDES, EACH, LENGTH = 40, 100, 32


def clustered(n: int, seed: int = 0) -> NDArray[np.float32]:
    """Descriptors as tissue gives them: kinds of tissue, and differences within each."""
    rng = np.random.default_rng(seed)
    kinds = rng.standard_normal((20, LENGTH))
    return unit_length(kinds[rng.integers(20, size=n)] + 0.3 * rng.standard_normal((n, LENGTH)))


@pytest.fixture(scope="module")
def tiles() -> pd.DataFrame:
    """A table whose slides are interleaved; each patient has two slides."""
    of = np.tile(np.arange(SLIDES), EACH)
    return make_table(
        {
            "slide_id": [f"s{i}" for i in of], "patient_id": [f"p{i // 2}" for i in of],
            "x": np.repeat(np.arange(EACH), SLIDES) * 16, "y": 0, "size": 16, "slide_mpp": 0.5,
        },
        mpp=0.5, tile_px=16, source={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(tiles: pd.DataFrame) -> NDArray[np.float32]:
    return clustered(len(tiles))


@pytest.fixture(scope="module")
def folder(
    tiles: pd.DataFrame, found: NDArray[np.float32], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    where = tmp_path_factory.mktemp("descriptors")
    store(tiles, found, where, {"arch": "made up"})
    return where


def built(tiles: pd.DataFrame, folder: Path, out: Path, **settings: object) -> Index:
    return build_index(tiles, folder, out, progress=False, **settings)  # type: ignore[arg-type]


def test_looking_into_every_list_is_the_exact_search(tiles, found, folder, tmp_path):
    index = built(tiles, folder, tmp_path / "i", code="flat", shard_tiles=700)
    patients, every = tiles["patient_id"], index.about["cells"]
    assert every > 10
    asked = np.arange(0, len(tiles), 7)
    rows, distances = index.neighbours(
        found[asked], patients.iloc[asked], patients, 10, probes=every
    )
    exact, true = neighbours(found[asked], found, patients.iloc[asked], patients, 10)
    assert (rows == exact).mean() > 0.999  # float32: near-ties may swap
    np.testing.assert_allclose(distances, true, atol=1e-3)
    assert not (patients.to_numpy()[rows] == patients.to_numpy()[asked][:, None]).any()


def test_without_groups_a_tile_finds_itself(tiles, found, folder, tmp_path):
    index = built(tiles, folder, tmp_path / "i")
    rows, distances = index.neighbours(found[:50], k=1)
    assert rows.ravel().tolist() == list(range(50))
    assert distances.max() < 0.05


@pytest.mark.parametrize(("code", "least"), [("flat", 0.97), ("bytes", 0.93), ("quarter", 0.4)])
def test_a_few_lists_find_most_of_the_true_neighbours(tiles, found, folder, tmp_path, code, least):
    index = built(tiles, folder, tmp_path / "i", code=code)
    patients = tiles["patient_id"]
    rows, _ = index.neighbours(found[:200], patients[:200], patients, 10, probes=32)
    exact, _ = neighbours(found[:200], found, patients[:200], patients, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, exact, strict=True)])
    assert recall > least


def test_shards_lose_nothing_and_mix_nothing_up(tiles, found, folder, tmp_path):
    index = built(tiles, folder, tmp_path / "i", code="flat", shard_tiles=333)
    rows, distances = index.neighbours(found, k=1, probes=index.about["cells"])
    assert rows.ravel().tolist() == list(range(len(tiles)))
    assert distances.max() < 2e-3  # float32
    assert {path.name for path in (tmp_path / "i").iterdir()} == {ABOUT, CENTRES, LISTS}


def test_an_index_that_has_moved_works(tiles, found, folder, tmp_path):
    built(tiles, folder, tmp_path / "a")
    shutil.move(tmp_path / "a", tmp_path / "elsewhere")
    rows, _ = Index(tmp_path / "elsewhere", tiles).neighbours(found[:5], k=1)
    assert rows.ravel().tolist() == [0, 1, 2, 3, 4]


def test_tiles_without_a_descriptor_are_not_found(tiles, found, folder, tmp_path):
    own = tmp_path / "descriptors"
    shutil.copytree(folder, own)
    descriptor_path(own, "s3").unlink()
    lost = tiles[tiles["slide_id"] == "s3"]
    write_failures(own, [(r.slide_id, r.x, r.y, "broken") for r in lost.itertuples()])
    index = built(tiles, own, tmp_path / "i")
    assert index.about["kept"] == len(tiles) - len(lost)
    rows, _ = index.neighbours(found[lost.index], k=10)
    assert not np.isin(rows, lost.index).any()


def test_what_was_interrupted_is_not_trusted_and_can_be_made_anew(tiles, folder, tmp_path):
    built(tiles, folder, tmp_path / "i")
    (tmp_path / "i" / LISTS).unlink()
    (tmp_path / "i" / LISTS).mkdir()  # so that what comes last cannot be written
    with pytest.raises(OSError, match=LISTS):
        built(tiles, folder, tmp_path / "i")
    (tmp_path / "i" / LISTS).rmdir()
    with pytest.raises(DescriptorError, match="no finished index"):
        Index(tmp_path / "i", tiles)
    assert built(tiles, folder, tmp_path / "i").about["kept"] == len(tiles)


def test_an_index_of_another_table_or_order_is_refused(tiles, folder, tmp_path):
    built(tiles, folder, tmp_path / "i")
    for other in (tiles.iloc[:-1], tiles.iloc[::-1].reset_index(drop=True)):
        with pytest.raises(DescriptorError, match="another table"):
            Index(tmp_path / "i", other)


def test_a_shard_of_failed_tiles_alone_is_passed_over(tiles, folder, tmp_path):
    own = tmp_path / "descriptors"
    shutil.copytree(folder, own)
    descriptor_path(own, "s0").unlink()
    lost = tiles[tiles["slide_id"] == "s0"]
    write_failures(own, [(r.slide_id, r.x, r.y, "broken") for r in lost.itertuples()])
    assert built(tiles, own, tmp_path / "i", shard_tiles=EACH).about["kept"] == len(tiles) - EACH


def test_descriptors_of_two_encoders_are_refused_wherever_the_shards_end(
    tiles, found, folder, tmp_path
):
    own = tmp_path / "descriptors"
    shutil.copytree(folder, own)
    last = tiles[tiles["slide_id"] == "s39"]
    store(last, found[last.index], own, {"arch": "another"})
    with pytest.raises(DescriptorError, match=r"not (all of one|made by the same) encoder"):
        built(tiles, own, tmp_path / "i", shard_tiles=EACH)


def test_a_damaged_index_is_refused(tiles, folder, tmp_path):
    built(tiles, folder, tmp_path / "i")
    about = (tmp_path / "i" / ABOUT).read_text()
    for name, data in ((LISTS, b"short"), (CENTRES, b""), (ABOUT, b"{")):
        shutil.copytree(tmp_path / "i", tmp_path / "damaged", dirs_exist_ok=True)
        (tmp_path / "damaged" / name).write_bytes(data)
        with pytest.raises(DescriptorError, match="is damaged"):
            Index(tmp_path / "damaged", tiles)
    (tmp_path / "damaged" / ABOUT).write_text(about)
    (tmp_path / "damaged" / LISTS).unlink()
    with pytest.raises(DescriptorError, match="is damaged"):
        Index(tmp_path / "damaged", tiles)


def test_an_index_that_cannot_be_written_can_be_read(tiles, found, folder, tmp_path):
    built(tiles, folder, tmp_path / "i")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "i").iterdir()}
    for path in before:
        path.chmod(0o444)
    assert Index(tmp_path / "i", tiles).neighbours(found[:1], k=1)[0] == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "i").iterdir()}


def test_too_few_tiles_for_quarters_and_a_wrong_seed_leave_the_index_that_is_there(
    tiles, folder, tmp_path
):
    few = tiles[tiles["slide_id"].isin(["s0", "s1"])].reset_index(drop=True)
    few.attrs = tiles.attrs
    built(few, folder, tmp_path / "i")
    with pytest.raises(ConfigError, match="200 tiles are too few"):
        built(few, folder, tmp_path / "i", code="quarter")
    with pytest.raises(ConfigError, match="seed 0 to"):
        built(few, folder, tmp_path / "i", seed=2**32)
    assert Index(tmp_path / "i", few).about["code"] == "bytes"


def test_faiss_prints_nothing(tiles, folder, tmp_path, capfd):
    built(tiles, folder, tmp_path / "i", shard_tiles=500)
    Index(tmp_path / "i", tiles)
    assert capfd.readouterr().out == ""


def test_what_other_threads_print_meanwhile_arrives(tiles, folder, tmp_path, capfd):
    built(tiles, folder, tmp_path / "i")
    done, count = threading.Event(), 0

    def speak():
        nonlocal count
        while not done.is_set():
            os.write(1, b"here\n")
            count += 1

    with ThreadPoolExecutor(1) as pool:
        speaking = pool.submit(speak)
        for _ in range(20):
            Index(tmp_path / "i", tiles)
        built(tiles, folder, tmp_path / "i", shard_tiles=500)
        done.set()
        speaking.result()
    assert capfd.readouterr().out == count * "here\n"


def test_a_folder_of_the_users_own_in_the_folder_of_the_index_stays(tiles, folder, tmp_path):
    own = tmp_path / "i" / "parts" / "mine.txt"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    built(tiles, folder, tmp_path / "i")
    assert own.read_text() == "mine"


@pytest.mark.parametrize("name", [CENTRES, LISTS, ABOUT])
def test_a_file_of_another_program_with_a_name_of_the_index_stays(tiles, folder, tmp_path, name):
    own = tmp_path / "i" / name
    own.parent.mkdir()
    own.write_text('{"mine": 1}')
    with pytest.raises(ConfigError, match=f"holds {name}, but not an sslpath index"):
        built(tiles, folder, tmp_path / "i")
    assert own.read_text() == '{"mine": 1}'


def test_a_file_in_place_of_the_folder_is_found_before_centres_are_learned(tiles, tmp_path, folder):
    (tmp_path / "i").touch()
    with pytest.raises(FileExistsError):  # one descriptor would be too few to learn from
        build_index(tiles, folder, tmp_path / "i", code="quarter", shard_tiles=1, progress=False)


def test_wrong_settings_and_queries_are_named(tiles, found, folder, tmp_path):
    with pytest.raises(ConfigError, match="flat, bytes, quarter"):
        built(tiles, folder, tmp_path / "i", code="half")
    index = built(tiles, folder, tmp_path / "i")
    with pytest.raises(DescriptorError, match="Queries of 5 numbers must be finite and 32 long"):
        index.neighbours(np.ones((1, 5)))
    with pytest.raises(ConfigError, match="groups of both"):
        index.neighbours(found[:1], ["p0"])
    with pytest.raises(ConfigError, match="Groups"):
        index.neighbours(found[:1], ["p0"], tiles["patient_id"][:5])
    with pytest.raises(ConfigError, match="1 or more"):
        index.neighbours(found[:1], k=0)
    with pytest.raises(DescriptorError, match="must be finite"):
        index.neighbours(np.full((1, 32), np.nan))


def test_a_group_without_rows_leaves_nothing_out_and_few_others_leave_gaps(tmp_path):
    one = make_table(
        {"slide_id": ["a", "a", "b"], "x": [0, 16, 0], "y": 0, "size": 16, "slide_mpp": 0.5},
        mpp=0.5, tile_px=16, source={},
    )  # fmt: skip
    found = np.eye(3, 4, dtype=np.float32)
    store(one, found, tmp_path / "d", {"arch": "made up"})
    index = built(one, tmp_path / "d", tmp_path / "i", code="flat")
    rows, distances = index.neighbours(found[:2], ["a", "new"], one["patient_id"], 3)
    assert rows[0].tolist() == [2, -1, -1]
    assert np.isinf(distances[0, 1:]).all()
    assert sorted(rows[1]) == [0, 1, 2]


def test_searching_an_index_needs_no_pytorch_whose_start_takes_seconds():
    code = "import sys, sslpath.index, sslpath.retrieval; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
