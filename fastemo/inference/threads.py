"""Processors shared by the model and by the threads that decode for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch

from fastemo.machine import lower_thread_priority

P = ParamSpec("P")
T = TypeVar("T")


class DecodePool(ThreadPoolExecutor):
    """Threads of a lower priority than the model's."""

    def __init__(self, num_threads: int) -> None:
        super().__init__(num_threads, thread_name_prefix="decode", initializer=lower_thread_priority)
        self._num_threads = num_threads
        self._unfinished: list[Future[Any]] = []

    def submit(self, work: Callable[P, T], /, *arguments: P.args, **options: P.kwargs) -> Future[T]:
        future = super().submit(work, *arguments, **options)
        self._unfinished.append(future)
        return future

    def num_busy(self) -> int:
        """Threads that decode now."""
        self._unfinished = [it for it in self._unfinished if not it.done()]
        return min(self._num_threads, len(self._unfinished))


@contextmanager
def decode_pool(num_threads: int) -> Iterator[DecodePool]:
    """A pool; what its threads have not begun is cancelled at the end."""
    pool = DecodePool(num_threads)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def model_threads(num_busy: int) -> Iterator[None]:
    """Let a model on the CPU compute on the processors that are free, at least on one.

    After each of its operations torch's threads wait for each other: one that shares a processor delays all.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before - num_busy))
    try:
        yield
    finally:
        torch.set_num_threads(before)
