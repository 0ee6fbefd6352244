"""Trains a small model without batch statistics and writes what came out; run alone or by torchrun."""

import json
import sys
from pathlib import Path

from torch import nn

from fastemo.console import Console
from fastemo.corpus.manifest import scan
from fastemo.corpus.protocol import split_clips
from fastemo.training.config import TrainConfig
from fastemo.training.trainer import Trainer
from fastemo.video.augment import AugmentConfig
from fastemo.video.config import VideoConfig
from fastemo.video.loader import ClipLoader


def main(corpus: Path, out: Path, global_batch: int) -> None:
    with Trainer(TrainConfig(epochs=2, lr=1e-3, batch_size=1, precision="fp32"), seed=3) as trainer:
        train(trainer, corpus, out, global_batch)


def train(trainer: Trainer, corpus: Path, out: Path, global_batch: int) -> None:
    splits = split_clips(scan(corpus))
    loaders = [
        ClipLoader(
            clips,
            corpus,
            splits.class_names,
            VideoConfig(num_frames=2, size=18),
            batch_size=global_batch // trainer.world_size,
            seed=3,
            shuffle=shuffle,
            even=shuffle,
            rank=trainer.rank,
            world_size=trainer.world_size,
            device=trainer.device,
        )
        for clips, shuffle in ((splits.train[:37], True), (splits.val[:7], False))
    ]
    trainer.seed_everything(epoch=0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 3 * 16 * 16, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 8))
    trainer.prepare(model, len(loaders[0]))
    trainer.fit(*loaders, AugmentConfig(crop_size=16), out, Console(show=False))
    predictions = trainer.predict(loaders[1], AugmentConfig(crop_size=16))
    if trainer.is_main:
        result = {"keys": predictions.keys, "logits": predictions.logits.tolist(), "world_size": trainer.world_size}
        (out / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
