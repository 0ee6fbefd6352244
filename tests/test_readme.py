"""Every command of the README runs, small where it may be, as it stands where it matters."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from helpers import REPOSITORY, command, readme_commands, write_video

MAIN_LINE, TEST_LINE, *OTHERS = readme_commands()
SMALL = (
    " --model.pretrained false --video.num_frames 2 --video.size 36 --augment.crop_size 32"
    " --train.batch_size 16 --train.epochs 1"
)
# Of a study whose cells differ in the number of frames.
SMALL_CELLS = SMALL.replace(" --video.num_frames 2", "")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder with what a user has in a clone."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("fastemo", "configs", "benchmarks"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def shell(line, cwd):
    done = command("bash", "-c", line, cwd=cwd, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_first_two_are_the_promised_lines():
    assert MAIN_LINE == "pip install -e . && accelerate launch fastemo/train.py --config configs/quick.yaml"
    assert TEST_LINE == "pip install -e '.[test]' && pytest"
    ci = (REPOSITORY / ".ci" / "run").read_text()
    assert "^pip install -e '.\\[test\\]' && pytest$" in ci


@pytest.mark.slow
def test_the_other_commands_run_in_order(checkout, few_clips, tmp_path):
    """Synthesised corpora and trainings are small here; each command keeps its own words."""
    assert len(OTHERS) >= 6
    for emotion in ("ANG", "HAP", "SAD"):
        write_video(tmp_path / "cremad" / f"1001_DFA_{emotion}_XX.mp4", 4)
    for line in OTHERS:
        line = line.replace("/data/RAVDESS", str(few_clips)).replace("/data/CREMA-D", str(tmp_path / "cremad"))
        if "train" in line:
            line += SMALL
        if line.startswith("fastemo study"):
            line += f"{SMALL_CELLS} --corpus.root {few_clips}"
        if line.startswith("fastemo synthesize"):
            line += " --clips_per_actor 4 --width 128 --height 72 --num_frames 6"
        if "benchmarks/" not in line:  # tests/benchmarks runs these: helpers.readme_command
            shell(line, checkout)
    assert (checkout / "manifest.csv").is_file()
    assert len(list((checkout / "out").rglob("*.mp4"))) == 96
    assert len(list((checkout / "runs").glob("*/test.json"))) == 4
    assert (checkout / "runs" / "r3d18" / "evaluation" / "test" / "test.json").is_file()
    assert (checkout / "runs" / "r3d18" / "evaluation" / "all-cremad" / "all.json").is_file()
    cells = json.loads((checkout / "studies" / "quick" / "study.json").read_text())["cells"]
    assert {cell["status"] for cell in cells} == {"finished"}
    assert (checkout / "report.html").stat().st_size > 10_000
    assert len(list((checkout / "figures").iterdir())) == 4


@pytest.mark.slow
def test_the_main_line_trains_a_model_that_knows_strangers(checkout):
    """The main line word for word but for the installation, which this environment has."""
    output = shell(MAIN_LINE.removeprefix("pip install -e . && "), checkout)
    assert "test: accuracy" in output
    (result,) = [json.loads(path.read_text()) for path in (checkout / "runs").glob("early_resnet18-*/test.json")]
    assert result["num_clips"] == 120
    assert result["accuracy"] >= 0.75
    confusion, names = result["confusion"], list(result["per_class"])
    for one, other in (("surprised", "fearful"), ("sad", "disgust")):
        i, j = names.index(one), names.index(other)
        right, swapped = confusion[i][i] + confusion[j][j], confusion[i][j] + confusion[j][i]
        assert right > 2 * swapped  # it sees order; a model that does not gets as many wrong as right


def test_every_path_that_the_documents_name_exists():
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (REPOSITORY / name).read_text()
        for path in re.findall(r"`((?:tests|fastemo|configs|benchmarks)/[\w/.]+)`", text):
            assert (REPOSITORY / path).exists(), (name, path)
