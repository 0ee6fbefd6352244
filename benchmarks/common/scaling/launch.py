"""How the processes of a scaling run are started: which launcher, on which host, with which addresses."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.common.results import REPOSITORY
from benchmarks.common.scaling.worker import Job
from fastemo.errors import UserError
from fastemo.machine import available_processors

_WORKER = Path(__file__).resolve().parent / "worker.py"
_LAUNCH_FILES = REPOSITORY / "configs" / "accelerate"
_SECONDS = 1800  # far beyond any launch: one that hangs is one that failed
_POLL_SECONDS = 0.05
_SECONDS_TO_END = 40  # torchrun gives its processes 30


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """Where processes are started.

    Attributes:
        addresses: One a host; the first one's process 0 is the meeting point.
        rank: Which of them this is; `None`: all of them are this machine, under loopback addresses.
        port: Of the first launch, the next takes the next one; `None`: any free one, where all hosts are here.
    """

    addresses: tuple[str, ...] = ("127.0.0.1",)
    rank: int | None = None
    port: int | None = None

    @property
    def here(self) -> tuple[int, ...]:
        return tuple(range(len(self.addresses))) if self.rank is None else (self.rank,)

    @property
    def is_main(self) -> bool:
        return 0 in self.here

    def used(self, processes: int) -> tuple[str, ...]:
        """All hosts, where each gets as many processes; otherwise the first alone."""
        return self.addresses if processes % len(self.addresses) == 0 else self.addresses[:1]

    def processors(self, host: int) -> tuple[int, ...] | None:
        """The share of this machine's processors that plays a host; `None`: they are real ones."""
        if self.rank is not None or len(self.addresses) == 1:
            return None
        mine = sorted(os.sched_getaffinity(0))
        share = max(1, len(mine) // len(self.addresses))
        first = host * share % len(mine)
        return tuple(mine[first : first + share])

    def num_processors(self, processes: int) -> int:
        """Processors that a run with so many processes has."""
        shares = [self.processors(host) for host in range(len(self.used(processes)))]
        return len({it for share in shares if share for it in share}) or available_processors() * len(shares)


def parse_hosts(text: str | None, rank: int | None, port: int | None) -> Hosts:
    """What `--hosts`, `--host_rank` and `--port` say.

    Raises:
        ValueError: They do not fit together; the message says how.
    """
    if text is None:
        if rank is not None or port is not None:
            raise ValueError("--host_rank and --port belong to --hosts")
        return Hosts()
    addresses = tuple(it.strip() for it in text.split(","))
    if len(addresses) < 2 or len(set(addresses)) < len(addresses) or not all(addresses):
        raise ValueError(f"--hosts takes two or more different addresses with commas between, not '{text}'")
    if all(map(_is_loopback, addresses)):
        if rank is not None:
            raise ValueError("--host_rank is for real hosts; with loopback addresses all are started here")
        return Hosts(addresses=addresses, port=port)
    if rank is None and (node := os.environ.get("SLURM_NODEID")):
        rank = int(node)
    if rank is None or not 0 <= rank < len(addresses):
        raise ValueError(f"--host_rank must say which of --hosts this is, 0 to {len(addresses) - 1}; run it on each")
    return Hosts(addresses=addresses, rank=rank, port=29500 if port is None else port)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:  # a name
        return False


def command(processes: int, hosts: Hosts, host: int, port: int, *, on_gpu: bool) -> list[str]:
    """The launcher's command for one host; the script and its arguments follow.

    A GPU each and NCCL by `accelerate launch`; on a CPU gloo by torchrun, because `accelerate launch` starts one
    process there. A single process on a CPU needs neither.
    """
    used = hosts.used(processes)
    if on_gpu:
        file = "one_gpu" if processes == 1 else "one_node" if len(used) == 1 else "several_nodes"
        start = [sys.executable, "-m", "accelerate.commands.launch"]
        start += ["--config_file", str(_LAUNCH_FILES / f"{file}.yaml"), "--num_processes", str(processes)]
        if processes > 1:
            start += ["--main_process_port", str(port)]
        if len(used) > 1:
            start += ["--num_machines", str(len(used)), "--machine_rank", str(host), "--main_process_ip", used[0]]
        return start
    if processes == 1:
        return [sys.executable]
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes // len(used))]
    if len(used) == 1:
        return [*start, "--standalone"]
    start += ["--nnodes", str(len(used)), "--node_rank", str(host), "--local_addr", used[host]]
    return [*start, "--master_addr", used[0], "--master_port", str(port)]


class Launches:
    """Starts jobs one after the other; every host starts the same ones in the same order."""

    def __init__(self, hosts: Hosts, *, on_gpu: bool) -> None:
        self._hosts, self._on_gpu, self._count = hosts, on_gpu, 0

    def run(self, job: Job, processes: int) -> dict[str, Any] | None:
        """What the first process found; `None` where this host does not run it.

        Raises:
            UserError: A process failed, or did not end.
        """
        number, self._count = self._count, self._count + 1
        used = self._hosts.used(processes)
        here = [host for host in self._hosts.here if host < len(used)]
        port = free_port(used[0]) if self._hosts.port is None else self._hosts.port + number
        with tempfile.TemporaryDirectory(prefix="fastemo-launch-") as folder:
            out = Path(folder) / "out.json"
            starts = []
            for host in here:
                file = Path(folder) / f"job{host}.json"
                file.write_text(json.dumps(asdict(replace(job, processors=self._hosts.processors(host)))))
                start = command(processes, self._hosts, host, port, on_gpu=self._on_gpu)
                starts.append([*start, str(_WORKER), "--job", str(file), "--out", str(out)])
            _run_together(starts, Path(folder), self._environment(processes, len(used)))
            return json.loads(out.read_text()) if out.exists() else None

    def _environment(self, processes: int, num_hosts: int) -> dict[str, str]:
        environment = dict(os.environ)
        # torchrun warns without it; each process counts its own share of the processors anyway.
        share = self._hosts.num_processors(processes) // processes
        environment["OMP_NUM_THREADS"] = str(max(1, share))
        if not self._on_gpu:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        if self._hosts.rank is None and num_hosts > 1:
            environment |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
        return environment


def free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _run_together(starts: Sequence[list[str]], folder: Path, environment: dict[str, str]) -> None:
    """Run launchers side by side; when one fails, or time is up, the others are ended."""
    logs = [folder / f"log{number}.txt" for number in range(len(starts))]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for start, log in zip(starts, logs, strict=True):
            with log.open("wb") as file:
                running.append(subprocess.Popen(start, stdout=file, stderr=file, env=environment))
        stop = time.monotonic() + _SECONDS
        while any(it.poll() is None for it in running) and not any(it.poll() for it in running):
            if time.monotonic() > stop:
                raise UserError(f"processes that were started were not done after {_SECONDS} s")
            time.sleep(_POLL_SECONDS)
        for process, log in zip(running, logs, strict=True):
            if process.poll():
                raise UserError(f"a process that was started failed: {reason(log.read_text(errors='replace'))}")
    finally:
        # First politely: a launcher that is killed leaves its processes behind.
        for process in running:
            process.terminate()  # nothing happens where it has ended
        for process in running:
            try:
                process.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def reason(log: str) -> str:
    """The line of a launcher's output that says what went wrong."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    named = [line.split("fastemo: error: ")[1] for line in lines if "fastemo: error: " in line]
    raised = [line for line in lines if line.split(":")[0].endswith(("Error", "Exception"))]
    return (named or raised or lines[-1:] or ["it said nothing"])[0]
