"""The table of tiles, and files that are never half-written."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslpath.errors import TableError
from sslpath.files import atomic_path, sha256, write_json
from sslpath.table import (
    centres_um,
    fold,
    load_tiles,
    make_table,
    save_tiles,
    split_by_patient,
    tile_um,
)


def some_tiles(n: int = 4, **columns: object) -> pd.DataFrame:
    base = {"slide_id": [f"s{i % 2}" for i in range(n)], "x": range(n), "y": 0, "size": 448,
            "slide_mpp": 0.25}  # fmt: skip
    return make_table(base | columns, mpp=0.5, tile_px=224, source={"kind": "none"})


def test_a_table_survives_the_disk_with_types_missing_values_and_metadata(tmp_path: Path) -> None:
    tiles = some_tiles(label=[1, 0, pd.NA, 1], region=["tumour", None, "fat", None])
    save_tiles(tiles, tmp_path / "t.parquet")
    again = load_tiles(tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(tiles, again)
    assert again.attrs == {"mpp": 0.5, "tile_px": 224, "source": {"kind": "none"}}
    assert again[again["x"] > 1].attrs == again.attrs


def test_a_missing_column_or_metadata_is_named(tmp_path: Path) -> None:
    tiles = some_tiles()
    with pytest.raises(TableError, match="slide_mpp"):
        save_tiles(tiles.drop(columns="slide_mpp"), tmp_path / "t.parquet")
    tiles.attrs = {}
    with pytest.raises(TableError, match="tile_px"):
        save_tiles(tiles, tmp_path / "t.parquet")
    with pytest.raises(TableError, match="colour"):
        some_tiles(colour="pink")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_table_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"none\.parquet; make one with `sslpath tile`"):
        load_tiles(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(TableError, match=r"text\.parquet"):
        load_tiles(tmp_path / "text.parquet")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(TableError, match="lacks the columns"):
        load_tiles(tmp_path / "other.parquet")


def test_a_row_that_is_there_twice_is_read_once_and_rows_that_contradict_are_refused(
    tmp_path: Path,
) -> None:
    path, tiles = tmp_path / "t.parquet", some_tiles(label=[1, 0, 1, 0])
    twice = pd.concat([tiles, tiles.iloc[:1]])
    twice.attrs = tiles.attrs
    save_tiles(twice, path)
    with pytest.warns(UserWarning, match=r"t\.parquet has 1 row twice, such as s0 at 0, 0"):
        read = load_tiles(path)
    pd.testing.assert_frame_equal(read, tiles)
    assert read.attrs == tiles.attrs
    twice["label"] = [1, 0, 1, 0, 0]
    save_tiles(twice, path)
    with pytest.raises(TableError, match="rows of one tile that differ, such as those of s0 at 0"):
        load_tiles(path)


def test_a_cut_table_is_refused(tmp_path: Path) -> None:
    save_tiles(some_tiles(), tmp_path / "t.parquet")
    whole = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TableError, match=r"t\.parquet"):
        load_tiles(tmp_path / "t.parquet")


def test_centres_are_in_um_of_each_slides_own_pixels() -> None:
    tiles = some_tiles(2, slide_mpp=[0.25, 0.5], x=[0, 100], y=[40, 0], size=[448, 224])
    np.testing.assert_allclose(centres_um(tiles), [[56, 66], [106, 56]])
    assert tile_um(tiles) == 112


@given(st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=30))
def test_a_patients_split_does_not_depend_on_the_other_patients(patients: set[str]) -> None:
    names = sorted(patients)
    table = {"slide_id": [f"s{i}" for i in range(len(names))], "patient_id": names, "x": 0, "y": 0,
             "size": 1, "slide_mpp": 1.0}  # fmt: skip
    tiles = split_by_patient(make_table(table, mpp=1, tile_px=1, source={}))
    for patient, split in zip(tiles["patient_id"], tiles["split"], strict=True):
        assert split == ("test" if fold(patient) in (0, 1) else "train")


def test_folds_are_about_equally_full() -> None:
    counts = np.bincount([fold(f"patient {i}") for i in range(5000)], minlength=5)
    assert counts.min() > 900
    assert counts.max() < 1100


def test_a_file_is_there_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"old": 1})
    before = sha256(target)

    def fail_halfway() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="gone"):
        fail_halfway()
    assert sha256(target) == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_what_a_killed_process_left_is_removed_by_the_next_and_a_living_ones_is_not(
    tmp_path: Path,
) -> None:
    script = (
        "import os, signal, sys; from sslpath.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    target, other = tmp_path / "a[1].json", tmp_path / "b.json"
    for path in (target, other):
        subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    with atomic_path(target) as mine:
        mine.write_text("whole")
    assert target.read_text() == "whole"
    assert sum(path.name.startswith(".b.") for path in tmp_path.iterdir()) == 1
    assert len(list(tmp_path.iterdir())) == 2


def test_what_one_user_writes_others_may_read(tmp_path: Path) -> None:
    target, plain = tmp_path / "a.safetensors", tmp_path / "plain"
    plain.touch()
    with atomic_path(target) as temporary:
        temporary.touch(0o600)  # as safetensors does
    assert target.stat().st_mode == plain.stat().st_mode


def test_json_never_holds_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"value": float("nan")})
    assert list(tmp_path.iterdir()) == []
