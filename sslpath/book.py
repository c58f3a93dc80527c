"""What the chapters of the book share: their data, the checks of their exercises, their numbers.

Two environment variables switch every chapter: ``SSLPATH_DATA`` says which tiles
(``phantom``, ``idc`` or ``camelyon16``), ``SSLPATH_PROFILE`` how many (``small`` or ``full``).
What this module does not do: anything that the package needs, and nothing imports it but chapters.
"""

import os
import tempfile
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sslpath.datasets.phantom_features import shipped_features
from sslpath.demo import FAR_TILES, NEAR_TILES, demo_tiles, phantom_folder
from sslpath.descriptor_files import features_provenance
from sslpath.descriptors import read_descriptors
from sslpath.embed import embed_encoder
from sslpath.errors import ConfigError, DataError
from sslpath.imagenet import load_imagenet
from sslpath.model import ModelConfig, SiameseNetwork
from sslpath.pairs import near_far_um
from sslpath.settings import TrainConfig
from sslpath.slides import Slide
from sslpath.sources import TileSource, open_source
from sslpath.table import load_tiles
from sslpath.training import train


@dataclass(frozen=True)
class Profile:
    """The size of a run.

    Attributes:
        name: ``small`` or ``full``.
        patients: At most so many patients of a data set; of phantoms there are twenty.
        umap_tiles: Tiles in a picture of the descriptor space.
        seeds: Seeds of a comparison.
        steps: Steps of training.
    """

    name: str
    patients: int
    umap_tiles: int
    seeds: tuple[int, ...]
    steps: int


PROFILES = {
    "small": Profile("small", patients=60, umap_tiles=1500, seeds=(0,), steps=150),
    "full": Profile("full", patients=10_000, umap_tiles=5000, seeds=(0, 1, 2, 3, 4), steps=150),
}
DATA_SETS = ("phantom", "idc", "camelyon16")


@dataclass(frozen=True)
class BookData:
    """Tiles of a data set with everything that a chapter needs of them.

    Attributes:
        name: ``phantom``, ``idc`` or ``camelyon16``.
        profile: The size of the run.
        tiles: Table of n tiles, split by patient.
        source: Where their pixels are.
        features: ImageNet features, float32 ``(n, d)``: what a frozen trunk gives.
        encoder: Provenance of the features.
        near_tiles: Near pairs are at most so many tile widths apart.
        far_tiles: Far pairs are farther apart than this.
    """

    name: str
    profile: Profile
    tiles: pd.DataFrame
    source: TileSource
    features: NDArray[np.float32]
    encoder: dict[str, Any]
    near_tiles: float
    far_tiles: float

    @property
    def train(self) -> NDArray[np.bool_]:
        """Which rows are for training, ``(n,)``."""
        return np.asarray(self.tiles["split"] == "train")

    @property
    def test(self) -> NDArray[np.bool_]:
        """Which rows are for testing, ``(n,)``."""
        return np.asarray(self.tiles["split"] == "test")

    @property
    def near_um(self) -> float:
        """The near distance in um."""
        return near_far_um(self.tiles, self.near_tiles, self.far_tiles)[0]

    @property
    def far_um(self) -> float:
        """The far distance in um."""
        return near_far_um(self.tiles, self.near_tiles, self.far_tiles)[1]

    @property
    def run(self) -> str:
        """One line on what a figure was made from, for its caption."""
        slides = self.tiles["slide_id"].nunique()
        kind = {"phantom": "phantom slides", "idc": "IDC slides"}.get(self.name, "slides")
        return f"{slides} {kind}, {len(self.tiles):,} tiles, profile {self.profile.name}"

    def slide(self, slide_id: str | None = None) -> Slide | None:
        """One of the slides, by default the second; None where there are only tiles, as in IDC."""
        known = self.tiles.attrs["source"].get("slides", {})
        if not known:
            return None
        name = slide_id or sorted(known)[min(1, len(known) - 1)]
        return Slide(known[name]["path"], slide_id=name)

    def configs(self, **changes: Any) -> tuple[TrainConfig, ModelConfig]:
        """Settings of training and of the network on these features, with ``changes`` to either.

        Raises:
            ConfigError: If neither has a setting of that name.
        """
        training = TrainConfig(
            near_tiles=self.near_tiles, far_tiles=self.far_tiles, steps=self.profile.steps
        )
        model = ModelConfig(
            arch=self.encoder["arch"],
            feature_dim=self.features.shape[1],
            input_px=self.encoder["input_px"],
            encoder=self.encoder,
        )
        of_training = {field.name for field in fields(TrainConfig)}
        of_model = {field.name for field in fields(ModelConfig)}
        unknown = sorted(set(changes) - of_training - of_model)
        if unknown:
            known = ", ".join(sorted(of_training | of_model))
            raise ConfigError(f"No setting is called {unknown[0]!r}; there are {known}.")
        return (
            replace(training, **{k: v for k, v in changes.items() if k in of_training}),
            replace(model, **{k: v for k, v in changes.items() if k in of_model}),
        )

    def fit(self, run_dir: str | Path | None = None, **changes: Any) -> SiameseNetwork:
        """Train a head on the features of the training tiles.

        Args:
            run_dir: Where the run is kept; by default it is not kept.
            changes: Settings of :class:`TrainConfig` or :class:`ModelConfig`.
        """
        training, model = self.configs(**changes)
        with tempfile.TemporaryDirectory(prefix="sslpath-") as unkept:
            return train(
                self.tiles,
                training,
                model,
                Path(run_dir or unkept),
                features=self.features,
                device="cpu",
                progress=False,
            )


