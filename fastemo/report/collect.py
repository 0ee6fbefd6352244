"""Folders of runs, evaluations and studies -> one page, with the corpus as far as it is here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastemo.config import RunConfig, config_leaves, read_config
from fastemo.console import Console
from fastemo.corpus.clip import Clip
from fastemo.corpus.manifest import Manifest, read_manifest
from fastemo.corpus.protocol import split_clips
from fastemo.machine import cache_folder, write_text
from fastemo.report.page import CorpusView, PageData, render
from fastemo.report.page_data import (
    Part,
    Row,
    Settings,
    Study,
    Tested,
    evaluation_file,
    read_evaluation,
    read_run,
    read_study,
    row_of,
)
from fastemo.report.page_models import retest_label
from fastemo.report.page_rows import compared, labels_of
from fastemo.report.page_words import command_words, counted, machine_words
from fastemo.report.published import report_accuracy

_MOST_LISTED = 4
_BUILT_IN = "built-in"


@dataclass
class _Found:
    """What the folders hold."""

    studies: list[Study] = field(default_factory=list)
    runs: list[Tested] = field(default_factory=list)
    retests: list[tuple[str, Tested]] = field(default_factory=list)

    @property
    def tested(self) -> list[Tested]:
        """Every finished run and cell."""
        return [*(cell for study in self.studies for cell in study.cells.values()), *self.runs]


def write_page(folders: Sequence[Path], out: Path, console: Console, *, corpus_root: Path | None = None) -> None:
    """Write one self-contained HTML page of runs, evaluations and studies.

    Args:
        folders: Finished run folders, evaluation folders and study folders, in any number.
        out: The page; replaced whole.
        corpus_root: Where the corpus now lies; by default where the runs found it. The built-in one is not made.

    Raises:
        ValueError: A folder is none of these, is not finished, or holds a damaged file.
        OSError: The page cannot be written.
    """
    if not folders:
        raise ValueError("fastemo page needs at least one run or study folder")
    if out.is_dir():
        raise ValueError(f"{out} is a folder: give the page's file by --out, such as {out / 'report.html'}")
    found = _Found()
    for folder in dict.fromkeys(folders):
        _read(folder, found)
    parts = [part for study in found.studies for part in _titled(study, len(found.studies) + bool(found.runs))]
    if found.runs:
        parts.append(_runs_part(found.runs))
    views = list(_corpora(found.tested, corpus_root))
    for note in (note for view in views for note in view.notes):
        console.say(f"note: {note}")
    page = PageData(
        title=_title(found),
        facts=_facts(found),
        descriptions=[it for study in found.studies if (it := study.head["description"])],
        parts=parts,
        unfinished=[cell for study in found.studies for cell in study.unfinished],
        retests=found.retests,
        corpora=views,
        corpus_note=_corpus_note(found.tested),
    )
    html = render(page)
    write_text(out, html)
    num_rows = sum(len(part.rows) for part in parts)
    console.say(
        f"written: {out}, {counted(len(found.tested), 'run')}, {counted(num_rows, 'row')}, "
        f"{len(html.encode()) / 2**20:.1f} MiB"
    )


def _read(folder: Path, found: _Found) -> None:
    if not folder.is_dir():
        raise ValueError(f"fastemo page needs a finished run or a study folder: there is no folder {folder}")
    if (folder / "study.json").is_file():
        study = read_study(folder, _settings_of)
        found.studies.append(study)
        for name, tested in study.cells.items():
            found.retests += _retests(tested, name)
    elif evaluation_file(folder):
        name = folder.resolve().parent.parent.name
        tested = read_evaluation(folder, _settings_of(folder.resolve().parent.parent))
        found.retests.append((retest_label(name, tested), tested))
    else:
        tested = read_run(folder, _settings_of(folder))
        found.runs.append(tested)
        found.retests += _retests(tested, tested.name)


def _retests(tested: Tested, name: str) -> Iterator[tuple[str, Tested]]:
    """The later evaluations that lie in a run folder."""
    below = tested.folder / "evaluation" if tested.folder else None
    if below is None or not below.is_dir():
        return
    for folder in sorted(below.iterdir()):
        if evaluation_file(folder):
            again = read_evaluation(folder, tested.settings)
            yield retest_label(name, again), again


def _config_of(folder: Path) -> RunConfig | None:
    """A run's configuration; None where it has none that this version can read."""
    path = folder / "config.yaml"
    try:
        return read_config(["--config", str(path)]) if path.is_file() else None
    except ValueError:
        return None


