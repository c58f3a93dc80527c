"""Phantom slides: are they what they say, the same each time, and read by others as meant?"""

import json
from pathlib import Path

import numpy as np
import openslide
import pytest
import shapely
from conftest import write_lossless
from hypothesis import given, settings
from hypothesis import strategies as st

from sslpath.annotations import read_annotations
from sslpath.datasets import phantom_cells as cells
from sslpath.datasets import phantom_layout as lay
from sslpath.datasets import phantom_nuclei as nuc
from sslpath.datasets import phantom_stain as stain
from sslpath.datasets import phantom_texture as texture
from sslpath.datasets.phantom import (
    TISSUES,
    PhantomSpec,
    make_phantom,
    make_phantoms,
    phantom_specs,
    regions,
    render,
)
from sslpath.errors import ConfigError, DataError

SMALL = {"width": 1024, "height": 768, "tumour": 0.4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    make_phantom(folder, "one", 5, **SMALL)
    return folder


@pytest.fixture(scope="module")
def layouts() -> list[lay.Layout]:
    return [
        lay.make_layout(np.random.default_rng(seed), (192, 256), 8.0, 0.3, grades)
        for seed, grades in enumerate([(1,), (2,), (3,), (1, 3)])
    ]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(
    folder: Path, tmp_path: Path
) -> None:
    again = make_phantom(tmp_path, "again", 5, **SMALL)
    other = make_phantom(tmp_path, "other", 6, **SMALL)
    assert again.read_bytes() == (folder / "one.tif").read_bytes()
    assert (tmp_path / "again.geojson").read_bytes() == (folder / "one.geojson").read_bytes()
    assert other.read_bytes() != again.read_bytes()


def test_openslide_reads_pixel_size_and_a_pyramid(folder: Path) -> None:
    with openslide.OpenSlide(folder / "one.tif") as slide:
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.5)
        assert slide.dimensions == (1024, 768)
        assert slide.level_downsamples == pytest.approx((1, 2, 4))


def test_another_pixel_size_is_recorded_and_drawn(tmp_path: Path) -> None:
    path = make_phantom(tmp_path, "fine", 5, width=512, height=512, mpp=0.25)
    with openslide.OpenSlide(path) as slide:
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25)


def test_outlines_are_valid_and_agree_with_the_label_map() -> None:
    _, layout, _ = render(PhantomSpec(seed=5, **SMALL))
    h, w = layout.labels.shape
    y, x = (np.indices((h, w)) + 0.5) * lay.GRID_PX
    for name, area in regions(layout).items():
        assert area.is_valid
        truth = layout.labels == TISSUES.index(name)
        inside = shapely.contains_xy(area, x.ravel(), y.ravel()).reshape(h, w)
        # Simplified outlines may lose a cell at a border, never more.
        wrong = inside != truth
        assert wrong.mean() < 0.02
        core = shapely.contains_xy(area.buffer(-lay.GRID_PX), x.ravel(), y.ravel())
        assert truth.ravel()[core].all()
    assert set(regions(layout)) == {TISSUES[i] for i in np.unique(layout.labels) if i}


def test_written_outlines_are_read_back_as_tumour(folder: Path) -> None:
    annotations = read_annotations(folder / "one.geojson")
    _, layout, _ = render(PhantomSpec(seed=5, **SMALL))
    tumour = (layout.labels >= lay.TUMOUR1).sum() * lay.GRID_PX**2
    assert annotations.tumour.area == pytest.approx(tumour, rel=0.05)
    assert annotations.excluded.is_empty


def test_a_hole_in_a_tissue_is_a_hole_in_its_outline() -> None:
    labels = np.full((40, 40), lay.CORTEX, np.uint8)
    labels[10:20, 10:20] = lay.VESSEL
    empty = np.zeros((40, 40), np.float32)
    layout = lay.Layout(labels, labels, empty, empty, empty, empty, empty)
    cortex = regions(layout)["cortex"]
    assert not cortex.contains(shapely.Point(15 * 8, 15 * 8))
    assert cortex.contains(shapely.Point(5 * 8, 5 * 8))
    assert cortex.area == pytest.approx((1600 - 100) * 64, rel=0.02)


def test_every_tissue_occurs(layouts: list[lay.Layout]) -> None:
    found = set().union(*(np.unique(layout.labels).tolist() for layout in layouts))
    assert found == set(range(len(TISSUES)))


