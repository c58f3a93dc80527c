"""Images that OpenSlide refuses, such as JPEG, PNG and OME-TIFF, to slides that it opens.

The slide is a tiled pyramidal TIFF with JPEG tiles and its pixel size in the resolution tags.
libvips streams the image, so it need not fit in memory.

But: one plane of colour only. Fluorescence and stacks are refused rather than mangled. Colour of
16 bits becomes colour of 8 if it uses the range of 16.
"""

from pathlib import Path

import pyvips

from sslpath.errors import ConfigError, SlideError
from sslpath.files import atomic_path
from sslpath.jpeg_colours import is_ycbcr_as_rgb
from sslpath.slides import Slide, check_mpp
from sslpath.tiff_tags import directories_of, oddity, size_of


def convert(
    source_image: str | Path,
    target_tif: str | Path,
    mpp: float,
    *,
    quality: int = 90,
    tile: int = 256,
) -> Slide:
    """Write an image as a slide.

    Args:
        source_image: Any colour image of 8 or 16 bits that libvips reads.
        target_tif: File to write; must end in ``.tif`` or ``.tiff``.
        mpp: um per pixel of the image. Files rarely say it rightly, so it has to be given.
        quality: Of the JPEG tiles, 1 to 100.
        tile: Side of a JPEG tile, a multiple of 16.

    Returns:
        The new slide.

    Raises:
        SlideError: If the image cannot be read to its end, or is no plain colour image.
        PixelSizeError: If ``mpp`` is not plausible.
        ConfigError: If another argument is out of range.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (600, 400), "pink").save(folder / "section.png")
        >>> slide = convert(folder / "section.png", folder / "section.tif", mpp=0.5)
        >>> slide.dimensions, slide.mpp
        ((600, 400), 0.5)
    """
    source, target = Path(source_image), Path(target_tif)
    check_mpp(mpp, f"{source}")
    _check_settings(source, target, quality, tile)
    try:
        image = _as_rgb(source)
        with atomic_path(target) as temporary:
            image.tiffsave(
                str(temporary),
                tile=True,
                tile_width=tile,
                tile_height=tile,
                pyramid=True,
                compression="jpeg",
                Q=quality,
                bigtiff=image.width * image.height * 3 > 1 << 31,
                resunit="cm",
                xres=1000 / mpp,  # libvips counts in pixels per mm whatever the unit written
                yres=1000 / mpp,
                keep="icc",
            )
    except pyvips.Error as error:
        reason = " ".join(str(error).split())
        raise SlideError(
            f"Cannot convert {source}: {reason}. If the image is damaged, copy it again."
        ) from error
    return Slide(target)


def _check_settings(source: Path, target: Path, quality: int, tile: int) -> None:
    if not source.is_file():
        raise SlideError(f"No image at {source}. Check the path.")
    if target.suffix.lower() not in (".tif", ".tiff"):
        raise ConfigError(f"The slide is a TIFF; its name must end in .tif, unlike {target}.")
    if target.exists():
        raise ConfigError(
            f"{target} already exists. Delete it, or choose another name for the slide."
        )
    if not 1 <= quality <= 100:
        raise ConfigError(f"JPEG quality is 1 to 100, not {quality}.")
    if tile < 16 or tile % 16:
        raise ConfigError(f"TIFF needs a tile side that is a multiple of 16 px, not {tile}.")


def _as_rgb(source: Path) -> pyvips.Image:
    """The image as upright 8-bit RGB without alpha, still to be read."""
    found = directories_of(source)
    odd = oddity(found, [size_of(found[0])]) if found else None
    if odd is not None and not odd.curable:
        raise SlideError(f"{source} {odd.what}. Export it as an 8-bit RGB image first.")
    image = _opened(source, access="sequential")
    if (image.get("orientation") if image.get_typeof("orientation") else 1) != 1:
        image = _opened(source).autorot()  # turning needs all pixels at once
    pages = image.get("n-pages") if image.get_typeof("n-pages") else 1
    sizes = [size_of(tags) for tags in found]
    larger = [s for s in sizes if s[0] and s[1] and s[0] * s[1] > image.width * image.height]
    if larger:
        raise SlideError(
            f"{source}: its first image, of {image.width} x {image.height} px, is smaller than "
            f"another one, of {larger[0][0]} x {larger[0][1]} px, and probably its thumbnail. Save "
            "the large one by itself."
        )
    if pages > 1 and not found:
        raise SlideError(
            f"{source} is animated: it has {pages} images. Save one of them by itself."
        )
    if image.interpretation == "rgb16":
        image = _to_8_bits(image, source)
    if image.format != "uchar" or image.bands not in (1, 2, 3, 4):
        raise SlideError(
            f"{source} has {image.bands} channels of type {image.format}; a slide needs 8-bit "
            "colour. Export it as an RGB image first."
        )
    if pages > 1 and image.bands == 1:
        raise SlideError(
            f"{source} is a stack of {pages} single-channel planes, as fluorescence is. Export the "
            "bright-field image as RGB first."
        )
    if is_ycbcr_as_rgb(source):
        image = _from_ycbcr(image)
    if image.hasalpha():
        image = image.flatten(background=255)
    return image if image.interpretation == "srgb" else image.colourspace("srgb")


def _opened(source: Path, **how: str) -> pyvips.Image:
    # Of what it cannot decode, such as an unknown compression, libvips merely warns, and goes on
    # with black.
    return pyvips.Image.new_from_file(str(source), fail_on="warning", **how)


def _to_8_bits(image: pyvips.Image, source: Path) -> pyvips.Image:
    """Colour of 16 bits in 8; refused if its values end far below white, as those of 12 bits do."""
    most = int(_opened(source, access="sequential").max())
    if most < 1 << 15:
        raise SlideError(
            f"{source} has 16 bits a sample and values up to {most:,} of 65,535: it would be dark. "
            "Scale it to the whole range, or export it as an 8-bit RGB image first."
        )
    return image.colourspace("srgb")


def _from_ycbcr(image: pyvips.Image) -> pyvips.Image:
    """Luma and chroma, as in JPEG (ITU-T T.871), to RGB."""
    matrix = pyvips.Image.new_from_array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]])
    rgb = image.linear([1, 1, 1], [0, -128, -128]).recomb(matrix).rint()
    return rgb.cast("uchar").copy(interpretation="srgb")
