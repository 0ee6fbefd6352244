"""Training with common tools, without this package: `training.py report|plain --model NAME --corpus DIR`.

- report: the JPEG-frame baseline, as in Roy (2025). T frames by its formula, each a JPEG extracted beforehand, loaded
  by Pillow and transformed separately (resize, random crop, flip, rotation up to 20 degrees, tensor, ImageNet
  normalisation, random values per frame), batches shuffled by a DataLoader with 4 workers, float32, and the loss and
  the correct clips read from the device in every step. Extraction is timed separately and done once per `--frames`
  folder; links to one file are extracted once.
- plain: decord in a DataLoader's workers, torchvision's v2 transforms, Accelerate. One persistent worker per processor,
  each with one decoder thread, frames scaled by the reader; crop, flip, rotation and normalisation once for all frames
  of a clip, in the worker; losses read once per epoch; bf16 if the device has fast bf16, but float32 for 3D
  convolutions on a CPU, where bf16 gives NaN. Of the libraries that decode video, decord was the fastest in
  `throughput.py` on CPUs; decord or decord2, by the version in `versions`.

Both use the networks of Roy (2025), from torchvision and here without pretrained weights, Adam (1e-4, weight decay
1e-4), and gradients clipped at 5. The program trains one epoch per line on its standard input and answers with a JSON
line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import loaders
import peer
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, StackDataset
from torchvision import transforms
from torchvision.models import resnet18
from torchvision.models.video import r3d_18
from torchvision.transforms import v2

NUM_CLASSES = 8
NORMALISATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's mean and standard deviation
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
    backbone = resnet18(num_classes=NUM_CLASSES)
    backbone.conv1 = nn.Conv2d(3 * num_frames, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return nn.Sequential(nn.Flatten(1, 2), backbone)


class Mean(nn.Module):
    """[B, T, C] -> [B, C], over time."""

    def forward(self, features: Tensor) -> Tensor:
        return features.mean(dim=1)


class LastState(nn.LSTM):
    """[B, T, C] -> [B, C], the last hidden state."""

    def forward(self, features: Tensor) -> Tensor:
        _, (hidden, _) = super().forward(features)
        return hidden[-1]


def frame_by_frame(num_frames: int, over_time: nn.Module) -> nn.Module:
    """A ResNet-18 on every frame, then one feature vector for all, and one Linear."""
    backbone = resnet18()
    backbone.fc = nn.Identity()
    frames = nn.Unflatten(0, (-1, num_frames))
    return nn.Sequential(nn.Flatten(0, 1), backbone, frames, over_time, nn.Linear(512, NUM_CLASSES))


def r3d18(num_frames: int) -> nn.Module:
    network = r3d_18()
    network.fc = nn.Linear(512, NUM_CLASSES)
    network.register_forward_pre_hook(lambda _, inputs: (inputs[0].transpose(1, 2),))  # time comes after channels
    return network


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "early_cnn": early_cnn,
    "early_resnet18": early_resnet18,
    "late_fusion": lambda num_frames: frame_by_frame(num_frames, Mean()),
    "r3d18": r3d18,
    "cnn_lstm": lambda num_frames: frame_by_frame(num_frames, LastState(512, 512, batch_first=True)),
}


def label(path: Path) -> int:
    """The class of a RAVDESS name: its third field, less one."""
    fields = path.stem.split("-")
    if len(fields) != 7 or not fields[2].isdigit() or not 1 <= int(fields[2]) <= NUM_CLASSES:
        sys.exit(f"{path.name} has no RAVDESS name, which gives the class")
    return int(fields[2]) - 1


def report(paths: list[Path], options: argparse.Namespace) -> tuple[loaders.Clips, dict[str, Any]]:
    """Clips prepared as in Roy (2025), and their description."""
    folders, extraction = loaders.extract_all(paths, options)
    steps = [transforms.Resize(options.size), transforms.RandomCrop(options.crop_size)]
    steps += [transforms.RandomHorizontalFlip(0.5), transforms.RandomRotation(20)]
    steps += [transforms.ToTensor(), transforms.Normalize(*NORMALISATION)]
    read = partial(loaders.read_jpeg, options=options, transform=transforms.Compose(steps))
    settings = {"workers": options.workers or loaders.JPEG_WORKERS, "precision": "fp32"}
    return loaders.Clips(folders, read), {"settings": settings, "extraction": extraction}


def read_video(path: Path, options: argparse.Namespace, transform: Callable[[Tensor], Tensor]) -> Tensor:
    return transform(loaders.read_decord(path, options))


def plain(paths: list[Path], options: argparse.Namespace) -> tuple[loaders.Clips, dict[str, Any]]:
    """Clips from decord and torchvision's v2 transforms, and their description."""
    loaders.check("plain_training", loaders.DECORD, paths[0])
    options.example = paths[0]
    steps = [v2.RandomCrop(options.crop_size), v2.RandomHorizontalFlip(0.5), v2.RandomRotation(20)]
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(*NORMALISATION)]
    read = partial(read_video, options=options, transform=v2.Compose(steps))
    is_fast = torch.cuda.is_available() or (options.model != "r3d18" and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    precision = "bf16" if is_fast else "fp32"
    settings = {"workers": options.workers or peer.processors(), "precision": precision, "prefetch_factor": 2}
    return loaders.Clips(paths, read), {"settings": settings}


def train_epoch(
    loader: DataLoader[Any], model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator | None
) -> dict[str, float]:
    """With Accelerate, loss and correct clips are read at the end; without, in every step, as in Roy (2025)."""
    read: Callable[[Tensor], Any] = Tensor.detach if accelerator else Tensor.item
    backward = accelerator.backward if accelerator else Tensor.backward
    clip_norm = accelerator.clip_grad_norm_ if accelerator else nn.utils.clip_grad_norm_
    device = next(model.parameters()).device
    loss_sum, correct, clips, steps = 0.0, 0, 0, 0
    model.train()
    for frames, labels in loader:
        frames, labels = frames.to(device), labels.to(device)
        optimizer.zero_grad()
        logits = model(frames)
        loss = cross_entropy(logits, labels)
        backward(loss)
        clip_norm(model.parameters(), CLIP_NORM)
        optimizer.step()
        loss_sum += read(loss) * len(labels)
        correct += read((logits.argmax(1) == labels).sum())
        clips, steps = clips + len(labels), steps + 1
    return {"clips": clips, "steps": steps, "loss": float(loss_sum) / clips, "accuracy": float(correct) / clips}


def main() -> None:
    parser = peer.parser(__doc__)
    parser.add_argument("kind", choices=("report", "plain"))
    parser.add_argument("--model", choices=NETWORKS, required=True)
    parser.add_argument("--crop_size", type=int, default=112, help="side of the network's input in pixels")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    is_plain, device = options.kind == "plain", torch.device("cuda" if torch.cuda.is_available() else "cpu")
    paths = peer.files(options.corpus)
    labels = [label(path) for path in paths]
    clips, about = (plain if is_plain else report)(paths, options)
    settings = about["settings"]
    loader = DataLoader(
        StackDataset(clips, labels),
        batch_size=options.batch_size,
        shuffle=True,
        num_workers=settings["workers"],
        pin_memory=device.type == "cuda",
        persistent_workers=is_plain,
        prefetch_factor=2,
    )
    model = NETWORKS[options.model](options.num_frames).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr, weight_decay=1e-4)
    accelerator, packages = None, ["torchvision", "pillow"]
    if is_plain:
        packages = ["torchvision", "decord", "accelerate"]
        precision = settings["precision"].replace("fp32", "no")
        accelerator = Accelerator(mixed_precision=precision, cpu=device.type == "cpu")
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    about |= {"peer": f"{options.kind}_training", "num_classes": NUM_CLASSES}
    settings["batch_size"] = options.batch_size
    peer.serve(about, packages, partial(train_epoch, loader, model, optimizer, accelerator))


if __name__ == "__main__":
    main()