def test_tumour_takes_about_the_share_asked_for_and_none_if_none() -> None:
    for share in (0.0, 0.1, 0.5):
        layout = lay.make_layout(np.random.default_rng(3), (192, 256), 8.0, share, (2,))
        node = (layout.depth > 0) & (layout.tissue > 0)
        got = (layout.labels[node] >= lay.TUMOUR1).mean()
        assert got == 0 if share == 0 else share - 0.1 < got < share + 0.25


def test_two_slides_never_share_a_layout(layouts: list[lay.Layout]) -> None:
    for i, one in enumerate(layouts):
        for other in layouts[i + 1 :]:
            assert (one.labels == other.labels).mean() < 0.9


def test_nuclei_are_denser_in_cortex_than_in_fibrous_tissue_and_absent_from_glass(
    layouts: list[lay.Layout],
) -> None:
    layout = layouts[0]
    rng = np.random.default_rng(0)
    nuclei = nuc.place(
        rng, layout, cells.CELLS, 1.0, np.zeros(layout.kind.shape, np.float32), infiltrate=0.05
    )
    kind = layout.kind[nuclei.xy[:, 1] // lay.GRID_PX, nuclei.xy[:, 0] // lay.GRID_PX]
    per_cell = np.bincount(kind, minlength=lay.KINDS) / np.maximum(
        np.bincount(layout.kind.ravel(), minlength=lay.KINDS), 1
    )
    per_mm2 = per_cell / (lay.GRID_PX * 1e-3) ** 2
    assert per_mm2[lay.BACKGROUND] < 100
    assert 8_000 < per_mm2[lay.CORTEX] < 25_000
    assert per_mm2[lay.CORTEX] > 2 * per_mm2[lay.STROMA]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60))
