"""The machine: processors, memory, the cache folder, file locks and atomic writes."""

from __future__ import annotations

import ctypes
import errno
import hashlib
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

from fastemo.version import __version__

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

# A ninth of the processor time of a thread at 0; all of it on an idle processor.
_BACKGROUND_NICENESS = 10
_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def available_processors() -> int:
    """Processors for this process: those it may run on, divided among the ranks of this host."""
    # Python 3.13 has os.process_cpu_count; macOS has no sched_getaffinity.
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, count // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def available_memory() -> int:
    """Bytes of memory that this process may still take: its share, if this host runs several ranks.

    What the kernel could free counts as available; a container's limit (cgroup v1 or v2) is respected.
    Where the system does not report it, half of the installed memory.
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
    """Resident memory of this process in bytes; 0 where the system does not report it."""
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
        # Inside a container the path may be the host's, and only the mount itself is visible.
        for group in (PurePosixPath(path.lstrip("/")), *PurePosixPath(path.lstrip("/")).parents):
            try:
                stat = dict(line.split() for line in (mount / group / "memory.stat").read_text().splitlines())
                # Inactive file pages count as used, but the kernel frees them on demand.
                used = int((mount / group / usage).read_text()) - int(stat.get(cache, 0))
                yield int((mount / group / limit).read_text()) - used
            except (OSError, ValueError):
                continue  # not visible here, or without a limit ("max")


def give_back_memory() -> None:
    """Return memory to the system that was freed but is held by the allocator.

    Many decoding threads fragment their heaps: resident memory grew by 90 MiB in 9,000 decodes without this, and
    by 4 MiB with it. It takes 10 ms. Does nothing where the C library is not glibc.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> None:
    """Keep freed memory in this process for later allocations, until `give_back_memory`.

    A training step allocates the same large blocks each time; glibc gets each from the system, which clears it page
    by page. A step of a ResNet-18 on two cores: 22,000 page faults without this and 500 with it, 0.87 x the time
    (benchmarks/LOG.md). Does nothing where the C library is not glibc.
    """
    if sys.platform == "linux":
        mmap_max, trim_threshold, never = -4, -1, 2**31 - 1  # names and numbers of malloc.h
        with suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.mallopt(mmap_max, 0)
            libc.mallopt(trim_threshold, never)


def lower_thread_priority() -> None:
    """Lower the calling thread's priority, on Linux: other threads get the processors first."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _BACKGROUND_NICENESS)


def cache_folder() -> Path:
    """The folder for files that can be regenerated: `FASTEMO_CACHE`, or the user's cache folder."""
    if chosen := os.environ.get("FASTEMO_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fastemo"


def is_offline() -> bool:
    """Whether `HF_HUB_OFFLINE` is set, as huggingface_hub reads it: then no weights are downloaded from anywhere."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def flush(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries, to the disk.

    Raises:
        OSError: The disk fails. A file system that cannot flush folders is not an error.
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
    """Hold a lock on a folder, or refuse if another process holds it; a process that ends, in any way, releases it.

    Without such locks in the file system or the operating system, no process is refused.

    Raises:
        ValueError: Another process holds it; the message begins with `what`.
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
    """Yield a temporary path beside `path`, renamed at the end: readers see the whole old file or the whole new one."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file atomically; its parent folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="surrogateescape")


def sha256_of(path: Path) -> str:
    """A file's SHA-256, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, which is created, against other processes and threads.

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
    """Open a regular file and return its descriptor; links, pipes and devices are refused as part of opening.

    A file that is checked first could be replaced before it is opened: opening a pipe would then block forever, and a
    device be read without end.

    Raises:
        OSError: The file cannot be opened, or is not a regular file.
    """
    # Both flags are unknown to some operating systems.
    file = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def read_at(file: int, view: memoryview, offset: int) -> bool:
    """Fill `view` from an open file's descriptor; False if the file ends too early."""
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
    """Refuse a system that lacks what the clip store needs.

    Raises:
        ValueError: There are no positioned reads or no file locks, as on Windows.
    """
    if fcntl is None or not hasattr(os, "preadv"):
        system = platform.system()
        raise ValueError(f"fastemo does not run on {system}, which has no os.preadv or no fcntl: use Linux, or WSL 2")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in VERSIONED_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found | {"fastemo": __version__}  # that of an editable installation may be older than the code


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
    """Processor, number of processors for this process, and GPU; nothing that identifies the host."""
    import torch  # late: processes that only draw or decode do not need it

    try:
        names = re.findall(r"^model name\s*: (.*)$", (_PROC / "cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "processors": available_processors(),
        "gpu": gpus[0] if gpus else None,
    }
