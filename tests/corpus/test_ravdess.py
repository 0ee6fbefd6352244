"""RAVDESS file names: all of them read and written, everything else refused by name of the part that is wrong."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastemo.corpus.ravdess import EMOTIONS, Performance, parse_stem, speech_performances

FIELDS = ("modality", "channel", "emotion", "intensity", "statement", "repetition", "actor")
COUNTS = (3, 2, 8, 2, 2, 2, 24)
NOT_NAMES = [
    *("", "01-01-01-01-01-01", "01-01-01-01-01-01-01-01", "1-1-1-1-1-1-1", "001-01-01-01-01-01-01"),
    *("01_01_01_01_01_01_01", "01-01-01-01-01-01-01.mp4", " 01-01-01-01-01-01-01", "01-01-01-01-01-01-01 "),
    *("01-01-01-01-01-01-01\n", "01-01-01-01-01-01-1a", "+1-01-01-01-01-01-01", "Actor_01"),
    *("٠١-01-01-01-01-01-01", "01-01-01-01-01-01-０１"),  # digits of other scripts, which int() reads
]


def is_real(numbers: tuple[int, ...]) -> bool:
    return not (numbers[2] == 1 and numbers[3] == 2)  # neutral has no strong intensity


def test_every_valid_name_is_read_and_written_back():
    names = {}
    for numbers in filter(is_real, product(*(range(1, count + 1) for count in COUNTS))):
        stem = "-".join(f"{number:02d}" for number in numbers)
        performance = parse_stem(stem)
        assert tuple(getattr(performance, field) for field in FIELDS) == numbers
        assert performance.stem == stem
        assert performance.emotion_name == EMOTIONS[performance.label] == EMOTIONS[performance.emotion - 1]
        names[stem] = performance
    takes = 2 * (7 * 2 + 1) * 2 * 2 * 24
    assert len(names) == len(set(names.values())) == 3 * takes
    assert len({performance.take for performance in names.values()}) == takes


def test_what_a_name_says():
    assert EMOTIONS == ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
    performance = parse_stem("02-01-06-01-02-01-12")
    assert (performance.take, performance.label, performance.emotion_name) == ("01-06-01-02-01-12", 5, "fearful")
    assert performance.is_female
    assert not performance.is_audio_only
    assert not parse_stem("01-02-03-02-01-02-11").is_female
    sound = performance.with_modality(3)
    assert (sound.stem, sound.take) == ("03-01-06-01-02-01-12", performance.take)
    assert sound.is_audio_only
    assert performance.modality == 2


@pytest.mark.parametrize(("position", "field"), list(enumerate(FIELDS)))
@pytest.mark.parametrize("beyond", [False, True])
def test_a_field_out_of_range_is_named(position, field, beyond):
    numbers = [1] * len(FIELDS)
    numbers[position] = COUNTS[position] + 1 if beyond else 0
    stem = "-".join(f"{number:02d}" for number in numbers)
    with pytest.raises(ValueError, match="RAVDESS has") as raised:
        parse_stem(stem)
    assert str(raised.value) == f"{field} is {numbers[position]:02d}, RAVDESS has 01 to {COUNTS[position]:02d}"


def test_a_strong_neutral_is_refused():
    with pytest.raises(ValueError, match="neutral is marked strong"):
        parse_stem("01-01-01-02-01-01-01")
    with pytest.raises(ValueError, match="neutral is marked strong"):
        Performance(modality=1, channel=1, emotion=1, intensity=2, statement=1, repetition=1, actor=1)


@pytest.mark.parametrize("stem", NOT_NAMES)
def test_what_is_not_a_name_is_quoted(stem):
    with pytest.raises(ValueError, match="is not seven two-digit numbers joined by '-'") as raised:
        parse_stem(stem)
    assert f"'{stem}'" in str(raised.value)


@given(st.text() | st.from_regex(r"[0-9]{2}(-[0-9]{2}){6}", fullmatch=True))
@example("00-00-00-00-00-00-00")
@example("99-99-99-99-99-99-99")
def test_any_text_is_a_name_or_a_value_error(text):
    try:
        performance = parse_stem(text)
    except ValueError:
        return
    assert performance.stem == text
    assert is_real(tuple(getattr(performance, field) for field in FIELDS))


@pytest.mark.parametrize("actor", [1, 18, 24])
@pytest.mark.parametrize("options", [{}, {"modality": 1}, {"modality": 2}])
def test_an_actor_speaks_sixty_takes(actor, options):
    takes = speech_performances(actor, **options)
    assert len(takes) == len({take.take for take in takes}) == 60
    assert Counter(take.emotion_name for take in takes) == {name: 4 if name == "neutral" else 8 for name in EMOTIONS}
    assert {(take.actor, take.modality, take.channel) for take in takes} == {(actor, options.get("modality", 2), 1)}
    assert [take.stem for take in takes] == sorted(take.stem for take in takes)
