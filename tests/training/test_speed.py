"""What is picked for a device, and that it changes how fast a training is and nothing else."""

import pytest
import torch
from torch import nn
from training.fakes import random_batches

from fastemo.models.build import build_model
from fastemo.models.config import ModelConfig
from fastemo.training import speed
from fastemo.training.config import TrainConfig
from fastemo.training.speed import compute_in_fp32, conv3d_error, conv3d_errors, keep_conv3d_right, pick
from fastemo.training.trainer import Trainer
from fastemo.video.config import AugmentConfig

CPU = torch.device("cpu")
MODELS = ("early_cnn", "early_resnet18", "late_fusion", "r3d18", "cnn_lstm", "tsm", "frame_transformer")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def has_bf16(monkeypatch, answer):
    monkeypatch.setattr(speed, "bf16_is_fast_on_cpu", lambda: answer)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: answer)


@pytest.mark.parametrize(
    ("device", "answer", "picked"),
    [
        ("cpu", True, "bf16, channels_last, fused optimiser, memory kept"),
        ("cpu", False, "fp32, channels_last, fused optimiser, memory kept"),
        ("cuda", True, "bf16, channels_last, fused optimiser, TF32"),
        ("cuda", False, "fp16, channels_last, fused optimiser, TF32"),
        ("mps", True, "fp32, channels_last"),
    ],
)
def test_auto_depends_on_the_device_and_fp32_does_not(monkeypatch, device, answer, picked):
    has_bf16(monkeypatch, answer)
    assert (str(pick(TrainConfig(), device)), pick(TrainConfig(), device).note) == (picked, "")
    assert str(pick(TrainConfig(speed="fp32"), device)) == "fp32"


def test_gradients_are_exchanged_in_what_they_were_computed_in(monkeypatch):
    has_bf16(monkeypatch, True)
    assert pick(TrainConfig(), "cpu").exchange is None, "there is nobody to exchange with"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert pick(TrainConfig(), "cpu").exchange == "bf16"
    assert pick(TrainConfig(exchange="fp32"), "cpu").exchange == "fp32"
    assert pick(TrainConfig(precision="fp32"), "cpu").exchange == "fp32"
    assert pick(TrainConfig(speed="fp32"), "cpu").exchange == "fp32"
    assert pick(TrainConfig(speed="fp32", exchange="bf16"), "cpu").exchange == "bf16"
    has_bf16(monkeypatch, False)
    assert pick(TrainConfig(), "cpu").exchange == "fp32"


def test_single_keys_and_the_launcher_win(monkeypatch):
    has_bf16(monkeypatch, True)
    picked = pick(TrainConfig(precision="fp32", channels_last=False, compile="default"), "cpu")
    assert str(picked) == "fp32, fused optimiser, compiled (default), memory kept"
    assert pick(TrainConfig(speed="fp32", channels_last=True), "cpu").channels_last
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert pick(TrainConfig(), "cpu").precision == "fp16"
    assert pick(TrainConfig(speed="fp32"), "cpu").precision == "fp16"
    assert pick(TrainConfig(precision="bf16"), "cpu").precision == "bf16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert pick(TrainConfig(), "cpu").precision == "bf16"


def losses(config, name, data, crop, model=None):
    """The loss of every step."""
    with Trainer(config, seed=1) as trainer:
        trainer.seed_everything(epoch=0)
        model = model or build_model(ModelConfig(name=name, pretrained=False, num_frames=2), 8)
        trainer.prepare(model, len(data))
        trainer.model.train()
        found = []
        for step, batch in enumerate(data):
            trainer.seed_everything(epoch=step)
            totals = torch.zeros(3, dtype=torch.float64)
            trainer.train_step([batch], AugmentConfig(crop_size=crop), 1, totals)
            found.append(float(totals[0]) / len(batch.keys))
    return found


@pytest.mark.parametrize(
    "name", ["early_cnn", *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS if name != "early_cnn")]
)
def test_steps_lose_the_same_as_the_plain_loop(name):
    """Step by step. Adam divides gradients by their size, so rounding in small ones parts the weights in time."""
    crop, size = 16 if name in ("early_cnn", "r3d18") else 32, 6
    data = random_batches([size] * 5, pixels=crop + 2, num_classes=8) * 5
    recipe = {"lr": 2e-5, "batch_size": size}
    plain = losses(TrainConfig(speed="fp32", **recipe), name, data, crop)
    exact = losses(TrainConfig(precision="fp32", **recipe), name, data, crop)
    rough = losses(TrainConfig(precision="bf16", **recipe), name, data, crop)
    assert plain[-1] < plain[0] - 0.2
    assert exact[:3] == pytest.approx(plain[:3], abs=2e-3)
    assert exact == pytest.approx(plain, abs=0.04)
    # bf16 rounds to 2^-9 of a number; over the 20 layers of a ResNet-18 that adds up to 20 times as much of a logit,
    # and the losses begin at the logits' size.
    assert rough == pytest.approx(plain, abs=20 * 2**-9 * max(plain))


