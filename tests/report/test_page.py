"""The page: says what the folders hold, needs nothing else, and refuses or survives whatever they hold."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import TINY_RUN, empty_figures, full_or
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from study_folder import QUIET, Element, cells_of, parsed

from fastemo.cli import main
from fastemo.config import read_config
from fastemo.experiment.retest import evaluate_run
from fastemo.experiment.run import run
from fastemo.report.page import write_page
from fastemo.report.published import report_accuracy
from fastemo.report.view import Run

# Pictures of a corpus take a second; only tests that look at them let the page find it.
NOWHERE = Path("nowhere")


def page_of(out: Path, *folders: Path, corpus_root: Path | None = NOWHERE) -> Element:
    write_page(folders, out, QUIET, corpus_root=corpus_root)
    return checked(out)


def checked(out: Path) -> Element:
    """A page's tree, held to what every page has to be."""
    html = out.read_text(encoding="utf-8")
    tree = parsed(html)
    # Nothing is fetched: pictures are inside, links lead within, and the browser is told to load nothing else.
    for element in tree:
        for name in ("src", "href", "srcset", "data", "action"):
            value = element.attributes.get(name, "")
            assert not value or value.startswith(("data:image/jpeg;base64,", "#")), (element.tag, name, value)
        assert not [name for name in element.attributes if name.startswith("on")], element.attributes
    assert "url(" not in html
    assert "@import" not in html
    assert len(tree.all("script")) == 1
    # Who cannot see it is told what it shows.
    assert all(it.attributes["alt"] for it in tree.all("img"))
    assert all(it.attributes["aria-label"] for it in tree.all("svg"))
    assert "<style" not in html.partition("</head>")[2]
    names = [it.attributes["id"] for it in tree if "id" in it.attributes]
    assert len(set(names)) == len(names)
    links = [it.attributes["href"] for it in tree.all("a")]
    assert {link[1:] for link in links} <= set(names)
    for table in tree.all("table"):
        assert table.all("caption")
        width = len(table.all("thead")[0].all("th"))
        assert all(len(row) == width for row in cells_of(table))
    return tree


def tables_of(section: Element) -> dict[str, list[list[str]]]:
    return {table.all("caption")[0].text: cells_of(table) for table in section.all("table")}


def folds_of(tree: Element) -> list[Element]:
    """One for each model."""
    return [it for it in tree.section("models").children if isinstance(it, Element) and it.tag == "details"]


@pytest.fixture
def copied(made_study, tmp_path):
    """A study that a test may change."""
    return Path(shutil.copytree(made_study, tmp_path / "copied"))


@pytest.fixture
def changed_run(tiny_run, tmp_path):
    """A run that a test may change."""
    return shutil.copytree(tiny_run, tmp_path / "a" / "b" / "run")


def change(path: Path, *places: str | int, value: Any) -> None:
    content = json.loads(path.read_text())
    inner = content
    for place in places[:-1]:
        inner = inner[place]
    inner[places[-1]] = value
    path.write_text(json.dumps(content))


