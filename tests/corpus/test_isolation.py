"""A file that kills, stalls or swells the process that examines it costs that file alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REPOSITORY, wait_until

from fastemo.corpus.files import isolation
from fastemo.corpus.files.isolation import Examiner, Limits, WorkerError, Workers
from fastemo.corpus.files.probe import probe_video
from fastemo.corpus.manifest import read_manifest, scan

linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone")


@pytest.fixture
def accidents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "_EXAMINE", "worker_tasks:examine")


def is_gone(pid: int) -> bool:
    """Ended; a container whose first process collects no others leaves its shell behind."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.usefixtures("accidents")
class TestAccidents:
    @pytest.mark.parametrize("verify", ["quick", "full"])
    @pytest.mark.parametrize("threads", [1, 3])
    def test_a_file_that_ends_its_process_is_named(self, put, verify, threads):
        root = put("a.mp4", "signal6.mp4", "b.mp4", "signal9.mp4", "signal11.mp4", "c.mp4", "exit3.mp4", "z.mp4")
        found = scan(root, verify=verify, threads=threads)
        ended = "decoding it crashed the decoder's process"
        assert {clip.key: clip.reason for clip in found.rejected} == {
            "signal6.mp4": f"{ended} (signal 6)",
            "signal9.mp4": f"{ended} (signal 9)",
            "signal11.mp4": f"{ended} (signal 11)",
            "exit3.mp4": f"{ended} (exit status 3)",
        }
        assert [clip.key for clip in found.unlabelled] == ["a.mp4", "b.mp4", "c.mp4", "z.mp4"]
        assert {clip.num_frames for clip in found.unlabelled} == {12}

    def test_a_file_that_stalls(self, put):
        root = put("a.mp4", "stall.mp4", "z.mp4")
        found = scan(root, limits=Limits(seconds=1))
        assert [(clip.key, clip.reason) for clip in found.rejected] == [("stall.mp4", "decoding took longer than 1 s")]
        assert [clip.key for clip in found.unlabelled] == ["a.mp4", "z.mp4"]
        assert is_gone(int((root / "stall.pid").read_text()))

    @linux
    def test_a_file_that_swells(self, put):
        root = put("a.mp4", "swell.mp4", "z.mp4")
        found = scan(root, limits=Limits(memory_bytes=256 << 20))
        assert [clip.reason for clip in found.rejected] == ["decoding needs more than 256 MiB"]
        assert [clip.key for clip in found.unlabelled] == ["a.mp4", "z.mp4"]
        (clip,) = scan(root, limits=Limits(memory_bytes=2 << 30)).rejected
        assert clip.reason == f"swelled to {1 << 30}"

    def test_a_file_is_not_blamed_for_the_one_before(self, put):
        assert scan(put("a.mp4", "fragile.mp4", "z.mp4"), threads=1).rejected == ()

    def test_what_is_printed_there_is_no_reply(self, put, capfd):
        assert len(scan(put("print.mp4")).unlabelled) == 1
        assert capfd.readouterr() == ("", "")

    def test_what_was_not_settled_is_tried_again(self, put, tmp_path, monkeypatch):
        root, known = put("signal11.mp4"), tmp_path / "m.csv"
        first = scan(root)
        first.write_csv(known)
        assert read_manifest(known, root) == first
        monkeypatch.undo()
        assert scan(root, known=known).rejected == ()


class TestProcesses:
    def test_they_say_what_a_probe_in_this_process_says(self, master):
        with Examiner(Limits()) as examiner:
            for verify in ("quick", "full"):
                assert examiner.probe(master, verify=verify, size_bytes=0) == probe_video(master, verify=verify)
            with pytest.raises(FileNotFoundError):
                examiner.probe(master.with_name("gone.mp4"), verify="quick", size_bytes=0)

    def test_they_start_without_torch_and_numpy(self):
        with Workers("worker_tasks:modules", Limits()) as workers:
            loaded = workers.ask({})["modules"]
        assert "av" in loaded
        assert {"torch", "numpy", "cv2"}.isdisjoint(loaded)

    def test_nothing_in_the_working_folder_is_run(self, put, tmp_path, monkeypatch):
        for name in ("json.py", "av.py", "signal.py"):
            (tmp_path / name).write_text(f"open({str(tmp_path / 'run')!r}, 'w')\nraise SystemExit(1)\n")
        monkeypatch.chdir(tmp_path)
        assert len(scan(put("a.mp4")).unlabelled) == 1
        assert not (tmp_path / "run").exists()

    def test_one_that_does_not_start_is_no_fault_of_a_file(self, put, monkeypatch, capfd):
        monkeypatch.setattr(isolation, "_EXAMINE", "no_such_module:examine")
        with pytest.raises(WorkerError, match=r"did not start \(exit status 1\)"):
            scan(put("a.mp4"))
        assert "No module named 'no_such_module'" in capfd.readouterr().err

    def test_none_can_be_started(self, put, monkeypatch):
        monkeypatch.setattr(sys, "executable", "/no/such/python")
        with pytest.raises(WorkerError, match=r"cannot start .*: No such file or directory"):
            scan(put("a.mp4"))

    @pytest.mark.parametrize(("size_bytes", "seconds"), [(0, 60), (30 << 20, 60), (100 << 20, 200), (1 << 30, 2048)])
    def test_large_files_get_more_time(self, size_bytes, seconds):
        assert Limits().seconds_for(size_bytes) == seconds


@linux
class TestEnds:
    """A scan that stalls in two processes, ended from outside."""

    PROGRAM = (
        "import signal, sys; from fastemo.corpus.files import isolation; from fastemo.corpus.manifest import scan; "
        "from fastemo.errors import one_line_errors\n"
        # A shell's background jobs ignore it, and so do their children.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "isolation._EXAMINE = 'worker_tasks:examine'\n"
        "with one_line_errors(): scan(sys.argv[1], threads=2)"
    )

    @pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
    def test_nothing_is_left_behind(self, put, how):
        root = put("stall1.mp4", "stall2.mp4")
        process = subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM, str(root)],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY / "tests")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        files = [root / "stall1.pid", root / "stall2.pid"]
        wait_until(lambda: all(file.exists() and file.read_text() for file in files))
        pids = [int(file.read_text()) for file in files]
        assert not any(is_gone(pid) for pid in pids)
        os.killpg(process.pid, how)  # as a terminal does on Ctrl-C
        out, errors = process.communicate(timeout=30)
        if how == signal.SIGINT:
            assert (process.returncode, out, errors) == (130, "", "fastemo: interrupted\n")
        wait_until(lambda: all(is_gone(pid) for pid in pids))

    def test_an_error_of_the_caller_ends_them(self, put, monkeypatch):
        monkeypatch.setattr(isolation, "_EXAMINE", "worker_tasks:examine")
        root = put("a.mp4", "stall1.mp4")

        def fail(done: int, total: int) -> None:
            wait_until(lambda: (root / "stall1.pid").exists() and bool((root / "stall1.pid").read_text()))
            raise RuntimeError("enough")

        with pytest.raises(RuntimeError, match="enough"):
            scan(root, threads=2, on_progress=fail)
        assert is_gone(int((root / "stall1.pid").read_text()))
