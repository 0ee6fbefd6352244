"""Cold means cold: pages are dropped, and it is checked that they were."""

import os

import pytest

from benchmarks.common.corpus import stored_corpus
from benchmarks.common.measure import Skipped
from benchmarks.common.stages import cached_share, drop_cached_pages, store_stages
from fastemo.video.config import VideoConfig


@pytest.fixture
def stored(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "frames.bin").write_bytes(os.urandom(1 << 22))
    (folder / "empty").touch()
    return folder


def test_pages_are_forgotten(stored):
    file = stored / "frames.bin"
    file.read_bytes()
    try:
        assert cached_share(file) == 1.0
        # Not asked again afterwards: asking makes the kernel fetch what was asked for.
        assert drop_cached_pages(stored) <= 0.1
    except Skipped as reason:
        pytest.skip(str(reason))
    file.read_bytes()
    assert cached_share(file) == 1.0


def test_pages_that_stay_are_reported(stored, monkeypatch):
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: None)
    (stored / "frames.bin").read_bytes()
    with pytest.raises(Skipped, match="TMPDIR"):
        drop_cached_pages(stored)


@pytest.mark.slow
def test_every_tier_serves_every_clip(tmp_path):
    manifest = stored_corpus(20, 2, 16, tmp_path / "stored")
    config = VideoConfig(num_frames=2, size=16)
    with store_stages(manifest, tmp_path / "store", config, batch_size=8, seconds=0.0, device="cpu") as stages:
        for stage in stages:
            stage.warm()
            try:
                found = stage.run()
            except Skipped:
                continue
            assert found.clips == (8 if stage.name.endswith("augmented") else 20), stage.name
            assert found.seconds > 0
