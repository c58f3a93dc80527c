"""Where the pixels of tiles come from: slides, or a zip of tiles cut beforehand.

A source answers ``read(rows)``. It is made from the table of tiles alone, opens its files when
first read and anew in each process, and can be pickled: hand it to the workers of a DataLoader.
"""

import io
import os
import re
import threading
import zipfile
import zlib
from itertools import takewhile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from sslpath.errors import DataError, SlideError, TableError, TileReadError
from sslpath.slides import Slide

WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")  # how absolute paths of Windows begin
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, NotImplementedError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, Image.DecompressionBombError),
)


class TileSource(Protocol):
    """Anything that can read the pixels of rows of a table of tiles."""

    def read(self, rows: pd.DataFrame) -> NDArray[np.uint8]:
        """RGB of the tiles in the order of ``rows``, shape ``(n, tile_px, tile_px, 3)``.

        Raises:
            TileReadError: If one cannot be read; never is anything put in its place.
        """
        ...


def open_source(tiles: pd.DataFrame, root: str | Path | None = None) -> TileSource:
    """The source that a table of tiles names in its metadata.

    Args:
        tiles: Table of tiles.
        root: Folder where the files are now, if they have moved since the table was made.

    Raises:
        TableError: If the table names no source that is known here.

    Example:
        >>> import tempfile
        >>> from sslpath.table import make_table
        >>> path = Path(tempfile.mkdtemp()) / "tiles.zip"
        >>> buffer = io.BytesIO()
        >>> Image.new("RGB", (50, 50), "pink").save(buffer, "PNG")
        >>> with zipfile.ZipFile(path, "w") as archive:
        ...     archive.writestr("7/100_200.png", buffer.getvalue())
        >>> tiles = make_table(
        ...     {"slide_id": ["7"], "x": [100], "y": [200], "size": [50], "slide_mpp": [4.0]},
        ...     mpp=4.0, tile_px=50,
        ...     source={"kind": "zip", "path": str(path), "member": "{slide_id}/{x}_{y}.png"})
        >>> open_source(tiles).read(tiles).shape
        (1, 50, 50, 3)
    """
    source = tiles.attrs.get("source") or {}
    tile_px, mpp = int(tiles.attrs["tile_px"]), float(tiles.attrs["mpp"])
    try:
        if source["kind"] == "slides":
            where: dict[str, dict[str, Any]] = source["slides"]
            paths = _moved([where[name]["path"] for name in where], root)
            slides = {
                name: Slide(path, where[name]["mpp"], slide_id=name)
                for name, path in zip(where, paths, strict=True)
            }
            sizes = {
                name: (one["width"], one["height"])
                for name, one in where.items()
                if "width" in one and "height" in one
            }
            return SlideTiles(slides, mpp=mpp, tile_px=tile_px, sizes=sizes)
        if source["kind"] == "zip":
            (path,) = _moved([source["path"]], root)
            return ZipTiles(path, source["member"], tile_px=tile_px)
    except KeyError as error:
        raise TableError(
            f"The table of tiles does not say where its pixels are: its source lacks {error}. "
            "Make it again with `sslpath tile`."
        ) from error
    raise TableError(f"Tiles of the kind {source['kind']!r} cannot be read: slides or zip can.")


class SlideTiles:
    """Tiles read from slides, at one pixel size.

    Args:
        slides: Slide by id.
        mpp: um per pixel of the tiles.
        tile_px: Side of a tile, pixels.
        sizes: Width and height of slides when they were tiled, level-0 px.
    """

    def __init__(
        self,
        slides: dict[str, Slide],
        *,
        mpp: float,
        tile_px: int,
        sizes: dict[str, tuple[int, int]] | None = None,
    ) -> None:
        self.slides = slides
        self.mpp = mpp
        self.tile_px = tile_px
        self.sizes = sizes or {}

    def read(self, rows: pd.DataFrame) -> NDArray[np.uint8]:
        """See :meth:`TileSource.read`; raises SlideError too, if a slide is gone."""
        ids = rows["slide_id"].to_numpy()
        x, y = rows["x"].to_numpy(), rows["y"].to_numpy()
        out = np.empty((len(rows), self.tile_px, self.tile_px, 3), np.uint8)
        # Slide by slide and row by row, whatever the order asked for: then few slides are open at
        # a time, and neighbours find what they share in the cache.
        checked = None
        for i in np.lexsort((x, y, ids.astype(str))):
            try:
                slide = self.slides[ids[i]]
            except KeyError as error:
                raise TableError(
                    f"The table has tiles of slide {error}, but does not say where it is."
                ) from error
            if ids[i] != checked:
                self._check_size(slide, ids[i])
                checked = ids[i]
            out[i] = slide.read(int(x[i]), int(y[i]), self.tile_px, self.mpp)
        return out

    def _check_size(self, slide: Slide, slide_id: str) -> None:
        now = slide.dimensions
        was = tuple(self.sizes.get(slide_id, now))
        if was != now:
            raise SlideError(
                f"{slide.path} is {now[0]} x {now[1]} px, but was {was[0]} x {was[1]} px when it "
                "was tiled: another version, or another slide of this name. Tile it again, or name "
                "the right folder with --root."
            )


