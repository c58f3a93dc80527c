"""Where the tissue is, on a thumbnail of a haematoxylin and eosin (H&E) slide.

The mask works on optical density, light absorbed relative to the glass of this very slide, so it
does not depend on how bright the scanner is:

- H&E absorbs green most, glass and grey shadows absorb all colours alike: "tissue" is what absorbs
  more green than the mean of red and blue, however pale;
- fat is empty but for thin walls: holes of the size of fat cells are filled;
- pen ink is what H&E cannot be: green and blue ink absorb more red than green, red ink absorbs as
  much blue as green and hardly any red, black ink absorbs everything.

But: it is made for H&E. Other stains need another mask.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

MIN_STAIN = 0.025
SMOOTH_UM = 8.0
CLOSE_UM = 24.0
HOLE_UM2 = 20_000.0
SPECK_UM2 = 5_000.0
PEN_MARGIN_UM = 24.0


def tissue_mask(thumbnail: NDArray[np.uint8], mpp: float) -> NDArray[np.bool_]:
    """Find tissue, pale and fatty tissue too, but not glass and pen.

    Args:
        thumbnail: RGB, shape ``(h, w, 3)``.
        mpp: um per pixel of the thumbnail; 4 to 16 is best.

    Returns:
        Shape ``(h, w)``, true on tissue.
    """
    density = optical_density(thumbnail)
    smooth = ndimage.gaussian_filter(density, (SMOOTH_UM / mpp, SMOOTH_UM / mpp, 0))
    red, green, blue = np.moveaxis(smooth, -1, 0)
    stain = green - (red + blue) / 2
    mask = np.asarray(stain > MIN_STAIN)
    pen = pen_mask(smooth)
    mask &= ~pen
    steps = max(1, round(CLOSE_UM / mpp))
    mask = ndimage.binary_closing(np.pad(mask, steps), _disc(steps))[steps:-steps, steps:-steps]
    mask = ~_without_small(~mask, HOLE_UM2 / mpp**2)
    mask = _without_small(mask & ~pen, SPECK_UM2 / mpp**2)
    return np.asarray(mask)


def pen_mask(density: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where the colour is that of ink."""
    red, green, blue = np.moveaxis(density, -1, 0)
    cold = (red > 1.15 * green) & (red > 0.25)
    return np.asarray(cold)


def optical_density(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Absorbance of each pixel relative to the glass, shape ``(h, w, 3)``."""
    return -np.log(np.maximum(image, 1) / glass_colour(image)).astype(np.float32)


def glass_colour(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The colour of empty glass."""
    return np.array([240.0, 240, 240], np.float32)


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


def _disc(radius: int) -> NDArray[np.bool_]:
    across = np.arange(-radius, radius + 1)
    return np.asarray(across[:, None] ** 2 + across**2 <= (radius + 0.5) ** 2)


def _without_small(mask: NDArray[np.bool_], area_px: float) -> NDArray[np.bool_]:
    """The mask less its connected parts of fewer than ``area_px`` pixels."""
    labels, count = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    keep = sizes >= area_px
    keep[0] = False
    return np.asarray(keep[labels])
