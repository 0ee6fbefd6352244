"""Which frames, in which order, on which rank."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastemo.video.config import VideoConfig
from fastemo.video.sampling import (
    epoch_order,
    frame_indices,
    keyed_seed,
    oversampled,
    rank_steps,
    segment_frames,
)


@given(st.integers(1, 10_000), st.integers(2, 300))
def test_indices_are_the_floor_of_the_reports_formula(num_frames, num_samples):
    indices = frame_indices(num_frames, num_samples)
    exact = [int(Fraction(k * (num_frames - 1), num_samples - 1)) for k in range(num_samples)]
    assert indices.tolist() == exact
    assert indices.dtype == np.int64
    assert (indices[0], indices[-1]) == (0, num_frames - 1)


def test_known_indices():
    assert frame_indices(98, 10).tolist() == [0, 10, 21, 32, 43, 53, 64, 75, 86, 97]
    assert frame_indices(3, 6).tolist() == [0, 0, 0, 1, 1, 2]
    assert frame_indices(1, 4).tolist() == [0, 0, 0, 0]
    assert [int(frame_indices(n, 1)[0]) for n in (1, 2, 3, 98)] == [0, 0, 1, 48]


@pytest.mark.parametrize(("num_frames", "num_samples"), [(0, 10), (-1, 10), (5, 0)])
def test_nothing_to_sample_is_an_error(num_frames, num_samples):
    with pytest.raises(ValueError, match="frames"):
        frame_indices(num_frames, num_samples)


KEYS = [f"Actor_01/{number:03d}.mp4" for number in range(61)]


def test_order_is_a_permutation_that_changes_with_seed_and_epoch():
    orders = {(s, e): tuple(epoch_order(KEYS, seed=s, epoch=e)) for s in (0, 1) for e in (1, 2)}
    assert len(set(orders.values())) == 4
    assert all(sorted(order) == list(range(len(KEYS))) for order in orders.values())
    assert orders[0, 1] == tuple(epoch_order(KEYS, seed=0, epoch=1))


def test_order_is_pinned_across_versions_and_machines():
    assert keyed_seed(0, 1, "a/b.mp4") == 29746719003351495792163577853679753041


def test_order_of_the_others_survives_a_clip_added_or_listed_elsewhere():
    order = [KEYS[i] for i in epoch_order(KEYS, seed=3, epoch=7)]
    fewer = KEYS[:20] + KEYS[21:]
    assert [fewer[i] for i in epoch_order(fewer, seed=3, epoch=7)] == [key for key in order if key != KEYS[20]]
    backwards = KEYS[::-1]
    assert [backwards[i] for i in epoch_order(backwards, seed=3, epoch=7)] == order


shares = st.tuples(st.integers(1, 200), st.integers(1, 17), st.integers(1, 9))


@given(shares)
def test_each_clip_once_over_all_ranks_and_equal_steps(share):
    num_clips, batch_size, world_size = share
    order = epoch_order([str(i) for i in range(num_clips)], seed=0, epoch=1)
    ranks = [rank_steps(order, batch_size=batch_size, rank=r, world_size=world_size) for r in range(world_size)]
    assert len({len(steps) for steps in ranks}) == 1
    real = []
    for step in zip(*ranks, strict=True):
        assert len({len(part.indices) for part in step}) == 1
        shown = [int(i) for part in step for i, pad in zip(part.indices, part.is_padding, strict=True) if not pad]
        assert {part.num_global for part in step} == {len(shown)}
        real += shown
    assert sorted(real) == list(range(num_clips))
    padding = sum(int(part.is_padding.sum()) for steps in ranks for part in steps)
    assert padding == -num_clips % world_size


@given(shares)
def test_the_clips_of_a_step_do_not_depend_on_the_number_of_processes(share):
    num_clips, batch_size, world_size = share
    order = epoch_order([str(i) for i in range(num_clips)], seed=5, epoch=2)
    alone = rank_steps(order, batch_size=batch_size * world_size)
    ranks = [rank_steps(order, batch_size=batch_size, rank=r, world_size=world_size) for r in range(world_size)]
    for one, parts in zip(alone, zip(*ranks, strict=True), strict=True):
        together = [i for part in parts for i, pad in zip(part.indices, part.is_padding, strict=True) if not pad]
        assert sorted(together) == sorted(one.indices)
        assert parts[0].num_global == one.num_global


@given(shares)
def test_evaluation_counts_each_clip_once_without_padding(share):
    num_clips, batch_size, world_size = share
    order = np.arange(num_clips)
    parts = [
        step
        for rank in range(world_size)
        for step in rank_steps(order, batch_size=batch_size, rank=rank, world_size=world_size, even=False)
    ]
    assert sorted(i for part in parts for i in part.indices) == list(range(num_clips))
    assert not any(part.is_padding.any() for part in parts)


def test_bad_shares_are_errors():
    with pytest.raises(ValueError, match="no clips"):
        rank_steps(np.array([], dtype=np.int64), batch_size=1)
    with pytest.raises(ValueError, match="batch_size"):
        rank_steps(np.arange(3), batch_size=0)
    with pytest.raises(ValueError, match="rank 2"):
        rank_steps(np.arange(3), batch_size=1, rank=2, world_size=2)


@given(shares)
def test_partners_follow_in_the_order_of_all_ranks(share):
    """The same pairs for any batch size and number of processes; the last clip's partner is the first."""
    num_clips, batch_size, world_size = share
    order = epoch_order([str(i) for i in range(num_clips)], seed=5, epoch=2)
    following = dict(zip(order.tolist(), np.roll(order, -1).tolist(), strict=True))
    for rank in range(world_size):
        options = {"batch_size": batch_size, "rank": rank, "world_size": world_size}
        plain, mixed = rank_steps(order, **options), rank_steps(order, **options, mixed=True)
        for one, other in zip(plain, mixed, strict=True):
            assert np.array_equal(one.indices, other.indices)
            visits = np.concatenate([other.indices, other.others])
            assert visits[other.partners].tolist() == [following[it] for it in other.indices.tolist()]
            assert not {*other.others.tolist()} & {*other.indices.tolist()}, "each clip is read once"
            assert world_size > 1 or len(other.others) <= 1


