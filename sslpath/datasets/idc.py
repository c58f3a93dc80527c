"""The IDC breast tiles: pre-cut 50 x 50 px tiles with positions, read straight from the zip.

Invasive ductal carcinoma (IDC) tiles of Cruz-Roa et al. 2014 and Janowczyk and Madabhushi 2016.
The archive holds ``<patient>/<class>/<patient>_idx5_x<X>_y<Y>_class<class>.png``, where X and Y
are the tile's top-left pixel on its slide and class 1 is carcinoma. The publisher gives no exact
pixel size: 2.5x is about 4 um a pixel, which we use, so a tile is about 200 um wide and distances
are best thought of in tile widths. There is one slide a patient.
"""

import re
import warnings
import zipfile
from pathlib import Path, PurePosixPath

import pandas as pd
from tqdm import tqdm

from sslpath.datasets.download import download
from sslpath.datasets.registry import IDC
from sslpath.errors import DataError
from sslpath.files import atomic_path, sha256
from sslpath.progress import hide_bar
from sslpath.table import make_table, split_by_patient

MPP = 4.0
TILE_PX = 50
MEMBER = "{patient_id}/{label}/{patient_id}_idx5_x{x}_y{y}_class{label}.png"
# Some copies wrap everything in one folder; the prefix is kept.
NAME = re.compile(
    r"^(?P<prefix>(?:[^/]+/)*)(?P<patient>\w+)/(?P<label>[01])/"
    r"(?P=patient)_idx5_x(?P<x>\d+)_y(?P<y>\d+)_class(?P=label)\.png$"
)
PNG_HEADER = 24


def download_idc(folder: str | Path, *, url: str = IDC.url, progress: bool = True) -> Path:
    """Download the public archive (about 1.6 GB; resumes) and check every tile's CRC.

    The publisher gives no checksum that we could verify. So the first complete download has all
    its CRCs checked and its SHA-256 written beside it; later calls compare with that.

    Returns:
        Path of the zip.

    Raises:
        DataError: If the download fails or the archive is damaged.
    """
    target = Path(folder) / IDC.file
    seal = target.with_suffix(".zip.sha256")
    known = seal.read_text().split()[0] if seal.exists() else IDC.sha256
    download(url, target, checksum=known, progress=progress)
    if not seal.exists():
        verify_idc(target, progress=progress)
        with atomic_path(seal) as temporary:
            temporary.write_text(f"{sha256(target)}  {target.name}\n")
    return target


def verify_idc(path: str | Path, *, progress: bool = True) -> None:
    """Read every tile of the archive and compare its CRC.

    Raises:
        DataError: If the archive cannot be opened or a tile is damaged; names the tile.
    """
    with _open(path) as archive:
        members = archive.infolist()
        for member in tqdm(members, "checking", unit="tile", disable=hide_bar(progress)):
            try:
                with archive.open(member) as file:
                    while file.read(1 << 20):
                        pass
            except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
                raise DataError(
                    f"{path} is damaged at {member.filename}: {error}. "
                    "Delete it and its .part file and run `sslpath data idc` again."
                ) from error


def idc_tiles(path: str | Path, *, progress: bool = True) -> pd.DataFrame:
    """The table of tiles of an IDC archive; pixels stay in the zip.

    Tiles cut off by the slide's edge (smaller than 50 x 50 px) are left out: only whole tiles are
    kept, as everywhere in sslpath. The split is that of
    :func:`sslpath.table.split_by_patient`.

    Raises:
        DataError: If the archive is not laid out as the public download.
    """
    rows, foreign, partial = [], 0, 0
    with _open(path) as archive:
        # Archives packed on a Mac hold a hidden file beside each of their files.
        members = [
            name
            for name in archive.namelist()
            if not name.endswith("/") and not PurePosixPath(name).name.startswith(".")
        ]
        for name in tqdm(members, desc="tiles", unit="tile", disable=hide_bar(progress)):
            match = NAME.match(name)
            if match is None:
                foreign += 1
                continue
            with archive.open(name) as file:
                header = file.read(PNG_HEADER)
            width, height = header[16:20], header[20:24]
            if int.from_bytes(width) != TILE_PX or int.from_bytes(height) != TILE_PX:
                partial += 1
                continue
            rows.append(match.group("prefix", "patient", "x", "y", "label"))
    if not rows:
        raise DataError(
            f"{path} holds no tiles named like `{MEMBER}`. "
            f"This loader reads the archive {IDC.file}; see `sslpath data list`."
        )
    frame = pd.DataFrame(rows, columns=["prefix", "patient_id", "x", "y", "label"])
    frame = frame.astype({"x": int, "y": int, "label": int})
    prefix = frame["prefix"].iloc[0]
    if (frame["prefix"] != prefix).any() or foreign > len(frame):
        raise DataError(
            f"{path} mixes several layouts ({foreign} other files); "
            f"expected the layout of {IDC.file}."
        )
    frame = _without_contradictions(frame, path).sort_values(["patient_id", "y", "x"])
    tiles = make_table(
        {
            "slide_id": frame["patient_id"].to_numpy(),
            "patient_id": frame["patient_id"].to_numpy(),
            "x": frame["x"].to_numpy(),
            "y": frame["y"].to_numpy(),
            "size": TILE_PX,
            "slide_mpp": MPP,
            "label": frame["label"].to_numpy(),
            "region": frame["label"].map({0: "other tissue", 1: "tumour (IDC)"}).to_numpy(),
        },
        mpp=MPP,
        tile_px=TILE_PX,
        source={
            "kind": "zip",
            "path": str(Path(path).resolve()),
            "member": f"{prefix}{MEMBER}",
            "partial_tiles_left_out": partial,
        },
    )
    return split_by_patient(tiles)


def _without_contradictions(frame: pd.DataFrame, path: str | Path) -> pd.DataFrame:
    """Each tile once; one that is there with both labels is left out with a warning."""
    place = ["patient_id", "x", "y"]
    frame = frame.drop_duplicates([*place, "label"])
    both = frame.duplicated(place, keep=False)
    if both.any():
        first = frame[both].iloc[0]
        warnings.warn(
            f"{path}: tiles with both labels were left out: {both.sum() // 2}, such as "
            f"{first['patient_id']} at {first['x']}, {first['y']}.",
            stacklevel=3,
        )
    return frame[~both]


def _open(path: str | Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise DataError(f"No archive at {path}. Fetch it with `sslpath data idc`.") from error
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(
            f"{path} is not a whole zip archive ({error}). Delete it and run `sslpath data idc`."
        ) from error
