"""Solutions to the exercises on the descriptor space; the chapter takes its stubs from here."""


# %% 6.1
def own_chance(slides):
    """Chance that a random other tile is from a tile's own slide."""
    # solution
    _, which, counts = np.unique(slides, return_inverse=True, return_counts=True)
    return ((counts[which] - 1) / (len(slides) - 1)).mean()
    # end


# %% 6.2
def directions(x, share=0.9):
    """How many principal directions hold this share of the variance, for x of shape (n, d)."""
    # solution
    variances = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2
    return int((np.cumsum(variances) < share * variances.sum()).sum()) + 1
    # end


# %% 6.3
def guess(known, slides, asked):
    """The slide with the nearest mean descriptor, for each row of asked."""
    # solution
    names = np.unique(slides)
    means = np.stack([known[slides == name].mean(axis=0) for name in names])
    squared = (means**2).sum(axis=1) - 2 * asked @ means.T  # the asked row's own length is left out
    return names[squared.argmin(axis=1)]
    # end


# %% 6.4
from sslpath.retrieval import evaluate


def precision_of(d):
    """P@10 of tumour retrieval with descriptors d of the test tiles."""
    rows = evaluate(unseen, {"d": d}, near_um=data.near_um, far_um=data.far_um, resamples=10)
    return next(r["value"] for r in rows if (r["method"], r["metric"]) == ("d", "tumour_p_at_10"))


def without_slide(d, slides):
    """Descriptors less the mean of their slide, at unit length."""
    # solution
    # The mean of a slide holds its tissue, too: tumour is subtracted along with the stain.
    return unit_length(d - pd.DataFrame(d).groupby(slides).transform("mean").to_numpy())
    # end


outcome = {}  # name: (own slide before, after, P@10 before, after)
# solution
for name, d in descriptors.items():
    numbers = []
    for version in (d, without_slide(d, slide)):
        anywhere, _ = neighbours(version, version, tile, tile)
        numbers.append(((slide[anywhere] == slide[:, None]).mean(), precision_of(version)))
    (own_before, p_before), (own_after, p_after) = numbers
    outcome[name] = (own_before, own_after, p_before, p_after)
# end