def test_thin_keeps_what_placing_one_after_another_keeps(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    xy = rng.uniform(0, 20, (n, 2)).astype(np.float32)
    radius = rng.uniform(0.2, 3, n).astype(np.float32)
    kept: list[int] = []
    for i in range(n):
        gaps = np.hypot(*(xy[kept] - xy[i]).T) if kept else np.empty(0)
        if (gaps >= radius[kept] + radius[i]).all():
            kept.append(i)
    assert np.flatnonzero(nuc.thin(xy, radius)).tolist() == kept


def test_a_nucleus_at_the_border_is_cut_off_there() -> None:
    sheet = np.full((1, 7, 7), 9, np.uint8)
    plane = np.zeros((20, 20), np.uint8)
    corners = np.array([[0, 0], [19, 19], [0, 19]], np.int32)
    index = np.zeros(3, np.uint8)
    nuc.stamp(plane, nuc.Nuclei(corners, index, index), [sheet])
    assert (plane > 0).sum() == 3 * 16
    assert plane[0, 19] == 0


def test_sprites_have_the_diameter_asked_for() -> None:
    cell = cells.Cell(8.0, spread=0.0, stretch=1.0, lumpy=0.0, clumps=0.0)
    sheet = cells.sprites(cell, 0.5, np.random.default_rng(0))
    # Out-of-focus nuclei are paler, so each is cut at half its own stain.
    solid = sheet > np.median(sheet, axis=(1, 2), keepdims=True) / 2
    area = solid.sum((1, 2)) * 0.25
    assert np.median(2 * np.sqrt(area / np.pi)) == pytest.approx(8.0, rel=0.15)


def test_upsampling_a_ramp_gives_the_ramp_whatever_the_block() -> None:
    y, x = np.indices((40, 60), np.float32)
    ramp = (x + 0.5) * 8 + 1000 * (y + 0.5) * 8
    part = texture.cut(ramp, 64, 128, (64, 96), 8)
    row, column = np.indices((64, 96)) + 0.5
    assert part == pytest.approx((column + 128) + 1000 * (row + 64), rel=1e-4)


def test_no_stain_is_white_and_more_stain_is_darker() -> None:
    look = stain.colour(0, 0, np.random.default_rng(0))
    assert look.table[0, 0].min() > 220
    grey = look.table.mean(-1)
    assert (np.diff(grey[::16], axis=0) <= 0).all()
    assert (np.diff(grey[:, ::16], axis=1) <= 0).all()


def test_haematoxylin_is_bluer_than_eosin_in_every_laboratory() -> None:
    for laboratory in range(stain.LABORATORIES):
        for scanner in range(stain.SCANNERS):
            table = stain.colour(laboratory, scanner, np.random.default_rng(1)).table.astype(int)
            blue, pink = table[90, 0], table[0, 50]
            assert blue[2] > blue[0]
            assert pink[0] > pink[2] - 10


def test_a_complete_slide_is_kept_and_another_spec_or_a_cut_file_is_made_again(
    folder: Path, tmp_path: Path
) -> None:
    small = {"width": 512, "height": 256}
    path = make_phantom(tmp_path, "a", 1, **small)
    whole, made = path.read_bytes(), path.stat().st_mtime_ns
    assert make_phantom(tmp_path, "a", 1, **small).stat().st_mtime_ns == made
    path.write_bytes(whole[: len(whole) // 2])
    assert make_phantom(tmp_path, "a", 1, **small).read_bytes() == whole
    (tmp_path / "a.geojson").unlink()
    make_phantom(tmp_path, "a", 1, **small)
    json.loads((tmp_path / "a.geojson").read_text())
    assert make_phantom(tmp_path, "a", 2, **small).read_bytes() != whole


def test_an_interrupted_write_leaves_no_slide(tmp_path: Path) -> None:
    # The outlines' place is taken by a folder, so that writing fails after drawing.
    (tmp_path / "a.geojson").mkdir()
    with pytest.raises(OSError, match=r"a\.geojson"):
        make_phantom(tmp_path, "a", 1, width=512, height=256)
    assert not (tmp_path / "a.tif").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a.geojson"]


def test_a_set_made_by_two_processes_equals_one_made_by_one(tmp_path: Path) -> None:
    size = {"width": 512, "height": 256}
    two = make_phantoms(tmp_path / "two", 3, seed=4, workers=2, progress=False, **size)
    one = make_phantoms(tmp_path / "one", 3, seed=4, workers=1, progress=False, **size)
    assert [path.name for path in two] == ["phantom_000.tif", "phantom_001.tif", "phantom_002.tif"]
    assert [path.read_bytes() for path in two] == [path.read_bytes() for path in one]


@pytest.mark.parametrize("seed", range(5))
def test_both_halves_of_a_set_hold_slides_with_and_without_tumour(seed: int) -> None:
    specs = phantom_specs(20, seed)
    assert len({spec.seed for spec in specs}) == 20
    assert sum(spec.tumour > 0 for spec in specs) >= 14
    for half in (specs[:10], specs[10:]):
        assert 6 <= sum(spec.tumour > 0 for spec in half) < 10
        assert len({spec.laboratory for spec in half}) >= 4
    assert phantom_specs(7, seed) == specs[:7]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"width": 100}, "100"),
        ({"height": 1001}, "1001"),
        ({"tumour": 1.5}, "1.5"),
        ({"grades": (4,)}, "4"),
        ({"grades": ()}, "grades"),
        ({"mpp": 4.0}, "4.0"),
    ],
)
def test_a_spec_that_cannot_be_made_is_refused_by_its_value(
    changes: dict[str, object], names: str
) -> None:
    with pytest.raises(ConfigError, match=names):
        PhantomSpec(seed=0, **changes)  # type: ignore[arg-type]


def test_blur_fold_and_pen_change_the_picture_but_not_the_ground_truth() -> None:
    plain, layout, _ = render(PhantomSpec(seed=5, **SMALL))
    for accident in ("blur", "fold", "pen"):
        marked, same, _ = render(PhantomSpec(seed=5, **SMALL, **{accident: True}))
        assert (same.labels == layout.labels).all()
        assert (marked != plain).any()


@pytest.mark.parametrize("kind", ["text", "TIFF"])
def test_a_file_that_is_no_phantom_is_not_replaced_by_one(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "phantom_000.tif"
    if kind == "text":
        path.write_bytes(b"mine")
    else:
        write_lossless(path, [np.zeros((256, 256, 3), np.uint8)])
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"phantom_000\.tif is there, and is no phantom"):
        make_phantoms(tmp_path, 1, progress=False, width=512, height=512)
    assert path.read_bytes() == before
    assert not path.with_suffix(".geojson").exists()
