"""Folding batch normalisation: the same function, fewer operations, and only where it is the same."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import NETWORKS, network, with_statistics
from torch import nn

from fastemo.models.folding import fold_batch_norm
from fastemo.models.fusion import FrameModel, LateFusion


def norms_of(model: nn.Module) -> list[nn.Module]:
    return [it for it in model.modules() if isinstance(it, nn.modules.batchnorm._BatchNorm)]


def with_random_norms(model: nn.Module, frames: torch.Tensor) -> nn.Module:
    """With random scales and shifts, and statistics of frames."""
    for norm in norms_of(model):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    return with_statistics(model, frames)


@pytest.mark.parametrize("variant", NETWORKS)
def test_every_network_computes_the_same_without_its_norms(variant):
    model, frames = network(variant), torch.randn(2, 6, 3, 48, 48)
    model = with_random_norms(model, frames)
    with torch.no_grad():
        expected = model(frames)
        fold_batch_norm(model, 6, 48)
        # Rounding adds up over S3D's many layers to 1.5e-3 on some processors; a wrong fold is off by tenths.
        near = {"rtol": 0, "atol": 5e-3 * float(expected.abs().max())}
        torch.testing.assert_close(model(frames), expected, **near)
        if isinstance(model, FrameModel):
            encoded = model.encode(frames.flatten(0, 1)).unflatten(0, (2, 6))
            torch.testing.assert_close(model.classifier(model.join(encoded)), expected, **near)
    assert norms_of(model) == []
    assert any(isinstance(it, nn.Conv2d | nn.Conv3d) for it in model.modules())
    assert not any(it._forward_hooks for it in model.modules())


class Block(nn.Module):
    """Features [N, 3] of a convolution and a norm, which meet in the given way."""

    head_hidden_size = 3

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.conv, self.norm, self.other = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.conv(images)
        if self.way == "shared":
            maps = self.norm(maps) + maps
        elif self.way == "twice":
            maps = self.norm(self.conv(self.norm(maps)))
        elif self.way == "later":
            maps = self.norm(maps.relu())
        elif self.way == "two norms":
            maps = self.norm(maps) * self.other(maps)
        else:
            maps = self.other(self.norm(maps))
        return maps.mean((2, 3))


@pytest.mark.parametrize("way", ["shared", "twice", "later", "two norms", "alone"])
def test_what_is_used_elsewhere_too_stays(way):
    torch.manual_seed(0)
    model = LateFusion(Block(way), 8, fusion="mean", num_frames=None)
    frames = torch.randn(2, 3, 3, 16, 16)
    with_random_norms(model, frames)
    before = copy.deepcopy(model)
    fold_batch_norm(model, 3, 16)
    assert len(norms_of(model)) == (1 if way == "alone" else 2)
    with torch.no_grad():
        torch.testing.assert_close(model(frames), before(frames), rtol=1e-4, atol=1e-5)
