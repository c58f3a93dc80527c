"""Solutions to the exercises of the first look; chapters take their stubs from here."""


# %% 0.1
def side_um(tile_px, mpp):
    """Side of a tile in micrometres."""
    # solution
    return tile_px * mpp
    # end


# %% 0.2
def kind(distance_um, near_um, far_um):
    """Which kind of pair two tiles at this distance are."""
    # solution
    if distance_um <= near_um:
        return "near"
    return "far" if distance_um > far_um else "neither"
    # end


# %% 0.3
def precision(positions, labels):
    """Share of tumour among the tiles at these positions."""
    # solution
    return labels[positions].mean()
    # end
