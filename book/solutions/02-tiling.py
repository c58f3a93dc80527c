"""Solutions to the exercises on tiling; the chapter takes its stubs from here."""


# %% 2.1
def count_tiles(width, height, side):
    """How many whole tiles fit."""
    # solution
    return (width // side) * (height // side)
    # end


# %% 2.2
def tissue_share(mask, x, y, side, scale):
    """Share of tissue in a tile."""
    # solution
    left, right, top, bottom = (round(v / scale) for v in (x, x + side, y, y + side))
    return mask[top:bottom, left:right].mean()
    # end


# %% 2.3
import shapely


def label(polygon, x, y, side, share=0.5):
    """1 inside, 0 outside, None between."""
    # solution
    tile = shapely.box(x, y, x + side, y + side)
    inside = tile.intersection(polygon).area / tile.area
    if inside >= share:
        return 1
    return 0 if inside == 0 else None
    # end


# %% 2.4
def kept_by(thresholds):
    """How many tiles remain at each threshold."""
    # solution
    every = tile_slide(slide, mpp=0.5, tile_px=112, min_tissue=0)
    return [int((every["tissue"] >= t).sum()) for t in thresholds]
    # end
