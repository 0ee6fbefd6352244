"""What tests have worker processes do: a file's name says what befalls the process that examines it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from fastemo.corpus.files import isolation

_names_seen: list[str] = []


def examine(request: dict[str, Any]) -> dict[str, Any]:
    """As `isolation.examine`, with accidents: `signal11.mp4`, `exit3.mp4`, `stall.mp4`, `swell.mp4`, `print.mp4`.

    `fragile.mp4` kills its process if that has examined another file before.
    """
    path = Path(os.fsdecode(request["path"].encode("latin-1")))
    name = path.stem
    if name.startswith("signal"):
        os.kill(os.getpid(), int(name.removeprefix("signal")))
    elif name.startswith("exit"):
        os._exit(int(name.removeprefix("exit")))
    elif name.startswith("stall"):
        path.with_suffix(".pid").write_text(str(os.getpid()))
        time.sleep(600)
    elif name == "swell":
        return {"bad": f"swelled to {len(bytearray(1 << 30))}"}
    elif name == "print":
        print("words\n" * 1000, flush=True)
        os.write(2, b"more words\n")
    elif name == "fragile" and _names_seen:
        os.abort()
    _names_seen.append(name)
    return isolation.examine(request)


def modules(request: dict[str, Any]) -> dict[str, Any]:
    return {"modules": sorted(sys.modules)}
