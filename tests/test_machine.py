"""What the machine gives: memory, as the system and its containers report it."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fastemo import cli, machine, train

BACKGROUND_NICENESS = machine._BACKGROUND_NICENESS  # the tests' own is 0, see conftest.py


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """Files of /proc and /sys/fs/cgroup -> what `available_memory` makes of them."""
    monkeypatch.setattr(machine, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)

    def measure(files: dict[str, str]) -> int:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return machine.available_memory()

    return measure


MEMINFO = {"proc/meminfo": "MemTotal:  9000 kB\nMemAvailable:    4000 kB\nHugePages_Total: 0\n"}


def test_available_memory_without_a_limit(pretended, monkeypatch):
    assert pretended(MEMINFO) == 4000 * 1024
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert pretended(MEMINFO) == 1000 * 1024


@pytest.mark.parametrize("folder", ["cgroup/a/b/", "cgroup/a/", "cgroup/"])
def test_available_memory_below_a_limit(pretended, folder):
    limit = {"memory.max": "1000000\n", "memory.current": "600000\n", "memory.stat": "anon 1\ninactive_file 200000\n"}
    files = {**MEMINFO, "proc/self/cgroup": "0::/a/b\n", "cgroup/a/b/memory.max": "max\n"}
    assert pretended({**files, **{folder + name: text for name, text in limit.items()}}) == 600_000


def test_available_memory_below_a_limit_of_version_1(pretended):
    folder = "cgroup/memory/a/memory."
    files = {**MEMINFO, "proc/self/cgroup": "4:cpu,memory:/a\n1:name=systemd:/\n0::/\n"}
    files[folder + "limit_in_bytes"], files[folder + "usage_in_bytes"] = "500000\n", "600000\n"
    files[folder + "stat"] = "total_inactive_file 150000\n"
    assert pretended(files) == 50_000


def test_available_memory_elsewhere(pretended):
    assert pretended({}) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


@pytest.mark.skipif(sys.platform != "linux", reason="glibc and Linux's niceness of single threads")
def test_a_thread_steps_back_and_no_other(monkeypatch):
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    monkeypatch.setattr(machine, "_BACKGROUND_NICENESS", BACKGROUND_NICENESS)
    before = niceness()
    with ThreadPoolExecutor(1, initializer=machine.lower_thread_priority) as pool:
        assert pool.submit(niceness).result() > before
    assert niceness() == before


@pytest.mark.parametrize("command", [train.main, cli.main])
def test_a_system_without_file_locks_is_refused_in_one_sentence(command, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(machine, "fcntl", None)
    monkeypatch.setattr(machine.platform, "system", lambda: "Windows")
    with pytest.raises(SystemExit, match="2"):
        command(["index", str(tmp_path)])
    assert "does not run on Windows, which has no os.preadv or no fcntl: use Linux, or WSL 2" in capsys.readouterr().err
