"""A configuration -> its Manifest: generates the built-in corpus if none is given, and caches the scan."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack, suppress
from pathlib import Path

from fastemo.console import Console
from fastemo.corpus import cremad
from fastemo.corpus.config import CorpusConfig
from fastemo.corpus.manifest import Manifest, scan
from fastemo.corpus.synthetic.synthesis import GENERATOR_VERSION, synthesize
from fastemo.machine import available_processors, cache_folder, locked


def prepare_corpus(config: CorpusConfig, console: Console) -> Manifest:
    """Generate the built-in corpus if none is given, scan, and refuse a corpus with too many bad files.

    The scan is cached, so that an unchanged file is probed once.

    Raises:
        ValueError: The root is not a folder, has no clip, or more than `max_rejected` bad files.
    """
    root = corpus_root(config, console)
    manifest = scan_cached(root, config, console)
    console.say(describe(manifest))
    if len(manifest.rejected) > config.max_rejected:
        for clip in manifest.rejected:
            console.say(f"  rejected {clip.key}: {clip.reason}")
        raise ValueError(
            f"{len(manifest.rejected)} files in {root} were rejected, {config.max_rejected} are allowed: repair or "
            f"remove them, or continue without them: --corpus.max_rejected {len(manifest.rejected)}"
        )
    if not manifest.clips:
        found = any(cremad.is_named(Path(clip.key).stem) for clip in manifest.unlabelled)
        raise ValueError(
            f"{root} has no labelled clips: "
            + (
                "its files have CREMA-D names: use --corpus.labels cremad, "
                if found
                else "name files as RAVDESS does, "
            )
            + "or use --corpus.labels folder to take the class from a file's folder"
        )
    return manifest


def corpus_root(config: CorpusConfig, console: Console) -> Path:
    """The corpus's folder; the built-in corpus is generated first if it is missing.

    If several processes want the same one at once, the first generates it and the others wait and use it.

    Raises:
        ValueError: The built-in corpus cannot be written, or its folder holds something else.
    """
    if config.root is not None:
        return config.root
    # A changed default gives a new corpus beside the old one, never a mixture.
    digest = hashlib.blake2b(f"{GENERATOR_VERSION} {config.synthetic}".encode(), digest_size=6).hexdigest()
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


def scan_cached(root: Path, config: CorpusConfig, console: Console) -> Manifest:
    """Scan a corpus, reusing the last scan of the same folder for unchanged files."""
    digest = hashlib.blake2b(str(root.resolve()).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    known = cache_folder() / "manifests" / f"{digest}.csv"
    with console.track("scanning", "files") as advance:
        manifest = scan(
            root,
            labels=config.labels,
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
    """One line: the number of files of a scan, by status."""
    parts = [f"{len(manifest.clips)} clips", f"{len(manifest.unlabelled)} unlabelled"]
    parts.append(f"{len(manifest.rejected)} rejected")
    if manifest.audio_only:
        parts.append(f"{len(manifest.audio_only)} audio-only skipped")
    return f"{manifest.root}: {', '.join(parts)}"
