"""The tissue mask on drawn images, on real slides, and with pens drawn over them."""

from pathlib import Path

import numpy as np
import pytest
from conftest import GLASS, STROMA
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.spatial import cKDTree

from sslpath.convert import convert
from sslpath.slides import Slide
from sslpath.tissue import glass_colour, ink_mask, optical_density, tissue_fraction, tissue_mask

MPP = 8.0
INKS = {
    "blue": (30, 60, 170),
    "light blue": (60, 150, 210),
    "green": (20, 130, 80),
    "dark green": (10, 70, 40),
    "red": (205, 30, 45),
    "dark red": (150, 20, 30),
    "black": (35, 33, 38),
    "grey": (75, 75, 82),
}


def noisy(image: NDArray[np.float64], seed: int = 0) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(0, 1.5, image.shape)
    return (image + noise).clip(0, 255).astype(np.uint8)


def glass(height: int = 200, width: int = 200) -> NDArray[np.float64]:
    return np.full((height, width, 3), GLASS, float)


def textured(colour: tuple[int, int, int], strength: float = 1.0) -> NDArray[np.uint8]:
    """A square of tissue on glass, its stain varying by a third as tissue does at 8 um."""
    image = glass()
    density = -np.log(np.array(colour) / GLASS) * strength
    amount = np.random.default_rng(1).uniform(0.67, 1.33, (100, 100, 1))
    image[50:150, 50:150] = GLASS * np.exp(-density * amount)
    return noisy(image)


