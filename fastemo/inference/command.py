"""`fastemo predict`: which videos are meant, and where the predictions go."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastemo.console import Console
from fastemo.corpus.files.finding import find_files
from fastemo.corpus.files.probe import IMAGE_NAME
from fastemo.inference.live import LiveWindows, is_url, shown_name
from fastemo.inference.output.annotate import annotate, check_annotation
from fastemo.inference.output.writers import FeatureWriter, Writer, check_format, writer_of
from fastemo.inference.prediction import NO_FACE, Faces, Prediction
from fastemo.inference.windows import Plan, window_and_hop

if TYPE_CHECKING:
    from fastemo.inference.recognizer import Recognizer

_SOUND = ".wav"
_SHOWN_CLASSES = 3


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `fastemo predict` is asked for.

    Attributes:
        run: As `load` takes it.
        sources: Files, folders, patterns, or one URL.
        camera: Number of a camera, in place of `sources`.
        window, hop: In seconds, as `Recognizer.predict_videos` takes them.
        out: File of the predictions.
        features: File of the embeddings.
        annotate: Video to write, of the one video that is asked about.
        faces, faces_weights: As `load` takes them.

    Raises:
        ValueError: These contradict each other.
    """

    run: str
    sources: Sequence[str] = ()
    camera: int | None = None
    window: float | None = None
    hop: float | None = None
    min_confidence: float = 0.0
    device: str = "auto"
    out: Path | None = None
    features: Path | None = None
    annotate: Path | None = None
    faces: Faces | None = None
    faces_weights: Path | None = None

    def __post_init__(self) -> None:
        if (self.camera is None) == (not self.sources):
            raise ValueError("after RUN, give files, folders, patterns or a URL, or else --camera N")
        if len(self.sources) > 1 and any(map(is_url, self.sources)):
            raise ValueError("a URL is watched alone: give no other PATH with it")
        if self.annotate is not None and self.live is not None:
            raise ValueError("--annotate writes a file's video again: it takes no live input")

        Plan(*window_and_hop(self.window, self.hop), 1)
        if self.out is not None:
            check_format(self.out)

    @property
    def live(self) -> str | int | None:
        """The URL or camera, if there is one."""
        return self.camera if self.camera is not None else next(filter(is_url, self.sources), None)


def predict(request: Request, console: Console) -> int:
    """Print predictions, a line each, as they come, and write them; an interruption leaves files with what there is.

    Returns:
        The number of files, or windows, that failed.

    Raises:
        ValueError, UserError, OSError: The run, a source or a file to write is not usable.
    """
    files = [] if request.live is not None else expanded(request.sources, console)
    if request.out is not None and len(files) > 1:
        check_format(request.out, several=True)
    if request.annotate is not None and len(files) != 1:
        raise ValueError(f"--annotate takes one video, not {len(files)}")
    if request.annotate is not None:
        check_annotation(files[0], request.annotate)
    model = load_with_notes(
        request.run,
        console,
        device=request.device,
        min_confidence=request.min_confidence,
        faces=request.faces,
        face_weights=request.faces_weights,
    )
    kept: list[Prediction] = []
    num_failed = 0
    with ExitStack() as stack:
        writers: list[Writer] = []
        if request.out is not None:
            writer = writer_of(request.out, model.class_names, has_faces=model.faces is not None)
            writers.append(stack.enter_context(writer))
        if request.features is not None:
            writers.append(stack.enter_context(FeatureWriter(request.features)))
        if request.live is None:
            found = model.predict_videos(files, window=request.window, hop=request.hop)
        else:
            found = _live(model, request, stack, console)
        lines = Lines(console, names_faces=model.faces == "all")
        for prediction in found:
            lines.show(prediction)
            num_failed += prediction.error not in (None, NO_FACE)
            for writer in writers:
                writer.write(prediction)
            if request.annotate is not None:
                kept.append(prediction)
    if request.annotate is not None:
        _annotate(files[0], kept, model, request.annotate, console)
    for path in filter(None, (request.out, request.features, request.annotate)):
        console.say(f"written: {path}")
    return num_failed


def load_with_notes(run: str, console: Console, **options: Any) -> Recognizer:
    """What `load` returns for these arguments; its warnings and the model are a line each on the console."""
    from fastemo.inference.runs import load  # imports torch: what was refused before was refused at once

    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        model = load(run, **options)
    for note in notes:
        console.say(f"note: {note.message}")
    console.say(f"{run}: {model!r}")
    return model


def _live(model: Recognizer, request: Request, stack: ExitStack, console: Console) -> Iterator[Prediction]:
    assert request.live is not None
    window, hop = window_and_hop(request.window, request.hop)
    windows = stack.enter_context(LiveWindows(request.live, model.spec, window=window, hop=hop))
    stack.callback(lambda: console.say(f"{windows.skipped} windows skipped") if windows.skipped else None)
    return model.predict_windows(windows, shown_name(request.live))


def _annotate(video: Path, found: Sequence[Prediction], model: Recognizer, out: Path, console: Console) -> None:
    with console.track("annotating", "s") as advance:
        annotate(video, found, model.class_names, out, on_progress=advance)


def expanded(sources: Sequence[str], console: Console) -> list[Path]:
    """The files of paths, folders and patterns, in the order given; a path that does not exist is kept.

    Raises:
        ValueError: A folder or a pattern holds no video.
    """
    files: list[Path] = []
    for source in sources:
        path = Path(source)
        if path.is_dir() and not any(IMAGE_NAME.fullmatch(it.name) for it in path.iterdir()):
            found, passed_over, closed = find_files(path)
            videos = [it for it in found if it.suffix.lower() != _SOUND]
            if not videos:
                raise ValueError(f"{path} holds no video")
            if others := sum(passed_over.values()) + len(found) - len(videos):
                console.say(f"{path}: {others} other files passed over")
            for clip in closed:
                console.say(f"{path / clip.key}: {clip.reason}")
            files += videos
        elif not path.exists() and glob.has_magic(source):
            matches = sorted(map(Path, glob.glob(source, recursive=True)))
            if not matches:
                raise ValueError(f"no file matches {source}")
            files += matches
        else:
            files.append(path)
    return files


class Lines:
    """Predictions on the terminal, a line each; windows of one video follow its name."""

    def __init__(self, console: Console, *, names_faces: bool = False) -> None:
        self._console, self._names_faces, self._last = console, names_faces, ""

    def show(self, found: Prediction) -> None:
        if found.path != self._last:
            self._console.say(found.path)
            self._last = found.path
        when = f"  {found.start:8.2f} -{found.end:8.2f} s  " if found.end else "  "
        when += f"face {found.face:<3} " if self._names_faces and found.face else ""
        if found.error is not None:
            self._console.say(f"{when}{found.error}")
            return
        likely = sorted(found.probabilities.items(), key=lambda it: -it[1])[:_SHOWN_CLASSES]
        shares = ", ".join(f"{name} {share:.1%}" for name, share in likely)
        self._console.say(f"{when}{found.label:<10}  {shares}")
