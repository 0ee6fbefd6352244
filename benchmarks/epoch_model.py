"""One model, measured in a process of its own: `python -m benchmarks.epoch_model JOB.json`, started by `epoch_time.py`.

A round is: a cold epoch (the run's first, later ones with an emptied store; once for a model that decoding does not
hold up), the pruned decode alone, a warm epoch between the halves of the bare loop, an epoch of each peer. What is
trained outside the warm epochs is forgotten but for the very first step, so that the model has learned what as many
epochs teach, as a peer has.
"""

from __future__ import annotations

import json
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.epoch_loops import bare_loop, breakdown, flops_a_clip, train_epoch, unlearned
from benchmarks.epoch_peers import PeerProcess, started
from benchmarks.ladder import decode_rungs
from benchmarks.measure import Pass, Skipped, rates, total
from fastemo.console import Console
from fastemo.corpus.clip import Clip
from fastemo.corpus.manifest import Manifest, read_manifest
from fastemo.corpus.protocol import split_clips
from fastemo.errors import one_line_errors
from fastemo.models.build import build_model
from fastemo.models.config import ModelConfig
from fastemo.training.config import TrainConfig
from fastemo.training.trainer import Trainer
from fastemo.video.config import AugmentConfig, StoreConfig, VideoConfig
from fastemo.video.loader import ClipLoader

_BREAKDOWN_STEPS = 8
_PEAK_LR = 1e-3  # of the training from scratch that the accuracy is of; configs/quick.yaml

