"""What a run chooses about its corpus."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fastemo.corpus.manifest import LABELS, Labels
from fastemo.corpus.probe import Verify
from fastemo.corpus.protocol import PROTOCOLS, Protocol
from fastemo.corpus.synthetic.synthesis import SyntheticConfig

OnError = Literal["stop", "drop"]


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Which clips are trained on and tested.

    Attributes:
        root: Folder of the corpus; `None` makes and uses the built-in one.
        labels: Where classes come from: `ravdess` or `cremad` file names, or the `folder` a file lies in.
        protocol: Who is trained on and who tested, see `fastemo.corpus.protocol`; `None`: `speech` where
            files have RAVDESS names, `cremad` with labels of that name, `folders` otherwise.
        fold: The fold that `kfold5` or `loso` tests on.
        verify: How far a scan decodes each file: its first frame (`quick`) or all (`full`).
        max_rejected: Files that may be rejected before training refuses to start.
        on_error: What happens on a clip that does not decode while training: the run ends (`stop`), or goes on without
            the clip and lists it in `dropped.csv` (`drop`).
        max_dropped: Clips that may be dropped before the run ends all the same.
        synthetic: The built-in corpus.
    """

    root: Path | None = None
    labels: Labels = "ravdess"
    protocol: Protocol | None = None
    fold: int = 0
    verify: Verify = "quick"
    max_rejected: int = 0
    on_error: OnError = "stop"
    max_dropped: int = 10
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    def __post_init__(self) -> None:
        if self.labels not in LABELS:
            raise ValueError(f"corpus.labels must be one of {', '.join(LABELS)}, not '{self.labels}'")
        if self.verify not in ("quick", "full"):
            raise ValueError(f"corpus.verify must be quick or full, not '{self.verify}'")
        if self.protocol is not None and self.protocol not in PROTOCOLS:
            raise ValueError(f"corpus.protocol must be one of {', '.join(PROTOCOLS)}, not '{self.protocol}'")
        if self.fold < 0:
            raise ValueError(f"corpus.fold must be at least 0, not {self.fold}")
        if self.on_error not in ("stop", "drop"):
            raise ValueError(f"corpus.on_error must be stop or drop, not '{self.on_error}'")
        for name in ("max_rejected", "max_dropped"):
            if getattr(self, name) < 0:
                raise ValueError(f"corpus.{name} must be at least 0, not {getattr(self, name)}")
