"""The documents' tables: from made-up files, and the documents themselves."""

import json
from typing import get_args

import pytest

from benchmarks import tables
from benchmarks.common.epochs.networks import NETWORKS, config_of
from benchmarks.common.measure import Target
from benchmarks.common.results import figure_text
from benchmarks.common.studies import keys_text
from benchmarks.tables import PLACES, faults_text, models_text, peers_text, read, text, with_table
from fastemo.models.config import ModelName
from fastemo.models.video import VIDEO_BACKBONES

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
MACHINE = {"processor": "AMD EPYC", "processors_used": 2, "gpus": []}
GPU = {**MACHINE, "processors_used": 16, "gpus": ["NVIDIA H100"] * 8}
VERSIONS = {"torch": "2.15.0", "av": "18.1.0", "fastemo": "0.1.0", "numpy": "2.4.6"}
TARGETS = [
    Target("a", "fast", 2.0345, 1.9, "x", note="it is"),
    Target("b", "small", 30.0, 20, "MiB", is_upper=True),
    Target("c", "unknown", None, 1, "x"),
]


FOUND = {"date": "2026-11-23T16:07:07+0000", "command": "python benchmarks/x.py", "machine": MACHINE}
FOUND["versions"] = VERSIONS
LATER = {"date": "2026-11-24T00:00:00+0000"}


def benchmark(**other):
    return {**FOUND, "targets": [it.as_dict() for it in TARGETS], **other}


def accuracy(**other):
    figures = {"model": "cnn_lstm", "epochs": 12, "seed": 0, "accuracy": 0.808, "interval": [0.741, 0.875]}
    return {**FOUND, **figures, **other}


def reliability(**other):
    faults = [
        {"fault": "bit flips in an MP4", "tried": 1500, "outcomes": {"decoded exactly": 300, "rejected by name": 1200}},
        {"fault": "a | b", "tried": 1, "outcomes": {"told, in one line": 1}},
    ]
    return {**FOUND, "faults": faults, **other}


def study():
    order = {"right": 9, "swapped": 1, "elsewhere": 0, "accuracy": 0.9, "interval": [0.7, 1.0]}
    row = {"label": "early_cnn", "accuracy": 0.75, "interval": [0.7, 0.8], "order": order, "report": 0.2667}
    other_row = {**row, "label": "late_fusion", "accuracy": 0.5, "order": {**order, "accuracy": 0.5}, "report": None}
    unfinished = {**row, "label": "r3d18", "accuracy": None, "interval": None, "order": None}
    pair = {"a": "early_cnn", "b": "late_fusion", "difference": 0.25, "interval": [0.1, 0.4], "p_bootstrap_holm": 0.01}
    pairs = {"comparisons": [pair], "order_comparisons": [{**pair, "difference": 0.4}]}
    return {
        **FOUND,
        "command": "fastemo study configs/study/quick.yaml",
        "machine": {"processor": "AMD EPYC", "processors": 2, "gpu": None},
        "name": "quick",
        "corpus": "built-in",
        "minutes": 31.4,
        "protocol": "speech",
        "cells": [{}, {}, {}],
        "parts": [{"title": "Models", "rows": [row, other_row, unfinished], **pairs}],
    }


def folder_of(tmp_path, **files):
    for name, found in files.items():
        (tmp_path / f"{name.replace('__', '-')}.json").write_text(json.dumps(found))
    return tmp_path


def test_a_table_names_everything(tmp_path):
    rung = {"title": "loader, no store", "rounds": [1], "clips_per_second": {"median": 12.361}}
    folder = folder_of(tmp_path, throughput__a=benchmark(rungs={"loader_cold": rung, "other": rung}))
    assert text(read(folder)) == "\n".join(
        [
            "### The data path, from the file to the batch (`benchmarks/throughput.py`)",
            "",
            "|  | 2 cores of AMD EPYC, no GPU |",
            "| --- | --- |",
            "| date | 2026-11-23 |",
            "| versions | torch 2.15.0, PyAV 18.1.0, fastemo 0.1.0 |",
            "| command | `python benchmarks/x.py` |",
            "| loader, no store | 12.36 clips/s |",
            "| fast | 2.03 x, reached; target >= 1.90 x (it is) |",
            "| small | 30 MiB, **not reached**; target <= 20 MiB |",
            "| unknown | not measured; target >= 1 x |",
        ]
    )