class TestAStudy:
    def test_every_number_is_the_studys(self, made_study, tmp_path):
        tree = page_of(tmp_path / "page.html", made_study)
        study = json.loads((made_study / "study.json").read_text())
        tables = tables_of(tree.section("results"))
        number = 0
        for part in study["parts"]:
            rows = tables[f"{part['title']}: results by row"]
            for row, shown in zip(part["rows"], rows, strict=True):
                number += 1
                assert shown[0].startswith(f"{number}. {row['label']}")
                assert ("did not learn" in shown[0]) == (row["has_learned"] is False)
                low, high = row["interval"]
                assert shown[1] == f"{100 * row['accuracy']:.1f} %{100 * low:.1f} to {100 * high:.1f} %"
        classes = tables_of(tree.section("classes")).popitem()[1]
        by_name = {cell["name"]: cell["result"] for cell in study["cells"]}
        every = [row for part in study["parts"] for row in part["rows"]]
        for row, shown in zip(every, classes, strict=True):
            recalls = by_name[row["cells"][0]]["per_class"].values()
            assert shown[1:] == [f"{100 * it:.0f} %" for it in recalls]
        compared = tables_of(tree.section("comparisons"))
        for part in study["parts"]:
            (rows,) = [rows for caption, rows in compared.items() if caption.startswith(f"{part['title']}: all clips")]
            assert [row[:2] for row in rows] == [[it["a"], it["b"]] for it in part["comparisons"]]
            told = [f"{100 * it['difference']:+.1f}".replace("-", "−") for it in part["comparisons"]]
            assert [row[2].startswith(it) for row, it in zip(rows, told, strict=True)] == [True] * len(told)

    def test_a_cell_in_two_parts_is_trained_and_told_once(self, made_study, tmp_path):
        tree = page_of(tmp_path / "page.html", made_study)
        study = json.loads((made_study / "study.json").read_text())
        assert len(study["cells"]) == 5
        assert sum(len(part["rows"]) for part in study["parts"]) == 6
        folds = folds_of(tree)
        assert len(folds) == 5
        # Part by part, with two lines of each of its runs in both panels; a part's legend names its runs.
        legends = tree.section("curves").all("ul")
        assert [[entry.text for entry in it.all("li")] for it in legends] == [
            [f"{number}. {row['label']}" for number, row in enumerate(part["rows"], start)]
            for start, part in ((1, study["parts"][0]), (5, study["parts"][1]))
        ]
        for drawing, legend in zip(tree.section("curves").all("svg"), legends, strict=True):
            shown = Counter(it.attributes["data-series"] for it in drawing.all("g") if "data-series" in it.attributes)
            assert shown == {entry.attributes["data-series"]: 4 for entry in legend.all("li")}

    def test_each_model_shows_its_confusions_clips_and_heat(self, made_study, tmp_path):
        tree = page_of(tmp_path / "page.html", made_study)
        study = json.loads((made_study / "study.json").read_text())
        folds = folds_of(tree)
        for cell, fold in zip(study["cells"], folds, strict=True):
            (drawn,) = [it for it in fold.all("figure") if it.attributes.get("data-figure") == "confusion_matrix"]
            counts, names = cell["result"]["confusion"], list(cell["result"]["per_class"])
            shown = [it.text.split(": ")[1] for it in drawn.all("title")]
            assert shown == [f"{count} of {sum(line)}" for line in counts for count in line if count]
            folder = made_study / cell["folder"]
            examples = json.loads((folder / "examples.json").read_text())["examples"]
            wrong = [it for it in examples if it["kind"] == "wrong"]
            cards = [it for it in fold.all("figure") if it.attributes.get("class") == "wrong"]
            assert 3 <= len(cards) <= len(wrong)
            for card, example in zip(cards, wrong, strict=False):
                assert example["key"] in card.text
                assert f"{example['label']}, predicted as {example['prediction']}" in card.text
                frames, heat = card.all("img")
                assert "as the model saw them" in frames.attributes["alt"]
                assert f"evidence for {example['prediction']}" in heat.attributes["alt"]
            i, j = max(permutations(range(len(names)), 2), key=lambda place: counts[place[0]][place[1]])
            assert f"{names[i]} predicted as {names[j]} {counts[i][j]} time" in fold.all("li")[0].text

    def test_what_was_run_is_told(self, made_study, tmp_path):
        study = json.loads((made_study / "study.json").read_text())
        tree = page_of(tmp_path / "page.html", made_study)
        facts = {it.all("dt")[0].text: it.all("dd")[0].text for it in tree.all("div") if it.all("dt")}
        assert facts["Protocol"] == "speech"
        assert facts["Runs"] == "5 finished"
        assert facts["Corpus"] == study["corpus"]
        assert f"torch {study['versions']['torch']}" in facts["Versions"]
        assert f"{study['machine']['processors']} processor" in facts["Machine"]

    def test_the_corpus_is_shown(self, made_study, tmp_path):
        section = page_of(tmp_path / "page.html", made_study, corpus_root=None).section("corpus")
        assert len(section.all("img")) == 2
        classes, actors = (it.attributes["aria-label"] for it in section.all("svg"))
        assert {"neutral: train 20", "neutral: test 2", "calm: val 2"} <= set(classes.split("; "))
        assert {"1: train 8", "22: val 8", "24: test 8"} <= set(actors.split("; "))

    def test_a_corpus_that_moved(self, copied, tiny_corpus, tmp_path):
        for path in copied.rglob("config.yaml"):
            path.write_text(path.read_text().replace(str(tiny_corpus), str(tmp_path / "gone")))
        tree = page_of(tmp_path / "page.html", copied, corpus_root=None)
        assert not tree.section("corpus").all("img")
        assert "give its folder with --corpus.root" in tree.section("corpus").text
        there = page_of(tmp_path / "page.html", copied, corpus_root=tiny_corpus)
        assert len(there.section("corpus").all("img")) == 2

    def test_cells_that_are_not_finished(self, copied, tmp_path):
        study = json.loads((copied / "study.json").read_text())
        gone = study["parts"][1]["rows"][1]["cells"][0]
        for position, cell in enumerate(study["cells"]):
            if cell["name"] == gone:
                state = {"status": "failed", "reason": "<b>no</b> memory", "attempts": 2, "result": None}
                change(copied / "study.json", "cells", position, value={**cell, **state})
        change(copied / "study.json", "parts", 1, "rows", 1, "accuracy", value=None)
        tree = page_of(tmp_path / "page.html", copied)
        assert f"{gone}: failed after 2 attempts: <b>no</b> memory" in tree.text
        assert tables_of(tree.section("results"))["Two models: results by row"][1][1] == "not finished"

    def test_a_study_file_alone(self, made_study, tmp_path):
        """As it lies in benchmarks/results: no run folders, yet every number."""
        alone = tmp_path / "alone"
        alone.mkdir()
        shutil.copy(made_study / "study.json", alone)
        tree = page_of(tmp_path / "page.html", alone)
        with_folders = page_of(tmp_path / "whole.html", made_study)
        assert tables_of(tree.section("results")) == tables_of(with_folders.section("results"))
        assert "Its run folder is not beside study.json" in tree.section("models").text
        assert not tree.all("img")

    def test_a_study_before_its_end(self, copied, tmp_path):
        change(copied / "study.json", "parts", value=[])
        tree = page_of(tmp_path / "page.html", copied)
        assert len(tables_of(tree.section("results"))["Finished runs: results by row"]) == 5
        assert "The study has no summary yet" in tree.text

    def test_order_in_words(self, copied, tmp_path):
        """A made table: the model that sees order tells the pairs apart, the blind one does not."""
        orders = {
            "early_cnn": {"right": 60, "swapped": 2, "elsewhere": 2, "accuracy": 60 / 62, "interval": [0.92, 1.0]},
            "late_fusion": {"right": 31, "swapped": 30, "elsewhere": 3, "accuracy": 31 / 61, "interval": [0.38, 0.64]},
        }
        for row, order in enumerate(orders.values()):
            change(copied / "study.json", "parts", 1, "rows", row, "order", value=order)
        pair = {
            "a": "early_cnn",
            "b": "late_fusion",
            "difference": 0.4,
            "interval": [0.3, 0.5],
            "p_bootstrap_holm": 0.0,
        }
        change(copied / "study.json", "parts", 1, "order_comparisons", value=[pair])
        tree = page_of(tmp_path / "page.html", copied)
        (rows,) = [rows for name, rows in tables_of(tree.section("time")).items() if name.startswith("Classes told")]
        assert [row[1] for row in rows] == ["yes", "no"]
        assert rows[0][2] == "96.8 %92.0 to 100.0 %"
        finding = " ".join(it.text for it in tree.all("p") if it.attributes.get("class") == "finding")
        assert "Of 1 row whose model sees the order of frames, 1 told them apart above chance" in finding
        assert "late_fusion 50.8 % (38.0 to 64.0 %); 1 of 1 interval holds chance" in finding
        assert "correct more often in 1 of 1 pair of one that does and one that does not" in finding


