"""Solutions to the exercises of the chapter on training; the chapter takes its stubs from here."""

# %% 5.1
from math import cos, pi


def rate(step, steps, warm, peak):
    """The learning rate of a step."""
    # solution
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (1 + cos(pi * (step - warm) / (steps - warm))) / 2
    # end


# %% 5.2
def memory_mb(weights, bits=32):
    """Megabytes for the weights, their gradients and AdamW's two running means."""
    # solution
    return 4 * weights * bits / 8 / 1e6
    # end


# %% 5.3
def collapsed(log):
    """Whether the descriptors at the end of a run carry nothing."""
    # solution
    last = log[-1]
    return last["spread"] < 0.05 or last["effective_rank"] < 1.5
    # end


# %% 5.4
def undisturbed(config, reads):
    """Whether a run that was pulled out after some reads ends with the weights of `whole_run`."""
    # solution
    folder = Path(tempfile.mkdtemp(dir=work)) / "run"
    try:
        source = PulledOut(data.source, reads)
        train(data.tiles, config, model, folder, source=source, **given)
    except KeyboardInterrupt:
        pass
    network = train(data.tiles, config, model, folder, source=data.source, **given)
    one, other = network.state_dict(), whole_run.state_dict()
    return all(torch.equal(one[key], other[key]) for key in other)
    # end


# %% 5.5
def fast():
    """Settings of a head that learns in 20 steps."""
    # solution
    return {"lr": 1e-3, "warmup": 0.2}
    # end
