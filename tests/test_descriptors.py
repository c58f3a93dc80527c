"""Descriptors on disk: the field's layout, broken files, resuming, tiles that cannot be read."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import HANG_S
from hypothesis import given, settings
from hypothesis import strategies as st

from sslpath import descriptor_files
from sslpath.descriptors import (
    compute,
    descriptor_path,
    load_slide,
    read_descriptors,
    read_failures,
    rgb_features,
    write_descriptors,
)
from sslpath.embed import store
from sslpath.errors import DescriptorError, SlideError, TileReadError
from sslpath.table import make_table

MADE_BY = {"encoder": "rgb"}


def some_tiles(counts=None, tile_px=8):
    """A row of tiles on each slide; x is unique over all slides, so tiles can be told apart."""
    counts = {"a": 5, "b": 3} if counts is None else counts
    slides = [name for name, n in counts.items() for _ in range(n)]
    return make_table(
        {"slide_id": slides, "x": range(len(slides)), "y": 0, "size": 16, "slide_mpp": 0.25},
        mpp=0.5,
        tile_px=tile_px,
        source={},
    )


class PlainTiles:
    """A source whose tiles have the colour x; those in ``bad`` cannot be read."""

    def __init__(self, bad=(), gone=()):
        self.bad, self.gone, self.read_so_far = set(bad), set(gone), 0

    def read(self, rows):
        if self.gone & set(rows["slide_id"]):
            raise SlideError("the slide has gone")
        broken = self.bad & set(rows["x"])
        if broken:
            raise TileReadError(f"tile at {min(broken)} cannot be decoded")
        self.read_so_far += len(rows)
        colour = rows["x"].to_numpy(np.uint8)
        return np.broadcast_to(colour[:, None, None, None], (len(rows), 8, 8, 3)).copy()


def run(tiles, folder, source=None, encode=rgb_features, attrs=MADE_BY, **settings):
    source = PlainTiles() if source is None else source
    return compute(
        tiles, encode, source, folder, attrs=attrs, **{"batch": 2, "progress": False} | settings
    )


def assert_right(features, tiles):
    np.testing.assert_allclose(features[:, 0] * 255, tiles["x"], atol=1e-3)


# --- the layout on disk ------------------------------------------------------------------------


def test_plain_h5py_finds_what_clam_and_trident_write(tmp_path):
    features = np.random.default_rng(0).normal(size=(700, 128)).astype(np.float32)
    coords = np.arange(1400).reshape(700, 2)
    path = write_descriptors(tmp_path, "tumor_001", features, coords, MADE_BY, {"patch_size": 224})
    assert path == tmp_path / "tumor_001.h5"
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["features"][:], features)
        np.testing.assert_array_equal(file["coords"][:], coords)
        assert file["features"].dtype == np.float32
        assert file["coords"].dtype.kind == "i"
        assert file["features"].maxshape == (None, 128)
        assert file["features"].chunks[0] > 100  # chunks of one row make reading slow
        assert dict(file["coords"].attrs) == {"name": "tumor_001", "patch_size": 224}
        assert json.loads(file.attrs["provenance"]) == MADE_BY


def test_a_file_written_the_way_of_clam_is_read(tmp_path):
    tiles = some_tiles({"a": 6})
    features = np.random.default_rng(0).normal(size=(6, 1024)).astype(np.float32)
    coords = tiles[["x", "y"]].to_numpy()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, data in (("features", features), ("coords", coords)):
            file.create_dataset(
                name,
                shape=(4, data.shape[1]),
                maxshape=(None, data.shape[1]),
                chunks=(1, data.shape[1]),
                dtype=data.dtype,
            )
            file[name][:] = data[:4]
            file[name].resize(6, axis=0)  # CLAM appends batch by batch
            file[name][4:] = data[4:]
        file["coords"].attrs.update({"patch_size": 256, "patch_level": 0, "name": "a"})
    np.testing.assert_array_equal(read_descriptors(tmp_path, tiles), features)


def test_a_file_written_the_way_of_trident_is_read_in_any_order_of_tiles(tmp_path):
    tiles = some_tiles({"a": 6})
    features = np.random.default_rng(0).normal(size=(6, 16)).astype(np.float16)
    attrs = {"patch_size": 224, "patch_size_level0": 448, "target_magnification": 20, "overlap": 0,
             "name": "a", "level0_width": 9000, "level0_height": 8000}  # fmt: skip
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("features", data=features, compression="gzip")
        file.create_dataset("coords", data=tiles[["x", "y"]].to_numpy(np.int32))
        file["coords"].attrs.update(attrs)
    assert load_slide(tmp_path / "a.h5").attrs["patch_size_level0"] == 448
    mixed = tiles.iloc[[4, 0, 2]]
    got = read_descriptors(tmp_path, mixed)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, features[[4, 0, 2]])


@settings(max_examples=100, deadline=None)
@given(names=st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=2, unique=True))
def test_any_slide_id_stays_inside_the_folder_and_no_two_share_a_file(names, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    paths = [descriptor_path(folder, name) for name in names]
    assert paths[0] != paths[1]
    for path in paths:
        assert path.parent == folder
        assert path.resolve().parent == folder.resolve()
        assert not path.name.startswith(".")


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "..",
        "/etc/passwd",
        "a/../../x",
        "..\\x",
        "C:\\x",
        "snö 雪",
        "a\x00b",
        "%2E",
    ],
)
def test_odd_slide_ids_are_written_inside_the_folder_and_read_back(tmp_path, name):
    folder = tmp_path / "deep" / "folder"
    tiles = some_tiles({name: 2})
    run(tiles, folder)
    assert_right(read_descriptors(folder, tiles), tiles)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [descriptor_path(folder, name)]


def test_a_slide_without_a_name_is_refused(tmp_path):
    with pytest.raises(DescriptorError, match="slide_id"):
        descriptor_path(tmp_path, "")


# --- files that are not what they should be ------------------------------------------------------


def damage_cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_empty(path):
    path.write_bytes(b"")


def damage_text(path):
    path.write_text("not HDF5")


def damage_garbled(path):
    content = bytearray(path.read_bytes())
    content[8:600] = b"\xff" * 592
    path.write_bytes(content)


def damage_nan(path):
    with h5py.File(path, "a") as file:
        file["features"][1, 0] = np.nan


def damage_no_coords(path):
    with h5py.File(path, "a") as file:
        del file["coords"]


def damage_group(path):
    with h5py.File(path, "a") as file:
        del file["features"]
        file.create_group("features")


def damage_fewer_coords(path):
    with h5py.File(path, "a") as file:
        file["coords"].resize(2, axis=0)


def damage_strings(path):
    with h5py.File(path, "a") as file:
        del file["features"]
        file["features"] = ["one", "two", "three", "four", "five"]


def damage_slide_embedding(path):
    with h5py.File(path, "a") as file:
        del file["features"]
        file["features"] = np.ones(512, np.float32)


def damage_fractions(path):
    with h5py.File(path, "a") as file:
        del file["coords"]
        file["coords"] = np.full((5, 2), 0.5)


def damage_announced_rows(path):
    """As a writer leaves it that is killed between growing the file and filling it."""
    with h5py.File(path, "a") as file:
        for name in ("features", "coords"):
            rows, width = file[name].chunks[0], file[name].shape[1]
            file[name].resize((5 + 3 * rows, width))


def damage_never_written(path):
    with h5py.File(path, "a") as file:
        del file["features"]
        file.create_dataset("features", (5, 10**12), np.float32)


DAMAGES = [value for name, value in list(globals().items()) if name.startswith("damage_")]
# Nothing in such a file says who made it.
UNREADABLE = (damage_cut_short, damage_text, damage_garbled)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_with_its_remedy(tmp_path, damage):
    tiles = some_tiles()
    run(tiles, tmp_path)
    path = descriptor_path(tmp_path, "a")
    damage(path)
    with pytest.raises(DescriptorError) as caught:
        read_descriptors(tmp_path, tiles)
    assert str(path) in str(caught.value)
    assert "sslpath embed" in str(caught.value)


@pytest.mark.parametrize("damage", [each for each in DAMAGES if each not in UNREADABLE])
def test_a_damaged_file_of_sslpath_is_computed_again_on_resume(tmp_path, damage):
    tiles = some_tiles()
    run(tiles, tmp_path)
    damage(descriptor_path(tmp_path, "a"))
    source = PlainTiles()
    run(tiles, tmp_path, source)
    assert source.read_so_far == 5
    assert_right(read_descriptors(tmp_path, tiles), tiles)


@pytest.mark.parametrize("damage", UNREADABLE)
def test_a_file_that_cannot_be_read_is_not_overwritten_until_it_is_moved_away(tmp_path, damage):
    tiles = some_tiles()
    run(tiles, tmp_path)
    path = descriptor_path(tmp_path, "a")
    damage(path)
    before = path.read_bytes()
    with pytest.raises(DescriptorError, match=r"a\.h5 is there and cannot be read.*--out"):
        run(tiles, tmp_path)
    assert path.read_bytes() == before
    path.unlink()
    run(tiles, tmp_path)
    assert_right(read_descriptors(tmp_path, tiles), tiles)


def test_a_file_cut_at_any_byte_is_an_error_or_whole(tmp_path):
    path = write_descriptors(tmp_path, "a", np.ones((4, 8)), np.arange(8).reshape(4, 2))
    content = path.read_bytes()
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        with pytest.raises(DescriptorError, match=r"Cannot read|holds"):
            load_slide(path)


def test_a_missing_file_says_how_to_make_it(tmp_path):
    with pytest.raises(DescriptorError, match="sslpath embed"):
        read_descriptors(tmp_path, some_tiles())


def test_a_descriptor_of_another_length_names_both_files(tmp_path):
    tiles = some_tiles()
    coords = tiles[["x", "y"]].to_numpy()
    write_descriptors(tmp_path, "a", np.ones((5, 8)), coords[:5])
    write_descriptors(tmp_path, "b", np.ones((3, 9)), coords[5:])
    with pytest.raises(DescriptorError, match=r"b\.h5 \(length 9\) and .*a\.h5 \(length\s8\)"):
        read_descriptors(tmp_path, tiles)


def test_descriptors_of_two_encoders_in_one_folder_are_refused(tmp_path):
    tiles = some_tiles()
    run(tiles[tiles["slide_id"] == "a"], tmp_path)
    run(tiles[tiles["slide_id"] == "b"], tmp_path, attrs={"encoder": "other"})
    with pytest.raises(DescriptorError, match="same encoder"):
        read_descriptors(tmp_path, tiles)


def test_descriptors_of_tiles_of_another_size_are_refused(tmp_path):
    run(some_tiles(tile_px=8), tmp_path)
    with pytest.raises(DescriptorError, match="tile_px 8, the table has 16"):
        read_descriptors(tmp_path, some_tiles(tile_px=16))


def test_slides_that_a_file_system_confuses_are_told_apart(tmp_path):
    run(some_tiles({"a": 3}), tmp_path)
    (tmp_path / "a.h5").rename(tmp_path / "A.h5")
    with pytest.raises(DescriptorError, match="more than case"):
        read_descriptors(tmp_path, some_tiles({"A": 3}))


def test_two_descriptors_of_one_tile_are_refused(tmp_path):
    write_descriptors(tmp_path, "a", np.ones((3, 2)), np.zeros((3, 2), int))
    with pytest.raises(DescriptorError, match="two descriptors for one tile"):
        read_descriptors(tmp_path, some_tiles({"a": 1}))


@pytest.mark.parametrize(
    ("features", "coords"),
    [
        (np.full((2, 3), np.nan), np.zeros((2, 2), int)),
        (np.ones((2, 3)), np.zeros((3, 2), int)),
        (np.ones(3), np.zeros((3, 2), int)),
        (np.ones((2, 0)), np.zeros((2, 2), int)),
        (np.ones((2, 3)), np.full((2, 2), 0.5)),
    ],
)
def test_what_is_no_descriptor_is_not_written(tmp_path, features, coords):
    with pytest.raises(DescriptorError, match="Bad descriptors"):
        write_descriptors(tmp_path, "a", features, coords)
    assert not list(tmp_path.iterdir())


# --- computing and resuming ----------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_descriptors_come_back_in_the_order_of_the_table(tmp_path, workers):
    tiles = some_tiles({"a": 7, "b": 1, "c": 4}).sample(frac=1, random_state=0)
    failures = run(tiles, tmp_path, workers=workers)
    assert failures.empty
    assert_right(read_descriptors(tmp_path, tiles), tiles)
    attrs = load_slide(tmp_path / "a.h5").attrs
    assert (attrs["patch_size"], attrs["patch_size_level0"]) == (8, 16)
    assert json.loads(attrs["provenance"]) == {"encoder": "rgb", "mpp": 0.5, "tile_px": 8}


def test_many_batches_read_ahead_come_to_the_right_tiles(tmp_path):
    """Of more batches than there is shared memory for, and an encoder slower than reading."""

    def slow(images):
        time.sleep(0.01)
        return rgb_features(images)

    tiles = some_tiles({"a": 21, "b": 20, "c": 1}).sample(frac=1, random_state=0)
    failures = run(tiles, tmp_path, PlainTiles(bad=[4, 30]), slow, workers=2)
    assert sorted(failures["x"]) == [4, 30]
    features, kept = read_descriptors(tmp_path, tiles, missing="drop")
    assert_right(features, tiles[kept])
    assert kept.sum() == 40


@pytest.mark.parametrize("counts", [{"a": 5, "b": 5}, {"a": 5}], ids=["first", "last"])
def test_a_slide_that_cannot_be_written_stops_the_run(tmp_path, counts):
    resource = pytest.importorskip("resource", reason="limits on files are of Unix")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: .*a\.h5"):
            run(some_tiles(counts), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.glob("*.h5"))


def test_coords_have_the_attributes_that_trident_reads(tmp_path):
    tiles = some_tiles({"a": 4, "b": 2})
    tiles.attrs["source"] = {"slides": {"a": {"width": 9000, "height": 8000, "stride_px": 6}}}
    run(tiles, tmp_path / "computed")
    store(tiles, np.ones((6, 3), np.float32), tmp_path / "stored", {"arch": "x"})
    for folder in (tmp_path / "computed", tmp_path / "stored"):
        with h5py.File(folder / "a.h5") as file:
            attrs = dict(file["coords"].attrs)
        assert attrs == {
            "patch_size": 8,
            "patch_size_level0": 16,
            "level0_magnification": 40.0,
            "target_magnification": 20.0,
            "overlap": 2,
            "name": "a",
            "savetodir": str(folder),
            "level0_width": 9000,
            "level0_height": 8000,
        }
        kinds = {key: np.asarray(value).dtype.kind for key, value in attrs.items()}
        assert kinds == {
            **dict.fromkeys(("patch_size", "patch_size_level0", "overlap"), "i"),
            **dict.fromkeys(("level0_width", "level0_height"), "i"),
            **dict.fromkeys(("level0_magnification", "target_magnification"), "f"),
            **dict.fromkeys(("name", "savetodir"), "U"),
        }
        assert all(np.ndim(value) == 0 for value in attrs.values())
        with h5py.File(folder / "b.h5") as file:  # of which the table knows no size
            assert set(file["coords"].attrs) == set(attrs) - {"level0_width", "level0_height"}
            assert file["coords"].attrs["overlap"] == 0


def test_a_second_run_reads_nothing_and_leaves_the_files_alone(tmp_path):
    tiles = some_tiles()
    run(tiles, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    source = PlainTiles()
    run(tiles, tmp_path, source)
    assert source.read_so_far == 0
    assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before


def test_another_encoder_or_pixel_size_computes_all_again(tmp_path):
    tiles = some_tiles()
    run(tiles, tmp_path)
    source = PlainTiles()
    run(tiles, tmp_path, source, attrs={"encoder": "rgb", "weights": "new"})
    assert source.read_so_far == 8
    finer = tiles.copy()
    finer.attrs = {**tiles.attrs, "mpp": 0.25}
    run(finer, tmp_path, source, attrs={"encoder": "rgb", "weights": "new"})
    assert source.read_so_far == 16


def test_of_a_file_with_other_corners_only_what_is_new_is_computed(tmp_path):
    tiles = some_tiles({"a": 10})
    run(tiles.iloc[:6], tmp_path)
    source = PlainTiles()
    run(tiles.iloc[3:], tmp_path, source)
    assert source.read_so_far == 4
    assert_right(read_descriptors(tmp_path, tiles.iloc[3:]), tiles.iloc[3:])
    slide = load_slide(tmp_path / "a.h5")
    np.testing.assert_array_equal(slide.coords[:, 0], np.arange(3, 10))  # no more, in order
    with pytest.raises(DescriptorError, match="3 of 10 tiles"):
        read_descriptors(tmp_path, tiles)


def test_an_interrupted_run_keeps_whole_slides_and_no_half_file(tmp_path):
    tiles = some_tiles({"a": 4, "b": 6})
    calls = []

    def encode(images):
        calls.append(len(images))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return rgb_features(images)

    with pytest.raises(KeyboardInterrupt):
        run(tiles, tmp_path, encode=encode)
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]
    source = PlainTiles()
    run(tiles, tmp_path, source)
    assert source.read_so_far == 6
    assert_right(read_descriptors(tmp_path, tiles), tiles)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_encoder_may_answer_when_it_has_got_the_next_tiles(tmp_path, workers):
    tiles = some_tiles({"a": 9, "b": 1, "c": 30})
    asked, answered, ahead = [], [], []

    def encode(images):
        asked.append(len(images))

        def answer():
            ahead.append(len(asked) - len(answered))
            answered.append(len(images))
            return rgb_features(images)  # not before: the pixels have to be there still

        return answer

    run(tiles, tmp_path, encode=encode, workers=workers)
    assert asked == answered
    assert ahead == [2] * (len(asked) - 1) + [1]
    assert_right(read_descriptors(tmp_path, tiles), tiles)


@pytest.mark.parametrize("fails", ["when asked", "when it answers"])
def test_an_encoder_that_answers_late_and_fails_costs_no_slide_before(tmp_path, fails):
    tiles = some_tiles({"a": 4, "b": 6})
    asked = []

    def encode(images):
        asked.append(len(images))
        if len(asked) == 3 and fails == "when asked":
            raise RuntimeError("out of memory")
        bad = len(asked) == 3
        return lambda: rgb_features(images) * (np.nan if bad else 1)

    with pytest.raises((RuntimeError, DescriptorError), match=r"out of memory|NaN"):
        run(tiles, tmp_path, encode=encode)
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def test_tiles_are_read_square_by_square_and_written_as_they_are_listed(tmp_path):
    y, x = (16 * np.indices((8, 8)) + 5).reshape(2, -1)
    table = {"slide_id": "a", "x": x, "y": y, "size": 16, "slide_mpp": 0.5}
    tiles = make_table(table, mpp=0.5, tile_px=8, source={})
    seen = []

    class Noting(PlainTiles):
        def read(self, rows):
            seen.append((np.ptp(rows["x"]) // 16 + 1, np.ptp(rows["y"]) // 16 + 1))
            return super().read(rows)

    for as_listed, spans in ((False, {(4, 4)}), (True, {(8, 2)})):
        seen.clear()
        folder = tmp_path / str(as_listed)
        run(tiles, folder, Noting(), batch=16, as_listed=as_listed)
        assert (set(seen), len(seen)) == (spans, 4)
        np.testing.assert_array_equal(load_slide(folder / "a.h5").coords, np.stack([x, y], axis=1))
        assert_right(read_descriptors(folder, tiles), tiles)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_tile_that_cannot_be_read_is_recorded_and_the_others_go_on(tmp_path, workers):
    tiles = some_tiles({"a": 5, "b": 3, "c": 2})
    failures = run(tiles, tmp_path, PlainTiles(bad=[1, 2, 8, 9]), workers=workers)
    assert failures["x"].tolist() == [1, 2, 8, 9]
    pd.testing.assert_frame_equal(read_failures(tmp_path), failures)
    assert "cannot be decoded" in failures.loc[0, "error"]
    with pytest.raises(DescriptorError, match=r"2 of 5 tiles.*failed\.csv.*missing=.drop."):
        read_descriptors(tmp_path, tiles)
    features, kept = read_descriptors(tmp_path, tiles, missing="drop")
    assert np.flatnonzero(~kept).tolist() == [1, 2, 8, 9]
    assert_right(features, tiles[kept])
    assert not (tmp_path / "c.h5").exists()  # nothing of it could be read


def test_tiles_that_failed_are_tried_again_and_then_no_longer_listed(tmp_path):
    tiles = some_tiles()
    run(tiles, tmp_path, PlainTiles(bad=[1, 6]))
    source = PlainTiles(bad=[6])
    assert run(tiles, tmp_path, source)["x"].tolist() == [6]
    assert source.read_so_far == 1
    assert run(tiles, tmp_path, source := PlainTiles()).empty
    assert source.read_so_far == 1
    assert not (tmp_path / "failed.csv").exists()
    assert_right(read_descriptors(tmp_path, tiles), tiles)


def test_failures_of_slides_that_a_run_does_not_touch_stay_listed(tmp_path):
    tiles = some_tiles()
    run(tiles[tiles["slide_id"] == "a"], tmp_path, PlainTiles(bad=[0]))
    only_b = tiles[tiles["slide_id"] == "b"]
    assert run(only_b, tmp_path, PlainTiles(bad=[6]))["slide_id"].tolist() == ["b"]
    assert read_failures(tmp_path)["slide_id"].tolist() == ["a", "b"]


class DeadlyTiles(PlainTiles):
    """A source that takes its process down, as a hostile slide can."""

    def read(self, rows):
        if "b" in set(rows["slide_id"]):
            os._exit(1)
        return super().read(rows)


def test_a_reading_process_that_dies_is_an_error_and_finished_slides_stay(tmp_path):
    tiles = some_tiles({"a": 4, **{f"a{i}": 2 for i in range(6)}, "b": 2})
    with pytest.raises(DescriptorError, match="workers=0"):
        run(tiles, tmp_path, DeadlyTiles(), workers=1)
    assert (tmp_path / "a.h5").exists()
    run(tiles, tmp_path)
    assert_right(read_descriptors(tmp_path, tiles), tiles)


def test_a_slide_that_has_gone_fails_alone(tmp_path):
    tiles = some_tiles()
    failures = run(tiles, tmp_path, PlainTiles(gone=["a"]))
    assert failures["slide_id"].tolist() == ["a"] * 5
    features, kept = read_descriptors(tmp_path, tiles, missing="drop")
    assert_right(features, tiles[kept])
    (tmp_path / "failed.csv").unlink()  # without the list nobody says that it may be missing
    with pytest.raises(DescriptorError, match="sslpath embed"):
        read_descriptors(tmp_path, tiles, missing="drop")


@pytest.mark.parametrize(
    "encode",
    [
        lambda images: rgb_features(images)[:-1],
        lambda images: rgb_features(images) * np.nan,
        lambda images: rgb_features(images).ravel(),
    ],
)
def test_an_encoder_that_returns_something_else_is_blamed(tmp_path, encode):
    with pytest.raises(DescriptorError, match="the encoder"):
        run(some_tiles(), tmp_path, encode=encode)
    assert not list(tmp_path.iterdir())


def test_no_tiles_are_an_error_on_reading_not_on_computing(tmp_path):
    none = some_tiles({"a": 1}).iloc[:0]
    assert run(none, tmp_path).empty
    with pytest.raises(DescriptorError, match="No descriptors"):
        read_descriptors(tmp_path, none)
    with pytest.raises(DescriptorError, match="drop"):
        read_descriptors(tmp_path, none, missing="ignore")


def test_a_damaged_list_of_failures_is_named(tmp_path):
    (tmp_path / "failed.csv").write_text("what,ever\n1,2\n")
    with pytest.raises(DescriptorError, match=r"failed\.csv"):
        read_failures(tmp_path)


def test_rgb_features_are_mean_and_spread_of_each_colour():
    images = np.random.default_rng(0).integers(0, 256, (5, 9, 7, 3), dtype=np.uint8)
    got = rgb_features(images)
    for i, image in enumerate(images):
        for channel in range(3):
            values = image[..., channel].astype(float) / 255
            assert got[i, channel] == pytest.approx(values.mean(), abs=1e-6)
            assert got[i, 3 + channel] == pytest.approx(values.std(), abs=1e-6)
    assert rgb_features(images[:0]).shape == (0, 6)


def test_a_file_read_apart_is_the_same(tmp_path):
    path = write_descriptors(tmp_path, "a", np.ones((3, 4)), np.zeros((3, 2), int))
    apart, here = descriptor_files.load_slide_apart(path, timeout_s=HANG_S), load_slide(path)
    np.testing.assert_array_equal(apart.features, here.features)
    assert apart.attrs.keys() == here.attrs.keys()
    with pytest.raises(DescriptorError, match=r"No descriptors at .*b\.h5"):
        descriptor_files.load_slide_apart(tmp_path / "b.h5")


@pytest.fixture
def endless(tmp_path):
    """A pipe into which nothing is written: HDF5 waits for it for ever, as for a disk that hangs.

    Some damaged files make HDF5 hang or crash as well; which ones depends on its version.
    """
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes on this system")
    os.mkfifo(tmp_path / "bad.h5")
    return tmp_path / "bad.h5"


def test_a_file_that_hangs_hdf5_ends_its_own_process_alone(endless):
    with pytest.raises(DescriptorError, match=r"bad\.h5 took longer than 1 s"):
        descriptor_files.load_slide_apart(endless, timeout_s=1)


def test_a_file_that_crashes_hdf5_ends_its_own_process_alone(endless):
    others = multiprocessing.active_children()

    def crash():
        with endless.open("wb"):  # once the file is opened for reading
            for child in multiprocessing.active_children():
                if child not in others:
                    os.kill(child.pid, signal.SIGSEGV)

    thread = threading.Thread(target=crash, daemon=True)
    thread.start()
    with pytest.raises(DescriptorError, match=r"bad\.h5 crashed the process"):
        descriptor_files.load_slide_apart(endless, timeout_s=HANG_S)
    thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks on this system")
def test_a_test_that_crashes_a_child_prints_no_trace_that_looks_like_a_failure():
    code = (
        "import conftest, os, signal\nchild = os.fork()\n"
        "if not child: os.kill(os.getpid(), signal.SIGSEGV)\n"
        "print(os.WTERMSIG(os.waitpid(child, 0)[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == [str(int(signal.SIGSEGV))]
    assert "Fatal Python error" not in done.stderr


def test_rows_to_be_read_carry_nothing_of_other_slides(tmp_path):
    # pandas copies metadata with every selection: of many slides they would fill the memory.
    tiles = some_tiles({f"s{i}": 3 for i in range(20)})
    where = {name: {"path": name * 100} for name in tiles["slide_id"].unique()}
    tiles.attrs["source"] = {"kind": "slides", "slides": where}
    seen = []

    class Source(PlainTiles):
        def read(self, rows):
            seen.append((set(rows["slide_id"]), set(rows.attrs["source"]["slides"])))
            return super().read(rows)

    run(tiles, tmp_path, Source())
    assert_right(read_descriptors(tmp_path, tiles), tiles)
    assert len(seen) == 40
    assert all(slides == named for slides, named in seen)
