"""Augmentation of tiles: flips, right-angle turns, colour and stain jitter, other scanners.

Each tile of a batch gets its own draw. Turns are by right angles only: tissue has no up or down,
and no pixel is interpolated or padded. Stain jitter acts in optical density, where the amounts of
haematoxylin and eosin add up (Beer-Lambert law), in the fixed basis of Ruifrok and Johnston 2001;
it imitates other staining protocols without estimating the stains of a tile. Zoom, blur and JPEG
imitate other scanners; they are off unless asked for, as in ``ELSEWHERE``.
What this module does not do: crops, elastic deformation, stain estimation.
"""

import math
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sslpath import backbones

# Optical densities of haematoxylin, eosin and DAB (rows) in red, green and blue (columns);
# A. C. Ruifrok and D. A. Johnston, Quantification of histochemical staining, 2001.
HED = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105), (0.268, 0.570, 0.776))
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class Augmentation:
    """How strongly to augment; 0 or False switches a part off.

    The paper is reported, second hand, to use colour jitter, flips and rotation.

    Attributes:
        flip: Mirror half of the tiles.
        rotate: Turn by 0, 90, 180 or 270 degrees.
        brightness: Colours are scaled by a factor in ``1 -+ brightness``.
        contrast: The same for the difference from the tile's mean grey.
        saturation: The same for the difference from each pixel's grey.
        stain: Amounts of the stains are scaled by factors in ``1 -+ stain``.
        stain_shift: Amounts of the stains are shifted by up to this (optical density), less so the
            lighter a pixel is: white stays white.
        zoom: Pixel sizes differ: magnified by ``exp(-zoom)`` to ``exp(zoom)`` about the middle,
            what is then missing at the edge is mirrored.
        blur: Half of the tiles lose focus: a Gaussian of up to this sigma, px.
        jpeg: Half of the tiles are stored as JPEG of a quality from this to 95; 0 stores none.
    """

    flip: bool = True
    rotate: bool = True
    brightness: float = 0.1
    contrast: float = 0.1
    saturation: float = 0.1
    stain: float = 0.2
    stain_shift: float = 0.05
    zoom: float = 0.0
    blur: float = 0.0
    jpeg: int = 0


# A tile as other laboratories stain it and other scanners see it.
ELSEWHERE = Augmentation(stain=0.3, zoom=0.18, blur=1.2, jpeg=25)
NONE = Augmentation(False, False, 0, 0, 0, 0, 0)


def augment(
    images: Tensor,
    generator: torch.Generator,
    settings: Augmentation | None = None,
    *,
    compiled: bool = False,
) -> Tensor:
    """Augment a batch of tiles.

    Args:
        images: uint8, shape ``(b, 3, h, w)``, RGB; square if ``settings.rotate``.
        generator: Source of randomness, on the CPU whatever the device of ``images``.
        settings: Strengths; by default those of :class:`Augmentation`.
        compiled: Whether PyTorch compiles what becomes of colours, so that a GPU goes through the
            pixels fewer times; the same to rounding.

    Returns:
        float32 in 0..1, same shape and device.

    Example:
        >>> images = torch.full((2, 3, 8, 8), 255, dtype=torch.uint8)
        >>> augment(images, torch.Generator().manual_seed(0), Augmentation(brightness=0)).shape
        torch.Size([2, 3, 8, 8])
    """
    settings = settings or Augmentation()
    images = turn(images, generator, flip=settings.flip, rotate=settings.rotate)
    with torch.autocast(images.device.type, enabled=False):  # colours need float32
        floats = images.float().div_(255)
        if settings.zoom:
            floats = magnify(floats, generator, settings.zoom)
        if settings.blur:
            floats = defocus(floats, generator, settings.blur)
        if settings.stain or settings.stain_shift:
            floats = stain_jitter(
                floats, generator, settings.stain, settings.stain_shift, compiled=compiled
            )
        if settings.brightness or settings.contrast or settings.saturation:
            floats = colour_jitter(
                floats, generator, settings.brightness, settings.contrast, settings.saturation,
                compiled=compiled,
            )  # fmt: skip
        return recompress(floats, generator, settings.jpeg) if settings.jpeg else floats


