"""A plain loop of today: decord in a DataLoader's workers, torchvision's v2 transforms, Accelerate.

Settings: as many workers as processors, which live on, one decoder thread in each, frames scaled by the reader;
crop, flip, rotation and normalisation once for a clip's frames together, in the worker; losses read once an epoch;
bf16 where the device has it fast, but float32 for 3D convolutions on a CPU, where bf16 gives NaN. The report's
networks, optimiser and clipping. Of the libraries that decode video, decord was the quickest in
`throughput.py` on processors; decord or decord2, by the version that `versions` names.

A program that trains an epoch for each line on its standard input and answers each by a JSON line.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peer
import report_training
import torch
import video_loaders
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2


class Videos(Dataset[tuple[Tensor, int]]):
    """Files -> float [T, 3, H, W] and the class."""

    def __init__(self, paths: list[Path], options: argparse.Namespace) -> None:
        self.paths, self.options = paths, options
        self.labels = [report_training.label(path) for path in paths]
        self.transform = v2.Compose(
            [
                v2.RandomCrop(options.crop_size),
                v2.RandomHorizontalFlip(0.5),
                v2.RandomRotation(20),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(report_training.MEAN, report_training.STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        frames = video_loaders.read_decord(self.paths[index], self.options)
        return self.transform(frames), self.labels[index]


def precision(model: str) -> str:
    if torch.cuda.is_available():
        return "bf16"
    return "bf16" if model != "r3d18" and torch.ops.mkldnn._is_mkldnn_bf16_supported() else "no"


def epochs(
    accelerator: Accelerator, model: nn.Module, loader: DataLoader[Any], lr: float
) -> Iterator[dict[str, float]]:
    """Train, an epoch for each that is asked for."""
    criterion = nn.CrossEntropyLoss()
    model, optimizer, loader = accelerator.prepare(model, report_training.adam(model, lr), loader)
    while True:
        model.train()
        totals, clips, steps = torch.zeros(2, device=accelerator.device), 0, 0
        for frames, labels in loader:
            optimizer.zero_grad()
            logits = model(frames)
            loss = criterion(logits, labels)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), report_training.CLIP_NORM)
            optimizer.step()
            totals += torch.stack([loss.detach() * len(labels), (logits.argmax(1) == labels).sum()])
            clips, steps = clips + len(labels), steps + 1
        loss_sum, correct = totals.tolist()
        yield {"clips": clips, "steps": steps, "loss": loss_sum / clips, "accuracy": correct / clips}


def main() -> None:
    options = report_training.parser(__doc__).parse_args()
    paths = peer.files(options.corpus)
    try:
        video_loaders.decord_package()
    except (ImportError, OSError) as error:
        peer.skip("plain_training", f"{error}; pip install decord2")
    options.example, workers = paths[0], options.workers or peer.processors()
    torch.manual_seed(options.seed)
    mixed = precision(options.model)
    accelerator = Accelerator(mixed_precision=mixed, cpu=not torch.cuda.is_available())
    loader = DataLoader(
        Videos(paths, options),
        batch_size=options.batch_size,
        shuffle=True,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=True,
        prefetch_factor=2,
    )
    model = report_training.NETWORKS[options.model](options.num_frames)
    about = {
        "versions": {package: peer.version(package) for package in ("torch", "torchvision", "decord", "accelerate")},
        "settings": {
            "workers": workers,
            "precision": mixed.replace("no", "fp32"),
            "batch_size": options.batch_size,
            "prefetch_factor": 2,
        },
    }
    trained = epochs(accelerator, model, loader, options.lr)
    report_training.serve("plain_training", lambda: next(trained), about)


if __name__ == "__main__":
    main()
