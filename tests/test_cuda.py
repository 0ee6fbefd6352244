"""The main path on a GPU. `FASTEMO_REQUIRE_CUDA=1` turns the skip into a failure, so no GPU job skips by accident."""

from pathlib import Path

import pytest
import torch

from fastemo.config import read_config
from fastemo.corpus.manifest import scan
from fastemo.corpus.ravdess import EMOTIONS
from fastemo.models import ModelConfig, build_model
from fastemo.run import run
from fastemo.video.augment import AugmentConfig, augment
from fastemo.video.config import VideoConfig
from fastemo.video.loader import ClipLoader

REPOSITORY = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.cuda


def test_batches_and_augmentation_equal_the_cpus(tiny_corpus):
    manifest = scan(tiny_corpus)
    config, crop = VideoConfig(num_frames=3, size=36), AugmentConfig(crop_size=32)
    pairs = zip(
        *(
            ClipLoader(
                manifest.clips[:10], manifest.root, EMOTIONS, config, batch_size=4, shuffle=True, device=device
            ).epoch(1)
            for device in ("cpu", "cuda")
        ),
        strict=True,
    )
    for host, device in pairs:
        assert host.keys == device.keys
        assert device.frames.is_cuda
        assert torch.equal(host.frames, device.frames.cpu())
        one, other = (augment(batch.frames, crop, batch.keys, seed=0, epoch=1) for batch in (host, device))
        torch.testing.assert_close(one, other.cpu(), rtol=0, atol=0.02)


@pytest.mark.parametrize("name", ["early_cnn", "early_resnet18", "late_fusion", "r3d18", "cnn_lstm"])
def test_models_equal_the_cpus(name):
    model = build_model(ModelConfig(name=name, num_frames=4, pretrained=False), 8).eval()
    clips = torch.randn(2, 4, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model.cuda()(clips.cuda()).cpu(), model.cpu()(clips), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_run_trains(tiny_corpus, tmp_path, precision):
    options = [
        "--config",
        str(REPOSITORY / "configs" / "quick.yaml"),
        "--corpus.root",
        str(tiny_corpus),
        "--runs_dir",
        str(tmp_path),
    ]
    small = ["--video.size", "36", "--augment.crop_size", "32", "--train.epochs", "2"]
    run_dir = run(read_config([*options, *small, "--train.precision", precision]))
    assert (run_dir / "test.json").is_file()
