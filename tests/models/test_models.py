"""Every model: its layers one by one, those of the libraries against their own, and what it must be invariant to."""

from __future__ import annotations

import copy
import itertools
import json
import math
import re

import pytest
import torch
import torch.nn.functional as F
import torchvision
from networks import NETWORKS, TINY_VIDEOMAE, network, shallow_networks, with_statistics
from torch import Tensor, nn

from fastemo.errors import UserError
from fastemo.models import video as video_module
from fastemo.models.build import build_model, checked, with_architecture
from fastemo.models.config import ModelConfig
from fastemo.models.fusion import EarlyCNN, EarlyResNet18, LateFusion
from fastemo.models.temporal import positions, shifted
from fastemo.models.video import adapted, video_backbone, videomae_backbone
from fastemo.training.speed import to_channels_last

NUM_CLASSES = 8
# torchvision's resnet18 has 11,689,512 parameters, its fc 512 * 1000 + 1000 of them; r3d_18 has 33,371,472,
# its fc 512 * 400 + 400.
RESNET18 = 11_689_512 - 513_000
R3D18 = 33_371_472 - 205_200
HEAD = 512 * NUM_CLASSES + NUM_CLASSES
SMALL = {"pretrained": False, "backbone": "resnet10t"}
# Built for one T; others for one size, which must be square.
FOR_ONE_T = ("early_cnn", "early_resnet18", "late_fusion-concat", "video-mvit_v2_s", "videomae")
FOR_ONE_SIZE = ("late_fusion-vit", "video-mvit_v2_s", "videomae")
ORDER_BLIND = ("late_fusion", "late_fusion-max", "late_fusion-attention", "late_fusion-vit")


def build(name: str, num_frames: int | None = 3, **options: object) -> nn.Module:
    torch.manual_seed(0)
    config = ModelConfig(name=name, num_frames=num_frames, **{"pretrained": False, **options})
    return build_model(config, NUM_CLASSES)


def clips(num_frames: int, *, batch: int = 2, height: int = 57, width: int = 43) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, num_frames, 3, height, width, generator=generator)


def squares(num_frames: int = 6, *, batch: int = 2, size: int = 48) -> Tensor:
    return clips(num_frames, batch=batch, height=size, width=size)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def early_cnn_parameters(num_frames: int) -> int:
    widths = (3 * num_frames, 64, 128, 256, 512)
    # Kernel and bias of each convolution, scale and shift of its BatchNorm.
    blocks = sum(9 * before * after + after + 2 * after for before, after in itertools.pairwise(widths))
    return blocks + 512 * 1024 + 1024 + 1024 * NUM_CLASSES + NUM_CLASSES


def rnn_parameters(gates: int) -> int:
    return gates * (512 * 512 + 512 * 512 + 512 + 512)


def transformer_parameters(features: int, width: int) -> int:
    norm, attention = 2 * width, 4 * (width * width + width)
    forward = width * 4 * width + 4 * width + 4 * width * width + width
    # Before the layers a norm, a projection and the class token, behind them a norm.
    return 2 * features + features * width + width + width + 2 * (2 * norm + attention + forward) + norm


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("early_cnn", {}, early_cnn_parameters(10)),
        ("early_resnet18", {}, RESNET18 + (30 - 3) * 64 * 49 + HEAD),
        ("late_fusion", {}, RESNET18 + HEAD),
        ("late_fusion", {"fusion": "max"}, RESNET18 + HEAD),
        ("late_fusion", {"fusion": "attention"}, RESNET18 + 512 + HEAD),
        ("late_fusion", {"fusion": "concat"}, RESNET18 + 10 * 512 * NUM_CLASSES + NUM_CLASSES),
        ("r3d18", {}, R3D18 + HEAD),
        ("cnn_lstm", {}, RESNET18 + rnn_parameters(4) + HEAD),
        ("cnn_lstm", {"rnn": "gru"}, RESNET18 + rnn_parameters(3) + HEAD),
        ("cnn_lstm", {"rnn_norm": True}, RESNET18 + 2 * 512 + rnn_parameters(4) + HEAD),
        ("tsm", {}, RESNET18 + HEAD),
        ("tsm", {"shift": "online"}, RESNET18 + HEAD),
        ("frame_transformer", {}, RESNET18 + transformer_parameters(512, 256) + 256 * NUM_CLASSES + NUM_CLASSES),
        ("video", {"backbone": "r3d_18"}, R3D18 + HEAD),
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


