"""The main path on a GPU. `FASTEMO_REQUIRE_CUDA=1` turns the skip into a failure, so no GPU job skips by accident."""

from contextlib import contextmanager

import pytest
import torch
from helpers import REPOSITORY
from networks import NETWORKS, shallow_networks

from fastemo.config import read_config
from fastemo.corpus.ravdess import EMOTIONS
from fastemo.experiment.run import run
from fastemo.models.build import build_model
from fastemo.models.config import ModelConfig
from fastemo.training.checkpoint import snapshot
from fastemo.training.config import TrainConfig
from fastemo.training.faults import OutOfMemory
from fastemo.training.state import generators, load_optimizer, set_generators
from fastemo.training.trainer import Trainer
from fastemo.video import loader as loader_module
from fastemo.video.augment import augment, center_crop
from fastemo.video.config import AugmentConfig, StoreConfig, VideoConfig
from fastemo.video.loader import ClipLoader
from fastemo.video.transfer import Transfer

pytestmark = pytest.mark.cuda


CROP = AugmentConfig(crop_size=32)


def loader_of(manifest, count, batch_size, device="cuda", **options):
    """Over the first clips, by one backend: test_dali.py holds DALI's frames against PyAV's."""
    config = VideoConfig(num_frames=3, size=36, backend="pyav")
    clips = manifest.clips[:count]
    return ClipLoader(clips, manifest.root, EMOTIONS, config, batch_size=batch_size, device=device, **options)


class LateTransfer(Transfer):
    """Copies on CUDA come some 10 ms late: who does not wait for them reads what was there before."""

    def upload(self, host):
        if self.device.type == "cuda":
            torch.cuda._sleep(20_000_000)
        return super().upload(host)


def test_batches_and_augmentation_equal_the_cpus_though_copies_come_late(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(loader_module, "Transfer", LateTransfer)
    store = StoreConfig(tier="device", root=tmp_path)  # empty: the first epoch decodes and uploads
    with (
        loader_of(manifest, 10, 4, "cpu", shuffle=True) as hosts,
        loader_of(manifest, 10, 4, shuffle=True, store=store) as devices,
    ):
        for epoch in (0, 1):
            for host, device in zip(hosts.epoch(epoch), devices.epoch(epoch), strict=True):
                assert host.keys == device.keys
                assert device.frames.is_cuda
                for name in ("frames", "labels", "is_padding"):
                    assert torch.equal(getattr(host, name), getattr(device, name).cpu())
                one, other = (augment(batch.frames, CROP, batch.keys, seed=0, epoch=1) for batch in (host, device))
                torch.testing.assert_close(one, other.cpu(), rtol=0, atol=0.02)


@pytest.mark.parametrize("variant", NETWORKS)
def test_models_equal_the_cpus(variant, monkeypatch):
    # What trained before in this process may have left TF32 on, which is further off.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    name, options = variant.partition("-")[0], NETWORKS[variant]
    with shallow_networks():
        model = build_model(ModelConfig(name=name, num_frames=6, size=64, pretrained=False, **options), 8).eval()
    clips = torch.randn(2, 6, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model.cuda()(clips.cuda()).cpu(), model.cpu()(clips), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_run_trains(tiny_corpus, tmp_path, precision):
    options = ["--config", str(REPOSITORY / "configs" / "quick.yaml")]
    options += ["--corpus.root", str(tiny_corpus), "--runs_dir", str(tmp_path)]
    small = ["--video.size", "36", "--augment.crop_size", "32", "--train.epochs", "2"]
    run_dir = run(read_config([*options, *small, "--train.precision", precision]))
    assert (run_dir / "test.json").is_file()


@contextmanager
def training(manifest, store, name, batch_size=4, **config):
    """A trainer that has prepared a model, a loader whose clips lie in the device's memory, and sums for its steps."""
    store = StoreConfig(tier="device", root=store)
    with (
        Trainer(TrainConfig(batch_size=batch_size, **config), seed=0) as trainer,
        loader_of(manifest, 16, batch_size, store=store) as loader,
    ):
        trainer.prepare(build_model(ModelConfig(name=name, num_frames=3, pretrained=False), 8), 4)
        trainer.model.train()
        for _ in loader.epoch(0):
            pass
        assert all(loader.kept.on_device(row) for row in range(len(loader.clips)))
        yield trainer, loader, torch.zeros(3, device="cuda", dtype=torch.float64)


@pytest.mark.parametrize("name", ["late_fusion", "cnn_lstm", "tsm", "frame_transformer"])
def test_the_host_waits_for_nothing_in_a_step(manifest, tmp_path, name):
    """Law 9, by torch's own watch."""
    with training(manifest, tmp_path, name) as (trainer, loader, totals):
        batches = list(loader.epoch(1))
        for batch in batches[:2]:
            trainer.train_step([batch], CROP, 0, totals)
        try:
            torch.cuda.set_sync_debug_mode("error")
            for batch in batches[2:]:
                trainer.train_step([batch], CROP, 0, totals)
            # A warm epoch hands its batches over without a stop, too.
            for batch in loader.epoch(2):
                trainer.train_step([batch], CROP, 0, totals)
            with torch.inference_mode():
                trainer.bare_model(center_crop(batch.frames, CROP))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert totals[2] == 4 * len(batches) + 16


def test_the_same_weights_follow_from_a_saved_state(manifest, tmp_path):
    with training(manifest, tmp_path, "late_fusion", precision="fp32") as (trainer, loader, totals):

        def stepped(epoch):
            for batch in loader.epoch(epoch):
                trainer.train_step([batch], CROP, epoch, totals)
            return snapshot(trainer.bare_model.state_dict())

        weights, optimizer = stepped(1), snapshot(trainer.optimizer.state_dict())
        states = generators(trainer.device)
        first = stepped(2)
        trainer.load_weights(weights)
        load_optimizer(trainer.optimizer, optimizer)
        set_generators(states, trainer.device)
        for name, value in stepped(2).items():
            difference = (value.double() - first[name].double()).norm()
            assert difference <= 1e-3 * first[name].double().norm().clamp(min=1e-6), name


def test_memory_that_runs_out_is_told_with_what_to_do(manifest, tmp_path):
    with training(manifest, tmp_path, "late_fusion", batch_size=16) as (trainer, loader, totals):
        (batch,) = loader.epoch(1)
        trainer.train_step([batch], CROP, 0, totals)
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(trainer.device).total_memory
        torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)
        try:
            told = pytest.raises(OutOfMemory, match=r"--train\.batch_size|--store\.tier memory")
            with told, trainer.plain_faults():
                trainer.train_step([batch], CROP, 0, totals)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)


def test_bf16_leaves_the_recurrent_layers_gradients_right(monkeypatch):
    """cuDNN would compute in fp16, whose gradients underflow without a scaler."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(name="cnn_lstm", num_frames=10, pretrained=False), 8).cuda().train()
    features, labels = torch.randn(40, 512, device="cuda"), torch.arange(4, device="cuda")
    monkeypatch.setattr(model.backbone, "forward", lambda frames: features)
    gradients = []
    for half in (False, True):
        features = features.detach().requires_grad_()
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            logits = model(torch.zeros(4, 10, 3, 32, 32, device="cuda"))
        (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits.float(), labels), features)
        gradients.append(gradient.view(4, 10, -1).transpose(0, 1).flatten(1))
    exact, rough = gradients
    assert ((rough - exact).norm(dim=1) < 0.05 * exact.norm(dim=1)).all()