class TinyConvModel(nn.Module):
    """Of no length, as the real ones are."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.classifier = nn.Conv2d(6, 8, 3), nn.Linear(8, 8)

    def forward(self, frames):
        return self.classifier(torch.relu(self.conv(frames.flatten(1, 2))).mean((2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "cudagraphs"])
def test_compiled_steps_lose_the_same_and_one_shape_is_compiled(mode):
    data = random_batches([4, 4, 4, 3], pixels=18, num_classes=8) * 2  # the last batch of an epoch has fewer clips
    torch._dynamo.utils.counters.clear()
    recipe = {"batch_size": 4, "precision": "fp32"}
    compiled = losses(TrainConfig(compile=mode, **recipe), "", data, 16, TinyConvModel())
    assert compiled == pytest.approx(losses(TrainConfig(**recipe), "", data, 16, TinyConvModel()), abs=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_right_convolutions_are_left_as_they_are():
    picked = pick(TrainConfig(precision="bf16"), "cuda")
    assert conv3d_error(CPU, picked) < speed.MOST_CONV3D_ERROR
    plain = pick(TrainConfig(speed="fp32"), "cuda")
    assert keep_conv3d_right(nn.Conv3d(3, 4, 3), torch.device("cuda"), plain) == ""
    assert keep_conv3d_right(nn.Conv2d(3, 4, 3), torch.device("cuda"), picked) == ""


def test_the_check_of_a_convolution_stays_within_half_precisions_range():
    """At this size a sum over all places is beyond it where nothing is scaled: the check would fault itself."""
    shape, weight, stride = (8, 3, 4, 112, 112), (4, 3, 3, 7, 7), (1, 2, 2)
    assert max(conv3d_errors(shape, weight, stride, CPU, torch.float16)) < speed.MOST_CONV3D_ERROR


@pytest.mark.parametrize(("precision", "name"), [("bf16", "bf16"), ("fp32", "TF32")])
def test_wrong_convolutions_make_the_model_compute_in_fp32(monkeypatch, precision, name):
    monkeypatch.setattr(speed, "conv3d_error", lambda device, speed: 0.5)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    model, frames = nn.Conv3d(3, 4, 3), torch.randn(1, 3, 4, 8, 8)
    exact = model(frames)
    note = keep_conv3d_right(model, torch.device("cuda"), pick(TrainConfig(precision=precision), "cuda"))
    assert f"in {name} are off by 50%" in note
    assert not torch.backends.cudnn.allow_tf32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(frames), exact)


def test_not_a_number_is_a_whole_error(monkeypatch):
    monkeypatch.setattr(speed.F, "conv3d", lambda inputs, kernel, **_: (inputs.sum() + kernel.sum()) * float("nan"))
    assert conv3d_error(CPU, pick(TrainConfig(precision="bf16"), "cuda")) == 1.0


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_convolutions_are_tried_in_the_layout_and_precision_that_run(monkeypatch, channels_last, precision):
    seen, real = [], speed.F.conv3d

    def looked_at(inputs, kernel, **options):
        is_last = inputs.is_contiguous(memory_format=torch.channels_last_3d)
        seen.append((inputs.dtype, torch.backends.cudnn.allow_tf32, is_last))
        return real(inputs, kernel, **options)

    monkeypatch.setattr(speed.F, "conv3d", looked_at)
    before = torch.backends.cudnn.allow_tf32
    conv3d_error(CPU, pick(TrainConfig(precision=precision, channels_last=channels_last), "cuda"))
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    assert set(seen) == {(torch.float32, False, False), (dtype, True, channels_last)}
    assert torch.backends.cudnn.allow_tf32 == before


def test_autocast_stays_on_outside(monkeypatch):
    inner, outer = nn.Linear(4, 4), nn.Linear(4, 4)
    compute_in_fp32(inner)
    with torch.autocast("cpu", torch.bfloat16):
        assert inner(torch.randn(2, 4)).dtype == torch.float32
        assert outer(torch.randn(2, 4)).dtype == torch.bfloat16
