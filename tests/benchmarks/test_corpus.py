"""What a benchmark reads: links under RAVDESS names to real or generated clips."""

from pathlib import Path

import av
import pytest
from av.video.frame import PictureType
from helpers import write_video

from benchmarks.common import corpus
from fastemo.console import Console
from fastemo.corpus import ravdess
from fastemo.machine import available_processors

SHAPE = corpus.Shape(width=160, height=90, num_frames=31, bit_rate=300_000, num_renders=2)


@pytest.fixture(scope="module")
def generated():
    return corpus.generated_folder(SHAPE, Console(show=False))


def test_generated_clips_have_ravdess_structure(generated):
    paths = sorted(generated.glob("*.mp4"))
    assert len(paths) == 2
    for path in paths:
        with av.open(str(path)) as container:
            video = container.streams.video[0]
            assert (video.codec_context.name, video.profile) == ("h264", "High")
            assert (video.width, video.height) == (160, 90)
            assert len(container.streams.audio) == 1
            kinds = [(frame.key_frame, PictureType(frame.pict_type).name) for frame in container.decode(video)]
        assert [number for number, (is_key, _) in enumerate(kinds) if is_key] == [0, 29]
        assert [name for _, name in kinds[:10]] == ["I", *("B", "B", "P") * 3]


def test_generated_clips_are_made_once(generated):
    stamps = {path: path.stat().st_mtime_ns for path in generated.iterdir()}
    assert corpus.generated_folder(SHAPE, Console(show=False)) == generated
    assert {path: path.stat().st_mtime_ns for path in generated.iterdir()} == stamps
    assert [path.name for path in generated.parent.iterdir()] == [generated.name]  # nothing half made is left


def test_grain_uses_up_the_bit_rate():
    shape = corpus.Shape(num_frames=12, num_renders=1)
    (path,) = corpus.generated_folder(shape, Console(show=False)).glob("*.mp4")
    seconds = 12 * 1001 / 30000
    assert 6e6 < path.stat().st_size * 8 / seconds < 12e6


def test_few_clips_are_repeated_in_turn(generated, tmp_path):
    found = corpus.lay_out(generated, 70, tmp_path / "corpus", {"kind": "test"})
    manifest, about = found.manifest, found.description
    sources = [(manifest.root / clip.key).resolve() for clip in manifest.clips]
    assert sources == [sorted(generated.glob("*.mp4"))[number % 2] for number in range(70)]
    assert len({clip.key for clip in manifest.clips}) == 70
    for clip, source in zip(manifest.clips, sources, strict=True):  # each is named after what its file shows
        assert Path(clip.key).stem == source.stem
        assert clip.emotion == ravdess.parse_stem(source.stem).emotion_name
    assert (about["kind"], about["clips_a_pass"], about["different_clips"]) == ("test", 70, 2)
    assert (about["frame_sizes"], about["frames_a_clip"]) == (["160x90"], [31, 31])
    assert str(tmp_path) not in str(about)


def test_many_clips_are_thinned_evenly(tmp_path):
    for number in range(10):
        write_video(tmp_path / "many" / f"any-name-{number}.mp4", 3)
    found = corpus.lay_out(tmp_path / "many", 5, tmp_path / "corpus", {})
    taken = [(found.manifest.root / clip.key).resolve().stem[-1] for clip in found.manifest.clips]
    assert taken == ["0", "2", "4", "6", "8"]
    assert found.description["different_clips"] == 5


def test_a_folder_without_videos_is_named(tmp_path):
    (tmp_path / "02-01-01-01-01-01-01.mp4").write_text("no video")
    for folder in ("", "missing"):
        with pytest.raises(ValueError, match=tmp_path.name):
            corpus.lay_out(tmp_path / folder, 4, tmp_path / "corpus", {})


def test_a_pass_gives_every_worker_as_many_batches():
    for batch_size in (1, 8):
        length = corpus.pass_length(batch_size)
        assert length >= 28
        assert length % (batch_size * available_processors()) == 0
        assert length % (batch_size * 4) == 0


def test_clips_for_the_store(tmp_path):
    manifest = corpus.stored_corpus(65, 4, 99, tmp_path / "stored")
    assert len({clip.key for clip in manifest.clips}) == 65
    assert {(clip.num_frames, clip.width, clip.height) for clip in manifest.clips} == {(4, 100, 100)}
    assert {clip.emotion for clip in manifest.clips} == set(ravdess.EMOTIONS)
    assert all((manifest.root / clip.key).is_file() for clip in manifest.clips)