@pytest.mark.parametrize("name", ["early_resnet18", "late_fusion", "r3d18", "cnn_lstm", "tsm"])
def test_of_these_only_the_early_cnn_has_dropout(name):
    assert not any(isinstance(module, nn.Dropout) for module in build(name, dropout=0.9).modules())


def clips_for(variant: str) -> list[tuple[int, int]]:
    """Numbers of frames and sizes that a variant takes: odd ones where it can."""
    if variant == "videomae":
        return [(2, 16), (6, 48), (10, 112)]
    if variant == "video-s3d":
        return [(5, 17), (7, 57), (10, 48)]
    return [(1, 32), (3, 48), (7, 48)] if variant == "late_fusion-vit" else [(1, 40), (3, 57), (7, 43)]


@pytest.mark.parametrize("variant", NETWORKS)
def test_forward_and_backward(variant):
    for num_frames, size in clips_for(variant):
        model = network(variant, num_frames, size)
        logits = model(squares(num_frames, size=size))
        assert logits.shape == (2, NUM_CLASSES)
        assert logits.dtype == torch.float32
        logits.square().mean().backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, f"no gradient for {key}"
            assert parameter.grad.isfinite().all(), f"gradient of {key} is not finite"


@pytest.mark.parametrize("variant", [name for name in NETWORKS if name not in FOR_ONE_SIZE])
def test_frames_need_not_be_square(variant):
    assert logits_of(network(variant), clips(6)).shape == (2, NUM_CLASSES)


@pytest.mark.parametrize("variant", NETWORKS)
def test_evaluation_is_deterministic_and_takes_one_clip(variant):
    model, same_seed = network(variant).eval(), network(variant).eval()
    pair = squares()
    with torch.no_grad():
        assert torch.equal(model(pair), model(pair))
        assert torch.equal(model(pair), same_seed(pair))
        torch.testing.assert_close(model(pair[:1]), model(pair)[:1], rtol=1e-4, atol=1e-4)
        logits, embedding = model.logits_and_embedding(pair)
        torch.testing.assert_close(logits, model(pair), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.classifier(embedding), logits)


