"""Figures of the loss: curves of the loss's own, springs that obey the margin, points apart."""

import numpy as np
import pytest
import torch
from matplotlib.patches import FancyArrowPatch

from sslpath.errors import ConfigError
from sslpath.figure_style import PALETTE
from sslpath.figures_springs import SIDE, coil, on_circle, springs
from sslpath.model import pair_loss


@pytest.mark.parametrize("margin", [0.5, 1.2, 1.8])
def test_the_curves_are_the_costs_of_the_loss(margin):
    ax = springs(margin).axes[1]
    curves = [line for line in ax.lines if len(line.get_xdata()) > 100]
    assert len(curves) == 2
    for line, is_near in zip(curves, (True, False), strict=True):
        x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        for k in (0, 40, 150, 300, 400):
            a, b = torch.tensor([[x[k], 0.0]]), torch.zeros(1, 2)
            cost = pair_loss(a, b, torch.tensor([is_near]), margin).total.item()
            assert y[k] == pytest.approx(cost, abs=1e-4)


@pytest.mark.parametrize("margin", [0.5, 1.2, 1.8])
def test_only_the_near_pair_and_the_far_pair_within_the_margin_have_arrows(margin):
    ax = springs(margin).axes[0]
    arrows = [patch for patch in ax.patches if isinstance(patch, FancyArrowPatch)]
    assert len(arrows) == 4  # two at each of two pairs
    slack = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert len(slack) == 1
    assert max(slack[0].get_xdata()) + SIDE > margin  # the thread ends at the tile's edge


def test_near_arrows_point_at_the_partner_and_far_arrows_away():
    ax = springs(1.2).axes[0]
    arrows = [patch for patch in ax.patches if isinstance(patch, FancyArrowPatch)]
    for left, right, sign in ((arrows[0], arrows[1], 1), (arrows[2], arrows[3], -1)):
        (x0, _), (x1, _) = left._posA_posB
        assert np.sign(x1 - x0) == sign, "of the left tile"
        (x0, _), (x1, _) = right._posA_posB
        assert np.sign(x1 - x0) == -sign, "of the right tile"


@pytest.mark.parametrize("margin", [0, -1, 2, 3])
def test_a_margin_outside_of_the_sphere_is_refused(margin):
    with pytest.raises(ConfigError, match="between 0 and 2"):
        springs(margin)


def test_a_coil_goes_from_end_to_end_and_swings_to_both_sides():
    points = coil(0.2, 1.4, 3.0, height=0.1)
    np.testing.assert_allclose(points[[0, -1]], [[0.2, 3.0], [1.4, 3.0]])
    assert points[:, 1].min() == pytest.approx(2.9, abs=0.01)
    assert points[:, 1].max() == pytest.approx(3.1, abs=0.01)


def test_points_on_top_of_each_other_are_drawn_apart_and_inside_of_the_panel():
    xy = np.tile([[0.6, -0.8]], (30, 1))
    ax = on_circle({"all at one place": xy}, np.arange(30) % 3).axes[0]
    groups = [line for line in ax.lines if line.get_marker() not in ("None", "", None)]
    assert [len(line.get_xdata()) for line in groups] == [10, 10, 10]
    drawn = np.concatenate([np.stack(line.get_data(), axis=1) for line in groups])
    assert len(np.unique(drawn.round(6), axis=0)) == 30
    assert np.abs(drawn).max() < ax.get_xlim()[1]
    looks = {(line.get_marker(), line.get_color()) for line in groups}
    assert len({marker for marker, _ in looks}) == 3
    assert {colour for _, colour in looks} <= set(PALETTE.values())


def test_points_off_the_circle_or_without_a_group_are_refused():
    for points, group in (([[2.0, 0.0]], [0]), ([[1.0, 0.0]], [0, 1]), ([[1.0, 0.0, 0.0]], [0])):
        with pytest.raises(ConfigError, match="unit length"):
            on_circle({"start": points}, group)
