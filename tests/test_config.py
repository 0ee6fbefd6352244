"""Defaults are the recipe of Roy (2025); YAML and command line override them; every error is a one-line message."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from helpers import below, refusal

from fastemo.config import RunConfig, read_config, write_config
from fastemo.corpus.config import CorpusConfig, Difficulty, SyntheticConfig
from fastemo.models.config import ModelConfig
from fastemo.training.trainer import TrainConfig
from fastemo.video.config import AugmentConfig, FrameSpec, StoreConfig, VideoConfig


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write a YAML file, give its path."""

    def to_file(text: str, name: str = "run.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return to_file


class TestDefaults:
    def test_the_recipe_of_the_report(self) -> None:
        config = read_config([])
        assert config.train == TrainConfig(
            batch_size=8,
            accumulate_steps=1,
            epochs=100,
            lr=1e-4,
            weight_decay=1e-4,
            schedule="plateau",
            plateau_factor=0.5,
            plateau_patience=2,
            early_stop_patience=5,
            clip_norm=5.0,
            precision="auto",
        )
        assert (config.video.num_frames, config.video.size, config.video.crop) == (10, 128, "center")
        assert config.augment == AugmentConfig(
            enabled=True, crop_size=112, flip=0.5, rotation_degrees=20.0, rotation_corners="black", per_frame=False
        )
        assert config.model.dropout == 0.5
        assert config.model.pretrained
        assert config.model.num_frames == 10
        corpus = config.corpus
        assert (corpus.root, corpus.labels, corpus.verify, corpus.max_rejected) == (None, "ravdess", "quick", 0)

    def test_an_empty_command_line_is_the_dataclass(self) -> None:
        assert read_config([]) == RunConfig()


class TestReading:
    def test_yaml_over_defaults_and_command_line_over_yaml(self, write: Callable[..., str]) -> None:
        # `plain` is fp32's name in older files.
        path = write("train: {lr: 0.5, epochs: 3, speed: plain}\nseed: 7")
        config = read_config(["--config", path, "--train.lr", "3e-4"])
        assert (config.train.lr, config.train.epochs, config.seed) == (3e-4, 3, 7)
        assert config.train == replace(TrainConfig(), lr=3e-4, epochs=3, speed="fp32")

    def test_what_comes_later_wins(self, write: Callable[..., str]) -> None:
        one, two = write("seed: 1\ntrain: {epochs: 4}", "one.yaml"), write("seed: 2", "two.yaml")
        config = read_config(["--config", one, "--config", two])
        assert (config.seed, config.train.epochs) == (2, 4)
        assert read_config(["--seed", "9", "--config", one]).seed == 1
        assert read_config(["--seed", "8", "--seed", "9"]).seed == 9

    @pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001", ".001"])
    def test_every_way_to_write_a_rate(self, write: Callable[..., str], text: str) -> None:
        # YAML 1.1 takes `1e-3` for text.
        assert read_config(["--config", write(f"train: {{lr: {text}}}")]).train.lr == 0.001
        assert read_config(["--train.lr", text]).train.lr == 0.001

    def test_deep_keys(self, write: Callable[..., str]) -> None:
        path = write("corpus: {root: /data, synthetic: {actors: 5, difficulty: {noise: 0.25}}}")
        corpus = read_config(["--config", path, "--corpus.synthetic.difficulty.light", "0"]).corpus
        assert corpus.root == Path("/data")
        assert corpus.synthetic == SyntheticConfig(actors=5, difficulty=Difficulty(noise=0.25, light=0))

    def test_null(self, write: Callable[..., str]) -> None:
        assert read_config(["--train.early_stop_patience", "null"]).train.early_stop_patience is None
        config = read_config(["--config", write("train: {early_stop_patience: null}\ncorpus: {root: null}")])
        assert config.train.early_stop_patience is None
        assert config.corpus.root is None

    def test_a_model_that_is_no_default(self) -> None:
        config = read_config(["--model.name", "early_cnn", "--model.dropout", "0.25"])
        assert config.model == ModelConfig(name="early_cnn", dropout=0.25, num_frames=10, size=112)


class TestFramesOfTheModel:
    def test_they_follow_the_video(self) -> None:
        assert read_config(["--video.num_frames", "6"]).model.num_frames == 6
        assert RunConfig(video=VideoConfig(num_frames=7)).model.num_frames == 7

    def test_the_same_number_twice_is_no_conflict(self) -> None:
        assert read_config(["--video.num_frames", "6", "--model.num_frames", "6"]).model.num_frames == 6

    def test_a_conflict(self) -> None:
        message = refusal("--model.num_frames", "6")
        assert message.startswith("model.num_frames is 6 but video.num_frames is 10")

    def test_the_size_follows_the_crop_in_the_same_way(self) -> None:
        assert read_config(["--augment.crop_size", "64"]).model.size == 64
        assert read_config(["--augment.crop_size", "64", "--model.size", "64"]).model.size == 64
        assert refusal("--model.size", "64").startswith("model.size is 64 but augment.crop_size is 112")


class TestRefusing:
    # The start of a key is not the key.
    @pytest.mark.parametrize("key", ["train.lrr", "bogus", "train.l", "corpus.synthetic.difficulty.dust"])
    def test_an_unknown_key(self, write: Callable[..., str], key: str) -> None:
        assert refusal("--config", write(below(key, "3"))) == f"unknown key {key}"
        assert f"--{key}" in refusal(f"--{key}", "3")

    @pytest.mark.parametrize(
        ("key", "value", "kind"),
        [
            ("train.lr", "fast", "float"),
            ("train.epochs", "2.5", "int"),
            ("train.epochs", "True", "int"),
            ("model.pretrained", "3", "bool"),
            ("train.early_stop_patience", "never", "int or null"),
            ("corpus.verify", "names", "'quick', 'full'"),
            (
                "corpus.protocol",
                "mine",
                "'report', 'speech', 'speech+song', 'split_a', 'kfold5', 'kfold6', 'kfold', 'loso', 'cremad', "
                "'folders' or null",
            ),
        ],
    )
    def test_a_wrong_type(self, write: Callable[..., str], key: str, value: str, kind: str) -> None:
        message = f"{key} must be {kind}, not {value}"
        assert refusal("--config", write(below(key, value))) == message
        assert refusal(f"--{key}", value) == message

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("train: {lr: null}", "train.lr must not be null"),
            ("seed: 1\ntrain:\n", "train must be a group of keys, not null"),
            ("train: 3", "train must be a group of keys, not 3"),
            ("corpus: {synthetic: [1]}", "corpus.synthetic must be a group of keys, not [1]"),
            ("corpus: {root: 5}", "corpus.root must be list or Path or null, not 5"),
            ("name: 2024", "name must be str or null, not 2024"),
            ("train: {lr: -1}", "train.lr must be above 0 and finite, not -1.0"),
        ],
    )
    def test_a_value_in_a_wrong_place(self, write: Callable[..., str], text: str, message: str) -> None:
        assert refusal("--config", write(text)) == message

    @pytest.mark.parametrize("text", ["- 1\n- 2", "only words", "", "# a comment alone"])
    def test_yaml_without_keys(self, write: Callable[..., str], text: str) -> None:
        assert refusal("--config", write(text)).startswith("a configuration file holds keys and their values")

    @pytest.mark.parametrize("name", ["a/b", "/tmp", "../up", "..", ".", "", "a/"])
    def test_a_name_that_leaves_the_folder(self, name: str) -> None:
        assert refusal("--name", name) == f"name must be a plain folder name, not '{name}'"

    def test_a_crop_larger_than_the_frame(self) -> None:
        assert "augment.crop_size 112 is larger than video.size 64" in refusal("--video.size", "64")

    @pytest.mark.parametrize("arguments", [["stray"], ["--train.lr"], ["--train.lr=", "3"]])
    def test_a_command_line_that_does_not_parse(self, arguments: list[str]) -> None:
        assert refusal(*arguments)


