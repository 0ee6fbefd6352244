"""Every command of the README and the documentation runs, small where it may be, word for word where it matters."""

import csv
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import demo_server
import pytest
import timm
import torch
import yaml
from helpers import REPOSITORY, command, documented_commands, documents, face_weights, write_video
from hub import TOKEN, served_hub
from safetensors.torch import save_file
from torchvision.models.video import r3d_18
from zenodo import serving, zipped

from fastemo.corpus.cremad import split_actors
from fastemo.corpus.ravdess import EMOTIONS

MAIN_LINE, TEST_LINE, *OTHERS = documented_commands()
SMALL = (
    " --model.pretrained false --video.num_frames 2 --video.size 36 --augment.crop_size 32"
    " --train.batch_size 16 --train.epochs 1"
)
# Of a study whose cells differ in the number of frames.
SMALL_CELLS = SMALL.replace(" --video.num_frames 2", "")


@pytest.fixture
def record(few_clips, monkeypatch):
    """A server that has the small corpus as RAVDESS's archives, with both copies of each take."""
    archives = {}
    for folder in few_clips.glob("Actor_*"):
        clips = {f"{folder.name}/{path.name[3:]}": path.read_bytes() for path in folder.glob("02-*")}
        members = {name.replace("/", f"/{copy}-"): data for name, data in clips.items() for copy in ("01", "02")}
        archives[f"Video_Speech_{folder.name}.zip"] = zipped(members)
    with serving(archives) as server:
        monkeypatch.setenv("FASTEMO_RAVDESS_RECORD", server.url)
        yield


@pytest.fixture
def hub(monkeypatch):
    """A server in place of the Hugging Face Hub."""
    with served_hub() as hub:
        for name, value in {"ENDPOINT": hub.url, "TOKEN": TOKEN, "HUB_DISABLE_XET": "1"}.items():
            monkeypatch.setenv(f"HF_{name}", value)
        yield hub


