"""A configuration -> its Manifest: generates the built-in corpus if none is given, and caches the scan."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from fastemo.console import Console
from fastemo.corpus import cremad, ravdess
from fastemo.corpus.clip import Clip, Root, class_name, folders, is_named
from fastemo.corpus.config import LABELS, CorpusConfig
from fastemo.corpus.files.finding import HIDDEN
from fastemo.corpus.manifest import Manifest, scan
from fastemo.corpus.synthetic.synthesis import GENERATOR_VERSION, synthesize
from fastemo.machine import available_processors, cache_folder, locked
from fastemo.yaml_files import load_yaml

_ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"})
_MOST_KINDS = 6


def prepare_corpus(config: CorpusConfig, console: Console) -> Manifest:
    """Generate the built-in corpus if none is given, scan all, and refuse one with too many bad files.

    The scan is cached, so that an unchanged file is probed once.

    Raises:
        ValueError: A root is not a folder or has no clip, more than `max_rejected` files are bad, or the label table or
            the map of classes is faulty.
    """
    root, found = corpus_root(config, console), {}
    for name, part in config.parts.items():
        found[name] = scan_cached(folders(root)[name], part, console)
        console.say(describe(found[name]))
    manifest = Manifest.joined(root, found)
    if len(manifest.rejected) > config.max_rejected:
        for clip in manifest.rejected:
            console.say(f"  rejected {clip.key}: {clip.reason}")
        raise ValueError(
            f"{len(manifest.rejected)} files in {manifest.where} were rejected, {config.max_rejected} are allowed: "
            f"repair or remove them, or continue without them: --corpus.max_rejected {len(manifest.rejected)}"
        )
    for name, part in config.parts.items():
        if not found[name].clips:
            raise ValueError(f"{found[name].where} has no labelled clips: {advice(found[name], str(part.labels))}")
        if found[name].unlabelled:
            console.say(_unlabelled(found[name].unlabelled))
    return manifest if config.classes is None else _with_classes(manifest, config.classes, console)


def _with_classes(manifest: Manifest, path: Path, console: Console) -> Manifest:
    """The manifest with its classes renamed or left out by a YAML file, see `CorpusConfig.classes`.

    Raises:
        ValueError: The file is not such a map, or names a corpus or a class that does not occur.
    """
    content = load_yaml(path)
    content = content if isinstance(content, dict) else {"": None}
    is_by_corpus = all(isinstance(value, dict) for value in content.values())
    there = {(clip.corpus, clip.emotion) for clip in manifest.clips}
    corpora = sorted({corpus for corpus, _ in there})
    new: dict[tuple[str, str], str | None] = {}
    for corpus, renamed in content.items() if is_by_corpus else [(corpus, content) for corpus in corpora]:
        if corpus not in corpora:
            raise ValueError(f"{path} names the corpus '{corpus}', must be one of {', '.join(corpora) or 'none'}")
        for name, value in renamed.items():
            if not name.strip() or not (value is None or (isinstance(value, str) and value.strip())):
                line = f"{name}: {value}"
                raise ValueError(f"{path} must hold lines such as 'anger: angry' or 'contempt: null', not '{line}'")
            new[corpus, class_name(name)] = value and class_name(value)
    if unknown := sorted({name for _, name in new} - {name for _, name in there}):
        names = ", ".join(sorted({name for _, name in there}))
        raise ValueError(f"{path} names the class '{unknown[0]}', which no clip has; there are {names}")

    def renamed_clip(clip: Clip) -> Clip:
        name = new.get((clip.corpus, clip.emotion), clip.emotion) if clip.status == "clip" else clip.emotion
        if name is None:
            return replace(clip, status="unlabelled", reason=f"class {clip.emotion} is left out by {path.name}")
        return replace(clip, emotion=name)

    found = Manifest.of(manifest.root, [renamed_clip(clip) for clip in manifest.rows], manifest.passed_over)
    if left_out := len(manifest.clips) - len(found.clips):
        console.say(f"{left_out} clips are left out by {path}")
    return found


def advice(manifest: Manifest, labels: str) -> str:
    """Why a corpus has no labelled clips, and what to do; it never names an option that was given."""
    others, unlabelled = manifest.passed_over, manifest.unlabelled
    videos = [Path(clip.key).stem for clip in unlabelled if clip.codec != "images"]
    if not manifest.rows and set(others) <= {HIDDEN}:
        return "it is empty"
    if not videos and _ARCHIVES & set(others):
        return f"its {', '.join(sorted(_ARCHIVES & set(others)))} files are archives: unpack them"
    if not unlabelled and (manifest.audio_only or ".wav" in others):
        return "it has sound without video; RAVDESS's videos are in Video_Speech_Actor_*.zip and Video_Song_Actor_*.zip"
    if not unlabelled and manifest.rejected:
        return f"its files were rejected, such as {manifest.rejected[0].key}: {manifest.rejected[0].reason}"
    if not unlabelled:
        return "it has neither videos nor pictures"
    if labels != "cremad" and any(is_named(stem, cremad.parse_stem) for stem in videos):
        return "its files have CREMA-D names: use --corpus.labels cremad"
    if labels != "ravdess" and any(is_named(stem, ravdess.parse_stem) for stem in videos):
        return "its files have RAVDESS names: use --corpus.labels ravdess"
    if labels == "folder":
        return "put the files of each class into a folder of its name"
    return "put the files of each class into a folder of its name and use --corpus.labels folder"


def _unlabelled(clips: Sequence[Clip]) -> str:
    """One line: the most frequent reason, with its number and an example."""

    def kind(clip: Clip) -> str:
        """The reason without a file's name at its start."""
        return re.sub(r"^'.*' is", "it is", clip.reason, flags=re.DOTALL)

    reason, count = Counter(map(kind, clips)).most_common(1)[0]
    example = next(clip for clip in clips if kind(clip) == reason)
    return f"unlabelled: {count} of {len(clips)}, such as {example.key}: {example.reason}"


