"""`fastemo push`: a run's model on the Hugging Face Hub, with its card, metrics and figures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from fastemo.console import Console
from fastemo.errors import UserError
from fastemo.inference.exports import FILES
from fastemo.inference.exports.hub import LOG_IN, PREFIX, unavailable
from fastemo.inference.runs import TrainedRun
from fastemo.machine import is_offline, write_text
from fastemo.report.schema import Gap
from fastemo.sharing.card import CARD_FILE, PERSONAL, without_names
from fastemo.sharing.export import one_run, portable, written
from fastemo.version import __version__

# Of those that show nobody.
_FIGURES = ("curves.png", "confusion_matrix.png", "per_class_accuracy.png", "reliability.png")


def push(folder: Path, repository: str, console: Console, *, private: bool = False) -> str:
    """Upload a finished run's model as one commit; nothing of it is visible on the hub before all of it is there.

    What names or shows people stays here: manifest, predictions, examples, names of people in the results, paths.

    Args:
        folder: Of one run.
        repository: `USER/NAME`, created if there is none.
        private: Create it as a private one.

    Returns:
        The model's address with its revision, as `fastemo.load` takes it.

    Raises:
        ValueError: The folder is not that of one finished run, or `repository` is malformed.
        UserError: Not logged in, offline, or the hub refuses; what was uploaded before is not uploaded again.
    """
    import huggingface_hub

    run, address = one_run(folder), f"{PREFIX}{repository}"
    if is_offline():
        raise UserError(f"{address}: HF_HUB_OFFLINE is set: unset it to push")
    if huggingface_hub.get_token() is None:
        raise UserError(f"{address}: no token of the hub: {LOG_IN}")
    figures = [name for name in _FIGURES if (run.folder / name).is_file()]
    with written(run, "safetensors", console, address=address, figures=figures) as made:
        shutil.copyfile(run.folder / "metrics.jsonl", made / "metrics.jsonl")
        write_text(made / "test.json", _results(run))
        try:
            client = huggingface_hub.HfApi(library_name="fastemo", library_version=__version__)
            client.create_repo(repository, private=private or None, exist_ok=True)
            commit = client.upload_folder(
                repo_id=repository, folder_path=made, commit_message=f"fastemo {__version__}: {run.folder.name}"
            )
        except Exception as error:  # of the hub's client, of its HTTP library, of the connection
            raise unavailable(address, error) from error
    console.say(f"pushed {FILES['safetensors']} and {CARD_FILE}: {commit.commit_url}")
    return f"{address}@{commit.oid}"


def _results(run: TrainedRun) -> str:
    """`test.json` without the names of people and the paths of this machine."""
    found = json.loads((run.folder / "test.json").read_text(encoding="utf-8"))
    found["corpus"] = portable(run.config).corpus.title
    found["gaps"] = [without_names(Gap.model_validate(gap)).model_dump() for gap in found.get("gaps") or ()]
    found["groups"] = {by: groups for by, groups in (found.get("groups") or {}).items() if by not in PERSONAL}
    return json.dumps(found, indent=1) + "\n"
