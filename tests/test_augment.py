"""Augmentation: pixels move but do not change, white stays white, the same draw is the same."""

import shutil
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from sslpath.augment import (
    ELSEWHERE,
    HED,
    NONE,
    Augmentation,
    augment,
    colour_jitter,
    defocus,
    magnify,
    recompress,
    stain_jitter,
    turn,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(b: int = 64, side: int = 9) -> Tensor:
    return torch.randint(256, (b, 3, side, side), generator=seeded(99), dtype=torch.uint8)


def pixels_sorted(image: Tensor) -> Tensor:
    """The colours of an image as a sorted list, whatever their places."""
    codes = image.long()
    return (codes[0] * 65536 + codes[1] * 256 + codes[2]).flatten().sort().values


def test_flips_and_turns_move_pixels_and_change_none() -> None:
    images = noise()
    turned = turn(images, seeded(), flip=True, rotate=True)
    assert turned.dtype == torch.uint8
    for before, after in zip(images, turned, strict=True):
        assert torch.equal(pixels_sorted(before), pixels_sorted(after))
    assert not torch.equal(images, turned)


def test_all_eight_symmetries_of_the_square_occur_and_nothing_else() -> None:
    image = torch.arange(27, dtype=torch.uint8).reshape(1, 3, 3, 3)
    eight = {
        tuple(torch.rot90(side, k, (-2, -1)).flatten().tolist())
        for k in range(4)
        for side in (image, image.flip(-1))
    }
    turned = turn(image.repeat(400, 1, 1, 1), seeded(), flip=True, rotate=True)
    counts: dict[tuple[int, ...], int] = {}
    for each in turned:
        key = tuple(each.flatten().tolist())
        counts[key] = counts.get(key, 0) + 1
    assert set(counts) == eight
    assert min(counts.values()) > 25  # 50 expected of each


def test_flips_alone_never_turn_and_turns_alone_never_mirror() -> None:
    image = torch.arange(27, dtype=torch.uint8).reshape(1, 3, 3, 3).repeat(200, 1, 1, 1)
    flipped = turn(image, seeded(), flip=True, rotate=False).unique(dim=0)
    turned = turn(image, seeded(), flip=False, rotate=True).unique(dim=0)
    assert len(flipped) == 2
    assert len(turned) == 4
    assert any(torch.equal(each, image[0].flip(-1)) for each in flipped)
    assert not any(torch.equal(each, image[0].flip(-1)) for each in turned)


def test_tiles_that_are_not_square_can_be_flipped() -> None:
    images = torch.randint(256, (8, 3, 4, 6), dtype=torch.uint8, generator=seeded())
    assert augment(images, seeded(), Augmentation(rotate=False)).shape == (8, 3, 4, 6)


def test_uint8_in_floats_in_0_to_1_out() -> None:
    images = noise()
    result = augment(images, seeded(), Augmentation(brightness=0.9, contrast=0.9, stain=0.9))
    assert result.dtype == torch.float32
    assert result.shape == images.shape
    assert result.min() >= 0
    assert result.max() <= 1
    assert torch.equal(images, noise())  # the input is left alone


def test_everything_switched_off_only_rescales() -> None:
    images = noise()
    torch.testing.assert_close(augment(images, seeded(), NONE), images.float() / 255)


def test_stain_and_colour_jitter_of_zero_strength_are_the_identity_within_rounding() -> None:
    images = noise().float() / 255
    # Black is lifted to 1/255, since its optical density is infinite.
    floor = images.clamp(min=1 / 255)
    torch.testing.assert_close(stain_jitter(images, seeded(), 0, 0), floor, atol=2e-5, rtol=0)
    torch.testing.assert_close(colour_jitter(images, seeded(), 0, 0, 0), images)


def test_stain_jitter_keeps_white_white_and_grows_with_darkness() -> None:
    white = torch.ones(50, 3, 4, 4)
    torch.testing.assert_close(stain_jitter(white, seeded(), 0.9, 0.9), white)
    pale, dark = torch.full((50, 3, 4, 4), 0.95), torch.full((50, 3, 4, 4), 0.4)
    moved = [
        (stain_jitter(images, seeded(), 0.3, 0.1) - images).abs().mean() for images in (pale, dark)
    ]
    assert 0 < moved[0] < moved[1] / 3


def test_stain_jitter_scales_the_amount_of_each_stain_as_beer_and_lambert_have_it() -> None:
    vectors = torch.tensor(HED, dtype=torch.float64)
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    # One tile of pure haematoxylin, one of pure eosin, one of both; amounts 0.4 (and 0.3).
    density = torch.stack([0.4 * vectors[0], 0.4 * vectors[1], 0.3 * vectors[0] + 0.4 * vectors[1]])
    images = (10**-density).float()[:, :, None, None].expand(3, 3, 2, 2)
    scale = 1 + (2 * torch.rand((3, 3, 1, 1), generator=seeded(5)) - 1) * 0.25
    after = -torch.log10(stain_jitter(images, seeded(5), 0.25, 0)[:, :, 0, 0].double())
    s = scale[:, :, 0, 0].double()
    expected = torch.stack(
        [
            0.4 * s[0, 0] * vectors[0],
            0.4 * s[1, 1] * vectors[1],
            0.3 * s[2, 0] * vectors[0] + 0.4 * s[2, 1] * vectors[1],
        ]
    )
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=0)


