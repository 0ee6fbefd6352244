"""From a configuration to a manifest: what is refused, what is cached, what is printed."""

from pathlib import Path

import pytest
from helpers import write_video

from fastemo.console import Console
from fastemo.corpus import manifest as manifest_module
from fastemo.corpus.config import CorpusConfig, SyntheticConfig
from fastemo.corpus.manifest import read_manifest
from fastemo.corpus.prepare import corpus_root, prepare_corpus, scan_cached

HAPPY = "02-01-03-01-01-01-01.mp4"
TINY = SyntheticConfig(actors=2, clips_per_actor=2, width=64, height=64, num_frames=4)


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def root(tmp_path):
    write_video(tmp_path / "root" / HAPPY, 5)
    return tmp_path / "root"


CONSOLE = Console()


def test_a_corpus_without_rejected_files(root, capsys):
    write_video(root / "other.mp4", 5)
    (root / "03-01-03-01-01-01-01.mp4").touch()
    manifest = prepare_corpus(CorpusConfig(root=root), CONSOLE)
    assert [clip.key for clip in manifest.clips] == [HAPPY]
    assert f"{root}: 1 clips, 1 unlabelled, 0 rejected, 1 audio-only skipped" in capsys.readouterr().out
    assert prepare_corpus(CorpusConfig(root=root), Console(show=False)) == manifest
    assert capsys.readouterr().out == ""


def test_a_corpus_without_labels(tmp_path):
    write_video(tmp_path / "mine/amused/x.mp4", 5)
    with pytest.raises(ValueError, match=r"has no labelled clips: .*--corpus.labels folder"):
        prepare_corpus(CorpusConfig(root=tmp_path / "mine"), CONSOLE)
    (clip,) = prepare_corpus(CorpusConfig(root=tmp_path / "mine", labels="folder"), CONSOLE).clips
    assert clip.emotion == "amused"


def test_the_second_scan_probes_nothing(root, cache, monkeypatch):
    first = scan_cached(root, CorpusConfig(root=root), CONSOLE)
    (cached,) = (cache / "manifests").iterdir()
    assert read_manifest(cached, root) == first
    monkeypatch.setattr(manifest_module.Examiner, "probe", lambda *_, **__: pytest.fail("probed again"))
    assert scan_cached(root, CorpusConfig(root=root), CONSOLE) == first
    monkeypatch.chdir(root.parent)
    assert scan_cached(Path("root"), CorpusConfig(root=Path("root")), CONSOLE).clips == first.clips


def test_two_corpora_do_not_share_a_cached_scan(root, tmp_path, cache):
    write_video(tmp_path / "second" / HAPPY, 7)
    for folder, count in ((root, 5), (tmp_path / "second", 7), (root, 5)):
        assert scan_cached(folder, CorpusConfig(root=folder), CONSOLE).clips[0].num_frames == count
    assert len(list((cache / "manifests").iterdir())) == 2


def test_without_a_root_the_built_in_corpus_is_made_once(cache, capsys):
    config = CorpusConfig(synthetic=TINY)
    root = corpus_root(config, CONSOLE)
    assert root.parent == cache / "synthetic"
    files = {path: path.stat().st_mtime_ns for path in root.rglob("*.mp4")}
    assert len(files) == 4
    manifest = prepare_corpus(config, CONSOLE)
    assert {root / clip.key for clip in manifest.clips} == set(files)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.mp4")} == files
    assert f"built-in corpus of generated faces: {root}" in capsys.readouterr().out
