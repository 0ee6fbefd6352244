"""A corpus's figures: counts as the protocol has them, the crop where the decoder makes it, any corpus drawn."""

import shutil
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest
from helpers import write_video

from fastemo.cli import main
from fastemo.corpus.manifest import Manifest, scan
from fastemo.corpus.protocol import Splits, split_clips
from fastemo.errors import DecodeError
from fastemo.report import corpus_figures
from fastemo.report.corpus_figures import actor_counts, class_counts, crop_picture, example_sheet, save_corpus_figures
from fastemo.video.config import FrameSpec
from fastemo.video.decode import decode_clip
from fastemo.video.sampling import frame_indices

NAMES = ["examples.jpg", "class_distribution.png", "actor_counts.png", "crop.jpg"]


@pytest.fixture
def folder_corpus(tmp_path):
    """Classes by folder, one of them with a name that is markup to matplotlib, no actors."""
    for emotion in (r"$\frac{a}$", "b" * 200):
        for number in range(6):
            write_video(tmp_path / "own" / emotion / f"clip{number}.mp4", 4)
    return tmp_path / "own"


def picture(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def test_counts_are_the_protocols(manifest):
    splits = split_clips(manifest, "speech")
    classes, actors = class_counts(splits), actor_counts(splits)
    for split in ("train", "val", "test"):
        assert classes[split] == {name: Counter(c.emotion for c in splits[split])[name] for name in splits.class_names}
        assert actors[split] == Counter(clip.actor for clip in splits[split])
        assert list(actors[split]) == sorted(actors[split])
    assert list(actors["test"]) == [23, 24]


def test_the_crop_is_drawn_where_the_decoder_crops(manifest, monkeypatch):
    drawn = {}
    kept = corpus_figures._jpeg
    monkeypatch.setattr(corpus_figures, "_jpeg", lambda figure: drawn.update(figure=figure) or kept(figure))
    spec = FrameSpec(crop="head", size=48)
    crop_picture(manifest, manifest.root, spec)
    whole, seen = (axes.images[0].get_array() for axes in drawn["figure"].axes)
    clip = corpus_figures._examples(manifest.clips)[0]
    middle = frame_indices(clip.num_frames, 1)
    (frame,) = decode_clip(manifest.root / clip.key, middle, None)
    (model,) = decode_clip(manifest.root / clip.key, middle, replace(spec, num_frames=1))
    left, top, width, height = spec.box(clip.width, clip.height)
    box = (slice(top, top + height), slice(left, left + width))
    full = frame.transpose(1, 2, 0)
    assert np.array_equal(whole[box], full[box])
    outside = np.ones(full.shape[:2], bool)
    outside[box] = False
    assert (whole[outside] <= full[outside] * 0.4).all()
    assert np.array_equal(seen, model.transpose(1, 2, 0))
    (rectangle,) = drawn["figure"].axes[0].patches
    assert (rectangle.get_x(), rectangle.get_y()) == (left - 0.5, top - 0.5)
    assert (rectangle.get_width(), rectangle.get_height()) == (width, height)


def test_examples_are_of_different_actors_and_always_the_same(manifest):
    chosen = corpus_figures._examples([clip for clip in manifest.clips if clip.emotion == "angry"])
    assert len({clip.actor for clip in chosen}) == len(chosen) == 4
    one = example_sheet(manifest, manifest.root, FrameSpec())
    assert one == example_sheet(manifest, manifest.root, FrameSpec())
    assert len(one) < 200_000
    assert min(picture(one).shape[:2]) > 300


def test_a_class_without_a_clip_and_a_corpus_without_any(manifest):
    few = Manifest.of(manifest.root, [clip for clip in manifest.clips if clip.emotion != "calm"])
    assert picture(example_sheet(few, few.root, FrameSpec())).size
    with pytest.raises(ValueError, match="no clip"):
        crop_picture(Manifest.of(manifest.root, []), manifest.root, FrameSpec())


def test_a_clip_that_does_not_decode_is_named(manifest, tmp_path):
    with pytest.raises(DecodeError, match=r"\.mp4"):
        example_sheet(manifest, tmp_path, FrameSpec())


class TestSaving:
    def test_the_command(self, tiny_corpus, tmp_path, capsys):
        main(["figures", "corpus", str(tiny_corpus), "--out", str(tmp_path / "out"), "--crop", "full"])
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(NAMES)
        assert capsys.readouterr().out.count("written: ") == 4
        with pytest.raises(SystemExit) as caught:
            main(["figures", "corpus", str(tiny_corpus), "--out", str(tmp_path / "out"), "--protocol", "mine"])
        assert caught.value.code == 2
        assert "protocol must be one of" in capsys.readouterr().err

    def test_names_that_are_markup_and_no_actors(self, folder_corpus, tmp_path):
        manifest = scan(folder_corpus, labels="folder")
        paths = save_corpus_figures(manifest, split_clips(manifest), FrameSpec(), tmp_path / "out")
        assert [path.name for path in paths] == NAMES
        assert all(picture(path.read_bytes()).size for path in paths)

    def test_real_recordings(self, clips_folder, tmp_path):
        for labels, folder in (("ravdess", "ravdess"), ("cremad", "crema-d")):
            root = shutil.copytree(clips_folder / folder, tmp_path / folder)
            manifest = scan(root, labels=labels)
            splits = Splits(protocol="speech", class_names=manifest.class_names, train=manifest.clips, val=(), test=())
            paths = save_corpus_figures(manifest, splits, FrameSpec(crop="head"), tmp_path / f"out-{folder}")
            assert all(picture(path.read_bytes()).size for path in paths)
            assert all(path.stat().st_size < 300_000 for path in paths)
