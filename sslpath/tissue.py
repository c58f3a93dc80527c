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

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Pixel = TypeVar("Pixel", bound=np.generic)

# Optical densities (natural logarithm).
FAINT, STRONG, TEXTURE, WALL, DARK = 0.02, 0.15, 0.025, 0.015, 1.4
# Lengths and areas on the slide.
SMOOTH_UM, WINDOW_UM, CLOSE_UM = 8.0, 56.0, 32.0
INK_SMOOTH_UM, INK_WIDTH_UM, INK_MARGIN_UM = 16.0, 80.0, 40.0
HOLE_UM2, SPECK_UM2 = 30_000.0, 10_000.0


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
    density = optical_density(thumbnail)
    ink = ink_mask(density, mpp)
    mask = (_stained(density, mpp) | _walls(density, mpp)) & ~ink
    mask = _without_small_holes(_close(mask, _pixels(CLOSE_UM, mpp)), HOLE_UM2 / mpp**2)
    return _without_small(mask & ~ink, SPECK_UM2 / mpp**2)


def _stained(density: NDArray[np.float32], mpp: float) -> NDArray[np.bool_]:
    """Where stain is strong, or faint but textured."""
    smooth = ndimage.gaussian_filter(density, (SMOOTH_UM / mpp, SMOOTH_UM / mpp, 0))
    stain = _stain(smooth)
    texture = _local_spread(smooth[..., 1], _pixels(WINDOW_UM, mpp))
    return np.asarray((stain > STRONG) | ((stain > FAINT) & (texture > TEXTURE)))


def _walls(density: NDArray[np.float32], mpp: float) -> NDArray[np.bool_]:
    """Where walls of fat cells cross the glass: fine lines, thinner than a pixel, of stain."""
    width = _pixels(WINDOW_UM, mpp)
    texture = _local_spread(density[..., 1], width)
    coloured = _local_spread(_stain(density), width)
    near = (texture > WALL) & (coloured > WALL / 3) & (coloured > texture / 5)
    # A window sees a wall from half its width away: step back by as much.
    return np.asarray(ndimage.minimum_filter(near, width, mode="nearest"))


def _stain(density: NDArray[np.float32]) -> NDArray[np.float32]:
    """Absorption of green beyond the mean of red and blue: zero for all that is grey."""
    red, green, blue = np.moveaxis(density, -1, 0)
    return np.asarray(green - (red + blue) / 2)


def optical_density(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Light absorbed by each pixel relative to the glass, ``-ln(I / glass)``, at least 0.

    Shape ``(h, w, 3)`` as the image.
    """
    light = np.maximum(image, 1).astype(np.float32) / glass_colour(image)
    return np.asarray(np.maximum(-np.log(light), 0))


def glass_colour(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The colour of empty glass, shape ``(3,)``: the median of what is bright and smooth.

    Pure white is passed over if there is anything else, for it fills what was not scanned. Where
    nothing is bright and smooth, all is tissue, and its brightest gaps have to do.
    """
    green = image[..., 1]
    spread = ndimage.maximum_filter(green, 5) - ndimage.minimum_filter(green, 5)
    darkest = _least(image)
    bright = (spread < 12) & (darkest > 150)
    for candidates in (bright & (darkest < 254), bright):
        if candidates.mean() > 0.01:
            return np.asarray(np.median(image[candidates], axis=0), np.float32)
    return np.asarray(np.maximum(np.percentile(image, 99.5, axis=(0, 1)), 220), np.float32)


def ink_mask(density: NDArray[np.float32], mpp: float) -> NDArray[np.bool_]:
    """Where a pen has drawn, with a margin; strokes nowhere as broad as 80 um are passed over.

    Args:
        density: Optical density, shape ``(h, w, 3)``.
        mpp: um per pixel.
    """
    sigma = INK_SMOOTH_UM / mpp
    smooth = ndimage.gaussian_filter(density, (sigma, sigma, 0))
    red, green, blue = np.moveaxis(smooth, -1, 0)
    least, most = _least(smooth), -_least(-smooth)
    green_ink = (red > 0.25) & (red > 1.25 * green)
    blue_ink = (red > 0.4) & (red > 0.95 * green) & (blue < 0.4 * red)
    red_ink = (green > 0.6) & (red < 0.3 * green) & (blue > 0.7 * green)
    black_ink = (least > 0.7) & (least > 0.7 * most)
    dark = (red + green + blue) / 3
    dark_ink = (dark > DARK) | ((dark > 0.8 * DARK) & (red > green))
    ink = green_ink | blue_ink | red_ink | black_ink | dark_ink
    if not ink.any():
        return np.asarray(ink)
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


def _least(image: NDArray[Pixel]) -> NDArray[Pixel]:
    """The least of the three channels; far quicker than ``image.min(-1)``."""
    red, green, blue = np.moveaxis(image, -1, 0)
    return np.asarray(np.minimum(np.minimum(red, green), blue))


def _local_spread(values: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Standard deviation in a square window."""
    mean = ndimage.uniform_filter(values, width)
    variance = ndimage.uniform_filter(values**2, width) - mean**2
    return np.asarray(np.sqrt(np.maximum(variance, 0)))


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
