"""Pretrained weights: from the hubs' caches, the hubs, or a local file; never by unpickling code.

Roy (2025) starts its 2D networks from torchvision's ImageNet weights `IMAGENET1K_V1`, which timm provides as
`resnet18.tv_in1k`, and R3D-18 from torchvision's Kinetics-400 weights.
"""

from __future__ import annotations

import pickle
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
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

RESNET18 = "resnet18.tv_in1k"
REACH_SECONDS = 6.0
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_NAMED_KEYS = 3


class WeightsUnavailable(UserError):
    """Pretrained weights are not available; the message names them and the two options."""

    def __init__(self, name: str, reason: object, *, keys: str, url: str | None) -> None:
        source = f", such as {url} fetched elsewhere" if url else ""
        why = " ".join(str(reason).split()) or type(reason).__name__
        super().__init__(
            f"cannot get the pretrained weights {name} ({why}): train from scratch with --model.pretrained "
            f"false, or use a local file with --model.weights PATH, a state dict with the keys of {keys} "
            f"as .safetensors, .pt or .pth{source}"
        )


def timm_backbone(name: str, *, pretrained: bool, weights: Path | None) -> nn.Module:
    """Build a timm model without its classifier: float [N, 3, H, W] -> features [N, head_hidden_size].

    Args:
        name: timm model, with or without a tag; `resnet18` means the weights of Roy (2025), `resnet18.tv_in1k`.
        pretrained: Load the weights of that tag from the cache or the hub, unless `weights` is given.
        weights: Local state dict to load instead.

    Raises:
        WeightsUnavailable: The hub's weights are not available.
        FileNotFoundError: `weights` does not exist.
        ValueError: `weights` does not hold this model's state dict.
    """
    name = RESNET18 if name == "resnet18" else name
    if not pretrained or weights is not None:
        # timm initialises a ResNet's residual branches to zero, torchvision and Roy (2025) do not; trained from scratch
        # on little data, that costs half the accuracy (benchmarks/LOG.md).
        options: dict[str, Any] = {"zero_init_last": False} if timm.models.is_model_in_modules(name, {"resnet"}) else {}
        backbone = timm.create_model(name, pretrained=False, num_classes=0, **options)
        if weights is not None:
            _load(backbone, read_state_dict(weights), weights, classifiers=_classifiers(backbone))
        return backbone
    return _timm_from_hub(name)


def r3d18_backbone(*, pretrained: bool, weights: Path | None) -> nn.Module:
    """Build torchvision's R3D-18 without its classifier: float [N, 3, T, H, W] -> features [N, 512].

    Args and errors as for `timm_backbone`; the hub's weights are Kinetics-400's.
    """
    backbone = r3d_18(weights=None)
    backbone.fc = nn.Identity()
    if weights is not None:
        _load(backbone, read_state_dict(weights), weights, classifiers=("fc",))
    elif pretrained:
        kinetics = R3D_18_Weights.KINETICS400_V1
        name, keys = "R3D-18 (torchvision, Kinetics-400)", "torchvision's r3d_18"
        try:
            if not _torch_hub_file(kinetics.url).exists():
                check_reachable(kinetics.url)
            state = kinetics.get_state_dict(check_hash=True, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError) as error:
            raise WeightsUnavailable(name, error, keys=keys, url=kinetics.url) from error
        _load(backbone, state, kinetics.url, classifiers=("fc",))
    return backbone


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from `.safetensors`, or from `.pt` / `.pth` with `weights_only=True`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read this way, or is not a dict of tensors by name.
    """
    if not path.is_file():
        raise FileNotFoundError(f"model.weights: there is no file '{path}'")
    try:
        if path.suffix == ".safetensors":
            state: object = load_file(path, device="cpu")
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise ValueError(f"'{path}' cannot be read as weights: {first_line}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
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


def _timm_from_hub(name: str) -> nn.Module:
    architecture = name.split(".")[0]
    config = timm.get_pretrained_cfg(name)
    # timm's url may be a pair of url and file name; the hub then has the weights too.
    url = config.url if config is not None and isinstance(config.url, str) else None

    def unavailable(reason: object) -> WeightsUnavailable:
        return WeightsUnavailable(f"{name} (timm)", reason, keys=f"timm's {architecture}", url=url)

    if config is None or not config.has_weights:
        raise unavailable("timm has none for this model")
    try:
        if not _cached(config.hf_hub_id, config.hf_hub_filename, url):
            check_reachable(huggingface_hub.constants.ENDPOINT if config.hf_hub_id or url is None else url)
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


def _classifiers(backbone: nn.Module) -> tuple[str, ...]:
    names = getattr(backbone, "pretrained_cfg", {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _load(model: nn.Module, state: Mapping[str, Tensor], source: Path | str, *, classifiers: Iterable[str]) -> None:
    """Load `state` in place, except the classifiers.

    Raises:
        ValueError: Keys are missing, unexpected or of another shape; the message names the first few.
    """
    heads = tuple(f"{name}." for name in classifiers)
    state = {key: value for key, value in state.items() if not key.startswith(heads)}
    wanted = model.state_dict()
    # Files from before BatchNorm counted its batches are complete without the counts.
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in wanted]
    misshaped = [
        f"{key} is {_shape(value)} instead of {_shape(wanted[key])}"
        for key, value in state.items()
        if key in wanted and value.shape != wanted[key].shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
    found = "; ".join(f"{len(keys)} {fault}: {_first(keys)}" for fault, keys in faults.items() if keys)
    if found:
        raise ValueError(f"the weights in '{source}' do not fit {type(model).__name__}: {found}")
    model.load_state_dict(state, strict=False)


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:_NAMED_KEYS]) + (", ..." if len(keys) > _NAMED_KEYS else "")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
