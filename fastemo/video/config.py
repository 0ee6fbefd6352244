"""How clips are sampled and decoded, and by what."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import distributions
from typing import Literal

import torch

from fastemo.video import dali
from fastemo.video.decode import Crop, FrameSpec, decord_version

Backend = Literal["auto", "dali", "pyav", "decord"]
BACKENDS: tuple[Backend, ...] = ("auto", "dali", "pyav", "decord")
_ONE_DECORD = "pip uninstall -y decord decord2, then pip install decord2"


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """How clips are sampled and decoded.

    Attributes:
        num_frames, crop, size: See `FrameSpec`.
        backend: `dali` (on the GPU), `pyav`, `decord`, or `auto`.
        decode_threads: Clips decoded at once on processors, each on one thread; `None`: one for each processor of
            this process.
        prefetch_batches: Batches put together ahead of the one in use.
    """

    num_frames: int = 10
    crop: Crop = "center"
    size: int = 128
    backend: Backend = "auto"
    decode_threads: int | None = None
    prefetch_batches: int = 4

    def __post_init__(self) -> None:
        assert self.spec  # checks what it is made of
        if self.backend not in BACKENDS:
            raise ValueError(f"video.backend must be one of {', '.join(BACKENDS)}, not '{self.backend}'")
        if self.decode_threads is not None and self.decode_threads < 1:
            raise ValueError(f"video.decode_threads must be at least 1, not {self.decode_threads}")
        if self.prefetch_batches < 1:
            raise ValueError(f"video.prefetch_batches must be at least 1, not {self.prefetch_batches}")

    @property
    def spec(self) -> FrameSpec:
        return FrameSpec(num_frames=self.num_frames, crop=self.crop, size=self.size)


def choose_backend(backend: Backend, device: torch.device) -> tuple[Literal["dali", "pyav", "decord"], str]:
    """Which backend `auto` means for frames on a device, and why.

    Raises:
        ValueError: A backend that is not installed, or does not load.
    """
    if backend == "auto":
        if device.type != "cuda":
            return "pyav", f"the frames go to the {device.type.upper()}"
        missing = dali.why_unavailable(device)
        return ("dali", "decodes on the GPU") if missing is None else ("pyav", missing)
    if backend == "dali" and (missing := dali.why_unavailable(device)):
        raise ValueError(f"video.backend dali: {missing}")
    if backend == "decord":
        try:
            why = f"as asked, {decord_version()}"
        except (ImportError, OSError, RuntimeError) as error:
            raise ValueError(f"video.backend decord does not load ({error}): {_ONE_DECORD}") from error
        if all(any(distributions(name=name)) for name in ("decord", "decord2")):
            why += f"; decord and decord2 are both installed, into one folder: {_ONE_DECORD}"
        return backend, why
    return backend, "as asked"