@pytest.fixture
def weights_caches(tmp_path, monkeypatch):
    """Caches with random weights in place of the pretrained ones, for `fastemo fetch`."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    repository = tmp_path / "hf" / "hub" / "models--timm--resnet18.tv_in1k"
    for folder in (snapshot := repository / "snapshots" / ("0" * 40), repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    save_file(timm.create_model("resnet18").state_dict(), snapshot / "model.safetensors")
    (tmp_path / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    state = {key: value.half() for key, value in r3d_18(weights=None).state_dict().items()}
    torch.save(state, tmp_path / "torch" / "hub" / "checkpoints" / "r3d_18-b3b3357e.pth")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder with what a user has in a clone."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("fastemo", "configs", "benchmarks", "docs"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def environment_path():
    """Where the shell finds the commands of this environment first."""
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def shell(line, cwd):
    done = command("bash", "-c", line, cwd=cwd, PATH=environment_path())
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_first_two_are_the_promised_lines():
    assert MAIN_LINE == "pip install -e . && accelerate launch fastemo/train.py --config configs/quick.yaml"
    ci = (REPOSITORY / ".ci" / "run").read_text()
    for line in (TEST_LINE, next(line for line in OTHERS if "zensical" in line)):
        assert f"^{line}$".replace("[", r"\[").replace("]", r"\]") in ci


@pytest.mark.slow
@pytest.mark.usefixtures("record", "weights_caches")
def test_the_other_commands_run_in_order(checkout, few_clips, hub, tmp_path):
    """Synthesised corpora and trainings are small here; each command keeps its own words."""
    for emotion in ("ANG", "HAP", "SAD"):
        for actors in split_actors().values():
            write_video(tmp_path / "CREMA-D" / f"{actors[0]}_DFA_{emotion}_XX.mp4", 4)
        for number in range(4):
            write_video(tmp_path / "mine" / emotion / f"{number}.mp4", 4)
    rows = []
    for split in ("train", "val", "test"):
        write_video(tmp_path / "long" / f"{split}.mp4", 50)
        rows += [
            f"{split}.mp4,{name},{split},{split},{place},{place + 0.5}" for place, name in enumerate(("joy", "calm"))
        ]
    (tmp_path / "long.csv").write_text("\n".join(["path,label,subject,split,start,end", *rows]))
    study = checkout / "configs" / "study" / "quick.yaml"
    content = yaml.safe_load(study.read_text())
    study.write_text(json.dumps(content | {"parts": content["parts"][-1:]}))  # test_shipped.py trains all rows
    need_a_run = tuple(f"fastemo {name}" for name in ("predict", "demo", "export", "push"))  # for `latest`
    for line in sorted(OTHERS, key=lambda line: line.startswith(need_a_run)):
        line = line.replace("/data/", f"{tmp_path}/")
        if line.startswith("fastemo download"):
            line += " --yes"
        if line.startswith("fastemo fetch"):
            line = f"HF_HUB_OFFLINE=1 {line}"
        if "train" in line:
            line = line.replace("--minutes 5", "--minutes 0.8") + SMALL
        if line.startswith("fastemo study"):
            line += SMALL_CELLS
        if "strong.yaml" in line or line.startswith("fastemo study"):  # whose warm-up outlasts a small training
            line += " --train.warmup_epochs 0"
        if "by_face" in line or "quick_face" in line:
            if not face_weights().is_file():
                continue
            line += f" --faces.weights {face_weights()}"
        if "quick.yaml" in line or "quick_face.yaml" in line:  # else they make the whole built-in corpus
            line += f" --corpus.root {few_clips}"
        if line.startswith("fastemo synthesize"):
            line += " --clips_per_actor 4 --width 128 --height 72 --num_frames 6"
        if line.startswith("fastemo demo"):  # until Ctrl-C
            with demo_server.serving(*shlex.split(line), cwd=checkout, PATH=environment_path()) as url:
                assert url.startswith("http://127.0.0.1:")
        elif not line.startswith(("pip", "python")):  # tests/benchmarks and .ci/run run these
            shell(line, checkout)
    assert (checkout / "manifest.csv").is_file()
    assert len(list((checkout / "out").rglob("*.mp4"))) == 96
    assert len(list((checkout / "runs").glob("*/test.json"))) == 12 + face_weights().is_file()
    assert (checkout / "runs" / "ravdess" / "evaluation" / "val" / "val.json").is_file()
    assert (checkout / "runs" / "ravdess" / "evaluation" / "all-CREMA-D" / "all.json").is_file()
    cells = json.loads((checkout / "studies" / "quick" / "study.json").read_text())["cells"]
    assert {cell["status"] for cell in cells} == {"finished"}
    assert (checkout / "report.html").stat().st_size > 10_000
    assert len(list((checkout / "figures").iterdir())) == 4
    assert (checkout / "exported" / "model.onnx").is_file()
    assert [*hub.commits] == ["user/name"]


@pytest.mark.slow
def test_the_main_line_trains_a_model_that_knows_unseen_actors(checkout):
    """The main line word for word but for the installation, which this environment has."""
    output = shell(MAIN_LINE.removeprefix("pip install -e . && "), checkout)
    assert "test: accuracy" in output
    shell("python docs/picture.py runs/early_resnet18-*", checkout)
    shutil.rmtree(checkout / "faces", ignore_errors=True)  # small ones, of the test of the other commands
    for line in OTHERS[: OTHERS.index("fastemo predict latest faces --out predictions.csv") + 1]:
        if "faces" in line:
            assert "Traceback" not in shell(line, checkout)
    answers = list(csv.DictReader((checkout / "predictions.csv").read_text().splitlines()))
    shown = sum(EMOTIONS[int(Path(row["path"]).name[6:8]) - 1] == row["label"] for row in answers)
    assert (len(answers), shown >= 8) == (16, True)  # of people it has not seen
    for document in (REPOSITORY / "README.md", REPOSITORY / "docs" / "predict.md"):
        [code] = re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL)
        assert any(emotion in shell(f"python -c {shlex.quote(code)}", checkout) for emotion in EMOTIONS)
    (result,) = [json.loads(path.read_text()) for path in (checkout / "runs").glob("early_resnet18-*/test.json")]
    assert result["num_clips"] == 120
    assert result["accuracy"] >= 0.75
    confusion, names = result["confusion"], list(result["per_class"])
    for one, other in (("surprised", "fearful"), ("sad", "disgust")):
        i, j = names.index(one), names.index(other)
        right, swapped = confusion[i][i] + confusion[j][j], confusion[i][j] + confusion[j][i]
        assert right > 2 * swapped  # it sees order; a model that does not gets as many wrong as right


def test_every_path_that_the_documents_name_exists():
    for document in [*documents(), REPOSITORY / "CONTRIBUTING.md"]:
        text = document.read_text()
        named = {
            REPOSITORY / path for path in re.findall(r"`((?:tests|fastemo|configs|benchmarks|docs)/[\w/.]+)`", text)
        }
        linked = {document.parent / path for path in re.findall(r"\]\((?!https?:)([^)#]+)", text)}
        assert not [path for path in named | linked if not path.exists()], document
    assert (REPOSITORY / "docs" / "assets" / "picture.jpg").stat().st_size <= 300_000
