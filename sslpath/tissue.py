"""Where the tissue is, on a thumbnail of a haematoxylin and eosin (H&E) slide.

The mask works on optical density: light absorbed, relative to the glass of this very slide.

- H&E absorbs green most; glass, dust and grey shadows absorb all colours alike. What absorbs more
  green than the mean of red and blue is stained, however pale.
- Tissue has texture, a smear of eosin on the glass has none: what is only faintly stained counts
  if it is textured.
- Fat is empty but for thin walls: these are looked for, and holes of the size of fat cells filled.
- Ink of a pen is broad, and darker than tissue or of a colour that H&E lacks: green ink absorbs
  more red than green, blue ink hardly any blue beside red, red ink hardly any red but almost as
  much blue as green, black ink all colours alike.

The thresholds were set by eye on five real slides and sections of four laboratories.

But: it is made for H&E; and ink of the very colour of a stain, purple or magenta, is kept, as navy
blue ink is on some slides.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Value = TypeVar("Value", bound=np.generic)

# Optical densities (natural logarithm).
FAINT, STRONG, TEXTURE, WALL, DARK = 0.02, 0.15, 0.025, 0.015, 1.4
# Lengths and areas on the slide.
SMOOTH_UM, WINDOW_UM, CLOSE_UM = 8.0, 56.0, 32.0
INK_SMOOTH_UM, INK_WIDTH_UM, INK_MARGIN_UM = 16.0, 80.0, 40.0
HOLE_UM2, SPECK_UM2 = 30_000.0, 10_000.0
REACH_UM = 64.0  # how far from a pixel the farthest is that its stain, walls and ink depend on
BAND_PX, THREADS = 256, 4


def tissue_mask(thumbnail: NDArray[np.uint8], mpp: float) -> NDArray[np.bool_]:
    """Find tissue, pale and fatty tissue too, but not glass and pen.

    Args:
        thumbnail: RGB, shape ``(h, w, 3)``.
        mpp: um per pixel of the thumbnail; about 8 is best, much coarser loses texture.

    Returns:
        Shape ``(h, w)``, true on tissue.

    Example:
        >>> image = np.full((64, 64, 3), 245, np.uint8)
        >>> image[16:48, 16:48] = (210, 130, 190)
        >>> bool(tissue_mask(image, 8.0)[32, 32]), bool(tissue_mask(image, 8.0)[4, 4])
        (True, False)
    """
    found, inky = _look(thumbnail, mpp)
    ink = _strokes(inky, mpp)
    mask = _close(found & ~ink, _pixels(CLOSE_UM, mpp))
    mask = _without_small_holes(mask, HOLE_UM2 / mpp**2)
    return _without_small(mask & ~ink, SPECK_UM2 / mpp**2)


def _look(thumbnail: NDArray[np.uint8], mpp: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where stain is, or walls of fat cells; and where a pixel has a colour of ink.

    Band by band, which takes less memory and time; each sees as much of its neighbours as matters.
    """
    glass, margin = glass_colour(thumbnail), math.ceil(REACH_UM / mpp) + 4
    found, inky = np.empty((2, *thumbnail.shape[:2]), bool)

    def look(top: int) -> None:
        first = max(0, top - margin)
        density = optical_density(thumbnail[first : top + BAND_PX + margin], glass)
        band, own = slice(top, top + BAND_PX), slice(top - first, top - first + BAND_PX)
        found[band] = (_stained(density, mpp) | _walls(density, mpp))[own]
        inky[band] = _inky(density, mpp)[own]

    # Threads, for NumPy and SciPy let each other go on.
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(look, range(0, len(thumbnail), BAND_PX)))
    return found, inky


def _stained(density: NDArray[np.float32], mpp: float) -> NDArray[np.bool_]:
    """Where stain is strong, or faint but textured."""
    smooth = _smooth(_planes(density), SMOOTH_UM / mpp)
    stain = _stain(smooth)
    texture = _local_spread(smooth[1], _pixels(WINDOW_UM, mpp))
    return np.asarray((stain > STRONG) | ((stain > FAINT) & (texture > TEXTURE)))