def corpus_root(config: CorpusConfig, console: Console) -> Root:
    """The corpus's folder, or several; the built-in corpus is generated first if it is missing.

    If several processes want the same one at once, the first generates it and the others wait and use it.

    Raises:
        ValueError: The built-in corpus cannot be written, or its folder holds something else.
    """
    if config.root is not None:
        return named_root(config)
    # A changed default gives a new corpus beside the old one, never a mixture.
    described = f"{GENERATOR_VERSION} {config.synthetic}".replace(", place=0.0", "")  # as before there was this key
    digest = hashlib.blake2b(described.encode(), digest_size=6).hexdigest()
    root = cache_folder() / "synthetic" / digest
    with console.track("generating the built-in corpus", "files") as advance, ExitStack() as stack:
        # Without a lock (read-only cache, file system without locks) a complete corpus can still be used.
        with suppress(OSError):
            root.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(root.with_suffix(".lock")))
        try:
            synthesize(root, config.synthetic, workers=available_processors(), on_progress=advance)
        except OSError as error:
            raise ValueError(
                f"cannot generate the built-in corpus in {root}: {error.strerror or error}; choose another cache "
                f"folder with the environment variable FASTEMO_CACHE, or a corpus with --corpus.root"
            ) from error
    console.say(f"built-in corpus of generated faces: {root}")
    return root


def named_root(config: CorpusConfig) -> Root:
    """The folder, or several by name, that a configuration gives; an empty path for the built-in corpus."""
    roots = {name: Path(str(part.root or "")) for name, part in config.parts.items()}
    return roots.get("", roots)


def scan_cached(root: Path, config: CorpusConfig, console: Console) -> Manifest:
    """Scan a corpus, reusing the last scan of the same folder for unchanged files."""
    labels = str(config.labels)
    table = "" if labels in LABELS else f"\0{Path(labels).resolve()}"
    scanned = f"{root.resolve()}{table}".encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(scanned, digest_size=8).hexdigest()
    known = cache_folder() / "manifests" / f"{digest}.csv"
    with console.track("scanning", "files") as advance:
        manifest = scan(
            root,
            labels=labels,
            subjects=config.subjects,
            verify=config.verify,
            threads=available_processors(),
            known=known,
            on_progress=advance,
        )
    try:
        manifest.write_csv(known)
    except OSError as error:
        console.say(f"cannot cache the scan in {known.parent}: {error.strerror}")
    return manifest


def describe(manifest: Manifest) -> str:
    """One line: the number of files of a scan, by status, and of those passed over, by kind."""
    parts = [f"{len(manifest.clips)} clips", f"{len(manifest.unlabelled)} unlabelled"]
    parts.append(f"{len(manifest.rejected)} rejected")
    if manifest.audio_only:
        parts.append(f"{len(manifest.audio_only)} audio-only skipped")
    if copies := manifest.duplicates:
        parts.append(f"{len(copies)} identical copies passed over (such as {copies[0].key}, {copies[0].reason})")
    kinds = sorted(manifest.passed_over.items(), key=lambda kind: (-kind[1], kind[0]))
    if kinds:
        rest = sum(count for _, count in kinds[_MOST_KINDS:])
        told = [f"{count} {kind}" for kind, count in kinds[:_MOST_KINDS]]
        parts.append(f"passed over: {', '.join(told)}{f' and {rest} of other kinds' if rest else ''}")
    stored = {
        "turned or mirrored to be upright": sum(clip.orientation > 1 for clip in manifest.clips),
        "with pixels that are not square": sum(clip.pixel_aspect != 1 for clip in manifest.clips),
        "HDR, without tone mapping": sum(bool(clip.hdr) for clip in manifest.clips),
    }
    parts += [f"{count} clips {how}" for how, count in stored.items() if count]
    return f"{manifest.where}: {', '.join(parts)}"