class TestRuns:
    def test_one_run(self, tiny_run, tmp_path):
        tree = page_of(tmp_path / "page.html", tiny_run)
        test = json.loads((tiny_run / "test.json").read_text())
        (row,) = tables_of(tree.section("results"))["Run: results by row"]
        low, high = test["intervals"]["accuracy"]
        assert row[1] == f"{100 * test['accuracy']:.1f} %{100 * low:.1f} to {100 * high:.1f} %"
        assert "comparisons" not in {it.attributes.get("id") for it in tree}
        assert folds_of(tree)[0].attributes.get("open") is not None

    @empty_figures()
    def test_two_runs_are_compared_and_told_apart(self, tiny_run, tiny_corpus, tmp_path):
        options = [*TINY_RUN, "--corpus.root", str(tiny_corpus), "--runs_dir", str(tmp_path), "--name", "two"]
        other = run(read_config([*options, "--train.lr", "0.01"]))
        tree = page_of(tmp_path / "page.html", tiny_run, other, tiny_run)
        rows = tables_of(tree.section("results"))["Runs: results by row"]
        assert [row[0] for row in rows] == [
            "1. early_cnn, 2 frames, augmented, train.lr 0.0001",
            "2. early_cnn, 2 frames, augmented, train.lr 0.01",
        ]
        assert len(tree.section("comparisons").all("table")) == 1

    @pytest.mark.parametrize("fusion", ["mean", "max", "attention", "concat"])
    def test_which_models_do_not_see_the_order(self, fusion):
        run = SimpleNamespace(model="late_fusion", settings={"model.fusion": fusion})
        assert Run.is_order_blind.fget(run) is (fusion != "concat")
        assert not Run.is_order_blind.fget(SimpleNamespace(model="tsm", settings={"model.fusion": fusion}))

    def test_the_reports_figure_stands_beside_its_configuration(self, changed_run, tmp_path):
        text = (changed_run / "config.yaml").read_text()
        (changed_run / "config.yaml").write_text(re.sub(r"num_frames: 2", "num_frames: 10", text))
        tree = page_of(tmp_path / "page.html", changed_run)
        tables = tables_of(tree.section("results"))
        (row,) = tables["Run: results by row"]
        assert report_accuracy("early_cnn", 10, True) == 0.2667
        assert report_accuracy("late_fusion", 10, True, backbone="resnet18") == 0.529
        assert report_accuracy("late_fusion", 10, True, backbone="mobilenetv3_small_100") is None
        assert report_accuracy("late_fusion", 10, True, fusion="attention") is None
        assert "26.7 %" in row
        published = tables["Published accuracies on RAVDESS from the video alone"]
        assert [line[1] for line in published] == ["75.0 %", "62.1 %", "75.6 %"]

    @pytest.mark.parametrize(
        ("changes", "sentences"),
        [
            ({}, ["Tested on actors 23 and 24, RAVDESS's hardest pair"]),
            ({"protocol": "report"}, ["Tested on actors 23 and 24, RAVDESS's hardest pair"]),
            ({"corpus": "built-in (generated faces)"}, []),
            ({"protocol": "kfold5"}, []),
            ({"protocol": "folders", "subjects": "shared"}, ["the accuracy is not for unseen subjects"]),
            ({"protocol": "folders", "subjects": "unknown"}, ["Whether the people tested are unseen is unknown"]),
        ],
    )
    def test_warnings_stand_beside_every_figure(self, changed_run, tmp_path, changes, sentences):
        for name, value in changes.items():
            change(changed_run / "test.json", name, value=value)
        tree = page_of(tmp_path / "page.html", changed_run)
        notes = [it.text for it in tree.all("p") if it.attributes.get("class") == "note"]
        for sentence in ("hardest pair", "not for unseen subjects", "unseen is unknown"):
            wanted = 3 * any(sentence in it for it in sentences)  # at the finding, the table and the model
            assert sum(sentence in it for it in notes) == wanted
        assert all(any(sentence in it for it in notes) for sentence in sentences)

    def test_the_best_epoch_on_test_stands_apart(self, changed_run, tmp_path):
        tree = page_of(tmp_path / "page.html", changed_run)
        assert "optimistic" not in tree.section("results").text + tree.section("models").text
        change(changed_run / "test.json", "best_epoch_on_test", value={"epoch": 3, "accuracy": 0.625, "uar": 0.5})
        tree = page_of(tmp_path / "page.html", changed_run)
        (row,) = tables_of(tree.section("results"))["Run: results by row"]
        assert row[3] == "62.5 %UAR 50.0 %"
        assert "Best epoch on test (optimistic): 62.5 %, UAR 50.0 %." in tree.section("models").text

    def test_both_files_of_a_take_are_told_both_ways(self, changed_run, tmp_path):
        one = {"accuracy": 0.5, "num_clips": 8, "intervals": {"accuracy": [0.25, 0.75]}}
        change(changed_run / "test.json", "one_file_a_take", value=one)
        tree = page_of(tmp_path / "page.html", changed_run)
        (row,) = tables_of(tree.section("results"))["Run: results by row"]
        assert row[3] == "50.0 %25.0 to 75.0 %"
        assert "with one file per take, 8 in all, it was correct for 50.0 % (25.0 to 75.0 %)" in tree.text

    def test_later_evaluations(self, changed_run, tmp_path):
        result = evaluate_run(changed_run, QUIET, split="val")
        alone = page_of(tmp_path / "alone.html", changed_run / "evaluation" / "val")
        beside = page_of(tmp_path / "beside.html", changed_run)
        for tree in (alone, beside):
            (rows,) = tables_of(tree.section("retests")).values()
            assert [row[0] for row in rows] == ["run on the split val"]
            assert rows[0][4:6] == [str(result["num_clips"]), str(result["num_takes"])]
        assert "results" not in {it.attributes.get("id") for it in alone}


