"""One file: counts that a full decode confirms, and a reason for every file that cannot be used."""

from __future__ import annotations

import random
from pathlib import Path

import av
import pytest
from helpers import count_decoded, frame_number, noise_frame, numbered_frame, write_image, write_images, write_video

from fastemo.corpus.config import Verify
from fastemo.corpus.files.probe import BadFile, Probe, image_files, probe_images, probe_video
from fastemo.video.decode import decode_clip

CONTAINERS = {"mp4": "libx264", "mov": "mpeg4", "mkv": "libx264", "webm": "libvpx-vp9", "avi": "mpeg4", "flv": "flv"}


def reason(path: Path, verify: Verify = "quick") -> str:
    with pytest.raises(BadFile) as raised:
        probe_video(path, verify=verify)
    return str(raised.value)


def packets(path: Path) -> list[tuple[int, int]]:
    """Where each packet of the video lies: offset and bytes."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size and packet.pos]


class TestMadeFiles:
    @pytest.mark.parametrize("verify", ["quick", "full"])
    def test_everything_about_a_small_mp4(self, tmp_path, verify):
        path = write_video(tmp_path / "a.mp4", 24, 64, 48, rate=12)
        expected = Probe(num_frames=24, fps=12.0, width=64, height=48, codec="h264", duration_seconds=2.0)
        assert probe_video(path, verify=verify) == expected

    @pytest.mark.parametrize("verify", ["quick", "full"])
    @pytest.mark.parametrize(("suffix", "codec"), CONTAINERS.items())
    def test_containers(self, tmp_path, suffix, codec, verify):
        path = write_video(tmp_path / f"a.{suffix}", 20, codec=codec)
        probe = probe_video(path, verify=verify)
        assert (probe.num_frames, probe.width, probe.height) == (count_decoded(path), 64, 48) == (20, 64, 48)

    @pytest.mark.parametrize("num_frames", [1, 15])
    def test_frames_are_counted_once_beside_sound(self, tmp_path, num_frames):
        path = write_video(tmp_path / "a.mp4", num_frames, silence=True)
        assert probe_video(path).num_frames == probe_video(path, verify="full").num_frames == num_frames


class TestBadFiles:
    @pytest.mark.parametrize("size", [1, 7, 8, 100, 100_000])
    def test_random_bytes(self, tmp_path, size):
        path = tmp_path / "a.mp4"
        path.write_bytes(random.Random(size).randbytes(size))
        assert reason(path).startswith(("unreadable: ", "no video stream", "no frame decodes"))

    @pytest.mark.parametrize("suffix", CONTAINERS)
    def test_text_under_a_video_name(self, tmp_path, suffix):
        path = tmp_path / f"a.{suffix}"
        path.write_text("no video, only words\n" * 50)
        assert reason(path).startswith("unreadable: ")

    def test_a_cover_picture_is_no_video(self, tmp_path):
        path = tmp_path / "a.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mjpeg")
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
            stream.disposition = av.stream.Disposition.attached_pic
            picture = av.VideoFrame.from_ndarray(numbered_frame(3, 64, 48), format="rgb24")
            container.mux(stream.encode(picture))
            container.mux(stream.encode())
        assert reason(path) == "no video stream, only a cover picture"

    def test_a_codec_nobody_knows(self, tmp_path):
        path = write_video(tmp_path / "a.mp4")
        path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC"))
        assert reason(path) == "no frame decodes: the video's codec is unknown"

    def test_a_header_without_frames(self, tmp_path):
        path = tmp_path / "a.mkv"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            container.start_encoding()
        assert reason(path).startswith(("no frame decodes", "unreadable: "))

    @pytest.mark.parametrize(
        "content",
        [
            "ffconcat version 1.0\nfile other.mp4\n",
            "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.mp4\n#EXT-X-ENDLIST\n",
            "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\nm=video 9 RTP/AVP 96\r\n",
        ],
        ids=["concat", "HLS", "SDP"],
    )
    def test_a_list_of_other_files_is_not_followed(self, tmp_path, content):
        write_video(tmp_path / "other.mp4")
        (tmp_path / "a.mp4").write_text(content)
        assert reason(tmp_path / "a.mp4").startswith("unreadable: ")

    def test_a_file_that_is_gone_is_an_os_error(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            probe_video(tmp_path / "a.mp4")


class TestTruncated:
    """FFmpeg reads most of these without an error and finds fewer frames: the container's own sizes show it."""

    @pytest.mark.parametrize(("suffix", "faststart"), [*((suffix, False) for suffix in CONTAINERS), ("mp4", True)])
    @pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.75, 0.9, 0.999])
    def test_every_container_and_an_mp4s_index_before_and_after(self, tmp_path, suffix, faststart, share):
        whole = write_video(
            tmp_path / f"whole.{suffix}", 60, codec=CONTAINERS[suffix], draw=noise_frame, faststart=faststart
        )
        data = whole.read_bytes()
        assert suffix != "mp4" or (data.index(b"moov") < data.index(b"mdat")) == faststart
        cut = tmp_path / f"cut.{suffix}"
        cut.write_bytes(data[: int(len(data) * share)])
        for verify in ("quick", "full"):
            assert reason(cut, verify).startswith("truncated: ")

    @pytest.mark.parametrize(
        ("faststart", "expected"),
        [(True, "the file ends inside a frame"), (False, "its 'moov' box ends 1 bytes past the file")],
    )
    def test_mp4_short_of_its_last_byte(self, tmp_path, faststart, expected):
        path = write_video(tmp_path / "a.mp4", faststart=faststart)
        path.write_bytes(path.read_bytes()[:-1])
        assert reason(path) == f"truncated: {expected}"

    def test_flv_cut_between_two_frames(self, tmp_path):
        """FFmpeg sees a whole frame less; the file ends five bytes into the next one's header."""
        path = write_video(tmp_path / "a.flv", 20, codec="flv")
        data = path.read_bytes()
        last_tag = len(data) - 4 - int.from_bytes(data[-4:], "big")
        path.write_bytes(data[: last_tag + 5])
        assert count_decoded(path) == 19
        assert reason(path) == "truncated: it ends inside a tag"

    def test_bytes_after_the_end_do_no_harm(self, tmp_path):
        path = write_video(tmp_path / "a.mp4")
        path.write_bytes(path.read_bytes() + bytes(100))
        assert probe_video(path, verify="full").num_frames == 12


