"""The built-in corpus: generated faces that act RAVDESS's takes, as real MP4 files with RAVDESS names.

It stands in for RAVDESS where the recordings are not available: in tests, first steps and benchmarks. Faces are
parametric (`portraits.py`), expressions are facial action units over time (`action_units.py`), and streams are
encoded like RAVDESS's: H.264 High, a keyframe every 29 frames, two B-frames between references, 30000/1001 frames
per second.

Two pairs of classes differ in frame order only. Surprised and fearful both show surprise and fear, surprised in
this order and fearful in the other; sad and disgust likewise. Without noise, blinks and speech the frames of one
are the frames of the other reversed. An order-blind model (invariant to frame order) can therefore only guess
within a pair: of an actor's 60 takes (neutral 4, the other seven 8 each), 32 are in pairs and half of them right,
so it reaches (28 + 16) / 60 = 73.3 % at best, and a model that uses the order 100 %.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path

import cv2
import numpy as np

from fastemo.corpus import ravdess
from fastemo.corpus.config import SyntheticConfig
from fastemo.corpus.synthetic import action_units
from fastemo.corpus.synthetic.encode import TEMPORARY_SUFFIX, encode_clip
from fastemo.corpus.synthetic.faces import NECK, FacePainter
from fastemo.corpus.synthetic.identity import draw_identity
from fastemo.corpus.synthetic.workers import start_worker
from fastemo.machine import available_processors

GENERATOR_VERSION = 1

_DONE, _STARTED = "synthetic.json", "synthetic.partial.json"
_HALF_STARTED = f".{_STARTED}{TEMPORARY_SUFFIX}"
_NOISE = 20  # tag of the noise in random keys
_NOISE_SIGMA = 2.5  # grey levels at noise = 1
_NOISE_MARGIN = 64
_TAKES_A_TASK = 10
# The order in which a smaller corpus takes an emotion's eight takes: intensities alternate, then statements.
_TAKE_ORDER = (0, 7, 2, 5, 1, 6, 3, 4)
_RATE_FACTOR = {1: 22, 2: 23}  # by modality: the two files of a take are encoded separately


def corpus_performances(config: SyntheticConfig) -> list[ravdess.Performance]:
    """Every file of the corpus, by actor and then in RAVDESS's order; twins are adjacent."""
    chosen = [take for actor in range(1, config.actors + 1) for take in _takes(actor, config.clips_per_actor)]
    if not config.twins:
        return chosen
    return [take.with_modality(modality) for take in chosen for modality in (1, 2)]


def clip_path(root: Path, performance: ravdess.Performance) -> Path:
    return root / f"Actor_{performance.actor:02d}" / f"{performance.stem}.mp4"


def render_frames(
    performance: ravdess.Performance,
    config: SyntheticConfig,
    *,
    blink: bool = True,
    speech: bool = True,
    noise: bool = True,
) -> np.ndarray:
    """Draw one take.

    Args:
        performance: The take; its modality has no effect.
        config: Size, length, seed and difficulty.
        blink: Whether the lids blink.
        speech: Whether the mouth speaks.
        noise: Whether the sensor is noisy.

    Returns:
        uint8 [N, H, W, 3] RGB.
    """
    hard, length, seed = config.difficulty, config.num_frames, config.seed
    tracks = action_units.performance_tracks(
        performance,
        num_frames=length,
        seed=seed,
        identity=hard.identity,
        timing=hard.timing,
        motion=hard.motion,
        light=hard.light,
    )
    if blink:
        closing = action_units.blink_track(performance, num_frames=length, seed=seed)
        tracks = replace(tracks, blink=closing)
    if speech:
        mouth = action_units.speech_track(performance, num_frames=length, seed=seed, timing=hard.timing)
        tracks = replace(tracks, mouth=mouth)
    painter = _painter(seed, performance.actor, hard.identity, config.width, config.height)
    if hard.place:
        aspect, unit = config.width / config.height, painter.identity.head_scale
        neck = aspect / 2 + painter.identity.head_x, painter.identity.head_y + NECK * unit
        placed = action_units.head_place(performance, seed=seed, place=hard.place, aspect=aspect, unit=unit, neck=neck)
        tracks = replace(tracks, pose=tracks.pose + placed)
    frames = painter.paint(tracks)
    if noise and hard.noise > 0:
        _add_noise(frames, performance, config)
    return frames