def draw_pen(
    image: NDArray[np.uint8], colour: tuple[int, int, int], mpp: float, opaque: bool
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A wavy vertical stroke, 400 um wide, through the middle; and where it is."""
    height, width = image.shape[:2]
    y = np.linspace(-10, height + 10, 40)
    x = width * 0.55 + 0.04 * width * np.sin(y / height * 9)
    canvas = Image.new("L", (width, height))
    points = [(float(a), float(b)) for a, b in zip(x, y, strict=True)]
    ImageDraw.Draw(canvas).line(points, 255, int(400 / mpp), "curve")
    soft = np.asarray(canvas.filter(ImageFilter.GaussianBlur(6 / mpp)))[..., None] / 255
    ink = np.array(colour, float) if opaque else image * np.array(colour) / 245
    cover = soft * (0.88 if opaque else 1.0)
    return (image * (1 - cover) + ink * cover).astype(np.uint8), soft[..., 0] > 0.5


@pytest.fixture(scope="module")
def real(
    shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[NDArray[np.uint8], float]]:
    """Thumbnails of real slides of three laboratories, with their um per pixel."""
    section = convert(
        shared / "real/her2st/C3.jpg", tmp_path_factory.mktemp("her2st") / "C3.tif", 0.8
    )
    slides = shared / "real/slides"
    return {
        "her2st": section.thumbnail(mpp=8.0),
        "aperio": Slide(slides / "cmu-1-small-region.svs").thumbnail(mpp=4.0),
        "frozen": Slide(slides / "tcga-cr-7395-01a-01-ts1.svs", mpp=0.5).thumbnail(mpp=4.0),
    }


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_pale_tissue_is_kept_and_glass_dropped(strength: float) -> None:
    mask = tissue_mask(textured(STROMA, strength), MPP)
    assert mask[55:145, 55:145].mean() > 0.97
    outside = mask.copy()
    outside[45:155, 45:155] = False
    assert not outside.any()


@pytest.mark.parametrize(("cell_um", "wall_um"), [(90, 4), (60, 2)])
def test_fat_is_kept_though_its_cells_are_empty(cell_um: int, wall_um: int) -> None:
    # Drawn at 1 um per pixel.
    rng = np.random.default_rng(0)
    side, around = 1200, 400
    centres = rng.uniform(0, side, (side * side // cell_um**2, 2))
    places = np.stack(np.mgrid[:side, :side], axis=-1).reshape(-1, 2)
    (nearest, second), _ = (part.T for part in cKDTree(centres).query(places, k=2))
    walls = (second - nearest < wall_um).reshape(side, side)
    image = glass(side + 2 * around, side + 2 * around)
    image[around:-around, around:-around][walls] = STROMA
    small = image.reshape(250, 8, 250, 8, 3).mean((1, 3))
    mask = tissue_mask(noisy(small), MPP)
    assert mask[55:-55, 55:-55].mean() > 0.85
    assert not mask[:45].any()
    assert small[55:-55, 55:-55].min(-1).mean() > 0.9 * GLASS[1]  # indeed almost empty


@pytest.mark.parametrize("grey", [0, 30, 128, 243, 255])
def test_a_slide_of_one_grey_has_no_tissue(grey: int) -> None:
    assert not tissue_mask(np.full((100, 120, 3), grey, np.uint8), MPP).any()


def test_grey_shadows_dust_and_unscanned_white_are_not_tissue() -> None:
    image = glass()
    image[:, :60] = 255  # not scanned
    image[20:60, 80:120] *= 0.6  # a shadow
    image[100:140, 80:120] *= np.random.default_rng(0).uniform(0.3, 1, (40, 40, 1))  # dirt
    assert not tissue_mask(noisy(image), MPP).any()


def test_a_smear_of_stain_without_texture_is_not_tissue() -> None:
    y, x = np.mgrid[:200, :200]
    smear = np.exp(-((x - 100) ** 2 + (y - 100) ** 2) / 2 / 30**2)[..., None]
    density = -np.log(np.array((238, 200, 228)) / GLASS)
    assert not tissue_mask(noisy(GLASS * np.exp(-density * smear)), MPP).any()


def test_a_large_hole_stays_a_hole_and_a_small_one_is_filled() -> None:
    image = textured(STROMA).astype(float)
    image[70:110, 70:110] = GLASS  # 320 um
    image[125:135, 125:135] = GLASS  # 80 um, a fat cell
    mask = tissue_mask(noisy(image), MPP)
    assert not mask[75:105, 75:105].any()
    assert mask[120:140, 120:140].all()


def test_a_little_glass_at_the_edge_of_a_crop_is_no_hole() -> None:
    image = textured(STROMA)[50:150, 50:150].astype(float)
    image[:15, :15] = GLASS
    mask = tissue_mask(noisy(image), MPP)
    assert not mask[:12, :12].any()
    assert mask[20:, 20:].all()


def test_the_glass_is_that_of_this_slide_not_white() -> None:
    pink = noisy(textured(STROMA) * np.array([0.93, 0.88, 0.94]))
    assert glass_colour(pink) == pytest.approx(np.array(GLASS) * [0.93, 0.88, 0.94], abs=2.5)
    assert (tissue_mask(pink, MPP) == tissue_mask(textured(STROMA), MPP)).mean() > 0.99


@pytest.mark.parametrize("mpp", [2.0, MPP, 60.0])
def test_the_bands_in_which_a_slide_is_looked_at_do_not_show(mpp: float) -> None:
    """A tall image is looked at in three bands of rows, the same image on its side in one."""
    field = gaussian_filter(np.random.default_rng(2).normal(size=(700, 250, 1)), (8, 8, 0))
    amount = 0.4 * np.maximum(field / field.std(), 0)
    image = (GLASS * np.exp(np.log(np.array(STROMA) / GLASS) * amount)).astype(np.uint8)
    image, _ = draw_pen(image, INKS["blue"], 16.0, False)
    found = tissue_mask(image, mpp)
    on_its_side = tissue_mask(np.ascontiguousarray(image.transpose(1, 0, 2)), mpp)
    assert 0.15 < found.mean() < 0.5
    assert (found != on_its_side.T).sum() < 10  # sums in another order may round differently


def test_real_tissue_fills_the_share_of_the_slide_that_one_sees(
    real: dict[str, tuple[NDArray[np.uint8], float]],
) -> None:
    # Measured by looking at the outlines drawn over the thumbnails.
    for name, share in [("her2st", 0.177), ("aperio", 0.43), ("frozen", 0.66)]:
        assert tissue_mask(*real[name]).mean() == pytest.approx(share, abs=0.03), name


def test_real_tissue_faded_to_a_third_is_still_kept(
    real: dict[str, tuple[NDArray[np.uint8], float]],
) -> None:
    for name, (image, mpp) in real.items():
        clean = tissue_mask(image, mpp)
        clear = glass_colour(image)
        faded = (clear * (image / clear) ** 0.33).clip(0, 255).astype(np.uint8)
        mask = tissue_mask(faded, mpp)
        assert mask[clean].mean() > 0.85, name
        assert mask[~clean].mean() < 0.01, name


def test_the_pink_smear_and_the_dust_of_a_real_section_are_not_tissue(
    real: dict[str, tuple[NDArray[np.uint8], float]],
) -> None:
    image, mpp = real["her2st"]
    mask = tissue_mask(image, mpp)
    smear = np.s_[600:680, 600:680]
    assert not mask[smear].any()
    assert not mask[700:].any()
    assert mask[300:400, 300:550].mean() > 0.99


@pytest.mark.parametrize("name", ["her2st", "aperio", "frozen"])
@pytest.mark.parametrize("opaque", [True, False], ids=["opaque", "translucent"])
def test_pens_of_all_colours_are_dropped_over_glass_and_over_tissue(
    real: dict[str, tuple[NDArray[np.uint8], float]], name: str, opaque: bool
) -> None:
    image, mpp = real[name]
    clean = tissue_mask(image, mpp)
    for colour, rgb in INKS.items():
        drawn, stroke = draw_pen(image, rgb, mpp, opaque)
        mask = tissue_mask(drawn, mpp)
        assert mask[stroke & ~clean].mean() < 0.01, colour
        if (colour, opaque) != ("light blue", False):  # a pale film: the tissue shows through
            assert mask[stroke & clean].mean() < 0.01, colour
        far = ~stroke_neighbourhood(stroke, 120 / mpp)
        assert mask[far & clean].mean() > 0.97, colour
        assert mask[far & ~clean].mean() < 0.01, colour


def stroke_neighbourhood(stroke: NDArray[np.bool_], radius: float) -> NDArray[np.bool_]:
    return np.asarray(distance_transform_edt(~stroke) <= radius)


def test_real_tissue_holds_nothing_that_looks_like_ink(
    real: dict[str, tuple[NDArray[np.uint8], float]],
) -> None:
    for name, (image, mpp) in real.items():
        assert not ink_mask(optical_density(image), mpp).any(), name


@settings(deadline=None, max_examples=60)
@given(
    mask=arrays.arrays(bool, (7, 9)),
    x=st.floats(-2, 9),
    y=st.floats(-2, 7),
    size=st.floats(0.3, 6),
)
def test_the_fraction_of_a_square_is_exact_also_between_pixels(
    mask: NDArray[np.bool_], x: float, y: float, size: float
) -> None:
    overlap_x = np.clip(np.minimum(np.arange(9) + 1, x + size) - np.maximum(np.arange(9), x), 0, 1)
    overlap_y = np.clip(np.minimum(np.arange(7) + 1, y + size) - np.maximum(np.arange(7), y), 0, 1)
    expected = overlap_y @ mask @ overlap_x / size**2
    got = tissue_fraction(mask, np.array([x]), np.array([y]), size)
    assert got[0] == pytest.approx(expected, abs=1e-6)
