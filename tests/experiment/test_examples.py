"""Strips of what a model saw and where it looked: the right clips, frames and heat, and nothing left of older ones."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from fastemo.config import read_config
from fastemo.errors import DecodeError
from fastemo.evaluation.evaluate import Predictions
from fastemo.experiment import examples
from fastemo.experiment.examples import MOST_RIGHT, MOST_WRONG, STRIP_FRAMES, most_confident, sampled, write_examples
from fastemo.models.build import build_model
from fastemo.video.augment import center_crop
from fastemo.video.decode import decode_clip
from fastemo.video.sampling import frame_indices


@pytest.fixture
def config():
    options = ["--model.name", "late_fusion", "--model.pretrained", "false", "--video.num_frames", "4"]
    return read_config([*options, "--video.size", "40", "--augment.crop_size", "32"])


def predicted(manifest, num_wrong, num_right):
    """As many clips, the further down the less sure."""
    clips = manifest.clips[: num_wrong + num_right]
    names = manifest.class_names
    labels = np.array([names.index(clip.emotion) for clip in clips])
    logits = np.zeros((len(clips), len(names)), np.float32)
    for row, label in enumerate(labels):
        logits[row, (label + 1) % len(names) if row < num_wrong else label] = 20 - row
    return clips, Predictions(tuple(clip.key for clip in clips), labels, logits)


def test_surest_are_sorted_and_counted(manifest):
    _, predictions = predicted(manifest, 10, 6)
    assert most_confident(predictions, wrong=True, most=8) == list(range(8))
    assert most_confident(predictions, wrong=False, most=4) == [10, 11, 12, 13]
    assert most_confident(predictions, wrong=False, most=40) == list(range(10, 16))


def written(config, out, manifest, clips, predictions):
    names = manifest.class_names
    model = build_model(config.model, len(names))
    write_examples(config, out, manifest.root, clips, predictions, names, model, names)
    return json.loads((out / "examples.json").read_text())["examples"]


class TestWriting:
    def test_each_is_described(self, config, manifest, tmp_path):
        clips, predictions = predicted(manifest, MOST_WRONG + 2, MOST_RIGHT + 1)
        found = written(config, tmp_path, manifest, clips, predictions)
        assert [it["kind"] for it in found] == ["wrong"] * MOST_WRONG + ["right"] * MOST_RIGHT
        by_key = {clip.key: clip for clip in clips}
        for row, one in enumerate(found):
            assert one["label"] == by_key[one["key"]].emotion
            assert (one["label"] == one["prediction"]) is (one["kind"] == "right")
            assert one["frames"] == f"examples/{row:02d}-frames.jpg"
            assert one["gradcam"] == f"examples/{row:02d}-gradcam.jpg"
            of_clip = frame_indices(by_key[one["key"]].num_frames, 4)
            assert one["frame_indices"] == of_clip[frame_indices(4, STRIP_FRAMES)].tolist()
        confidence = predictions.probabilities.max(1)
        assert [one["probability"] for one in found[:MOST_WRONG]] == confidence[:MOST_WRONG].tolist()

    def test_strips_show_what_the_model_saw(self, config, manifest, tmp_path):
        clips, predictions = predicted(manifest, 1, 0)
        (one,) = written(config, tmp_path, manifest, clips, predictions)
        frames = cv2.imread(str(tmp_path / one["frames"]))[..., ::-1]
        heat = cv2.imread(str(tmp_path / one["gradcam"]))
        # 32 pixels enlarged three times, six of them, two pixels apart.
        assert frames.shape == heat.shape == (96, 6 * 96 + 5 * 2, 3)
        spec = config.video.spec
        decoded = decode_clip(manifest.root / one["key"], frame_indices(clips[0].num_frames, 4), spec)
        expected = decoded[-1, :, 4:36, 4:36].transpose(1, 2, 0).repeat(3, 0).repeat(3, 1)
        assert np.abs(frames[:, -96:].astype(int) - expected).mean() < 5
        assert np.abs(frames[:, -96:].astype(int) - expected[:, ::-1]).mean() > 5

    def test_older_ones_are_gone(self, config, manifest, tmp_path):
        written(config, tmp_path, manifest, *predicted(manifest, 4, 2))
        (one,) = written(config, tmp_path, manifest, *predicted(manifest, 1, 0))
        left = {f"examples/{path.name}" for path in (tmp_path / "examples").iterdir()}
        assert left == {one["frames"], one["gradcam"]}

    def test_attention_shows_the_weights_of_the_shown_frames(self, config, manifest, tmp_path):
        (one,) = written(config, tmp_path, manifest, *predicted(manifest, 1, 0))
        assert one["frame_weights"] is None
        config = replace(config, model=replace(config.model, fusion="attention"))
        clips, predictions = predicted(manifest, 1, 0)
        torch.manual_seed(0)
        model = build_model(config.model, len(manifest.class_names)).eval()
        names = manifest.class_names
        write_examples(config, tmp_path, manifest.root, clips, predictions, names, model, names)
        (one,) = json.loads((tmp_path / "examples.json").read_text())["examples"]
        frames = center_crop(sampled(config, manifest.root, clips[0])[0], config.augment)
        with torch.no_grad():
            scores = model.attention(model.backbone(frames[0]))[:, 0].softmax(0)
        assert one["frame_weights"] == pytest.approx(scores[frame_indices(4, STRIP_FRAMES)].tolist(), abs=1e-5)
        assert len({round(it, 4) for it in one["frame_weights"]}) > 1

    def test_a_model_without_maps_has_no_heat(self, config, manifest, tmp_path, monkeypatch):
        monkeypatch.setattr(examples, "gradcam", lambda *_: None)
        (one,) = written(config, tmp_path, manifest, *predicted(manifest, 1, 0))
        assert one["gradcam"] is None

    def test_a_clip_that_is_gone(self, config, manifest, tmp_path):
        clips, predictions = predicted(manifest, 2, 1)
        elsewhere = replace(manifest, root=tmp_path / "elsewhere")
        with pytest.raises(DecodeError):
            written(config, tmp_path / "out", elsewhere, clips, predictions)
        dropping = replace(config, corpus=replace(config.corpus, on_error="drop"))
        assert written(dropping, tmp_path / "out", elsewhere, clips, predictions) == []
