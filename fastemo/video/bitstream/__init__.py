"""Packets of a file and wanted frames -> the fewest packets that decode to exactly those frames."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """`bitstream.prune` and `bitstream.PrunedClip`, imported when they are first used."""
    if name not in ("PrunedClip", "prune"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fastemo.video.bitstream import pruning

    return getattr(pruning, name)
