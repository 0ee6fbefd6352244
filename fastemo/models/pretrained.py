"""Pretrained weights, from the hubs' caches or the hubs: timm's, torchvision's and transformers'.

Roy (2025) starts its 2D networks from torchvision's ImageNet weights `IMAGENET1K_V1`, which timm provides as
`resnet18.tv_in1k`, and R3D-18 from torchvision's Kinetics-400 weights.
"""

from __future__ import annotations

import json
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from fastemo.errors import UserError
from fastemo.machine import is_offline
from fastemo.models.video import (
    adapted,
    known_videomae,
    video_backbone,
    videomae_backbone,
    videomae_configuration,
)
from fastemo.models.weights import check_fit, read_state_dict, without_classifier

RESNET18 = "resnet18.tv_in1k"
REACH_SECONDS = 6.0
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_VIDEOMAE = "transformers' VideoMAEForVideoClassification"
NATIVE: dict[str, Any] = {"num_frames": 16, "size": 224}  # clips that every model can take


class WeightsUnavailable(UserError):
    """Pretrained weights are not available; the message names them and the options."""

    def __init__(self, name: str, reason: object, *, keys: str, url: str | None = None) -> None:
        source = f", such as {url} fetched elsewhere" if url else ""
        why = " ".join(str(reason).split()) or type(reason).__name__
        super().__init__(
            f"cannot get the pretrained weights {name} ({why}): run fastemo fetch CONFIG on a machine with network, "
            f"train from scratch with --model.pretrained false, or use a local file with --model.weights PATH, a "
            f"state dict with the keys of {keys} as .safetensors, .pt or .pth{source}"
        )


@dataclass(frozen=True)
class Source:
    """Pretrained weights of a backbone: the library that names them, and their name there."""

    library: Literal["timm", "torchvision", "transformers"]
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.library}{', Kinetics-400' * (self.library == 'torchvision')})"

    def fetch(self) -> bool:
        """Load the weights, which caches them; return whether they were cached.

        Raises:
            WeightsUnavailable: They are not available.
        """
        if self.library == "torchvision":
            was_cached = _torch_hub_file(_kinetics(self.name).url).exists()
            torchvision_backbone(self.name, pretrained=True, **NATIVE)
        elif self.library == "transformers":
            was_cached = Path(self.name).is_dir() or _cached(self.name, None, None)
            transformers_backbone(self.name, videomae_architecture(self.name), pretrained=True, **NATIVE)
        else:
            config, url = _timm_source(self.name)
            was_cached = config is not None and _cached(config.hf_hub_id, config.hf_hub_filename, url)
            timm_backbone(self.name, pretrained=True)
        return was_cached


def timm_backbone(name: str, *, pretrained: bool, size: int | None = None, drop_path: float | None = None) -> nn.Module:
    """Build a timm model without its classifier: float [N, 3, H, W] -> features [N, head_hidden_size].

    Args:
        name: timm model, with or without a tag; `resnet18` means the weights of Roy (2025), `resnet18.tv_in1k`.
        pretrained: Load the weights of that tag from the cache or the hub.
        size: H = W, which transformers are built for; `None`: their own.
        drop_path: Probability of skipping the last residual block; `None`: 0.

    Raises:
        WeightsUnavailable: The hub's weights are not available.
        TypeError: The model has no drop path, timm's `drop_path_rate`.
    """
    name = RESNET18 if name == "resnet18" else name
    config = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {}
    if size is not None and config is not None and config.fixed_input_size:
        options["img_size"] = size
    if drop_path is not None:
        options["drop_path_rate"] = drop_path
    if pretrained:
        return _with_products(_timm_from_hub(name, options))
    # timm initialises a ResNet's residual branches to zero, torchvision and Roy (2025) do not; trained from scratch
    # on little data, that costs half the accuracy (benchmarks/LOG.md).
    if timm.models.is_model_in_modules(name, {"resnet"}):
        options["zero_init_last"] = False
    return _with_products(timm.create_model(name, pretrained=False, num_classes=0, **options))


class _Pointwise(nn.Conv2d):
    """A 1x1 convolution that is a matrix product on maps of one cell, for which oneDNN's convolution is slow."""

    def forward(self, maps_NCHW: Tensor) -> Tensor:
        if maps_NCHW.shape[-2:] != (1, 1):
            return super().forward(maps_NCHW)
        return F.linear(maps_NCHW.flatten(1), self.weight.flatten(1), self.bias)[..., None, None]


def _with_products(backbone: nn.Module) -> nn.Module:
    """The network with `_Pointwise` for its 1x1 convolutions: squeeze-and-excitation has many on single cells.

    MobileNetV3-small on two cores: forward 1.15 x as fast, a training step 1.07 x (benchmarks/LOG.md).
    """
    for module in backbone.modules():
        if type(module) is nn.Conv2d and module.kernel_size == module.stride == (1, 1) and module.groups == 1:
            module.__class__ = _Pointwise
    return backbone


