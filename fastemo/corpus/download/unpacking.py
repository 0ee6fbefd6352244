"""An archive -> its clips in the corpus folder. Archives are untrusted: what looks like an attack is refused whole."""

from __future__ import annotations

import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from fastemo.corpus.download.zenodo import ArchiveError
from fastemo.corpus.ravdess import MODALITIES, Performance, parse_stem
from fastemo.machine import readable_bytes

_MOST_EXPANSION = 4  # video hardly shrinks
_MOST_CLIP_BYTES = 2**28  # a clip of RAVDESS has 2**22
_CHUNK = 2**20


def unpack(
    archive: Path, name: str, root: Path, modalities: Iterable[int], temporary: Path, check: Callable[[], None]
) -> tuple[dict[str, int], int]:
    """Write the archive's clips of some modalities, each at once, as `root/Actor_01/NAME.mp4`.

    The folders inside the archive are not used, so that no member can choose where it is written. `zipfile` reads no
    more bytes of a member than the archive declares, and these are limited.

    Args:
        name: The archive's name, for messages.
        temporary: File for a clip that is not complete, on the disk of `root`.
        check: Called between chunks; may raise.

    Returns:
        The size of each clip in bytes, by path relative to `root`, and the number of files that are no clips.

    Raises:
        ArchiveError: It is damaged, encrypted or hostile, or has no such clips. Nothing of a hostile one is written.
        OSError: A file cannot be written.
    """
    sizes: dict[str, int] = {}
    try:
        with zipfile.ZipFile(archive) as opened:
            clips, num_others = _clips(opened, name, archive.stat().st_size)
            for performance, member in clips.items():
                if performance.modality not in modalities:
                    continue
                path = root / f"Actor_{performance.actor:02d}" / f"{performance.stem}.mp4"
                path.parent.mkdir(exist_ok=True)
                with opened.open(member) as source, temporary.open("wb") as file:
                    while chunk := source.read(_CHUNK):
                        check()
                        file.write(chunk)
                os.replace(temporary, path)
                sizes[path.relative_to(root).as_posix()] = member.file_size
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, struct.error, zlib.error) as error:
        raise ArchiveError(f"{name}: not an intact zip archive: {error}") from error
    for modality in modalities:
        if not of_modality(sizes, modality):
            raise ArchiveError(f"{name}: holds no {MODALITIES[modality - 1]} clips of RAVDESS")
    return sizes, num_others


def of_modality(sizes: dict[str, int], modality: int) -> dict[str, int]:
    """The clips of one modality, by their names."""
    return {path: size for path, size in sizes.items() if Path(path).name.startswith(f"{modality:02d}-")}


def _clips(opened: zipfile.ZipFile, name: str, size: int) -> tuple[dict[Performance, zipfile.ZipInfo], int]:
    """Its clips, and the number of its other files, if nothing in it is suspicious."""

    def refuse(member: zipfile.ZipInfo, why: str) -> ArchiveError:
        return ArchiveError(f"{name}: refused, nothing was unpacked: '{member.filename}' {why}")

    clips: dict[Performance, zipfile.ZipInfo] = {}
    num_others = total = 0
    for member in opened.infolist():
        # Windows' separators and drives too, whatever the system.
        folders = re.split(r"[/\\]", member.filename)
        if folders[0] == "" or ".." in folders or ":" in member.filename:
            raise refuse(member, "names a place outside the folder")
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise refuse(member, "is a link or a device")
        if member.flag_bits & 1:
            raise refuse(member, "is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise refuse(member, "is compressed by another method than deflate")
        total += member.file_size
        if member.file_size > _MOST_CLIP_BYTES or total > _MOST_EXPANSION * size:
            raise refuse(member, f"brings it to {readable_bytes(total)}, unpacked from {readable_bytes(size)}")
        if member.is_dir():
            continue
        path = Path(member.filename)
        try:
            performance = parse_stem(path.stem)
        except ValueError:
            performance = None
        if performance is None or path.suffix != ".mp4":
            num_others += 1
        elif performance in clips:
            raise refuse(member, "is there twice")
        else:
            clips[performance] = member
    return clips, num_others