def synthesize(
    root: Path,
    config: SyntheticConfig,
    *,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the corpus below `root`, or complete or reuse one that an earlier call with `config` wrote there.

    One process at a time may write to a folder. Scripts that call this with more than one worker need the
    usual `if __name__ == "__main__":` guard.

    Args:
        root: A new or empty folder, or one written by an earlier call with the same configuration.
        config: What to write.
        workers: Processes; by default one per CPU that this process may use.
        on_progress: Called in this process with (files done, files in all).

    Returns:
        `root`.

    Raises:
        ValueError: `workers` is below 1, or `root` holds another configuration's corpus or other files.
    """
    root = Path(root)
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}, must be at least 1")
    performances = corpus_performances(config)
    _check_folder(root, config, {clip_path(root, performance) for performance in performances})
    missing = [p for p in performances if not _is_written(clip_path(root, p))]
    if not missing and (root / _DONE).exists():
        return root
    _start(root, config)
    done, total = len(performances) - len(missing), len(performances)
    for count in _write_clips(root, config, missing, workers or available_processors()):
        done += count
        if on_progress is not None:
            on_progress(done, total)
    os.replace(root / _STARTED, root / _DONE)
    return root


def _takes(actor: int, count: int) -> list[ravdess.Performance]:
    """`count` of an actor's 60 takes, one of each emotion in turn; actors start at different emotions."""
    everything = ravdess.speech_performances(actor)
    by_emotion = [[p for p in everything if p.label == label] for label in range(len(ravdess.EMOTIONS))]
    first = (actor - 1) * count % len(by_emotion)
    turn = by_emotion[first:] + by_emotion[:first]
    ranked = [[takes[i] for i in _TAKE_ORDER if i < len(takes)] for takes in turn]
    queue = [take for turns in zip_longest(*ranked) for take in turns if take is not None]
    chosen = set(queue[:count])
    return [p for p in everything if p in chosen]


@lru_cache(maxsize=2)
def _painter(seed: int, actor: int, identity: float, width: int, height: int) -> FacePainter:
    return FacePainter(draw_identity(seed, actor, identity), width, height)


@lru_cache(maxsize=1)
def _noise_field(seed: int, width: int, height: int) -> np.ndarray:
    """Gaussian noise uint8 [H + 64, W + 64, 3], mean 128 and standard deviation 32."""
    rng = action_units.generator(seed, _NOISE)
    size = (height + _NOISE_MARGIN, width + _NOISE_MARGIN, 3)
    return np.clip(np.rint(128 + 32 * rng.standard_normal(size, dtype=np.float32)), 0, 255).astype(np.uint8)


def _add_noise(frames: np.ndarray, performance: ravdess.Performance, config: SyntheticConfig) -> None:
    """Add noise in place: each frame gets a random window of one field, much cheaper than fresh noise."""
    key = [int(number) for number in performance.take.split("-")]
    rng = action_units.generator(config.seed, _NOISE, *key)
    noise = _noise_field(config.seed, config.width, config.height)
    strength = _NOISE_SIGMA * config.difficulty.noise / 32
    corners = rng.integers(0, _NOISE_MARGIN + 1, size=(len(frames), 2))
    for frame, (top, left) in zip(frames, corners, strict=True):
        window = noise[top : top + config.height, left : left + config.width]
        cv2.addWeighted(frame, 1.0, window, strength, -128 * strength, frame)


def _write_clips(
    root: Path, config: SyntheticConfig, performances: list[ravdess.Performance], workers: int
) -> Iterable[int]:
    """Write the clips, with several processes where it pays, and yield the number of each finished task."""
    tasks = _split(performances, config, workers)
    if workers == 1 or len(tasks) <= 1:  # no task: killed after the last file
        for performance in performances:
            yield _write_task(root, config, [performance])
        return
    pool = ProcessPoolExecutor(
        min(workers, len(tasks)), mp_context=multiprocessing.get_context("spawn"), initializer=start_worker
    )
    try:
        for future in as_completed([pool.submit(_write_task, root, config, task) for task in tasks]):
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _split(
    performances: list[ravdess.Performance], config: SyntheticConfig, workers: int
) -> list[list[ravdess.Performance]]:
    """Tasks of a few takes of one actor each: painting an actor's portrait costs as much as a clip."""
    size = max(2, min(_TAKES_A_TASK, math.ceil(len(performances) / workers)))
    tasks = []
    for actor in range(1, config.actors + 1):
        mine = [p for p in performances if p.actor == actor]
        tasks += [mine[i : i + size] for i in range(0, len(mine), size)]
    return tasks


def _write_task(root: Path, config: SyntheticConfig, performances: list[ravdess.Performance]) -> int:
    take, frames = "", np.empty(0)
    for performance in performances:
        if performance.take != take:
            take, frames = performance.take, render_frames(performance, config)
        path = clip_path(root, performance)
        path.parent.mkdir(parents=True, exist_ok=True)
        encode_clip(
            path,
            frames,
            rate_factor=_RATE_FACTOR[performance.modality],
            silent_sound=performance.modality == 1,
        )
    return len(performances)


def _is_written(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _description(config: SyntheticConfig) -> dict[str, object]:
    difficulty = asdict(config.difficulty)
    if not config.difficulty.place:  # corpora from before there was one have no such key
        del difficulty["place"]
    return {"version": GENERATOR_VERSION, **asdict(config), "difficulty": difficulty}


def _check_folder(root: Path, config: SyntheticConfig, expected: set[Path]) -> None:
    """Refuse a folder that another configuration filled."""
    # A full disk leaves the first file half written.
    if not root.exists() or {path.name for path in root.iterdir()} <= {_HALF_STARTED}:
        return
    advice = "choose another folder, or remove this one"
    marker = next((root / name for name in (_DONE, _STARTED) if (root / name).exists()), None)
    if marker is None:
        raise ValueError(f"{root} has files that are not a synthetic corpus: {advice}")
    try:
        found = _flat(json.loads(marker.read_text(encoding="utf-8")))
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{marker} is not valid JSON ({error}): {advice}") from error
    wanted = _flat(_description(config))
    differing = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
    if differing:
        listed = ", ".join(f"{key} {found.get(key)} (wanted {wanted.get(key)})" for key in differing)
        raise ValueError(f"{root} holds a synthetic corpus with {listed}: {advice}")
    foreign = sorted(set(root.rglob("*.mp4")) - expected)
    if foreign:
        raise ValueError(f"{root} has clips that do not belong to this corpus, such as {foreign[0]}: {advice}")


def _flat(description: dict[str, object]) -> dict[str, object]:
    """`{"difficulty": {"noise": 1.0}}` -> `{"difficulty.noise": 1.0}`."""
    flat: dict[str, object] = {}
    for key, value in description.items():
        inner = value if isinstance(value, dict) else None
        flat.update({key: value} if inner is None else {f"{key}.{name}": v for name, v in inner.items()})
    return flat


def _start(root: Path, config: SyntheticConfig) -> None:
    """Mark the folder as this configuration's, unfinished, and remove partial files of a killed run."""
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.rglob(f".*{TEMPORARY_SUFFIX}"):
        leftover.unlink()
    temporary = root / _HALF_STARTED
    temporary.write_text(json.dumps(_description(config), indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, root / _STARTED)
    (root / _DONE).unlink(missing_ok=True)