def _settings_of(folder: Path) -> Settings:
    config = _config_of(folder)
    if config is None:
        return {}
    return {name: str(value) if isinstance(value, Path) else value for name, value in config_leaves(config)}


def _titled(study: Study, num_sources: int) -> list[Part]:
    """A study's parts, by its name too where others stand beside."""
    if num_sources < 2:
        return list(study.parts)
    return [
        Part(**{**part.__dict__, "title": f"{study.head['name']}: {part.title}"})  # titles of studies may be the same
        for part in study.parts
    ]


def _runs_part(runs: Sequence[Tested]) -> Part:
    rows: list[Row] = []
    for tested, label in zip(runs, labels_of(runs), strict=True):
        frames, augmented = tested.num_frames, tested.settings.get("augment.enabled")
        known = frames is not None and isinstance(augmented, bool)
        rows.append(
            row_of(tested, label, report=report_accuracy(tested.model, frames or 0, bool(augmented)) if known else None)
        )
    return compared("Run" if len(runs) == 1 else "Runs", rows)


def _title(found: _Found) -> str:
    if found.studies:
        return f"fastemo study: {', '.join(study.head['name'] for study in found.studies)}"
    if len(found.runs) == 1:
        return f"fastemo run: {found.runs[0].name}"
    return f"fastemo: {counted(len(found.runs), 'run')}" if found.runs else "fastemo: runs tested again"


def _facts(found: _Found) -> list[tuple[str, str]]:
    """What was run: name and value."""
    tested = found.tested
    heads = [study.head for study in found.studies]
    machines = [
        machine_words(it) for it in (*(h["machine"] for h in heads), *(t.result.get("machine") for t in tested))
    ]
    versions = [head["versions"] for head in heads] + [it.result.get("versions") for it in tested]
    seeds = sorted({seed for it in tested if (seed := it.result.get("seed")) is not None})
    minutes = [head["minutes"] for head in heads if head["minutes"]]
    told = [
        ("Corpus", _listed([*(head["corpus"] for head in heads), *(it.result["corpus"] for it in tested)])),
        ("Protocol", _listed([*(head["protocol"] for head in heads), *(it.result["protocol"] for it in tested)])),
        ("Runs", _run_counts(found)),
        ("Seeds", ", ".join(map(str, seeds[:20]))),
        ("Machine", _listed(machines)),
        ("Versions", _versions(versions)),
        ("Date", _listed([*(head["date"] for head in heads), *(it.date for it in found.runs)])),
        ("Time of all runs", f"{sum(minutes):.0f} minutes" if minutes else ""),
    ]
    commands = [*(head["command"] for head in heads), *(it.command for it in found.runs)]
    shown = list(dict.fromkeys(command_words(it) for it in commands if it))
    told += [("Command", it) for it in shown[:_MOST_LISTED]]
    return [(name, value) for name, value in told if value]


def _run_counts(found: _Found) -> str:
    unfinished = sum(len(study.unfinished) for study in found.studies)
    told = f"{len(found.tested)} finished"
    return f"{told}, {unfinished} not finished" if unfinished else told


def _listed(values: Iterable[str | None]) -> str:
    """Each once, the first few of many."""
    unique = list(dict.fromkeys(value for value in values if value))
    rest = len(unique) - _MOST_LISTED
    return "; ".join(unique[:_MOST_LISTED]) + (f"; {rest} more" if rest > 0 else "")


