"""Solutions to the exercises on what matters; chapters take their stubs from here."""

# %% 8.1
from dataclasses import asdict


def changed(one, other):
    """Names of the settings in which two configs differ."""
    # solution
    one, other = asdict(one), asdict(other)
    return {name for name in one if one[name] != other[name]}
    # end


# %% 8.2
def paired(a, b):
    """Mean of a - b over seeds, and its standard error."""
    # solution
    # Each alone also holds the luck that a seed brings to both.
    difference = np.asarray(a) - np.asarray(b)
    return difference.mean(), difference.std(ddof=1) / np.sqrt(len(difference))
    # end


# %% 8.3
def flattery(n, sd, rng, repeats=20_000):
    """How much better the best of n equally good settings looks."""
    # solution
    return rng.normal(0, sd, size=(repeats, n)).max(axis=1).mean()
    # end


# %% 8.4
def trial(changes):
    """Difference in P@10 to the base line, on the validation slides, at seed 0."""
    # solution
    name = f"trial {sorted(changes.items())}"
    fit(name, **changes)
    found = measure({"base": fitted["base", 0], name: fitted[name, 0]})
    return next(
        one["value"]
        for one in found
        if (one["method"], one["metric"]) == (f"{name} - base", "tumour_p_at_10")
    )
    # end


mine = {}  # name: {setting: value}
outcome = {}  # name: difference
# solution
mine = {"faster": {"lr": 3e-4}}
outcome = {name: trial(changes) for name, changes in mine.items()}
# end