class TestWriting:
    @pytest.mark.parametrize(
        "config",
        [
            RunConfig(),
            RunConfig(
                name="a run with ü, 'quotes' and: colons",
                seed=2**40,
                corpus=CorpusConfig(root=Path("données/RAVDESS #1"), synthetic=SyntheticConfig(twins=True)),
                video=VideoConfig(num_frames=16, crop="head", decode_threads=3),
                train=TrainConfig(lr=1e-05, epochs=1, early_stop_patience=None),
            ),
            RunConfig(name="true", corpus=CorpusConfig(root=Path("on"))),
            RunConfig(name="1e-3", corpus=CorpusConfig(root=Path("2024"))),
            RunConfig(name="2024-01-01", corpus=CorpusConfig(root=Path("café/ - a: b\\n"))),
        ],
        ids=["defaults", "values of every type", "called true", "called a number", "called a date"],
    )
    def test_round_trip(self, config: RunConfig, tmp_path: Path) -> None:
        path = tmp_path / "new" / "config.yaml"
        write_config(config, path)
        assert read_config(["--config", str(path)]) == config

    def test_it_is_complete(self, tmp_path: Path) -> None:
        """Every key with its value, so that a later change of a default does not change what a run was."""
        write_config(RunConfig(), tmp_path / "config.yaml")
        held = yaml.safe_load((tmp_path / "config.yaml").read_text())

        def shape(instance: object) -> object:
            if not hasattr(instance, "__dataclass_fields__"):
                return None
            return {name: shape(getattr(instance, name)) for name in instance.__dataclass_fields__}

        def outline(value: object) -> object:
            return {name: outline(part) for name, part in value.items()} if isinstance(value, dict) else None

        assert outline(held) == shape(RunConfig())

    def test_a_written_file_takes_command_line_changes(self, tmp_path: Path) -> None:
        write_config(RunConfig(), tmp_path / "config.yaml")
        config = read_config(["--config", str(tmp_path / "config.yaml"), "--train.epochs", "2", "--name", "again"])
        assert config == RunConfig(name="again", train=TrainConfig(epochs=2))


