"""A training's state: of optimisers and generators, saved and restored, and nested values as named tensors."""

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


def flatten(value: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Separate tensors from dicts, lists and tuples.

    Returns:
        A JSON value in which each container has its kind and each tensor its name; and the tensors by name.

    Raises:
        TypeError: Something that is neither a tensor, a container nor a plain value.
    """
    tensors: dict[str, torch.Tensor] = {}

    def walk(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            name = str(len(tensors))
            tensors[name] = item
            return {"tensor": name}
        if isinstance(item, dict):  # keys are not always text: an optimiser numbers its parameters
            return {"dict": [[key, walk(it)] for key, it in item.items()]}
        if isinstance(item, list | tuple):
            return {type(item).__name__: [walk(it) for it in item]}
        if item is None or isinstance(item, str | int | float):
            return item
        raise TypeError(f"{type(item).__name__} cannot be saved")

    return walk(value), tensors


def unflatten(plain: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The value that `flatten` was given.

    Raises:
        ValueError: It is not what `flatten` returned.
    """
    if not isinstance(plain, dict):
        if isinstance(plain, list):
            raise ValueError("a list without its kind")
        return plain
    if len(plain) != 1:
        raise ValueError(f"{len(plain)} keys instead of one")
    ((kind, held),) = plain.items()
    if kind == "tensor":
        if not isinstance(held, str) or held not in tensors:
            raise ValueError(f"tensor {held} is missing")
        return tensors[held]
    if kind not in ("dict", "list", "tuple") or not isinstance(held, list):
        raise ValueError(f"unknown kind {kind}")
    if kind == "dict":
        if not all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str | int) for pair in held):
            raise ValueError("a dict that is not a list of pairs")
        return {key: unflatten(item, tensors) for key, item in held}
    items = [unflatten(item, tensors) for item in held]
    return items if kind == "list" else tuple(items)
