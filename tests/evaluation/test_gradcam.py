"""Grad-CAM: as computed by hand, on the place that decides, on every model, leaving it as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, network, with_statistics
from torch import nn

from fastemo.evaluation.gradcam import gradcam
from fastemo.models.build import build_model
from fastemo.models.config import ModelConfig
from fastemo.models.fusion import ClipModel, MapLayer
from fastemo.training.config import TrainConfig
from fastemo.training.trainer import Trainer

# The module that makes the last maps, and the way from there to the logits, written anew.
MODELS = {
    "early_cnn": ("blocks", lambda model, maps, clips: model.classifier(maps.mean((2, 3)))),
    "early_resnet18": ("backbone.layer4", lambda model, maps, clips: model.classifier(maps.mean((2, 3)))),
    "late_fusion": (
        "backbone.layer4",
        lambda model, maps, clips: model.classifier(maps.mean((2, 3)).unflatten(0, (clips, -1)).mean(1)),
    ),
    "r3d18": ("backbone.layer4", lambda model, maps, clips: model.classifier(maps.mean((2, 3, 4)))),
    "cnn_lstm": (
        "backbone.layer4",
        lambda model, maps, clips: model.classifier(model.rnn(maps.mean((2, 3)).unflatten(0, (clips, -1)))[0][:, -1]),
    ),
}


def built(name, num_frames=3):
    torch.manual_seed(1)
    return build_model(ModelConfig(name=name, pretrained=False, num_frames=num_frames, rnn_hidden=16), 8)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_equals_the_formula(name):
    model, frames = built(name).eval(), torch.randn(2, 3, 3, 64, 96)
    made_by, tail = MODELS[name]
    seen = []
    handle = model.get_submodule(made_by).register_forward_hook(lambda module, inputs, output: seen.append(output))
    logits = model(frames)
    handle.remove()
    maps = seen[0].detach().requires_grad_()
    torch.testing.assert_close(tail(model, maps, 2), logits)
    classes = logits.argmax(1)  # for which there is evidence, if for any
    tail(model, maps, 2)[range(2), classes].sum().backward()
    weights = maps.grad.flatten(2).mean(2)
    heat = torch.einsum("nf,nf...->n...", weights, maps.detach()).clamp_min(0)
    if name == "r3d18":
        heat = F.interpolate(heat[:, None], (3, 64, 96), mode="trilinear")[:, 0]
    else:
        # Early fusion has one map per clip, the others one per frame.
        heat = F.interpolate(heat[:, None], (64, 96), mode="bilinear").view(2, -1, 64, 96).expand(-1, 3, -1, -1)
    assert heat.any()
    expected = heat / heat.amax((1, 2, 3), keepdim=True).clamp_min(1e-30)
    found = gradcam(model, frames, classes)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def with_frames(variant):
    """A network that has seen these frames."""
    model, frames = network(variant), torch.randn(2, 6, 3, 48, 48)
    return with_statistics(model, frames), frames


# The layer that makes the last maps, and how its output becomes maps [N, C, ..., h, w].
NAMED = {
    "video-s3d": ("backbone.features", lambda output: output),
    "video-swin3d_t": ("backbone.norm", lambda output: output.permute(0, 4, 1, 2, 3)),
    # 6 frames of 48 pixels are 3 steps of 12 x 12 tokens, twice halved, behind a class token.
    "video-mvit_v2_s": ("backbone.blocks.3.norm1", lambda it: it[:, 1:].transpose(1, 2).reshape(2, -1, 3, 3, 3)),
    "videomae": (
        "backbone.videomae.encoder.layer.0.layernorm_before",
        lambda output: output.transpose(1, 2).reshape(2, -1, 3, 3, 3),
    ),
    # 12 frames of 3 x 3 patches, behind a class token.
    "late_fusion-vit": ("backbone.blocks.5.norm1", lambda it: it[:, 1:].transpose(1, 2).reshape(12, -1, 3, 3)),
}


@pytest.mark.parametrize("variant", NAMED)
def test_networks_that_name_their_layer_equal_the_formula(variant):
    model, frames = with_frames(variant)
    layer, as_maps = NAMED[variant]
    seen = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, inputs, output: seen.append(output))
    logits = model(frames)
    handle.remove()
    classes = logits.argmax(1)
    (gradient,) = torch.autograd.grad(logits[range(2), classes].sum(), seen)
    maps, gradient = as_maps(seen[0].detach()), as_maps(gradient)
    weights = gradient.flatten(2).mean(2)
    heat = torch.einsum("nf,nf...->n...", weights, maps).clamp_min(0)
    if heat.ndim == 4:
        heat = F.interpolate(heat[:, None], (6, 48, 48), mode="trilinear")[:, 0]
    else:
        heat = F.interpolate(heat[:, None], (48, 48), mode="bilinear").view(2, 6, 48, 48)
    assert heat.any()
    expected = heat / heat.amax((1, 2, 3), keepdim=True).clamp_min(1e-30)
    np.testing.assert_allclose(gradcam(model, frames, classes), expected.numpy(), atol=1e-4)


def test_tokens_lie_in_rows_of_the_picture():
    """2 steps of 3 x 2 cells behind a class token."""
    tokens = torch.arange(13.0).view(1, 13, 1)
    layer = MapLayer(nn.Identity(), num_prefix=1, num_steps=2)
    assert layer.maps(tokens, 3 / 2).tolist() == [[[[[1, 2], [3, 4], [5, 6]], [[7, 8], [9, 10], [11, 12]]]]]
    frame = MapLayer(nn.Identity()).maps(tokens[:, 1:], 1 / 3)
    assert frame.tolist() == [[[[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]]]]


def lets_red_through(model):
    """Weights that mix nothing: channel 0 of the maps is the first frame's red, and class 1 is how much of it."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.dirac_(module.weight)
        elif isinstance(module, nn.Linear | nn.LSTM):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
    with torch.no_grad():
        *hidden, last = [module for module in model.modules() if isinstance(module, nn.Linear)]
        last.weight[1, 0] = 1
        for linear in hidden:
            linear.weight[0, 0] = 1
        if hasattr(model, "rnn"):  # into the first cell of the third gate, the one that remembers, far from saturation
            model.rnn.weight_ih_l0[2 * model.rnn.hidden_size, 0] = 1e-3
    return model


