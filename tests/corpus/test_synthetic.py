"""The built-in corpus: determinism, the law of order, the stream's facts, and the folder's life."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from fastemo.console import Console
from fastemo.corpus import ravdess
from fastemo.corpus.config import CorpusConfig, Difficulty, SyntheticConfig
from fastemo.corpus.prepare import corpus_root
from fastemo.corpus.synthetic import action_units, synthesis
from fastemo.corpus.synthetic.synthesis import render_frames, synthesize

SMALL = SyntheticConfig(actors=2, clips_per_actor=3, width=160, height=90, num_frames=31)


def performance(emotion: str, *, actor: int = 3, intensity: int = 2, **fields: int) -> ravdess.Performance:
    given = {"modality": 2, "channel": 1, "statement": 1, "repetition": 1} | fields
    number = ravdess.EMOTIONS.index(emotion) + 1
    return ravdess.Performance(emotion=number, actor=actor, intensity=intensity, **given)


def tracks_of(take: ravdess.Performance, seed: int = 0) -> action_units.Tracks:
    return action_units.performance_tracks(
        take, num_frames=60, seed=seed, identity=1.0, timing=1.0, motion=1.0, light=1.0
    )


def bare(take: ravdess.Performance, config: SyntheticConfig = SMALL) -> np.ndarray:
    return render_frames(take, config, blink=False, speech=False, noise=False)


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*.mp4"))}


def decoded(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return synthesize(tmp_path_factory.mktemp("corpus") / "made", SMALL, workers=1)


# --- pixels ---------------------------------------------------------------------------------------


def test_same_seed_same_pixels_and_another_seed_others():
    take = performance("happy")
    first = render_frames(take, SMALL)
    render_frames(performance("angry", actor=8), SMALL)
    np.testing.assert_array_equal(first, render_frames(take, SMALL))
    assert first.shape == (31, 90, 160, 3)
    assert first.dtype == np.uint8
    assert np.abs(first.astype(int) - render_frames(take, replace(SMALL, seed=1))).mean() > 3


@pytest.mark.parametrize("pair", action_units.PAIRS)
@pytest.mark.parametrize("actor", [1, 2, 11, 24])
@pytest.mark.parametrize("intensity", [1, 2])
def test_the_second_class_of_a_pair_is_the_first_reversed(pair, actor, intensity):
    forwards = bare(performance(pair[0], actor=actor, intensity=intensity, statement=2))
    backwards = bare(performance(pair[1], actor=actor, intensity=intensity, statement=2))
    np.testing.assert_array_equal(forwards, backwards[::-1])
    assert (forwards != backwards).any()


def test_the_first_class_of_a_pair_shows_its_own_expression_first():
    for first, second in action_units.PAIRS:
        for actor in range(1, 25):
            units = tracks_of(performance(first, actor=actor)).units
            typical = [np.array([action_units.EXPRESSIONS[name].get(unit, 0.0) for unit in
                                 action_units.ACTION_UNITS]) for name in (first, second)]  # fmt: skip
            own = typical[0] - typical[1]
            assert units[15:25].mean(axis=0) @ own > units[36:46].mean(axis=0) @ own


def test_neutral_shows_no_action_units_and_a_still_face_without_nuisances():
    take = performance("neutral", intensity=1)
    assert not tracks_of(take).units.any()
    still = replace(SMALL, difficulty=Difficulty(motion=0, light=0))
    frames = bare(take, still)
    assert (frames == frames[0]).all()
    assert (bare(performance("calm"), still) != frames).any()


@pytest.mark.parametrize("emotion", ravdess.EMOTIONS[1:])
def test_intensity_scales_the_action_units(emotion):
    peaks = [
        np.mean([tracks_of(performance(emotion, actor=a, intensity=i)).units.max() for a in range(1, 25)])
        for i in (1, 2)
    ]
    assert 0.2 < peaks[0] < 0.85 * peaks[1]


def test_speech_and_blinks_do_not_tell_which_way_time_runs():
    time = np.linspace(-1, 1, 60)
    for emotion in ("surprised", "fearful", "sad", "disgust"):
        takes = [p for a in range(1, 25) for p in ravdess.speech_performances(a) if p.emotion_name == emotion]
        speech = [action_units.speech_track(p, num_frames=60, seed=0, timing=1.0) for p in takes]
        slopes = np.array([time @ mouth for mouth in speech])
        closings = [action_units.blink_track(p, num_frames=60, seed=0) for p in takes]
        slopes = np.column_stack([slopes, [time @ closing for closing in closings]])
        standard_error = slopes.std(axis=0) / np.sqrt(len(takes))
        assert (np.abs(slopes.mean(axis=0)) < 4 * standard_error).all()
    for syllables in (*action_units.SYLLABLE_OPENING, *action_units.SYLLABLE_ROUNDING):
        assert syllables == syllables[::-1]


def test_every_nuisance_has_its_switch():
    take = performance("happy")
    plain = SyntheticConfig(width=160, height=90, num_frames=12)
    everything = render_frames(take, plain)
    for name in ("identity", "timing", "motion", "light", "noise"):
        assert (render_frames(take, replace(plain, difficulty=Difficulty(**{name: 0.0}))) != everything).any()
    assert (render_frames(take, replace(plain, difficulty=Difficulty(place=1.0))) != everything).any()
    alike = replace(plain, difficulty=Difficulty(identity=0, motion=0, light=0, timing=0))
    odd, even = (bare(performance("sad", actor=actor), alike) for actor in (1, 2))
    assert np.abs(odd.astype(int) - even).mean() < 1.5


def test_a_place_is_drawn_for_each_take_alike_in_both_classes_of_a_pair():
    config = replace(SMALL, difficulty=Difficulty(motion=0, light=0, place=1.0))
    one, other, repeated = (
        bare(performance("sad"), config), bare(performance("disgust"), config), bare(performance("sad"), config)
    )  # fmt: skip
    assert np.array_equal(one, other[::-1])
    assert np.array_equal(one, repeated)
    places = [
        action_units.head_place(take, seed=0, place=1.0, aspect=16 / 9, unit=0.32, neck=(8 / 9, 0.8))
        for take in ravdess.speech_performances(3)
    ]
    assert len({place.tobytes() for place in places}) == 60 - 16  # those of eight takes of two pairs are alike
    x, y, turn, size = np.transpose(places)
    assert (turn == 0).all()
    assert -0.9 <= size.min() < -0.7 < -0.2 < size.max() <= 0
    assert x.max() - x.min() > 1.0
    assert y.max() - y.min() > 0.4


def test_a_corpus_from_before_there_were_places_is_the_same(tmp_path, monkeypatch):
    config = SyntheticConfig(actors=1, clips_per_actor=1, width=64, height=64, num_frames=2)
    synthesize(tmp_path / "corpus", config)
    assert "place" not in (tmp_path / "corpus" / "synthetic.json").read_text()
    with pytest.raises(ValueError, match=r"difficulty\.place None \(wanted 1\.0\)"):
        synthesize(tmp_path / "corpus", replace(config, difficulty=Difficulty(place=1.0)))
    monkeypatch.setenv("FASTEMO_CACHE", str(tmp_path / "cache"))
    root = corpus_root(CorpusConfig(synthetic=config), Console(show=False))
    before = "1 SyntheticConfig(actors=1, clips_per_actor=1, width=64, height=64, num_frames=2, seed=0, twins=False, "
    before += "difficulty=Difficulty(identity=1.0, timing=1.0, motion=1.0, light=1.0, noise=1.0))"
    assert root.name == hashlib.blake2b(before.encode(), digest_size=6).hexdigest()


@pytest.mark.parametrize("strength", [0.0, 2.0])
@pytest.mark.parametrize("num_frames", [1, 2, 7])
def test_extreme_difficulties_and_lengths_draw(strength, num_frames):
    hard = Difficulty(**{field.name: strength for field in fields(Difficulty)})
    config = SyntheticConfig(width=96, height=64, num_frames=num_frames, difficulty=hard)
    for actor in (5, 6):
        assert render_frames(performance("fearful", actor=actor), config).shape == (num_frames, 64, 96, 3)


# --- files ----------------------------------------------------------------------------------------


def test_the_stream_is_built_as_ravdess_is(corpus):
    path = min(corpus.rglob("*.mp4"))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.profile, stream.pix_fmt) == ("h264", "High", "yuv420p")
        assert stream.average_rate == Fraction(30000, 1001)
        assert (stream.width, stream.height, stream.frames) == (160, 90, 31)
    frames = decoded(path)
    assert len(frames) == 31
    assert [n for n, frame in enumerate(frames) if frame.key_frame] == [0, 29]
    kinds = "".join("?IPB"[int(frame.pict_type)] for frame in frames)
    assert kinds == "I" + "BBP" * 9 + "P" + "IP"


def test_the_file_shows_what_was_drawn(corpus):
    path = min(corpus.rglob("*.mp4"))
    drawn = render_frames(ravdess.parse_stem(path.stem), SMALL)
    seen = np.stack([frame.to_ndarray(format="rgb24") for frame in decoded(path)])
    assert np.abs(drawn.astype(int) - seen).mean() < 4


def test_files_are_named_as_ravdess_names_them(corpus):
    stems = [take.stem for take in synthesis.corpus_performances(SMALL)]
    files = [f"Actor_{stem[-2:]}/{stem}.mp4" for stem in stems]
    found = [path.relative_to(corpus).as_posix() for path in corpus.rglob("*") if path.is_file()]
    assert sorted(found) == sorted([*files, "synthetic.json"])
    assert len(found) == 7


@pytest.mark.parametrize("clips", [1, 4, 8, 13, 30, 60])
def test_smaller_corpora_are_balanced_over_classes(clips):
    takes = synthesis.corpus_performances(SyntheticConfig(clips_per_actor=clips))
    assert len(takes) == len(set(takes)) == 24 * clips
    counts = np.bincount([take.label for take in takes], minlength=8)
    assert counts[0] == min(3 * clips, 4 * 24)
    assert np.ptp(counts[1:]) <= (24 if clips > 32 else 0)


def test_twins_are_the_same_takes_in_other_bytes(tmp_path):
    config = replace(SMALL, actors=1, clips_per_actor=2, twins=True)
    root = synthesize(tmp_path, config, workers=1)
    paths = sorted(root.rglob("*.mp4"))
    both, silent = paths[:2], paths[2:]
    assert [path.stem[:2] for path in paths] == ["01", "01", "02", "02"]
    for a, b in zip(both, silent, strict=True):
        assert a.stem[3:] == b.stem[3:]
        with av.open(str(a)) as with_sound, av.open(str(b)) as without:
            assert (len(with_sound.streams.audio), len(without.streams.audio)) == (1, 0)
        one, other = (np.stack([f.to_ndarray(format="gray") for f in decoded(p)]).astype(int) for p in (a, b))
        assert one.shape == other.shape
        assert 0 < np.abs(one - other).mean() < 2


def test_the_number_of_workers_does_not_change_a_byte(corpus, tmp_path):
    calls: list[tuple[int, int]] = []
    root = synthesize(tmp_path / "two", SMALL, workers=2, on_progress=lambda *call: calls.append(call))
    assert contents(root) == contents(corpus)
    assert calls[-1] == (6, 6)
    assert calls == sorted(set(calls))


# --- the folder's life ----------------------------------------------------------------------------


def times(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def test_reuse_and_resume(tmp_path):
    config = replace(SMALL, actors=1)
    root = synthesize(tmp_path / "corpus", config, workers=1)
    files, stamps = contents(root), times(root)
    synthesize(root, config, workers=1)
    assert times(root) == stamps

    lost = min(root.rglob("*.mp4"))
    lost.unlink()
    leftover = lost.with_name(f".{lost.name}.tmp")
    leftover.write_bytes(b"half a file")
    calls = []
    synthesize(root, config, workers=1, on_progress=lambda *call: calls.append(call))
    assert calls == [(3, 3)]
    assert contents(root) == files
    assert not leftover.exists()
    assert {path for path, stamp in times(root).items() if stamp != stamps[path] and path.suffix == ".mp4"} == {lost}


def test_files_without_the_note_that_all_are_there(tmp_path):
    """As after a kill between the last file and the note."""
    config = replace(SMALL, actors=1)
    synthesize(tmp_path, config, workers=1)
    (tmp_path / "synthetic.json").rename(tmp_path / "synthetic.partial.json")
    with pytest.raises(ValueError, match=r"seed 0 \(wanted 5\)"):
        synthesize(tmp_path, replace(config, seed=5), workers=1)
    assert synthesize(tmp_path, config, workers=2) == tmp_path
    assert (tmp_path / "synthetic.json").is_file()


def test_a_folder_with_something_else_is_refused(corpus, tmp_path):
    harder = replace(SMALL, num_frames=32, difficulty=Difficulty(noise=0.5))
    with pytest.raises(ValueError, match=r"difficulty.noise 1.0 \(wanted 0.5\), num_frames 31 .*another folder"):
        synthesize(corpus, harder)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not a synthetic corpus: choose another folder"):
        synthesize(tmp_path, SMALL)
    stranger = corpus / "Actor_01" / "02-01-01-01-01-01-24.mp4"
    stranger.write_bytes(b"")
    try:
        with pytest.raises(ValueError, match="not belong to this corpus"):
            synthesize(corpus, SMALL)
    finally:
        stranger.unlink()


def test_no_workers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="workers is 0"):
        synthesize(tmp_path, SMALL, workers=0)
