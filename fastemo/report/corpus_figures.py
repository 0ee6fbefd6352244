"""Figures of a corpus, as the report shows it: examples, classes by split, clips by actor, the crop."""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from fastemo.corpus.clip import SPLITS, Clip
from fastemo.corpus.manifest import Manifest
from fastemo.corpus.protocol import Splits
from fastemo.machine import replacing
from fastemo.report import figures
from fastemo.video.config import FrameSpec
from fastemo.video.decode import decode_clip
from fastemo.video.sampling import frame_indices

COLOURS = {"train": figures.BLUE, "val": "#E69F00", "test": "#009E73"}
_EXAMPLES, _EXAMPLE_PIXELS, _JPEG_DPI, _JPEG_QUALITY = 4, 160, 110, 82
_MOST_ACTORS_NAMED = 40


def class_counts(splits: Splits) -> dict[str, dict[str, int]]:
    """Clips by split and class, every class of the corpus in its order."""
    found = {}
    for split in SPLITS:
        counts = Counter(clip.emotion for clip in splits[split])
        found[split] = {name: counts[name] for name in splits.class_names}
    return found


def actor_counts(splits: Splits) -> dict[str, dict[int, int]]:
    """Clips by split and actor, actors ascending; clips whose actor is unknown are left out."""
    return {
        split: dict(sorted(Counter(clip.actor for clip in splits[split] if clip.actor).items())) for split in SPLITS
    }


def example_sheet(manifest: Manifest, root: Path, spec: FrameSpec) -> bytes:
    """A row of middle frames for each class, of as many different actors as there are: the report's Figure 2.

    Args:
        spec: Whose crop is shown.

    Returns:
        A JPEG file's bytes.

    Raises:
        DecodeError: A clip that was chosen does not decode; the message names it.
    """
    names = manifest.class_names
    figure = figures.new_figure(1.3 + 1.25 * _EXAMPLES, 1.28 * len(names))
    rows = figure.subplots(len(names), _EXAMPLES, squeeze=False)
    for name, panels in zip(names, rows, strict=True):
        chosen = _examples([clip for clip in manifest.clips if clip.emotion == name])
        for axes, place in zip(panels, range(_EXAMPLES), strict=True):
            axes.set_axis_off()
            if place < len(chosen):
                axes.imshow(_middle_frame(root, chosen[place], replace(spec, size=_EXAMPLE_PIXELS)))
        panels[0].text(
            *(-0.08, 0.5, figures.shorten(name, 18)),
            transform=panels[0].transAxes,
            ha="right",
            va="center",
            color=figures.INK,
            parse_math=False,
        )
        if not chosen:
            figures.say(panels[1], "no clips")
    return _jpeg(figure)


def crop_picture(manifest: Manifest, root: Path, spec: FrameSpec) -> bytes:
    """A whole frame with what the crop keeps of it, and that part as a model is given it: the report's Figure 5.

    Returns:
        A JPEG file's bytes.

    Raises:
        ValueError: There is no clip.
        DecodeError: The clip does not decode; the message names it.
    """
    if not manifest.clips:
        raise ValueError(f"{root} holds no clip to show the crop on")
    clip = _examples(manifest.clips)[0]
    whole = _middle_frame(root, clip, None)
    height, width = whole.shape[:2]
    left, top, kept_width, kept_height = spec.box(width, height)
    seen = _middle_frame(root, clip, spec)
    figure = figures.new_figure(8.4, 8.4 * 0.62 * height / width + 0.3)
    ratio = seen.shape[1] / seen.shape[0]
    whole_axes, seen_axes = figure.subplots(1, 2, width_ratios=(width / height, ratio))
    dimmed = (whole * 0.4).astype(np.uint8)
    box = (slice(top, top + kept_height), slice(left, left + kept_width))
    dimmed[box] = whole[box]
    whole_axes.imshow(dimmed)
    whole_axes.add_patch(
        Rectangle((left - 0.5, top - 0.5), kept_width, kept_height, fill=False, edgecolor="#E69F00", linewidth=2)
    )
    whole_axes.set_title(f"{width} x {height}, crop {spec.crop}", fontsize=10, color=figures.INK)
    seen_axes.imshow(seen, interpolation="nearest")
    seen_axes.set_title(f"{seen.shape[1]} x {seen.shape[0]} kept", fontsize=10, color=figures.INK)
    for axes in (whole_axes, seen_axes):
        axes.set_axis_off()
    return _jpeg(figure)


