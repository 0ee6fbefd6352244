"""uint8 -> float, clip-consistent, a pure function of (seed, epoch, key)."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as tv

from fastemo.video.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    augment,
    center_crop,
    color_factors,
    draw_parameters,
    erased_boxes,
    mixing_parameters,
    training_input,
)
from fastemo.video.config import AugmentConfig
from fastemo.video.loader import ClipBatch, Partners

KEYS = ["a.mp4", "b.mp4", "c.mp4"]
PLAIN = {"flip": 0.0, "rotation_degrees": 0.0}


@pytest.fixture(scope="module")
def frames():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((3, 4, 3, 6, 8), generator=generator).flatten(0, 1)
    smooth = torch.nn.functional.interpolate(coarse, (36, 48), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round().byte().view(3, 4, 3, 36, 48)


def denormalise(x):
    return (x * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) * 255


def test_center_crop_is_exact_and_normalised_as_torchvision_does(frames):
    out = center_crop(frames, AugmentConfig(crop_size=28))
    expected = tv.normalize(frames[..., 4:32, 10:38].float() / 255, IMAGENET_MEAN, IMAGENET_STD)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert out.dtype == torch.float32


def test_disabled_training_sees_the_centre_crop(frames):
    config = AugmentConfig(crop_size=28, enabled=False)
    assert torch.equal(augment(frames, config, KEYS, seed=0, epoch=1), center_crop(frames, config))


def test_a_crop_alone_moves_pixels_without_blending_them(frames):
    config = AugmentConfig(crop_size=28, **PLAIN)
    out = denormalise(augment(frames, config, KEYS, seed=0, epoch=1))
    draws = draw_parameters(config, KEYS, 4, seed=0, epoch=1)
    seen = set()
    for clip in range(3):
        top, left = (int(draws[clip, 0, i] * (free + 1)) for i, free in ((0, 8), (1, 20)))
        seen.add((top, left))
        torch.testing.assert_close(
            out[clip], frames[clip, :, :, top : top + 28, left : left + 28].float(), rtol=0, atol=0.02
        )
    assert len(seen) > 1


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_rotation_equals_torchvisions_of_the_crop(frames, flip):
    config = AugmentConfig(crop_size=29, flip=flip, rotation_degrees=20)
    out = denormalise(augment(frames, config, KEYS, seed=2, epoch=5))
    draws = draw_parameters(config, KEYS, 4, seed=2, epoch=5)
    for clip in range(3):
        top, left = (int(draws[clip, 0, i] * (free + 1)) for i, free in ((0, 7), (1, 19)))
        crop = frames[clip, :, :, top : top + 29, left : left + 29].float()
        if flip:
            crop = crop.flip(-1)
        angle = math.degrees(draws[clip, 0, 3])
        expected = tv.rotate(crop, angle, tv.InterpolationMode.BILINEAR)
        inner = slice(5, 24)  # edges fade to black in torchvision's blend, end sharply here
        assert (out[clip] - expected)[..., inner, inner].abs().max() < 0.6
        assert abs(angle) > 0.5


def test_corners_are_black_or_the_image(frames):
    white = torch.full_like(frames, 255)
    options = {"crop_size": 28, "rotation_degrees": 20.0}
    black = denormalise(augment(white, AugmentConfig(**options), KEYS, seed=1, epoch=1))
    turned = np.abs(draw_parameters(AugmentConfig(**options), KEYS, 4, seed=1, epoch=1)[:, 0, 3]) > math.radians(4)
    assert turned.sum() >= 2  # less than that does not reach a corner pixel's centre
    image = denormalise(augment(white, AugmentConfig(**options, rotation_corners="image"), KEYS, seed=1, epoch=1))
    assert black[torch.from_numpy(turned)][..., 0, 0].max() < 1
    assert black[..., 14, 14].min() > 254
    assert image.min() > 254


def test_frames_of_a_clip_move_together_unless_asked_otherwise(frames):
    still = frames[:, :1].expand(-1, 4, -1, -1, -1)
    together = augment(still, AugmentConfig(crop_size=28), KEYS, seed=0, epoch=1)
    assert all(torch.equal(together[:, 0], together[:, t]) for t in range(4))
    apart = augment(still, AugmentConfig(crop_size=28, per_frame=True), KEYS, seed=0, epoch=1)
    assert not torch.equal(apart[:, 0], apart[:, 1])


@pytest.mark.parametrize("per_frame", [False, True])
def test_a_clip_is_augmented_alike_alone_in_a_batch_and_in_any_order(frames, per_frame):
    config = AugmentConfig(crop_size=28, per_frame=per_frame)
    together = augment(frames, config, KEYS, seed=4, epoch=9)
    for clip, key in enumerate(KEYS):
        alone = augment(frames[clip : clip + 1], config, [key], seed=4, epoch=9)
        torch.testing.assert_close(alone[0], together[clip], rtol=0, atol=1e-5)
    draws = draw_parameters(config, KEYS, 4, seed=4, epoch=9)
    assert np.array_equal(draws[::-1], draw_parameters(config, KEYS[::-1], 4, seed=4, epoch=9))


def test_draws_change_with_seed_and_epoch_and_cover_their_ranges():
    config = AugmentConfig()
    keys = [str(i) for i in range(2000)]
    draws = draw_parameters(config, keys, 3, seed=0, epoch=1)
    for other in ({"seed": 1, "epoch": 1}, {"seed": 0, "epoch": 2}):
        assert not np.array_equal(draws, draw_parameters(config, keys, 3, **other))
    assert draws.shape == (2000, 3, 4)
    assert np.ptp(draws, axis=1).max() == 0
    assert abs(draws[:, 0, :2].mean() - 0.5) < 0.02
    assert abs(draws[:, 0, 2].mean() - 0.5) < 0.05
    assert 19 < math.degrees(np.abs(draws[:, 0, 3]).max()) <= 20


def test_crop_larger_than_the_frames_says_what_to_do(frames):
    with pytest.raises(ValueError, match=r"augment\.crop_size 40 .* video\.size"):
        augment(frames, AugmentConfig(crop_size=40), KEYS, seed=0, epoch=1)


def test_constants_are_copied_to_the_device_once(monkeypatch):
    """On a GPU each copy waits for all that it is doing: three of them in a step keep the host from running ahead."""
    config, frames = AugmentConfig(crop_size=24), torch.zeros(2, 3, 3, 30, 32, dtype=torch.uint8)
    with torch.inference_mode():
        augmented = augment(frames, config, ["a", "b"], seed=0, epoch=0)
    monkeypatch.setattr(torch, "tensor", None)
    assert torch.equal(augment(frames, config, ["a", "b"], seed=0, epoch=0), augmented)
    center_crop(frames, config)
    weight = torch.ones(3, 1, 1, requires_grad=True)
    (augment(frames, config, ["a", "b"], seed=0, epoch=0) * weight).sum().backward()


def test_no_matrix_product_places_the_pixels(monkeypatch):
    """It may round in TensorFloat-32 on a GPU."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert not any(name in str(function) for name in ("mm", "matmul", "einsum")), function
            return function(*args, **(kwargs or {}))

    frames = torch.zeros(2, 3, 3, 30, 32, dtype=torch.uint8)
    with Products():
        augment(frames, AugmentConfig(crop_size=24), ["a", "b"], seed=0, epoch=0)