def _walls(density: NDArray[np.float32], mpp: float) -> NDArray[np.bool_]:
    """Where walls of fat cells cross the glass: fine lines, thinner than a pixel, of stain."""
    width, planes = _pixels(WINDOW_UM, mpp), _planes(density)
    texture = _local_spread(planes[1], width)
    coloured = _local_spread(_stain(planes), width)
    near = (texture > WALL) & (coloured > WALL / 3) & (coloured > texture / 5)
    # A window sees a wall from half its width away: step back by as much.
    return np.asarray(ndimage.minimum_filter(near, width, mode="nearest"))


def _stain(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Absorption of green beyond the mean of red and blue: zero for all that is grey."""
    red, green, blue = planes
    return np.asarray(green - (red + blue) / 2)


def optical_density(
    image: NDArray[np.uint8], glass: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Light absorbed by each pixel relative to the glass, ``-ln(I / glass)``, at least 0.

    Shape ``(h, w, 3)`` as the image. The glass is that of :func:`glass_colour` unless given.
    """
    light = np.maximum(_planes(image), 1).astype(np.float32)
    light /= (glass_colour(image) if glass is None else glass)[:, None, None]
    density = np.negative(np.log(light, out=light), out=light)
    return np.moveaxis(np.maximum(density, 0, out=density), 0, -1)


def glass_colour(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The colour of empty glass, shape ``(3,)``: the median of what is bright and smooth.

    Pure white is passed over if there is anything else, for it fills what was not scanned. Where
    nothing is bright and smooth, all is tissue, and its brightest gaps have to do.
    """
    planes = _planes(image)
    spread = ndimage.maximum_filter(planes[1], 5) - ndimage.minimum_filter(planes[1], 5)
    darkest = planes.min(axis=0)
    bright = (spread < 12) & (darkest > 150)
    for candidates in (bright & (darkest < 254), bright):
        if candidates.mean() > 0.01:
            return np.asarray(np.median(planes[:, candidates], axis=1), np.float32)
    return np.asarray(np.maximum(np.percentile(image, 99.5, axis=(0, 1)), 220), np.float32)


def ink_mask(density: NDArray[np.float32], mpp: float) -> NDArray[np.bool_]:
    """Where a pen has drawn, with a margin; strokes nowhere as broad as 80 um are passed over.

    Args:
        density: Optical density, shape ``(h, w, 3)``.
        mpp: um per pixel.
    """
    return _strokes(_inky(density, mpp), mpp)


def _inky(density: NDArray[np.float32], mpp: float) -> NDArray[np.bool_]:
    """Where the colour is one of ink."""
    smooth = _smooth(_planes(density), INK_SMOOTH_UM / mpp)
    red, green, blue = smooth
    least, most = smooth.min(axis=0), smooth.max(axis=0)
    green_ink = (red > 0.25) & (red > 1.25 * green)
    blue_ink = (red > 0.4) & (red > 0.95 * green) & (blue < 0.4 * red)
    red_ink = (green > 0.6) & (red < 0.3 * green) & (blue > 0.7 * green)
    black_ink = (least > 0.7) & (least > 0.7 * most)
    dark = (red + green + blue) / 3
    dark_ink = (dark > DARK) | ((dark > 0.8 * DARK) & (red > green))
    return np.asarray(green_ink | blue_ink | red_ink | black_ink | dark_ink)


def _strokes(ink: NDArray[np.bool_], mpp: float) -> NDArray[np.bool_]:
    """The strokes of a pen in what has its colour, with a margin."""
    if not ink.any():
        return ink
    # A stroke is broad somewhere; its thin ends are kept because they hang together with that.
    broad = ndimage.minimum_filter(ink, _pixels(INK_WIDTH_UM, mpp), mode="nearest")
    labels, count = ndimage.label(ink)
    stroke = np.zeros(count + 1, bool)
    stroke[np.unique(labels[broad])] = True
    return np.asarray(ndimage.maximum_filter(stroke[labels], 2 * _pixels(INK_MARGIN_UM, mpp) + 1))


def tissue_fraction(
    mask: NDArray[np.bool_],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    size: float,
) -> NDArray[np.float32]:
    """The fraction of squares that is tissue, exact also where they cut through pixels.

    Args:
        mask: Shape ``(h, w)``.
        x: Left edges in pixels of the mask, shape ``(n,)``; need not be whole.
        y: Top edges, likewise.
        size: Side of the squares in pixels of the mask.

    Returns:
        Shape ``(n,)``, 0 to 1. What lies outside the mask is not tissue.

    Example:
        >>> mask = np.array([[True, False]])
        >>> tissue_fraction(mask, np.array([0.0, 0.5, 1.0]), np.zeros(3), 1.0)
        array([1. , 0.5, 0. ], dtype=float32)
    """
    # Sums over the rectangle from the origin to each pixel corner; between corners such a sum is
    # bilinear, so four look-ups give any square, whole or not.
    sums = np.pad(mask.cumsum(0, dtype=np.float64).cumsum(1), ((1, 0), (1, 0)))

    def upto(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        inside = [np.clip(y, 0, mask.shape[0]), np.clip(x, 0, mask.shape[1])]
        return np.asarray(ndimage.map_coordinates(sums, inside, order=1))

    right, bottom = x + size, y + size
    total = upto(right, bottom) - upto(x, bottom) - upto(right, y) + upto(x, y)
    return np.clip(total / size**2, 0.0, 1.0).astype(np.float32)


def _pixels(length_um: float, mpp: float) -> int:
    """The odd number of pixels, at least 3, nearest to a length."""
    return max(3, 2 * round((length_um / mpp - 1) / 2) + 1)


def _planes(image: NDArray[Value]) -> NDArray[Value]:
    """Colour by colour, ``(3, h, w)``, as NumPy and SciPy are quickest with."""
    return np.ascontiguousarray(np.moveaxis(image, -1, 0))


def _smooth(planes: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Each colour blurred by a Gaussian."""
    smooth = np.empty_like(planes)
    for plane, blurred in zip(planes, smooth, strict=True):
        ndimage.gaussian_filter(plane, sigma, output=blurred)
    return smooth


def _local_spread(values: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Standard deviation in a square window."""
    mean = ndimage.uniform_filter(values, width)
    variance = ndimage.uniform_filter(values**2, width)
    variance -= np.square(mean, out=mean)
    return np.asarray(np.sqrt(np.maximum(variance, 0, out=variance), out=variance))


def _close(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Fill gaps narrower than ``width``; the surroundings of the image count as glass."""
    wide = ndimage.maximum_filter(np.pad(mask, width), width)
    return np.asarray(ndimage.minimum_filter(wide, width)[width:-width, width:-width])


def _without_small(mask: NDArray[np.bool_], area_px: float) -> NDArray[np.bool_]:
    """The mask less its connected parts of fewer than ``area_px`` pixels."""
    labels, count = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    keep = sizes >= area_px
    keep[0] = False
    return np.asarray(keep[labels])


def _without_small_holes(mask: NDArray[np.bool_], area_px: float) -> NDArray[np.bool_]:
    """The mask with holes of fewer than ``area_px`` pixels filled; a gap at the edge is none."""
    gaps = np.pad(~mask, 1, constant_values=True)
    labels, _ = ndimage.label(gaps)
    large = np.bincount(labels.ravel()) >= area_px
    large[labels[0, 0]] = True  # the surroundings, joined with the gaps at the edge
    return np.asarray((~large[labels] | ~gaps)[1:-1, 1:-1])