class TestRefusing:
    @pytest.mark.parametrize(
        ("make", "message"),
        [(lambda folder: folder / "nowhere", "there is no folder"), (lambda folder: folder, "holds no test.json")],
    )
    def test_no_run(self, tmp_path, make, message, capsys):
        with pytest.raises(SystemExit) as caught:
            main(["page", str(make(tmp_path)), "--out", str(tmp_path / "page.html")])
        assert caught.value.code == 2
        said = capsys.readouterr().err
        assert message in said
        assert "Traceback" not in said
        assert not (tmp_path / "page.html").exists()

    def test_a_folder_as_the_page(self, tiny_run, tmp_path):
        with pytest.raises(ValueError, match="is a folder: give the page's file with --out"):
            write_page([tiny_run], tmp_path, QUIET)

    def test_a_cells_folder_outside_the_study(self, copied, tiny_run, tmp_path):
        change(copied / "study.json", "cells", 0, "folder", value=str(tiny_run))
        with pytest.raises(ValueError, match="leads out of the study"):
            write_page([copied], tmp_path / "page.html", QUIET)

    @pytest.mark.parametrize("name", ["test.json", "metrics.jsonl", "examples.json", "predictions.csv"])
    def test_a_damaged_file_is_named_and_an_older_page_stays(self, changed_run, tmp_path, name):
        out = tmp_path / "page.html"
        out.write_text("before")
        (changed_run / name).write_text('{"a": 1')
        with pytest.raises(ValueError, match=re.escape(name)):
            write_page([changed_run], out, QUIET)
        assert out.read_text() == "before"

    def test_a_table_that_is_not_square(self, changed_run, tmp_path):
        change(changed_run / "test.json", "confusion", value=[[1, 2]])
        with pytest.raises(ValueError, match=r"test.json .*confusion must be 8 x 8"):
            write_page([changed_run], tmp_path / "page.html", QUIET)