def test_the_newest_of_each_machine_is_a_column(tmp_path):
    headlines = [{"title": "1 process", "value": 8.25, "unit": "clips/s"}]
    folder = folder_of(
        tmp_path,
        scaling__a=benchmark(command="old"),
        scaling__b=benchmark(command="new", **LATER, headlines=headlines),
        scaling__c=benchmark(command="quick", date="2026-11-25T00:00:00+0000", settings={"quick": True}),
        scaling__d=benchmark(command="gpu", machine=GPU),
        scaling__e=benchmark(command="hosts", settings={"hosts": 2}),
    )
    lines = text(read(folder)).splitlines()
    assert lines[0] == "### Several processes (`benchmarks/scaling.py`)"
    assert "8 x NVIDIA H100, 16 cores of AMD EPYC |" in lines[2]
    assert "| command | `new` | `hosts` | `gpu` |" in lines
    assert "| 1 process | 8.25 clips/s | - | - |" in lines


def test_accuracies_are_rows(tmp_path):
    folder = folder_of(
        tmp_path,
        accuracy__a=accuracy(),
        accuracy__b=accuracy(accuracy=0.9, **LATER),
        accuracy__c=accuracy(model="early_cnn", accuracy=0.85, seed=1, note="blind | deaf"),
    )
    lines = text(read(folder)).splitlines()
    assert lines[0] == "### Accuracy on the built-in corpus"
    assert len(lines) == 6
    assert lines[4].startswith("| `cnn_lstm` | 12 | 90.0 % (74.1 to 87.5) | 0 |  | 2026-11-24 | 2 cores of")
    assert lines[5].startswith("| `early_cnn` | 12 | 85.0 % (74.1 to 87.5) | 1 | blind \\| deaf | 2026-11-23 |")


def test_a_card_is_a_column_and_a_rehearsal_none(tmp_path):
    steps = {
        "early_cnn, batch 8, fp32": {"clips_per_second": 500.0},
        "early_cnn, batch 8, bf16_cudagraphs": {"clips_per_second": 1234.0},
        "r3d18, batch 8, fp32": {"error": "out of memory"},
    }
    cold = {"dali, batch 8": 40.0, "dali, batch 64": 41.5, "pyav, batch 8": 43.0}
    rates = {f"loader cold, {name}": rate for name, rate in cold.items()}
    stages = {
        "training": {"ok": False, "steps": steps},
        "nvdec": {"ok": True, "1280x720": rates | {"dali, pruned, batch 8, threads 7": 59.0}, "320x180": rates},
        "memory": {"ok": True, "decodes": 3000, "growth_mib": {"torch_mib": 0.0}},
    }
    found = benchmark(machine={**MACHINE, "gpus": ["A card"]}, stages=stages, note="why")
    folder = folder_of(tmp_path)
    (folder / "gpu").mkdir(parents=True)
    (folder / "gpu" / "first-look.json").write_text("no check", encoding="utf-8")
    for name, change in (("check-a.json", {}), ("check-b.json", {"rehearsed": True, "stages": {}})):
        (folder / "gpu" / name).write_text(json.dumps(found | change), encoding="utf-8")
    written = text(read(folder))
    assert "### On a GPU" in written
    for row in (
        "| stages | **failed: training** (why) |",
        "| early_cnn: warm steps from the device tier, clips/s | batch 8: 500 in fp32, 1,234 in bf16 with cudagraphs |",
        "| 1280x720: loader cold, dali, at its best | 41.50 clips/s |",
        "| 1280x720: dali, pruned, at its best | 59 clips/s |",
        "| memory growth over 3,000 decodes | 0 MiB torch |",
    ):
        assert row in written
    assert "r3d18" not in written
    assert "320x180" not in written, "there, DALI was asked for and PyAV decoded"


def test_faults_are_rows_below_when_and_where(tmp_path):
    folder = folder_of(
        tmp_path,
        reliability__a=reliability(faults=[]),
        reliability__b=reliability(**LATER),
        reliability__c=reliability(settings={"quick": True}, date="2026-11-25T00:00:00+0000"),
    )
    assert text(read(folder)) == "No results yet."
    assert faults_text(read(folder)) == "\n".join(
        [
            "2 kinds of fault, tried 1,501 times: 2026-11-24, 2 cores of AMD EPYC, no GPU, torch 2.15.0, PyAV 18.1.0, "
            "fastemo 0.1.0, `python benchmarks/x.py`.",
            "",
            "| fault | tried | outcome |",
            "| --- | --- | --- |",
            "| bit flips in an MP4 | 1,500 | 1,200 rejected by name; 300 decoded exactly |",
            "| a \\| b | 1 | 1 told, in one line |",
        ]
    )


