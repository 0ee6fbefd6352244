"""Faces: where they are on real clips, one box a clip, and what becomes of clips without one."""

from __future__ import annotations

import hashlib
import re
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
from doubles import SquareDetector, squares
from helpers import turn, write_image, write_video

from fastemo.console import Console
from fastemo.corpus.clip import Clip
from fastemo.corpus.config import Difficulty, SyntheticConfig
from fastemo.corpus.files.probe import probe_clip
from fastemo.corpus.manifest import Manifest, read_manifest, scan
from fastemo.corpus.synthetic.synthesis import corpus_performances, render_frames
from fastemo.errors import UserError
from fastemo.video.config import FrameSpec, VideoConfig
from fastemo.video.decode import decoded_frames
from fastemo.video.faces import boxes, detector
from fastemo.video.faces.boxes import NO_FACE, with_faces
from fastemo.video.faces.detector import FaceDetector
from fastemo.video.faces.linking import assign, clip_face, lasting, link, overlap
from fastemo.video.sampling import frame_indices

# The face from the upper forehead to the chin, found by eye in a frame from the middle of each clip: x and y of its
# middle, and its height, in pixels.
BY_EYE = {
    "awkward/header_157_decodes_110.mp4": (134, 139, 170),
    "awkward/hevc_variable_frame_rate.mov": (438, 286, 315),
    "crema-d/1001_DFA_ANG_XX.flv": (214, 141, 144),
    "crema-d/1001_DFA_HAP_XX.flv": (215, 137, 141),
    "crema-d/1001_DFA_SAD_XX.flv": (216, 140, 144),
    "ravdess/Actor_01/01-01-01-01-01-01-01.mp4": (628, 354, 428),
    "ravdess/Actor_01/01-01-08-01-01-02-01.mp4": (630, 388, 435),
    "ravdess/Actor_01/02-01-01-01-01-01-01.mp4": (636, 350, 432),
    "ravdess/Actor_01/02-01-02-01-01-02-01.mp4": (630, 331, 422),
    "ravdess/Actor_01/02-01-04-01-02-01-01.mp4": (640, 341, 427),
    "ravdess/Actor_01/02-01-08-01-01-02-01.mp4": (630, 388, 435),
    "ravdess/Actor_01/02-01-08-02-01-01-01.mp4": (618, 348, 426),
}
WITHOUT = "awkward/negative_pts_header_98_decodes_95.mp4"
VIDEO = VideoConfig(num_frames=4, size=32, crop="face")


@pytest.fixture(scope="module")
def found_by(face_weights):
    return FaceDetector(face_weights)


def faces_of(found_by, path, num_frames=10):
    indices = frame_indices(probe_clip(path).num_frames, num_frames).tolist()
    return [found_by.faces(frame) for frame in decoded_frames(path, indices)]


def test_boxes_of_real_clips_are_those_found_by_eye(found_by, clips_folder):
    found = {}
    for path in sorted(clips_folder.rglob("*.*")):
        if path.suffix != ".md":
            found[path.relative_to(clips_folder).as_posix()] = clip_face(faces_of(found_by, path))
    assert found.pop(WITHOUT) == (None, 0)
    assert found.keys() == BY_EYE.keys()
    for name, (x, y, side) in BY_EYE.items():
        (left, top, width, height), num_faces = found[name]
        assert num_faces == 1
        assert abs(left + width / 2 - x) <= 0.15 * side, name
        assert abs(top + height / 2 - y) <= 0.15 * side, name
        assert abs(max(width, height) / side - 1) <= 0.15, name


@pytest.mark.parametrize("place", [0.0, 1.0, 2.0])
def test_every_generated_head_is_found_wherever_it_is(found_by, tmp_path, place):
    config = SyntheticConfig(actors=24, clips_per_actor=1, num_frames=2, difficulty=Difficulty(place=place))
    for take in corpus_performances(config):
        path = write_video(tmp_path / "a.mp4", 2, 320, 180, draw=lambda n, w, h, it=take: render_frames(it, config)[n])
        box, num_faces = clip_face(faces_of(found_by, path, 2))
        assert num_faces == 1, take
        assert 0 <= box[0] < box[0] + box[2] <= 320