def _versions(told: Iterable[dict[str, str] | None]) -> str:
    """`torch 2.11.0, ...`, every version of a package that was met."""
    met: dict[str, dict[str, None]] = {}
    for versions in told:
        for package, version in (versions or {}).items():
            met.setdefault(package, {})[version] = None
    return ", ".join(f"{package} {' and '.join(versions)}" for package, versions in met.items())


def _corpus_note(tested: Sequence[Tested]) -> str:
    """How the report's and the published figures relate to what was tested."""
    corpora = {it.result["corpus"] or "" for it in tested}
    if any(it.startswith(_BUILT_IN) for it in corpora):
        return (
            "The report's and the published figures are of RAVDESS, faces of people. The corpus here is another, of "
            "generated faces: figures that stand side by side can be compared in their order at most, not in height."
        )
    told = (
        "The report's and the published figures are of RAVDESS: they can be held beside these where the corpus is it."
    )
    if any(it.result["protocol"] == "report" for it in tested):
        return f"{told} The report tested 240 clips, which are 120 takes counted twice, of two actors."
    return f"{told} The report tested both files of each take of two actors, which the protocol named report repeats."


def _corpora(tested: Sequence[Tested], chosen_root: Path | None) -> Iterator[CorpusView]:
    """Each corpus once, as the first of its runs saw it."""
    seen = set()
    for it in tested:
        config = _config_of(it.folder) if it.folder else None
        if config is None or it.folder is None or not (it.folder / "manifest.csv").is_file():
            continue
        what: Any = (config.corpus.root, config.corpus.labels, config.corpus.protocol, config.corpus.synthetic)
        if what not in seen:
            seen.add(what)
            yield _corpus(it, it.folder, config, chosen_root)


def _corpus(tested: Tested, folder: Path, config: RunConfig, chosen_root: Path | None) -> CorpusView:
    from fastemo.report import corpus_figures  # with matplotlib, which a page without a corpus has no use for

    corpus = config.corpus
    listed = read_manifest(folder / "manifest.csv", chosen_root or corpus.root or Path())
    splits = split_clips(listed, corpus.protocol, fold=corpus.fold)
    root = chosen_root or corpus.root or _built_in_root(listed)
    notes = list(splits.notes)
    if corpus.fold or splits.protocol in ("kfold5", "loso"):
        notes.append(f"The splits shown are those of fold {corpus.fold}.")
    pictures: list[bytes | None] = [None, None]
    if root is None or not root.is_dir():
        notes.append(
            "The corpus is not where the run found it, so it has no pictures here; give its folder by --corpus.root."
        )
    else:
        manifest = Manifest.of(root, listed.rows)
        for position, draw in enumerate((corpus_figures.example_sheet, corpus_figures.crop_picture)):
            try:
                pictures[position] = draw(manifest, root, config.video.spec)
            except (ValueError, OSError) as error:
                notes.append(f"A picture of the corpus could not be made: {error}.")
    return CorpusView(
        title=tested.result["corpus"] or "as listed in the run folder",
        class_counts=corpus_figures.class_counts(splits),
        actor_counts=corpus_figures.actor_counts(splits),
        sheet=pictures[0],
        crop=pictures[1],
        notes=list(dict.fromkeys(notes)),
    )


def _built_in_root(listed: Manifest) -> Path | None:
    """The folder of the cache that holds a built-in corpus of just these files, where it is still there."""
    made = cache_folder() / "synthetic"
    folders = sorted(path for path in made.iterdir() if path.is_dir()) if made.is_dir() else []
    return next((path for path in folders if listed.clips and all(_is_there(path, it) for it in listed.clips)), None)


def _is_there(root: Path, clip: Clip) -> bool:
    try:
        return (root / clip.key).stat().st_size == clip.size_bytes
    except OSError:
        return False