class TestHostileFolders:
    HOSTILE = "</script><img src=x onerror=alert(1)>\"'&<b>"

    def test_markup_in_every_text_is_text(self, copied, tmp_path):
        def spoil(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: spoil(it) for key, it in value.items()}
            if isinstance(value, list):
                return [spoil(it) for it in value]
            return f"{value}{self.HOSTILE}" if isinstance(value, str) else value

        study = json.loads((copied / "study.json").read_text())
        kept = [{name: cell[name] for name in ("name", "folder", "status")} for cell in study["cells"]]
        study = {**spoil(study), "name": f"x{self.HOSTILE}"}
        for cell, names in zip(study["cells"], kept, strict=True):
            cell |= names
            cell["result"] |= {"subjects": "unseen"}
        for part in study["parts"]:
            for row in part["rows"]:
                row["cells"] = [name.removesuffix(self.HOSTILE) for name in row["cells"]]
        (copied / "study.json").write_text(json.dumps(study))
        for path in copied.rglob("examples.json"):
            examples = json.loads(path.read_text())["examples"]
            for it in examples:
                it["key"] = it["label"] = self.HOSTILE
            path.write_text(json.dumps({"examples": examples}))
        tree = page_of(tmp_path / "page.html", copied)  # which looks for scripts, handlers and foreign pictures
        assert self.HOSTILE in tree.all("h1")[0].text
        assert len(tree.all("b")) == 0

    @pytest.mark.parametrize("name", ["../../../secret.jpg", "/etc/passwd", "examples", "nowhere.jpg", "a\0b"])
    def test_a_picture_from_elsewhere_is_not_taken(self, changed_run, tmp_path, name):
        shutil.copy(next(changed_run.glob("examples/*.jpg")), tmp_path / "secret.jpg")
        examples = json.loads((changed_run / "examples.json").read_text())["examples"]
        examples = [{**it, "frames": name, "gradcam": name} for it in examples]
        change(changed_run / "examples.json", "examples", value=examples)
        tree = page_of(tmp_path / "page.html", changed_run)
        assert not tree.section("models").all("img")
        assert "The pictures of its example clips are not in the folder" in tree.text

    def test_weights_of_frames_stand_under_them(self, changed_run, tmp_path):
        examples = json.loads((changed_run / "examples.json").read_text())["examples"]
        examples = [{**it, "frame_weights": [0.5, 0.25, 0.1, 0.1, 0.04, 0.01]} for it in examples]
        change(changed_run / "examples.json", "examples", value=examples)
        tree = page_of(tmp_path / "page.html", changed_run)
        shown = [it for it in tree.section("models").all("p") if it.attributes.get("class") == "weights"]
        assert shown
        for line in shown:
            assert [it.text.split()[0] for it in line.all("span")] == ["50", "25", "10", "10", "4", "1"]

    def test_bytes_that_are_no_picture_are_left_out(self, changed_run, tmp_path):
        for path in changed_run.glob("examples/*.jpg"):
            path.write_bytes(b"<svg onload='alert(1)'/>" * 10)
        assert not page_of(tmp_path / "page.html", changed_run).section("models").all("img")

    @pytest.mark.slow
    def test_any_change_of_a_study_is_shown_or_refused(self, made_study, tmp_path, fault_log):
        """Values of any kind at any place of study.json and test.json."""
        work = Path(shutil.copytree(made_study, tmp_path / "work"))
        for cell in sorted(work.glob("cells/*"))[2:]:
            shutil.rmtree(cell)
        files = [work / "study.json", *sorted(work.glob("cells/*/test.json"))]
        whole = {path: path.read_text() for path in files}
        out = tmp_path / "page.html"
        outcomes: Counter[str] = Counter()

        values = st.one_of(
            st.none(),
            st.booleans(),
            st.integers(-(2**70), 2**70),
            st.floats(),
            st.text(max_size=20),
            st.just([]),
            st.just({}),
            st.lists(st.floats(0, 1), max_size=3),
        )

        def places(value: Any, above: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
            inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
            return [above, *(place for key, it in inner for place in places(it, (*above, key)))]

        all_places = {path: [it for it in places(json.loads(text)) if it] for path, text in whole.items()}

        count = full_or(60, 300)

        @settings(max_examples=count, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
        @given(st.sampled_from(files), st.data())
        def attack(path: Path, data: st.DataObject) -> None:
            where = data.draw(st.sampled_from(all_places[path]))
            try:
                change(path, *where, value=data.draw(values))
                write_page([work], out, QUIET, corpus_root=NOWHERE)
            except ValueError:
                outcomes["refused by name"] += 1
            else:
                checked(out)
                outcomes["shown"] += 1
            finally:
                path.write_text(whole[path])

        attack()
        assert min(outcomes.values()) > count / 15, outcomes
        fault_log("a study's or a test's JSON with any value at any place, shown as a page", outcomes)