def test_other_programs_are_compared_on_a_machine_without_a_gpu(tmp_path):
    rate = {"clips_per_second": {"median": 2.0}}
    peers = {"decord": {"title": "decord", **rate}, "jpeg": {"title": "JPEG", "extraction": {}, **rate}}
    ratios = {"loader_cold_over_decord": {"median": 1.95}, "loader_memory_over_jpeg": {"median": 790.0}}
    loads = benchmark(peers=peers, ratios=ratios, rungs={"loader_cold": rate, "loader_memory": rate})
    passes = {"warm": rate, "plain": {"title": "plain loop", **rate}, "report": {"title": "JPEG loop", **rate}}
    model = {"passes": passes, "ratios": {"warm_over_plain": {"median": 5.9}, "warm_over_report": {"median": 4.06}}}
    trains = benchmark(models={"late_fusion": model})
    folder = folder_of(tmp_path, throughput__a=loads, epoch__time__a=trains, throughput__b=benchmark(machine=GPU))
    lines = peers_text(read(folder)).splitlines()
    assert [line.split(" | ")[0::2] for line in lines[2:6]] == [
        ["| decode 10 frames of each video", "decord", "1.95 x |"],
        ["| load clips that were decoded before", "JPEG", "790 x |"],
        ["| train `late_fusion`, after the first epoch", "plain loop", "5.90 x |"],
        ["| train `late_fusion`, after the first epoch", "JPEG loop", "4.06 x |"],
    ]
    assert lines[-1].startswith("2 cores of AMD EPYC, no GPU; `python benchmarks/x.py` (2026-11-23, torch 2.15.0")


def test_only_what_stands_between_the_markers_changes():
    old = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    new = with_table(old, "results", text({}))
    assert new == f"before\n{BEGIN}\n\nNo results yet.\n\n{END}\nafter\n"
    assert with_table(new, "results", peers_text({})) == new
    assert faults_text({}) == "No results yet."


@pytest.mark.parametrize("document", ["no markers", f"{END}\n{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}", BEGIN])
def test_wrong_markers_are_refused(document):
    with pytest.raises(ValueError, match="it needs one <!-- results: begin --> and after it one <!-- results: end -->"):
        with_table(document, "results", "")


