"""From a configuration to a manifest: what is refused, what is remembered, what is said."""

from pathlib import Path

import pytest
from helpers import write_video

from fastemo.console import Console
from fastemo.corpus import manifest as manifest_module
from fastemo.corpus.config import CorpusConfig
from fastemo.corpus.manifest import Manifest, read_manifest
from fastemo.corpus.prepare import corpus_root, describe, prepare_corpus, scan_cached
from fastemo.corpus.synthetic.synthesis import SyntheticConfig

HAPPY = "02-01-03-01-01-01-01.mp4"
TINY = SyntheticConfig(actors=2, clips_per_actor=2, width=64, height=64, num_frames=4)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTEMO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path):
    write_video(tmp_path / "root" / HAPPY, 5)
    return tmp_path / "root"


@pytest.fixture
def console():
    return Console()


def test_a_corpus_in_order(root, console, capsys):
    write_video(root / "other.mp4", 5)
    (root / "03-01-03-01-01-01-01.mp4").touch()
    manifest = prepare_corpus(CorpusConfig(root=root), console)
    assert [clip.key for clip in manifest.clips] == [HAPPY]
    assert f"{root}: 1 clips, 1 unlabelled, 0 rejected, 1 audio-only passed over" in capsys.readouterr().out


def test_rejected_files_stop_it_and_it_says_how_to_go_on(root, console, capsys):
    (root / "a.mp4").touch()
    (root / "b.mp4").write_text("words")
    with pytest.raises(ValueError, match=r"2 files in .* were rejected, 0 are allowed; .*--corpus.max_rejected 2"):
        prepare_corpus(CorpusConfig(root=root), console)
    said = capsys.readouterr().out
    assert "rejected a.mp4: zero length" in said
    assert "rejected b.mp4: unreadable" in said
    with pytest.raises(ValueError, match=r"2 files in .* were rejected, 1 are allowed"):
        prepare_corpus(CorpusConfig(root=root, max_rejected=1), console)
    assert len(prepare_corpus(CorpusConfig(root=root, max_rejected=2), console).rejected) == 2


def test_a_corpus_without_labels(tmp_path, console):
    write_video(tmp_path / "mine/amused/x.mp4", 5)
    with pytest.raises(ValueError, match=r"holds no labelled clip; .*--corpus.labels folder"):
        prepare_corpus(CorpusConfig(root=tmp_path / "mine"), console)
    (clip,) = prepare_corpus(CorpusConfig(root=tmp_path / "mine", labels="folder"), console).clips
    assert clip.emotion == "amused"


def test_a_root_that_is_not_there(tmp_path, console):
    with pytest.raises(ValueError, match=r"gone is not a folder"):
        prepare_corpus(CorpusConfig(root=tmp_path / "gone"), console)


def test_the_second_scan_probes_nothing(root, cache, console, monkeypatch):
    first = scan_cached(root, CorpusConfig(root=root), console)
    (remembered,) = (cache / "manifests").iterdir()
    assert read_manifest(remembered, root) == first
    monkeypatch.setattr(manifest_module.Examiner, "probe", lambda *_, **__: pytest.fail("probed again"))
    assert scan_cached(root, CorpusConfig(root=root), console) == first
    monkeypatch.chdir(root.parent)
    assert scan_cached(Path("root"), CorpusConfig(root=Path("root")), console).clips == first.clips


def test_two_corpora_do_not_share_a_memory(root, tmp_path, cache, console):
    write_video(tmp_path / "second" / HAPPY, 7)
    for folder, count in ((root, 5), (tmp_path / "second", 7), (root, 5)):
        assert scan_cached(folder, CorpusConfig(root=folder), console).clips[0].num_frames == count
    assert len(list((cache / "manifests").iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_no_obstacle(root, tmp_path, console, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTEMO_CACHE", str(tmp_path / "file"))
    assert len(scan_cached(root, CorpusConfig(root=root), console).clips) == 1
    assert "the scan could not be remembered" in capsys.readouterr().out


def test_without_a_root_the_built_in_corpus_is_made_once(cache, console, capsys):
    config = CorpusConfig(synthetic=TINY)
    root = corpus_root(config, console)
    assert root.parent == cache / "synthetic"
    files = {path: path.stat().st_mtime_ns for path in root.rglob("*.mp4")}
    assert len(files) == 4
    manifest = prepare_corpus(config, console)
    assert {root / clip.key for clip in manifest.clips} == set(files)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.mp4")} == files
    assert f"built-in corpus of generated faces: {root}" in capsys.readouterr().out


def test_a_built_in_corpus_that_cannot_be_written(tmp_path, console, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTEMO_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"cannot be made in .*file/synthetic/.*: Not a directory; .*FASTEMO_CACHE"):
        corpus_root(CorpusConfig(synthetic=TINY), console)


def test_describe():
    assert describe(Manifest(Path("x"), ())) == "x: 0 clips, 0 unlabelled, 0 rejected"


def test_a_silent_console_says_nothing(root, capsys):
    prepare_corpus(CorpusConfig(root=root), Console(show=False))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "names"}, "corpus.labels must be one of ravdess, cremad, folder, not 'names'"),
        ({"verify": "slow"}, "corpus.verify must be quick or full, not 'slow'"),
        ({"protocol": "random"}, "corpus.protocol must be one of report, speech, speech+song"),
        ({"fold": -1}, "corpus.fold must be at least 0, not -1"),
        ({"max_rejected": -1}, "corpus.max_rejected must be at least 0, not -1"),
    ],
)
def test_options_that_do_not_exist(options, message):
    with pytest.raises(ValueError, match="corpus") as raised:
        CorpusConfig(**options)
    assert str(raised.value).startswith(message)
