"""Every shipped study file: each of its rows trains and is tested, in small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from helpers import REPOSITORY, empty_figures

from fastemo.config import RunConfig
from fastemo.experiment.run import run
from fastemo.experiment.study.grid import read_study


def small(config: RunConfig, name: str, folder: Path) -> RunConfig:
    """The same choices on two small frames, one epoch, weights that nobody has to fetch."""
    return replace(
        config,
        name=name,
        runs_dir=folder,
        # The corpus of the tests has one file a take.
        corpus=replace(
            config.corpus, protocol="speech" if config.corpus.protocol == "report" else config.corpus.protocol
        ),
        video=replace(config.video, num_frames=2, size=36),
        augment=replace(config.augment, crop_size=32),
        model=replace(config.model, num_frames=None, size=None, pretrained=False, rnn_norm=True),
        train=replace(config.train, epochs=1, batch_size=16),
    )


@pytest.mark.slow
@empty_figures()
def test_every_row_trains(few_clips, tmp_path):
    """Rows that differ in frames, pixels or epochs alone are one and the same in small, in one study or in several."""
    different = {}
    for path in sorted((REPOSITORY / "configs" / "study").glob("*.yaml")):
        study = read_study(path, ["--corpus.root", str(few_clips)])
        by_name = {cell.name: cell for cell in study.cells}
        for cell in (by_name[row.cells[0]] for part in study.parts for row in part.rows):
            different[repr(replace(small(cell.config, "x", tmp_path), seed=0))] = (f"{path.stem}-{cell.name}", cell)
    assert len(different) >= 15
    for name, cell in different.values():
        folder = run(small(cell.config, name, tmp_path))
        assert (folder / "test.json").is_file()
        assert (folder / "examples.json").is_file()
