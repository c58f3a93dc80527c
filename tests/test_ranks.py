"""Several processes that train one network learn what one process learns."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import HANG_S, draw_tissue, write_slide
from safetensors.numpy import load_file

from sslpath.cli import main
from sslpath.model import load_model
from sslpath.runs import read_log

pytest.importorskip("accelerate")
TESTS = Path(__file__).parent
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def start(*words: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
    )  # fmt: skip


def finish(process: "subprocess.Popen[str]", code: int = 0) -> str:
    said, _ = process.communicate(timeout=HANG_S)
    assert (process.returncode == 0) == (code == 0), said
    return said


def test_the_loss_is_that_of_one_process_also_after_a_kill(
    tmp_path: Path,
) -> None:
    script, alone, two = TESTS / "train_with_others.py", tmp_path / "alone", tmp_path / "two"
    finish(start(sys.executable, script, alone, "train"))
    process = start(*TORCHRUN, script, two, "train")
    while not (two / "state.safetensors").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finish(start(*TORCHRUN, script, two, "train"))
    one, other = read_log(alone), read_log(two)
    assert [line["step"] for line in other] == list(range(1, 13))
    for key in ("loss", "near_loss", "far_loss", "near_pairs", "far_pairs", "unread_tiles"):
        np.testing.assert_allclose(
            [line[key] for line in one], [line[key] for line in other], rtol=2e-3, err_msg=key
        )
    assert sum(line["unread_tiles"] for line in one) > 0
    assert one[0]["loss"] > 1.1 * one[-1]["loss"]


@pytest.mark.parametrize("what", ["gradients", "tuned"])
def test_gradients_are_those_of_one_process(what: str, tmp_path: Path) -> None:
    """Also of a fine-tuned trunk, whose normalisation asks no other tile."""
    script, alone, two = TESTS / "train_with_others.py", tmp_path / "alone", tmp_path / "two"
    finish(start(sys.executable, script, alone, what))
    finish(start(*TORCHRUN, script, two, what))
    one, other = load_file(alone), load_file(two)
    assert any(name.startswith("trunk.") for name in one)
    for name, value in one.items():
        near = 1e-5 * np.abs(value).max()
        np.testing.assert_allclose(value, other[name], rtol=1e-3, atol=near, err_msg=name)


def test_the_command_under_torchrun_leaves_one_run_and_speaks_once(tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    for i in range(2):
        write_slide(tmp_path / "slides" / f"{i}.tif", draw_tissue(1200, 1200, i))
    (tmp_path / "patients.csv").write_text("slide_id,patient_id,split\n0,0,train\n1,1,train\n")
    table, run = tmp_path / "tiles.parquet", tmp_path / "run"
    cut = ["--mpp", "0.5", "--tile-px", "64", "--patients", str(tmp_path / "patients.csv")]
    assert main(["tile", str(tmp_path / "slides"), *cut, "--out", str(table)]) == 0
    words = (
        *("train", table, "--trunk", "scratch", "--arch", "resnet18", "--input-px", "64"),
        *("--near-tiles", "2", "--far-tiles", "6", "--steps", "4", "--device", "cpu"),
        *("--slides-per-batch", "2", "--tiles-per-slide", "8", "--workers", "1", "--out", run),
    )
    said = finish(start(*TORCHRUN, "-m", "sslpath.cli", *words))
    assert said.count("parameters; next, sslpath embed") == 1
    names = {path.name for path in run.iterdir()}
    assert names == {
        *("config.json", "log.jsonl", "state.safetensors", "checkpoint.safetensors"),
        "curves.png",
    }
    assert load_model(run / "checkpoint.safetensors").config.arch == "resnet18"
    again = finish(start(*TORCHRUN, "-m", "sslpath.cli", *words))  # finished: read, not trained
    assert again.count("parameters; next, sslpath embed") == 1


def test_a_head_on_frozen_features_is_refused_and_says_why(tmp_path: Path) -> None:
    code = (
        "import numpy as np; from test_training import *; t = some_tiles();"
        "train(t, QUICK, HEAD, 'run', features=spatial_features(t), device='cpu')"
    )
    script = tmp_path / "frozen.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(TESTS)!r}); {code}")
    assert "leave out torchrun" in finish(start(*TORCHRUN, script), code=1)