class ZipTiles:
    """Tiles that lie as images in a zip archive, read without unpacking it.

    Args:
        path: The archive.
        member: Name of a tile's image, with the columns of its row in braces, such as
            ``"{slide_id}/{x}_{y}.png"``.
        tile_px: Side of a tile, pixels.
    """

    def __init__(self, path: str | Path, member: str, *, tile_px: int) -> None:
        self.path = Path(path)
        self.member = member
        self.tile_px = tile_px
        self._forget()

    def _forget(self) -> None:
        self._archive: zipfile.ZipFile | None = None
        self._pid = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "member": self.member, "tile_px": self.tile_px}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def read(self, rows: pd.DataFrame) -> NDArray[np.uint8]:
        """See :meth:`TileSource.read`; raises DataError too, if the archive is gone."""
        archive = self._open()
        out = np.empty((len(rows), self.tile_px, self.tile_px, 3), np.uint8)
        for i, row in enumerate(rows.to_dict("records")):
            out[i] = self._tile(archive, self.member.format_map(row))
        return out

    def _open(self) -> zipfile.ZipFile:
        # A fork shares the parent's file position: each process opens the archive for itself.
        if self._pid != os.getpid():
            self._forget()
            self._pid = os.getpid()
        with self._lock:
            if self._archive is None:
                try:
                    self._archive = zipfile.ZipFile(self.path)
                except FileNotFoundError as error:
                    raise DataError(
                        f"No archive of tiles at {self.path}. If it has moved, say where to "
                        "(`root=` in Python), or make the table of tiles again."
                    ) from error
                except (zipfile.BadZipFile, OSError) as error:
                    raise DataError(
                        f"{self.path} is not a whole zip archive ({error}). Fetch it again."
                    ) from error
            return self._archive

    def _tile(self, archive: zipfile.ZipFile, name: str) -> NDArray[np.uint8]:
        try:
            # Four bytes a pixel and a header: an image that needs more is none of a tile.
            size, most = archive.getinfo(name).file_size, 4 * self.tile_px**2 + 2**20
            if size > most:
                raise TileReadError(
                    f"{name} in {self.path} would unpack to {size:,} bytes; a tile of "
                    f"{self.tile_px} px has {most:,} at most. Leave the tile out."
                )
            with Image.open(io.BytesIO(archive.read(name))) as image:
                if image.size != (self.tile_px, self.tile_px):
                    raise TileReadError(
                        f"{name} in {self.path} is {image.width} x {image.height} px; the table "
                        f"says {self.tile_px} x {self.tile_px}. Leave the tile out."
                    )
                return np.asarray(image.convert("RGB"))
        except KeyError as error:
            raise TileReadError(
                f"{self.path} has no tile {name}: the table belongs to another archive."
            ) from error
        except UNREADABLE as error:
            raise TileReadError(
                f"Cannot decode {name} in {self.path}: {str(error).rstrip('.')}. The archive is "
                "damaged there; fetch it again or leave the tile out."
            ) from error


def _moved(paths: list[str], root: str | Path | None) -> list[Path]:
    """The paths with the folder that they share replaced by ``root``.

    They may have been written on another system: Windows has drives and backslashes.
    """
    if root is None:
        return [Path(path) for path in paths]
    old = [(PureWindowsPath if WINDOWS.match(p) else PurePosixPath)(p) for p in paths]
    folders = [[part.casefold() for part in path.parent.parts] for path in old]
    alike = takewhile(lambda level: len(set(level)) == 1, zip(*folders, strict=False))
    shared = sum(1 for _ in alike)
    # Slides of several drives share nothing, but the drive is no folder.
    return [Path(root, *path.parts[max(1, shared) :]) for path in old]
