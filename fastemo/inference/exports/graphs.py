"""Exported graphs, run by ONNX Runtime or by torch."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastemo.errors import MOST_OF_OTHERS, UserError, one_line
from fastemo.inference.exports import Format
from fastemo.machine import available_processors

INPUT, OUTPUTS = "frames", ("logits", "embedding")
_MOST_JSON_BYTES = 2**26


class Graph:
    """An exported model, as a `ClipModel` is used.

    Args:
        run: Float [B, T, 3, H, W] -> logits [B, classes] and embedding [B, F].
    """

    def __init__(self, run: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        self.logits_and_embedding = run


def open_graph(file: Path, kind: Format, device: torch.device) -> Graph:
    """Open an exported graph, which computes in float32.

    A `.pt2` is a program: open only your own, or that of people you trust. Its weights are read without unpickling.

    Raises:
        ValueError: It is damaged, or holds pickled objects.
        UserError: ONNX Runtime is missing, or cannot use the device.
    """
    return Graph(_onnx(file, device) if kind == "onnx" else _program(file, device))


def _onnx(file: Path, device: torch.device) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise UserError(f"{file} needs ONNX Runtime: pip install 'fastemo[export]'") from error
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(device.type, device.type)
    if provider not in ort.get_available_providers():
        raise UserError(f"{file}: this ONNX Runtime cannot use {device}: choose device cpu, or install onnxruntime-gpu")
    options = ort.SessionOptions()
    options.intra_op_num_threads = available_processors()
    options.log_severity_level = 3  # errors
    # Threads that wait for work in a loop would take the processors from those that decode.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    places: Any = [(provider, {"device_id": device.index or 0} if device.type == "cuda" else {})]
    try:
        session = ort.InferenceSession(str(file), options, providers=places)
    except Exception as error:  # onnxruntime has one class for each of its status codes
        raise ValueError(f"{file}: ONNX Runtime cannot open it: {one_line(error)[:MOST_OF_OTHERS]}") from error

    def run(frames_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
        logits, embedding = session.run([*OUTPUTS], {INPUT: frames_BTCHW.contiguous().cpu().numpy()})
        return torch.from_numpy(logits), torch.from_numpy(embedding)

    return run


def _program(file: Path, device: torch.device) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    try:
        _refuse_pickles(file)
        program = torch.export.load(file)
        if device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        module = program.module()
    except Exception as error:  # a damaged archive raises anything
        raise ValueError(f"{file}: torch cannot open it: {one_line(error)[:MOST_OF_OTHERS]}") from error

    def run(frames_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(device.type, enabled=False):
            logits, embedding = module(frames_BTCHW.contiguous())
        return logits, embedding

    return run


def _refuse_pickles(file: Path) -> None:
    """Refuse a .pt2 archive that torch would unpickle, which runs code.

    Raises:
        ValueError: It holds pickled objects, or two parts of one name.
    """
    with zipfile.ZipFile(file) as archive:
        parts = {name.partition("/")[2]: name for name in archive.namelist()}
        if len(parts) != len(archive.namelist()):
            raise ValueError("it has two parts of one name")
        for part, name in parts.items():
            if not part.endswith("_config.json"):
                continue
            if archive.getinfo(name).file_size > _MOST_JSON_BYTES:
                raise ValueError(f"{part} is too large")
            held = json.loads(archive.read(name))["config"].values()
            if any(it["use_pickle"] or not it["path_name"].startswith(("weight_", "tensor_")) for it in held):
                raise ValueError(f"{part} names pickled objects")
        if any(part.endswith(".pt") for part in parts if not part.startswith("data/sample_inputs/")):
            raise ValueError("its weights are pickled")
        for part in (it for it in parts if it.startswith("data/sample_inputs/")):
            with archive.open(parts[part]) as inputs:
                torch.load(inputs, weights_only=True)
