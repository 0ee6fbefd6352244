"""The clips that epochs are timed on, under names that say what each shows; and those that accuracy is told on."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks import corpus
from fastemo.console import Console
from fastemo.corpus import ravdess
from fastemo.corpus.config import CorpusConfig, SyntheticConfig
from fastemo.corpus.manifest import Manifest
from fastemo.corpus.prepare import prepare_corpus

_CHANNELS, _PAIR = len(ravdess.CHANNELS), 2
MOST_CLIPS = ravdess.NUM_ACTORS * 60  # RAVDESS's speech takes, which `corpus.choose` names clips by
MOST_OF_A_CLASS = ravdess.NUM_ACTORS * _PAIR**3 * _CHANNELS

# Few, as an accuracy costs epochs; the second is for a look at whether it works at all.
BUILT_IN = SyntheticConfig(clips_per_actor=8)
BUILT_IN_QUICK = SyntheticConfig(clips_per_actor=1, width=128, height=72, num_frames=12)


def labelled(clips: corpus.Corpus, target: Path) -> Manifest:
    """Links to a corpus's files below `target`, under names of their own class.

    A pass repeats a few recordings under many names; a name of another class would leave nothing to learn. A file
    whose own name says nothing takes the classes in turn.

    Raises:
        ValueError: More clips of one class than RAVDESS has names.
    """
    counts: Counter[int] = Counter()
    found = []
    for number, clip in enumerate(clips.manifest.clips):
        source = (clips.manifest.root / clip.key).resolve()
        try:
            emotion = ravdess.parse_stem(source.stem).emotion
        except ValueError:
            emotion = number % len(ravdess.EMOTIONS) + 1
        take = _nth_name(emotion, counts[emotion])
        counts[emotion] += 1
        link = target / f"Actor_{take.actor:02d}" / f"{take.stem}{source.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(source)
        found.append(replace(clip, key=link.relative_to(target).as_posix(), emotion=take.emotion_name))
    return Manifest.of(target, found)


def _nth_name(emotion: int, number: int) -> ravdess.Performance:
    if number >= MOST_OF_A_CLASS // (2 if emotion == 1 else 1):
        raise ValueError(
            f"--clips asks for more than {number} clips of {ravdess.EMOTIONS[emotion - 1]}, for which RAVDESS has no "
            f"names; choose fewer"
        )
    rest, actor = divmod(number, ravdess.NUM_ACTORS)
    rest, statement = divmod(rest, _PAIR)
    rest, repetition = divmod(rest, _PAIR)
    rest, modality = divmod(rest, _PAIR)
    intensity, channel = divmod(rest, _CHANNELS)
    return ravdess.Performance(
        modality=modality + 1,
        channel=channel + 1,
        emotion=emotion,
        intensity=intensity + 1,
        statement=statement + 1,
        repetition=repetition + 1,
        actor=actor + 1,
    )


def learning_corpus(console: Console, *, quick: bool) -> tuple[Manifest, dict[str, Any]]:
    """The built-in corpus, small, on whose strangers the accuracy is told; made once and kept in the cache folder."""
    config = CorpusConfig(synthetic=BUILT_IN_QUICK if quick else BUILT_IN)
    manifest = prepare_corpus(config, console)
    return manifest, {"kind": "built-in", **asdict(config.synthetic)}
