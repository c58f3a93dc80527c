"""Folders on a full disk, and folders that two runs share: nothing that was there is lost.

The operating system's limit on the size of a file stands for the full disk: writes fail in the
middle.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from camelyon import random_weights
from conftest import MPP, draw_tissue, write_lossless, write_slide
from safetensors.numpy import load_file

from sslpath.cli import main
from sslpath.errors import BusyError, ConfigError
from sslpath.files import atomic_path, check_writable_file, only_one
from sslpath.runs import read_log
from sslpath.slides import Slide
from sslpath.table import load_tiles, save_tiles
from sslpath.tiling import tile_slides

resource = pytest.importorskip("resource", reason="limits on files are of Unix")


def run(*words: Any, most_bytes: int | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a command of sslpath, in which no file may grow beyond so many bytes."""
    setup = "" if most_bytes is None else (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({most_bytes},) * 2); "
    )  # fmt: skip
    code = f"{setup}import sys; from sslpath.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True
    )


TILE = ("--mpp", "0.5", "--tile-px", "64", "--workers", "1")
TRAIN = (
    *("--near-tiles", "2", "--far-tiles", "6", "--steps", "12", "--device", "cpu"),
    *("--slides-per-batch", "2", "--tiles-per-slide", "8"),
)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Two slides, their table, and features of them."""
    (tmp_path / "slides").mkdir()
    for i in range(2):
        write_slide(tmp_path / "slides" / f"{i}.tif", draw_tissue(1200, 1200, i))
    rows = "slide_id,patient_id,split\n0,0,train\n1,1,train\n"
    (tmp_path / "patients.csv").write_text(rows)
    done = run(
        "tile", tmp_path / "slides", *TILE, "--patients", tmp_path / "patients.csv",
        "--out", tmp_path / "tiles.parquet",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return tmp_path


def features(work: Path) -> Path:
    encoder = ("--encoder", "imagenet", "--arch", "resnet18", "--input-px", "32")
    weights = random_weights(work / "resnet18.pth")
    words = ("embed", work / "tiles.parquet", *encoder, "--imagenet-weights", weights)
    done = run(*words, "--out", work / "features")
    assert done.returncode == 0, done.stderr
    return work / "features"


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_a_table_that_does_not_fit_leaves_the_earlier_one(work: Path) -> None:
    before = files(work)
    done = run("tile", work / "slides", *TILE, "--out", work / "tiles.parquet", most_bytes=500)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "tiles" in done.stderr.splitlines()[-1]
    assert files(work) == before


def test_tiling_that_was_stopped_goes_on_and_leaves_nothing(work: Path) -> None:
    write_slide(work / "slides" / "2.tif", draw_tissue(1200, 1200, 2))
    words = ["tile", work / "slides", *TILE, "--out", work / "again.parquet"]
    whole = (work / "slides" / "2.tif").read_bytes()
    (work / "slides" / "2.tif").write_bytes(whole[:100])
    assert run(*words, "--strict").returncode == 1  # as a kill would, with two slides done
    parts = sorted((work / "again.parts").iterdir())
    assert len(parts) == 2
    # A part is used, so one that was tampered with shows; one that is damaged is not trusted.
    tampered = load_tiles(parts[0])
    tampered["tissue"] = 0.125
    save_tiles(tampered, parts[0])
    parts[1].write_bytes(b"half")
    (work / "slides" / "2.tif").write_bytes(whole)
    assert run(*words).returncode == 0
    tiles = load_tiles(work / "again.parquet")
    counts = tiles["slide_id"].value_counts()
    assert set(counts.index) == {"0", "1", "2"}
    assert (tiles["tissue"] == 0.125).sum() == len(tampered)
    assert not (work / "again.parts").exists()


def test_tiling_deletes_no_file_that_it_did_not_make(work: Path) -> None:
    parts, failed = work / "again.parts", work / "again.failed.csv"
    parts.mkdir()
    for name in ("mine.parquet", "notes.txt", "0123.parquet"):
        (parts / name).write_text("mine")
    words = ["tile", work / "slides", *TILE, "--out", work / "again.parquet"]
    assert run(*words).returncode == 0
    assert sorted(path.name for path in parts.iterdir()) == [
        "0123.parquet",
        "mine.parquet",
        "notes.txt",
    ]
    failed.write_text("slide,what\nmine,1\n")
    done = run(*words)
    assert done.returncode == 1
    assert "again.failed.csv is there" in done.stderr
    assert failed.read_text() == "slide,what\nmine,1\n"


@pytest.mark.parametrize(
    "name", ["slides/0.tif", "notes.csv", "other.parquet", "image.parquet", ""]
)
def test_a_table_is_written_neither_over_another_file_nor_into_a_folder(
    work: Path, name: str
) -> None:
    (work / "notes.csv").write_text("mine")
    (work / "image.parquet").write_bytes(b"mine")
    pd.DataFrame({"a": [1]}).to_parquet(work / "other.parquet")
    before = files(work) | files(work / "slides")
    done = run("tile", work / "slides", *TILE, "--out", work / name)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert files(work) | files(work / "slides") == before
    assert not list(work.glob("*.parts"))


@pytest.mark.parametrize("change", [("--mpp", "1.0"), ("--max-tiles", "7"), "slide"])
def test_parts_made_with_other_settings_or_slides_are_not_used(
    work: Path, change: "str | tuple[str, str]"
) -> None:
    words = ["tile", work / "slides", *TILE]
    parts, slide = work / "again.parts", work / "slides" / "0.tif"
    slides = [Slide(slide), Slide(work / "slides" / "1.tif")]
    tile_slides(slides, mpp=0.5, tile_px=64, parts=parts, progress=False)
    for path in parts.iterdir():
        tampered = load_tiles(path)
        tampered["tissue"] = 0.125
        save_tiles(tampered, path)
    if change == "slide":
        write_slide(slide, draw_tissue(1200, 1200, 5))
    else:
        words += change
    assert run(*words, "--out", work / "again.parquet").returncode == 0
    stale = load_tiles(work / "again.parquet").query("tissue == 0.125")
    assert set(stale["slide_id"]) == ({"1"} if change == "slide" else set())


def test_descriptors_that_do_not_fit_leave_no_half_file_and_the_next_run_finishes(
    work: Path,
) -> None:
    words = ("embed", work / "tiles.parquet", "--encoder", "rgb", "--out", work / "rgb")
    done = run(*words, most_bytes=2000)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "0.h5" in done.stderr.splitlines()[-1]
    assert files(work / "rgb") == {}
    assert run(*words).returncode == 0
    assert set(files(work / "rgb")) == {"0.h5", "1.h5"}


def test_a_state_that_does_not_fit_leaves_a_run_that_goes_on(work: Path) -> None:
    words = ("train", work / "tiles.parquet", "--features", features(work), *TRAIN)
    done = run(*words, "--out", work / "a", most_bytes=20_000)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "state.safetensors" in done.stderr.splitlines()[-1]
    assert not any("tmp" in name or name.endswith(".safetensors") for name in files(work / "a"))
    for name in ("a", "b"):  # the one goes on, the other was never disturbed
        done = run(*words, "--out", work / name)
        assert done.returncode == 0, done.stderr
    one, other = (load_file(work / name / "checkpoint.safetensors") for name in ("a", "b"))
    for key in one:
        np.testing.assert_array_equal(one[key], other[key])


def test_a_second_run_in_a_folder_is_refused_and_the_first_is_not_disturbed(work: Path) -> None:
    words = ["train", work / "tiles.parquet", "--features", features(work), *TRAIN]
    words[words.index("--steps") + 1] = "500"
    code = "import sys; from sslpath.cli import main; sys.exit(main(sys.argv[1:]))"
    line = [sys.executable, "-c", code, *map(str, words), "--out", str(work / "a")]
    first = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not (work / "a" / "log.jsonl").exists():
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGSTOP)  # so that it cannot end before the second has begun
    second = run(*words, "--out", work / "a")
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 1
    assert f"Another process is working in {work / 'a'}" in second.stderr
    _, said = first.communicate()
    assert first.returncode == 0, said
    assert len(read_log(work / "a")) == 50
    assert run(*words, "--out", work / "a").returncode == 0  # finished, and free


def test_a_killed_run_leaves_its_folder_free(tmp_path: Path) -> None:
    code = "import sys; from sslpath.files import only_one\nwith only_one(sys.argv[1]):\n"
    code += "    print('in', flush=True); sys.stdin.read()"
    line = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    with pytest.raises(BusyError, match="Another process"), only_one(tmp_path):
        pass
    process.kill()
    process.communicate()
    with only_one(tmp_path):
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("foreign", ["table", "column", "list"])
def test_a_table_or_list_of_another_program_is_neither_overwritten_nor_deleted(
    tmp_path: Path, foreign: str, capsys: pytest.CaptureFixture[str]
) -> None:
    slide = write_lossless(tmp_path / "s.tif", [draw_tissue(600, 500)])
    words = ["tile", str(slide), "--mpp", str(MPP), "--tile-px", "64", "--out"]
    out = tmp_path / "t.parquet"
    if foreign == "list":
        own = tmp_path / "t.failed.csv"
        own.write_text("job,error\n1,none\n")
    else:
        own = out
        if foreign == "column":
            assert main([*words, str(out)]) == 0
            frame = pd.read_parquet(out)
            frame["pathologist_score"] = 3
        else:
            frame = pd.DataFrame({"slide_id": ["s"], "x": [0], "y": [0], "score": [1.0]})
        frame.to_parquet(out)
    before = own.read_bytes()
    assert main([*words, str(out)]) == 1
    assert own.read_bytes() == before
    assert own.name in capsys.readouterr().err


def test_what_is_in_the_way_of_kept_parts_or_curves_is_found_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slide = write_lossless(tmp_path / "s.tif", [draw_tissue(600, 500)])
    (tmp_path / "t.parts").write_text("mine")
    words = ["tile", str(slide), "--mpp", str(MPP), "--tile-px", "64"]
    assert main([*words, "--out", str(tmp_path / "t.parquet")]) == 1
    assert "t.parts is a file" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "u.parquet")]) == 0
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "curves.png").write_text("mine")
    train = ["train", str(tmp_path / "u.parquet"), "--trunk", "scratch", "--arch", "resnet18"]
    assert main([*train, "--out", str(tmp_path / "run")]) == 1
    assert "curves.png is there and was not drawn by sslpath" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["curves.png"]


def test_a_preview_that_cannot_be_made_is_told_by_the_exit_code(tmp_path: Path) -> None:
    slide = write_lossless(tmp_path / "s.tif", [draw_tissue(600, 500)])
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "s.png").write_text("mine")
    words = ["tile", str(slide), "--mpp", str(MPP), "--tile-px", "64", "--preview"]
    assert main([*words, str(tmp_path / "p"), "--out", str(tmp_path / "t.parquet")]) == 3
    assert (tmp_path / "p" / "s.png").read_text() == "mine"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes in folders")
def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="device or pipe"), atomic_path(tmp_path / "pipe"):
        raise AssertionError("not to be written")
    with pytest.raises(ConfigError, match="device or a pipe"):
        check_writable_file(tmp_path / "pipe")


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps permissions elsewhere")
def test_a_file_that_is_written_again_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("patients")
    (tmp_path / "a.txt").chmod(0o600)
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("more patients")
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o600
