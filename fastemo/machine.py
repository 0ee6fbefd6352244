"""What the machine gives: processors, a folder to keep things in, and writes that are whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import stat
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path, PurePosixPath

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

VERSIONED_PACKAGES = (
    "fastemo",
    "torch",
    "torchvision",
    "timm",
    "accelerate",
    "av",
    "numpy",
    "opencv-python-headless",
)

# A ninth of what a thread at 0 gets; beside nothing else, all.
_BACKGROUND_NICENESS = 10
_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def available_processors() -> int:
    """Processors for this process: those it may run on, shared with the other ranks of this host."""
    # Python 3.13 has os.process_cpu_count; macOS has no sched_getaffinity.
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, count // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def available_memory() -> int:
    """Bytes that this process may still take, its share where other ranks of this host take as much.

    What the kernel could free is counted as available; the limit of a container (cgroup v1 or v2) is kept.
    Where the system does not say, half of what is installed.
    """
    try:
        fields = dict(line.split(":", 1) for line in (_PROC / "meminfo").read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        known = hasattr(os, "sysconf")
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if known else 0
    room = min([available, *_cgroup_rooms()])
    return max(0, room) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def readable_bytes(num_bytes: int) -> str:
    """Such as `1.5 GiB` or `64 MiB`."""
    value, unit = (num_bytes / 2**30, "GiB") if num_bytes >= 2**30 else (num_bytes / 2**20, "MiB")
    return f"{value:.1f}".removesuffix(".0") + f" {unit}"


def resident_memory() -> int:
    """Bytes of this process that lie in memory; 0 where the system does not say."""
    try:
        return int((_PROC / "self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _cgroup_rooms() -> Iterator[int]:
    """Bytes left below the limit of this process's memory cgroup and of each above it."""
    try:
        lines = (_PROC / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, limit, usage, cache = _CGROUPS, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            mount, limit, usage = _CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        # Inside a container the path may be the host's, of which only the mount itself is visible.
        for group in (PurePosixPath(path.lstrip("/")), *PurePosixPath(path.lstrip("/")).parents):
            try:
                stat = dict(line.split() for line in (mount / group / "memory.stat").read_text().splitlines())
                # File pages that nobody used lately are counted as used, and given up on demand.
                used = int((mount / group / usage).read_text()) - int(stat.get(cache, 0))
                yield int((mount / group / limit).read_text()) - used
            except (OSError, ValueError):
                continue  # not visible here, or without a limit ("max")


def give_back_memory() -> None:
    """Return to the system what was freed but is kept for later.

    Many threads that decode leave their heaps full of holes: without this, resident memory had grown by 90 MiB after
    9,000 decodes, with it by 4 MiB. It takes 10 ms. Nothing happens where the C library is not glibc.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> None:
    """Let this process keep what it frees for what it asks for next, until `give_back_memory`.

    A training step asks for the same large pieces again and again; glibc gets each from the system, which clears it
    page by page. A step of a ResNet-18 on two cores: 22,000 page faults without this and 500 with it, 0.87 x the time
    (benchmarks/LOG.md). Nothing happens where the C library is not glibc.
    """
    if sys.platform == "linux":
        mmap_max, trim_threshold, never = -4, -1, 2**31 - 1  # names and numbers of malloc.h
        with suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.mallopt(mmap_max, 0)
            libc.mallopt(trim_threshold, never)


def lower_thread_priority() -> None:
    """Give the calling thread less of the processors while other threads want them, on Linux."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _BACKGROUND_NICENESS)


def cache_folder() -> Path:
    """Where things that can be made again are kept: `FASTEMO_CACHE`, or the user's cache folder."""
    if chosen := os.environ.get("FASTEMO_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fastemo"


def flush(path: Path) -> None:
    """Have the system write a file's bytes, or a folder's names, to the disk before this returns.

    Raises:
        OSError: The disk does not take them. That a file system cannot flush folders is no error.
    """
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def only_one(folder: Path, what: str) -> Iterator[None]:
    """Refuse where another process holds the same folder; a process that ends, however, lets go of it.

    Where the file system or the operating system has no such locks, nobody is refused.

    Raises:
        ValueError: Another process holds it; `what` begins the message.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{what} is in use by another process, on this machine or another") from error
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to, renamed at the end: a reader sees the whole old file or the new one."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; folders above it are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="surrogateescape")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock against every other process and thread that asks for it by the same file, which is made.

    Raises:
        OSError: The file cannot be opened, or its file system or the operating system has no such locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOSYS, "this operating system has no file locks", str(path))
    # Opened anew each time: a lock belongs to the open file, which threads and forked processes would share.
    with os.fdopen(open_plain(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY), "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def open_plain(path: Path | str, flags: int) -> int:
    """Open a file that is one, and return its descriptor: links, pipes and devices are refused, in the same moment.

    Looked at beforehand, a file could be replaced before it is opened; a pipe would then be waited on for ever, and a
    device read without end.

    Raises:
        OSError: The file cannot be opened, or is none.
    """
    # Both flags are unknown to some operating systems.
    file = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "this is no plain file", str(path))
    return file


def read_at(file: int, view: memoryview, offset: int) -> bool:
    """Fill memory of single bytes from an open file's descriptor; False where the file ends before."""
    while view:
        count = os.preadv(file, [view], offset)
        if count == 0:
            return False
        view, offset = view[count:], offset + count
    return True


def write_at(file: int, data: memoryview | bytes, offset: int) -> None:
    """Write all of the data to an open file's descriptor."""
    view = memoryview(data)
    while view:
        count = os.pwrite(file, view, offset)
        view, offset = view[count:], offset + count


def check_platform() -> None:
    """Refuse a system without what the clip store stands on.

    Raises:
        ValueError: There are no positioned reads or no file locks, as on Windows.
    """
    if fcntl is None or not hasattr(os, "preadv"):
        system = platform.system()
        raise ValueError(f"fastemo does not run on {system}, which has no os.preadv or no fcntl: use Linux, or WSL 2")


def versions() -> dict[str, str]:
    """Of Python and of what the result depends on."""
    found = {"python": platform.python_version()}
    for package in VERSIONED_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def commit() -> str | None:
    """The commit of the clone that fastemo is imported from, with `-dirty` if files were changed; None elsewhere."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    words = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def describe_machine() -> dict[str, str | int | None]:
    """Processor, how many of them this process may use, and GPU; nothing that names a host."""
    import torch  # late: processes that only draw or decode have no use for it

    try:
        told = re.findall(r"^model name\s*: (.*)$", (_PROC / "cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        told = []
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "processor": told[0] if told else platform.processor() or platform.machine(),
        "processors": available_processors(),
        "gpu": gpus[0] if gpus else None,
    }