@pytest.mark.parametrize("variant", NETWORKS)
def test_memory_layout_changes_nothing(variant):
    model, frames = network(variant), squares()
    expected = logits_of(model, frames)
    to_channels_last(model)
    channels_last = frames.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    torch.testing.assert_close(logits_of(model, channels_last), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", NETWORKS)
def test_mixed_precision_trains_and_agrees(variant):
    """bf16 has 8 bits: products of the size of the logits are off by some hundredths of it."""
    model, frames = network(variant), squares()
    expected = logits_of(model, frames)
    with torch.autocast("cpu", torch.bfloat16):
        logits = logits_of(model, frames).float()
    with torch.autocast("cpu", torch.bfloat16):
        model.train()(frames).float().square().mean().backward()
    assert (logits - expected).abs().max() < 0.1 * expected.abs().max().clamp_min(0.5)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("variant", NETWORKS)
def test_a_copy_computes_by_itself(variant):
    """`forward_flops` and others copy models; what a copy keeps of its original would compute in it."""
    model, frames = network(variant), squares()
    expected = logits_of(model, frames)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(logits_of(copied, frames), expected)


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


@pytest.mark.parametrize("variant", NETWORKS)
def test_only_late_fusion_but_by_concat_is_order_blind(variant):
    frames = squares()
    model = with_statistics(network(variant), frames)
    logits, shuffled = logits_of(model, frames), logits_of(model, frames[:, [3, 0, 4, 5, 2, 1]])
    if variant in ORDER_BLIND:
        torch.testing.assert_close(shuffled, logits, rtol=1e-4, atol=1e-5)
    else:
        assert (shuffled - logits).abs().max() > 1e-4


def test_fusions_are_what_they_are_called():
    frames = clips(3)
    for fusion, join in (
        ("mean", lambda features: features.mean(1)),
        ("max", lambda features: features.max(1).values),
        ("concat", lambda features: torch.cat(list(features.unbind(1)), dim=1)),
        ("attention", None),
    ):
        model = build("late_fusion", 3, **SMALL, fusion=fusion).eval()
        if join is None:
            weights = model.attention.weight[0]

            def join(features, weights=weights):
                shares = torch.softmax(features @ weights, dim=1)
                return torch.einsum("bt,btf->bf", shares, features)

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


@pytest.mark.parametrize("variant", NETWORKS)
def test_models_built_for_one_t_must_be_given_it_and_others_take_any(variant):
    if variant in FOR_ONE_T:
        with pytest.raises(ValueError, match=r"model\.num_frames is None"):
            network(variant, None)
    else:
        model = network(variant, None)
        for num_frames in (5, 8):
            assert logits_of(model, squares(num_frames)).shape == (2, NUM_CLASSES)


@pytest.mark.parametrize("variant", ["video-mvit_v2_s", "videomae"])
def test_models_built_for_one_size_must_be_given_it(variant):
    with pytest.raises(ValueError, match=r"model\.size is None"):
        network(variant, 6, None)


@pytest.mark.parametrize(
    "backbone", ["resnet10t", "mobilenetv3_small_050", "convnext_atto", "test_vit", "test_efficientnet"]
)
@pytest.mark.parametrize("name", ["late_fusion", "cnn_lstm", "frame_transformer"])
def test_any_timm_backbone(name, backbone):
    """Those that take one size, too: they are built for the run's."""
    model = build(name, 2, backbone=backbone, size=64)
    assert model(clips(2, height=64, width=64)).shape == (2, NUM_CLASSES)


@pytest.mark.parametrize(
    "backbone",
    [
        "resnet18",
        "resnet50",
        "mobilenetv2_100",
        "mobilenetv3_small_100",
        "mobilenetv4_conv_small",
        "efficientnet_lite0",
    ],
)
def test_tsm_shifts_every_residual_branch_and_no_shortcut(backbone):
    """In the branch each layer's input is shifted, on the shortcut it is not; without its shifts TSM is late fusion."""
    frames = clips(5)
    model = with_statistics(build("tsm", 5, backbone=backbone), frames)
    blocks = [it for it in model.modules() if hasattr(it, "downsample") or getattr(it, "has_skip", False)]
    blocks = [it for it in blocks if not isinstance(it, nn.Sequential)]
    layers = [layer for layer in model.modules() if layer._forward_pre_hooks]
    assert len(layers) == len(blocks) > 4
    into_block, into_branch = [], []
    for block, layer in zip(blocks, layers, strict=True):
        block.register_forward_pre_hook(lambda block, inputs: into_block.append(inputs[0].clone()))
        layer.register_forward_hook(lambda layer, inputs, output: into_branch.append(inputs[0].clone()))
    shifted_logits = logits_of(model, frames)
    for before, after in zip(into_block, into_branch, strict=True):
        assert torch.equal(after, shifted(before, 5, is_online=False))
    for layer in (*layers, *blocks):
        layer._forward_pre_hooks.clear()
    plain = build("late_fusion", 5, backbone=backbone)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits_of(model, frames), logits_of(plain, frames), rtol=1e-4, atol=1e-5)
    assert (shifted_logits - logits_of(plain, frames)).abs().max() > 1e-4


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_shifted_channels_are_those_of_the_neighbouring_frames(layout):
    frames = torch.arange(1.0, 1 + 2 * 4 * 16 * 3 * 2).view(8, 16, 3, 2).contiguous(memory_format=layout)
    clip = frames.unflatten(0, (2, 4))
    zero = torch.zeros(2, 1, 2, 3, 2)
    later, earlier = torch.cat([clip[:, 1:, :2], zero], 1), torch.cat([zero, clip[:, :-1, 2:4]], 1)
    expected = torch.cat([later, earlier, clip[:, :, 4:]], 2).flatten(0, 1)
    found = shifted(frames, 4, is_online=False)
    assert torch.equal(found, expected)
    assert found.stride() == frames.stride()
    past = torch.cat([zero, clip[:, :-1, :2]], 1)
    expected = torch.cat([past, clip[:, :, 2:]], 2).flatten(0, 1)
    assert torch.equal(shifted(frames, 4, is_online=True), expected)


