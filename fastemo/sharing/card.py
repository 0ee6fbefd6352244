"""The model card of a run, in Markdown with the metadata that the Hugging Face Hub reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]

from fastemo.config import RunConfig
from fastemo.corpus.config import SPLITS
from fastemo.corpus.manifest import read_manifest
from fastemo.corpus.prepare import named_root
from fastemo.corpus.protocol import num_folds, split_corpus
from fastemo.inference.runs import TrainedRun
from fastemo.json_files import read_json
from fastemo.models.build import pretrained_backbone
from fastemo.report import words
from fastemo.report.page import template
from fastemo.report.schema import Gap, Result
from fastemo.report.view import Run

CARD_FILE = "README.md"
PERSONAL = ("actor", "subject")  # fields whose values name people
_TEMPLATE = Path(__file__).parent / "templates" / "card.md"
_SUBJECTS = "The people tested are in no other split."


class _Corpus(NamedTuple):
    """A corpus of the training: its licence, and the same by the hub's identifier."""

    name: str
    licence: str
    identifier: str


_BUILT_IN = _Corpus("built-in corpus of fastemo: generated faces, of nobody", "Apache-2.0", "apache-2.0")
_KNOWN = {
    "ravdess": _Corpus("RAVDESS, by its file names (doi:10.5281/zenodo.1188976)", "CC BY-NC-SA 4.0", "cc-by-nc-sa-4.0"),
    "cremad": _Corpus("CREMA-D, by its file names", "Open Database License 1.0", "odbl"),
}
_POSED = frozenset({_BUILT_IN, *_KNOWN.values()})


def model_card(run: TrainedRun, address: str, figures: Sequence[str] = ()) -> str:
    """The card of a finished run, from its own files.

    Args:
        address: What `fastemo.load` takes.
        figures: Names of the pictures beside it.

    Raises:
        ValueError: A file of the run is damaged.
        OSError: One is missing.
    """
    config, result = run.config, read_json(run.folder / "test.json", Result)
    corpora = _corpora(config)
    name = config.name or run.folder.name
    listed = read_manifest(run.folder / "manifest.csv", named_root(config.corpus))
    splits = split_corpus(listed, config.corpus)
    text = template(_TEMPLATE).render(
        name=name,
        address=address,
        config=config,
        version=run.version,
        result=result,
        temperature=run.temperature,
        corpora=corpora,
        is_posed=_POSED.issuperset(corpora),
        counts=", ".join(str(len(splits[split])) for split in SPLITS),
        people=len({clip.person for clip in splits["test"] if clip.person}),
        has_folds=num_folds(listed, splits.protocol, config.corpus.folds) > 1,
        start=_start(config),
        subjects=_SUBJECTS if result.subjects == "unseen" else "",
        caveats=words.caveats(result.protocol, result.corpus, result.subjects),
        over_people=result.intervals.actors if result.intervals else None,
        chance=Run(name=name, result=result).chance,
        confused=words.confusions(result.confusion, [*result.per_class]),
        gaps=[without_names(gap) for gap in result.gaps or ()],
        figures=figures,
    )
    metadata = yaml.safe_dump(_metadata(name, corpora, result), sort_keys=False, allow_unicode=True)
    return f"---\n{metadata}---\n\n{text}\n"


def without_names(gap: Gap) -> Gap:
    """A gap between people without their names."""
    return gap.model_copy(update={"best": "", "worst": ""}) if gap.by in PERSONAL else gap


def _corpora(config: RunConfig) -> list[_Corpus]:
    if config.corpus.root is None:
        return [_BUILT_IN]
    found = {}
    for part in config.corpus.parts.values():
        own = _Corpus(part.root.absolute().name, "unknown: ask its owner", "other")  # type: ignore[union-attr]
        known = _KNOWN.get(str(part.labels), own)
        found[known.name] = known
    return [*found.values()]


def _start(config: RunConfig) -> str | None:
    """Where the weights began; `None`: they were drawn."""
    model = config.model
    if model.weights is not None:
        return f"other weights, {model.weights.name}"
    found = pretrained_backbone(model)
    return None if found is None else str(found)


def _metadata(name: str, corpora: Sequence[_Corpus], result: Result) -> Mapping[str, Any]:
    licences = {corpus.identifier for corpus in corpora}
    licence = licences.pop() if len(licences) == 1 else "other"
    metrics = {"accuracy": result.accuracy, "UAR": result.uar, "macro F1": result.macro_f1}
    kinds = {"accuracy": "accuracy", "UAR": "recall", "macro F1": "f1"}
    results = [{"type": kinds[key], "name": key, "value": round(value, 4)} for key, value in metrics.items()]
    title = ", ".join(corpus.name for corpus in corpora)
    return {
        "license": licence,
        **({"license_name": "of-the-training-data"} if licence == "other" else {}),
        "library_name": "fastemo",
        "pipeline_tag": "video-classification",
        "tags": ["emotion-recognition", "facial-expression-recognition"],
        "model-index": [
            {
                "name": name,
                "results": [
                    {
                        "task": {"type": "video-classification", "name": "Expression recognition"},
                        "dataset": {"type": "video", "name": title, "split": f"test, protocol {result.protocol}"},
                        "metrics": results,
                    }
                ],
            }
        ],
    }