@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch compiles for a CPU with g++")
def test_compiled_colours_are_the_same() -> None:
    images = noise(8, 48)
    each, compiled = (augment(images, seeded(2), compiled=c) for c in (False, True))
    assert (each - images / 255).abs().mean() > 0.02
    torch.testing.assert_close(compiled, each, atol=1e-5, rtol=0)


def test_stain_jitter_is_what_is_said_of_it_step_by_step() -> None:
    images = noise(20, 16).float() / 255
    basis = torch.nn.functional.normalize(torch.tensor(HED), dim=1)
    draws = seeded(3)
    scale = 1 + (2 * torch.rand((20, 3, 1, 1), generator=draws) - 1) * 0.3
    shift = (2 * torch.rand((20, 3, 1, 1), generator=draws) - 1) * 0.1
    density = -torch.log10(images.clamp(min=1 / 255))
    amounts = torch.einsum("bchw,cs->bshw", density, torch.linalg.inv(basis))
    amounts = amounts * scale + shift * (1 - images.mean(dim=1, keepdim=True))
    expected = (10 ** -torch.einsum("bshw,sc->bchw", amounts, basis)).clamp(0, 1)
    torch.testing.assert_close(
        stain_jitter(images, seeded(3), 0.3, 0.1), expected, atol=1e-5, rtol=0
    )


def test_colour_jitter_is_one_change_after_the_other() -> None:
    images, draws = noise(20, 16).float() / 255, seeded(3)
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    factors = [
        1 + (2 * torch.rand((20, 1, 1, 1), generator=draws) - 1) * k for k in (0.3, 0.2, 0.4)
    ]
    expected = images * factors[0]
    mean = (expected * luma).sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True)
    expected = mean + (expected - mean) * factors[1]
    grey = (expected * luma).sum(dim=1, keepdim=True)
    expected = (grey + (expected - grey) * factors[2]).clamp(0, 1)
    seen = colour_jitter(images, seeded(3), 0.3, 0.2, 0.4)
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=0)


def test_each_tile_gets_its_own_stain() -> None:
    images = torch.full((20, 3, 4, 4), 0.6)
    result = stain_jitter(images, seeded(), 0.2, 0.05)
    assert len(result[:, :, 0, 0].unique(dim=0)) == 20
    # All pixels of a tile of one colour change alike.
    torch.testing.assert_close(result, result[:, :, :1, :1].expand_as(result))


def test_brightness_is_a_factor_within_its_limits() -> None:
    images = torch.full((500, 3, 2, 2), 0.5)
    factor = colour_jitter(images, seeded(), 0.5, 0, 0)[:, 0, 0, 0] / 0.5
    assert 0.5 <= factor.min() < 0.52
    assert 1.48 < factor.max() <= 1.5