def augment_pixels(
    pixels: NDArray[np.uint8], generator: torch.Generator, settings: Augmentation | None = None
) -> NDArray[np.uint8]:
    """As :func:`augment`, for tiles as they are read: uint8 ``(n, h, w, 3)`` in and out.

    Example:
        >>> tiles = np.full((2, 8, 8, 3), 200, np.uint8)
        >>> augment_pixels(tiles, torch.Generator().manual_seed(0)).dtype
        dtype('uint8')
    """
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    seen = (augment(images, generator, settings) * 255).round().to(torch.uint8)
    return seen.permute(0, 2, 3, 1).numpy()


def turn(images: Tensor, generator: torch.Generator, *, flip: bool, rotate: bool) -> Tensor:
    """Mirror and turn each tile at random: a permutation of its pixels, shape ``(b, 3, h, w)``."""
    turns = torch.randint(4, (len(images),), generator=generator) * rotate
    mirrored = torch.randint(2, (len(images),), generator=generator) * flip
    code = turns + 4 * mirrored
    result = images.clone(memory_format=torch.contiguous_format)
    for k in range(1, 8):
        chosen = (code == k).nonzero()[:, 0]
        if len(chosen):
            chosen = _to_device_of(images, chosen)
            part = images[chosen]
            part = part.flip(-1) if k >= 4 else part
            result[chosen] = torch.rot90(part, k % 4, dims=(-2, -1))
    return result


def magnify(images: Tensor, generator: torch.Generator, limit: float) -> Tensor:
    """Magnify each tile about its middle by ``exp(-limit)`` to ``exp(limit)``, same size."""
    factor = torch.exp(_symmetric(images, generator, limit, 1))[:, 0]
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / factor
    theta = _to_device_of(images, theta)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    # Bicubic: bilinear would blur a tile even where it is hardly magnified.
    seen = F.grid_sample(images, grid, "bicubic", "reflection", align_corners=False)
    return seen.clamp(0, 1)


def defocus(images: Tensor, generator: torch.Generator, limit: float) -> Tensor:
    """Blur half of the tiles by a Gaussian whose sigma is uniform in 0 to ``limit`` px."""
    sigma = torch.rand((len(images), 1), generator=generator) * limit
    sigma = sigma.clamp(min=0.05) * (torch.rand((len(images), 1), generator=generator) < 0.5)
    reach = min(math.ceil(3 * limit), images.shape[-1] - 1, images.shape[-2] - 1)
    at = torch.arange(-reach, reach + 1)
    kernel = torch.where(sigma > 0, torch.exp(-(at**2) / (2 * sigma.clamp(min=1e-3) ** 2)), at == 0)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(3, dim=0)
    kernel = _to_device_of(images, kernel)[:, None]
    b, c, h, w = images.shape
    # Every channel of every tile is a group with a kernel of its own.
    seen = F.pad(images.reshape(1, b * c, h, w), [reach] * 4, "reflect")
    seen = F.conv2d(seen, kernel[..., None], groups=b * c)
    return F.conv2d(seen, kernel[..., None, :], groups=b * c).reshape(b, c, h, w)


def recompress(images: Tensor, generator: torch.Generator, lowest: int) -> Tensor:
    """Store half of the tiles as JPEG of a quality from ``lowest`` to 95, and read them back."""
    quality = torch.randint(lowest, 96, (len(images),), generator=generator).tolist()
    chosen = torch.rand(len(images), generator=generator) < 0.5
    result = images.clone()
    for i in chosen.nonzero().flatten().tolist():
        file = BytesIO()
        pixels = (images[i] * 255).round().to(torch.uint8).permute(1, 2, 0).cpu()
        Image.fromarray(pixels.numpy()).save(file, "JPEG", quality=quality[i])
        seen = torch.from_numpy(np.array(Image.open(file)))
        result[i] = seen.permute(2, 0, 1).to(images.device) / 255
    return result


