"""Starts the processes of a scaling run on their hosts, with their environment, and ends them together."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.common.measure import REPOSITORY
from benchmarks.common.scaling.worker import Job
from fastemo.errors import UserError
from fastemo.machine import available_processors

_WORKER = (sys.executable, "-m", "benchmarks.common.scaling.worker")
_SECONDS = 1800  # far longer than any launch: one that hangs has failed
_POLL_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """The hosts of the processes.

    Attributes:
        addresses: One per host; process 0 on the first is the rendezvous.
        rank: Index of this host; `None`: all of them are this machine, at loopback addresses.
        port: Of the first launch, each launch adds one; `None`: any free one, if all hosts are this machine.
    """

    addresses: tuple[str, ...] = ("127.0.0.1",)
    rank: int | None = None
    port: int | None = None

    def used(self, processes: int) -> tuple[str, ...]:
        """All hosts if the processes can be shared equally; otherwise only the first."""
        return self.addresses if processes % len(self.addresses) == 0 else self.addresses[:1]

    def processors(self, host: int) -> tuple[int, ...] | None:
        """The share of this machine's processors that simulates a host; `None`: the hosts are real."""
        if self.rank is not None or len(self.addresses) == 1:
            return None
        mine = sorted(os.sched_getaffinity(0))
        share = max(1, len(mine) // len(self.addresses))
        return tuple(mine[host * share % len(mine) :][:share])

    def num_processors(self, processes: int) -> int:
        """Number of processors for a run with this number of processes."""
        shares = [self.processors(host) for host in range(len(self.used(processes)))]
        return len({it for share in shares if share for it in share}) or available_processors() * len(shares)


def parse_hosts(text: str | None, rank: int | None, port: int | None) -> Hosts:
    """Parse `--hosts`, `--host_rank` and `--port`.

    Raises:
        ValueError: They contradict each other; the message says how.
    """
    if text is None:
        if rank is not None or port is not None:
            raise ValueError("--host_rank and --port need --hosts")
        return Hosts()
    addresses = tuple(it.strip() for it in text.split(","))
    if len(addresses) < 2 or len(set(addresses)) < len(addresses) or not all(addresses):
        raise ValueError(f"--hosts must be two or more different comma-separated addresses, not '{text}'")
    if all(it.startswith("127.") for it in addresses):
        if rank is not None:
            raise ValueError("--host_rank is for real hosts; with loopback addresses all processes are started here")
        return Hosts(addresses=addresses, port=port)
    rank = int(os.environ.get("SLURM_NODEID") or -1) if rank is None else rank
    if not 0 <= rank < len(addresses):
        raise ValueError(f"--host_rank must be this host's index in --hosts, 0 to {len(addresses) - 1}; run it on each")
    return Hosts(addresses=addresses, rank=rank, port=29500 if port is None else port)


class Launches:
    """Starts jobs one after the other; every host starts the same jobs in the same order."""

    def __init__(self, hosts: Hosts, *, on_gpu: bool) -> None:
        self._hosts, self._on_gpu, self._count = hosts, on_gpu, 0

    def run(self, job: Job, processes: int) -> dict[str, Any] | None:
        """Run a job and return the first process's results; `None` if this host does not run that process.

        A process gets its rank and the rendezvous from the environment variables that torch and Accelerate read. It
        joins the others over NCCL on the GPU of its local rank, or over gloo on a CPU; a single process joins no group.

        Raises:
            UserError: A process failed or did not end.
        """
        hosts, used = self._hosts, self._hosts.used(processes)
        with socket.create_server(("", 0)) as probe:
            port = probe.getsockname()[1] if hosts.port is None else hosts.port + self._count
        self._count += 1
        a_host, starts = processes // len(used), []
        for rank in range(processes):
            host, local_rank = divmod(rank, a_host)
            variables = {"OMP_NUM_THREADS": max(1, hosts.num_processors(processes) // processes)}
            if processes > 1:
                variables |= {"MASTER_ADDR": used[0], "MASTER_PORT": port, "WORLD_SIZE": processes, "RANK": rank}
                variables |= {"LOCAL_WORLD_SIZE": a_host, "LOCAL_RANK": local_rank}
            if not self._on_gpu:
                variables["CUDA_VISIBLE_DEVICES"] = ""
            if hosts.rank is None and len(used) > 1:
                variables["GLOO_SOCKET_IFNAME"] = "lo"
            if hosts.rank in (None, host):
                own = replace(job, processors=hosts.processors(host))
                starts.append(([*_WORKER, json.dumps(asdict(own))], variables))
        found = Path(job.folder, "found.json")
        found.unlink(missing_ok=True)
        run_together(starts, Path(job.folder, "log.txt"))
        return json.loads(found.read_text()) if found.exists() else None


def run_together(starts: Sequence[tuple[Sequence[str], Mapping[str, object]]], log: Path) -> None:
    """Run commands in parallel, each with additional environment variables, with their output in one file.

    If one fails, time is up or this is interrupted, the others are killed.

    Raises:
        UserError: One failed, or they did not end in time.
    """
    running: list[subprocess.Popen[bytes]] = []
    stop = time.monotonic() + _SECONDS
    try:
        with log.open("wb") as file:
            for command, variables in starts:
                environment = os.environ | {name: str(value) for name, value in variables.items()}
                running.append(subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=REPOSITORY))
        while None in (codes := [it.poll() for it in running]) and not any(codes):
            if time.monotonic() > stop:
                raise UserError(f"the processes did not end within {_SECONDS} s")
            time.sleep(_POLL_SECONDS)
    finally:
        for process in running:
            process.kill()  # no effect if it has ended
            process.wait()
    if any(codes):
        # A process ended by a signal has a negative status; the others fail after it.
        status = min(code for code in codes if code)
        raise UserError(f"a process failed with status {status}: {reason(log.read_text(errors='replace'))}")


def reason(log: str) -> str:
    """The line of the output that says what went wrong."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    named = [line.split("fastemo: error: ")[1] for line in lines if "fastemo: error: " in line]
    raised = [line for line in lines if line.split(":")[0].endswith(("Error", "Exception"))]
    return (named or raised or lines[-1:] or ["no output"])[0]