def test_order_of_the_parts(tmp_path):
    folder = folder_of(tmp_path, accuracy__a=accuracy(), scaling__a=benchmark(), epoch__time__a=benchmark())
    heads = [line for line in text(read(folder)).splitlines() if line.startswith("###")]
    assert [head.split("(")[0].strip("# ") for head in heads] == [
        *("Whole epochs", "Several processes", "Accuracy on the built-in corpus")
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("other-x", "{}", "other-x.json is none of throughput, epoch_time, scaling, check, accuracy"),
        ("scaling-x", "{", "scaling-x.json cannot be read"),
        ("scaling-x", "{}", "it lacks date, machine, versions, command, targets"),
        ("reliability-x", "{}", "it lacks date, machine, versions, command, faults"),
        ("accuracy-x", "{}", "it lacks date, machine, versions, command, model, epochs, accuracy, interval, seed"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, name, content, message):
    (tmp_path / f"{name}.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


@pytest.mark.parametrize(
    ("value", "expected"), [(2.0, "2"), (2.0345, "2.03"), (32463.2, "32,463"), (1.2e-6, "1.2e-06")]
)
def test_figures(value, expected):
    assert figure_text(value) == expected


def epochs(precision, **models):
    def entry(warm, forward):
        passes = {"warm": warm, "forward": forward}
        entries = {name: {"clips_per_second": {"median": rate}} for name, rate in passes.items() if rate}
        return {"parameters": 11_234_567, "forward_flops_a_clip": 9.1e9, "passes": entries}

    entries = {name.replace("_with_", ":"): entry(*rates) for name, rates in models.items()}
    return benchmark(models=entries, settings={"precision": precision})


def test_networks_are_rows_with_what_they_cost(tmp_path):
    made = epochs("fp32", late_fusion=(8.25, 30.5), late_fusion_with_mobilenetv3_small_100=(40.0, None))
    folder = folder_of(
        tmp_path, epoch_time__a=benchmark(models={"late_fusion": {"passes": {}}}), epoch_time__b=made | LATER
    )
    lines = models_text(read(folder)).splitlines()
    assert lines[0] == (
        "| `--model.name` | `--model.backbone` | what it is | pretrained on | parameters | GFLOPs | trained, clips/s | "
        "predicted, clips/s | Roy (2025) |"
    )
    rows = {tuple(line.split(" | ")[:2]): line.split(" | ")[3:] for line in lines[2:-2]}
    assert rows["| `late_fusion`", ""] == ["ImageNet", "11.2 M", "9.1", "8.25", "30.50", "52.9 % |"]
    assert rows["| `late_fusion`", "`mobilenetv3_small_100`"] == ["ImageNet", "11.2 M", "9.1", "40", "-", " |"]
    assert rows["| `video`", "`s3d`"] == ["Kinetics-400", "-", "-", "-", "-", " |"]
    assert "fp32" in lines[-1]
    assert len(rows) == len(NETWORKS)
    assert {name.partition(":")[0] for name in NETWORKS} == {*get_args(ModelName)}
    assert {config_of(name).backbone_name for name in NETWORKS if name.startswith("video")} > {*VIDEO_BACKBONES} - {
        "r3d_18"
    }


def test_the_command_writes_and_checks(tmp_path, one_line_of):
    results = tmp_path / "results"
    for folder in (results, tmp_path / "docs"):
        folder.mkdir()
    folder_of(results, scaling__a=benchmark())
    for place, name, _ in PLACES:
        with (tmp_path / place).open("a") as file:
            file.write(f"<!-- {name}: begin -->\n<!-- {name}: end -->\n")
    before = (tmp_path / "README.md").read_text()
    arguments = ["--root", str(tmp_path), "--results", str(results)]
    with pytest.raises(SystemExit, match=r"README.md is not what the results say; run python benchmarks/tables.py"):
        tables.main([*arguments, "--check"])
    assert (tmp_path / "README.md").read_text() == before
    tables.main(arguments)
    assert "| `videomae` |  | VideoMAE-S" in (tmp_path / "docs" / "models.md").read_text()
    assert "Several processes" in (tmp_path / "docs" / "benchmarks.md").read_text()
    tables.main([*arguments, "--check"])
    (tmp_path / "docs" / "reliability.md").write_text("no markers")
    assert "docs/reliability.md: it needs one" in one_line_of(tables.main, arguments)


def test_the_documents_are_what_the_results_say():
    tables.main(["--check"])


def test_a_study_is_told_part_by_part(tmp_path):
    (tmp_path / "study-quick").mkdir()
    (tmp_path / "study-quick" / "study.json").write_text(json.dumps(study()))
    (tmp_path / "study-quick" / "other.json").write_text("{}")
    assert text(read(tmp_path)).splitlines() == [
        "### Study `quick`: built-in, protocol speech",
        "",
        "2026-11-23, 2 cores of AMD EPYC, no GPU, torch 2.15.0, PyAV 18.1.0, fastemo 0.1.0, "
        "`fastemo study configs/study/quick.yaml`: 3 runs, 31 minutes of training and testing.",
        "",
        "**Models**",
        "",
        "|  | test accuracy (95 % interval) | temporal-order pairs (95 % interval) | "
        "Roy (2025), on RAVDESS's hardest pair of actors |",
        "| --- | --- | --- | --- |",
        "| early_cnn | 75.0 % (70.0 to 80.0) | 90.0 % (70.0 to 100.0) | 26.7 % |",
        "| late_fusion | 50.0 % (70.0 to 80.0) | 50.0 % (70.0 to 100.0) | - |",
        "| r3d18 | not finished | - | 26.7 % |",
        "",
        "<details markdown><summary>Comparisons, paired by take</summary>",
        "",
        "| pair | all clips: points, p | temporal-order pairs: points, p |",
        "| --- | --- | --- |",
        "| early_cnn minus late_fusion | +25.0 (+10.0 to +40.0), 0.010 | +40.0 (+10.0 to +40.0), 0.010 |",
        "",
        "</details>",
    ]


def test_one_figure_of_the_report_for_several_rows_is_left_out(tmp_path):
    found = study()
    found["parts"][0]["rows"][1]["report"] = 0.2667
    (tmp_path / "study-quick").mkdir()
    (tmp_path / "study-quick" / "study.json").write_text(json.dumps(found))
    assert "Roy (2025)" not in text(read(tmp_path))


def test_recipe_keys_are_ranked_by_what_they_add(tmp_path):
    model, rows, pairs = {"model.name": "early_cnn"}, [], []
    for label, settings, gain, p in (
        ("early_cnn", {}, None, None),
        ("lr", {"train.lr": 1e-2}, -0.1, 0.001),
        ("views", {"evaluate.views": 2}, 0.002, 0.5),
        ("cosine", {"train.schedule": "cosine", "train.warmup_epochs": 2.0}, 0.104, 0.049),
    ):
        rows.append({"label": label, "settings": model | settings, "has_learned": label != "lr"})
        pairs.append({"a": label, "b": "early_cnn", "difference": gain, "p_bootstrap_holm": p})
    # The pair of two others is no comparison with the recipe without keys.
    pairs = [*pairs[1:], {"a": "cosine", "b": "views", "difference": -1, "p_bootstrap_holm": 0}]
    found = study() | {"name": "recipes", "parts": [{"title": "Keys", "rows": rows, "comparisons": pairs}]}
    assert keys_text({"study": [study(), found]}).splitlines() == [
        "| key | added to the recipe of Roy (2025) |",
        "| --- | --- |",
        "| `train.schedule cosine`, `train.warmup_epochs 2.0` | +10.4 points |",
        "| `evaluate.views 2` | +0.2 points, may be chance |",
        "| `train.lr 0.01` | did not learn |",
    ]
    assert keys_text({"study": [study()]}) == "No results yet."
