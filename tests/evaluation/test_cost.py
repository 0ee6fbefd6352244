"""Costs agree with arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastemo.evaluation.cost import forward_flops, num_parameters, training_speed
from fastemo.models.build import build_model
from fastemo.models.config import ModelConfig

HISTORY = [
    {"clips_per_second": 1.0, "epoch_seconds": 90.0},
    {"clips_per_second": 4.0, "epoch_seconds": 30.0},
    {"clips_per_second": 2.0, "epoch_seconds": 10.0},
    {"clips_per_second": 3.0, "epoch_seconds": 20.0},
]


class Counted(nn.Module):
    """A convolution on each frame and a linear layer, whose products are counted by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.linear = nn.Linear(5, 2)

    def forward(self, frames):
        maps = self.conv(frames.flatten(0, 1))
        return self.linear(maps.mean((2, 3))).unflatten(0, frames.shape[:2]).mean(1)


def test_convolution_and_linear_by_hand():
    model = Counted()
    assert forward_flops(model, num_frames=4, size=8) == 4 * 2 * (8 * 8 * 5 * 3 * 3 * 3 + 5 * 2)
    assert num_parameters(model) == 5 * 3 * 9 + 5 + 5 * 2 + 2


@pytest.mark.parametrize(("rnn", "gates"), [("lstm", 4), ("gru", 3)])
def test_recurrence_counts(rnn, gates):
    """As late fusion of the same backbone, and the recurrent layer's two products a gate and a frame."""
    frames, width, hidden, classes = 5, 512, 32, 8
    recurrent = ModelConfig(name="cnn_lstm", pretrained=False, num_frames=frames, rnn=rnn, rnn_hidden=hidden)
    mean = ModelConfig(name="late_fusion", pretrained=False, num_frames=frames)
    found = forward_flops(build_model(recurrent, classes), frames, 32)
    backbone = forward_flops(build_model(mean, classes), frames, 32) - 2 * width * classes
    assert found == backbone + 2 * frames * gates * hidden * (width + hidden) + 2 * hidden * classes


@pytest.mark.parametrize("name", ["early_cnn", "r3d18"])
def test_the_model_stays_as_it_is(name):
    model = build_model(ModelConfig(name=name, pretrained=False, num_frames=2), 8)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert forward_flops(model, 2, 32) > 1e6
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_speed_is_the_median_after_the_first_epoch():
    assert training_speed(HISTORY) == {"clips_per_second": 3.0, "epoch_seconds": 20.0}
    assert training_speed(HISTORY[:1]) == {"clips_per_second": 1.0, "epoch_seconds": 90.0}
    assert training_speed([]) == {"clips_per_second": None, "epoch_seconds": None}