def test_online_shifts_do_not_look_ahead():
    model, frames = network("tsm-online", 5).eval(), squares(5)
    seen = []
    model.backbone.register_forward_hook(lambda layer, inputs, output: seen.append(output.unflatten(0, (2, 5))))
    logits_of(model, frames)
    frames[:, 3:] = 0
    logits_of(model, frames)
    torch.testing.assert_close(seen[0][:, :3], seen[1][:, :3], rtol=1e-4, atol=1e-5)
    assert (seen[0][:, 3:] - seen[1][:, 3:]).abs().max() > 1e-4


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "efficientnet_lite0", "seresnet18"])
def test_products_in_place_of_convolutions_of_one_cell_change_nothing(backbone):
    frames = squares(2)
    model = with_statistics(build("late_fusion", 2, backbone=backbone), frames)
    plain = build("late_fusion", 2, backbone=backbone)
    for module in plain.modules():
        if isinstance(module, nn.Conv2d):
            module.__class__ = nn.Conv2d
    plain.load_state_dict(model.state_dict())
    plain.eval()
    found = []
    for one in (model, plain):
        loss = one(frames).square().sum()
        found.append([loss, *torch.autograd.grad(loss, [*one.parameters()])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert any(type(it) is not nn.Conv2d for it in model.modules() if isinstance(it, nn.Conv2d))


def test_tsm_refuses_a_backbone_without_residual_branches():
    with pytest.raises(
        ValueError, match=r"must be a ResNet, MobileNet or EfficientNet of timm for tsm, such as resnet18"
    ):
        build("tsm", backbone="test_vit", size=48)


def test_the_frame_transformer_is_two_encoder_layers_on_a_class_token():
    model, frames = network("frame_transformer").eval(), squares()
    with torch.no_grad():
        features = model.project(model.backbone(frames.flatten(0, 1))).view(2, 6, -1)
        steps, places = torch.meshgrid(torch.arange(6), torch.arange(256), indexing="ij")
        angles = steps / 10_000 ** (2 * (places // 2) / 256)
        sines = torch.where(places % 2 == 0, angles.sin(), angles.cos())
        torch.testing.assert_close(positions(6, features), sines, rtol=1e-4, atol=1e-5)
        tokens = torch.cat([model.class_token.expand(2, 1, -1), features + sines], dim=1)
        for layer in model.encoder.layers:
            heads = [F.linear(layer.norm1(tokens), *it) for it in projections(layer.self_attn)]
            query, key, value = (it.view(2, 7, 4, 64).transpose(1, 2) for it in heads)
            mixed = torch.softmax(query @ key.mT / math.sqrt(64), dim=-1) @ value
            tokens = tokens + layer.self_attn.out_proj(mixed.transpose(1, 2).flatten(2))
            tokens = tokens + layer.linear2(F.gelu(layer.linear1(layer.norm2(tokens))))
        expected = model.classifier(model.encoder.norm(tokens)[:, 0])
    assert len(model.encoder.layers) == 2
    torch.testing.assert_close(logits_of(model, frames), expected, rtol=1e-4, atol=1e-5)


def projections(attention: nn.MultiheadAttention) -> list[tuple[Tensor, Tensor]]:
    return [*zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)]


@pytest.mark.parametrize("backbone", ["r3d_18", "mc3_18", "r2plus1d_18", "s3d", "swin3d_t", "mvit_v2_s"])
def test_video_networks_are_torchvisions(backbone):
    """Bit for bit, at the 16 frames of 224 pixels that all of torchvision's take."""
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(backbone, weights=None).eval()
    ours = video_backbone(backbone, num_frames=16, size=224).eval()
    ours.load_state_dict(theirs.state_dict(), strict=False)
    frames = torch.randn(1, 3, 16, 224, 224)
    head = {"s3d": "classifier", "swin3d_t": "head", "mvit_v2_s": "head"}.get(backbone, "fc")
    classifier = getattr(theirs, head)
    setattr(theirs, head, nn.Identity())
    with torch.no_grad():
        expected = theirs(frames)
        assert torch.equal(ours(frames), expected)
    assert expected.shape == (1, ours.head_hidden_size)
    assert sum(it.numel() for it in theirs.parameters()) == count(ours)
    assert [*classifier.modules()][-1].weight.shape[:2] == (400, ours.head_hidden_size)


@pytest.mark.parametrize("num_frames", [1, 3, 5, 6, 7, 8])
def test_the_gradient_of_s3ds_first_layer_over_time_is_right(num_frames):
    """oneDNN's own, with the padding inside the convolution, is off by many orders of magnitude at 5 to 7 frames."""
    torch.manual_seed(0)
    layer = video_backbone("s3d", num_frames=num_frames, size=24).features[0][1][0]
    exact, frames = copy.deepcopy(layer).double(), torch.randn(2, 64, num_frames, 12, 12)
    for module, given in ((layer, frames), (exact, frames.double())):
        module(given).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad.double(), exact.weight.grad, rtol=1e-3, atol=1e-2)
    plain = F.conv3d(frames, layer.weight, stride=(2, 1, 1), padding=(3, 0, 0))
    torch.testing.assert_close(layer(frames), plain, rtol=1e-4, atol=1e-5)


def test_mvit_of_another_size_is_torchvisions_with_its_grid_set():
    """torchvision's attention resizes its tables itself, in each step, if the grid is another one."""
    torch.manual_seed(0)
    theirs = torchvision.models.get_model("mvit_v2_s", weights=None).eval()
    ours = video_backbone("mvit_v2_s", num_frames=7, size=50).eval()
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith("head")}
    ours.load_state_dict(adapted(state, ours.state_dict()))
    theirs.head = nn.Identity()
    theirs.pos_encoding.temporal_size, theirs.pos_encoding.spatial_size = 4, (13, 13)
    frames = torch.randn(1, 3, 7, 50, 50)
    sizes = {key: len(value) for key, value in ours.state_dict().items() if "rel_pos" in key}
    assert sizes["blocks.0.attn.rel_pos_t"] == 7
    assert sizes["blocks.0.attn.rel_pos_h"] == sizes["blocks.0.attn.rel_pos_w"] == 25
    assert sizes["blocks.15.attn.rel_pos_h"] == 3
    with torch.no_grad():
        torch.testing.assert_close(ours(frames), theirs(frames))


@pytest.mark.parametrize(
    "architecture", [TINY_VIDEOMAE, json.dumps({**json.loads(TINY_VIDEOMAE), "use_mean_pooling": False})]
)
def test_videomae_is_transformers(architecture):
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    torch.manual_seed(0)
    theirs = VideoMAEForVideoClassification(VideoMAEConfig(**json.loads(architecture), num_labels=8)).eval()
    ours = build("videomae", 4, size=32, architecture=architecture).eval()
    state = theirs.state_dict()
    classifier = {key.removeprefix("classifier."): state.pop(key) for key in [*state] if key.startswith("classifier.")}
    ours.backbone.load_state_dict(state)
    ours.classifier.load_state_dict(classifier)
    frames = squares(4, size=32)
    with torch.no_grad():
        assert torch.equal(ours(frames), theirs(frames).logits)


def test_positions_of_a_videomae_are_those_of_the_places_in_its_own_grid():
    """2 x 2 x 2 patches trained, 4 x 4 x 4 asked for: each new place is between old ones."""
    same = videomae_backbone(TINY_VIDEOMAE, num_frames=4, size=32).videomae.embeddings.position_embeddings
    finer = videomae_backbone(TINY_VIDEOMAE, num_frames=8, size=64).videomae.embeddings.position_embeddings
    assert (same.shape, finer.shape) == ((1, 8, 32), (1, 64, 32))
    corners = finer.view(4, 4, 4, 32)[::3, ::3, ::3].reshape(8, 32)
    torch.testing.assert_close(corners, same[0])
    middle = finer.view(4, 4, 4, 32)[1, 0, 0]
    torch.testing.assert_close(middle, 0.75 * same[0, 0] + 0.25 * same[0, 4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "s3d", "num_frames": 3}, "3 frames of 112 pixels: the nearest video.num_frames is 5"),
        ({"backbone": "s3d", "size": 16}, "10 frames of 16 pixels: the nearest augment.crop_size is 17"),
        ({"name": "videomae", "num_frames": 7}, "7 frames of 112 pixels: the nearest video.num_frames is 8"),
        ({"name": "videomae", "size": 100}, "10 frames of 100 pixels: the nearest augment.crop_size is 96"),
        (
            {"name": "videomae", "num_frames": 1, "size": 10},
            "the nearest video.num_frames is 2 and the nearest augment.crop_size is 16",
        ),
        (
            {"name": "early_cnn", "size": 12},
            "early_cnn cannot take clips of 10 frames of 12 pixels: the nearest augment.crop_size is 16",
        ),
        ({"backbone": "resnet18"}, "must be one of r3d_18, mc3_18, r2plus1d_18, s3d, swin3d_t, swin3d_s, mvit_v2_s"),
        ({"name": "late_fusion", "backbone": "s3d"}, "model.backbone is 's3d', must be one of timm.list_models()"),
        ({"name": "videomae", "architecture": "{"}, "model.architecture is not a configuration of VideoMAE"),
        (
            {"name": "tsm", "backbone": "vgg11"},
            "tsm with model.backbone vgg11 cannot be used: model.backbone must be a ResNet",
        ),
    ],
)
def test_what_cannot_run_names_the_nearest_that_can(options, message):
    options = {"name": "video", "num_frames": 10, "size": 112, "pretrained": False, **options}
    if options["name"] == "videomae":
        options = {"architecture": TINY_VIDEOMAE, **options}
    with pytest.raises(ValueError, match=re.escape(message)):
        checked(ModelConfig(**options))


