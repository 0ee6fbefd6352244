"""Exported models, used: which file, what it takes, and what runs it."""

from typing import Literal

Format = Literal["onnx", "torch", "safetensors"]
FILES: dict[Format, str] = {"onnx": "model.onnx", "torch": "model.pt2", "safetensors": "model.safetensors"}
PREPROCESS_FILE = "preprocess.json"
