"""Solutions to the exercises on whole-slide images; the chapter takes its stubs from here."""


# %% 1.1
def gigabytes(width, height):
    """Memory of an RGB picture, in GB."""
    # solution
    return 3 * width * height / 1e9
    # end


# %% 1.2
def level_for(wanted_mpp, mpp, downsamples):
    """The coarsest level that is not coarser than wanted."""
    # solution
    fine = [i for i, downsample in enumerate(downsamples) if mpp * downsample <= wanted_mpp]
    return max(fine, default=0)
    # end


# %% 1.3
def read_level0(path, x, y, side):
    """A square of level 0, shape (side, side, 3)."""
    # solution
    with OpenSlide(path) as opened:
        return np.asarray(opened.read_region((x, y), 0, (side, side)).convert("RGB"))
    # end


# %% 1.4
def ink(image):
    """Share of pixels that no H&E stain explains."""
    # solution
    red, green, blue = (image[..., i].astype(int) for i in range(3))
    black = image.max(2) < 60
    coloured = (green > red + 25) | ((blue > red + 60) & (green < 120))
    return (black | coloured).mean()
    # end
