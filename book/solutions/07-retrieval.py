"""Solutions to the exercises on retrieval; the chapter takes its stubs from here."""


# %% 7.1
def gigabytes(tiles, numbers, bytes_each=4):
    """Memory of descriptors in GB of 10**9 bytes."""
    # solution
    # 8 GB hold 15.6 million tiles at 128 numbers, not quite one million at 2048.
    return tiles * numbers * bytes_each / 1e9
    # end


# %% 7.2
def precision(unit, labels, patients, k):
    """Mean share of tumour among the k nearest of other patients, over tumour tiles."""
    # solution
    similar = unit @ unit.T
    similar[patients[:, None] == patients] = -np.inf
    nearest = np.argsort(-similar, axis=1)[:, :k]
    return labels[nearest][labels == 1].mean()
    # end


# %% 7.3
def addr(unit, anchor, near, far):
    """Mean far distance over mean near distance, all pairs together."""
    # solution
    close = np.linalg.norm(unit[anchor] - unit[near], axis=1)
    apart = np.linalg.norm(unit[anchor] - unit[far], axis=1)
    return apart.mean() / close.mean()
    # end


def addr_by_slide(unit, anchor, near, far, slides):
    """The median over slides of the ratio of each."""
    # solution
    own = [slides == name for name in np.unique(slides)]
    return np.median([addr(unit, anchor[s], near[s], far[s]) for s in own])
    # end


# %% 7.4
def leaks(unit, vote):
    """How much too good a metric is if only the query tile is left out."""
    # solution
    values = []
    for group in (tile, patients):
        hits, _ = neighbours(unit, unit, group, group)
        values.append(vote(labels, labels[hits], patients).value)
    return values[0] - values[1]
    # end


# %% 7.5
def losses(n):
    """The n tumour queries at which ImageNet's P@10 exceeds ours by most, worst first."""
    # solution
    ours, theirs = (labels[answers[name]].mean(axis=1) for name in ("spatial", "imagenet"))
    queries = np.flatnonzero(labels == 1)
    order = np.argsort(-(theirs - ours)[queries], kind="stable")
    return queries[order[:n]]
    # end


worst_slide = None
# solution
worst_slide = unseen["slide_id"].iloc[known[losses(50)]].mode().iloc[0]
# end
