"""Configuration of sampling, decoding, caching and augmentation."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

Crop = Literal["full", "squash", "center", "head", "face"]
CROPS: tuple[Crop, ...] = ("full", "squash", "center", "head", "face")
Box = tuple[int, int, int, int]  # left, top, width, height of a part of the displayed picture, in pixels
NoFace = Literal["center", "reject"]
Backend = Literal["auto", "dali", "pyav", "decord"]
BACKENDS: tuple[Backend, ...] = ("auto", "dali", "pyav", "decord")
Tier = Literal["auto", "none", "disk", "memory", "device"]
TIERS: tuple[Tier, ...] = ("auto", "none", "disk", "memory", "device")

# The square around the head in RAVDESS's framing, as fractions of the frame's height: its side, and the distance of
# its top from the frame's; it is centred horizontally. Measured on seven genuine clips of actor 01 (1280x720), eight
# frames each, against their white background: hair from row 12 (bent forward) to 52, ears from column 420 to 847,
# chin never below row 605. A square of 630 contains that with a margin.
HEAD_SIDE = 0.875
HEAD_TOP = 0.0


def area(box: Box) -> int:
    """In pixels."""
    return box[2] * box[3]


@dataclass(frozen=True, kw_only=True)
class FrameSpec:
    """How a clip is sampled.

    Attributes:
        num_frames: T, frames per clip, spread evenly over it.
        crop: `full` (whole frame, aspect kept: shorter side = size), `squash` (whole frame to a square),
            `center` (centre square), `head` (a square around the head in RAVDESS's framing) or `face` (a square
            around the clip's face).
        size: Side of the square in pixels; with `full`, the shorter side.
        face_margin: Around the face on each side, as a share of the longer side of its box.
        face: With crop `face`, where the clip's face is; `None`: it has none, and the crop is the centre square.
    """

    num_frames: int = 10
    crop: Crop = "center"
    size: int = 128
    face_margin: float = 0.25
    face: Box | None = None

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"video.num_frames must be at least 1, not {self.num_frames}")
        if self.crop not in CROPS:
            raise ValueError(f"video.crop must be one of {', '.join(CROPS)}, not '{self.crop}'")
        if self.size < 1:
            raise ValueError(f"video.size must be at least 1 pixel, not {self.size}")
        if not 0 <= self.face_margin <= 2:
            raise ValueError(f"video.face_margin must be 0 to 2, not {self.face_margin}")

    def at(self, face: Box | None) -> FrameSpec:
        """The same for a clip with its face there; other crops do not depend on it."""
        return replace(self, face=face) if self.crop == "face" else self

    def box(self, width: int, height: int) -> Box:
        """The crop of a frame: left, top, width, height in pixels.

        Offsets and sides are even, so that subsampled chroma is cropped exactly.
        """
        if self.crop in ("full", "squash") or min(width, height) < 4:
            return 0, 0, width, height
        most = min(width, height)
        if self.face is not None:
            x, y, *sides = self.face
            side = min(most, max(4, round((1 + 2 * self.face_margin) * max(sides)))) // 2 * 2
            middle = x + sides[0] / 2, y + sides[1] / 2
            left, top = (
                min(max(0, round(at - side / 2)), extent - side) // 2 * 2
                for at, extent in zip(middle, (width, height), strict=True)
            )
            return left, top, side, side
        side = int(min(most, HEAD_SIDE * height) if self.crop == "head" else most) // 2 * 2
        top = int(HEAD_TOP * height) if self.crop == "head" else (height - side) // 2
        return (width - side) // 4 * 2, top // 2 * 2, side, side

    def out_size(self, width: int, height: int) -> tuple[int, int]:
        """The sampled frame's width and height in pixels for a file of that frame size."""
        if self.crop != "full":
            return self.size, self.size
        if width < height:
            return self.size, max(1, round(self.size * height / width))
        return max(1, round(self.size * width / height)), self.size


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """How clips are sampled and decoded.

    Attributes:
        num_frames: T, frames per clip, spread evenly over it.
        stored_frames: N, frames that are decoded and cached per clip, spread evenly over it, N - 1 a multiple of T - 1.
            Training draws one from each of T segments (temporal segment sampling; Wang et al., 2016), evaluation takes
            the T that it takes without this key; null: T.
        crop: `full` (whole frame, aspect kept: shorter side = size), `squash` (whole frame to a square),
            `center` (centre square), `head` (a square around the head in RAVDESS's framing) or `face` (a square
            around the face that is found in the clip).
        size: Side of the cached frames in pixels; with `full`, the shorter side.
        face_margin: With crop `face`, the margin on each side, as a share of the longer side of the face's box.
        no_face: With crop `face`, what happens to clips without a face: `center` takes their centre square, `reject`
            leaves them out.
        backend: `dali` (on the GPU), `pyav`, `decord`, or `auto`: DALI if there is a GPU and DALI, else PyAV.
        decode_threads: Clips decoded at once on the CPU, each on one thread; `None`: one per core of this
            process.
        prefetch_batches: Batches prepared ahead of the one in use.
    """

    num_frames: int = 10
    stored_frames: int | None = None
    crop: Crop = "center"
    size: int = 128
    face_margin: float = 0.25
    no_face: NoFace = "center"
    backend: Backend = "auto"
    decode_threads: int | None = None
    prefetch_batches: int = 4

    def __post_init__(self) -> None:
        assert self.spec  # checks its fields
        step = self.num_frames - 1 or 2  # of the frames that evaluation takes
        if self.stored_frames is not None and (self.stored_frames < self.num_frames or (self.stored_frames - 1) % step):
            below = max(self.num_frames, (self.stored_frames - 1) // step * step + 1)
            raise ValueError(
                f"video.stored_frames must be 1 more than a multiple of {step} for video.num_frames {self.num_frames}, "
                f"such as {below} or {below + step}, not {self.stored_frames}"
            )
        if self.no_face not in ("center", "reject"):
            raise ValueError(f"video.no_face must be center or reject, not '{self.no_face}'")
        if self.backend not in BACKENDS:
            raise ValueError(f"video.backend must be one of {', '.join(BACKENDS)}, not '{self.backend}'")
        if self.decode_threads is not None and self.decode_threads < 1:
            raise ValueError(f"video.decode_threads must be at least 1, not {self.decode_threads}")
        if self.prefetch_batches < 1:
            raise ValueError(f"video.prefetch_batches must be at least 1, not {self.prefetch_batches}")

    @property
    def spec(self) -> FrameSpec:
        """The frames of a clip that a model sees in evaluation."""
        return FrameSpec(num_frames=self.num_frames, crop=self.crop, size=self.size, face_margin=self.face_margin)

    @property
    def stored_spec(self) -> FrameSpec:
        """The frames of a clip that are decoded and cached."""
        return replace(self.spec, num_frames=self.stored_frames or self.num_frames)


@dataclass(frozen=True, kw_only=True)
class FacesConfig:
    """The face detector of crop `face`.

    Attributes:
        weights: File of YuNet's weights (ONNX); `None`: downloaded once into the cache.
    """

    weights: Path | None = None


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """Where decoded clips are cached.

    Attributes:
        tier: `none` (decode in every epoch), `disk`, `memory`, `device` (all on the GPU), or `auto`.
        root: Folder of all stores; `None`: `store` in the cache folder.
        max_gib: Maximum size of all stores below `root` together, in GiB; `None`: the free disk space.
    """

    tier: Tier = "auto"
    root: Path | None = None
    max_gib: float | None = None

    def __post_init__(self) -> None:
        if self.tier not in TIERS:
            raise ValueError(f"store.tier must be one of {', '.join(TIERS)}, not '{self.tier}'")
        if self.max_gib is not None and not 0 < self.max_gib < math.inf:
            raise ValueError(f"store.max_gib must be a number above 0, or null for no limit, not {self.max_gib}")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation in training; evaluation uses the centre crop only.

    Attributes:
        enabled: All of the following in training; if off, training uses the centre crop too.
        crop_size: H and W, side in pixels of the square that the model sees.
        flip: Probability of a horizontal flip.
        rotation_degrees: Largest angle; drawn uniformly from minus to plus this angle.
        rotation_corners: Fill of corners that a rotation turns in from outside the crop: `black`, as in Roy (2025), or
            the `image` there (its edge repeated beyond the stored frame).
        per_frame: Draw crop, flip and rotation anew for every frame, as the code of Roy (2025) did. If off, a clip's
            frames move together, which temporal models need.
        color_jitter: Largest relative change of a clip's brightness, contrast and saturation, each drawn uniformly
            (Howard, 2013); 0: none.
        random_erasing: Probability that a box of a clip's picture, of 2 to 33 % of its area, is filled with the mean
            colour in all of its frames (Zhong et al., 2020).
        mixup: Alpha of the Beta distribution of the shares in which a clip and the next one of the epoch, and their
            labels, are mixed (Zhang et al., 2018); 0: none.
        cutmix: The same, but a box of all frames of the clip is replaced by that of the next one (Yun et al., 2019);
            with `mixup` too, either is drawn for each clip. 0: none.
    """

    enabled: bool = True
    crop_size: int = 112
    flip: float = 0.5
    rotation_degrees: float = 20.0
    rotation_corners: Literal["black", "image"] = "black"
    per_frame: bool = False
    color_jitter: float = 0.0
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        if self.crop_size < 1:
            raise ValueError(f"augment.crop_size must be at least 1 pixel, not {self.crop_size}")
        for name in ("flip", "random_erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augment.{name} must be a probability from 0 to 1, not {getattr(self, name)}")
        if not 0 <= self.color_jitter <= 1:
            raise ValueError(f"augment.color_jitter must be 0 to 1, not {self.color_jitter}")
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"augment.{name} must be at least 0 and finite, not {getattr(self, name)}")
        if not 0 <= self.rotation_degrees <= 180:
            raise ValueError(f"augment.rotation_degrees must be 0 to 180, not {self.rotation_degrees}")
        if self.rotation_corners not in ("black", "image"):
            raise ValueError(f"augment.rotation_corners must be black or image, not '{self.rotation_corners}'")

    @property
    def mixes(self) -> bool:
        """Whether training mixes each clip with the next one of the epoch."""
        return self.enabled and (self.mixup > 0 or self.cutmix > 0)
