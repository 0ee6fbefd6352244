"""Clips of several splits that have the same bytes."""

from __future__ import annotations

import hashlib
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path

from fastemo.corpus.clip import Clip, Root
from fastemo.corpus.config import SPLITS
from fastemo.corpus.files.probe import image_files
from fastemo.corpus.splits import Splits

_NAMES = {"train": "training", "val": "validation", "test": "test"}


def with_identical(splits: Splits, root: Root) -> Splits:
    """Note how many clips of a split are byte-identical to clips of an earlier one, and count those of the test.

    Only clips of a size that occurs in several splits are read, each file once. Segments are identical if the same
    frames of identical files are meant. A file that cannot be read is left out here; the loader reports it.
    """
    extents = Counter(extent for name in SPLITS for extent in {_extent(clip) for clip in splits[name]})
    content = cache(_content)

    def identities(name: str) -> dict[str, tuple[tuple[int, ...], bytes]]:
        found = {}
        for clip in splits[name]:
            if extents[_extent(clip)] > 1:
                with suppress(OSError):
                    found[clip.key] = (_extent(clip), content(clip.file(root)))
        return found

    of_split, notes, number = {name: identities(name) for name in SPLITS}, list(splits.notes), 0
    for earlier, later in combinations(SPLITS, 2):
        key_of = {identity: key for key, identity in reversed(of_split[earlier].items())}
        same = [(key, key_of[identity]) for key, identity in of_split[later].items() if identity in key_of]
        if same:
            notes.append(
                f"{len(same)} of {len(splits[later])} {_NAMES[later]} clips are byte-identical to {_NAMES[earlier]} "
                f"clips, such as {same[0][0]} and {same[0][1]}"
            )
        if (earlier, later) == ("train", "test"):
            number = len(same)
    return replace(splits, notes=tuple(notes), identical_to_training=number)


def _extent(clip: Clip) -> tuple[int, ...]:
    """Equal for clips with the same bytes and frames; needs no reading."""
    return clip.size_bytes, clip.first_frame, clip.num_frames


def _content(path: Path) -> bytes:
    """The digest of a file, or those of a folder's images."""
    digests = []
    for file in image_files(path):
        digest = hashlib.blake2b(digest_size=16)
        with file.open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
        digests.append(digest.digest())
    return b"".join(digests)
