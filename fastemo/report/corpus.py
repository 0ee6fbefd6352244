"""A corpus as runs saw it: its counts, example frames, and the crop."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure

from fastemo.config import RunConfig, read_config
from fastemo.corpus.clip import Clip, Root, folders
from fastemo.corpus.config import SPLITS, CorpusConfig
from fastemo.corpus.folds import by_number
from fastemo.corpus.manifest import Manifest, read_manifest
from fastemo.corpus.prepare import named_root
from fastemo.corpus.protocol import num_folds, split_corpus
from fastemo.corpus.splits import Splits
from fastemo.machine import cache_folder
from fastemo.report.drawing import shorten, strips, style, write_figure
from fastemo.report.figures import save_figures
from fastemo.report.view import Corpus, Run
from fastemo.video.config import FrameSpec
from fastemo.video.decode import decode_clip
from fastemo.video.sampling import frame_indices

_EXAMPLES, _PIXELS, _GAP = 4, 160, 4
_ORANGE, _BLUE = (230, 159, 0), (86, 180, 233)
_FACES = 3
_CORPUS_KEYS = tuple(f"corpus.{name}" for name in ["root", "labels", "subjects", "classes", "protocol", "synthetic"])


def corpus_of(splits: Splits, title: str, **others: Any) -> Corpus:
    """Counts of clips by split and class, every class in its order, and by split and person, by number."""
    of_class = {split: Counter(clip.emotion for clip in splits[split]) for split in SPLITS}
    of_actor = {split: Counter(clip.person for clip in splits[split] if clip.person) for split in SPLITS}
    return Corpus(
        title=title,
        class_counts={split: {name: of_class[split][name] for name in splits.class_names} for split in SPLITS},
        actor_counts={name: {who: of[who] for who in sorted(of, key=by_number)} for name, of in of_actor.items()},
        **others,
    )


def example_sheet(manifest: Manifest, spec: FrameSpec) -> Figure:
    """A row of middle frames per class, of different actors as far as possible: Figure 2 of Roy (2025).

    Args:
        spec: Gives the crop.

    Raises:
        DecodeError: A clip that was chosen does not decode; the message names it.
    """
    rows = []
    for name in manifest.class_names:
        chosen = _examples([clip for clip in manifest.clips if clip.emotion == name])
        row = np.full((_PIXELS, _EXAMPLES * (_PIXELS + _GAP), 3), 255, np.uint8)
        for clip, left in zip(chosen, range(0, row.shape[1], _PIXELS + _GAP), strict=False):
            frame = _middle_frame(manifest.root, clip, replace(spec, size=_PIXELS))
            scale = _PIXELS / max(frame.shape[:2])
            small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            row[: small.shape[0], left : left + small.shape[1]] = small
        rows.append((shorten(name) if chosen else f"{shorten(name)}: no clips", row))
    return strips(rows)


def crop_picture(manifest: Manifest, spec: FrameSpec) -> Figure:
    """A whole frame with the crop marked, and the crop as the model gets it: Figure 5 of Roy (2025).

    With crop `face`, of three people: their faces are where they are found.

    Raises:
        ValueError: There is no clip.
        DecodeError: The clip does not decode; the message names it.
    """
    if not manifest.clips:
        raise ValueError(f"{manifest.where} holds no clips to show the crop on")
    rows = []
    for clip in _examples(manifest.clips)[: _FACES if spec.crop == "face" else 1]:
        seen = _middle_frame(manifest.root, clip, spec)
        whole = _with_crop(_middle_frame(manifest.root, clip, None), spec.at(clip.face_box))
        titles = f"{whole.shape[1]} x {whole.shape[0]}, crop {spec.crop}", f"{seen.shape[1]} x {seen.shape[0]} kept"
        if spec.crop == "face":
            beside = cv2.resize(seen, (whole.shape[0], whole.shape[0]), interpolation=cv2.INTER_AREA)
            rows.append((", ".join(titles), np.hstack([whole, beside])))
        else:
            rows += [(titles[0], whole), (titles[1], seen)]
    return strips(rows)


def _with_crop(whole: np.ndarray, spec: FrameSpec) -> np.ndarray:
    """A frame uint8 [h, w, 3] with the crop marked, and the face that it is around."""
    height, width = whole.shape[:2]
    left, top, kept_width, kept_height = spec.box(width, height)
    right, bottom = left + kept_width, top + kept_height
    dimmed = (whole * 0.4).astype(np.uint8)
    dimmed[top:bottom, left:right] = whole[top:bottom, left:right]
    line = max(1, height // 180)
    cv2.rectangle(dimmed, (left - 1, top - 1), (right, bottom), _ORANGE, line)
    if spec.face is not None:
        x, y, *sides = spec.face
        cv2.rectangle(dimmed, (x, y), (x + sides[0] - 1, y + sides[1] - 1), _BLUE, line)
    return dimmed


_PICTURES = {"Example frames by emotion": example_sheet, "What the model sees of a frame": crop_picture}


def save_corpus_figures(manifest: Manifest, splits: Splits, spec: FrameSpec, out: Path) -> list[Path]:
    """Write Figures 2 to 5 of Roy (2025) to a folder, which is created; return their paths.

    Raises:
        ValueError: There is no clip.
        DecodeError: A clip that is shown does not decode; the message names it.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / "examples.jpg", out / "crop.jpg"]
    with style():
        for path, draw in zip(paths, _PICTURES.values(), strict=True):
            write_figure(draw(manifest, spec), path)
    title = f"{len(manifest.clips)} clips, protocol {splits.protocol}"
    return [*paths, *save_figures("corpus", corpus_of(splits, title), out, title)]


