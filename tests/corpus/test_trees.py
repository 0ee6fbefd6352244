"""Trees as others make them: macOS archives, zips not unpacked, sound alone, doubled sets, pictures in folders."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import write_images, write_sound, write_video

from fastemo.console import Console
from fastemo.corpus import manifest as manifest_module
from fastemo.corpus.config import PICTURE_SUFFIXES, CorpusConfig
from fastemo.corpus.files.finding import HIDDEN
from fastemo.corpus.manifest import Manifest, read_manifest, scan
from fastemo.corpus.prepare import describe, prepare_corpus, scan_cached
from fastemo.corpus.protocol import split_clips
from fastemo.corpus.ravdess import EMOTIONS
from fastemo.video.config import FrameSpec
from fastemo.video.decode import decode_clip

HAPPY, HAPPY_TWIN = "02-01-03-01-01-01-01", "01-01-03-01-01-01-01"
QUIET = Console(show=False)
pytestmark = pytest.mark.usefixtures("cache")


def touch(root: Path, *keys: str) -> Path:
    for key in keys:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(b"some bytes")
    return root


def keys(clips) -> list[str]:
    return [clip.key for clip in clips]


def advice(root: Path, **options) -> str:
    """What an empty corpus is refused with."""
    with pytest.raises(ValueError, match=r".") as raised:
        prepare_corpus(CorpusConfig(root=root, **options), QUIET)
    message = str(raised.value)
    assert message.startswith(f"{root} has no labelled clips: ")
    assert "\n" not in message
    return message.partition("clips: ")[2]


def picture(path: Path, number: int = 0, *, grey: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((48, 48), 20 * number, np.uint8)
    assert cv2.imwrite(str(path), pixels if grey else cv2.merge([pixels] * 3))
    return path


class TestPassedOver:
    def test_a_tree_made_by_macos(self, put):
        root = put("happy/clip.mp4", "sad/clip.mp4")
        touch(root, "happy/._clip.mp4", "__MACOSX/happy/._clip.mp4", "__MACOSX/sad/clip.mp4", ".DS_Store")
        touch(root, "sad/Thumbs.db", "sad/desktop.ini", ".git/objects/a", ".git/b.mp4")
        found = prepare_corpus(CorpusConfig(root=root, labels="folder"), QUIET)
        assert (keys(found.clips), found.rejected) == (["happy/clip.mp4", "sad/clip.mp4"], ())
        assert found.passed_over == {HIDDEN: 8}

    def test_the_root_may_lie_in_a_hidden_folder(self, tmp_path, master):
        root = tmp_path / ".data/__MACOSX"
        root.mkdir(parents=True)
        shutil.copy(master, root / f"{HAPPY}.mp4")
        assert len(scan(root).clips) == 1

    def test_a_hidden_folder_that_cannot_be_listed(self, tmp_path, put, monkeypatch):
        touch(put(f"{HAPPY}.mp4"), ".Trashes/x")
        list_folder = os.scandir

        def scandir(path):
            if Path(path).name == ".Trashes":
                raise PermissionError(13, "Permission denied", str(path))
            return list_folder(path)

        monkeypatch.setattr(os, "scandir", scandir)
        assert scan(tmp_path).rejected == ()

    def test_other_files_by_kind(self, put):
        root = touch(put(f"{HAPPY}.mp4"), "a.zip", "b/c.ZIP", "a.x\ny", "a.b/x.txt", "synthetic.json", "x.wav", "p.png")
        assert scan(root).passed_over == {".zip": 2, "no suffix": 1, ".txt": 1, ".wav": 1, ".png": 1}

    def test_the_summary(self):
        passed_over = {".a": 1, ".b": 24, ".c": 3, ".d": 3, ".e": 9, ".f": 8, ".g": 7, ".h": 2}
        line = "root: 0 clips, 0 unlabelled, 0 rejected"
        assert describe(Manifest(Path("root"), ())) == line
        assert describe(Manifest(Path("root"), (), passed_over={".zip": 2})) == f"{line}, passed over: 2 .zip"
        assert describe(Manifest(Path("root"), (), passed_over=passed_over)) == (
            f"{line}, passed over: 24 .b, 9 .e, 8 .f, 7 .g, 3 .c, 3 .d and 3 of other kinds"
        )


class TestEmptyCorpora:
    def test_nothing(self, tmp_path):
        (root := tmp_path / "root").mkdir()
        assert advice(root) == "it is empty"
        assert advice(touch(root, ".DS_Store")) == "it is empty"

    @pytest.mark.parametrize("labels", ["ravdess", "cremad", "folder"])
    def test_archives(self, tmp_path, labels):
        touch(tmp_path, "Video_Speech_Actor_01.zip", "Video_Speech_Actor_02.zip", "x/all.tar.gz", "cover.txt")
        assert advice(tmp_path, labels=labels) == "its .gz, .zip files are archives: unpack them"

    @pytest.mark.parametrize("names", [["a/1.wav", "b/2.wav"], ["Actor_01/03-01-03-01-01-01-01.wav"]])
    def test_sound(self, tmp_path, names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True)
            write_sound(tmp_path / name)
        said = advice(touch(tmp_path, "README.md"))
        assert "sound without video" in said
        assert "Video_Speech_Actor_*.zip and Video_Song_Actor_*.zip" in said

    def test_the_option_that_is_missing(self, tmp_path, put):
        put("mine/amused/x.mp4", "crema/1001_DFA_ANG_XX.mp4", f"ravdess/{HAPPY}.mp4", "flat/x.mp4", "split/train/x.mp4")
        assert advice(tmp_path / "mine").endswith("use --corpus.labels folder")
        assert advice(tmp_path / "mine", labels="cremad").endswith("use --corpus.labels folder")
        for labels in ("ravdess", "folder"):
            assert advice(tmp_path / "crema", labels=labels).endswith("use --corpus.labels cremad")
        for labels in ("cremad", "folder"):
            assert advice(tmp_path / "ravdess", labels=labels).endswith("use --corpus.labels ravdess")
        for name in ("flat", "split"):
            said = advice(tmp_path / name, labels="folder")
            assert said == "put the files of each class into a folder of its name"

    def test_other_files_alone_or_rejected_ones(self, tmp_path):
        assert advice(touch(tmp_path, "a.txt")) == "it has neither videos nor pictures"
        (tmp_path / "a.mp4").touch()
        assert advice(tmp_path, max_rejected=1) == "its files were rejected, such as a.mp4: zero length"


class TestReasons:
    def test_a_class_that_is_not_ravdess_s(self, tmp_path):
        for name in ("happy", "contempt"):
            write_images(tmp_path / "train" / name / "a", 2)
        found = scan(tmp_path)
        assert keys(found.clips) == ["train/happy/a"]
        (clip,) = found.unlabelled
        assert clip.reason == "'contempt' is not one of RAVDESS's classes: --corpus.labels folder takes any"

    @pytest.mark.parametrize("labels", ["ravdess", "cremad"])
    def test_a_folder_named_after_an_emotion(self, put, labels):
        (clip,) = scan(put("Happy/a.mp4"), labels=labels).unlabelled
        assert clip.reason.endswith("; --corpus.labels folder takes the class from the folder 'Happy'")

    def test_the_most_frequent_is_logged_once(self, put, capsys):
        root = put(f"{HAPPY}.mp4", "a.mp4", "it's is.mp4", "02-01-09-01-01-01-01.mp4")
        prepare_corpus(CorpusConfig(root=root), Console())
        lines = capsys.readouterr().out.splitlines()
        assert [line for line in lines if line.startswith("unlabelled")] == [
            "unlabelled: 2 of 3, such as a.mp4: 'a' is not seven two-digit numbers joined by '-' (RAVDESS naming)"
        ]


class TestDoubledTrees:
    @pytest.fixture
    def doubled(self, put):
        names = [f"Actor_01/{stem}.mp4" for stem in (HAPPY, HAPPY_TWIN, "02-01-04-01-01-01-01")]
        return put(*names, *(f"ravdess/{name}" for name in names))

    def test_copies_are_passed_over(self, doubled):
        found = prepare_corpus(CorpusConfig(root=doubled), QUIET)
        assert {clip.key.split("/")[0] for clip in found.clips} == {"Actor_01"}
        assert (len(found.clips), len(found.duplicates), found.rejected) == (3, 3, ())
        assert describe(found).endswith(
            f", 3 identical copies passed over (such as ravdess/Actor_01/{HAPPY_TWIN}.mp4, identical to "
            f"Actor_01/{HAPPY_TWIN}.mp4)"
        )
        found.write_csv(doubled / "m.csv")
        assert read_manifest(doubled / "m.csv", doubled) == found

    def test_unchanged_copies_are_compared_once(self, doubled, monkeypatch):
        config = CorpusConfig(root=doubled)
        first = scan_cached(doubled, config, QUIET)
        compare, compared = manifest_module.filecmp.cmp, []

        def note(one, other, **options):
            compared.append(one.name)
            return compare(one, other, **options)

        monkeypatch.setattr(manifest_module.filecmp, "cmp", note)
        assert scan_cached(doubled, config, QUIET) == first
        assert compared == []
        os.utime(doubled / f"Actor_01/{HAPPY}.mp4", ns=(1, 1))
        assert keys(scan_cached(doubled, config, QUIET).duplicates) == keys(first.duplicates)
        assert compared == [f"{HAPPY}.mp4"]

    def test_other_bytes_stay_rejected(self, doubled):
        write_video(doubled / f"ravdess/Actor_01/{HAPPY}.mp4", 9)
        with pytest.raises(ValueError, match=r"1 files in .* were rejected"):
            prepare_corpus(CorpusConfig(root=doubled), QUIET)

    def test_one_take_in_two_classes_stays_rejected(self, put):
        found = scan(put(f"angry/{HAPPY}.mp4", f"happy/{HAPPY}.mp4"), labels="folder")
        assert (keys(found.clips), keys(found.rejected)) == ([f"angry/{HAPPY}.mp4"], [f"happy/{HAPPY}.mp4"])

    def test_frame_folders(self, tmp_path):
        for where in ("a", "b"):
            write_images(tmp_path / where / HAPPY, 2)
        assert keys(scan(tmp_path).duplicates) == [f"b/{HAPPY}"]


class TestPictures:
    def test_each_is_a_clip_where_there_is_nothing_else(self, tmp_path):
        for split in ("train", "val", "test"):
            for name in ("happy", "Sad"):
                for number in range(2):
                    picture(tmp_path / split / name / f"im{number}.png", number)
        found = prepare_corpus(CorpusConfig(root=tmp_path), QUIET)
        assert len(found.clips) == 12
        assert {(clip.codec, clip.num_frames, clip.width, clip.height) for clip in found.clips} == {
            ("images", 1, 48, 48)
        }
        assert found.class_names == ("happy", "sad")
        splits = split_clips(found)
        assert [len(splits[name]) for name in ("train", "val", "test")] == [4, 4, 4]
        assert scan(tmp_path, labels="folder", verify="full").class_names == ("happy", "sad")

    def test_train_and_test_alone_need_val(self, tmp_path):
        for split in ("train", "test"):
            picture(tmp_path / split / "happy/im0.png")
        with pytest.raises(
            ValueError, match=r"no labelled clips for val in .*ROOT/\{train,val,test\}/<emotion>/"
        ) as raised:
            split_clips(scan(tmp_path, labels="folder"))
        assert "--corpus.labels" not in str(raised.value)

    @pytest.mark.parametrize("suffix", sorted(PICTURE_SUFFIXES))
    def test_every_kind_decodes(self, tmp_path, suffix):
        for grey in (True, False):
            path = picture(tmp_path / f"happy/{grey}{suffix.upper()}", 6, grey=grey)
            frames = decode_clip(path, [0, 0], FrameSpec(num_frames=2, size=32))
            assert frames.shape == (2, 3, 32, 32)
            assert abs(frames.astype(int) - 120).max() <= 3
        assert [clip.num_frames for clip in scan(tmp_path).clips] == [1, 1]

    def test_beside_videos_or_frame_folders_they_are_passed_over(self, tmp_path, put):
        picture(tmp_path / "happy/im0.png")
        write_images(tmp_path / "train/happy/a", 2)
        found = scan(tmp_path)
        assert (keys(found.clips), found.passed_over) == (["train/happy/a"], {".png": 1})
        found = scan(put(f"{HAPPY}.mp4"))
        assert (keys(found.clips), found.passed_over) == ([f"{HAPPY}.mp4", "train/happy/a"], {".png": 1})

    def test_images_right_below_the_root_are_pictures(self, tmp_path):
        write_images(tmp_path, 2)
        assert keys(scan(tmp_path).unlabelled) == ["frame0001.jpg", "frame0002.jpg"]

    def test_a_bad_one(self, tmp_path):
        touch(tmp_path, "happy/a.jpg")
        assert [clip.reason for clip in scan(tmp_path).rejected] == ["image a.jpg does not decode"]


class TestClasses:
    def test_case_and_blanks_do_not_make_two(self, put):
        root = put("Happy/a.mp4", " happy /b.mp4", "Contempt/a.mp4", "contempt/b.mp4")
        found = scan(root, labels="folder")
        assert found.class_names == ("contempt", "happy")
        assert len(found.clips) == 4

    def test_ravdess_s_names_keep_the_eight(self, put):
        root = put(f"Happy/{HAPPY}.mp4")
        assert scan(root).class_names == EMOTIONS
        assert scan(root, labels="folder").class_names == ("happy",)

    def test_ravdess_s_files_sorted_into_folders_take_the_folders_protocol(self, put):
        names = [
            f"{name}/{modality}-01-{emotion}-01-01-01-{actor:02d}.mp4"
            for name, emotion in (("joy", "03"), ("grief", "04"))
            for actor in (1, 2, 3, 4)
            for modality in ("01", "02")
        ]
        splits = split_clips(scan(put(*names), labels="folder"))
        assert (splits.protocol, splits.class_names) == ("folders", ("grief", "joy"))
        assert sum(len(splits[name]) for name in ("train", "val", "test")) == len(names)
        assert {clip.modality for clip in splits.test} == {1, 2}
        with pytest.raises(ValueError, match=r"speech goes by RAVDESS's file names.*--corpus.protocol folders"):
            split_clips(scan(put(*names), labels="folder"), "speech")

    def test_a_class_without_a_test_clip_is_named(self, put):
        names = [f"{split}/{name}/x.mp4" for split in ("train", "val", "test") for name in ("a", "b", "c")]
        splits = split_clips(scan(put(*names[:-1]), labels="folder"))
        assert splits.notes == ("test has no clips of c: chance and UAR are those of 2 classes",)