@pytest.mark.parametrize("variant", NETWORKS)
def test_what_can_run_is_accepted_and_uses_no_random_numbers(variant):
    state = torch.get_rng_state()
    config = ModelConfig(name=variant.partition("-")[0], num_frames=6, size=48, pretrained=False, **NETWORKS[variant])
    with shallow_networks():
        assert checked(config) == config
    assert torch.equal(torch.get_rng_state(), state)


def test_a_backbone_that_looks_at_values_is_tried_on_the_processor(monkeypatch):
    forward = LateFusion.forward
    monkeypatch.setattr(LateFusion, "forward", lambda self, frames: forward(self, frames + frames.sum().item()))
    config = ModelConfig(name="late_fusion", num_frames=2, size=32, **SMALL)
    assert checked(config) == config


def test_a_videomae_of_its_authors_needs_no_hub_and_is_saved_whole():
    config = ModelConfig(name="videomae", num_frames=16, size=224, pretrained=False)
    found = json.loads(with_architecture(config).architecture)
    assert found == {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
    config = ModelConfig(name="videomae", backbone="MCG-NJU/videomae-base", pretrained=False)
    assert json.loads(with_architecture(config).architecture)["hidden_size"] == 768


def test_videomae_without_its_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(video_module, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"model.name videomae needs the package transformers: pip install 'fastemo\[transformers\]'"
    ):
        checked(ModelConfig(name="videomae", num_frames=4, size=32, pretrained=False))


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