def save_corpus_figures(manifest: Manifest, splits: Splits, spec: FrameSpec, out: Path) -> list[Path]:
    """Write the report's Figures 2 to 5 to a folder, which is made; their paths are returned.

    Raises:
        ValueError: There is no clip.
        DecodeError: A clip that is shown does not decode; the message names it.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / name for name in ("examples.jpg", "class_distribution.png", "actor_counts.png", "crop.jpg")]
    for path, data in ((paths[0], example_sheet), (paths[3], crop_picture)):
        with replacing(path) as partial:
            partial.write_bytes(data(manifest, manifest.root, spec))
    figures.write_figure(_class_figure(splits), paths[1])
    figures.write_figure(_actor_figure(splits), paths[2])
    return paths


def _class_figure(splits: Splits) -> Figure:
    """Bars by class, one a split beside the others, each with its count."""
    counts = class_counts(splits)
    figure = figures.new_figure(max(6.0, 1.25 * len(splits.class_names) + 1), 4)
    axes = figure.subplots()
    for number, split in enumerate(SPLITS):
        places = np.arange(len(splits.class_names)) + 0.27 * (number - 1)
        bars = axes.bar(places, list(counts[split].values()), width=0.25, color=COLOURS[split], label=split)
        axes.bar_label(bars, fontsize=7, color=figures.INK, padding=1)
    axes.set_xticks(
        range(len(splits.class_names)),
        [figures.shorten(name) for name in splits.class_names],
        rotation=25,
        ha="right",
        rotation_mode="anchor",
        parse_math=False,
    )
    _finish(figure, axes, f"Clips by class and split, protocol {splits.protocol}")
    return figure


def _actor_figure(splits: Splits) -> Figure:
    """A bar an actor, in the colour of its split."""
    by_split = actor_counts(splits)
    actors = sorted({actor for counts in by_split.values() for actor in counts})
    unknown = sum(not clip.actor for split in SPLITS for clip in splits[split])
    figure = figures.new_figure(max(6.0, min(16.0, 0.3 * len(actors) + 1.5)), 4)
    axes = figure.subplots()
    place_of = {actor: place for place, actor in enumerate(actors)}
    for split in SPLITS:
        counts = by_split[split]
        axes.bar([place_of[actor] for actor in counts], list(counts.values()), width=0.8, color=COLOURS[split])
    if actors:
        named = actors[:: -(-len(actors) // _MOST_ACTORS_NAMED)]
        axes.set_xticks([place_of[actor] for actor in named], [str(actor) for actor in named], fontsize=8)
        axes.set_xlabel("Actor")
    else:
        axes.set_xticks([])
        figures.say(axes, "names tell no actor")
    note = f"; of {unknown} clips the actor is unknown" if unknown and actors else ""
    _finish(figure, axes, f"Clips by actor and split, protocol {splits.protocol}{note}")
    return figure


def _finish(figure: Figure, axes: Axes, title: str) -> None:
    axes.set_ylabel("Clips")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figures.clean(axes)
    figures.write_title(figure, axes, title)
    handles = [Patch(color=COLOURS[split], label=split) for split in SPLITS]
    figure.legend(handles=handles, loc="outside lower right", ncols=len(handles), frameon=False, fontsize=9)


def _examples(clips: Sequence[Clip]) -> list[Clip]:
    """As many as are shown, spread over the actors; of an actor the strongest expression, then the first clip."""
    by_actor: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_actor[str(clip.actor or clip.key)].append(clip)
    actors = sorted(by_actor, key=lambda name: (len(name), name))
    if not actors:
        return []
    places = np.linspace(0, len(actors) - 1, min(_EXAMPLES, len(actors))).round().astype(int)
    return [min(by_actor[actors[place]], key=lambda clip: (-clip.intensity, clip.key)) for place in places]


def _middle_frame(root: Path, clip: Clip, spec: FrameSpec | None) -> np.ndarray:
    """uint8 [h, w, 3], RGB."""
    one = None if spec is None else replace(spec, num_frames=1)
    (frame,) = decode_clip(root / clip.key, frame_indices(clip.num_frames, 1), one)
    return frame.transpose(1, 2, 0)


def _jpeg(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="jpeg", dpi=_JPEG_DPI, pil_kwargs={"quality": _JPEG_QUALITY, "optimize": True})
    return data.getvalue()
