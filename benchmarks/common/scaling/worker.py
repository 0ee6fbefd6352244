"""One process of a scaling run, started by `launch.py`, not by hand.

Task `speed` times training steps on clips in memory, with the gradient all-reduce and without it. Task `check` trains
a few steps and records each one's clips and loss. The first process writes the results.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.optim.swa_utils import update_bn

from benchmarks.common.epochs.loops import sums, wait_for
from benchmarks.common.measure import Pass, timed
from benchmarks.common.stages import loader_of
from fastemo.corpus.manifest import Manifest, read_manifest
from fastemo.errors import one_line_errors
from fastemo.machine import write_text
from fastemo.models.build import build_model
from fastemo.models.config import ModelConfig
from fastemo.training.config import Precision, TrainConfig
from fastemo.training.trainer import Trainer
from fastemo.video.augment import center_crop
from fastemo.video.config import AugmentConfig, StoreConfig, VideoConfig
from fastemo.video.loader import ClipLoader

SEED = 0


@dataclass(frozen=True, kw_only=True)
class Job:
    """The job of every process of a launch.

    Attributes:
        folder: Holds the corpus (`corpus/`, `manifest.csv`) and the clip store (`store/`); the first process writes
            `found.json` to it.
        batch_size: Clips per step of all processes; in weak scaling of each process.
        warm_up, steps: Number of warm-up steps, and of timed steps.
        processors: Of this host, if one machine simulates several hosts; `None`: all.
    """

    task: Literal["speed", "check"]
    folder: str
    model: str
    num_frames: int
    size: int
    crop_size: int
    batch_size: int
    warm_up: int
    steps: int
    precision: Precision
    processors: tuple[int, ...] | None = None

    def check_clips(self) -> int:
        """Clips of a check: the last step of an epoch is smaller, and two processes need padding."""
        return 3 * self.batch_size + 2 * (self.batch_size // 4) + 1


def main() -> None:
    """Do the job that the only argument describes, in JSON."""
    with one_line_errors():
        job = Job(**json.loads(sys.argv[1]))
        if job.processors is not None:
            os.sched_setaffinity(0, job.processors)
        manifest = read_manifest(Path(job.folder, "manifest.csv"), Path(job.folder, "corpus"))
        found = speed(job, manifest) if job.task == "speed" else check(job, manifest)
        if found is not None:
            write_text(Path(job.folder, "found.json"), json.dumps(found, default=asdict))


def make_loader(
    job: Job, manifest: Manifest, trainer: Trainer, num_clips: int, batch_size: int, *, whole: bool = False
) -> ClipLoader:
    """The training loader over the first clips; with `whole` every process gets all of them."""
    video = VideoConfig(num_frames=job.num_frames, size=job.size)
    tier: Any = "device" if trainer.device.type == "cuda" else "memory"
    store = StoreConfig(tier=tier, root=Path(job.folder, "store"))
    options = {"batch_size": batch_size, "seed": SEED, "shuffle": True, "even": True, "store": store}
    if not whole:
        options |= {"rank": trainer.rank, "world_size": trainer.world_size}
    return loader_of(manifest, manifest.clips[:num_clips], video, device=trainer.device, **options)


def make_model(job: Job, manifest: Manifest, trainer: Trainer, **changes: Any) -> nn.Module:
    trainer.seed_everything(epoch=0)
    config = ModelConfig(name=job.model, num_frames=job.num_frames, pretrained=False, **changes)  # type: ignore[arg-type]
    return build_model(config, len(manifest.class_names))


def speed(job: Job, manifest: Manifest) -> dict[str, Any] | None:
    """Time steps of strong and weak scaling, each with and without the gradient all-reduce."""
    # The plateau schedule is stepped per epoch, and there are no epochs here.
    with Trainer(TrainConfig(precision=job.precision), seed=SEED) as trainer:
        batch_sizes = {"strong": job.batch_size // trainer.world_size}
        if trainer.world_size > 1:  # with one process both are the same
            batch_sizes["weak"] = job.batch_size
        model = make_model(job, manifest, trainer)
        trained_bytes = sum(it.numel() * it.element_size() for it in model.parameters() if it.requires_grad)
        trainer.prepare(model, job.steps)
        trainer.model.train()
        augment = AugmentConfig(crop_size=job.crop_size)
        passes = {}
        for kind, batch_size in batch_sizes.items():
            a_step = batch_size * trainer.world_size
            whole_steps = len(manifest.clips) // a_step * a_step
            with make_loader(job, manifest, trainer, whole_steps, batch_size) as loader:
                for _ in loader.epoch():
                    pass  # decode, or read from the store, before timing
                run_steps(trainer, loader, augment, job.warm_up)
                passes[kind] = run_steps(trainer, loader, augment, job.steps)
                if trainer.world_size > 1:
                    run_steps(trainer, loader, augment, 1, exchange=False)
                    passes[f"{kind}_local"] = run_steps(trainer, loader, augment, job.steps, exchange=False)
        found = {
            "processes": trainer.world_size,
            "threads_a_process": torch.get_num_threads(),
            "backend": torch.distributed.get_backend() if torch.distributed.is_initialized() else "none",
            "arithmetic": str(trainer.speed),
            "exchanged_mib_a_step": round(trained_bytes / 2**20, 2) if trainer.world_size > 1 else 0.0,
            "passes": passes,
        }
        return found if trainer.is_main else None


def run_steps(trainer: Trainer, loader: ClipLoader, augment: AugmentConfig, steps: int, exchange: bool = True) -> Pass:
    """Time steps: clips and processor seconds of all processes, seconds of this one, which waits for the others."""
    totals = sums(trainer.device)

    def wait_for_all() -> None:
        wait_for(trainer.device)
        trainer.accelerator.wait_for_everyone()

    def work() -> int:
        # The same epoch repeatedly: its clips are in memory after the first time.
        batches = islice((batch for _ in count() for batch in loader.epoch()), steps)
        with nullcontext() if exchange else trainer.accelerator.no_sync(trainer.model):
            for batch in batches:
                trainer.train_step([batch], augment, 0, totals)
        wait_for_all()
        return int(totals[2])

    wait_for_all()
    took = timed(work)
    counted = torch.tensor([took.clips, took.cpu_seconds], device=trainer.device, dtype=torch.float64)
    clips, cpu_seconds = trainer.accelerator.reduce(counted, "sum").tolist()
    return Pass(int(clips), took.seconds, cpu_seconds)


def check(job: Job, manifest: Manifest) -> dict[str, Any] | None:
    """Train two epochs in fp32 with nothing that depends on how a batch is split over processes."""
    config = TrainConfig(speed="fp32", precision="fp32", lr=1e-5, clip_norm=0.0, freeze_batch_norm=True)
    augment, num_clips = AugmentConfig(crop_size=job.crop_size), job.check_clips()
    with Trainer(config, seed=SEED) as trainer:
        model = make_model(job, manifest, trainer, dropout=0.0)
        with make_loader(job, manifest, trainer, num_clips, job.batch_size, whole=True) as loader:
            # Every BatchNorm gets the mean statistics of the same batches on each process, then they are frozen.
            update_bn((center_crop(batch.frames, augment) for batch in loader.epoch()), model.to(trainer.device))
        trainer.prepare(model, job.steps)
        norms: list[float] = []

        def add_norm(*_: object) -> None:
            gradients = [it.grad for it in trainer.model.parameters() if it.grad is not None]
            norms.append(float(nn.utils.get_total_norm(gradients)))

        trainer.optimizer.optimizer.register_step_pre_hook(add_norm)
        trainer.model.train()
        steps = []
        with make_loader(job, manifest, trainer, num_clips, job.batch_size // trainer.world_size) as loader:
            for epoch, batch in ((it, batch) for it in (1, 2) for batch in loader.epoch(it)):
                totals = sums(trainer.device)
                trainer.train_step([batch], augment, epoch, totals)
                loss, _, clips = trainer.accelerator.reduce(totals, "sum").tolist()
                marked = list(zip(batch.keys, batch.is_padding.tolist(), strict=True))
                steps.append({"keys": dealt(gather_object([marked])), "loss": loss / clips, "norm": norms[-1]})
            return {"steps": steps, "padding": loader.num_padding} if trainer.is_main else None


def dealt(ranks: list[list[tuple[str, bool]]]) -> list[str]:
    """The global batch in order: one clip of each process in turn, without padding."""
    return [key for turn in zip(*ranks, strict=True) for key, is_padding in turn if not is_padding]


if __name__ == "__main__":
    main()