Passes = dict[str, dict[int, Pass]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is measured.

    Attributes:
        corpus, learning: Folder and manifest of the timed clips and of those that accuracy is told on.
        scratch: Stores, extracted frames and checkpoints go there.
        rounds: How often everything is measured.
        learning_clips, learning_epochs: What `fit` trains on for the accuracy, and how long.
        peers: Names of `TRAINING_PEERS`.
    """

    model: str
    corpus: tuple[str, str]
    learning: tuple[str, str]
    scratch: str
    rounds: int
    batch_size: int
    num_frames: int
    size: int
    crop_size: int
    learning_clips: int
    learning_epochs: int
    peers: tuple[str, ...]
    seed: int = 0

    @property
    def model_config(self) -> ModelConfig:
        # `rnn_norm` as learning without pretrained weights needs it.
        return ModelConfig(name=self.model, num_frames=self.num_frames, pretrained=False, rnn_norm=True)  # type: ignore[arg-type]

    @property
    def video(self) -> VideoConfig:
        return VideoConfig(num_frames=self.num_frames, size=self.size)

    @property
    def augment(self) -> AugmentConfig:
        return AugmentConfig(crop_size=self.crop_size)


def train_config(batch_size: int, **changes: Any) -> TrainConfig:
    """The recipe with what is fastest here."""
    return TrainConfig(**{"batch_size": batch_size, "schedule": "constant", "speed": "auto", **changes})


class ModelRuns:
    """A trainer and all that is done with it in a round.

    Attributes:
        passes: By name and round.
        skipped: By name, why something was not measured.
        told: What peers said of themselves.
    """

    def __init__(self, job: Job, manifest: Manifest, trainer: Trainer, stack: ExitStack, console: Console) -> None:
        self.job, self.manifest, self.trainer, self._stack, self._console = job, manifest, trainer, stack, console
        self.passes: Passes = {}
        self.skipped: dict[str, str] = {}
        self.told: dict[str, Any] = {}
        torch.manual_seed(job.seed)
        self._stores = Path(job.scratch) / "stores"
        self._warm = self._loader(manifest.clips, StoreConfig(root=self._stores / "warm"))
        trainer.prepare(build_model(job.model_config, len(manifest.class_names)), len(self._warm))
        with self._loader(manifest.clips[: job.batch_size], StoreConfig(tier="none")) as loader:
            (self._resident,) = loader.epoch(0)
        self.first_step_seconds = self._step()
        self._peers: dict[str, PeerProcess] = {}

    def _loader(self, clips: Sequence[Clip], store: StoreConfig) -> ClipLoader:
        made = ClipLoader(
            clips,
            self.manifest.root,
            self.manifest.class_names,
            self.job.video,
            batch_size=self.job.batch_size,
            seed=self.job.seed,
            shuffle=True,
            even=True,
            device=self.trainer.device,
            store=store,
            say=self._console.say,
        )
        return self._stack.enter_context(made)

    def _step(self) -> float:
        """A step on the resident batch, which is what compiles kernels and makes the optimiser's state."""
        before = time.perf_counter()
        bare_loop(self.trainer, self._resident, self.job.augment, steps=1, seed=self.job.seed)
        return time.perf_counter() - before

    def first_epoch(self) -> None:
        """The cold epoch that fills the store of the warm ones; before it nothing but a step has run."""
        with unlearned(self.trainer):
            self._record("cold", 1, lambda: self._train(0))

    def start_peers(self, frames: Path) -> None:
        job = self.job
        options = {"corpus": self.manifest.root, "model": job.model, "num_frames": job.num_frames, "size": job.size}
        options |= {"crop_size": job.crop_size, "batch_size": job.batch_size, "seed": job.seed}
        options["lr"] = self.trainer.config.lr
        arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        for name in job.peers:
            try:
                process = self._stack.enter_context(started(name, arguments, frames))
            except Skipped as reason:
                self.skipped[name] = str(reason)
                continue
            self._peers[name], self.told[name] = process, process.told

    def round(self, number: int, limit: Callable[[], Pass]) -> None:
        """Everything once, but for the first epoch.

        Half of the bare loop runs before the warm epoch and half after it, so that a machine that slows down or speeds
        up does so for both.
        """
        if number == 1 or self._is_decode_bound:
            self._record("limit", number, limit)
        if number > 1 and self._is_decode_bound:
            self._record("cold", number, lambda: self._cold(number))
        half = len(self._warm) // 2
        bare = [self._bare(len(self._warm) - half)]
        self._record("warm", number, lambda: self._train(number))
        bare += [self._bare(half)] if half else []
        self._record("bare", number, lambda: total(bare))
        for name, process in self._peers.items():
            self._record(name, number, process.epoch)

    @property
    def _is_decode_bound(self) -> bool:
        return rates(self.passes["bare"])[1] > rates(self.passes["limit"])[1]

    def _record(self, name: str, number: int, work: Callable[[], Pass]) -> None:
        if name in self.skipped:
            return
        try:
            took = work()
        except Skipped as reason:
            self.skipped[name] = str(reason)
            self._console.say(f"{self.job.model} {name} skipped: {reason}")
            return
        self.passes.setdefault(name, {})[number] = took
        rate = f"{took.clips / took.seconds:.1f} clips/s"
        self._console.say(f"{self.job.model} round {number}/{self.job.rounds} {name}: {rate}")

    def _train(self, epoch: int) -> Pass:
        return train_epoch(self.trainer, self._warm, self.job.augment, epoch)

    def _cold(self, epoch: int) -> Pass:
        """An epoch whose store is empty again."""
        root = self._stores / "cold"
        with unlearned(self.trainer), self._loader(self.manifest.clips, StoreConfig(root=root)) as loader:
            took = train_epoch(self.trainer, loader, self.job.augment, epoch)
        shutil.rmtree(root, ignore_errors=True)
        return took

    def _bare(self, steps: int) -> Pass:
        with unlearned(self.trainer):
            return bare_loop(self.trainer, self._resident, self.job.augment, steps=steps, seed=self.job.seed)

    def breakdown(self) -> dict[str, Any]:
        epoch = self.job.rounds + 1
        with unlearned(self.trainer):
            return breakdown(self.trainer, self._warm, self.job.augment, epoch, most_steps=_BREAKDOWN_STEPS)


def peak_memory(device: torch.device) -> dict[str, float | None]:
    """High-water marks of this process so far, in MiB."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    allocated = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    # Kibibytes on Linux, bytes on macOS.
    return {"resident_mib": resident / (2**20 if sys.platform == "darwin" else 2**10), "gpu_allocated_mib": allocated}


def learn(job: Job, console: Console) -> dict[str, Any]:
    """What `fit` makes of the built-in corpus: accuracy on actors it never saw, and how fast its own epochs were."""
    root, table = job.learning
    splits = split_clips(read_manifest(Path(table), Path(root)), "speech")
    train = splits.train[:: max(1, len(splits.train) // job.learning_clips)][: job.learning_clips]
    config = train_config(
        job.batch_size, schedule="onecycle", lr=_PEAK_LR, epochs=job.learning_epochs, early_stop_patience=None
    )
    with Trainer(config, seed=job.seed) as trainer, ExitStack() as stack:

        def loader(clips: tuple[Clip, ...], is_train: bool) -> ClipLoader:
            store = StoreConfig(root=Path(job.scratch) / "stores" / "learning")
            made = ClipLoader(
                clips,
                Path(root),
                splits.class_names,
                job.video,
                batch_size=job.batch_size,
                seed=job.seed,
                shuffle=is_train,
                even=is_train,
                device=trainer.device,
                store=store,
                say=console.say,
            )
            return stack.enter_context(made)

        torch.manual_seed(job.seed)
        train_loader, val_loader = loader(train, True), loader(splits.val, False)
        trainer.prepare(build_model(job.model_config, len(splits.class_names)), len(train_loader))
        trainer.fit(train_loader, val_loader, job.augment, Path(job.scratch) / "runs" / job.model, Console(show=False))
        history = trainer.history
    warm = history[1:]
    return {
        "train_clips": len(train),
        "val_clips": len(splits.val),
        "epochs": len(history),
        "val_accuracy": history[-1]["val_accuracy"],
        "val_uar": history[-1]["val_uar"],
        "train_accuracy": history[-1]["train_accuracy"],
        "train_loss": [row["train_loss"] for row in history],
        "warm_clips_per_second": statistics.median(row["clips_per_second"] for row in warm) if warm else None,
        "data_wait_fraction": statistics.median(row["data_wait_fraction"] for row in warm) if warm else None,
    }


@contextmanager
def decode_limit(manifest: Manifest, video: VideoConfig) -> Iterator[Callable[[], Pass]]:
    """The pruned decode of all clips on all processors, each clip once."""
    with decode_rungs(manifest, video) as rungs:
        (rung,) = [it for it in rungs if it.name == "decode_pruned"]
        rung.warm()
        yield rung.run


def measure(job: Job, console: Console) -> dict[str, Any]:
    """All figures of one model, as JSON takes them."""
    root, table = job.corpus
    manifest = read_manifest(Path(table), Path(root))
    with Trainer(train_config(job.batch_size), seed=job.seed) as trainer, ExitStack() as stack:
        runs, mixed = ModelRuns(job, manifest, trainer, stack, console), trainer.accelerator.mixed_precision
        runs.first_epoch()
        memory = peak_memory(trainer.device)
        limit = stack.enter_context(decode_limit(manifest, job.video))
        runs.start_peers(Path(job.scratch) / "jpegs")
        for number in range(1, job.rounds + 1):
            runs.round(number, limit)
        found = {
            "passes": {
                name: {str(number): asdict(took) for number, took in rounds.items()}
                for name, rounds in runs.passes.items()
            },
            "skipped": runs.skipped,
            "told": runs.told,
            "first_step_seconds": runs.first_step_seconds,
            "breakdown": runs.breakdown(),
            "memory": memory,
            "device": trainer.device.type,
            "precision": {"no": "fp32"}.get(mixed, mixed),
            "speed": str(trainer.speed),
            "train": asdict(trainer.config),
            "flops_a_clip": flops_a_clip(job.model_config, len(manifest.class_names), job.crop_size),
        }
    return {**found, "learning": learn(job, console)}


def main() -> None:
    with one_line_errors():
        (path,) = map(Path, sys.argv[1:])
        given = json.loads(path.read_text())
        job = Job(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
        found = measure(job, Console())
        # The next model begins with empty stores, too.
        shutil.rmtree(Path(job.scratch) / "stores", ignore_errors=True)
        path.with_suffix(".found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
