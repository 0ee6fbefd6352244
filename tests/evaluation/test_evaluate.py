"""A model and batches -> predictions: padding and dropped clips are none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from training.fakes import clip_batch

from fastemo.evaluation.evaluate import Predictions, predict
from fastemo.video.augment import center_crop
from fastemo.video.config import AugmentConfig
from fastemo.video.loader import ClipBatch

AUGMENT = AugmentConfig(crop_size=8)


class Brightness(nn.Module):
    """Logits that tell a clip's mean apart."""

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        mean = frames.mean(dim=(1, 2, 3, 4))
        return torch.stack([mean, -mean], dim=1)


class Batches:
    """A loader as far as `predict` asks for one."""

    def __init__(self, *batches: ClipBatch) -> None:
        self._batches = batches

    def epoch(self, epoch=0):
        return iter(self._batches)


def batch(*rows: tuple[str, int, bool]) -> ClipBatch:
    """Rows of key, label and padding; a row's pixels follow from its key."""
    pixels = [torch.full((2, 3, 8, 8), sum(key.encode()) % 256, dtype=torch.uint8) for key, _, _ in rows]
    keys, labels, is_padding = map(list, zip(*rows, strict=True))
    return clip_batch(torch.stack(pixels), labels, keys, is_padding)


def test_padding_is_not_predicted():
    whole = predict(Brightness(), Batches(batch(("a", 0, False), ("b", 1, False)), batch(("c", 1, False))), AUGMENT)
    found = predict(
        Brightness(),
        Batches(
            batch(("a", 0, False), ("a", 0, True)),
            batch(("x", 0, True), ("y", 0, True)),
            batch(("c", 1, True), ("c", 1, False)),
        ),
        AUGMENT,
    )
    assert found.keys == ("a", "c")
    assert found.labels.tolist() == [0, 1]
    np.testing.assert_array_equal(found.logits, whole.logits[[0, 2]])
    assert len(set(found.logits[:, 0].tolist())) == 2


def test_a_rank_without_a_clip_adds_nothing():
    some = predict(Brightness(), Batches(batch(("a", 0, False), ("b", 1, True))), AUGMENT)
    none = predict(Brightness(), Batches(batch(("x", 0, True), ("y", 0, True))), AUGMENT)
    never = predict(Brightness(), Batches(), AUGMENT)
    assert none.keys == never.keys == ()
    assert Predictions.joined([never, some, none]).keys == ("a",)


def test_nothing_at_all_is_an_error():
    none = predict(Brightness(), Batches(batch(("x", 0, True))), AUGMENT)
    for parts in ([], [none], [none, none]):
        with pytest.raises(ValueError, match="no clip of the split could be decoded"):
            Predictions.joined(parts)


class Columns(nn.Module):
    """Logits that tell apart the left and the right half of a clip's frames, and the frames."""

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        half = frames.shape[-1] // 2
        times = torch.arange(1.0, frames.shape[1] + 1)
        return torch.stack([(it.mean(dim=(2, 3, 4)) * times).sum(1) for it in frames.split(half, dim=-1)], dim=1)


def test_odd_views_are_mirrored_and_each_pair_has_frames_of_its_own():
    class Drawn(Batches):
        def epoch(self, epoch=0):
            return (replace(it, frames=it.frames.roll(epoch, dims=1)) for it in self._batches)

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, 3, 8, 8), generator=generator, dtype=torch.uint8)
    loader = Drawn(clip_batch(pixels, [0, 1], ["a", "b"]))
    views = [predict(Columns(), loader, AUGMENT, view=view).logits for view in range(4)]
    for number, found in enumerate(views):
        frames = center_crop(pixels.roll(number // 2, dims=1), AUGMENT)
        expected = Columns()(frames.flip(-1) if number % 2 else frames)
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)
    np.testing.assert_allclose(views[1], views[0][:, ::-1], rtol=1e-6)
    assert not np.array_equal(views[2], views[0])


def test_views_are_averaged_over_the_clips_that_all_have():
    def view(keys, *logits):
        return Predictions(tuple(keys), np.arange(len(keys)), np.array(logits, np.float32))

    found = Predictions.averaged([view("abc", [1, 0], [2, 0], [3, 0]), view("ca", [5, 2], [7, 4])])
    assert found.keys == ("a", "c")
    assert found.labels.tolist() == [0, 2]
    assert found.logits.tolist() == [[4, 2], [4, 1]]
    assert found.logits.dtype == np.float32
    alone = view("ab", [1, 0], [2, 0])
    assert Predictions.averaged([alone]) is alone
