"""What inference is measured on: a run folder with random weights, and clips joined to a long video."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import av
import torch

from fastemo import __version__
from fastemo.config import RunConfig, write_config
from fastemo.corpus.clip import Clip
from fastemo.corpus.manifest import Manifest
from fastemo.inference.windows import Plan
from fastemo.models.build import build_model
from fastemo.models.config import ModelConfig
from fastemo.training import checkpoint
from fastemo.training.config import TrainConfig
from fastemo.video.config import AugmentConfig, VideoConfig

CONFIG = RunConfig(
    model=ModelConfig(name="late_fusion", backbone="mobilenetv3_small_100", pretrained=False),
    video=VideoConfig(num_frames=10, size=128, backend="pyav"),
    augment=AugmentConfig(crop_size=112),
    train=TrainConfig(precision="fp32"),
)
WINDOW, HOP = 3.0, 1.0  # seconds


@dataclass(frozen=True, kw_only=True)
class LongVideo:
    """Clips one after another in one file.

    Attributes:
        rate: Frames per second.
        parts: The clips, each as its file and those of its frames that windows of `WINDOW` every `HOP` seconds need.
        num_windows: Their number.
    """

    path: Path
    rate: float
    num_frames: int
    parts: tuple[tuple[Path, list[int]], ...]
    num_windows: int

    @property
    def seconds(self) -> float:
        return self.num_frames / self.rate

    @property
    def num_needed(self) -> int:
        """Different frames that any window needs."""
        return sum(len(wanted) for _, wanted in self.parts)


def make_run(folder: Path, class_names: tuple[str, ...], config: RunConfig = CONFIG) -> Path:
    """A finished run's folder, as far as inference reads it."""
    torch.manual_seed(0)
    model = build_model(CONFIG.model, len(class_names))
    checkpoint.save(folder / "checkpoints" / "best", model=model.state_dict(), state={}, info={})
    write_config(config, folder / "config.yaml")
    tested = {"per_class": {name: {} for name in class_names}, "versions": {"fastemo": __version__}}
    (folder / "test.json").write_text(json.dumps(tested), encoding="utf-8")
    return folder


def join(manifest: Manifest, minutes: int, target: Path) -> LongVideo:
    """Write the clips one after another, again and again, into an MP4 without encoding them again.

    Raises:
        ValueError: They are not of one codec, size, rate and encoder setting, or have times that cannot be joined.
    """
    order: list[tuple[Path, Clip]] = []
    num_frames, kind, stream = 0, None, None
    with av.open(str(target), "w", format="mp4") as output:
        for clip in cycle(manifest.clips):
            path = clip.file(manifest.root)
            with av.open(str(path)) as container:
                source = container.streams.video[0]
                codec, rate, unit = source.codec_context, source.guessed_rate, source.time_base
                own = (codec.name, codec.width, codec.height, rate, unit, codec.extradata)
                if stream is None:
                    stream, kind = output.add_stream_from_template(source), own
                if own != kind or not rate or not unit:
                    raise ValueError(f"{path.name}: its codec, size, rate or encoder setting is not the first clip's")
                shift, count = round(num_frames / rate / unit), 0
                for packet in container.demux(source):
                    if packet.size and not packet.is_discard:
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        packet.stream, count = stream, count + 1
                        output.mux(packet)
            if count != clip.num_frames:
                raise ValueError(f"{path.name} cannot be joined: {count} packets for {clip.num_frames} frames")
            order.append((path, clip))
            num_frames += count
            if num_frames / rate >= 60 * minutes:
                break
    return _planned(target, order, num_frames, float(rate))


def _planned(path: Path, order: list[tuple[Path, Clip]], num_frames: int, rate: float) -> LongVideo:
    plan = Plan(WINDOW, HOP, CONFIG.video.num_frames)
    windows = plan.add([number / rate for number in range(num_frames)]) + plan.finish()
    needed = {number for window in windows for number in window.numbers}
    parts, first = [], 0
    for file, clip in order:
        parts.append((file, [it for it in range(clip.num_frames) if first + it in needed]))
        first += clip.num_frames
    return LongVideo(path=path, rate=rate, num_frames=num_frames, parts=tuple(parts), num_windows=len(windows))
