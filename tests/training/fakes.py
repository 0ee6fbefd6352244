"""Random batches, and a loader of them that needs no videos."""

from __future__ import annotations

import torch

from fastemo.video.loader import ClipBatch


def clip_batch(frames, labels, keys, is_padding=None):
    """A batch of one process, by default without padding."""
    padding = [False] * len(keys) if is_padding is None else is_padding
    return ClipBatch(frames, torch.as_tensor(labels), keys, torch.tensor(padding), num_global=padding.count(False))


def random_batches(sizes, *, pixels=10, num_classes=4, padding=0, prefix=""):
    """One batch of each size, of two frames per clip; the last `padding` clips of each are padding."""
    generator = torch.Generator().manual_seed(1)
    batches, number = [], 0
    for size in sizes:
        is_padding = [i >= size - padding for i in range(size)]
        frames = torch.randint(0, 256, (size, 2, 3, pixels, pixels), generator=generator, dtype=torch.uint8)
        labels = torch.randint(0, num_classes, (size,), generator=generator)
        batches.append(clip_batch(frames, labels, [f"{prefix}{number + i}.mp4" for i in range(size)], is_padding))
        number += size
    return batches


class FakeLoader:
    """The same random batches in every epoch, with `ClipLoader`'s interface."""

    def __init__(self, sizes, **options):
        self.batches = random_batches(sizes, **options)
        self.dropped, self._handed_out = {}, 0

    @property
    def clips(self):
        return [key for batch in self.batches for key in batch.keys]

    @property
    def clips_per_epoch(self):
        return len(self.clips)

    def state_dict(self):
        return {"clips": self._handed_out}

    def __len__(self):
        return len(self.batches)

    def epoch(self, epoch=0):
        self._handed_out = 0
        for batch in self.batches:
            self._handed_out += len(batch.keys)
            yield batch
