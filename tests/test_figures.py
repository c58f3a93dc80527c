"""Figures: told apart by every eye, nothing cut off, bad input refused, no setting left behind."""

import itertools
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import shapely
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from PIL import Image

from sslpath import figures
from sslpath.convert import convert
from sslpath.errors import ConfigError, TableError
from sslpath.figure_style import HEAT, LOOKS, MARKERS, ON_TISSUE, PALETTE, Picture
from sslpath.results import row
from sslpath.slides import Slide
from sslpath.table import make_table

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
EYES = {
    "normal": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
PINK_TISSUE = "#D9A3C7"


def lab(colour, eye):
    """CIELAB (D65) of a colour as an eye sees it."""
    rgb = np.array(mpl.colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.asarray(EYES[eye]) @ linear, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.asarray(to_xyz) @ linear / [0.9505, 1, 1.089]
    x, y, z = (np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """900 x 600 px of pink noise with a white border, at 1 um per pixel."""
    folder = tmp_path_factory.mktemp("slide")
    image = np.full((600, 900, 3), 245, np.uint8)
    pink = np.random.default_rng(0).normal([200, 130, 180], 20, (500, 800, 3))
    image[50:550, 50:850] = np.clip(pink, 0, 255)
    Image.fromarray(image).save(folder / "toy.png")
    convert(folder / "toy.png", folder / "toy.tif", 1.0)
    return Slide(folder / "toy.tif")


@pytest.fixture(scope="module")
def tiles():
    """14 x 8 tiles of 56 um; tumour on the left, unknown between."""
    y, x = np.divmod(np.arange(14 * 8), 14)
    label = pd.array(np.where(x < 5, 1, 0), dtype="Int8")
    label[x == 5] = pd.NA
    columns = {"slide_id": "toy", "x": 56 + x * 56, "y": 56 + y * 56, "size": 56, "slide_mpp": 1.0}
    return make_table({**columns, "label": label}, mpp=1, tile_px=56, source={})


def some_log(n=60):
    steps = np.arange(1, n + 1)
    falls = np.exp(-steps / 20)
    return [
        {"step": int(s), "loss": 1 + f, "near_loss": f, "far_loss": 1.0, "lr": 0.1,
         "spread": 1 - f, "effective_rank": 20 - f}
        for s, f in zip(steps, falls, strict=True)
    ]  # fmt: skip


def some_rows():
    methods = ("chance", "spatial", "imagenet", "random", "rgb", "other")
    names = ("tumour_top1", "tumour_p_at_10", "knn_auc", "addr_global", "addr_median")
    rows = [
        row(m, n, 0.5 + i / 20, 0.4 + i / 20, 0.6 + i / 20)
        for i, m in enumerate(methods)
        for n in names
    ]
    return [*rows, row("spatial - imagenet", "knn_auc", 0.1, 0, 0.2, versus="imagenet")]


def all_figures(slide, tiles):
    rng = np.random.default_rng(0)
    tissue = np.array(["stroma", "fat", "tumour grade 1", "tumour grade 2", None], object)
    images = rng.integers(0, 256, (3, 4, 16, 16, 3), dtype=np.uint8)
    correct = rng.integers(-1, 2, (3, 4))
    distances = rng.gamma(5, 1, (2, 500))
    agreement = pd.DataFrame(
        {"low_um": [0, 100, 200], "high_um": [100, 200, 300], "n": [50, 40, 3],
         "agreement": [0.9, 0.7, 0.1]}
    )  # fmt: skip
    return {
        "slide_with_grid": figures.slide_with_grid(slide, tiles),
        "near_far_on_slide": figures.near_far_on_slide(slide, tiles, 3, near_um=120, far_um=400),
        "heat_map": figures.heat_map(
            slide, tiles, rng.random(len(tiles)), truth=shapely.box(56, 56, 336, 500)
        ),
        "gallery": figures.gallery(
            images[:, 0], {"spatial": images, "imagenet": images},
            {"spatial": correct, "imagenet": correct}, names=["one", "two", "three"],
        ),
        "gallery without labels": figures.gallery(images[:1, 0], {"neighbours": images[:1]}),
        "training_curves": figures.training_curves(some_log()),
        "training_curves of one line": figures.training_curves(some_log(1)),
        "umap_panels": figures.umap_panels(
            {"spatial": rng.normal(size=(400, 2)), "imagenet": rng.normal(size=(400, 2))},
            rng.choice(tissue, 400), rng.choice(["a", "b", "c"], 400),
        ),
        "distance_distributions": figures.distance_distributions(
            {"spatial": tuple(distances), "imagenet": tuple(distances)}
        ),
        "agreement_by_distance": figures.agreement_by_distance(
            agreement, near_um=120, far_um=200, chance=0.6
        ),
        "results_bars": figures.results_bars(some_rows()),
    }  # fmt: skip


@pytest.fixture(scope="module")
def drawn(slide, tiles):
    return all_figures(slide, tiles)


@pytest.mark.parametrize("eye", EYES)
def test_every_two_colours_differ_to_every_eye(eye):
    for (one, a), (other, b) in itertools.combinations(PALETTE.items(), 2):
        assert np.linalg.norm(lab(a, eye) - lab(b, eye)) > 20, (one, other)


@pytest.mark.parametrize("eye", EYES)
def test_what_is_drawn_on_tissue_stands_out_from_pink_and_from_its_white_edge(eye):
    for name in ON_TISSUE:
        assert np.linalg.norm(lab(PALETTE[name], eye) - lab(PINK_TISSUE, eye)) > 35, name
        assert np.linalg.norm(lab(PALETTE[name], eye) - lab("white", eye)) > 40, name


@pytest.mark.parametrize("eye", EYES)
def test_the_heat_map_runs_from_dark_to_light_to_every_eye(eye):
    steps = [lab(c, eye)[0] for c in mpl.colormaps[HEAT](np.linspace(0, 1, 12))]
    assert (np.diff(steps) > 2).all()


def test_methods_differ_in_marker_too():
    markers = [marker for _, marker in LOOKS.values()]
    assert len(set(markers)) == len(markers)
    assert len(set(MARKERS)) == len(MARKERS)


def test_nothing_is_cut_off_at_the_edge_of_a_figure(drawn):
    for name, figure in drawn.items():
        FigureCanvasAgg(figure).draw()  # lays the figure out
        box = figure.get_tightbbox()
        width, height = figure.get_size_inches()
        slack = 0.02  # inches
        assert box.x0 > -slack, name
        assert box.y0 > -slack, name
        assert box.x1 < width + slack, name
        assert box.y1 < height + slack, name


def test_all_figures_save_whole_or_not_at_all(drawn, tmp_path):
    for i, figure in enumerate(drawn.values()):
        figures.save(figure, tmp_path / "new" / f"{i}.png", dpi=50)
        with Image.open(tmp_path / "new" / f"{i}.png") as image:
            assert np.asarray(image.convert("L")).std() > 3  # not blank
    with pytest.raises(ConfigError, match=r"a\.bogus: a picture is saved as \.png, \.pdf or \.svg"):
        figures.save(figure, tmp_path / "new" / "a.bogus")
    assert len(list((tmp_path / "new").iterdir())) == len(drawn)
    figures.save(drawn["results_bars"], tmp_path / "a.pdf")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


def test_notebooks_show_a_figure_as_it_is(drawn):
    for figure in drawn.values():
        assert isinstance(figure, Picture)
    assert drawn["results_bars"]._repr_png_().startswith(b"\x89PNG")


def test_drawing_leaves_the_settings_of_matplotlib_alone(slide, tiles):
    with mpl.rc_context({"font.size": 7, "axes.grid": False}):
        before = dict(mpl.rcParams)
        all_figures(slide, tiles)
        assert dict(mpl.rcParams) == before
    code = "import sys, sslpath.figures; print({'torch', 'matplotlib.pyplot'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_scale_bar_has_the_length_it_says(drawn):
    ax = drawn["slide_with_grid"].axes[0]
    bar = ax.lines[0]
    assert np.ptp(bar.get_xdata()) == 100  # um: the slide is 900 um wide
    assert "100 µm" in {text.get_text() for text in ax.texts}
    assert ax.get_xlim() == (0, 900)


def test_near_and_far_tiles_are_counted_as_pairs_count_them(slide, tiles):
    figure = figures.near_far_on_slide(slide, tiles, 0, near_um=56, far_um=56 * 12.5)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    x, y = tiles["x"].to_numpy(float), tiles["y"].to_numpy(float)
    away = np.hypot(x - x[0], y - y[0])
    assert f"({(away <= 56).sum() - 1} tiles)" in labels[1]
    assert f"({(away > 56 * 12.5).sum()} tiles)" in labels[2]


def test_tiles_on_the_grid_are_counted_by_label(drawn, tiles):
    texts = [text.get_text() for text in drawn["slide_with_grid"].axes[0].get_legend().get_texts()]
    assert texts == ["labelled, no tumour (64)", "no label (8)", "tumour (40)"]


def test_every_tile_of_an_embedding_is_drawn_once(drawn):
    for ax in drawn["umap_panels"].axes:
        points = [c for c in ax.collections if isinstance(c, PathCollection)]
        assert sum(len(c.get_offsets()) for c in points) == 400


def test_answers_are_marked_by_shape_as_well_as_colour(slide):
    images = np.zeros((1, 3, 8, 8, 3), np.uint8)
    figure = figures.gallery(images[:, 0], {"a": images}, {"a": np.array([[1, 0, -1]])})
    marks = [line for line in figure.axes[0].lines if line.get_marker() in ("o", "X")]
    shapes = {(m.get_marker(), m.get_markeredgecolor() if m.get_marker() == "o" else m.get_color())
              for m in marks if m.get_markersize() < 11}  # fmt: skip
    assert shapes == {("o", PALETTE["blue"]), ("X", PALETTE["orange"])}


def test_results_without_interval_or_of_one_method_can_be_drawn():
    figures.results_bars([row("spatial", "knn_auc", 0.7)])
    figures.results_bars([row("spatial", "query_us", 70)], metrics=["query_us"])


def test_what_cannot_be_drawn_is_refused_in_words(slide, tiles):
    other = tiles.assign(slide_id="other")
    other.attrs = tiles.attrs
    with pytest.raises(TableError, match="'toy'"):
        figures.slide_with_grid(slide, other)
    with pytest.raises(TableError, match="Row 0"):
        figures.near_far_on_slide(slide, pd.concat([other, tiles]), 0, near_um=1, far_um=2)
    with pytest.raises(TableError, match="one score"):
        figures.heat_map(slide, tiles, np.ones(3))
    with pytest.raises(TableError, match="its tiles only"):
        figures.heat_map(slide, pd.concat([other, tiles]), np.ones(2 * len(tiles)))
    with pytest.raises(ConfigError, match="empty"):
        figures.training_curves([])
    with pytest.raises(ConfigError, match="one row a method"):
        figures.results_bars([row("a", "knn_auc", 1, data="x"), row("a", "knn_auc", 1, data="y")])
    with pytest.raises(ConfigError, match="one row a method"):
        figures.results_bars([])