def test_contrast_keeps_the_mean_grey_and_saturation_each_pixels_grey() -> None:
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    images = 0.4 + 0.2 * torch.rand(30, 3, 6, 6, generator=seeded())
    contrast = colour_jitter(images, seeded(), 0, 0.5, 0)
    grey_before, grey_after = (images * luma).sum(1), (contrast * luma).sum(1)
    torch.testing.assert_close(grey_after.mean((1, 2)), grey_before.mean((1, 2)))
    assert not torch.allclose(grey_after, grey_before, atol=1e-3)
    saturation = colour_jitter(images, seeded(), 0, 0, 0.5)
    torch.testing.assert_close((saturation * luma).sum(1), grey_before)
    assert not torch.allclose(saturation, images, atol=1e-3)


def test_the_same_generator_state_gives_the_same_tiles_and_the_global_one_is_not_touched() -> None:
    images = noise()
    state = torch.random.get_rng_state()
    one, same, other = (augment(images, seeded(s)) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_lower_precision_around_it_changes_nothing() -> None:
    images = noise(6, 16)
    expected = augment(images, seeded(), ELSEWHERE)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(augment(images, seeded(), ELSEWHERE), expected)


def smooth(b: int = 40, side: int = 50) -> Tensor:
    """Waves, floats in 0..1: tiles that survive being resampled."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    phase = torch.rand(b, 3, 1, 1, generator=seeded(1)) * 6
    return 0.5 + 0.4 * torch.sin(x / 4 + phase) * torch.cos(y / 5 + phase)


def test_magnifying_keeps_the_middle_and_spreads_about_it() -> None:
    side = 51
    at = (torch.arange(side) - 25).abs().float()
    far = torch.maximum(at[:, None], at[None]) / 25  # distance from the middle
    images = far.expand(200, 3, side, side).contiguous()
    seen = magnify(images, seeded(), 0.2)
    assert seen[:, :, 25, 25].max() < 0.05
    # At half way out the value tells the factor: 0.5 / factor.
    factors = 0.5 / seen[:, 0, 25, 25 + 12] * (12 / 12.5)
    assert factors.min() > np.exp(-0.2) * 0.97
    assert factors.max() < np.exp(0.2) * 1.03
    assert factors.min() < 0.88
    assert factors.max() > 1.14


def test_blur_is_that_of_torchvision_for_half_of_the_tiles() -> None:
    images = smooth()
    seen = defocus(images, seeded(), 1.2)
    sigma = torch.rand((40, 1), generator=(g := seeded())) * 1.2
    blurred = torch.rand((40, 1), generator=g) < 0.5
    assert 10 < blurred.sum() < 30
    for i in range(40):
        expected = images[i]
        if blurred[i]:
            expected = gaussian_blur(images[i], 9, max(float(sigma[i]), 0.05))
        torch.testing.assert_close(seen[i], expected, atol=2e-4, rtol=0)


def test_jpeg_is_that_of_pillow_for_half_of_the_tiles() -> None:
    images = smooth()
    seen = recompress(images, seeded(), 25)
    quality = torch.randint(25, 96, (40,), generator=(g := seeded()))
    stored = torch.rand(40, generator=g) < 0.5
    assert 10 < stored.sum() < 30
    for i in range(40):
        expected = images[i]
        if stored[i]:
            pixels = (images[i] * 255).round().byte().permute(1, 2, 0).numpy()
            buffer = BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=int(quality[i]))
            expected = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1) / 255
        # Two builds of libjpeg may round a grey level apart.
        torch.testing.assert_close(seen[i], expected, atol=2.1 / 255, rtol=0)


@pytest.mark.parametrize("part", ["zoom", "blur", "jpeg"])
def test_each_part_of_elsewhere_acts_alone_and_repeats(part: str) -> None:
    images = (smooth() * 255).byte()
    alone = replace(NONE, **{part: getattr(ELSEWHERE, part)})
    seen = augment(images, seeded(), alone)
    assert not torch.equal(seen, images / 255)
    assert torch.equal(seen, augment(images, seeded(), alone))
    assert seen.min() >= 0
    assert seen.max() <= 1
