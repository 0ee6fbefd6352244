"""Initial weights: from the hubs' caches, the hubs, a local file, or another run; never by unpickling code.

Roy (2025) starts its 2D networks from torchvision's ImageNet weights `IMAGENET1K_V1`, which timm provides as
`resnet18.tv_in1k`, and R3D-18 from torchvision's Kinetics-400 weights.
"""

from __future__ import annotations

import pickle
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.video import R3D_18_Weights, r3d_18

from fastemo.errors import UserError
from fastemo.machine import is_offline
from fastemo.models.fusion import EarlyResNet18, inflated

RESNET18 = "resnet18.tv_in1k"
KINETICS = "R3D-18 (torchvision, Kinetics-400)"
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth")
REACH_SECONDS = 6.0
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_NAMED_KEYS = 3


class WeightsUnavailable(UserError):
    """Pretrained weights are not available; the message names them and the options."""

    def __init__(self, name: str, reason: object, *, keys: str, url: str | None) -> None:
        source = f", such as {url} fetched elsewhere" if url else ""
        why = " ".join(str(reason).split()) or type(reason).__name__
        super().__init__(
            f"cannot get the pretrained weights {name} ({why}): run fastemo fetch CONFIG on a machine with network, "
            f"train from scratch with --model.pretrained false, or use a local file with --model.weights PATH, a "
            f"state dict with the keys of {keys} as .safetensors, .pt or .pth{source}"
        )


def fetch_backbone(name: str) -> bool:
    """Load a backbone's pretrained weights, which caches them; return whether they were cached.

    Args:
        name: timm model with its tag, or `KINETICS`.

    Raises:
        WeightsUnavailable: They are not available.
    """
    if name == KINETICS:
        was_cached = _torch_hub_file(R3D_18_Weights.KINETICS400_V1.url).exists()
        r3d18_backbone(pretrained=True)
    else:
        config, url = _timm_source(name)
        was_cached = config is not None and _cached(config.hf_hub_id, config.hf_hub_filename, url)
        timm_backbone(name, pretrained=True)
    return was_cached


def timm_backbone(name: str, *, pretrained: bool) -> nn.Module:
    """Build a timm model without its classifier: float [N, 3, H, W] -> features [N, head_hidden_size].

    Args:
        name: timm model, with or without a tag; `resnet18` means the weights of Roy (2025), `resnet18.tv_in1k`.
        pretrained: Load the weights of that tag from the cache or the hub.

    Raises:
        WeightsUnavailable: The hub's weights are not available.
    """
    name = RESNET18 if name == "resnet18" else name
    if pretrained:
        return _timm_from_hub(name)
    # timm initialises a ResNet's residual branches to zero, torchvision and Roy (2025) do not; trained from scratch
    # on little data, that costs half the accuracy (benchmarks/LOG.md).
    options: dict[str, Any] = {"zero_init_last": False} if timm.models.is_model_in_modules(name, {"resnet"}) else {}
    return timm.create_model(name, pretrained=False, num_classes=0, **options)


def r3d18_backbone(*, pretrained: bool) -> nn.Module:
    """Build torchvision's R3D-18 without its classifier: float [N, 3, T, H, W] -> features [N, 512].

    Args and errors as for `timm_backbone`; the hub's weights are Kinetics-400's.
    """
    backbone = r3d_18(weights=None)
    backbone.fc = nn.Identity()
    if pretrained:
        kinetics = R3D_18_Weights.KINETICS400_V1
        name, keys = KINETICS, "torchvision's r3d_18"
        try:
            if not _torch_hub_file(kinetics.url).exists():
                _check_network(kinetics.url)
            state = kinetics.get_state_dict(check_hash=True, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError) as error:
            raise WeightsUnavailable(name, error, keys=keys, url=kinetics.url) from error
        state = _without_classifier(state, backbone)
        _check_fit(backbone, backbone.state_dict(), state, kinetics.url)
        backbone.load_state_dict(state, strict=False)
    return backbone


def load_weights(model: nn.Module, path: Path, *, same_classes: bool = False, inflate: bool = False) -> str:
    """Load a run's weights, or timm's or torchvision's for the backbone alone, into a model in place.

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
        state = {f"backbone.{key}": value for key, value in _without_classifier(state, module).items()}
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
    _check_fit(module, _part(encoder, wanted), loaded or state, path)
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


def check_reachable(url: str) -> None:
    """Send any request to a host, so that a missing network is noticed within seconds.

    huggingface_hub repeats every request five times and takes about 46 s to give up without a network; torch.hub
    has no timeout. Uses a thread with a deadline, because a socket's timeout bounds neither the name lookup nor
    the number of addresses tried. Proxies from the environment are used.

    Raises:
        OSError: No answer within `REACH_SECONDS`.
    """
    errors: list[OSError] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=REACH_SECONDS).close()
        except urllib.error.HTTPError:
            pass  # an answer, if an error
        except urllib.error.URLError as error:
            # A certificate unknown here may be known to the library that downloads.
            if not isinstance(error.reason, ssl.SSLError):
                errors.append(OSError(f"{url}: {error.reason}"))
        except OSError as error:
            errors.append(OSError(f"{url}: {error}"))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    if thread.is_alive():
        raise TimeoutError(f"{url}: no answer in {REACH_SECONDS:g} s")
    if errors:
        raise errors[0]


def _check_network(url: str) -> None:
    """Raises:
    OSError: `HF_HUB_OFFLINE` is set, or the host does not answer.
    """
    if is_offline():
        raise OSError("they are not in the cache, and HF_HUB_OFFLINE is set")
    check_reachable(url)


def _timm_source(name: str) -> tuple[Any, str | None]:
    """timm's configuration of pretrained weights and their url."""
    config = timm.get_pretrained_cfg(name)
    # timm's url may be a pair of url and file name; the hub then has the weights too.
    return config, config.url if config is not None and isinstance(config.url, str) else None


def _timm_from_hub(name: str) -> nn.Module:
    architecture = name.split(".")[0]
    config, url = _timm_source(name)

    def unavailable(reason: object) -> WeightsUnavailable:
        return WeightsUnavailable(f"{name} (timm)", reason, keys=f"timm's {architecture}", url=url)

    if config is None or not config.has_weights:
        raise unavailable("timm has none for this model")
    try:
        if not _cached(config.hf_hub_id, config.hf_hub_filename, url):
            _check_network(huggingface_hub.constants.ENDPOINT if config.hf_hub_id or url is None else url)
        return timm.create_model(name, pretrained=True, num_classes=0)
    except (OSError, RuntimeError) as error:
        raise unavailable(error) from error


def _cached(hub_id: str | None, hub_file: str | None, url: str | None) -> bool:
    if hub_id is None:
        return url is not None and _torch_hub_file(url).exists()
    repository, _, revision = hub_id.partition("@")
    files = (hub_file,) if hub_file else _HUB_FILES
    return any(
        isinstance(huggingface_hub.try_to_load_from_cache(repository, file, revision=revision or None), str)
        for file in files
    )


def _torch_hub_file(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def _without_classifier(state: Mapping[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    # A model of torchvision's has no such configuration.
    names = getattr(backbone, "pretrained_cfg", {"classifier": "fc"}).get("classifier") or ()
    heads = tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
    return {key: value for key, value in state.items() if not key.startswith(heads)}


def _check_fit(
    module: nn.Module, wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], source: Path | str
) -> None:
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