def each(kind: type, prefix: str = "", **wrong: object) -> list[tuple[type, dict[str, object], str]]:
    """Values that are wrong each by itself, and the key that the message names."""
    return [(kind, {name: value}, f"{prefix}{name}") for name, value in wrong.items()]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        *each(TrainConfig, "train.", batch_size=0, accumulate_steps=0, epochs=0, early_stop_patience=0, lr=0),
        *each(TrainConfig, "train.", weight_decay=-1, clip_norm=-1, plateau_patience=-1, plateau_factor=1.0),
        *each(TrainConfig, "train.", lr=float("nan"), schedule="step", precision="int8"),
        (TrainConfig, {"compile": "cudagraphs", "accumulate_steps": 2}, r"needs train\.accumulate_steps 1, not 2"),
        *each(VideoConfig, backend="x", decode_threads=0, prefetch_batches=0, size=0),
        *each(FrameSpec, num_frames=0, crop="left", size=0),
        *each(AugmentConfig, crop_size=0, flip=1.5, rotation_degrees=-1.0, rotation_corners="grey"),
        *each(StoreConfig, tier="ram", max_gib=0.0),
        *each(StoreConfig, max_gib=float("nan")),
        (
            CorpusConfig,
            {"labels": "names"},
            "^corpus.labels must be ravdess, cremad, folder or a label table .*, not 'names'",
        ),
        (CorpusConfig, {"verify": "slow"}, "^corpus.verify must be quick or full, not 'slow'"),
        (CorpusConfig, {"protocol": "random"}, "^corpus.protocol must be one of report, speech, speech.song"),
        (CorpusConfig, {"folds": 2}, "^corpus.folds must be at least 3 .training, validation, test., not 2"),
        (CorpusConfig, {"fold": -1}, "^corpus.fold must be at least 0, not -1"),
        (CorpusConfig, {"max_rejected": -1}, "^corpus.max_rejected must be at least 0, not -1"),
        (SyntheticConfig, {"actors": 0}, "actors is 0, allowed are 1 to 24"),
        (SyntheticConfig, {"actors": 25}, "allowed are 1 to 24"),
        (SyntheticConfig, {"clips_per_actor": 61}, "clips_per_actor is 61, allowed are 1 to 60"),
        (SyntheticConfig, {"width": 321}, "width is 321, allowed are even"),
        (SyntheticConfig, {"height": 0}, "height is 0, allowed are 64"),
        (SyntheticConfig, {"num_frames": 0}, "num_frames is 0"),
        (SyntheticConfig, {"seed": -1}, "seed is -1"),
        (Difficulty, {"noise": 2.5}, r"difficulty.noise is 2.5, allowed are 0 \(none\) to 2"),
        (ModelConfig, {"name": "resnet"}, "one of early_cnn, early_resnet18, late_fusion, r3d18, cnn_lstm"),
        (ModelConfig, {"fusion": "sum"}, "one of mean, concat, max"),
        (ModelConfig, {"rnn": "rnn"}, "one of lstm, gru"),
        (ModelConfig, {"stem": "average"}, "one of random, inflate"),
        (ModelConfig, {"num_frames": 0}, "at least 1"),
        (ModelConfig, {"rnn_hidden": 0}, "at least 1"),
        (ModelConfig, {"dropout": 1.0}, "below 1"),
        (ModelConfig, {"dropout": -0.1}, "at least 0"),
    ],
)
def test_each_part_refuses_a_wrong_value_by_its_key(kind: type, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)