def torchvision_backbone(name: str, *, pretrained: bool, num_frames: int, size: int) -> nn.Module:
    """Build a video network as `video_backbone` does, perhaps with Kinetics-400's weights.

    Raises:
        WeightsUnavailable: They are not available.
    """
    backbone = video_backbone(name, num_frames=num_frames, size=size)
    if pretrained:
        kinetics = _kinetics(name)
        with _available(str(Source("torchvision", name)), keys=f"torchvision's {name}", url=kinetics.url):
            if not _torch_hub_file(kinetics.url).exists():
                _check_network(kinetics.url)
            state = kinetics.get_state_dict(check_hash=True, map_location="cpu", weights_only=True)
        wanted = backbone.state_dict()
        state = adapted(without_classifier(state, backbone), wanted)
        check_fit(backbone, wanted, state, kinetics.url)
        backbone.load_state_dict(state, strict=False)
    return backbone


def transformers_backbone(name: str, architecture: str, *, pretrained: bool, num_frames: int, size: int) -> nn.Module:
    """Build a VideoMAE as `videomae_backbone` does, perhaps with the weights of a repository or a folder.

    Weights of pretraining lack the last normalisation, which is then new.

    Raises:
        WeightsUnavailable: They are not available.
        ValueError: As `videomae_backbone` raises it.
    """
    backbone = videomae_backbone(architecture, num_frames=num_frames, size=size)
    if pretrained:
        with _available(str(Source("transformers", name)), keys=_VIDEOMAE):
            state = read_state_dict(_of_repository(name, _HUB_FILES))
        wanted = backbone.state_dict()
        if not any(key.startswith("videomae.") for key in state):  # of the encoder alone
            state = {f"videomae.{key}": value for key, value in state.items()}
        state = {key: value for key, value in adapted(state, wanted).items() if key in wanted}
        check_fit(backbone, {key: wanted[key] for key in wanted if key in state or "fc_norm" not in key}, state, name)
        backbone.load_state_dict(state, strict=False)
    return backbone


def _of_repository(name: str, files: Sequence[str]) -> Path:
    """The first of the files that a folder or a repository of the hub has.

    Raises:
        OSError: It has none, or cannot be reached.
    """
    folder = Path(name)
    for file in files:
        if (folder / file).is_file():
            return folder / file
        found = huggingface_hub.try_to_load_from_cache(name, file)
        if isinstance(found, str):
            return Path(found)
    if folder.is_dir():
        raise FileNotFoundError(f"the folder has no {' or '.join(files)}")
    _check_network(huggingface_hub.constants.ENDPOINT)
    for file in files:
        try:
            return Path(huggingface_hub.hf_hub_download(name, file))
        except huggingface_hub.errors.LocalEntryNotFoundError:  # the hub did not answer
            raise
        except huggingface_hub.errors.EntryNotFoundError:
            continue
    raise FileNotFoundError(f"the repository has no {' or '.join(files)}")


def videomae_architecture(name: str) -> str:
    """The configuration of a VideoMAE, in JSON, of the hub or a folder if its authors' are not meant.

    Raises:
        WeightsUnavailable: The hub's is not available.
        ValueError: It is of another kind of model.
    """
    if (known := known_videomae(name)) is not None:
        return known
    with _available(str(Source("transformers", name)), keys=_VIDEOMAE):
        found = json.loads(_of_repository(name, ["config.json"]).read_text(encoding="utf-8"))
    if found.get("model_type") != "videomae":
        raise ValueError(f"model.backbone {name} is of the kind {found.get('model_type')}, must be a VideoMAE")
    return videomae_configuration(found)


@contextmanager
def _available(name: str, *, keys: str, url: str | None = None) -> Iterator[None]:
    """Raises:
    WeightsUnavailable: In place of an error of a download or of loading.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsUnavailable(name, error, keys=keys, url=url) from error


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


def _kinetics(name: str) -> Any:
    return torchvision.models.get_model_weights(name).DEFAULT


def _timm_source(name: str) -> tuple[Any, str | None]:
    """timm's configuration of pretrained weights and their url."""
    config = timm.get_pretrained_cfg(name)
    # timm's url may be a pair of url and file name; the hub then has the weights too.
    return config, config.url if config is not None and isinstance(config.url, str) else None


def _timm_from_hub(name: str, options: dict[str, Any]) -> nn.Module:
    config, url = _timm_source(name)
    title, keys = str(Source("timm", name)), f"timm's {name.split('.')[0]}"
    if config is None or not config.has_weights:
        raise WeightsUnavailable(title, "timm has none for this model", keys=keys, url=url)
    with _available(title, keys=keys, url=url):
        if not _cached(config.hf_hub_id, config.hf_hub_filename, url):
            _check_network(huggingface_hub.constants.ENDPOINT if config.hf_hub_id or url is None else url)
        return timm.create_model(name, pretrained=True, num_classes=0, **options)


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
