"""Epochs: the arithmetic on known figures; and the command itself, small."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from helpers import documented_command

from benchmarks.common.epochs import report
from benchmarks.common.epochs.loops import PARTS, flops_a_clip, for_prediction, restored
from benchmarks.common.measure import EpochPass, Pass
from fastemo.models.build import build_model
from fastemo.models.config import ModelConfig
from fastemo.training.config import TrainConfig
from fastemo.training.trainer import Trainer


def rounds(*clips_per_second, waited=None):
    found = {number: Pass(8, 8 / rate, 1.0) for number, rate in enumerate(clips_per_second, start=1)}
    if waited is None:
        return found
    more = {"steps": 1, "loss": 2.0, "accuracy": 0.1}
    return {number: EpochPass(**asdict(it), waited=waited * it.seconds, **more) for number, it in found.items()}


@pytest.fixture
def passes():
    return {
        "limit": rounds(10, 20),
        "cold": rounds(6, 12),
        "warm": rounds(19, 38, waited=0.01),
        "bare": rounds(20, 40),
        "report": rounds(4, 8),
    }


def test_what_follows_from_the_rounds(passes):
    assert report.joint_rates({"limit": rounds(10), "bare": rounds(10)}) == {1: 5}  # sharing the processors
    assert report.joint_rates(passes) == pytest.approx({1: 20 / 3, 2: 40 / 3})
    found = {name: ratio["median"] for name, ratio in report.ratios(passes).items()}
    assert found == pytest.approx(
        {"warm_over_bare": 0.95, "cold_over_limit": 0.6, "cold_over_joint_limit": 0.9, "warm_over_report": 4.75}
    )
    assert report.is_decode_bound(passes) is True
    assert report.is_decode_bound({**passes, "bare": rounds(1, 2)}) is False
    assert report.data_wait(passes)["median"] == pytest.approx(0.01)


def test_what_was_not_measured_is_said_to_be():
    assert report.joint_rates({"bare": rounds(3)}) == report.ratios({}) == {}
    assert report.is_decode_bound({}) is report.data_wait({}) is None
    assert {*report.epoch_ratios({}).values()} == {None}
    assert {it.verdict for it in report.targets({}, gpu=None, batch_size=8)} == {"not measured"}


@pytest.mark.parametrize(
    ("gpu", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA A100-SXM4-40GB", "fp16", 312e12),
        ("NVIDIA H100 80GB HBM3", "fp32", None),
        ("Unheard of", "bf16", None),
        (None, "bf16", None),
    ],
)
def test_peaks_are_known_by_name(gpu, precision, peak):
    assert report.peak_flops(gpu, precision) == peak


def test_utilisation():
    found = {"flops_per_second": 2e11, "peak_flops_per_second": 1e12, "mfu": pytest.approx(0.2)}
    assert report.utilisation(100.0, 2e9, 1e12) == found
    assert report.utilisation(100.0, 2e9, None)["mfu"] is None


def test_operations_of_a_known_network():
    few, many = (ModelConfig(name="late_fusion", num_frames=it, pretrained=False) for it in (2, 10))
    # ResNet-18 takes 1.82 GMAC forward at 224 px, a quarter at 112; backward twice that, less the first layer's input.
    assert flops_a_clip(many, 8, 112) == pytest.approx(10 * 1.82e9 / 4 * 2 * 3, rel=0.07)
    assert flops_a_clip(many, 8, 112) == pytest.approx(5 * flops_a_clip(few, 8, 112), rel=1e-3)


def test_targets_from_passes(passes):
    slow = {"warm": rounds(1, 2, waited=0.03), "bare": rounds(1, 2), "limit": rounds(10), "cold": rounds(0.9)}
    measured = {"late_fusion": {**passes, "recipe": rounds(18, 36)}, "r3d18": slow}
    found = {it.name: it for it in report.targets(measured, gpu=None, batch_size=8)}
    values = {name: (it.value and pytest.approx(it.value), it.verdict) for name, it in found.items()}
    assert values == {
        "warm_over_bare_late_fusion": (0.95, "reached"),
        "warm_over_bare_r3d18": (1.0, "reached"),
        "recipe_late_fusion": (19 / 18, "reached"),
        "recipe_r3d18": (None, "not measured"),
        "data_wait": (0.03, "not reached"),
        "late_fusion_over_report": (4.75, "reached"),
        "cold_over_limit_late_fusion": (0.9, "reached"),
        "tsm_over_late_fusion": (None, "not measured"),
        "light_epoch": (None, "not measured"),
        "light_forward": (None, "not measured"),
        "h100_late_fusion": (None, "not measured"),
        "h100_r3d18": (None, "not measured"),
    }
    assert found["data_wait"].note == "r3d18"
    assert "0.60 x of the decode alone" in found["cold_over_limit_late_fusion"].note
    ratios = report.epoch_ratios(measured)
    assert ratios["r3d18_epoch_over_late_fusion_epoch"] == pytest.approx(28.5 / 1.5)


def test_a_light_network_is_compared_with_resnet18_and_tsm_with_late_fusion(passes):
    light = {"warm": rounds(171), "forward": rounds(900)}
    measured = {"late_fusion": {**passes, "forward": rounds(100)}, "late_fusion:mobilenetv3_small_100": light}
    measured["tsm"] = {"warm": rounds(25)}
    found = {it.name: it for it in report.targets(measured, gpu=None, batch_size=8)}
    names = ("tsm_over_late_fusion", "light_epoch", "light_forward")
    values = [(pytest.approx(found[name].value), found[name].verdict) for name in names]
    assert values == [(28.5 / 25, "not reached"), (6, "reached"), (9, "reached")]


def test_the_model_of_prediction_is_a_copy_without_its_norms():
    """Rounding apart it computes what the model does, and the training goes on."""
    with Trainer(TrainConfig(batch_size=2, precision="bf16"), seed=0) as trainer:
        trainer.prepare(build_model(ModelConfig(name="late_fusion", num_frames=2, pretrained=False), 8), 1)
        model = trainer.bare_model.eval()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        found = for_prediction(model, 2, 32)
        frames = torch.rand(2, 2, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(found(frames), type(model).forward(model, frames), rtol=1e-4, atol=1e-4)
        assert not any(isinstance(it, torch.nn.BatchNorm2d) for it in found.modules())
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("gpu", "batch_size", "is_judged"),
    [("NVIDIA H100 80GB HBM3", 64, True), ("NVIDIA H100 80GB HBM3", 32, False), ("NVIDIA H200", 64, False)],
)
def test_an_h100_is_judged_as_one(passes, gpu, batch_size, is_judged):
    found = {it.name: it for it in report.targets({"late_fusion": passes}, gpu=gpu, batch_size=batch_size)}
    assert (found["h100_late_fusion"].value is not None) == is_judged
    assert found["h100_r3d18"].verdict == "not measured"
    assert found["cold_over_limit_late_fusion"].value is None


def test_what_is_restored_is_as_before():
    with Trainer(TrainConfig(batch_size=2, speed="fp32"), seed=0) as trainer:
        trainer.prepare(build_model(ModelConfig(name="early_cnn", num_frames=1, pretrained=False), 8), 1)

        def step():
            trainer.model(torch.rand(2, 1, 3, 16, 16)).square().mean().backward()
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()

        def state():
            moments = trainer.optimizer.state_dict()["state"].values()
            return [*trainer.model.state_dict().values(), *(value for it in moments for value in it.values())]

        def is_as_before():
            return all(torch.equal(one, other) for one, other in zip(before, state(), strict=True))

        step()
        before = [value.clone() for value in state()]
        with restored(trainer):
            step()
            assert not is_as_before()
        assert is_as_before()


@pytest.fixture(scope="module")
def quick(run_script, tmp_path_factory):
    """A run of one model with both peers: its output and its JSON."""
    out = tmp_path_factory.mktemp("quick") / "found.json"
    done = run_script([*documented_command("benchmarks/epoch_time.py"), "--quick"], "--out", out)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(out.read_text()), out


@pytest.mark.slow
def test_the_json_holds_everything(quick):
    output, found, out = quick
    entries = ("date", "command", "minutes", "machine", "versions", "settings", "corpus", "learning_corpus")
    assert tuple(found) == (*entries, "models", "ratios", "targets")
    assert list(found["models"]) == ["late_fusion"]
    model = found["models"]["late_fusion"]
    assert {"limit", "cold", "warm", "bare", "report"} <= model["passes"].keys()
    assert "plain" in {**model["passes"], **model["skipped"]}
    assert model["memory"]["resident_mib"] > 100
    assert 0 <= model["learning"]["val_accuracy"] <= 1
    assert len(model["learning"]["train_loss"]) == model["learning"]["epochs"] == 2
    assert str(out.parent) not in out.read_text()
    assert str(Path.home()) not in out.read_text()
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert "the breakdown of a warm step" in output


@pytest.mark.slow
def test_figures_are_those_of_the_rounds(quick):
    model, passes = quick[1]["models"]["late_fusion"], {}
    for name, entry in model["passes"].items():
        kind = EpochPass if "loss" in entry["rounds"][0] else Pass
        passes[name] = {it.pop("round"): kind(**it) for it in entry["rounds"]}
        assert {it.clips for it in passes[name].values()} == {model["clips"]}, name
    assert {"warm_over_bare", "warm_over_report", "cold_over_limit", "cold_over_joint_limit"} <= model["ratios"].keys()
    assert model["ratios"] == report.ratios(passes)
    targets = report.targets({"late_fusion": passes}, gpu=None, batch_size=4)
    assert quick[1]["targets"] == [it.as_dict() for it in targets]
    warm = model["passes"]["warm"]["clips_per_second"]["median"]
    assert model["utilisation"] == report.utilisation(warm, model["flops_a_clip"], None)


@pytest.mark.slow
def test_the_parts_of_a_step_are_the_step(quick):
    parts = quick[1]["models"]["late_fusion"]["breakdown"]
    assert tuple(parts["shares"]) == (*PARTS, "rest")
    assert sum(parts["shares"].values()) == pytest.approx(1)
    assert all(share >= 0 for share in parts["shares"].values())
    assert min(parts["shares"][part] for part in ("forward", "backward", "optimizer", "augment")) > 0
    assert parts["host_to_device_share"] == 0
