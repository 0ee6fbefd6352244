"""Fixtures of all tests."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# One processor for this process and those that it starts, as for one of many ranks of this host: two threads of a small
# training that wait for each other take ten times as long beside another worker. Before torch is imported.
os.environ |= {"LOCAL_WORLD_SIZE": str(os.cpu_count()), "OMP_NUM_THREADS": "1"}

import torch  # noqa: E402 -- before decord, after which torch's own threads crash
from hypothesis import settings  # noqa: E402

# Beside other programs an example may take seconds.
settings.register_profile("without deadlines", deadline=None)
settings.load_profile("without deadlines")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", type=Path, help="append what attacks tried, and how it ended, to this file")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: handed out last, it would keep one worker while the others have nothing left."""
    items.sort(key=lambda item: item.path.name != "test_docs.py")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        if os.environ.get("FASTEMO_REQUIRE_CUDA") == "1":
            pytest.fail("FASTEMO_REQUIRE_CUDA=1 and torch finds no CUDA device")
        pytest.skip("no CUDA device")


def pytest_runtest_teardown(item: pytest.Item) -> None:
    assert getattr(os, "sched_getscheduler", lambda _: 0)(0) == 0, "this left real-time priority: helpers.same_priority"


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the tests' own, so that nothing cached by an earlier session can make a test pass."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTEMO_CACHE", str(folder))
        yield folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, of one test alone."""
    monkeypatch.setenv("FASTEMO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session", autouse=True)
def decoders_do_not_step_back() -> Iterator[None]:
    """Beside other programs, threads that step back take ten times as long, and tests have to end there too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastemo.machine._BACKGROUND_NICENESS", 0)
        yield


@pytest.fixture(scope="session")
def clips_folder() -> Path:
    """The folder of real recordings; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("FASTEMO_CLIPS") or REPOSITORY / "../shared/clips").resolve()
    if not folder.is_dir():
        pytest.skip(f"no real clips at {folder}; FASTEMO_CLIPS names the folder")
    return folder


@pytest.fixture(scope="session")
def face_weights() -> Path:
    """The face detector's weights; tests that need them are skipped where they are absent."""
    from helpers import face_weights

    path = face_weights()
    if not path.is_file():
        pytest.skip(f"no face detector at {path}; FASTEMO_FACE_WEIGHTS names the file")
    return path


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in corpus, small: 24 actors, 8 clips each, 128x72, 12 frames."""
    from fastemo.corpus.config import SyntheticConfig
    from fastemo.corpus.synthetic.synthesis import synthesize

    config = SyntheticConfig(clips_per_actor=8, width=128, height=72, num_frames=12)
    return synthesize(tmp_path_factory.mktemp("tiny") / "corpus", config, workers=1)


@pytest.fixture(scope="session")
def manifest(tiny_corpus: Path):
    """The small corpus, scanned."""
    from fastemo.corpus.manifest import scan

    return scan(tiny_corpus)


@pytest.fixture(scope="session")
def few_clips(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of each actor of the small corpus, for what has to run but need not learn."""
    root = tmp_path_factory.mktemp("few") / "corpus"
    for number, actor in enumerate(sorted(tiny_corpus.glob("Actor_*"))):
        (root / actor.name).mkdir(parents=True)
        for path in sorted(actor.glob("*.mp4"))[number % 4 :: 4]:
            shutil.copy(path, root / actor.name)
    return root


@pytest.fixture
def fault_log(request: pytest.FixtureRequest) -> Callable[[str, Mapping[str, int]], None]:
    """Logs what an attack tried and how often it ended how: `fault_log("bit flips in an MP4", {"rejected": 9})`.

    With `--faults FILE` it becomes a line of that file, from which the table of faults is made.
    """

    def log(fault: str, outcomes: Mapping[str, int]) -> None:
        path = request.config.getoption("--faults")
        if path is not None:
            line = {"fault": fault, "outcomes": dict(outcomes), "test": request.node.nodeid.split("[")[0]}
            with path.open("ab", buffering=0) as file:  # a line is one write: other workers append to it too
                file.write(f"{json.dumps(line)}\n".encode())

    return log


@pytest.fixture(scope="session")
def made_study(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study's folder: `study_folder.CONTENT` on the small corpus."""
    from study_folder import make_study

    return make_study(tmp_path_factory.mktemp("made"), tiny_corpus)


@pytest.fixture(scope="session")
def tiny_run(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on the small corpus, for tests that change nothing in it."""
    from helpers import TINY_RUN, empty_figures

    from fastemo.config import read_config
    from fastemo.experiment.run import run

    options = ["--corpus.root", str(tiny_corpus), "--runs_dir", str(tmp_path_factory.mktemp("runs")), "--name", "tiny"]
    with empty_figures():
        return run(read_config([*TINY_RUN, *options]))
