"""The package as it is installed: far from the checkout, without it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import sslpath

ROOT = Path(__file__).resolve().parents[1]


def python(*words: object, cwd: Path, path: Path) -> subprocess.CompletedProcess[str]:
    """Run Python where the installed package, not the checkout, is found."""
    environment = {**os.environ, "PYTHONPATH": str(path), "SSLPATH_CACHE": str(cwd / "cache")}
    line = [sys.executable, *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, cwd=cwd, env=environment)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel was installed; the wheel lies beside it."""
    folder, source = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "sslpath", source / "sslpath", ignore=shutil.ignore_patterns("__py*"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    made = subprocess.run(
        [*pip, "wheel", "--no-deps", "-w", folder, source], capture_output=True, text=True
    )
    if "Could not find a version" in made.stderr or "No matching distribution" in made.stderr:
        pytest.skip("needs a registry of packages, to build a wheel")
    assert made.returncode == 0, made.stderr[-2000:]
    (wheel,) = folder.glob("*.whl")
    target = folder / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", target, wheel], check=True)
    return target


@pytest.mark.slow
def test_the_wheel_holds_the_licence_and_the_features_and_nothing_of_the_checkout(
    installed: Path,
) -> None:
    (wheel,) = installed.parent.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "sslpath",
        f"sslpath-{sslpath.__version__}.dist-info",
    }
    assert "sslpath/datasets/phantom_mobilenet_v2.h5" in names
    assert "sslpath/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)
    assert wheel.stat().st_size < 12e6


FEATURES = """
import sslpath
from sslpath.datasets.phantom_features import shipped_features
from sslpath.demo import demo_tiles
from sslpath.sources import open_source

print(sslpath.__file__)
tiles = demo_tiles(slides=1, progress=False)
features, found, about = shipped_features(tiles, open_source(tiles))
print(len(tiles), found.sum(), features.shape[1], about["arch"])
"""


@pytest.mark.slow
def test_an_installed_package_has_the_features_of_the_demo_and_keeps_slides_in_the_cache(
    installed: Path, tmp_path: Path
) -> None:
    done = python("-c", FEATURES, cwd=tmp_path, path=installed)
    assert done.returncode == 0, done.stderr[-2000:]
    where, numbers = done.stdout.splitlines()
    assert Path(where).is_relative_to(installed)
    assert numbers == "400 400 1280 mobilenet_v2"
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}


def test_the_package_runs_as_a_module(tmp_path: Path) -> None:
    done = python("-m", "sslpath", "--version", cwd=tmp_path, path=ROOT)
    assert done.stdout.strip() == f"sslpath {sslpath.__version__}"
    assert python("-m", "sslpath", "tile", cwd=tmp_path, path=ROOT).returncode == 2