def stain_jitter(
    images: Tensor,
    generator: torch.Generator,
    strength: float,
    shift: float,
    *,
    compiled: bool = False,
) -> Tensor:
    """Change the amounts of the stains in each tile.

    Args:
        images: Float in 0..1, shape ``(b, 3, h, w)``.
        generator: Source of randomness.
        strength: Amounts are scaled by factors in ``1 -+ strength``, one a tile and stain.
        shift: Amounts are shifted by up to this, weighted by each pixel's darkness.
        compiled: See :func:`augment`.
    """
    basis = F.normalize(torch.tensor(HED), dim=1)
    scale = 1 + _symmetric(images, generator, strength, 3)
    offset = _symmetric(images, generator, shift, 3) @ basis * math.log(10)
    # To amounts, scaled, and back to colours: one matrix a tile. All that follows is per pixel.
    mix = torch.einsum("cs,bs,sd->bdc", torch.linalg.inv(basis), scale, basis)
    given = images, _to_device_of(images, mix), _to_device_of(images, offset)
    return backbones.compiled_for_any_length(_stained, *given) if compiled else _stained(*given)


def _stained(images: Tensor, mix: Tensor, offset: Tensor) -> Tensor:
    """Optical densities times ``mix`` ``(b, 3, 3)``, plus ``offset`` ``(b, 3)`` where it is dark.

    Mostly in place, for on a CPU new memory costs more than the sums.
    """
    light = _mixed(mix, images.clamp(min=1 / 255).log_().flatten(2))
    darkness = images.flatten(2).mean(dim=1, keepdim=True).neg_().add_(1)
    light = _mixed(-offset[:, :, None], darkness, light)
    return light.exp_().clamp_(max=1).view_as(images)


def colour_jitter(
    images: Tensor,
    generator: torch.Generator,
    brightness: float,
    contrast: float,
    saturation: float,
    *,
    compiled: bool = False,
) -> Tensor:
    """Change brightness, contrast and saturation of each tile; floats in 0..1 in and out."""
    b, c, s = (
        1 + _symmetric(images, generator, limit, 1) for limit in (brightness, contrast, saturation)
    )
    # Each change is linear in a pixel's colour, so all three are: one matrix a tile, and a grey.
    luma = torch.tensor(LUMA)
    tint = s[..., None] * torch.eye(3) + (1 - s[..., None]) * luma
    mix, part, luma = (
        _to_device_of(images, drawn) for drawn in ((b * c)[..., None] * tint, b * (1 - c), luma)
    )
    if compiled:
        return backbones.compiled_for_any_length(_coloured, images, mix, part, luma=luma)
    return _coloured(images, mix, part, luma)


def _coloured(images: Tensor, mix: Tensor, part: Tensor, luma: Tensor) -> Tensor:
    """Colours times ``mix`` ``(b, 3, 3)``, and ``part`` ``(b, 1)`` of the tile's mean grey."""
    pixels = images.flatten(2)
    grey = part * (pixels.mean(dim=2) @ luma)[:, None]
    return _mixed(mix, pixels, grey[..., None]).clamp_(0, 1).view_as(images)


def _mixed(matrix: Tensor, colours: Tensor, plus: Tensor | None = None) -> Tensor:
    """Each tile's colours times a matrix of its own, and ``plus``, whose memory may be used."""
    if torch.compiler.is_compiling():  # sums, which are compiled into one with all about them
        mixed = (matrix[..., None] * colours[:, None]).sum(dim=2)
        return mixed if plus is None else mixed + plus
    if plus is None:
        return torch.bmm(matrix, colours)
    if plus.shape[2] == colours.shape[2]:
        return plus.baddbmm_(matrix, colours)
    return torch.baddbmm(plus, matrix, colours)


def _symmetric(images: Tensor, generator: torch.Generator, limit: float, count: int) -> Tensor:
    """Uniform draws in ``-+limit``, shape ``(b, count)``, on the CPU."""
    draw = torch.rand((len(images), count), generator=generator)
    return (2 * draw - 1) * limit


def _to_device_of(images: Tensor, drawn: Tensor) -> Tensor:
    """What was drawn on the CPU, moved without waiting for what a GPU still has to do."""
    return drawn.to(images.device, non_blocking=True)
