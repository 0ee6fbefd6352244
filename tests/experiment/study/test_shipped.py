"""Every shipped study file: each of its rows trains and is tested, in small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from helpers import REPOSITORY, empty_figures

from fastemo.config import RunConfig, config_leaves, read_config
from fastemo.corpus.config import SyntheticConfig
from fastemo.experiment.run import run
from fastemo.experiment.study.content import flat
from fastemo.experiment.study.grid import read_study
from fastemo.yaml_files import load_yaml


def small(config: RunConfig, name: str, folder: Path) -> RunConfig:
    """The same choices on two small frames, one epoch, weights that nobody has to fetch."""
    return replace(
        config,
        name=name,
        runs_dir=folder,
        # The corpus of the tests has one file a take.
        corpus=replace(
            config.corpus,
            protocol="speech" if config.corpus.protocol == "report" else config.corpus.protocol,
            synthetic=SyntheticConfig(),  # not used: the root is given
        ),
        video=replace(config.video, num_frames=2, size=36),
        augment=replace(config.augment, crop_size=32),
        # tests/experiment/study/test_runner.py starts runs from others.
        model=replace(config.model, num_frames=None, size=None, pretrained=False, weights=None, rnn_norm=True),
        train=replace(config.train, epochs=1, batch_size=16, warmup_epochs=min(config.train.warmup_epochs, 0.5)),
    )


def test_the_recipe_files_are_what_their_study_claims():
    """The last part compares them, over as many epochs, on corpora other than those of the selection."""
    study = read_study(REPOSITORY / "configs" / "study" / "recipes.yaml")
    leaves = {cell.name: dict(config_leaves(cell.config)) for cell in study.cells}
    *selection, claim = ([[leaves[name] for name in row.cells] for row in part.rows] for part in study.parts)
    paths = [REPOSITORY / "configs" / "recipes" / f"{name}.yaml" for name in ("roy2025", "strong")]
    recipe = flat(load_yaml(paths[1]), "strong").keys() - {"train.early_stop_patience"}
    for path, runs in zip(paths, claim, strict=True):
        file = dict(config_leaves(read_config(["--config", str(path)])))
        assert all(run[key] == file[key] for run in runs for key in recipe)
    for roy2025, strong in zip(*claim, strict=True):
        assert {key for key in roy2025 if roy2025[key] != strong[key]} <= recipe
    chosen_on = {run["corpus.synthetic.seed"] for part in selection for runs in part for run in runs}
    assert chosen_on.isdisjoint(run["corpus.synthetic.seed"] for runs in claim for run in runs)


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
