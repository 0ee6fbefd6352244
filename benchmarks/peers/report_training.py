"""The report's way to train, end to end: every frame a JPEG beforehand, Pillow, DataLoader, float32.

As the report describes it: T frames by its formula, each loaded by Pillow and transformed alone (resize, random crop,
flip, rotation up to 20 degrees, tensor, ImageNet's normalisation, all drawn anew for every frame), batches shuffled by
a DataLoader with 4 workers, Adam (1e-4, weight decay 1e-4), gradients clipped at 5, and the loss and the correct clips
read from the device in every step. Its networks come from torchvision, here without pretrained weights. Extraction is
timed apart and done once for each `--frames` folder; links to one file are extracted once.

A program that trains an epoch for each line on its standard input and answers each by a JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peer
import torch
import video_loaders
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.models import resnet18
from torchvision.models.video import r3d_18

NUM_CLASSES = 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_NORM = 5.0


def early_cnn(num_frames: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten(1, 2)]
    width = 3 * num_frames
    for wider in (64, 128, 256, 512):
        layers += [nn.Conv2d(width, wider, 3, padding=1), nn.BatchNorm2d(wider), nn.ReLU(), nn.MaxPool2d(2)]
        width = wider
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(1024, NUM_CLASSES))


def early_resnet18(num_frames: int) -> nn.Module:
    backbone = resnet18(weights=None)
    backbone.conv1 = nn.Conv2d(3 * num_frames, 64, kernel_size=7, stride=2, padding=3, bias=False)
    backbone.fc = nn.Linear(512, NUM_CLASSES)
    return nn.Sequential(nn.Flatten(1, 2), backbone)


class FrameByFrame(nn.Module):
    """A ResNet-18 for every frame, then the mean over time or an LSTM's last hidden state, and one Linear."""

    def __init__(self, *, recurrent: bool) -> None:
        super().__init__()
        self.backbone = resnet18(weights=None)
        self.backbone.fc = nn.Identity()
        self.lstm = nn.LSTM(512, 512, batch_first=True) if recurrent else None
        self.fc = nn.Linear(512, NUM_CLASSES)

    def forward(self, clips: Tensor) -> Tensor:
        batch, num_frames = clips.shape[:2]
        features = self.backbone(clips.reshape(batch * num_frames, *clips.shape[2:])).reshape(batch, num_frames, -1)
        if self.lstm is None:
            return self.fc(features.mean(dim=1))
        _, (hidden, _) = self.lstm(features)
        return self.fc(hidden[-1])


class Video(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = r3d_18(weights=None)
        self.network.fc = nn.Linear(512, NUM_CLASSES)

    def forward(self, clips: Tensor) -> Tensor:
        return self.network(clips.transpose(1, 2))


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "early_cnn": early_cnn,
    "early_resnet18": early_resnet18,
    "late_fusion": lambda num_frames: FrameByFrame(recurrent=False),
    "r3d18": lambda num_frames: Video(),
    "cnn_lstm": lambda num_frames: FrameByFrame(recurrent=True),
}


def parser(description: str | None) -> argparse.ArgumentParser:
    arguments = peer.parser(description)
    arguments.add_argument("--model", choices=NETWORKS, required=True)
    arguments.add_argument("--crop_size", type=int, default=112, help="side of what the network sees, in pixels")
    arguments.add_argument("--lr", type=float, default=1e-4)
    arguments.add_argument("--seed", type=int, default=0)
    return arguments


def label(path: Path) -> int:
    """The class that RAVDESS's name says: its third field, less one."""
    fields = path.stem.split("-")
    if len(fields) != 7 or not fields[2].isdigit() or not 1 <= int(fields[2]) <= NUM_CLASSES:
        sys.exit(f"{path.name} has no RAVDESS name, which says the class")
    return int(fields[2]) - 1


def adam(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.999), weight_decay=1e-4)


def serve(name: str, train_epoch: Callable[[], dict[str, float]], about: dict[str, Any]) -> None:
    """Say that all is ready, then train an epoch for each line that comes in.

    Args:
        train_epoch: Gives clips, steps, loss and accuracy of an epoch.
    """
    print(json.dumps({"peer": name, "num_classes": NUM_CLASSES, **about}), flush=True)
    for _ in sys.stdin:
        before, cpu_before = time.perf_counter(), peer.cpu_seconds()
        found = train_epoch()
        spent = {"seconds": time.perf_counter() - before, "cpu_seconds": peer.cpu_seconds() - cpu_before}
        print(json.dumps({**found, **spent}), flush=True)


class FrameFolders(Dataset[tuple[Tensor, int]]):
    """Clips as folders of JPEGs -> float [T, 3, H, W] and the class."""

    def __init__(self, folders: list[Path], labels: list[int], num_frames: int, size: int, crop_size: int) -> None:
        self.folders, self.labels, self.num_frames = folders, labels, num_frames
        self.transform = transforms.Compose(
            [
                transforms.Resize(size),
                transforms.RandomCrop(crop_size),
                transforms.RandomHorizontalFlip(0.5),
                transforms.RandomRotation(20),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return video_loaders.read_jpegs(self.folders[index], self.num_frames, self.transform), self.labels[index]


def epochs(model: nn.Module, loader: DataLoader[Any], lr: float, device: torch.device) -> Iterator[dict[str, float]]:
    """Train, an epoch for each that is asked for."""
    criterion, optimizer = nn.CrossEntropyLoss(), adam(model, lr)
    while True:
        model.train()
        loss_sum, correct, clips, steps = 0.0, 0, 0, 0
        for frames, labels in loader:
            frames, labels = frames.to(device), labels.to(device)
            optimizer.zero_grad()
            logits = model(frames)
            loss = criterion(logits, labels)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            loss_sum += loss.item() * len(labels)
            correct += (logits.argmax(1) == labels).sum().item()
            clips, steps = clips + len(labels), steps + 1
        yield {"clips": clips, "steps": steps, "loss": loss_sum / clips, "accuracy": correct / clips}


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.manual_seed(options.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    paths = peer.files(options.corpus)
    labels = [label(path) for path in paths]
    folders = video_loaders.frame_folders(paths, options)
    extraction = video_loaders.extract_all(folders, options.frames)
    workers = options.workers or video_loaders.JPEG_WORKERS
    loader = DataLoader(
        FrameFolders(list(folders.values()), labels, options.num_frames, options.size, options.crop_size),
        batch_size=options.batch_size,
        shuffle=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    model = NETWORKS[options.model](options.num_frames).to(device)
    about = {
        "versions": {package: peer.version(package) for package in ("torch", "torchvision", "pillow")},
        "settings": {"workers": workers, "precision": "fp32", "batch_size": options.batch_size},
        "extraction": extraction,
    }
    trained = epochs(model, loader, options.lr, device)
    serve("report_training", lambda: next(trained), about)


if __name__ == "__main__":
    main()
