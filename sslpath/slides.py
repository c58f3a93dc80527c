"""Slides through OpenSlide, read at a pixel size in um instead of a level.

A level is not a magnification, and "20x" is not a pixel size: scanners differ. So every read names
the um per pixel that it wants; the best level is found and resampled only where none matches.

But:

- colours are the scanner's: embedded ICC profiles are not applied;
- formats that OpenSlide refuses have to be converted first, see :mod:`sslpath.convert`.
"""

import base64
import html
import io
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sslpath.errors import ConfigError, PixelSizeError, SlideError
from sslpath.handles import open_slide, read_level

# Endings of the files that OpenSlide opens.
SUFFIXES = {
    *(".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".svslide"),
    *(".bif", ".vms", ".vmu", ".dcm", ".czi"),
}
MPP_RANGE = (0.05, 20.0)
MAX_ANISOTROPY = 0.05
# Downsamples are ratios of whole pixel counts, so "4" may be 3.9999 or 4.02. A level that is
# coarser than wanted by less than this is still the one that was meant.
LEVEL_TOLERANCE = 0.01
BLOCK_PX = 2048


def check_mpp(value: float, what: str) -> float:
    """Return ``value`` (um per pixel) if a microscope could have made it.

    Raises:
        PixelSizeError: If it is not a number or outside 0.05 to 20 um; ``what`` says whose it is.

    Example:
        >>> check_mpp(0.25, "the slide")
        0.25
    """
    low, high = MPP_RANGE
    if not low <= value <= high:
        raise PixelSizeError(
            f"{what}: a pixel size of {value:g} um is not plausible ({low:g} to {high:g} um). "
            "Give the right one: `--mpp-override` on the command line, `mpp=` in Python."
        )
    return float(value)


class Slide:
    """A whole-slide image; cheap to make, opened when first read, safe to pickle and to fork.

    A slide holds only its path and name. Handles live in a pool of the process that reads, at most
    8 open at a time with one tile cache for all, so many slides and many workers stay within
    bounds.

    Args:
        path: The slide's file. For DICOM, any level's file of the slide.
        mpp: um per level-0 px, where the slide does not say it or says it wrongly.
        slide_id: The slide's name, if it is not the file's stem. DICOM files are named by level:
            the folder's name is a better one.

    Raises:
        PixelSizeError: If ``mpp`` is given and not plausible.

    Example:
        >>> slide = Slide("slides/case-7.svs", mpp=0.25)
        >>> slide.slide_id, slide.mpp
        ('case-7', 0.25)
    """

    def __init__(
        self, path: str | Path, mpp: float | None = None, *, slide_id: str | None = None
    ) -> None:
        self.path = Path(path)
        self.slide_id = self.path.stem if slide_id is None else slide_id
        self.mpp_override = None if mpp is None else check_mpp(mpp, f"{path}")

    def absolute(self) -> "Slide":
        """The same slide by its whole path, which means the same in any folder."""
        return Slide(self.path.absolute(), self.mpp_override, slide_id=self.slide_id)

    @property
    def mpp(self) -> float:
        """The um per level-0 px: the override, else what the slide says.

        Raises:
            PixelSizeError: If the slide says nothing, or something that cannot be.
        """
        if self.mpp_override is not None:
            return self.mpp_override
        return _pixel_size(open_slide(self.path).stated_mpp, self.path)

    @property
    def dimensions(self) -> tuple[int, int]:
        """Width and height, level-0 px."""
        return self.level_dimensions[0]

    @property
    def scanned(self) -> tuple[int, int, int, int]:
        """Left, top, width and height of the scanned area, level-0 px: the whole slide, mostly.

        Slides of some scanners (MRXS, SCN) are larger than what was scanned. QuPath crops them, and
        counts from the corner of this area.
        """
        bounds = open_slide(self.path).bounds
        return (0, 0, *self.dimensions) if bounds is None else bounds

    @property
    def level_dimensions(self) -> tuple[tuple[int, int], ...]:
        """Width and height of each level, px of that level."""
        return open_slide(self.path).level_dimensions

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        """How many level-0 px a pixel of each level spans, the mean of both axes.

        Rarely whole numbers; pixels are read by the scale of each axis.
        """
        return open_slide(self.path).level_downsamples

    def read(self, x: int, y: int, size_px: int, mpp: float) -> NDArray[np.uint8]:
        """Read a square at a pixel size.

        If a level has this pixel size, so nearly that the far edge is off by at most half a pixel,
        its pixels are returned as they are. Otherwise the next finer level is resampled (Pillow's
        bicubic, with antialiasing). What lies outside the slide, or was not scanned, has the
        slide's background colour, white if it names none.

        Args:
            x: Left edge, level-0 px.
            y: Top edge, level-0 px.
            size_px: Side of the square, in pixels of ``mpp``.
            mpp: Wanted um per pixel. Finer than the slide's own means upsampling.

        Returns:
            RGB, shape ``(size_px, size_px, 3)``, ``uint8``.

        Raises:
            SlideError: If the slide cannot be opened.
            TileReadError: If the pixels cannot be decoded. Other tiles may still be fine: the
                slide is opened anew for the next one.
            ConfigError: If ``size_px`` or ``mpp`` is not above 0.
        """
        if not (size_px >= 1 and 0 < mpp < math.inf):
            raise ConfigError(f"A tile of {size_px} px at {mpp:g} um a pixel cannot be read.")
        wanted = mpp / self.mpp
        level, scale = self._level_for(wanted)
        width, height = (size_px * wanted / one for one in scale)
        if max(abs(width - size_px), abs(height - size_px)) <= 0.5:
            return read_level(self.path, level, (x, y), (size_px, size_px))
        whole = math.ceil(width), math.ceil(height)
        region = Image.fromarray(read_level(self.path, level, (x, y), whole))
        tile = region.resize(
            (size_px, size_px), Image.Resampling.BICUBIC, box=(0.0, 0.0, width, height)
        )
        return np.array(tile)

    def _level_for(self, downsample: float) -> tuple[int, tuple[float, float]]:
        """The level to read for a downsample, and how many level-0 px its pixels are wide and high.

        It is chosen by the slide's longer side, whose scale is known best.
        """
        scales = open_slide(self.path).level_scales
        longer = int(self.dimensions[1] > self.dimensions[0])
        level = best_level(tuple(scale[longer] for scale in scales), downsample)
        return level, scales[level]

    def thumbnail(
        self, max_px: int = 1024, *, mpp: float | None = None
    ) -> tuple[NDArray[np.uint8], float]:
        """The whole slide, small.

        Args:
            max_px: The longer side is at most so many pixels, unless ``mpp`` is given.
            mpp: Wanted um per pixel; never finer than the slide's own.

        Returns:
            RGB of shape ``(h, w, 3)``, and its um per pixel. Pixel (row, column) of it spans the
            level-0 px from ``column * d`` and ``row * d`` on, where ``d`` is its um per pixel over
            the slide's; less than one pixel is cut off at the right and the bottom.

        Raises:
            SlideError: If the slide cannot be opened or read.
        """
        if mpp is not None:
            downsample = max(1.0, mpp / self.mpp)
        else:
            downsample = max(1.0, max(self.dimensions) / max_px)
        return self._overview(downsample), self.mpp * downsample

    def _overview(self, downsample: float) -> NDArray[np.uint8]:
        """The slide downsampled, read block by block: a slide may lack small levels."""
        level, scale = self._level_for(downsample)
        across, down = (downsample / one for one in scale)  # px of the level for one of the result
        width, height = (max(1, int(side / downsample + 1e-9)) for side in self.dimensions)
        out = np.empty((height, width, 3), np.uint8)
        step = max(1, int(BLOCK_PX / max(across, down)))
        for top in range(0, height, step):
            for left in range(0, width, step):
                w, h = min(step, width - left), min(step, height - top)
                # Whole level-0 px for the corner; the rest of a pixel goes into the box.
                corner = (int(left * downsample), int(top * downsample))
                dx = (left * downsample - corner[0]) / scale[0]
                dy = (top * downsample - corner[1]) / scale[1]
                box = (dx, dy, dx + w * across, dy + h * down)
                size = (max(1, math.ceil(box[2] - 1e-6)), max(1, math.ceil(box[3] - 1e-6)))
                box = (dx, dy, min(box[2], size[0]), min(box[3], size[1]))
                region = Image.fromarray(read_level(self.path, level, corner, size))
                block = region.resize((w, h), Image.Resampling.BOX, box=box)
                out[top : top + h, left : left + w] = np.asarray(block)
        return out

    def __repr__(self) -> str:
        override = "" if self.mpp_override is None else f", mpp={self.mpp_override:g}"
        return f"Slide({str(self.path)!r}{override})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the facts and a thumbnail."""
        name = html.escape(self.path.name)
        try:
            width, height = self.dimensions
            small = self._overview(max(1.0, max(width, height) / 320))
            try:
                size = f"{self.mpp:.4g} um per px"
            except PixelSizeError:
                size = "pixel size unknown"
        except SlideError as error:
            return f"<p><b>{name}</b>: {html.escape(str(error))}</p>"
        buffer = io.BytesIO()
        Image.fromarray(small).save(buffer, "PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        levels = ", ".join(f"{downsample:.4g}" for downsample in self.level_downsamples)
        return (
            f"<p><b>{name}</b>: {width} x {height} px, {size}, downsamples {levels}</p>"
            f'<img alt="Thumbnail of {name}" src="data:image/png;base64,{data}">'
        )


def best_level(downsamples: tuple[float, ...], wanted: float) -> int:
    """The coarsest level that is still fine enough; 0 if none is.

    Example:
        >>> best_level((1.0, 3.9999, 16.02), 4.0), best_level((1.0, 4.0001, 16.02), 16.0)
        (1, 2)
        >>> best_level((1.0, 4.0), 3.0), best_level((1.0, 4.0), 0.5)
        (0, 0)
    """
    fine = [
        level
        for level, downsample in enumerate(downsamples)
        if downsample <= wanted * (1 + LEVEL_TOLERANCE)
    ]
    return max(fine, default=0)


def _pixel_size(stated: tuple[str | None, str | None], path: Path) -> float:
    remedy = (
        "Give it: `--mpp-override` on the command line, `mpp=` in Python (um per level-0 px; "
        "about 0.25 for a 40x scan, 0.5 for 20x)."
    )
    if stated[0] is None or stated[1] is None:
        raise PixelSizeError(f"The slide {path} does not say its pixel size. {remedy}")
    try:
        x, y = float(stated[0]), float(stated[1])
    except ValueError as error:
        raise PixelSizeError(
            f"The slide {path} says that its pixel size is {stated[0]!r}. {remedy}"
        ) from error
    for value in (x, y):
        check_mpp(value, f"The slide {path}")
    if abs(x - y) > MAX_ANISOTROPY * min(x, y):
        raise PixelSizeError(
            f"The pixels of the slide {path} are {x:g} um wide and {y:g} um high; sslpath reads "
            f"square pixels only. If that is a mistake in the file, override it. {remedy}"
        )
    return (x + y) / 2
