"""A folder becomes a manifest: every file in it is there once, used or named with the reason why not."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from helpers import count_decoded, frame_number, write_images, write_sound, write_video
from hypothesis import given, settings
from hypothesis import strategies as st

from fastemo.corpus.clip import Clip
from fastemo.corpus.files.examining import fingerprint
from fastemo.corpus.files.isolation import Examiner
from fastemo.corpus.manifest import Manifest, read_manifest, scan
from fastemo.corpus.ravdess import EMOTIONS
from fastemo.video.decode import decode_clip

HAPPY, HAPPY_TWIN = "02-01-03-01-01-01-01", "01-01-03-01-01-01-01"
SAD = "02-01-04-01-01-01-02"
AWKWARD_NAMES = ["a\r\nb", "a\nb", "a\rb", '"', 'a"b', ",", ",,", "'", "a\tb", "\udce9", " a ", "a:b", "..a"]
IMPOSSIBLE_NUMBERS = {
    "num_frames": [-1, 2**31],
    "width": [-64],
    "height": [-1],
    "actor": [-1],
    "size_bytes": [-5, 10**400],
    "fps": [float("nan"), float("inf"), -25.0],
    "duration_seconds": [float("nan")],
}


@pytest.fixture
def probed(monkeypatch):
    """Names of the files probed while the test runs."""
    names = []
    probe = Examiner.probe

    def probe_and_note(self, path, **options):
        names.append(path.name)
        return probe(self, path, **options)

    monkeypatch.setattr(Examiner, "probe", probe_and_note)
    return names


def reasons(manifest: Manifest) -> dict[str, str]:
    return {clip.key: clip.reason for clip in manifest.rejected}


def keys(clips: tuple[Clip, ...]) -> list[str]:
    return [clip.key for clip in clips]


def assert_read_back(manifest: Manifest) -> None:
    """Written to a new folder, it is read back equal, and no temporary file stays."""
    path = manifest.root / "new folder/manifest.csv"
    manifest.write_csv(path)
    assert read_manifest(path, manifest.root) == manifest
    assert list(path.parent.iterdir()) == [path]


@pytest.fixture(scope="module")
def quick(clips_folder):
    return scan(clips_folder)


class TestRealClips:
    def test_each_is_a_clip_or_unlabelled(self, quick):
        assert (len(quick.clips), len(quick.unlabelled), len(quick.rows)) == (7, 6, 13)
        assert quick.class_names == EMOTIONS
        assert all("RAVDESS naming" in clip.reason for clip in quick.unlabelled)
        assert Counter((clip.codec, clip.width, clip.height) for clip in quick.rows) == {
            ("h264", 1280, 720): 7,
            ("h264", 256, 256): 1,
            ("h264", 960, 540): 1,
            ("hevc", 960, 540): 1,
            ("vp6f", 480, 360): 3,
        }
        for clip in quick.clips:
            assert clip.fps == pytest.approx(30000 / 1001)
            assert clip.duration_seconds == pytest.approx(clip.num_frames * 1001 / 30000)

    def test_counts_are_those_of_a_full_decode(self, quick, clips_folder):
        assert {clip.key: clip.num_frames for clip in quick.rows} == {
            clip.key: count_decoded(clips_folder / clip.key) for clip in quick.rows
        }

    def test_full_verification_finds_the_same(self, quick, clips_folder):
        full = scan(clips_folder, verify="full")
        assert {clip.verified for clip in full.rows} == {"full"}
        assert [replace(clip, verified="quick") for clip in full.rows] == list(quick.rows)

    def test_fields_of_a_name(self, quick):
        (clip,) = [clip for clip in quick.clips if clip.key == "ravdess/Actor_01/02-01-08-02-01-01-01.mp4"]
        fields = (clip.modality, clip.channel, clip.intensity, clip.statement, clip.repetition, clip.actor)
        assert fields == (2, 1, 2, 1, 1, 1)
        assert (clip.emotion, clip.take) == ("surprised", "01-08-02-01-01-01")


class TestFinding:
    def test_any_depth_and_every_suffix_in_either_case(self, put):
        deep = "/".join(f"level{i}" for i in range(30))
        named = [f"{HAPPY}.mp4", "Video_Speech_Actor_01/Actor_01/02-01-05-01-01-01-01.Mp4", f"{deep}/{SAD}.MP4"]
        others = ["a.avi", "a.flv", "a.mkv", "a.mov", "a.webm"]
        found = scan(put(*named, *others, "notes.txt", "a.mp4.part"))
        assert keys(found.clips) == named
        assert keys(found.unlabelled) == others
        assert len(found.rows) == len(named) + len(others)

    def test_links_are_followed_and_end_where_they_lead_back(self, tmp_path, put):
        put(f"root/one/{HAPPY}.mp4", f"elsewhere/{SAD}.mp4")
        root = tmp_path / "root"
        (root / "one/up").symlink_to(root)
        (root / "one/two").symlink_to(tmp_path / "elsewhere")
        (root / "two").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere/one").symlink_to(root / "one")
        found = scan(root)
        assert keys(found.clips) == [f"one/{HAPPY}.mp4", f"one/two/{SAD}.mp4"]
        # Reached a second time through a link, a take is a duplicate like any other.
        assert keys(found.duplicates) == [f"two/{SAD}.mp4", f"two/one/{HAPPY}.mp4"]

    def test_entries_that_cannot_be_read(self, tmp_path, put, monkeypatch):
        put(f"open/{HAPPY}.mp4", f"closed/{SAD}.mp4", "forbidden.mp4")
        (tmp_path / "gone.mp4").symlink_to(tmp_path / "nothing")
        os.mkfifo(tmp_path / "pipe.mp4")  # opening it would wait for ever
        list_folder, probe = os.scandir, Examiner.probe

        def scandir(path):
            if Path(path).name == "closed":  # permissions do not close a folder to root
                raise PermissionError(13, "Permission denied", str(path))
            return list_folder(path)

        def probe_unless_forbidden(self, path, **options):
            if path.name == "forbidden.mp4":
                raise PermissionError(13, "Permission denied", str(path))
            return probe(self, path, **options)

        monkeypatch.setattr(os, "scandir", scandir)
        monkeypatch.setattr(Examiner, "probe", probe_unless_forbidden)
        found = scan(tmp_path)
        assert reasons(found) == {
            "closed": "unreadable folder: Permission denied",
            "forbidden.mp4": "unreadable: Permission denied",
            "gone.mp4": "unreadable: No such file or directory",
            "pipe.mp4": "zero length",
        }
        assert keys(found.clips) == [f"open/{HAPPY}.mp4"]

    def test_names_that_are_not_text(self, tmp_path, master):
        try:
            shutil.copy(master, os.fsencode(tmp_path) + b"/caf\xe9.mp4")
        except OSError:
            pytest.skip("this file system takes UTF-8 names only")
        for name in ("line\nbreak.mp4", 'comma, "quote".mp4', "%03d.mp4", "[red]x.mp4", "ü €.mp4"):
            shutil.copy(master, tmp_path / name)
        found = scan(tmp_path, labels="folder")
        assert [clip.num_frames for clip in found.unlabelled] == [12] * 6
        assert_read_back(found)


@pytest.fixture(scope="module")
def bad_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("bad")
    cut = write_video(root / "cut.mp4", 12)
    cut.write_bytes(cut.read_bytes()[:-1])
    (root / "empty.mp4").touch()
    (root / "text.mp4").write_text("these are words\n" * 100)
    write_sound(root / "sound.mp4")
    write_sound(root / "03-01-03-01-01-01-01.mp4")
    (root / "03-01-03-01-01-01-02.wav").touch()
    write_video(root / f"{HAPPY}.mp4", 12)
    return root


class TestRejecting:
    def test_each_is_named_with_its_reason(self, bad_folder):
        found = scan(bad_folder)
        why = reasons(found)
        assert why.pop("cut.mp4").startswith("truncated: ")
        assert why.pop("text.mp4").startswith("unreadable: ")
        assert why == {"empty.mp4": "zero length", "sound.mp4": "no video stream"}
        # Audio-only files are not even opened: the second is empty.
        assert keys(found.audio_only) == ["03-01-03-01-01-01-01.mp4", "03-01-03-01-01-01-02.wav"]
        assert {clip.reason for clip in found.audio_only} == {"RAVDESS audio-only (modality 03)"}
        assert (keys(found.clips), found.unlabelled) == ([f"{HAPPY}.mp4"], ())
        assert_read_back(found)

    def test_a_take_and_modality_twice(self, tmp_path, put):
        put(f"b/{HAPPY}.mp4", f"d/{HAPPY}.mkv", f"c/{HAPPY_TWIN}.mp4", f"e/{HAPPY}.mp4")
        write_video(tmp_path / f"c/{HAPPY}.mp4", 9)
        with (tmp_path / f"d/{HAPPY}.mkv").open("r+b") as file:  # of the same size
            file.seek(-1, os.SEEK_END)
            file.write(b"x")
        (tmp_path / "a").mkdir()
        (tmp_path / f"a/{HAPPY}.mp4").touch()
        found = scan(tmp_path)
        assert keys(found.clips) == [f"b/{HAPPY}.mp4", f"c/{HAPPY_TWIN}.mp4"]
        duplicate = f"duplicate take and modality: not identical to b/{HAPPY}.mp4"
        assert reasons(found) == {
            f"a/{HAPPY}.mp4": "zero length",  # a bad file does not count as the first of a take
            f"c/{HAPPY}.mp4": duplicate,
            f"d/{HAPPY}.mkv": duplicate,
        }

    def test_an_unlabelled_file_is_not_the_first_of_a_take(self, put):
        found = scan(put(f"{HAPPY}.mp4", f"angry/{HAPPY}.mp4", f"test/{HAPPY}.mp4"), labels="folder")
        assert keys(found.clips) == [f"angry/{HAPPY}.mp4"]
        assert keys(found.unlabelled) == [f"{HAPPY}.mp4", f"test/{HAPPY}.mp4"]


class TestFolderLabels:
    def test_classes_are_folders(self, put):
        found = scan(put("amused/a.mp4", "amused/b.mp4", "Bored stiff/deep.mp4", "x/y/tired/c.mp4"), labels="folder")
        assert {clip.key: clip.emotion for clip in found.clips} == {
            "amused/a.mp4": "amused",
            "amused/b.mp4": "amused",
            "Bored stiff/deep.mp4": "bored stiff",
            "x/y/tired/c.mp4": "tired",
        }
        assert found.class_names == ("amused", "bored stiff", "tired")
        assert {clip.split for clip in found.clips} == {""}

    def test_split_folders(self, put):
        root = put("train/happy/a.mp4", "val/happy/a.mp4", "test/sad/actor07_b.mp4", "test/c.mp4", "d.mp4")
        found = scan(root, labels="folder")
        assert {clip.key: (clip.split, clip.emotion, clip.actor) for clip in found.clips} == {
            "train/happy/a.mp4": ("train", "happy", 0),
            "val/happy/a.mp4": ("val", "happy", 0),
            "test/sad/actor07_b.mp4": ("test", "sad", 7),
        }
        # Outside a class's folder there is no class to take.
        assert keys(found.unlabelled) == ["d.mp4", "test/c.mp4"]
        assert {clip.reason for clip in found.unlabelled} == {"not in a folder named after its class"}

    def test_the_folder_wins_over_the_name(self, put):
        root = put(f"angry/{HAPPY}.mp4")
        assert scan(root).clips[0].emotion == "happy"
        (clip,) = scan(root, labels="folder").clips
        assert (clip.emotion, clip.actor, clip.modality) == ("angry", 1, 2)

    def test_usual_spellings_of_the_eight_emotions_are_one_class(self, put):
        folders = {"surprise": "surprised", "Fear": "fearful", "ANGER": "angry", "sadness": "sad", "Happy": "happy"}
        found = scan(put(*(f"{folder}/a.mp4" for folder in folders)), labels="folder")
        assert {clip.key.split("/")[0]: clip.emotion for clip in found.clips} == folders
        # In RAVDESS's order if all are RAVDESS's.
        assert found.class_names == ("happy", "sad", "angry", "fearful", "surprised")
        others = ("angry", "fearful", "happy", "love", "sad", "surprised")
        assert scan(put("Love/a.mp4"), labels="folder").class_names == others


@pytest.fixture(scope="module")
def frames_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("frames")
    write_images(root / "train/happy/actor01_a", 5)
    write_images(root / "train/surprise/actor02_b", 7)
    write_images(root / "val/fear/actor03_c", 6, suffix=".png")
    write_images(root / "test/sad/02-01-05-01-01-01-04", 8)
    return root


class TestFoldersOfImages:
    def test_the_frame_folder_layout(self, frames_root):
        found = scan(frames_root)
        assert {c.key: (c.split, c.emotion, c.actor, c.num_frames) for c in found.clips} == {
            "train/happy/actor01_a": ("train", "happy", 1, 5),
            "train/surprise/actor02_b": ("train", "surprised", 2, 7),
            "val/fear/actor03_c": ("val", "fearful", 3, 6),
            "test/sad/02-01-05-01-01-01-04": ("test", "angry", 4, 8),  # a RAVDESS name wins over the folder
        }
        assert {(c.codec, c.width, c.height) for c in found.clips} == {("images", 64, 48)}
        assert len(found.rows) == 4
        assert found.class_names == EMOTIONS
        by_folder = scan(frames_root, labels="folder", verify="full")
        assert [clip.emotion for clip in by_folder.clips] == ["sad", "happy", "surprised", "fearful"]

    def test_they_decode_to_those_images(self, frames_root):
        wanted = [0, 3, 3, 6]
        frames = decode_clip(frames_root / "train/surprise/actor02_b", wanted, None)
        assert (frames.shape, frames.dtype) == ((4, 3, 48, 64), np.uint8)
        assert [frame_number(frame.transpose(1, 2, 0)) for frame in frames] == wanted

    def test_a_bad_image(self, tmp_path):
        folder = write_images(tmp_path / "train/happy/a", 3)
        for number, content, verify in ((3, "not an image", "full"), (1, "", "quick")):
            assert reasons(scan(tmp_path)) == {}
            (folder / f"frame000{number}.jpg").write_text(content)
            assert reasons(scan(tmp_path, verify=verify)) == {
                "train/happy/a": f"image frame000{number}.jpg does not decode"
            }

    def test_an_unknown_class_and_changed_images(self, tmp_path):
        folder = write_images(tmp_path / "train/bored/a", 3)
        found = scan(tmp_path)
        assert keys(found.unlabelled) == ["train/bored/a"]
        found.write_csv(tmp_path / "m.csv")
        write_images(folder, 5)
        (clip,) = scan(tmp_path, labels="folder", known=tmp_path / "m.csv").clips
        assert (clip.emotion, clip.num_frames) == ("bored", 5)


class TestCsv:
    def test_every_field_and_awkward_names_come_back(self, tmp_path):
        values = {"str": 'é, \n"quoted" {}'.format, "int": lambda n: 2**31 - n, "float": lambda n: n + 1 / 3}
        values["Status"] = lambda _: "rejected"
        clip = Clip(**{field.name: values[field.type](n) for n, field in enumerate(fields(Clip), start=1)})
        clip = replace(clip, columns=json.dumps({"é, \n": '"quoted"'}), face="0 1 20 300000")
        awkward = [Clip(key=f"{name}/{name}.mp4", reason=name) for name in AWKWARD_NAMES]
        assert_read_back(Manifest.of(tmp_path, [replace(clip, size_bytes=2**40, mtime_ns=2**62), *awkward]))
        assert_read_back(Manifest(tmp_path, ()))

    @pytest.mark.parametrize(
        ("damage", "line"),
        [
            (lambda lines: ["a,b,c"], 1),
            (lambda lines: [], 0),
            (lambda lines: [lines[0], lines[1].replace("12,25.0", "twelve,25.0")], 2),
            (lambda lines: [lines[0], lines[1].rsplit(",", 1)[0]], 2),
            (lambda lines: [lines[0], lines[1] + ",more"], 2),
            (lambda lines: [lines[0], lines[1].replace(",clip,", ",clap,")], 2),
            (lambda lines: [lines[0], lines[1] + "x" * 200_000], 2),
        ],
        ids=["header", "empty", "word for number", "short row", "long row", "status", "huge field"],
    )
    def test_what_is_not_a_manifest(self, tmp_path, put, damage, line):
        path = tmp_path / "m.csv"
        scan(put(f"{HAPPY}.mp4")).write_csv(path)
        path.write_text("\n".join(damage(path.read_text().splitlines())))
        with pytest.raises(ValueError, match=rf"m\.csv, line {line}: not a manifest"):
            read_manifest(path, tmp_path)


class TestUntrustedManifests:
    @pytest.mark.parametrize("field", IMPOSSIBLE_NUMBERS)
    def test_an_impossible_number(self, tmp_path, field):
        for value in IMPOSSIBLE_NUMBERS[field]:
            Manifest.of(tmp_path, [replace(Clip(key="a.mp4"), **{field: value})]).write_csv(tmp_path / "m.csv")
            with pytest.raises(ValueError, match=rf"m\.csv, line 2: not a manifest \({field} is "):
                read_manifest(tmp_path / "m.csv", tmp_path)

    @given(
        st.text(st.characters(exclude_characters="/\\\0:", exclude_categories=["Cs"]), min_size=1),
        st.binary(max_size=8).filter(lambda it: not set(it) & set(b"/\\\0:")),
    )
    @settings(max_examples=200)
    def test_any_name_comes_back(self, name, some_bytes):
        with tempfile.TemporaryDirectory() as folder:
            assert_read_back(Manifest(Path(folder), (Clip(key=f"folder/{name}{os.fsdecode(some_bytes)}x.mp4"),)))

    def test_a_scan_refuses_names_that_its_manifest_would(self, put):
        with pytest.raises(ValueError, match=r"the key 'C:.*a\.mp4' is not a path below the corpus root"):
            scan(put("C:\\a.mp4"))

    def test_an_actor_of_twenty_digits_is_none(self, put):
        found = scan(put(f"happy/actor{'9' * 20}_a.mp4", "happy/actor07_b.mp4"), labels="folder")
        assert [clip.actor for clip in found.clips] == [7, 0]
        assert_read_back(found)


class TestReuse:
    def test_changed_and_new_files_are(self, tmp_path, put, probed):
        put("size.mp4", "time.mp4", "same.mp4", "gone.mp4")
        (tmp_path / "mended.mp4").touch()
        scan(tmp_path).write_csv(tmp_path / "m.csv")
        probed.clear()
        write_video(tmp_path / "size.mp4", 9)
        os.utime(tmp_path / "time.mp4", ns=(1, 1))
        (tmp_path / "gone.mp4").unlink()
        put("mended.mp4", "new.mp4")
        found = scan(tmp_path, known=tmp_path / "m.csv")
        assert sorted(probed) == ["mended.mp4", "new.mp4", "size.mp4", "time.mp4"]
        names = ("mended.mp4", "new.mp4", "same.mp4", "size.mp4", "time.mp4")
        assert [(clip.key, clip.num_frames) for clip in found.rows] == [
            (name, 9 if name == "size.mp4" else 12) for name in names
        ]

    def test_a_quick_scan_does_not_stand_in_for_a_full_one(self, tmp_path, put, probed):
        scan(put("a.mp4")).write_csv(tmp_path / "m.csv")
        full = scan(tmp_path, verify="full", known=tmp_path / "m.csv")
        assert probed == ["a.mp4", "a.mp4"]
        full.write_csv(tmp_path / "m.csv")
        assert scan(tmp_path, known=tmp_path / "m.csv") == full
        assert len(probed) == 2

    def test_a_damaged_known_manifest_is_as_good_as_none(self, tmp_path, put, probed):
        (tmp_path / "m.csv").write_bytes(b"\xff\xfe\n\r\n")
        assert len(scan(put("a.mp4"), known=tmp_path / "m.csv").unlabelled) == 1
        assert probed == ["a.mp4"]

    def test_unchanged_files_are_not_probed_again_only_labelled(self, tmp_path, put, probed):
        put("amused/a.mp4", f"bored/{HAPPY}.mp4", f"tired/{HAPPY}.mp4")
        (tmp_path / "empty.mp4").touch()
        by_name, by_folder = scan(tmp_path), scan(tmp_path, labels="folder")
        assert len(probed) == 8
        by_name.write_csv(tmp_path / "m.csv")
        assert scan(tmp_path, known=tmp_path / "m.csv") == by_name
        assert scan(tmp_path, labels="folder", known=tmp_path / "m.csv") == by_folder
        by_folder.write_csv(tmp_path / "m.csv")
        assert scan(tmp_path, known=tmp_path / "m.csv") == by_name
        assert len(probed) == 8

    def test_a_duplicate_whose_first_is_gone_counts_again(self, tmp_path, put):
        scan(put(f"a/{HAPPY}.mp4", f"b/{HAPPY}.mp4")).write_csv(tmp_path / "m.csv")
        (tmp_path / f"a/{HAPPY}.mp4").unlink()
        (clip,) = scan(tmp_path, known=tmp_path / "m.csv").rows
        assert (clip.key, clip.status, clip.reason) == (f"b/{HAPPY}.mp4", "clip", "")


class TestScan:
    def test_progress_counts_every_file_once(self, tmp_path, put):
        put("a.mp4", "b.mp4", f"{HAPPY}.mp4", "03-01-03-01-01-01-01.mp4")
        (tmp_path / "empty.mp4").touch()
        calls = []
        scan(tmp_path, on_progress=lambda *call: calls.append(call))
        assert calls == [(done, 5) for done in range(1, 6)]

    def test_threads_change_nothing(self, put):
        root = put("a.mp4", "b.mp4", f"{HAPPY}.mp4", f"x/{HAPPY}.mp4", f"{SAD}.mp4")
        assert scan(root, threads=1) == scan(root, threads=4) == scan(str(root))

    def test_an_interrupted_scan_stops(self, tmp_path, put, probed):
        put(*(f"{number}.mp4" for number in range(200)))

        def interrupt(done, total):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            scan(tmp_path, threads=1, on_progress=interrupt)
        assert len(probed) < 200

    def test_a_root_that_is_empty_or_not_a_folder(self, tmp_path):
        assert scan(tmp_path) == Manifest(tmp_path, ())
        (tmp_path / "file").touch()
        with pytest.raises(ValueError, match=rf"^corpus root {tmp_path / 'file'} is not a folder$"):
            scan(tmp_path / "file")

    def test_options_that_do_not_exist(self, tmp_path):
        tables = r"a label table \(\.csv, \.tsv, \.txt\)"
        for name, value, allowed in (
            ("labels", "names", f"ravdess, cremad, folder or {tables}"),
            ("verify", "slow", "quick or full"),
        ):
            with pytest.raises(ValueError, match=rf"^{name} must be {allowed}, not '{value}'$"):
                scan(tmp_path, **{name: value})


def test_copies_of_a_corpus_count_as_what_was_scanned(tmp_path):
    names = [f"0{emotion}.mp4" for emotion in (1, 2, 3)]
    for name in names:
        write_video(tmp_path / "one" / "happy" / name)
    scanned = scan(tmp_path / "one", labels="folder")
    copy = shutil.copytree(tmp_path / "one", tmp_path / "two", copy_function=shutil.copyfile)
    (copy / "happy" / names[1]).write_bytes(b"another file")
    (copy / "happy" / names[2]).unlink()
    same, other, absent = scanned.rebased(copy).clips
    assert (same.size_bytes, same.mtime_ns) == fingerprint(copy / same.key)
    assert (other, absent) == scanned.clips[1:]
    assert scanned.rebased(copy).root == copy