class TestDamagedInside:
    """Damage that the decoder reports: it conceals much (zeros in a picture are a picture), but not these two."""

    @pytest.fixture
    def whole(self, tmp_path):
        return write_video(tmp_path / "a.mp4", 60, draw=noise_frame)

    @pytest.mark.parametrize("number", [20, 45])
    @pytest.mark.parametrize(
        ("share", "damage"),
        [(0, b"\x7f\xff\xff\xff"), (0.5, b"\xff" * 64)],
        ids=["a unit longer than its packet", "bytes that no picture holds"],
    )
    def test_only_a_full_decode_finds_it(self, whole, number, share, damage):
        offset, size = packets(whole)[number]
        start = offset + int(size * share)
        data = whole.read_bytes()
        whole.write_bytes(data[:start] + damage + data[start + len(damage) :])
        assert probe_video(whole).num_frames == 60
        assert "damaged" in reason(whole, "full") or "does not decode" in reason(whole, "full")

    def test_a_slice_that_claims_another_place(self, whole, tmp_path):
        """One byte of any frame: without strict decoding FFmpeg paints over a few of these."""
        data, path = whole.read_bytes(), tmp_path / "damaged.mp4"
        for offset, _ in packets(whole)[5:]:
            damaged = bytearray(data)
            damaged[offset + 5] = 0  # after the unit's length and type: the slice's first macroblock
            path.write_bytes(damaged)
            with pytest.raises(BadFile):
                probe_video(path, verify="full")

    @pytest.mark.parametrize("suffix", ["mkv", "mp4"])
    @pytest.mark.parametrize("verify", ["quick", "full"])
    def test_frames_before_the_first_keyframe_are_not_counted_blindly(self, tmp_path, suffix, verify):
        """A stream cut without re-encoding: 39 packets, of which those up to the next keyframe decode to nothing."""
        source = write_video(tmp_path / f"source.{suffix}", 40, options={"g": "10", "bf": "0"})
        path = tmp_path / f"headless.{suffix}"
        with av.open(str(source)) as container, av.open(str(path), "w") as output:
            stream = output.add_stream_from_template(container.streams.video[0])
            for packet in list(container.demux(video=0))[1:]:
                if packet.size:
                    packet.stream = stream
                    output.mux(packet)
        count = probe_video(path, verify=verify).num_frames
        assert count == count_decoded(path) < 39
        frames = decode_clip(path, range(count), None)
        assert [frame_number(frame.transpose(1, 2, 0)) for frame in frames] == list(range(40 - count, 40))

    def test_a_first_frame_that_does_not_decode_is_seen_at_once(self, tmp_path):
        path = write_video(tmp_path / "a.mp4", 1, draw=noise_frame)
        ((offset, size),) = packets(path)
        data = path.read_bytes()
        path.write_bytes(data[:offset] + b"\xff" * size + data[offset + size :])
        assert reason(path).startswith("no frame decodes")


class TestFoldersOfImages:
    @pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".jpeg", ".png"])
    def test_count_and_size(self, tmp_path, suffix):
        folder = write_images(tmp_path / "clip", 7, 64, 48, suffix)
        expected = Probe(num_frames=7, fps=0.0, width=64, height=48, codec="images", duration_seconds=0.0)
        assert probe_images(folder) == probe_images(folder, verify="full") == expected

    def test_a_folder_named_as_a_pattern(self, tmp_path):
        assert probe_images(write_images(tmp_path / "50%d", 3), verify="full").num_frames == 3

    def test_order_is_that_of_the_numbers(self, tmp_path):
        for number in (1, 2, 10, 9):
            write_image(tmp_path / f"frame{number}.jpg", numbered_frame(number, 64, 48))
        (tmp_path / "notes.txt").touch()
        (tmp_path / "frame11.jpg").mkdir()
        assert [path.name for path in image_files(tmp_path)] == [f"frame{number}.jpg" for number in (1, 2, 9, 10)]

    def test_an_image_of_another_size(self, tmp_path):
        folder = write_images(tmp_path / "clip", 3)
        write_image(folder / "frame0002.jpg", numbered_frame(1, 32, 48))
        with pytest.raises(BadFile, match=r"^image frame0002.jpg is 32x48, the first is 64x48$"):
            probe_images(folder, verify="full")

    def test_a_folder_without_images(self, tmp_path):
        with pytest.raises(BadFile, match=r"^no images named frame0001\.jpg, frame0002\.jpg, \.\.\.$"):
            probe_images(tmp_path)
