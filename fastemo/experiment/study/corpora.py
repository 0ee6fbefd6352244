"""The corpora of a study's runs: each scanned once, whatever the protocols and folds."""

from __future__ import annotations

from dataclasses import replace

from fastemo.console import Console
from fastemo.corpus.config import CorpusConfig
from fastemo.corpus.manifest import Manifest
from fastemo.corpus.prepare import prepare_corpus
from fastemo.corpus.protocol import split_corpus
from fastemo.corpus.splits import Splits


class Corpora:
    """The splits of every configuration that it was asked for."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._manifests: dict[str, Manifest] = {}
        self._splits: dict[str, Splits] = {}

    def splits(self, config: CorpusConfig) -> Splits:
        """Prepare and split a corpus, or return what was found before.

        Raises:
            ValueError: It is not usable.
        """
        key, files = repr(config), repr(replace(config, protocol=None, fold=0))
        if files not in self._manifests:
            self._manifests[files] = prepare_corpus(config, self._console)
        if key not in self._splits:
            self._splits[key] = split_corpus(self._manifests[files], config)
        return self._splits[key]
