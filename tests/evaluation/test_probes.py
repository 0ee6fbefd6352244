"""Temporal-order probes: the frames in another order, and what a model that sees order alone then answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from training.fakes import clip_batch

from fastemo.evaluation.evaluate import predict
from fastemo.evaluation.probes import ORDERS, PROBES, permutations, reorder
from fastemo.video.config import AugmentConfig

AUGMENT = AugmentConfig(crop_size=8)
T = 6


class Rising(nn.Module):
    """Class 1 where the last frame is brighter than the first, class 0 where it is darker: order and nothing else."""

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        rise = frames[:, -1].mean(dim=(1, 2, 3)) - frames[:, 0].mean(dim=(1, 2, 3))
        return torch.stack([-rise, rise], dim=1)


class Batches:
    """A loader of clips that grow brighter (label 1) or darker (label 0), in batches of a size."""

    def __init__(self, num_clips: int, batch_size: int) -> None:
        self._starts, self._num_clips, self._size = range(0, num_clips, batch_size), num_clips, batch_size

    def epoch(self, epoch=0):
        for start in self._starts:
            numbers = range(start, min(start + self._size, self._num_clips))
            ramp = torch.arange(T, dtype=torch.uint8) * 20
            clips = [(ramp if n % 2 else ramp.flip(0)) + n % 50 for n in numbers]
            frames = torch.stack(clips)[:, :, None, None, None].expand(-1, -1, 3, 8, 8).contiguous()
            yield clip_batch(frames, [n % 2 for n in numbers], [f"clip{n:03d}" for n in numbers])


def frames_of(num_clips: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num_clips, T, 3, 8, 8), generator=generator, dtype=torch.uint8)


def accuracy(model: nn.Module, order: str) -> float:
    return float(predict(model, Batches(200, 32), AUGMENT, order=order).correct.mean())


def test_each_order_is_what_its_name_says():
    frames, keys = frames_of(3), ["a", "b", "c"]
    assert reorder(frames, keys, "recorded") is frames
    assert torch.equal(reorder(frames, keys, "reversed"), torch.stack([frames[:, T - 1 - t] for t in range(T)], 1))
    assert torch.equal(reorder(frames, keys, "frozen"), torch.stack([frames[:, 2]] * T, 1))
    orders = permutations(keys, T, seed=5)
    expected = torch.stack([clip[list(order)] for clip, order in zip(frames, orders, strict=True)])
    assert torch.equal(reorder(frames, keys, "shuffled", seed=5), expected)
    assert not torch.equal(expected, frames)


@pytest.mark.parametrize("order", ORDERS)
def test_the_frames_given_are_left_as_they_are(order):
    frames = frames_of(2)
    before = frames.clone()
    reordered = reorder(frames, ["a", "b"], order)
    assert (reordered.shape, reordered.dtype) == (frames.shape, frames.dtype)
    assert torch.equal(frames, before)
    still = frames[:, :1]  # a clip of one frame has one order
    assert torch.equal(reorder(still, ["a", "b"], order), still)


def test_permutations_depend_on_seed_and_key_alone():
    keys = [f"clip{n}" for n in range(60)]
    whole = permutations(keys, T, seed=0)
    np.testing.assert_array_equal(np.sort(whole), np.tile(np.arange(T), (60, 1)))
    np.testing.assert_array_equal(permutations(keys[::-1], T, seed=0)[::-1], whole)
    np.testing.assert_array_equal(permutations(keys[7:8], T, seed=0), whole[7:8])
    assert len({tuple(order) for order in whole}) > 40
    assert (permutations(keys, T, seed=1) != whole).any()


@pytest.mark.parametrize("order", PROBES)
def test_batch_size_changes_nothing(order):
    one, many = (predict(Rising(), Batches(50, size), AUGMENT, order=order, seed=3) for size in (1, 17))
    assert one.keys == many.keys
    np.testing.assert_array_equal(one.logits, many.logits)


def test_a_model_that_sees_order_alone():
    assert accuracy(Rising(), "recorded") == 1
    assert accuracy(Rising(), "reversed") == 0
    assert accuracy(Rising(), "frozen") == 0.5  # nothing rises: class 0 for all
    assert 0.35 < accuracy(Rising(), "shuffled") < 0.65


def test_an_unknown_order_is_an_error():
    with pytest.raises(ValueError, match="order must be one of recorded, reversed, shuffled, frozen, not 'backwards'"):
        predict(Rising(), Batches(4, 4), AUGMENT, order="backwards")