def test_a_box_is_one_of_the_displayed_picture(found_by, tmp_path):
    config = SyntheticConfig(actors=1, clips_per_actor=1, num_frames=2, difficulty=Difficulty(place=1.0))
    picture = render_frames(corpus_performances(config)[0], config)[0]
    flat = write_video(tmp_path / "flat.mp4", 3, 320, 180, draw=lambda *_: picture)
    turned = write_video(tmp_path / "lying.mp4", 3, 180, 320, draw=lambda *_: np.rot90(picture).copy())
    turned = turn(turned, tmp_path / "turned.mp4", 6)  # shown a quarter turn clockwise: upright again
    (one, _), (other, _) = (clip_face(faces_of(found_by, path, 2)) for path in (flat, turned))
    assert overlap(one, other) > 0.8
    left, top, side, same = FrameSpec(crop="face").at(other).box(320, 180)
    assert left <= other[0] < other[0] + other[2] <= left + side
    assert top <= other[1] < other[1] + other[3] <= top + same


# ---- the crop


def test_the_square_around_a_face_is_even_inside_and_holds_it():
    spec = FrameSpec(crop="face", face_margin=0.25)
    assert spec.at((600, 200, 160, 200)).box(1280, 720) == (530, 150, 300, 300)
    assert spec.box(1280, 720) == FrameSpec().box(1280, 720)  # without a face
    assert FrameSpec().at((600, 200, 160, 200)) == FrameSpec()  # other crops do not look at it
    rng = np.random.default_rng(0)
    for _ in range(2000):
        width, height = rng.integers(4, 400, 2).tolist()
        left, top = int(rng.integers(width)), int(rng.integers(height))
        face = left, top, int(rng.integers(1, width - left + 1)), int(rng.integers(1, height - top + 1))
        margin = float(rng.choice([0.0, 0.25, 2.0]))
        x, y, side, same = FrameSpec(crop="face", face_margin=margin).at(face).box(width, height)
        assert side == same >= 4 or min(width, height) < 6
        assert not (x | y | side) % 2
        assert 0 <= x <= x + side <= width
        assert 0 <= y <= y + side <= height
        if side >= max(face[2:]) + 4:
            assert x - 2 <= left <= left + face[2] <= x + side + 2
            assert y - 2 <= top <= top + face[3] <= y + side + 2