def recoloured(frames, **options):
    config = AugmentConfig(crop_size=28, **PLAIN, **options)
    return config, augment(frames, config, KEYS, seed=3, epoch=2)


def test_colours_change_as_torchvision_changes_them(frames):
    """Each clip as one picture of all its frames, whose pixels are too grey to be clamped in between."""
    grey = 64 + frames // 4
    config, found = recoloured(grey, color_jitter=0.4)
    plain = denormalise(augment(grey, replace(config, color_jitter=0.0), KEYS, seed=3, epoch=2)) / 255
    factors = color_factors(config, KEYS, seed=3, epoch=2)
    assert ((factors > 0.6) & (factors < 1.4)).all()
    assert len({*factors.flatten().tolist()}) == 9
    for clip, (brightness, contrast, saturation) in enumerate(factors.tolist()):
        picture = plain[clip].permute(1, 2, 0, 3).flatten(2)  # frames side by side
        picture = tv.adjust_contrast(tv.adjust_brightness(picture, brightness), contrast)
        picture = tv.adjust_saturation(picture, saturation).unflatten(2, (4, 28)).permute(2, 0, 1, 3)
        # torchvision's weights of red, green and blue have a sum of 0.9999.
        torch.testing.assert_close(denormalise(found[clip]) / 255, picture, rtol=0, atol=2e-3)


