"""Fixtures for all tests: the optional folder of real data, and small synthetic slides."""

import faulthandler
import os
from pathlib import Path

import numpy as np
import pytest
import pyvips
import tifffile
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

# Headers for what PyTorch compiles, which would stay in the folder of temporary files.
os.environ["TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS"] = "0"

# A forked child would print pytest's trace of all modules when a test crashes it on purpose.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=faulthandler.disable)

# No test measures how fast this machine is: examples may take any time, and a time limit only ends
# what hangs.
settings.register_profile(
    "patient",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("patient")
HANG_S = 3600

MPP = 0.5
GLASS, STROMA, NUCLEUS = (243, 241, 244), (222, 150, 190), (95, 60, 135)


@pytest.fixture(scope="session", autouse=True)
def _compiled_code(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What PyTorch compiles goes when the tests end; it would keep hundreds of megabytes."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real slides and data beside the repository; without it the test skips."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder of real slides and data, ../shared")
    return folder


def draw_tissue(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """A disc of stroma with dark nuclei on glass, ``(height, width, 3)``; 0.5 um per pixel."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    image = np.empty((height, width, 3))
    image[:] = GLASS
    inside = ((x / width - 0.5) ** 2 + (y / height - 0.5) ** 2) < 0.3**2
    image[inside] = STROMA
    for centre in rng.uniform(0, 1, (width * height // 1500, 2)) * (width, height):
        left, top = np.maximum(centre.astype(int) - 8, 0)
        window = np.s_[top : top + 17, left : left + 17]
        near = (x[window] - centre[0]) ** 2 + (y[window] - centre[1]) ** 2 < 49
        image[window][near & inside[window]] = NUCLEUS
    image += rng.normal(0, 3, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def write_slide(path: Path, image: NDArray[np.uint8], mpp: float | None = MPP) -> Path:
    """A pyramidal TIFF with JPEG tiles, as scanners and converters write them."""
    resolution = {} if mpp is None else {"xres": 1000 / mpp, "yres": 1000 / mpp, "resunit": "cm"}
    pyvips.Image.new_from_array(image).tiffsave(
        str(path), tile=True, pyramid=True, compression="jpeg", Q=90, **resolution
    )
    return path


def write_lossless(
    path: Path, levels: list[NDArray[np.uint8]], mpp: tuple[float, float] = (MPP, MPP)
) -> Path:
    """A tiled TIFF with exactly these levels and pixels."""
    with tifffile.TiffWriter(path) as tiff:
        for i, level in enumerate(levels):
            tiff.write(
                level,
                tile=(256, 256),
                photometric="rgb",
                compression="zlib",
                subfiletype=int(i > 0),
                resolution=(1e4 / mpp[0], 1e4 / mpp[1]) if i == 0 else None,
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return path


def write_scn(path: Path, image: NDArray[np.uint8], corner: tuple[int, int]) -> Path:
    """A Leica SCN of 0.5 um a pixel: the scanned area starts at ``corner`` of a larger slide."""
    nm = round(MPP * 1000)
    (height, width), (left, top) = image.shape[:2], corner
    whole = width + left + 300, height + top + 200
    overview = np.full((96, 80, 3), 240, np.uint8)

    def part(name: str, ifd: int, size: tuple[int, int], area: tuple[int, ...], by: float) -> str:
        x, y, w, h = (side * nm for side in area)
        return (
            f'<image name="{name}"><device model="Leica SCN400" version="1.5"/>'
            f'<pixels sizeX="{size[0]}" sizeY="{size[1]}">'
            f'<dimension sizeX="{size[0]}" sizeY="{size[1]}" r="0" ifd="{ifd}"/></pixels>'
            f'<view sizeX="{w}" sizeY="{h}" offsetX="{x}" offsetY="{y}" spacingZ="0"/>'
            f"<scanSettings><objectiveSettings><objective>{by}</objective></objectiveSettings>"
            "<illuminationSettings><illuminationSource>brightfield</illuminationSource>"
            "</illuminationSettings></scanSettings></image>"
        )

    about = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection name="c" sizeX="{whole[0] * nm}" sizeY="{whole[1] * nm}">'
        + part("overview", 0, (80, 96), (0, 0, *whole), 0.6)
        + part("scan", 1, (width, height), (left, top, width, height), 20)
        + "</collection></scn>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        how = {"tile": (256, 256), "photometric": "rgb", "metadata": None}
        tiff.write(overview, **(how | {"tile": (32, 32)}), description=about)
        tiff.write(image, **how, resolution=(1e4 / MPP,) * 2, resolutionunit="CENTIMETER")
    return path


@pytest.fixture(scope="session")
def slide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic slide of 2000 x 1500 px at 0.5 um with a disc of tissue."""
    return write_slide(tmp_path_factory.mktemp("slide") / "disc.tif", draw_tissue(2000, 1500))
