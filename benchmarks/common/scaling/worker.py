"""One process of a scaling run: started by `scaling.py` through a launcher, never by hand.

Task `speed` times training steps on clips that lie in memory, with the gradient all-reduce and without it. Task
`check` trains a few steps and records each one's clips and loss. The first process writes what was found.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__" and sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[3])

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.optim.swa_utils import update_bn

from benchmarks.common.epochs.loops import sums, wait_for
from benchmarks.common.measure import timed
from benchmarks.common.stages import loader_of
from fastemo.corpus.manifest import Manifest, read_manifest
from fastemo.errors import one_line_errors
from fastemo.machine import available_processors, write_text
from fastemo.models.build import build_model
from fastemo.models.config import ModelConfig
from fastemo.training.config import Precision, TrainConfig
from fastemo.training.trainer import Trainer
from fastemo.video.augment import center_crop
from fastemo.video.config import AugmentConfig, StoreConfig, VideoConfig
from fastemo.video.loader import ClipLoader

SEED = 0
CHECK_EPOCHS = 2
_CHECK_RATE = 1e-5


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every process of a launch does.

    Attributes:
        batch_size: Clips a step over all processes; in weak scaling of each process.
        warm_up, steps: Steps before they are timed, and steps that are.
        processors: Of this host, where one machine plays several hosts; `None`: all.
    """

    task: Literal["speed", "check"]
    corpus: str
    manifest: str
    store: str
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
        """Clips of a check: the last step of an epoch is a smaller one, and two processes need padding."""
        return 3 * self.batch_size + 2 * (self.batch_size // 4) + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", type=Path, required=True, help="JSON file, a Job")
    parser.add_argument("--out", type=Path, required=True, help="JSON file that the first process writes")
    options = parser.parse_args()
    with one_line_errors():
        job = Job(**json.loads(options.job.read_text()))
        if job.processors is not None:
            os.sched_setaffinity(0, job.processors)
        # Launchers tell each process to use one thread, however many processors it has.
        # A check needs sums in the same order, whatever share of the processors a process has.
        torch.set_num_threads(available_processors() if job.task == "speed" else 1)
        manifest = read_manifest(Path(job.manifest), Path(job.corpus))
        found = speed(job, manifest) if job.task == "speed" else check(job, manifest)
        if found is not None:
            write_text(options.out, json.dumps(found))


def make_loader(
    job: Job, manifest: Manifest, trainer: Trainer, num_clips: int, batch_size: int, *, whole: bool = False
) -> ClipLoader:
    """The training's own loader over the first clips; `whole` gives every process all of them."""
    tier: Any = "device" if trainer.device.type == "cuda" else "memory"
    return loader_of(
        manifest,
        manifest.clips[:num_clips],
        VideoConfig(num_frames=job.num_frames, size=job.size),
        batch_size=batch_size,
        seed=SEED,
        shuffle=True,
        even=True,
        rank=0 if whole else trainer.rank,
        world_size=1 if whole else trainer.world_size,
        device=trainer.device,
        store=StoreConfig(tier=tier, root=Path(job.store)),
        say=lambda _: None,
    )


def make_model(job: Job, manifest: Manifest, trainer: Trainer, **changes: Any) -> nn.Module:
    trainer.seed_everything(epoch=0)
    config = ModelConfig(name=job.model, num_frames=job.num_frames, pretrained=False, **changes)  # type: ignore[arg-type]
    return build_model(config, len(manifest.class_names))


def speed(job: Job, manifest: Manifest) -> dict[str, Any] | None:
    """Time steps of strong and of weak scaling, each with and without the gradient all-reduce."""
    # The plateau schedule is stepped by epochs, of which there are none here.
    with Trainer(TrainConfig(precision=job.precision), seed=SEED) as trainer, ExitStack() as stack:
        batch_sizes = {"strong": job.batch_size // trainer.world_size, "weak": job.batch_size}
        if trainer.world_size == 1:
            del batch_sizes["weak"]  # the same
        model = make_model(job, manifest, trainer)
        exchanged = sum(it.numel() * it.element_size() for it in model.parameters() if it.requires_grad)
        loaders = {}
        for kind, batch_size in batch_sizes.items():
            a_step = batch_size * trainer.world_size
            whole_steps = len(manifest.clips) // a_step * a_step
            loaders[kind] = stack.enter_context(make_loader(job, manifest, trainer, whole_steps, batch_size))
            for _ in loaders[kind].epoch():
                pass  # decoded, or read from the store, before steps are timed
        trainer.prepare(model, job.steps)
        trainer.model.train()
        augment = AugmentConfig(crop_size=job.crop_size)
        passes = {}
        for kind, loader in loaders.items():
            run_steps(trainer, loader, augment, job.warm_up, exchange=True)
            passes[kind] = run_steps(trainer, loader, augment, job.steps, exchange=True)
            if trainer.world_size > 1:
                run_steps(trainer, loader, augment, 1, exchange=False)
                passes[f"{kind}_local"] = run_steps(trainer, loader, augment, job.steps, exchange=False)
        return about(trainer, exchanged) | {"passes": passes} if trainer.is_main else None


def run_steps(
    trainer: Trainer, loader: ClipLoader, augment: AugmentConfig, steps: int, *, exchange: bool
) -> dict[str, float]:
    """Clips, seconds and processor seconds of some steps, over all processes."""
    totals = sums(trainer.device)

    def work() -> int:
        # The same epoch again and again: its clips lie in memory after the first time.
        with closing(batch for _ in count() for batch in loader.epoch()) as batches:
            for batch in islice(batches, steps):
                with nullcontext() if exchange else trainer.accelerator.no_sync(trainer.model):
                    trainer.train_step([batch], augment, 0, totals)
            wait_for_all(trainer)
        return 0

    wait_for_all(trainer)
    took = timed(work)
    counted = torch.tensor([float(totals[2]), took.cpu_seconds], device=trainer.device, dtype=torch.float64)
    clips, cpu = trainer.accelerator.reduce(counted, "sum").tolist()
    return asdict(replace(took, clips=int(clips), cpu_seconds=cpu))


def wait_for_all(trainer: Trainer) -> None:
    wait_for(trainer.device)
    trainer.accelerator.wait_for_everyone()


def check(job: Job, manifest: Manifest) -> dict[str, Any] | None:
    """Train two epochs in fp32 with nothing that depends on how a batch is dealt to processes."""
    config = TrainConfig(speed="plain", precision="fp32", lr=_CHECK_RATE, clip_norm=0.0, freeze_batch_norm=True)
    augment = AugmentConfig(crop_size=job.crop_size)
    num_clips = job.check_clips()
    with Trainer(config, seed=SEED) as trainer, ExitStack() as stack:
        model = make_model(job, manifest, trainer, dropout=0.0)
        with make_loader(job, manifest, trainer, num_clips, job.batch_size, whole=True) as loader:
            # Every BatchNorm gets the mean statistics of the same batches on each process, which are then frozen.
            update_bn((center_crop(batch.frames, augment) for batch in loader.epoch()), model.to(trainer.device))
        trainer.prepare(model, job.steps)
        norms: list[float] = []
        trainer.optimizer.optimizer.register_step_pre_hook(lambda *_: norms.append(gradient_norm(trainer.model)))
        trainer.model.train()
        a_process = job.batch_size // trainer.world_size
        loader = stack.enter_context(make_loader(job, manifest, trainer, num_clips, a_process))
        steps = []
        for epoch in range(1, CHECK_EPOCHS + 1):
            for batch in loader.epoch(epoch):
                totals = sums(trainer.device)
                trainer.train_step([batch], augment, epoch, totals)
                loss, _, clips = trainer.accelerator.reduce(totals, "sum").tolist()
                marked = list(zip(batch.keys, batch.is_padding.tolist(), strict=True))
                steps.append({"keys": dealt(gather_object([marked])), "loss": loss / clips, "norm": norms[-1]})
        return about(trainer, 0) | {"steps": steps, "padding": loader.num_padding} if trainer.is_main else None


def gradient_norm(model: nn.Module) -> float:
    return float(nn.utils.get_total_norm([it.grad for it in model.parameters() if it.grad is not None]))


def dealt(ranks: list[list[tuple[str, bool]]]) -> list[str]:
    """The global batch in its order: a clip of each process in turn, without padding."""
    return [key for turn in zip(*ranks, strict=True) for key, is_padding in turn if not is_padding]


def about(trainer: Trainer, exchanged: int) -> dict[str, Any]:
    return {
        "processes": trainer.world_size,
        "threads_a_process": torch.get_num_threads(),
        "backend": torch.distributed.get_backend() if torch.distributed.is_initialized() else "none",
        "arithmetic": str(trainer.speed),
        "exchanged_mib_a_step": round(exchanged / 2**20, 2) if trainer.world_size > 1 else 0.0,
    }


if __name__ == "__main__":
    main()