def open_data(data: str | None = None, profile: str | None = None) -> BookData:
    """Open the data of the book.

    Args:
        data: ``phantom``, ``idc`` or ``camelyon16``; by default the environment variable
            ``SSLPATH_DATA``, else ``phantom``.
        profile: ``small`` or ``full``; by default ``SSLPATH_PROFILE``, else ``small``.

    Raises:
        ConfigError: If there is no such data set or profile.
        DataError: If the data are not there and cannot be fetched.
    """
    name = data or os.environ.get("SSLPATH_DATA") or "phantom"
    size = profile or os.environ.get("SSLPATH_PROFILE") or "small"
    if name not in DATA_SETS:
        raise ConfigError(f"SSLPATH_DATA is {name!r}; choose one of {', '.join(DATA_SETS)}.")
    if size not in PROFILES:
        raise ConfigError(f"SSLPATH_PROFILE is {size!r}; choose one of {', '.join(PROFILES)}.")
    return {"phantom": _phantom, "idc": _idc, "camelyon16": _camelyon16}[name](PROFILES[size])


def _phantom(profile: Profile) -> BookData:
    tiles = phantom_tiles()
    source = open_source(tiles)
    features, found, about = shipped_features(tiles, source)
    tiles = tiles[found].reset_index(drop=True)
    return BookData("phantom", profile, tiles, source, features, about, NEAR_TILES, FAR_TILES)


def phantom_tiles() -> pd.DataFrame:
    """The tiles of the twenty phantom slides; the first call makes the slides, and says so."""
    folder = phantom_folder()
    first = not (folder / "phantom_019.geojson").exists()
    if first:
        print(f"Making 20 phantom slides in {folder}: once, about two minutes.", flush=True)
    # One process where the slides are there: quick, and safe in a script without a main guard.
    return demo_tiles(folder, workers=2 if first else 1, progress=first)


def _idc(profile: Profile) -> BookData:
    from sslpath.datasets.idc import download_idc, idc_tiles

    folder = phantom_folder().parent / "idc"
    archive = download_idc(folder)
    tiles = idc_tiles(archive, progress=False)
    # The patients in the order of their ids: the same ones for everybody.
    keep = sorted(tiles["patient_id"].unique(), key=str)[: profile.patients]
    chosen = tiles[tiles["patient_id"].isin(keep)].reset_index(drop=True)
    chosen.attrs = tiles.attrs
    source = open_source(chosen)
    weights = os.environ.get("SSLPATH_IMAGENET_WEIGHTS")
    encoder = load_imagenet("mobilenet_v2", weights)
    embed_encoder(chosen, source, encoder, folder / "imagenet")
    features = read_descriptors(folder / "imagenet", chosen)
    training = TrainConfig()
    return BookData(
        "idc",
        profile,
        chosen,
        source,
        features,
        encoder.provenance,
        training.near_tiles,
        training.far_tiles,
    )


def _camelyon16(profile: Profile) -> BookData:
    folder = phantom_folder().parent / "camelyon16"
    table, features = folder / "tiles.parquet", folder / "imagenet"
    if not table.exists() or not features.is_dir():
        raise DataError(
            f"Camelyon16 is not prepared in {folder}. Chapter 9 has the commands: `sslpath tile` "
            f"to {table}, then `sslpath embed --encoder imagenet` to {features}."
        )
    tiles = load_tiles(table)
    keep = sorted(tiles["patient_id"].unique(), key=str)[: profile.patients]
    chosen = tiles[tiles["patient_id"].isin(keep)].reset_index(drop=True)
    chosen.attrs = tiles.attrs
    training = TrainConfig()
    return BookData(
        "camelyon16",
        profile,
        chosen,
        open_source(chosen),
        read_descriptors(features, chosen),
        features_provenance(features, chosen),
        training.near_tiles,
        training.far_tiles,
    )


def glue(name: str, value: object) -> None:
    """Remember a number for the prose of the page; outside of a book build, show nothing.

    Args:
        name: What the prose calls it.
        value: A number or a text.
    """
    try:
        from myst_nb import glue as remember
    except ImportError:  # Colab and Binder show the chapter without the book's tools
        return
    # A format such as `.2f` needs Python's own numbers.
    remember(name, value.item() if isinstance(value, np.generic) else value, display=False)


class check:  # noqa: N801 (read as a statement: `with check("3.1"):`)
    """The check of an exercise: says what is not yet right, and lets the chapter go on.

    The environment variable ``SSLPATH_CHECKS`` is for the book's own tests: under ``pass`` a check
    that does not hold raises, under ``fail`` one that does hold raises.

    Example:
        >>> with check("1.1"):
        ...     assert 112 * 0.5 == 56, "112 pixels at 0.5 um each span 56 um"
        ✓ Exercise 1.1
        >>> with check("1.2"):
        ...     assert None is not None, "write the function first"
        ✗ Exercise 1.2, not yet: write the function first
    """

    def __init__(self, exercise: str) -> None:
        self.exercise = exercise

    def __enter__(self) -> None:
        """Nothing to set up."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        mode = os.environ.get("SSLPATH_CHECKS", "")
        if error is None:
            if mode == "fail":
                raise AssertionError(
                    f"The check of exercise {self.exercise} passes on the unsolved stub."
                )
            print(f"✓ Exercise {self.exercise}")
            return False
        if mode == "pass" or not isinstance(error, Exception):
            return False
        # The first line: NumPy's and PyTorch's errors go on for pages.
        lines = str(error).strip().splitlines() or ["this does not hold"]
        text = (
            lines[0] if isinstance(error, AssertionError) else f"{type(error).__name__}: {lines[0]}"
        )
        print(f"✗ Exercise {self.exercise}, not yet: {text}")
        return True
