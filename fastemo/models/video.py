"""Video networks of torchvision and transformers, which see time and space together.

Shapes: B clips, T frames, C = 3 channels, H x W pixels, F features.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from fastemo.errors import UserError
from fastemo.models.fusion import ClipModel, MapLayer
from fastemo.models.temporal import without_autocast

# torchvision's models, and the layer that Kinetics-400's classifier is in.
VIDEO_BACKBONES = {
    "r3d_18": "fc",
    "mc3_18": "fc",
    "r2plus1d_18": "fc",
    "s3d": "classifier",
    "swin3d_t": "head",
    "swin3d_s": "head",
    "mvit_v2_s": "head",
}
_BIASES = {"q": ".attention.query.bias", "v": ".attention.value.bias"}
_POSITION_TABLES = ("rel_pos_t", "rel_pos_h", "rel_pos_w")
# Hidden size, layers, heads and feed-forward size. Source: Tong et al. (2022), "VideoMAE".
_VIDEOMAE = {"small": (384, 12, 6, 1536), "base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096)}
_VIDEOMAE_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_VIDEOMAE_KEYS = (
    *_VIDEOMAE_SIZES,
    *("image_size", "num_frames", "patch_size", "tubelet_size", "hidden_act", "layer_norm_eps"),
    *("qv_bias", "use_mean_pooling"),
)


class VideoModel(ClipModel):
    """A network of torchvision's over time and space, one Linear.

    Args:
        backbone: float [B, 3, T, H, W] -> features [B, F], as `video_backbone` builds it.
    """

    def __init__(self, backbone: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.classifier = nn.Linear(backbone.head_hidden_size, num_classes)  # type: ignore[arg-type]

    def embed(self, frames_BTCHW: Tensor) -> Tensor:
        return self.backbone(frames_BTCHW.transpose(1, 2))

    def forward(self, frames_BTCHW: Tensor) -> Tensor:
        """Float [B, T, 3, H, W] -> logits [B, num_classes]; on a CPU always in float32, whatever the precision set."""
        if frames_BTCHW.device.type != "cpu":
            return super().forward(frames_BTCHW)
        # On a CPU, bf16 conv3d gave NaN weight gradients at some shapes (benchmarks/LOG.md).
        with without_autocast("cpu"):
            return super().forward(frames_BTCHW.float())

    def map_layer(self) -> MapLayer | None:
        match type(self.backbone).__name__:
            case "SwinTransformer3d":
                return MapLayer(self.backbone.norm, is_channels_last=True)
            case "S3D":  # its last layers are joined outside of any
                return MapLayer(self.backbone.features)
            case "MViT":
                steps = self.backbone.pos_encoding.temporal_size
                return MapLayer(self.backbone.blocks[-1].norm1, num_prefix=1, num_steps=steps)
            case _:
                return None


class VideoMAE(VideoModel):
    """A VideoMAE of transformers: its tokens averaged and normalised, one Linear.

    Args:
        backbone: As `videomae_backbone` builds it.
    """

    def embed(self, frames_BTCHW: Tensor) -> Tensor:
        return self.backbone(pixel_values=frames_BTCHW).logits

    def map_layer(self) -> MapLayer | None:
        config = self.backbone.config
        steps = config.num_frames // config.tubelet_size
        return MapLayer(self.backbone.videomae.encoder.layer[-1].layernorm_before, num_steps=steps)


class _GlobalAverage(nn.Module):
    """The mean over all positions: [B, C, T, H, W] -> [B, C, 1, 1, 1]."""

    def forward(self, maps_BCTHW: Tensor) -> Tensor:
        return F.avg_pool3d(maps_BCTHW, maps_BCTHW.shape[2:])


def video_backbone(name: str, *, num_frames: int, size: int) -> nn.Module:
    """Build one of `VIDEO_BACKBONES` without its classifier: float [N, 3, T, H, W] -> features [N, head_hidden_size].

    torchvision's S3D takes at least 14 frames of 224 pixels, and MViT exactly 16 of 224. Here S3D's last pooling, of
    2 x 7 x 7, is global, and MViT is for the given size; at 16 x 224 both compute what torchvision's do.
    """
    backbone: Any = torchvision.models.get_model(name, weights=None)
    head = getattr(backbone, VIDEO_BACKBONES[name])
    *_, last = head.modules()
    backbone.head_hidden_size = last.in_channels if isinstance(last, nn.Conv3d) else last.in_features
    setattr(backbone, VIDEO_BACKBONES[name], nn.Identity())
    backbone.pretrained_cfg = {"classifier": VIDEO_BACKBONES[name]}  # as timm's models have it
    if name == "s3d":
        backbone.avgpool = _GlobalAverage()
        # With 5 to 7 frames oneDNN's weight gradient of this layer, whose kernel sees 7 frames, is wrong or crashes;
        # with an input that is padded beforehand it is right (benchmarks/LOG.md).
        stem = backbone.features[0][1][0]
        stem.padding = (0, 0, 0)
        stem.register_forward_pre_hook(_pad_time)
    if name == "mvit_v2_s":
        _set_grid(backbone, num_frames, size)
    return backbone


def set_drop_path(backbone: nn.Module, probability: float) -> bool:
    """Set the probability of skipping each residual block, which rises linearly to this; whether there is any."""
    layers = [it for it in backbone.modules() if isinstance(it, torchvision.ops.StochasticDepth)]
    for number, layer in enumerate(layers):
        layer.p = probability * number / max(len(layers) - 1, 1)
    return bool(layers)


def _pad_time(layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return F.pad(inputs[0], (0, 0, 0, 0, 3, 3))


def _set_grid(mvit: Any, num_frames: int, size: int) -> None:
    """Give an MViT the grid of other clips: its size, and tables of relative positions to fit it."""
    grid = [
        -(-extent // stride) for extent, stride in zip((num_frames, size, size), mvit.conv_proj.stride, strict=True)
    ]
    mvit.pos_encoding.temporal_size, mvit.pos_encoding.spatial_size = grid[0], tuple(grid[1:])
    for block in mvit.blocks:
        pools = (block.attn.pool_q, block.attn.pool_k)
        queries, keys = ([-(-it // step) for it, step in zip(grid, _stride(pool), strict=True)] for pool in pools)
        for name, rows in zip(_POSITION_TABLES, map(max, queries, keys), strict=True):
            table = getattr(block.attn, name)
            setattr(block.attn, name, nn.Parameter(_resized(table.data, 2 * rows - 1)))
        grid = queries


def _stride(pool: Any) -> tuple[int, ...]:
    return (1, 1, 1) if pool is None else pool.pool.stride


def _resized(table: Tensor, rows: int) -> Tensor:
    """A table of relative positions [rows, F], interpolated as MViT does it for other grids."""
    return table if len(table) == rows else F.interpolate(table.T[None], rows, mode="linear")[0].T.contiguous()


def adapted(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file's weights with the keys and shapes that this network has.

    MViT's tables of relative positions are resized, and transformers' files have other names for VideoMAE's biases.
    """
    found = {}
    for key, value in state.items():
        name = re.sub(r"\.attention\.([qv])_bias$", lambda it: _BIASES[it[1]], key)
        is_table = name.endswith(_POSITION_TABLES) and name in wanted
        found[name] = _resized(value, len(wanted[name])) if is_table else value
    return found


