"""One step's clips -> one tensor on the device: cached clips are read, the rest decoded, each on its own thread."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

import numpy as np
import torch

from fastemo.errors import DecodeError
from fastemo.video.backends import Decoder
from fastemo.video.bitstream.source import Source
from fastemo.video.tiers import CachedClips
from fastemo.video.transfer import Transfer, send


def _is_the_clips(error: Exception) -> bool:
    """Whether an error means that a clip does not decode, and not that this process is out of file handles."""
    cause: BaseException | None = error
    while cause is not None:
        if getattr(cause, "errno", None) in (errno.EMFILE, errno.ENFILE):
            return False
        cause = cause.__cause__
    return isinstance(error, DecodeError)


class Assembly:
    """One step's frames on their way to the device.

    Args:
        rows: Each clip's row in the cache and in the decoder's list.
        pool: The threads that read and decode.
        transfer: Fills the device while another batch is computed on.
        drops: Leave out clips that do not decode.

    Attributes:
        dropped: Position in the batch -> why the clip did not decode; complete once `frames` has returned.
        kept: Done once the decoded clips are cached; no batch waits for it.
    """

    def __init__(
        self,
        rows: list[int],
        decoder: Decoder,
        kept: CachedClips,
        pool: ThreadPoolExecutor,
        transfer: Transfer,
        *,
        drops: bool = False,
    ) -> None:
        self.dropped: dict[int, str] = {}
        self._drops = drops
        self._decoder, self._kept, self._pool, self._transfer = decoder, kept, pool, transfer
        self._rows = rows
        self._errors: dict[int, Exception] = {}
        self._sources: dict[int, Source] = {}
        self._strays: dict[int, np.ndarray] = {}
        self._fresh: list[tuple[int, np.ndarray]] = []
        self._buffers: list[torch.Tensor] = []
        self._lock = Lock()
        self._done: Future[torch.Tensor] = Future()
        self.kept: Future[None] = Future()

    def start(self) -> bool:
        """Start without waiting. Returns whether any clip has to be decoded."""
        stored: list[int] = []
        missing: list[int] = []
        self._resident: list[int] = []
        for slot, row in enumerate(self._rows):
            if self._kept.on_device(row):
                self._resident.append(slot)
            else:
                (stored if self._kept.has(row) else missing).append(slot)
        self._by_dali = [slot for slot in missing if self._decoder.by_dali(self._rows[slot])]
        self._by_host = [slot for slot in range(len(self._rows)) if slot not in {*self._resident, *self._by_dali}]
        self._host = self._buffer()[: len(self._by_host)] if self._by_host else torch.empty(0)
        self._host_slot = dict(zip(self._by_host, self._host.numpy(), strict=True))
        # Reading takes a hundredth of decoding: all cached clips are one job, each other clip is one.
        jobs: list[tuple[Callable[[int], None], list[int]]] = [(self._read, stored)] if stored else []
        for slot in missing:
            jobs.append((self._prune if slot in self._by_dali else self._decode, [slot]))
        self._num_left = len(jobs)
        for work, slots in jobs:
            self._pool.submit(self._run, work, slots)
        if not jobs:
            self._finish()
        return bool(missing)

    def frames(self) -> torch.Tensor:
        """Wait for uint8 [B, T, 3, h, w] on the device. Dropped clips have the frames of `stand_in`, or zeros.

        Raises:
            DecodeError: A clip does not decode, and `drops` is off.
        """
        frames = self._done.result()
        self._transfer.hand_over(frames, self._filled)
        return frames

    @property
    def stand_in(self) -> int | None:
        """Position in the batch of the clip that replaces the dropped ones; `None` if no clip decoded."""
        return next((slot for slot in range(len(self._rows)) if slot not in self.dropped), None)

    def _run(self, work: Callable[[int], None], slots: list[int]) -> None:
        for slot in slots:
            try:
                work(slot)
            except Exception as error:
                self._errors[slot] = error
        with self._lock:
            self._num_left -= 1
            is_last = self._num_left == 0
        if is_last:
            self._finish()

    def _read(self, slot: int) -> None:
        if not self._kept.read(self._rows[slot], self._host_slot[slot]):
            self._decode(slot)

    def _decode(self, slot: int) -> None:
        frames = self._host_slot[slot]
        frames[:] = self._decoder.decode(self._rows[slot])
        self._keep(slot, frames)

    def _prune(self, slot: int) -> None:
        source = self._decoder.prune(self._rows[slot])
        if source is not None:
            self._sources[slot] = source
            return
        frames = np.ascontiguousarray(self._decoder.decode(self._rows[slot]))
        self._keep(slot, frames)
        self._strays[slot] = frames

    def _finish(self) -> None:
        try:
            self._drop(self._errors)
            self._errors.clear()
            with self._transfer.active():
                frames = self._put_together()
                self._filled = self._transfer.mark()
            self._done.set_result(frames)
        except Exception as error:
            self._done.set_exception(error)
            self.kept.set_result(None)
            return
        try:
            if self._fresh and self._kept.wants_bytes:
                self._transfer.wait(self._filled)
                for row, clip_frames in self._fresh:
                    self._kept.keep(row, clip_frames)
            for buffer in self._buffers:
                self._transfer.release(buffer, self._filled)
            self.kept.set_result(None)
        except Exception as error:
            self.kept.set_exception(error)

    def _keep(self, slot: int, frames: np.ndarray) -> None:
        """Cache a decoded clip, after its batch is handed over; before, if both share memory."""
        if self._transfer.copies:
            self._fresh.append((self._rows[slot], frames))
        else:
            self._kept.keep(self._rows[slot], frames)

    def _drop(self, errors: Mapping[int, Exception]) -> None:
        """Record the clips that did not decode, or raise the first error that must not be dropped."""
        for slot in sorted(errors):
            if not self._drops or not _is_the_clips(errors[slot]):
                raise errors[slot]
            # Only the text: the traceback would keep this batch alive.
            self.dropped[slot] = str(errors[slot])

    def _put_together(self) -> torch.Tensor:
        """Assemble the batch from its parts, in batch order."""
        parts, num_clips = self._parts(), len(self._rows)
        if len(parts) == 1 and parts[0][0] == [*range(num_clips)]:
            return parts[0][1]
        width, height = self._decoder.frame_size
        shape = (num_clips, self._decoder.spec.num_frames, 3, height, width)
        make = torch.zeros if self.dropped else torch.empty
        batch = make(shape, dtype=torch.uint8, device=self._decoder.device)
        for slots, frames in parts:
            batch.index_copy_(0, self._index(slots), frames)
        if self.dropped and self.stand_in is not None:
            frames = batch[self.stand_in].expand(len(self.dropped), *shape[1:])
            batch.index_copy_(0, self._index([*self.dropped]), frames.clone())
        return batch

    def _parts(self) -> list[tuple[list[int], torch.Tensor]]:
        """The parts: from host memory, from DALI, from device memory."""
        parts: list[tuple[list[int], torch.Tensor]] = []
        whole = [slot for slot in self._by_host if slot not in self.dropped]
        if whole:
            frames = self._transfer.upload(self._host)
            if len(whole) < len(self._by_host):  # selected on the device: a copy on the host would not be pinned
                places = [place for place, slot in enumerate(self._by_host) if slot not in self.dropped]
                frames = frames[self._index(places)]
            parts.append((whole, frames))
        if self._strays:
            frames = torch.from_numpy(np.stack([*self._strays.values()]))
            parts.append(([*self._strays], frames.to(self._decoder.device)))
        if self._sources:
            parts.append(self._decoded_on_device())
        for slots, frames in parts:
            self._kept.keep_on_device([self._rows[slot] for slot in slots], frames)
        if self._resident:
            rows = self._index([self._rows[slot] for slot in self._resident])
            parts.append((self._resident, self._kept.from_device(rows)))
        return parts

    def _decoded_on_device(self) -> tuple[list[int], torch.Tensor]:
        slots = sorted(self._sources)
        frames, errors = self._decoder.decode_on_device([self._sources.pop(slot) for slot in slots])
        self._drop({slots[place]: error for place, error in errors.items()})
        if errors:
            slots = [slot for slot in slots if slot not in self.dropped]
            frames = frames[self._index([place for place in range(len(frames)) if place not in errors])]
        if self._kept.wants_bytes:
            host = self._transfer.download(frames, self._buffer()[: len(slots)])
            for place, slot in enumerate(slots):
                self._keep(slot, host[place].numpy())
        return slots, frames

    def _buffer(self) -> torch.Tensor:
        """Host memory for the batch, released when all clips are cached."""
        width, height = self._decoder.frame_size
        buffer = self._transfer.buffer(len(self._rows), self._decoder.spec.num_frames, 3, height, width)
        self._buffers.append(buffer)
        return buffer

    def _index(self, numbers: list[int]) -> torch.Tensor:
        return send(torch.tensor(numbers, dtype=torch.int64), self._decoder.device)