@pytest.mark.parametrize(
    ("options", "message"),
    [({"face_margin": -0.1}, r"video\.face_margin must be 0 to 2"), ({"no_face": "drop"}, "must be center or reject")],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        VideoConfig(crop="face", **options)


# ---- whose is whose


def test_faces_are_linked_by_overlap_with_where_they_would_be():
    size = 20, 20
    crossing = [[(10 + 12 * k, 40, *size), (118 - 12 * k, 44, *size)] for k in range(10)]
    tracks = link([list(reversed(it)) if k % 2 else it for k, it in enumerate(crossing)])
    assert [[track[k][0] for k in range(10)] for track in tracks] == [[it[n][0] for it in crossing] for n in (0, 1)]
    hidden = [[(10, 10, *size)], [], [], [(12, 10, *size)], [], [], [], [(12, 10, *size)]]
    assert [sorted(track) for track in link(hidden)] == [[0, 3], [7]]
    assert link([]) == link([[], []]) == []


def test_overlap_and_assignment():
    assert overlap((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    assert overlap((0, 0, 10, 10), (5, 0, 10, 10)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 10, 10), (10, 0, 10, 10)) == 0
    assert assign(np.array([[0.9, 0.8], [0.7, 0.1]])) == [(0, 1), (1, 0)]  # 1.5 in all, not 1.0
    assert assign(np.array([[0.1]])) == assign(np.empty((0, 3))) == []


def test_a_clips_box_is_the_median_of_its_largest_lasting_face():
    still, other = (50, 20, 30, 40), (0, 0, 10, 12)
    moved = [(50 + k, 20, 30, 40) for k in (0, 1, 2, 3, 40)]
    assert clip_face([[box] for box in moved]) == ((52, 20, 30, 40), 1)
    assert clip_face([[still, other]] * 3) == (still, 2)
    assert clip_face([[(0, 0, 90, 90), still], [still], [still], [still]]) == (still, 1)  # the large one is in 1 of 4
    assert clip_face([[still], [], [], [], []]) == (still, 1)  # half of the frames that show any
    assert clip_face([[], []]) == (None, 0)
    assert lasting([]) == []


# ---- a corpus


@pytest.fixture
def squares_corpus(tmp_path):
    """Five clips: one square, two, none, another, and a folder of pictures."""
    root = tmp_path / "corpus"
    drawn = {
        "happy/one": lambda n: squares((20 + n, 30, 24)),
        "happy/two": lambda n: squares((20, 30, 24), (80, 40, 30)),
        "sad/none": lambda n: squares(),
        "sad/four": lambda n: squares((60, 10, 40)),
    }
    for name, draw in drawn.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(root / f"{name}.mp4", 12, 128, 96, draw=lambda n, w, h, draw=draw: draw(n))
    (root / "sad" / "frames").mkdir()
    for number in (1, 2, 3):
        write_image(root / "sad" / "frames" / f"frame{number:04d}.png", squares((8, 8, 20)))
    return root


@pytest.fixture
def double(monkeypatch):
    made = []

    def make(weights=None):
        made.append(SquareDetector())
        return made[-1]

    monkeypatch.setattr(boxes, "FaceDetector", make)
    return made


def listed(manifest):
    return {clip.key: (clip.face, clip.num_faces) for clip in manifest.clips}


def test_each_clip_gets_its_box_once(squares_corpus, double, cache, capsys):
    manifest = scan(squares_corpus, labels="folder")
    found = with_faces(manifest, VIDEO, None, Console())
    said = capsys.readouterr().out
    assert found.rows[: len(found.clips)] == found.clips
    boxes_of = listed(found)
    assert boxes_of["sad/four.mp4"] == ("60 10 40 40", 1)
    assert boxes_of["happy/two.mp4"] == ("80 40 30 30", 2)
    assert boxes_of["sad/none.mp4"] == ("", 0)
    left, _, width, _ = map(int, boxes_of["happy/one.mp4"][0].split())
    assert (left, width) == (25, 24)  # the median of 20, 23, 27 and 31
    assert "; 1 have several, of which the largest is taken" in said
    assert re.search(r"1 clips without a face get the centre square \(--video.no_face reject .*\): sad/none.mp4", said)
    assert double[0].seen == 4 * 4 + 3  # the pictures are three frames
    again = with_faces(manifest, VIDEO, None, Console())
    assert (again, double[1].seen) == (found, 0)
    assert with_faces(manifest, replace(VIDEO, crop="center"), None, Console()) == manifest
    # Another T, and a file that changed, are looked at again; a damaged cache is none.
    with_faces(manifest, replace(VIDEO, num_frames=2), None, Console())
    assert double[2].seen == 2 * 4 + 2
    changed = Manifest.of(squares_corpus, [replace(clip, mtime_ns=1) for clip in manifest.clips[:1]])
    with_faces(changed, VIDEO, None, Console())
    assert double[3].seen == 4
    for damaged in ("a,b\nc", None):
        for path in (cache / "manifests").glob("*-faces.csv"):
            path.write_text(damaged or path.read_text().replace("60 10 40 40", "60 10 x"))
        assert with_faces(manifest, VIDEO, None, Console()) == found


def test_a_manifest_keeps_the_boxes_and_resuming_needs_no_detector(squares_corpus, double, cache, tmp_path):
    video = replace(VIDEO, no_face="reject")
    found = with_faces(scan(squares_corpus, labels="folder"), video, None, Console(show=False))
    assert [(clip.key, clip.reason) for clip in found.rejected] == [("sad/none.mp4", NO_FACE)]
    found.write_csv(tmp_path / "manifest.csv")
    own = read_manifest(tmp_path / "manifest.csv", squares_corpus)
    assert own == found
    assert own.clips[0].face_box == (25, 30, 24, 24)
    assert Clip(key="a").face_box is None
    copies = scan(squares_corpus, labels="folder")  # with other modification times
    copies = Manifest.of(squares_corpus, [replace(clip, mtime_ns=7) for clip in copies.clips])
    again = with_faces(copies, video, None, Console(show=False), known=own)
    assert [replace(row, mtime_ns=0) for row in again.rows] == [replace(row, mtime_ns=0) for row in found.rows]
    fewer = Manifest.of(squares_corpus, own.clips[1:])
    assert len(double) == 1
    assert with_faces(scan(squares_corpus, labels="folder"), video, None, Console(show=False), known=fewer) == found
    assert len(double) == 2  # it is asked for the clip that is not known
    text = (tmp_path / "manifest.csv").read_text()
    for face in ("1 2 3", "-1 2 3 4", "1 2 3 0", "1 2 3 4 5", "a b c d", "1 2 3 9999999"):
        (tmp_path / "manifest.csv").write_text(text.replace("25 30 24 24", face))
        with pytest.raises(ValueError, match="face is"):
            read_manifest(tmp_path / "manifest.csv", squares_corpus)


def test_a_clip_that_does_not_decode_is_left_to_who_uses_it(squares_corpus, double, cache):
    manifest = scan(squares_corpus, labels="folder")
    (squares_corpus / "happy" / "one.mp4").write_bytes(b"no video")
    found = with_faces(manifest, replace(VIDEO, no_face="reject"), None, Console(show=False))
    assert listed(found)["happy/one.mp4"] == ("", 0)
    assert with_faces(manifest, replace(VIDEO, no_face="reject"), None, Console(show=False), known=found) == found
    with_faces(manifest, VIDEO, None, Console(show=False))
    assert double[1].seen == 0  # it is not known, and asked again in vain


def test_an_interruption_keeps_what_was_found(squares_corpus, double, cache, monkeypatch):
    manifest = scan(squares_corpus, labels="folder")

    class Stopping(Console):
        def track(self, *arguments):
            @contextmanager
            def tracked():
                def advance(done, total):
                    if done == 3:
                        raise KeyboardInterrupt

                yield advance

            return tracked()

    with pytest.raises(KeyboardInterrupt):
        with_faces(manifest, VIDEO, None, Stopping(show=False))
    with_faces(manifest, VIDEO, None, Console(show=False))
    assert 0 < double[1].seen <= 2 * 4
    monkeypatch.setattr(boxes, "write_text", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    assert with_faces(manifest, replace(VIDEO, num_frames=3), None, Console(show=False)).clips


def test_a_corpus_without_any_face_is_refused(squares_corpus, double, cache):
    manifest = scan(squares_corpus, labels="folder")
    manifest = Manifest.of(squares_corpus, [clip for clip in manifest.clips if clip.key == "sad/none.mp4"])
    with pytest.raises(ValueError, match=r"no clip of .* has a face: use another --video\.crop"):
        with_faces(manifest, VIDEO, None, Console(show=False))


# ---- the weights


@contextmanager
def served(answers):
    """A server on this machine that gives one answer after the other: a status and a body."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            status, body = answers[min(len(asked), len(answers)) - 1]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=partial(server.serve_forever, poll_interval=0.01), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/detector.onnx", asked
    finally:
        server.shutdown()
        server.server_close()


def test_the_shared_weights_are_those_that_are_downloaded(face_weights):
    assert hashlib.sha256(face_weights.read_bytes()).hexdigest() == detector.SHA256
    assert face_weights.name == detector.ADDRESS.rpartition("/")[2]


def test_weights_are_downloaded_once(face_weights, cache, monkeypatch):
    data = face_weights.read_bytes()
    with served([(200, data)]) as (url, asked):
        monkeypatch.setattr(detector, "ADDRESS", url)
        assert FaceDetector().digest == FaceDetector().digest == detector.SHA256
        assert len(asked) == 1
        path = cache / "models" / "detector.onnx"
        path.write_bytes(data[:1000])  # damaged
        FaceDetector()
        assert len(asked) == 2
        assert path.read_bytes() == data


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a pointer of Git LFS"),
        (200, b"\n<!DOCTYPE html><html>Sign in</html>", "a web page"),
        (200, b"something else", "has the SHA-256"),
        (200, b"", "too few"),
        (404, b"no such file", "404"),
    ],
)
def test_what_a_server_gives_instead_of_the_weights_is_refused(cache, monkeypatch, status, body, message):
    with served([(status, body)]) as (url, _):
        monkeypatch.setattr(detector, "ADDRESS", url)
        with pytest.raises(UserError, match=rf"(?s){message}.*get detector\.onnx elsewhere .*--faces\.weights PATH"):
            FaceDetector()
    with pytest.raises(UserError, match=r"cannot be downloaded .*--faces\.weights PATH"):  # nobody listens there now
        FaceDetector()
    assert not (cache / "models").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"<html>", "a web page"),
        (b"", "too few"),
        (b"\x08\x07\x12\x07pytorch", "OpenCV cannot use it"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused(tmp_path, data, message):
    if data is not None:
        (tmp_path / "w.onnx").write_bytes(data)
    with pytest.raises(UserError, match=rf"w\.onnx.*{message}|{message}.*w\.onnx") as raised:
        FaceDetector(tmp_path / "w.onnx")
    assert "--faces.weights PATH" in str(raised.value)
    assert "\n" not in str(raised.value)