def test_colours_stay_within_what_a_picture_holds(frames):
    _, found = recoloured(frames // 128 * 255, color_jitter=1.0)
    values = denormalise(found)
    assert values.min() > -0.01
    assert values.max() < 255.01


def test_the_erased_box_is_the_same_in_all_frames_and_of_the_mean_colour(frames):
    config, found = recoloured(frames, random_erasing=1.0)
    plain = augment(frames, replace(config, random_erasing=0.0), KEYS, seed=3, epoch=2)
    for clip, (top, bottom, left, right) in enumerate(erased_boxes(config, KEYS, seed=3, epoch=2).astype(int)):
        expected = plain[clip].clone()
        expected[..., top:bottom, left:right] = 0
        assert torch.equal(found[clip], expected)
    boxes = erased_boxes(replace(config, random_erasing=0.25), [str(i) for i in range(4000)], seed=0, epoch=0)
    area = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / 28**2
    assert (area > 0).mean() == pytest.approx(0.25, abs=0.03)
    assert area[area > 0].mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.02)
    assert (boxes >= 0).all()
    assert (boxes <= 28).all()
    assert {*boxes[:, 1].tolist()} >= {27.0, 28.0}, "up to the edge"


def mixture(frames, **options):
    """The mixed clips, what they are made of, and what was drawn."""
    config = AugmentConfig(crop_size=28, **options)
    rows = torch.tensor([1, 2, 0])
    partners = Partners(frames, KEYS, rows, torch.tensor([5, 6, 7]))
    batch = ClipBatch(frames, torch.tensor([7, 5, 6]), KEYS, torch.zeros(3, dtype=torch.bool), 3, partners)
    mixed, shares = training_input(batch, config, seed=4, epoch=1)
    plain = augment(frames, config, KEYS, seed=4, epoch=1)
    return mixed, shares, plain, plain[rows], mixing_parameters(config, KEYS, seed=4, epoch=1)


def test_mixup_is_the_weighted_sum_of_two_augmented_clips(frames):
    mixed, shares, plain, partners, drawn = mixture(frames, mixup=0.4)
    assert shares.tolist() == drawn[:, 0].tolist() == drawn[:, 1].tolist()
    weights = shares.view(3, 1, 1, 1, 1)
    torch.testing.assert_close(mixed, weights * plain + (1 - weights) * partners)
    many = mixing_parameters(AugmentConfig(mixup=0.4), [str(i) for i in range(4000)], seed=0, epoch=0)[:, 0]
    assert many.mean() == pytest.approx(0.5, abs=0.02)
    # A Beta distribution's variance is 1 / (4 (2 alpha + 1)).
    assert many.var() == pytest.approx(1 / 7.2, abs=0.01)


def test_cutmix_swaps_a_box_of_all_frames_and_counts_its_pixels(frames):
    mixed, shares, plain, partners, drawn = mixture(frames, cutmix=1.0)
    for clip, (_, _, top, bottom, left, right) in enumerate(drawn.astype(int)):
        expected = plain[clip].clone()
        expected[..., top:bottom, left:right] = partners[clip][..., top:bottom, left:right]
        torch.testing.assert_close(mixed[clip], expected)
        assert shares[clip] == pytest.approx(1 - (bottom - top) * (right - left) / 28**2)
    assert 0 < shares.min() < 1
    config = AugmentConfig(crop_size=100, cutmix=1.0)
    many = mixing_parameters(config, [str(i) for i in range(4000)], seed=0, epoch=0)
    # The box's area is uniform, but for what lies outside the picture: of a side s, a share 1 - s / 4 is inside.
    sides = np.sqrt(np.linspace(0, 1, 1001))
    assert (1 - many[:, 0]).mean() == pytest.approx(((sides * (1 - sides / 4)) ** 2).mean(), abs=0.02)


def test_mixup_and_cutmix_are_drawn_equally_often():
    both = mixing_parameters(AugmentConfig(mixup=0.2, cutmix=1.0), [str(i) for i in range(4000)], seed=0, epoch=0)
    assert (both[:, 1] == 1).mean() == pytest.approx(0.5, abs=0.03)


def test_without_augmentation_nothing_is_mixed(frames):
    mixed, shares, *_ = mixture(frames, mixup=0.4, enabled=False)
    assert shares is None
    assert torch.equal(mixed, center_crop(frames, AugmentConfig(crop_size=28)))