def check_transformers() -> None:
    """Raises:
    UserError: The package is not installed.
    """
    if find_spec("transformers") is None:
        raise UserError("model.name videomae needs the package transformers: pip install 'fastemo[transformers]'")


def known_videomae(name: str) -> str | None:
    """The configuration of a VideoMAE of its authors, in JSON; `None`: of another one."""
    found = re.fullmatch(r"MCG-NJU/videomae-(small|base|large)(-.+)?", name)
    if found is None:
        return None
    return json.dumps(dict(zip(_VIDEOMAE_SIZES, _VIDEOMAE[found[1]], strict=True)))


def videomae_configuration(config: Mapping[str, Any]) -> str:
    """What builds a VideoMAE, of a `config.json` of transformers', in JSON."""
    renamed = {"qv_bias": config["qkv_bias"]} if "qkv_bias" in config else {}  # in files of older versions
    return json.dumps({key: config[key] for key in _VIDEOMAE_KEYS if key in config} | renamed)


def videomae_backbone(architecture: str, *, num_frames: int, size: int) -> nn.Module:
    """Build a VideoMAE without its classifier: `pixel_values` float [B, T, 3, H, W] -> `logits`, features [B, F].

    Its positions are those of the grid that `architecture` was trained on, interpolated.

    Raises:
        ValueError: It is no such configuration, or does not divide the clips into whole patches.
    """
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    try:
        native = VideoMAEConfig(**(given := json.loads(architecture)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"model.architecture is not a configuration of VideoMAE: {error}") from error
    for what, extent, patch in (("frames", num_frames, native.tubelet_size), ("pixels", size, native.patch_size)):
        if extent % patch:
            raise ValueError(f"VideoMAE divides clips into whole patches of {patch} {what}, not {extent}")
    settings = VideoMAEConfig(**given | {"num_frames": num_frames, "image_size": size})
    backbone: Any = VideoMAEForVideoClassification(settings)
    backbone.classifier, backbone.head_hidden_size = nn.Identity(), settings.hidden_size
    backbone.pretrained_cfg = {"classifier": "classifier"}  # as timm's models have it
    grid, before = (
        (it.num_frames // it.tubelet_size, *[it.image_size // it.patch_size] * 2) for it in (settings, native)
    )
    embeddings = backbone.videomae.embeddings
    table_1LF = embeddings.position_embeddings
    if grid != before:
        maps_1FTHW = type(embeddings)(native).position_embeddings.mT.unflatten(2, before)
        table_1LF = F.interpolate(maps_1FTHW, grid, mode="trilinear", align_corners=False).flatten(2).mT.contiguous()
    # A buffer moves to the device once; the attribute would be copied in each step.
    del embeddings.position_embeddings
    embeddings.register_buffer("position_embeddings", table_1LF, persistent=False)
    return backbone
