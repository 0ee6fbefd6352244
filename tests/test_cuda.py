"""The main path on a GPU. `FASTEMO_REQUIRE_CUDA=1` turns the skip into a failure, so no GPU job skips by accident."""

from pathlib import Path

import pytest
import torch

from fastemo.config import read_config
from fastemo.corpus.ravdess import EMOTIONS
from fastemo.experiment.run import run
from fastemo.models.build import build_model
from fastemo.models.config import ModelConfig
from fastemo.training.config import TrainConfig
from fastemo.training.trainer import Trainer
from fastemo.video.augment import augment
from fastemo.video.config import AugmentConfig, StoreConfig, VideoConfig
from fastemo.video.loader import ClipLoader

REPOSITORY = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.cuda


def test_batches_and_augmentation_equal_the_cpus(manifest):
    # By one backend: what DALI decodes is held against PyAV in tests/video/test_dali.py.
    config, crop = VideoConfig(num_frames=3, size=36, backend="pyav"), AugmentConfig(crop_size=32)
    options = {"batch_size": 4, "shuffle": True}
    host_loader, device_loader = (
        ClipLoader(manifest.clips[:10], manifest.root, EMOTIONS, config, device=device, **options)
        for device in ("cpu", "cuda")
    )
    for host, device in zip(host_loader.epoch(1), device_loader.epoch(1), strict=True):
        assert host.keys == device.keys
        assert device.frames.is_cuda
        assert torch.equal(host.frames, device.frames.cpu())
        one, other = (augment(batch.frames, crop, batch.keys, seed=0, epoch=1) for batch in (host, device))
        torch.testing.assert_close(one, other.cpu(), rtol=0, atol=0.02)


@pytest.mark.parametrize("name", ["early_cnn", "early_resnet18", "late_fusion", "r3d18", "cnn_lstm"])
def test_models_equal_the_cpus(name, monkeypatch):
    # What trained before in this process may have left TF32 on, which is further off.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    model = build_model(ModelConfig(name=name, num_frames=4, pretrained=False), 8).eval()
    clips = torch.randn(2, 4, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model.cuda()(clips.cuda()).cpu(), model.cpu()(clips), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_run_trains(tiny_corpus, tmp_path, precision):
    options = ["--config", str(REPOSITORY / "configs" / "quick.yaml")]
    options += ["--corpus.root", str(tiny_corpus), "--runs_dir", str(tmp_path)]
    small = ["--video.size", "36", "--augment.crop_size", "32", "--train.epochs", "2"]
    run_dir = run(read_config([*options, *small, "--train.precision", precision]))
    assert (run_dir / "test.json").is_file()


def settled(loader):
    """Batches from the device's own memory, as in every epoch but the first."""
    for _ in loader.epoch(0):
        pass
    batches = list(loader.epoch(1))
    assert all(loader.kept.on_device(row) for row in range(len(loader.clips)))
    return batches


@pytest.mark.parametrize("name", ["late_fusion", "cnn_lstm"])
def test_the_host_waits_for_nothing_in_a_step(manifest, tmp_path, name):
    """Law 9, by torch's own watch."""
    config, crop = VideoConfig(num_frames=3, size=36), AugmentConfig(crop_size=32)
    store = StoreConfig(tier="device", root=tmp_path)
    options = {"batch_size": 4, "device": "cuda", "store": store}
    with (
        Trainer(TrainConfig(batch_size=4), seed=0) as trainer,
        ClipLoader(manifest.clips[:16], manifest.root, EMOTIONS, config, **options) as loader,
    ):
        trainer.prepare(build_model(ModelConfig(name=name, num_frames=3, pretrained=False), 8), 4)
        trainer.model.train()
        totals, batches = torch.zeros(3, device="cuda", dtype=torch.float64), settled(loader)
        for batch in batches[:2]:
            trainer.train_step([batch], crop, 0, totals)
        try:
            torch.cuda.set_sync_debug_mode("error")
            for batch in batches[2:]:
                trainer.train_step([batch], crop, 0, totals)
            # A warm epoch hands its batches over without a stop, too.
            for batch in loader.epoch(2):
                trainer.train_step([batch], crop, 0, totals)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert totals[2] == 4 * len(batches) + 16