@pytest.mark.parametrize("name", MODELS)
# A pooling of three reaches a place beyond a square, so that those on top and left end before the middle.
@pytest.mark.parametrize("rows", [slice(24), slice(32, 64)])
@pytest.mark.parametrize("columns", [slice(24), slice(32, 64)])
def test_every_model_lights_up_where_a_square_decides(name, rows, columns):
    model, frames = lets_red_through(built(name)), torch.zeros(1, 3, 3, 64, 64)
    frames[0, 0, 0, rows, columns] = 1
    heat = gradcam(model, frames, torch.tensor([1]))[0]
    square = heat[0, rows, columns]
    assert square.max() == heat.max() == 1
    assert square.mean() > 2 * (heat[0].sum() - square.sum()) / (3 * square.size)
    if name in ("late_fusion", "cnn_lstm"):
        assert not heat[1:].any()
    assert not gradcam(model, frames, torch.tensor([0])).any()


@pytest.mark.parametrize("variant", NETWORKS)
@pytest.mark.parametrize("is_training", [True, False])
def test_the_model_stays_as_it_was(variant, is_training):
    model, frames = with_frames(variant)
    model.train(is_training)
    first, *others = model.parameters()
    first.requires_grad_(False)
    others[0].grad = torch.ones_like(others[0])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.inference_mode():
        frames = frames.clone()
    heat = gradcam(model, frames, torch.tensor([1, 7]))
    assert heat.shape == (2, 6, 48, 48)
    assert ((heat >= 0) & (heat <= 1)).all()
    assert model.training is is_training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == [False] + [True] * len(others)
    assert torch.equal(others[0].grad, torch.ones_like(others[0]))
    assert all(parameter.grad is None for parameter in (first, *others[1:]))
    assert not any(module._forward_hooks for module in model.modules())


def test_neither_frozen_weights_nor_mixed_precision_around_it_count():
    model, frames, classes = built("late_fusion"), torch.randn(1, 3, 3, 64, 64), torch.tensor([3])
    expected = gradcam(model, frames, classes)
    assert np.array_equal(gradcam(model.requires_grad_(False), frames, classes), expected)
    model.requires_grad_(True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(gradcam(model, frames, classes), expected)
    with Trainer(TrainConfig(precision="bf16"), seed=0) as trainer:
        trainer.prepare(model, 1)
        frames, classes = frames.to(trainer.device), classes.to(trainer.device)
        found = gradcam(trainer.bare_model, frames, classes)
        assert trainer.bare_model(frames).dtype == torch.float32
    # Convolutions run in another layout of memory there.
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.cuda
@pytest.mark.parametrize("name", MODELS)
def test_the_same_on_a_gpu(name):
    model, frames, classes = built(name), torch.randn(2, 3, 3, 64, 96), torch.tensor([1, 7])
    expected = gradcam(model, frames, classes)
    np.testing.assert_allclose(gradcam(model.cuda(), frames.cuda(), classes), expected, atol=0.02)


def test_hooks_are_gone_after_an_error():
    model = built("late_fusion")
    with pytest.raises(RuntimeError):
        gradcam(model, torch.randn(1, 1, 4, 32, 32), torch.tensor([0]))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_without_maps():
    class Flat(ClipModel):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(12, 2)

        def forward(self, frames):
            return self.linear(frames.mean((3, 4)).flatten(1))

    assert gradcam(Flat(), torch.randn(2, 4, 3, 8, 8), torch.tensor([0, 1])) is None
