"""Solutions to the exercises of chapter 3; chapters take their stubs from here."""


# %% 3.1
def my_masks(xy, slide, near_um, far_um):
    """Which tiles are near and which are far from each other, two (b, b) arrays."""
    # solution
    difference = xy[:, None] - xy[None]
    distance = np.hypot(difference[..., 0], difference[..., 1])
    same = slide[:, None] == slide[None]
    near = same & (distance <= near_um)
    np.fill_diagonal(near, False)
    return near, same & (distance > far_um)
    # end


# %% 3.2
def expected_pairs(k, n, m):
    """Mean number of near pairs among m of n tiles of which k pairs are near."""
    # solution
    # Both tiles must be drawn: half of the tiles leave about a quarter of the pairs.
    return k * m * (m - 1) / (n * (n - 1))
    # end


# %% 3.3
def widest_near(table, target):
    """Largest near distance for which every bin agrees with at least this probability."""
    # solution
    widest = 0
    for high, agreement in zip(table["high_um"], table["agreement"]):
        if not agreement >= target:
            break
        widest = high
    return widest
    # end


# %% 3.4
def contrast(features, pairs):
    """Mean feature distance of far pairs over that of near pairs."""
    # solution
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    near = np.linalg.norm(unit[pairs.anchor] - unit[pairs.near], axis=1)
    far = np.linalg.norm(unit[pairs.anchor] - unit[pairs.far], axis=1)
    return far.mean() / near.mean()
    # end
