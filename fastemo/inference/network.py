"""A run's model on its device: sampled frames -> probabilities and what the classifier saw."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fastemo.inference.runs import TrainedRun
from fastemo.inference.windows import WindowClip
from fastemo.models.fusion import ClipModel, FrameModel
from fastemo.training.speed import Speed, keep_conv3d_right, pick, to_channels_last
from fastemo.video.augment import center_crop, center_crop_place

# A video's name and a frame's number -> the frame's features.
Known = dict[tuple[str, int], Tensor]
# Frames that are encoded together: more take memory, and no less time each.
_MOST_FRAMES = 128
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Network:
    """A run's model, in evaluation mode: in fp32 on a CPU, in the run's precision on a GPU."""

    def __init__(self, run: TrainedRun, device: torch.device) -> None:
        train = replace(run.config.train, precision="fp32") if device.type == "cpu" else run.config.train
        self.speed: Speed = pick(train, device.type)
        self._device, self._temperature, self._augment = device, run.temperature, run.config.augment
        self._model = run.model(device)
        if isinstance(self._model, ClipModel):
            if device.type == "cpu":
                from fastemo.models.folding import fold_batch_norm  # imports timm

                fold_batch_norm(self._model, run.config.video.num_frames, run.config.augment.crop_size)
            if self.speed.channels_last:
                to_channels_last(self._model)
            keep_conv3d_right(self._model, device, self.speed)

    @torch.inference_mode()
    def predict(
        self, videos: Sequence[str], clips: Sequence[WindowClip], known: Known
    ) -> tuple[np.ndarray, np.ndarray]:
        """Calibrated probabilities, float64 [B, classes], and the classifier's input, float32 [B, features].

        Args:
            videos: For each clip, a name of its video that no other has.
            clips: B clips of T frames.
            known: Features of frames, for models that encode frames one by one; new ones are added.
        """
        with self._precision():
            if isinstance(self._model, FrameModel):
                embedding = self._model.join(self._features(videos, clips, known))
                logits = self._model.classifier(embedding)
            else:
                frames = self._input([clip.frames[number] for clip in clips for number in clip.numbers])
                logits, embedding = self._model.logits_and_embedding(frames.unflatten(0, (len(clips), -1)))
        probabilities = torch.softmax((logits.float() / self._temperature).double(), dim=1)
        return probabilities.cpu().numpy(), embedding.float().cpu().numpy()

    def _features(self, videos: Sequence[str], clips: Sequence[WindowClip], known: Known) -> Tensor:
        """[B, T, F]; each frame is encoded once."""
        assert isinstance(self._model, FrameModel)
        wanted = {
            (video, number): clip.frames[number]
            for video, clip in zip(videos, clips, strict=True)
            for number in clip.numbers
            if (video, number) not in known
        }
        names = [*wanted]
        for start in range(0, len(names), _MOST_FRAMES):
            some = names[start : start + _MOST_FRAMES]
            known.update(zip(some, self._model.encode(self._input([wanted[name] for name in some])), strict=True))
        of_clip = zip(videos, clips, strict=True)
        return torch.stack([torch.stack([known[video, it] for it in clip.numbers]) for video, clip in of_clip])

    def _input(self, frames: Sequence[np.ndarray]) -> Tensor:
        """N frames uint8 [3, h, w], each of its own size -> float32 [N, 3, H, W] on the device, normalised."""
        places = [center_crop_place(frame.shape[1], frame.shape[2], self._augment) for frame in frames]
        cropped = np.stack([frame[:, rows, columns] for frame, (rows, columns) in zip(frames, places, strict=True)])
        return center_crop(torch.from_numpy(cropped).to(self._device), self._augment)

    def _precision(self) -> AbstractContextManager[object]:
        if self._device.type == "cpu":
            return torch.autocast("cpu", enabled=False)
        stack = ExitStack()
        stack.enter_context(torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=self.speed.tf32))
        dtype = _HALF.get(self.speed.precision)
        stack.enter_context(torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None))
        return stack


@contextmanager
def model_threads(num_busy: int) -> Iterator[None]:
    """Let a model on the CPU compute on the processors that are free, at least on one.

    After each of its operations torch's threads wait for each other: one that shares a processor delays all.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before - num_busy))
    try:
        yield
    finally:
        torch.set_num_threads(before)
