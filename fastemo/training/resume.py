"""Saving and restoring the state of optimisers and generators; joining processes again after a restart."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist

# How an update is computed, which this run chooses; the rest of a group is restored.
_KERNEL_OPTIONS = ("fused", "foreach", "capturable", "differentiable")


def generators(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of all random generators used in training: uint8 tensors."""
    found = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def set_generators(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restore what `generators` returned; a device that was not there before keeps its own state."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restore a saved state dict, whatever device and memory layout the weights have now.

    Raises:
        KeyError, ValueError, TypeError: It belongs to another model.
    """
    options = [{name: group[name] for name in _KERNEL_OPTIONS if name in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, kept in zip(optimizer.param_groups, options, strict=True):
        group.update(kept)
        for parameter in group["params"]:
            held = optimizer.state.get(parameter, {})
            for name, value in held.items():
                if not isinstance(value, torch.Tensor):
                    continue
                if value.dim() == 0:  # the count of updates, which a fused kernel needs on the weights' device
                    held[name] = value.to(parameter.device if kept.get("fused") else "cpu")
                    continue
                if value.shape != parameter.shape:
                    raise ValueError(f"{name} is {list(value.shape)} but its weight is {list(parameter.shape)}")
                # A fused kernel iterates over weight and state together: both need the same memory layout.
                held[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)


def restore_rank(ranks: list[dict[str, Any]], rank: int, world_size: int, totals: torch.Tensor) -> torch.Tensor:
    """Restore a rank's generators and its sums of an unfinished epoch; return `totals`, filled."""
    if len(ranks) == world_size:
        set_generators(ranks[rank]["generators"], totals.device)
        return totals.copy_(ranks[rank]["totals"])
    # Another number of processes: the first gets the sums, and dropout draws new numbers.
    if rank == 0:
        totals.copy_(torch.stack([it["totals"] for it in ranks]).sum(0))
    return totals


def join_after_restart() -> None:
    """Join processes that torchrun restarted, ignoring what their predecessors left in its store.

    All attempts share one store, where a process that asks too early finds the address of a dead one.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or dist.is_initialized():
        return
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.PrefixStore(f"attempt {attempt}", dist.TCPStore(host, port, world_size, is_master=False))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
