"""`preprocess.json`: what a program must know to feed an exported model and to read its output."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from fastemo.inference.exports import FILES, PREPROCESS_FILE, Format
from fastemo.json_files import Record, read_json
from fastemo.machine import sha256_of
from fastemo.video.augment import IMAGENET_MEAN, IMAGENET_STD
from fastemo.video.config import Crop

Count = Annotated[int, Field(gt=0)]
_Colour = tuple[float, float, float]


class Preprocess(Record):
    """What the frames go through, and what the model's output means.

    Attributes:
        format: `onnx`, `torch` or `safetensors`, whose file is in `FILES`.
        sha256: Of that file, in hexadecimal.
        fastemo: The version that tested the model; empty where it is not known.
        class_names: Of the logits.
        temperature: Probabilities are softmax(logits / temperature).
        num_frames: T; frame k of N is number floor(k (N - 1) / (T - 1)), and the middle one if T is 1.
        crop, size, face_margin: As in `video` of the configuration: the part of a frame that is resized, antialiased,
            and the side that it gets, in pixels.
        crop_size: Side of the square that is cut from the centre of the resized frame, in pixels.
        mean, std: Red, green and blue; pixels are (value / 255 - mean) / std.
    """

    format: Format
    sha256: str
    fastemo: str = ""
    class_names: Annotated[list[str], Field(min_length=1)]
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    num_frames: Count
    crop: Crop
    size: Count
    face_margin: float
    crop_size: Count
    mean: _Colour = IMAGENET_MEAN
    std: _Colour = IMAGENET_STD


def read_preprocess(folder: Path) -> Preprocess:
    """Read an export's `preprocess.json` and check its model's file against it.

    Raises:
        ValueError: One of them is missing or damaged.
    """
    found = read_json(folder / PREPROCESS_FILE, Preprocess)
    file = folder / FILES[found.format]
    if not file.is_file():
        raise ValueError(f"{folder} is not complete: it has no {file.name}; export the model again")
    if sha256_of(file) != found.sha256:
        raise ValueError(f"{file} is damaged: its SHA-256 is not that of {PREPROCESS_FILE}; export the model again")
    return found
