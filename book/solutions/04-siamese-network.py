"""Solutions to the exercises of chapter 4; chapters take their stubs from here."""


# %% 4.1
def pushing(descriptors, margin):
    """Share of all pairs that would push if they were far pairs."""
    # solution
    # Any margin clearly below the root of 2; at 1.2 about one pair in a thousand still pushes.
    return (torch.pdist(descriptors) < margin).float().mean().item()
    # end


# %% 4.2
def batch_loss(z, near, far, m):
    """Mean cost of near pairs plus mean cost of far pairs of a batch."""
    # solution
    d = torch.cdist(z, z)
    near_cost, far_cost = d[near] ** 2, torch.clamp(m - d[far], min=0) ** 2
    return near_cost.sum() / max(1, len(near_cost)) + far_cost.sum() / max(1, len(far_cost))
    # end


# %% 4.3
def rest(p, q, m):
    """Distance at which p near pairs and q far pairs balance."""
    # solution
    return q * m / (p + q)
    # end


# %% 4.4
def collapsed(z):
    """Whether descriptors have collapsed to a point or a line."""
    # solution
    x = z - z.mean(axis=0)
    spread = np.sqrt((x**2).sum(axis=1).mean())
    if spread < 0.05:
        return True
    squares = np.linalg.svd(x, compute_uv=False) ** 2
    shares = squares[squares > 0] / squares.sum()
    return bool(np.exp(-(shares * np.log(shares)).sum()) < 1.5)
    # end


# %% 4.5
def with_margin(m):
    """Spread and ratio of far to near distances after 60 steps with margin m."""
    # solution
    # Compare the two numbers over several margins: the spread goes on growing for longer.
    network = data.fit(margin=m, steps=60)
    near_d, far_d = near_and_far_distances(network)
    z = torch.from_numpy(network.encode(data.features)[data.test])
    return collapse(z)["spread"], float(far_d.mean() / near_d.mean())
    # end
