"""A run that crops faces, and videos with two faces and none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import TINY_RUN, empty_figures, write_video

pytest.importorskip("gradio", reason="pip install -e '.[demo]' brings gradio")


@pytest.fixture(scope="session")
def face_run(face_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fastemo.config import read_config
    from fastemo.corpus.config import SyntheticConfig
    from fastemo.corpus.synthetic.synthesis import synthesize
    from fastemo.experiment.run import run

    home = tmp_path_factory.mktemp("faces")
    config = SyntheticConfig(clips_per_actor=1, width=160, height=90, num_frames=4)
    corpus = synthesize(home / "corpus", config, workers=1)
    options = ["--video.crop", "face", "--faces.weights", str(face_weights), "--corpus.root", str(corpus)]
    with empty_figures():
        return run(read_config([*TINY_RUN, *options, "--runs_dir", str(home / "runs"), "--name", "faces"]))


@pytest.fixture(scope="session")
def two_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two generated actors side by side, 4 s."""
    from fastemo.corpus import ravdess
    from fastemo.corpus.config import SyntheticConfig
    from fastemo.corpus.synthetic.synthesis import render_frames

    config = SyntheticConfig(width=160, height=120, num_frames=25)
    sides = [render_frames(ravdess.speech_performances(actor)[0], config) for actor in (1, 2)]
    path = tmp_path_factory.mktemp("two") / "two.mp4"
    return write_video(path, 100, 320, 120, draw=lambda n, *_: np.hstack([side[n % 25] for side in sides]))


@pytest.fixture(scope="session")
def no_face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("none") / "empty.mp4"
    return write_video(path, 20, 160, 90, draw=lambda n, w, h: np.full((h, w, 3), 90, np.uint8))
