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
from fastemo.corpus.protocol import split_clips
from fastemo.corpus.splits import Splits
from fastemo.errors import DecodeError
from fastemo.report import corpus, drawing
from fastemo.report.corpus import corpus_of, crop_picture, example_sheet, save_corpus_figures
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


def shown(figure):
    """The pictures of a sheet by their titles."""
    return {axes.get_title(loc="left"): np.asarray(axes.images[0].get_array()) for axes in figure.axes}


def test_counts_are_the_protocols(manifest):
    splits = split_clips(manifest, "speech")
    found = corpus_of(splits, "title")
    classes, actors = found.class_counts, found.actor_counts
    for split in ("train", "val", "test"):
        assert classes[split] == {name: Counter(c.emotion for c in splits[split])[name] for name in splits.class_names}
        assert actors[split] == Counter(str(clip.actor) for clip in splits[split])
        assert list(actors[split]) == sorted(actors[split], key=int)
    assert list(actors["test"]) == ["23", "24"]


def test_the_crop_is_drawn_where_the_decoder_crops(manifest):
    spec = FrameSpec(crop="head", size=48)
    with drawing.style():
        whole, seen = shown(crop_picture(manifest, spec)).values()
    clip = corpus._examples(manifest.clips)[0]
    middle = frame_indices(clip.num_frames, 1)
    (frame,) = decode_clip(manifest.root / clip.key, middle, None)
    (model,) = decode_clip(manifest.root / clip.key, middle, replace(spec, num_frames=1))
    left, top, width, height = spec.box(clip.width, clip.height)
    box = (slice(top, top + height), slice(left, left + width))
    full = frame.transpose(1, 2, 0)
    assert np.array_equal(whole[box], full[box])
    outside = np.ones(full.shape[:2], bool)
    outside[box] = False
    marked = (whole == (230, 159, 0)).all(-1)
    assert (whole[outside & ~marked] <= full[outside & ~marked] * 0.4).all()
    # The line runs around the box, a pixel from it at most.
    rows, columns = marked.nonzero()
    assert max(0, top - 2) <= rows.min() <= top
    assert left - 2 <= columns.min() <= left
    assert columns.max() <= left + width + 1
    assert np.array_equal(seen, model.transpose(1, 2, 0))


def test_with_crop_face_three_people_are_drawn_with_their_faces_and_crops(manifest):
    spec = FrameSpec(crop="face", size=48)
    faced = Manifest.of(manifest.root, [replace(clip, face="70 20 20 24") for clip in manifest.clips])
    with drawing.style():
        pictures = [np.asarray(axes.images[0].get_array()) for axes in crop_picture(faced, spec).axes]
    assert len(pictures) == 3
    for picture in pictures:
        assert picture.shape == (72, 128 + 72, 3)  # the whole frame, and the crop as high as it
        rows, columns = (picture[:, :128] == (86, 180, 233)).all(-1).nonzero()
        assert (columns.min(), rows.min(), columns.max(), rows.max()) == (70, 20, 89, 43)
        rows, columns = (picture[:, :128] == (230, 159, 0)).all(-1).nonzero()
        left, top, side, _ = spec.at((70, 20, 20, 24)).box(128, 72)
        assert (columns.min(), rows.min(), columns.max(), rows.max()) == (left - 1, top - 1, left + side, top + side)


def test_examples_are_of_different_actors_and_always_the_same(manifest):
    chosen = corpus._examples([clip for clip in manifest.clips if clip.emotion == "angry"])
    assert len({clip.actor for clip in chosen}) == len(chosen) == 4
    with drawing.style():
        one, same = (shown(example_sheet(manifest, FrameSpec())) for _ in range(2))
    assert list(one) == list(manifest.class_names)
    for name, row in one.items():
        assert np.array_equal(row, same[name])
        assert (row < 255).any(-1).any(0).mean() > 0.9


def test_a_class_without_a_clip_and_a_corpus_without_any(manifest):
    few = Manifest.of(manifest.root, [clip for clip in manifest.clips if clip.emotion != "calm"])
    with drawing.style():
        assert shown(example_sheet(few, FrameSpec()))
    with pytest.raises(ValueError, match="no clip"):
        crop_picture(Manifest.of(manifest.root, []), FrameSpec())


def test_a_clip_that_does_not_decode_is_named(manifest, tmp_path):
    with pytest.raises(DecodeError, match=r"\.mp4"):
        example_sheet(replace(manifest, root=tmp_path), FrameSpec())


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
        assert sorted(path.name for path in paths) == sorted(it for it in NAMES if it != "actor_counts.png")
        assert all(cv2.imread(str(path)).size for path in paths)

    def test_real_recordings(self, clips_folder, tmp_path):
        for labels, folder in (("ravdess", "ravdess"), ("cremad", "crema-d")):
            root = shutil.copytree(clips_folder / folder, tmp_path / folder)
            manifest = scan(root, labels=labels)
            splits = Splits(protocol="speech", class_names=manifest.class_names, train=manifest.clips, val=(), test=())
            paths = save_corpus_figures(manifest, splits, FrameSpec(crop="head"), tmp_path / f"out-{folder}")
            assert all(cv2.imread(str(path)).size for path in paths)
            assert all(path.stat().st_size < 300_000 for path in paths)
