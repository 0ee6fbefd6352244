"""The five models: the layers of the reference study one by one, and what each model must be invariant to."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from fastemo.models.build import build_model
from fastemo.models.config import ModelConfig
from fastemo.models.fusion import EarlyCNN, EarlyResNet18, LateFusion

NUM_CLASSES = 8
# torchvision's resnet18 has 11,689,512 parameters, its fc 512 * 1000 + 1000 of them; r3d_18 has 33,371,472,
# its fc 512 * 400 + 400.
RESNET18 = 11_689_512 - 513_000
R3D18 = 33_371_472 - 205_200
HEAD = 512 * NUM_CLASSES + NUM_CLASSES
NAMES = ("early_cnn", "early_resnet18", "late_fusion", "r3d18", "cnn_lstm")
VARIANTS = [
    *((name, {}) for name in NAMES),
    *(("late_fusion", {"fusion": "concat"}), ("late_fusion", {"fusion": "max"}), ("cnn_lstm", {"rnn": "gru"})),
    ("cnn_lstm", {"rnn_norm": True}),
]
SMALL = {"pretrained": False, "backbone": "resnet10t"}


def build(name: str, num_frames: int | None = 3, **options: object) -> nn.Module:
    torch.manual_seed(0)
    config = ModelConfig(name=name, num_frames=num_frames, **{"pretrained": False, **options})
    return build_model(config, NUM_CLASSES)


def clips(num_frames: int, *, batch: int = 2, height: int = 57, width: int = 43) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, num_frames, 3, height, width, generator=generator)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def early_cnn_parameters(num_frames: int) -> int:
    widths = (3 * num_frames, 64, 128, 256, 512)
    # Kernel and bias of each convolution, scale and shift of its BatchNorm.
    blocks = sum(9 * before * after + after + 2 * after for before, after in itertools.pairwise(widths))
    return blocks + 512 * 1024 + 1024 + 1024 * NUM_CLASSES + NUM_CLASSES


def rnn_parameters(gates: int) -> int:
    return gates * (512 * 512 + 512 * 512 + 512 + 512)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("early_cnn", {}, early_cnn_parameters(10)),
        ("early_resnet18", {}, RESNET18 + (30 - 3) * 64 * 49 + HEAD),
        ("late_fusion", {}, RESNET18 + HEAD),
        ("late_fusion", {"fusion": "max"}, RESNET18 + HEAD),
        ("late_fusion", {"fusion": "concat"}, RESNET18 + 10 * 512 * NUM_CLASSES + NUM_CLASSES),
        ("r3d18", {}, R3D18 + HEAD),
        ("cnn_lstm", {}, RESNET18 + rnn_parameters(4) + HEAD),
        ("cnn_lstm", {"rnn": "gru"}, RESNET18 + rnn_parameters(3) + HEAD),
        ("cnn_lstm", {"rnn_norm": True}, RESNET18 + 2 * 512 + rnn_parameters(4) + HEAD),
    ],
)
def test_parameters_are_those_of_the_formula(name, options, expected):
    assert count(build(name, 10, **options)) == expected


def test_early_cnn_layer_by_layer():
    model = build("early_cnn", 5, dropout=0.3)
    assert isinstance(model, EarlyCNN)
    assert [type(layer) for layer in model.blocks] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d] * 4
    for layer in model.blocks:
        if isinstance(layer, nn.Conv2d):
            assert (layer.kernel_size, layer.padding, layer.stride) == ((3, 3), (1, 1), (1, 1))
        if isinstance(layer, nn.MaxPool2d):
            assert layer.kernel_size == 2
    assert [type(layer) for layer in model.classifier] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert model.classifier[2].p == 0.3


def test_early_resnet18_has_the_first_convolution_of_the_reference_study():
    model = build("early_resnet18", 4)
    assert isinstance(model, EarlyResNet18)
    conv = model.backbone.conv1
    assert (conv.kernel_size, conv.stride, conv.padding, conv.bias) == ((7, 7), (2, 2), (3, 3), None)
    # He, fan out: standard deviation sqrt(2 / (64 * 49)).
    assert conv.weight.std().item() == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("name", ["early_resnet18", "late_fusion", "r3d18", "cnn_lstm"])
def test_only_the_early_cnn_has_dropout(name):
    assert not any(isinstance(module, nn.Dropout) for module in build(name, dropout=0.9).modules())


@pytest.mark.parametrize("num_frames", [1, 3, 7])
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_forward_and_backward(name, options, num_frames):
    model = build(name, num_frames, **options)
    logits = model(clips(num_frames))
    assert logits.shape == (2, NUM_CLASSES)
    assert logits.dtype == torch.float32
    logits.square().mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, f"no gradient for {key}"
        assert parameter.grad.isfinite().all(), f"gradient of {key} is not finite"


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_is_deterministic_and_takes_one_clip(name):
    model, same_seed = build(name).eval(), build(name).eval()
    pair = clips(3, height=33, width=47)
    with torch.no_grad():
        assert torch.equal(model(pair), model(pair))
        assert torch.equal(model(pair), same_seed(pair))
        torch.testing.assert_close(model(pair[:1]), model(pair)[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_memory_layout_changes_nothing(name):
    model, frames = build(name, 3, **SMALL), clips(3)
    channels_last = frames.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    torch.testing.assert_close(logits_of(model, channels_last), logits_of(model, frames), rtol=1e-4, atol=1e-4)


def test_frames_fold_into_the_batch_without_a_copy():
    seen: list[Tensor] = []

    class Spy(nn.Module):
        head_hidden_size = 3

        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return images.mean(dim=(2, 3))

    model, frames = LateFusion(Spy(), 4, fusion="max", num_frames=None), clips(3)
    logits = model(frames)
    assert seen[0].data_ptr() == frames.data_ptr()
    features = frames.mean(dim=(3, 4))
    torch.testing.assert_close(model.classifier(model.join(features)), logits)


def logits_of(model: nn.Module, frames: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(frames)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_only_late_fusion_by_mean_or_max_is_order_blind(name, options):
    model, frames = build(name, 5, **SMALL, **options), clips(5)
    logits, shuffled = logits_of(model, frames), logits_of(model, frames[:, [3, 0, 4, 2, 1]])
    if name == "late_fusion" and options != {"fusion": "concat"}:
        torch.testing.assert_close(shuffled, logits, rtol=1e-4, atol=1e-5)
    else:
        assert (shuffled - logits).abs().max() > 1e-4


def test_fusions_are_what_they_are_called():
    frames = clips(3)
    for fusion, join in (
        ("mean", lambda features: features.mean(1)),
        ("max", lambda features: features.max(1).values),
        ("concat", lambda features: torch.cat(list(features.unbind(1)), dim=1)),
    ):
        model = build("late_fusion", 3, **SMALL, fusion=fusion).eval()
        with torch.no_grad():
            features = torch.stack([model.backbone(frames[:, t]) for t in range(3)], dim=1)
            expected = model.classifier(join(features))
        torch.testing.assert_close(logits_of(model, frames), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rnn", ["lstm", "gru"])
def test_cnn_rnn_classifies_its_last_hidden_state(rnn):
    model = build("cnn_lstm", 4, **SMALL, rnn=rnn, rnn_hidden=32).eval()
    frames = clips(4)
    with torch.no_grad():
        _, state = model.rnn(model.backbone(frames.flatten(0, 1)).view(2, 4, -1))
        hidden = state[0] if rnn == "lstm" else state
        expected = model.classifier(hidden[-1])
    torch.testing.assert_close(logits_of(model, frames), expected, rtol=1e-4, atol=1e-5)


def test_rnn_norm_normalises_the_features():
    model = build("cnn_lstm", 2, **SMALL, rnn_norm=True).eval()
    seen: list[Tensor] = []
    model.rnn.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits_of(model, clips(2))
    torch.testing.assert_close(seen[0].mean(-1), torch.zeros(2, 2), rtol=0, atol=1e-4)
    torch.testing.assert_close(seen[0].var(-1, unbiased=False), torch.ones(2, 2), rtol=0, atol=1e-2)


def test_r3d18_sees_time_where_torchvision_has_it():
    model, frames = build("r3d18", 3).eval(), clips(3)
    stacked = torch.stack([frames[:, :, channel] for channel in range(3)], dim=1)
    assert stacked.shape == (2, 3, 3, 57, 43)
    with torch.no_grad():
        expected = model.classifier(model.backbone(stacked))
    torch.testing.assert_close(logits_of(model, frames), expected)


def test_inflated_stem_sees_a_still_clip_as_one_frame():
    single, inflated = build("late_fusion", 1).eval(), build("early_resnet18", 6, stem="inflate").eval()
    image = clips(1)[:, 0]
    still = image.repeat(1, 6, 1, 1)
    with torch.no_grad():
        convolved, expected = inflated.backbone.conv1(still), single.backbone.conv1(image)
        torch.testing.assert_close(convolved, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(inflated.backbone(still), single.backbone(image), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_models_built_for_one_t_must_be_given_it_and_others_take_any(name, options):
    if name.startswith("early") or options == {"fusion": "concat"}:
        with pytest.raises(ValueError, match=r"model\.num_frames is None"):
            build(name, None, **options)
    else:
        model = build(name, None, **SMALL, **options)
        for num_frames in (2, 5):
            assert logits_of(model, clips(num_frames)).shape == (2, NUM_CLASSES)


@pytest.mark.parametrize("backbone", ["resnet10t", "mobilenetv3_small_050", "convnext_atto"])
@pytest.mark.parametrize("name", ["late_fusion", "cnn_lstm"])
def test_any_timm_backbone(name, backbone):
    model = build(name, 2, backbone=backbone)
    assert model(clips(2, height=64, width=64)).shape == (2, NUM_CLASSES)


def test_r3d18_on_a_cpu_has_finite_gradients_under_bf16():
    """At this shape torch 2.15's bf16 conv3d gave NaN in `layer3.1.conv1`; the model computes in float32 instead."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(name="r3d18", pretrained=False), 8)
    clips = torch.randn(16, 8, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(clips)
    assert logits.dtype == torch.float32
    logits.logsumexp(1).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("rnn", ["lstm", "gru"])
def test_the_recurrent_layer_computes_in_float32_under_autocast(rnn):
    """cuDNN would use fp16 in place of bf16, and without a scaler its gradients underflow."""
    model = build_model(ModelConfig(name="cnn_lstm", rnn=rnn, num_frames=3, pretrained=False), 8)
    seen = []
    model.rnn.register_forward_hook(lambda module, given, result: seen.extend([given[0].dtype, result[0].dtype]))
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(2, 3, 3, 32, 32)).sum().backward()
    assert seen == [torch.float32, torch.float32]
    assert all(parameter.grad is not None for parameter in model.parameters())
