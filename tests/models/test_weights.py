"""Pretrained weights: read from files and caches, refused where unsafe or unfit, missed quickly."""

from __future__ import annotations

import json
import os
import pickle
import socket
import time
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
import torchvision
from hub import served_hub
from networks import NETWORKS, TINY_VIDEOMAE, shallow_networks
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.models.video import r3d_18
from transformers import (
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEModel,
    ViTConfig,
)

from fastemo.models import pretrained
from fastemo.models.build import build_model, with_architecture
from fastemo.models.config import ModelConfig
from fastemo.models.pretrained import Source, WeightsUnavailable


def random_resnet18() -> dict[str, Tensor]:
    """A state dict as torchvision's file has it, classifier and all, with statistics of its own."""
    torch.manual_seed(7)
    state = timm.create_model("resnet18", num_classes=1000).state_dict()
    return {key: value + 0.25 if value.is_floating_point() else value for key, value in state.items()}


def random_r3d18() -> dict[str, Tensor]:
    """In half precision; the scales of its BatchNorms, which begin as 1, are 1.5."""
    return {key: value.half() + 0.5 for key, value in r3d_18(weights=None).state_dict().items()}


def save(state: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def backbone_of(**options: object) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return build_model(ModelConfig(num_frames=4, **options), 8).backbone.state_dict()


def run_of(folder: Path, num_classes: int = 7, **options: object) -> tuple[Path, dict[str, Tensor]]:
    """A run folder with the best weights of a model of its own, and these weights."""
    torch.manual_seed(7)
    model = build_model(ModelConfig(**{"num_frames": 4, "pretrained": False, **options}), num_classes)
    state = {key: value + 0.25 if value.is_floating_point() else value for key, value in model.state_dict().items()}
    (folder / "checkpoints" / "best").mkdir(parents=True)
    save(state, folder / "checkpoints" / "best" / "model.safetensors")
    return folder, state


def started(path: Path, num_classes: int = 8, **options: object) -> tuple[str, dict[str, Tensor]]:
    """The line about the weights that a model starts from, without their path, and the model's weights."""
    same, said = bool(options.pop("same_classes", False)), []
    config = ModelConfig(**{"num_frames": 4, "weights": path, **options})
    model = build_model(config, num_classes, same_classes=same, say=said.append)
    (line,) = said
    before, _, after = line.partition(f" from {path}")
    return before + after, model.state_dict()


def assert_loaded(loaded: dict[str, Tensor], state: dict[str, Tensor], *, but: tuple[str, ...] = ()) -> None:
    expected = {key for key in state if not key.startswith("fc.")}
    assert set(loaded) == expected
    for key in expected - set(but):
        assert torch.equal(loaded[key], state[key]), key


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Empty caches, and hubs at a port that nobody listens on; gives the folder of the caches."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    ask = pretrained.check_reachable
    monkeypatch.setattr(pretrained, "check_reachable", lambda _: ask(endpoint))
    return tmp_path


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("name", ["late_fusion", "cnn_lstm"])
def test_a_local_file_is_loaded_without_its_classifier(tmp_path, name, suffix):
    state = random_resnet18()
    path = save(state, tmp_path / f"resnet18{suffix}")
    assert_loaded(backbone_of(name=name, weights=path), state)


def test_the_early_resnet18_keeps_all_but_its_first_convolution(tmp_path):
    state = random_resnet18()
    path = save(state, tmp_path / "resnet18.safetensors")
    fresh = backbone_of(name="early_resnet18", weights=path)
    assert_loaded(fresh, state, but=("conv1.weight",))
    # A quarter was added to every weight of the file: a random kernel has no such mean.
    assert abs(fresh["conv1.weight"].mean()) < 0.01
    inflated = backbone_of(name="early_resnet18", weights=path, stem="inflate")
    assert_loaded(inflated, state, but=("conv1.weight",))
    torch.testing.assert_close(inflated["conv1.weight"], state["conv1.weight"].repeat(1, 4, 1, 1) / 4)


def test_r3d18_reads_torchvisions_keys(tmp_path):
    state = random_r3d18()
    loaded = backbone_of(name="r3d18", weights=save(state, tmp_path / "r3d18.pt"))
    assert {key for key in state if not key.startswith("fc.")} == set(loaded)
    assert torch.equal(loaded["stem.1.weight"], torch.full((64,), 1.5))
    assert torch.equal(loaded["stem.0.weight"], state["stem.0.weight"].float())


def test_a_classifier_of_another_name_is_dropped(tmp_path):
    state = timm.create_model("mobilenetv3_small_050", num_classes=10).state_dict()
    assert "classifier.weight" in state
    path = save(state, tmp_path / "mobilenet.safetensors")
    loaded = backbone_of(name="late_fusion", backbone="mobilenetv3_small_050", weights=path)
    assert torch.equal(loaded["conv_stem.weight"], state["conv_stem.weight"])


def test_files_from_before_batch_counts_are_whole(tmp_path):
    state = {key: value for key, value in random_resnet18().items() if "num_batches" not in key}
    loaded = backbone_of(weights=save(state, tmp_path / "old.pth"))
    assert torch.equal(loaded["bn1.running_mean"], state["bn1.running_mean"])


def test_keys_that_do_not_fit_are_named_with_the_file(tmp_path):
    state = random_resnet18()
    del state["conv1.weight"]
    state |= {"module.extra": torch.zeros(1), "bn1.bias": torch.zeros(5)}
    path = save(state, tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match="do not fit") as caught:
        backbone_of(weights=path)
    parts = (str(path), "1 missing: conv1.weight", "1 unexpected: module.extra", "bn1.bias is 5 instead of 64")
    assert all(part in str(caught.value) for part in parts), caught.value


def test_only_the_first_few_of_many_keys_are_named(tmp_path):
    path = save({f"other.{i}": torch.zeros(1) for i in range(50)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"50 unexpected: other\.0, other\.1, other\.2, \.\.\.") as caught:
        backbone_of(weights=path)
    assert len(str(caught.value)) < 500


class Malicious:
    """Makes a folder when unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_code_in_a_file_is_not_run(tmp_path, suffix):
    path, trace = tmp_path / f"malicious{suffix}", tmp_path / "was-here"
    content = {"conv1.weight": Malicious(trace)}
    for write in (torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))):
        write(content, path)
        with pytest.raises(ValueError, match="cannot be read as weights"):
            backbone_of(weights=path)
        assert not trace.exists()


@pytest.mark.parametrize("content", [{"state_dict": {"conv1.weight": torch.zeros(1)}}, [torch.zeros(1)]])
def test_something_else_than_a_state_dict_is_an_error(tmp_path, content):
    path = tmp_path / "checkpoint.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match="is not a state dict"):
        backbone_of(weights=path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_broken_or_absent_file_is_an_error(tmp_path, suffix):
    path = tmp_path / f"broken{suffix}"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        backbone_of(weights=path)
    for content in (b"", b"not weights at all"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as weights"):
            backbone_of(weights=path)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("name", "which"),
    [
        *((name, "resnet18.tv_in1k (timm)") for name in ("early_resnet18", "late_fusion", "cnn_lstm", "tsm")),
        ("r3d18", "r3d_18 (torchvision, Kinetics-400)"),
        ("video", "r2plus1d_18 (torchvision, Kinetics-400)"),
        ("videomae", "MCG-NJU/videomae-small-finetuned-kinetics (transformers)"),
    ],
)
def test_no_network_is_one_line_with_both_options(name, which):
    start = time.monotonic()
    with pytest.raises(WeightsUnavailable) as caught:
        backbone_of(name=name, size=32)
    assert time.monotonic() - start < 10
    message = str(caught.value)
    assert "\n" not in message
    for part in (which, "--model.pretrained false", "--model.weights PATH", ".safetensors"):
        assert part in message
    assert ("https://" in message) == (name != "videomae")


@pytest.mark.usefixtures("no_network")
def test_the_configuration_of_an_unknown_videomae_is_asked_of_the_hub():
    with pytest.raises(WeightsUnavailable, match=r"the pretrained weights someone/videomae \(transformers\)"):
        with_architecture(ModelConfig(name="videomae", backbone="someone/videomae", pretrained=False))


@pytest.mark.usefixtures("no_network")
def test_from_scratch_needs_no_network():
    build_model(ModelConfig(name="early_cnn", num_frames=2), 8)
    backbone_of(name="late_fusion", pretrained=False)


def test_the_cache_serves_without_a_network(no_network):
    state, commit = random_resnet18(), "0" * 40
    repository = no_network / "hub" / "models--timm--resnet18.tv_in1k"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    save(state, snapshot / "model.safetensors")
    assert_loaded(backbone_of(name="cnn_lstm"), state)


def test_torchs_cache_serves_without_a_network(no_network):
    folder = no_network / "torch" / "checkpoints"
    folder.mkdir(parents=True)
    save(random_r3d18(), folder / "r3d_18-b3b3357e.pth")
    assert torch.equal(backbone_of(name="r3d18")["stem.1.weight"], torch.full((64,), 1.5))


@pytest.mark.parametrize("backbone", ["r2plus1d_18", "mc3_18", "s3d", "swin3d_t", "mvit_v2_s"])
def test_every_video_network_finds_its_weights_in_torchs_cache(no_network, monkeypatch, backbone):
    """The hash in a file's name is that of torchvision's file; here it is not looked at."""
    folder = no_network / "torch" / "checkpoints"
    folder.mkdir(parents=True)
    with shallow_networks():
        torch.manual_seed(7)
        state = torchvision.models.get_model(backbone, weights=None).state_dict()
        url = torchvision.models.get_model_weights(backbone).KINETICS400_V1.url
        save(state, folder / url.rpartition("/")[2])
        loaded = backbone_of(name="video", backbone=backbone, size=40)
    heads = ("fc.", "classifier.", "head.")
    assert loaded.keys() == {key for key in state if not key.startswith(heads)}
    for key, value in loaded.items():
        if "rel_pos" not in key:
            assert torch.equal(value, state[key]), key
    if backbone == "mvit_v2_s":  # 16 x 224 pixels -> 4 x 40: tables of 8 and 56 places, interpolated to 2 and 10
        before, after = state["blocks.0.attn.rel_pos_h"], loaded["blocks.0.attn.rel_pos_h"]
        assert (before.shape, after.shape) == ((111, 48), (19, 48))
        expected = torch.nn.functional.interpolate(before.T[None], 19, mode="linear")[0].T
        assert torch.equal(after, expected)
        assert loaded["blocks.0.attn.rel_pos_t"].shape == (3, 48)
    with shallow_networks():
        assert Source("torchvision", backbone).fetch()


def test_weights_of_a_run_of_another_size_fit_an_mvit(tmp_path):
    with shallow_networks():
        folder, _ = run_of(tmp_path / "run", name="video", size=64, **NETWORKS["video-mvit_v2_s"])
        said, _ = started(folder, name="video", size=40, **NETWORKS["video-mvit_v2_s"])
    count = int(said.split()[0])
    assert said == f"{count} of {count + 2} tensors; {OTHER_CLASSES}"


def put_videomae(folder: Path, kind: type, **options: object) -> dict[str, Tensor]:
    """A folder as transformers writes it, and its weights."""
    torch.manual_seed(7)
    model = kind(VideoMAEConfig(**json.loads(TINY_VIDEOMAE), **options))
    for parameter in model.parameters():
        parameter.data += 0.25  # biases are 0
    model.save_pretrained(folder)
    return model.state_dict()


@pytest.mark.parametrize("kind", [VideoMAEForVideoClassification, VideoMAEForPreTraining, VideoMAEModel])
def test_a_videomae_starts_from_a_folder_of_transformers(tmp_path, kind, capfd):
    state = put_videomae(tmp_path / "mae", kind)
    config = ModelConfig(name="videomae", backbone=str(tmp_path / "mae"), num_frames=6, size=48)
    architecture = json.loads(with_architecture(config).architecture)
    assert {key: architecture[key] for key in json.loads(TINY_VIDEOMAE)} == json.loads(TINY_VIDEOMAE)
    capfd.readouterr()
    loaded = build_model(config, 8).backbone.state_dict()
    prefix = "videomae." * (kind is not VideoMAEModel)
    for key, value in loaded.items():
        if key.startswith("videomae."):
            assert torch.equal(value, state[prefix + key.removeprefix("videomae.")]), key
        elif kind is VideoMAEForVideoClassification:
            assert torch.equal(value, state[key])
    assert capfd.readouterr() == ("", "")
    assert Source("transformers", str(tmp_path / "mae")).fetch()


def test_a_videomae_of_the_hub_is_fetched_once(no_network, monkeypatch, tmp_path):
    state = put_videomae(tmp_path / "mae", VideoMAEForVideoClassification)
    with served_hub() as hub:
        files = {it.name: it.read_bytes() for it in (tmp_path / "mae").iterdir()}
        hub.commits["someone/mae"] = [("0" * 40, files)]
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(pretrained, "check_reachable", lambda _: None)
        config = with_architecture(ModelConfig(name="videomae", backbone="someone/mae", num_frames=6, size=48))
        assert [Source("transformers", "someone/mae").fetch() for _ in range(2)] == [False, True]
        requests = len(hub.requests)
        loaded = build_model(config, 8).backbone.state_dict()
        assert len(hub.requests) == requests
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "another"))
        del files["model.safetensors"]
        with pytest.raises(WeightsUnavailable, match=r"the repository has no model\.safetensors or pytorch_model\.bin"):
            build_model(config, 8)
    assert torch.equal(loaded["fc_norm.weight"], state["fc_norm.weight"])


def test_another_architecture_of_the_hub_is_refused(tmp_path):
    ViTConfig().save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match=r"model\.backbone .*vit is of the kind vit, must be a VideoMAE"):
        with_architecture(ModelConfig(name="videomae", backbone=str(tmp_path / "vit")))
    put_videomae(tmp_path / "mae", VideoMAEForVideoClassification)
    save({"other": torch.zeros(1)}, tmp_path / "mae" / "model.safetensors")
    with pytest.raises(ValueError, match=r"do not fit VideoMAEForVideoClassification: \d+ missing: videomae\."):
        build_model(ModelConfig(name="videomae", backbone=str(tmp_path / "mae"), num_frames=4, size=32), 8)


def test_a_videomae_reads_a_file_of_transformers_whose_biases_have_other_names(tmp_path):
    state = put_videomae(tmp_path / "mae", VideoMAEForVideoClassification, num_labels=5)
    path = tmp_path / "mae" / "model.safetensors"
    said, loaded = started(path, name="videomae", size=32, architecture=TINY_VIDEOMAE)
    assert said == f"{len(state) - 2} of {len(state)} tensors; classifier new"
    key = "videomae.encoder.layer.0.attention.attention.query.bias"
    assert key not in load_file(path)
    for name in ("fc_norm.weight", key):
        assert torch.equal(loaded[f"backbone.{name}"], state[name])


def test_a_download_that_breaks_is_one_line(monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise OSError("connection\nreset")

    monkeypatch.setattr(pretrained, "check_reachable", lambda _: None)
    monkeypatch.setattr(timm, "create_model", broken)
    with pytest.raises(WeightsUnavailable, match="connection reset") as caught:
        backbone_of(name="cnn_lstm")
    assert "\n" not in str(caught.value)


def test_a_backbone_without_pretrained_weights_says_so():
    name = next(m for m in timm.list_models() if not timm.get_pretrained_cfg(m).has_weights)
    with pytest.raises(WeightsUnavailable, match="timm has none for this model"):
        backbone_of(name="late_fusion", backbone=name)


def test_a_host_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(pretrained, "REACH_SECONDS", 0.3)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        start = time.monotonic()
        with pytest.raises(OSError, match=r"no answer|timed out"):
            pretrained.check_reachable(f"http://127.0.0.1:{server.getsockname()[1]}")
    assert time.monotonic() - start < 5


def test_the_reports_tag_is_torchvisions_first_imagenet_weights():
    """timm's tag and torchvision's IMAGENET1K_V1 are one file."""
    assert timm.get_pretrained_cfg(pretrained.RESNET18).url.endswith("/resnet18-f37072fd.pth")


OTHER_CLASSES = "classifier new: 7 classes for 8"
SMALL = {"backbone": "resnet10t"}


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ({"name": "late_fusion"}, {"name": "late_fusion"}, f"120 of 122 tensors; {OTHER_CLASSES}"),
        ({"name": "late_fusion"}, {"name": "cnn_lstm"}, f"120 of 126 tensors; rnn new; {OTHER_CLASSES}"),
        ({"name": "cnn_lstm"}, {"name": "late_fusion"}, f"120 of 122 tensors; rnn left out; {OTHER_CLASSES}"),
        ({"name": "cnn_lstm"}, {"name": "cnn_lstm"}, f"124 of 126 tensors; {OTHER_CLASSES}"),
        (
            {"name": "cnn_lstm", "rnn_norm": True, "rnn_hidden": 384},
            {"name": "cnn_lstm", "rnn": "gru"},  # both have a weight of 4 * 384 = 3 * 512 rows
            f"120 of 126 tensors; rnn new: of another shape; norm left out; {OTHER_CLASSES}",
        ),
        ({"name": "r3d18"}, {"name": "r3d18"}, f"120 of 122 tensors; {OTHER_CLASSES}"),
        ({"name": "r3d18"}, {"name": "video", "backbone": "r3d_18"}, f"120 of 122 tensors; {OTHER_CLASSES}"),
        ({"name": "late_fusion"}, {"name": "tsm"}, f"120 of 122 tensors; {OTHER_CLASSES}"),
        (
            {"name": "late_fusion", "fusion": "attention"},
            {"name": "late_fusion"},
            f"120 of 122 tensors; attention left out; {OTHER_CLASSES}",
        ),
        ({"name": "early_cnn"}, {"name": "early_cnn"}, f"28 of 32 tensors; {OTHER_CLASSES}"),
        (
            {"name": "early_cnn"},
            {"name": "early_cnn", "num_frames": 2},
            f"27 of 32 tensors; blocks.0.weight new: 64x12x3x3 for 64x6x3x3; {OTHER_CLASSES}",
        ),
        (
            {"name": "early_resnet18"},
            {"name": "early_resnet18", "num_frames": 6},
            f"119 of 122 tensors; backbone.conv1.weight new: 64x12x7x7 for 64x18x7x7; {OTHER_CLASSES}",
        ),
        (
            {"name": "late_fusion"},
            {"name": "early_resnet18"},
            f"119 of 122 tensors; backbone.conv1.weight new: 64x3x7x7 for 64x12x7x7; {OTHER_CLASSES}",
        ),
    ],
)
def test_a_run_gives_what_fits_and_one_line_says_it(tmp_path, before, after, line):
    folder, state = run_of(tmp_path / "run", **before)
    said, loaded = started(folder, **after)
    assert said == line
    # A quarter was added to every weight of the run: no new one equals it.
    equal = {key for key in loaded.keys() & state.keys() if torch.equal(loaded[key], state[key])}
    counts = {key for key in loaded if key.endswith("num_batches_tracked")}
    assert len(equal | counts) == int(line.split()[0])
    new = {key.split(".")[0] for key in loaded.keys() - equal - counts}
    # Drawn with the run's seed it would equal the run's own first classifier, to whose classes the features point.
    assert not loaded[max(loaded.keys() & {"classifier.weight", "classifier.3.weight"})].any()
    assert new - {"backbone", "blocks"} == {part for part in ("rnn", "classifier") if f"{part} new" in line}


def test_a_run_is_named_by_its_folder_a_checkpoint_or_its_file(tmp_path):
    folder, state = run_of(tmp_path / "run.v2", name="late_fusion", **SMALL)
    best = folder / "checkpoints" / "best"
    for path in (folder, best, best / "model.safetensors"):
        said, loaded = started(path, name="late_fusion", pretrained=False, **SMALL)
        assert said.endswith(OTHER_CLASSES)
        assert torch.equal(loaded["backbone.bn1.weight"], state["backbone.bn1.weight"])


def test_a_classifier_needs_the_same_classes_and_the_same_features(tmp_path):
    folder, state = run_of(tmp_path / "lstm", 8, name="cnn_lstm", **SMALL)
    said, loaded = started(folder, name="cnn_lstm", same_classes=True, **SMALL)
    assert said == f"{len(state)} of {len(state)} tensors"
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    said, loaded = started(folder, name="cnn_lstm", **SMALL)
    assert said.endswith("; classifier new: 8 classes for 8, of other or unknown names")
    assert not torch.equal(loaded["classifier.weight"], state["classifier.weight"])
    # A classifier of the LSTM's state has the shape of one of the backbone's features.
    said, loaded = started(folder, name="late_fusion", same_classes=True, **SMALL)
    assert said.endswith("; rnn left out; classifier new: for other features")
    assert not torch.equal(loaded["classifier.weight"], state["classifier.weight"])


def test_an_inflated_stem_begins_with_the_runs_kernel(tmp_path):
    folder, state = run_of(tmp_path / "run", name="late_fusion")
    said, loaded = started(folder, name="early_resnet18", stem="inflate")
    assert said == f"120 of 122 tensors; {OTHER_CLASSES}"
    expected = state["backbone.conv1.weight"].repeat(1, 4, 1, 1) / 4
    torch.testing.assert_close(loaded["backbone.conv1.weight"], expected)


def test_timms_file_gets_a_line_as_well(tmp_path):
    path = save(random_resnet18(), tmp_path / "resnet18.pth")
    assert started(path, name="cnn_lstm")[0] == "120 of 126 tensors; rnn new; classifier new"
    said = started(path, name="early_resnet18")[0]
    assert said == "119 of 122 tensors; backbone.conv1.weight new: 64x3x7x7 for 64x12x7x7; classifier new"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        # Both have layers of the same names, a few of them of the same shapes.
        (
            {"name": "r3d18"},
            {"name": "cnn_lstm"},
            "do not fit ResNet: 85 missing: conv1.weight, bn1.weight, bn1.bias, ",
        ),
        ({"name": "late_fusion", **SMALL}, {"name": "late_fusion"}, "do not fit ResNet: .* missing: conv1.weight"),
        (
            {"name": "late_fusion"},
            {"name": "early_cnn"},
            r"EarlyCNN: 24 missing: blocks\.0\.weight.* 102 unexpected: bn1",
        ),
        (
            {"name": "early_cnn"},
            {"name": "late_fusion"},
            r"100 missing: conv1\.weight.* 28 unexpected: blocks\.0\.bias",
        ),
    ],
)
def test_a_run_of_another_backbone_is_refused_by_its_keys(tmp_path, before, after, message):
    folder, _ = run_of(tmp_path / "run", **before)
    with pytest.raises(ValueError, match=message) as caught:
        started(folder, **after)
    assert f"the weights in '{folder}' do not fit" in str(caught.value)


@pytest.mark.parametrize("name", ["early_resnet18", "late_fusion"])
def test_timms_first_convolution_has_to_be_one_on_rgb(tmp_path, name):
    state = random_resnet18() | {"conv1.weight": torch.zeros(5)}
    with pytest.raises(ValueError, match=r"1 of another shape: conv1\.weight is 5 instead of 64x"):
        started(save(state, tmp_path / "wrong.pt"), name=name)


def test_what_is_no_file_of_weights_is_named(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="run' is neither a run with a checkpoint nor a checkpoint"):
        started(tmp_path / "run")
    (tmp_path / "weights.bin").touch()
    with pytest.raises(ValueError, match=r"its suffix must be one of \.safetensors, \.pt, \.pth"):
        started(tmp_path / "weights.bin")
