"""Processors shared by the model and the threads that decode."""

from threading import Event

import pytest
import torch
from helpers import wait_until

from fastemo.inference.network import model_threads
from fastemo.inference.parts import decode_pool


@pytest.mark.parametrize(("num_busy", "left"), [(0, 4), (1, 3), (3, 1), (4, 1), (9, 1)])
def test_the_model_takes_what_is_free_and_gives_it_back(num_busy, left):
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with model_threads(num_busy):
            assert torch.get_num_threads() == left
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_a_pool_counts_the_threads_that_work():
    go = [Event() for _ in range(3)]
    with decode_pool(2) as pool:
        assert pool.num_busy() == 0
        futures = [pool.submit(it.wait, timeout=60) for it in go]
        assert pool.num_busy() == 2
        for number, left in enumerate((2, 1, 0)):
            go[number].set()
            assert futures[number].result()
            assert pool.num_busy() == left


def test_what_has_not_begun_is_cancelled():
    started, go = Event(), Event()
    with decode_pool(1) as pool:
        first = pool.submit(lambda: started.set() or go.wait(60))
        second = pool.submit(go.wait, 60)
        wait_until(started.is_set)
        assert not second.done()
        pool.shutdown(wait=False, cancel_futures=True)
        go.set()
    assert first.result()
    assert second.cancelled()
