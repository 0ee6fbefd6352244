"""Whole files -> sampled clips, decoded by a run's own backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fastemo.corpus.clip import Clip
from fastemo.corpus.files.examining import PROBED
from fastemo.corpus.files.probe import holds_images, probe_video
from fastemo.inference.files import by_number, read_clip, whole_clip
from fastemo.inference.windows import WindowClip
from fastemo.video import dali
from fastemo.video.backends import Decoder, choose_backend
from fastemo.video.bitstream.source import Source
from fastemo.video.config import VideoConfig

Size = tuple[int, int]


@dataclass(frozen=True, eq=False)
class PendingClip(WindowClip):
    """A clip without pixels, which DALI is still to decode.

    Attributes:
        source: Its packets.
        size: Width and height of its frames once sampled, in pixels.
    """

    source: Source | None = None
    size: Size = (0, 0)


class Reader:
    """Reads files as the loader of a training does: by DALI or decord, and by PyAV what these leave to it.

    Attributes:
        note: Why another backend than the run's is used; empty if it is the run's.
    """

    def __init__(self, config: VideoConfig, device: torch.device) -> None:
        self._spec, self._device, self.note = config.spec, device, ""
        try:
            self.backend, _ = choose_backend(config.backend, device)
        except ValueError as error:  # it is not installed on this machine
            self.backend, self.note = "pyav", f"PyAV decodes: {error}"
        self._dalis: dict[Size, dali.DaliDecoder] = {}

    def read(self, path: Path, most_seconds: float) -> WindowClip | None:
        """As `read_clip`, on the calling thread; for DALI a `PendingClip`."""
        if self.backend == "pyav" or holds_images(path):
            return read_clip(path, self._spec, most_seconds=most_seconds)
        probe = probe_video(path, with_times=True)
        if (found := whole_clip(probe.times, self._spec, most_seconds)) is None:
            return None
        size = self._spec.out_size(probe.width, probe.height)
        row = Clip(key=path.name, **{name: getattr(probe, name) for name in PROBED})
        decoder = Decoder([row], path.parent, self._spec, size, self.backend, self._device)
        source = decoder.prune(0) if decoder.by_dali(0) else None
        if source is not None:
            return PendingClip(found.start, found.end, found.numbers, found.times, source=source, size=size)
        return replace(found, frames=by_number(found.numbers, decoder.decode(0)))

    def finished(self, clips: Sequence[WindowClip]) -> list[WindowClip]:
        """The same clips; those that are pending decoded by DALI, one batch for each size. Not for several threads."""
        done = list(clips)
        pending: dict[Size, list[tuple[int, PendingClip, Source]]] = {}
        for row, clip in enumerate(clips):
            if isinstance(clip, PendingClip) and clip.source is not None:
                pending.setdefault(clip.size, []).append((row, clip, clip.source))
        for size, waiting in pending.items():
            if size not in self._dalis:
                self._dalis[size] = dali.DaliDecoder(self._spec, self._device, frame_size=size)
            frames, errors = self._dalis[size].decode([source for _, _, source in waiting])
            for place, ((row, clip, _), pixels) in enumerate(zip(waiting, frames.cpu().numpy(), strict=True)):
                error = errors[place].reason if place in errors else None
                done[row] = WindowClip(
                    clip.start, clip.end, clip.numbers, clip.times, by_number(clip.numbers, pixels), error
                )
        return done
