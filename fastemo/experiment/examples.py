"""Pictures of the most confident errors and hits: what the model saw, and Grad-CAM heatmaps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import torch
from torch import Tensor

from fastemo.config import RunConfig
from fastemo.corpus.clip import Clip, Root
from fastemo.errors import DecodeError
from fastemo.evaluation.evaluate import Predictions
from fastemo.evaluation.gradcam import gradcam
from fastemo.machine import replacing, write_text
from fastemo.models.fusion import ClipModel
from fastemo.video.augment import center_crop
from fastemo.video.decode import decode_clip
from fastemo.video.sampling import frame_indices

MOST_WRONG, MOST_RIGHT = 8, 4
STRIP_FRAMES = 6
_GAP, _LEAST_HEIGHT, _QUALITY = 2, 96, 85  # pixels, pixels, of JPEG


def most_confident(predictions: Predictions, *, wrong: bool, most: int) -> list[int]:
    """Rows of the most confident errors, or hits."""
    confidence = predictions.probabilities.max(1)
    rows = np.flatnonzero(predictions.correct != wrong)
    return [int(row) for row in rows[np.argsort(-confidence[rows], kind="stable")][:most]]


def write_examples(
    config: RunConfig,
    out: Path,
    root: Root,
    clips: Sequence[Clip],
    predictions: Predictions,
    class_names: Sequence[str],
    model: ClipModel,
    model_classes: Sequence[str],
) -> None:
    """Write `examples.json`, and strips of frames and Grad-CAM heatmaps to `examples/`, replacing older ones.

    Args:
        class_names: Of the predictions' columns.
        model: The tested model, on its device.
        model_classes: Classes of its logits, which may be more.

    Raises:
        DecodeError: A clip no longer decodes, and `corpus.on_error` is `stop`.
    """
    folder = out / "examples"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    by_key = {clip.key: clip for clip in clips}
    confidence = predictions.probabilities.max(1)
    told: list[dict[str, Any]] = []
    for kind, most in (("wrong", MOST_WRONG), ("right", MOST_RIGHT)):
        for row in most_confident(predictions, wrong=kind == "wrong", most=most):
            clip, predicted = by_key[predictions.keys[row]], class_names[predictions.predicted[row]]
            try:
                shown = _strips(config, root, clip, model, model_classes.index(predicted))
            except DecodeError:
                if config.corpus.on_error == "stop":
                    raise
                continue  # it decoded in the test, but no longer does
            number = f"{len(told):02d}"
            told.append(
                {
                    "key": clip.key,
                    "kind": kind,
                    "label": class_names[predictions.labels[row]],
                    "prediction": predicted,
                    "probability": float(confidence[row]),
                    "frames": _save(out, f"examples/{number}-frames.jpg", shown["frames"]),
                    "gradcam": _save(out, f"examples/{number}-gradcam.jpg", shown["gradcam"]),
                    "frame_indices": shown["frame_indices"],
                    "frame_weights": shown["frame_weights"],
                }
            )
    write_text(out / "examples.json", json.dumps({"examples": told}, indent=1) + "\n")


def sampled(config: RunConfig, root: Root, clip: Clip) -> tuple[Tensor, np.ndarray]:
    """A clip's T frames as training samples them, uint8 [1, T, 3, h, w], and their indices in the clip.

    Raises:
        DecodeError: A frame does not decode.
    """
    spec = config.video.spec.at(clip.face_box)
    indices = frame_indices(clip.num_frames, spec.num_frames, clip.first_frame)
    return torch.from_numpy(decode_clip(clip.file(root), indices, spec, anchor=clip.anchor))[None], indices


def _strips(config: RunConfig, root: Root, clip: Clip, model: ClipModel, predicted: int) -> dict[str, Any]:
    """Six of the frames that the model saw, uint8 [6, 3, H, W], the same with heat, their indices and their weights."""
    decoded, indices = sampled(config, root, clip)
    device = next(model.parameters()).device
    clip_1TCHW = center_crop(decoded.to(device), config.augment)
    heat = gradcam(model, clip_1TCHW, torch.tensor([predicted]))
    with torch.no_grad():
        weights = model.frame_weights(clip_1TCHW)
    shown = frame_indices(len(indices), STRIP_FRAMES)
    frames = _cropped(decoded[0].numpy(), config.augment.crop_size)[shown]
    return {
        "frames": frames,
        "gradcam": None if heat is None else _heated(frames, heat[0][shown]),
        "frame_indices": [int(indices[place]) for place in shown],
        "frame_weights": None if weights is None else weights[0, shown].tolist(),
    }


def _cropped(frames: np.ndarray, size: int) -> np.ndarray:
    """The exact centre crop of evaluation: uint8 [T, 3, h, w] -> [T, 3, size, size]."""
    top, left = ((extent - size) // 2 for extent in frames.shape[2:])
    return frames[:, :, top : top + size, left : left + size]


def _heated(frames: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Overlay heat 0 .. 1, [T, H, W], on frames: the hotter, the less of the frame is visible."""
    colours = matplotlib.colormaps["inferno"](heat)[..., :3].transpose(0, 3, 1, 2) * 255
    share = 0.65 * heat[:, None] ** 0.5
    return (frames * (1 - share) + colours * share).astype(np.uint8)


def _save(out: Path, name: str, frames: np.ndarray | None) -> str | None:
    """Save frames side by side as a JPEG file; return its name."""
    if frames is None:
        return None
    with replacing(out / name) as partial:
        partial.write_bytes(_jpeg(frames))
    return name


def _jpeg(frames: np.ndarray) -> bytes:
    """uint8 [N, 3, h, w] RGB; small frames are enlarged by an integer factor."""
    factor = -(-_LEAST_HEIGHT // frames.shape[2])
    strip = np.concatenate(list(_with_gaps(frames.repeat(factor, axis=2).repeat(factor, axis=3))), axis=2)
    found, data = cv2.imencode(
        ".jpg", np.ascontiguousarray(strip.transpose(1, 2, 0)[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    )
    assert found
    return bytes(data)


def _with_gaps(frames: np.ndarray) -> Iterator[np.ndarray]:
    for number, frame in enumerate(frames):
        if number:
            yield np.full((3, frame.shape[1], _GAP), 255, np.uint8)
        yield frame
