"""Initial weights from a local file or another run; never by unpickling code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fastemo.models.fusion import EarlyResNet18, inflated
from fastemo.models.video import adapted

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth")
_NAMED_KEYS = 3


def load_weights(model: nn.Module, path: Path, *, same_classes: bool = False, inflate: bool = False) -> str:
    """Load a run's weights, or its library's for the backbone alone, into a model in place.

    A part (backbone, recurrent layer, classifier) is loaded whole or keeps its random weights. The backbone has to fit;
    only its first convolution may be on the 3T channels of another T. A classifier is loaded if all else is; the last
    layer of a new one is zero if the weights are a run's.

    Args:
        path: As in `ModelConfig.weights`.
        same_classes: Load the classifier of a run, whose outputs are the same classes.
        inflate: Of an `EarlyResNet18`: make its first convolution of an RGB kernel.

    Returns:
        A message: how many tensors were loaded, what is new, and what of the file was left out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not readable, or does not hold this backbone; the message names the first few keys.
    """
    state, wanted = read_state_dict(weights_file(path)), model.state_dict()
    count, module = len(wanted), getattr(model, "backbone", model)
    is_run = module is model or any(key.startswith("backbone.") for key in state)
    if not is_run:
        state = {f"backbone.{key}": value for key, value in without_classifier(state, module).items()}
    state = adapted(state, wanted)
    encoder, stem = ("blocks", "blocks.0.weight") if module is model else ("backbone", "backbone.conv1.weight")
    notes, zeros = [], dict[str, Tensor]()
    if stem in state and stem in wanted and (is_run or isinstance(model, EarlyResNet18)):
        theirs, ours = state[stem], wanted[stem]
        if inflate and theirs.shape[1:2] == (3,):
            state[stem] = inflated(theirs, ours.shape[1] // 3)
        elif _same_but_for_channels(theirs, ours) and (not is_run or theirs.shape != ours.shape):
            del state[stem], wanted[stem]
            notes.append(f"{stem} new: {_shape(theirs)} for {_shape(ours)}")
    loaded = _part(encoder, state)
    check_fit(module, _part(encoder, wanted), loaded or state, path)
    names = dict.fromkeys(key.split(".")[0] for key in (*wanted, *state) if not key.startswith(f"{encoder}."))
    for name in sorted(names, key="classifier".__eq__):  # it comes last: it fits only the features it was trained on
        before, now = _part(name, state), _part(name, wanted)
        if not now:
            notes.append(f"{name} left out")
        elif _shapes(before) == _shapes(now) and (name != "classifier" or (same_classes and not notes)):
            loaded |= before
        else:
            notes.append(f"{name} new{_why(name, before, now, same_classes)}")
            if is_run and name == "classifier":
                # Drawn with the run's seed, it would be how the run's own began: certain, and of the wrong classes.
                last = max(now).rpartition(".")[0]
                zeros = {key: torch.zeros_like(value) for key, value in now.items() if key.startswith(f"{last}.")}
    model.load_state_dict(loaded | zeros, strict=False)
    return "; ".join([f"{len(loaded)} of {count} tensors from {path}", *notes])


def _same_but_for_channels(one: Tensor, other: Tensor) -> bool:
    return one.shape[:1] + one.shape[2:] == other.shape[:1] + other.shape[2:]


def _part(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in tensors.items() if key.split(".")[0] == name}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in tensors.items()}


def _why(name: str, before: Mapping[str, Tensor], now: Mapping[str, Tensor], same_classes: bool) -> str:
    """Why a part is new; empty if the file has none."""
    if not before:
        return ""
    if name != "classifier":
        return ": of another shape"
    if same_classes:
        return ": for other features"
    theirs, ours = (it[max(it)].shape[:1].numel() for it in (before, now))  # of the last layer's weight
    return f": {theirs} classes for {ours}" + ", of other or unknown names" * (theirs == ours)


def weights_file(path: Path) -> Path:
    """The file that `model.weights` names: of a run folder its best checkpoint's, of a checkpoint's folder its model.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It has none of the suffixes of weights.
    """
    if path.is_dir():
        best = path / "checkpoints" / "best"
        file = (best if best.is_dir() else path) / "model.safetensors"
        if not file.is_file():
            raise FileNotFoundError(f"model.weights: '{path}' is neither a run with a checkpoint nor a checkpoint")
        return file
    if not path.is_file():
        raise FileNotFoundError(f"model.weights: there is no file '{path}'")
    if path.suffix not in WEIGHT_SUFFIXES:
        raise ValueError(f"model.weights is '{path}', its suffix must be one of {', '.join(WEIGHT_SUFFIXES)}")
    return path


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from `.safetensors`, or from `.pt` / `.pth` with `weights_only=True`.

    Raises:
        ValueError: It cannot be read this way, or is not a dict of tensors by name.
    """
    try:
        if path.suffix == ".safetensors":
            state: object = load_file(path, device="cpu")
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise ValueError(f"'{path}' cannot be read as weights: {first_line}") from error
    if not isinstance(state, dict) or not all(
        isinstance(it[0], str) and isinstance(it[1], Tensor) for it in state.items()
    ):
        raise ValueError(f"'{path}' is not a state dict (a dict of tensors by name)")
    return state


def without_classifier(state: Mapping[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """A state dict without the classifier that `backbone.pretrained_cfg` names."""
    names = getattr(backbone, "pretrained_cfg", {}).get("classifier") or ()
    heads = tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
    return {key: value for key, value in state.items() if not key.startswith(heads)}


def check_fit(module: nn.Module, wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], source: Path | str) -> None:
    """Raises:
    ValueError: Keys are missing, unexpected or of another shape; the message names the first few.
    """
    # Files from before BatchNorm counted its batches are complete without the counts.
    missing, unexpected = (
        [key for key in keys if key not in others and not key.endswith("num_batches_tracked")]
        for keys, others in ((wanted, state), (state, wanted))
    )
    misshaped = [
        f"{key} is {_shape(value)} instead of {_shape(wanted[key])}"
        for key, value in state.items()
        if key in wanted and value.shape != wanted[key].shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
    found = "; ".join(f"{len(keys)} {fault}: {_first(keys)}" for fault, keys in faults.items() if keys)
    if found:
        raise ValueError(f"the weights in '{source}' do not fit {type(module).__name__}: {found}")


def _first(keys: list[str]) -> str:
    return ", ".join(key.removeprefix("backbone.") for key in keys[:_NAMED_KEYS]) + (
        ", ..." if len(keys) > _NAMED_KEYS else ""
    )


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