def test_oversampling_evens_out_the_classes_and_repeats_each_clip_equally():
    labels = np.array([0] * 10 + [1] * 4 + [3])
    keys = [f"{i}.mp4" for i in range(15)]
    visits = [oversampled(labels, keys, seed=0, epoch=epoch) for epoch in range(30)]
    chosen = set()
    for found in visits:
        assert len(set(found.tolist())) == len(found) == 30
        assert np.bincount(labels[found % 15]).tolist() == [10, 10, 0, 10]
        times = np.bincount(found % 15, minlength=15)
        assert times[:10].tolist() == [1] * 10
        assert sorted(times[10:14]) == [2, 2, 3, 3]
        assert times[14] == 10
        chosen.add(tuple(times[10:14]))
        # The visits of a clip are numbered.
        assert all({*range(times[row])} == {*(found[found % 15 == row] // 15)} for row in range(15))
    assert len(chosen) == 6, "others in other epochs"
    assert np.array_equal(visits[4], oversampled(labels, keys, seed=0, epoch=4))


@given(st.integers(1, 24), st.integers(1, 6), st.integers(1, 400))
def test_evaluation_takes_the_same_frames_from_more_stored_ones(num_samples, step, num_frames):
    num_stored = (num_samples - 1 or 2) * step + 1
    assert VideoConfig(num_frames=num_samples, stored_frames=num_stored).stored_spec.num_frames == num_stored
    stored = frame_indices(num_frames, num_stored)
    assert np.array_equal(stored[segment_frames(num_stored, num_samples)], frame_indices(num_frames, num_samples))


@given(st.integers(1, 24), st.integers(1, 6))
def test_training_draws_from_segments_that_cover_every_stored_frame_once(num_samples, step):
    num_stored = (num_samples - 1 or 2) * step + 1
    draws = np.linspace(0, 1, 64 * num_stored, endpoint=False)
    found = segment_frames(num_stored, num_samples, np.repeat(draws[:, None], num_samples, axis=1))
    assert found.shape == (len(draws), num_samples)
    segments = [sorted({*found[:, k].tolist()}) for k in range(num_samples)]
    assert [it for segment in segments for it in segment] == list(range(num_stored))
    middle = segment_frames(num_stored, num_samples)
    assert all(frame in segment for frame, segment in zip(middle.tolist(), segments, strict=True))
    if step > 1:
        assert len(segments[0]) > 1
    if num_samples > 1 and step == 1:
        assert np.array_equal(found[0], np.arange(num_samples)), "as many as are stored: all of them"