def corpora_of(runs: Sequence[Run], chosen_root: Path | None) -> Iterator[Corpus]:
    """Each corpus once, as the first of its runs saw it."""
    seen = set()
    for run in runs:
        keys = tuple(repr(it) for it in sorted(run.settings.items()) if it[0].startswith(_CORPUS_KEYS))
        if run.folder is None or not (run.folder / "manifest.csv").is_file() or keys in seen:
            continue
        seen.add(keys)
        try:
            config = read_config(["--config", str(run.folder / "config.yaml")])
        except ValueError:
            continue  # from a version that this one cannot read
        yield _corpus(run, run.folder, config, chosen_root)


def _corpus(run: Run, folder: Path, config: RunConfig, chosen_root: Path | None) -> Corpus:
    corpus = config.corpus
    listed = read_manifest(folder / "manifest.csv", chosen_root or named_root(corpus))
    splits = split_corpus(listed, corpus)
    root = home_of(listed, corpus, chosen_root)
    notes, pictures = list(splits.notes), {}
    if num_folds(listed, splits.protocol, corpus.folds) > 1:
        notes.append(f"The splits shown are those of fold {corpus.fold}.")
    if root is None:
        notes.append("The corpus is not where the run found it: for pictures, give its folder with --corpus.root.")
    else:
        manifest = Manifest.of(root, listed.rows)
        for name, draw in _PICTURES.items():
            try:
                pictures[name] = draw(manifest, config.video.spec)
            except (ValueError, OSError) as error:
                notes.append(f"A picture of the corpus could not be made: {error}.")
    title = run.result.corpus or "as listed in the run folder"
    return corpus_of(splits, title, pictures=pictures, notes=list(dict.fromkeys(notes)))


def home_of(listed: Manifest, corpus: CorpusConfig, chosen_root: Path | None = None) -> Root | None:
    """The folder, or folders by name, where a run's corpus is now; None if it is not there."""
    root: Root | None = chosen_root or (_built_in_root(listed) if corpus.root is None else named_root(corpus))
    return root if root is not None and all(folder.is_dir() for folder in folders(root).values()) else None


def _built_in_root(listed: Manifest) -> Path | None:
    """The cache folder of a built-in corpus with exactly these files, if it still exists."""

    def holds(folder: Path) -> bool:
        files = {folder / clip.key: clip.size_bytes for clip in listed.clips}
        return bool(files) and all(it.is_file() and it.stat().st_size == size for it, size in files.items())

    made = cache_folder() / "synthetic"
    return next(filter(holds, sorted(made.iterdir())), None) if made.is_dir() else None


def _examples(clips: Sequence[Clip]) -> list[Clip]:
    """The clips to show, spread over the actors; of each actor the strongest expression, then the first clip."""
    by_actor: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_actor[clip.person or clip.key].append(clip)
    actors = sorted(by_actor, key=lambda name: (len(name), name))
    places = np.linspace(0, len(actors) - 1, min(_EXAMPLES, len(actors))).round().astype(int)
    return [min(by_actor[actors[place]], key=lambda clip: (-clip.intensity, clip.key)) for place in places]


def _middle_frame(root: Root, clip: Clip, spec: FrameSpec | None) -> np.ndarray:
    """uint8 [h, w, 3], RGB."""
    one = None if spec is None else replace(spec.at(clip.face_box), num_frames=1)
    (frame,) = decode_clip(
        clip.file(root), frame_indices(clip.num_frames, 1, clip.first_frame), one, anchor=clip.anchor
    )
    return frame.transpose(1, 2, 0)
