"""The picture of the README: what a run's model saw of four test clips, and the probabilities that it gave.

    python docs/picture.py RUN [--out docs/assets/picture.jpg]

RUN is a run on the built-in corpus, such as one of configs/quick.yaml. The clips are chosen by a rule,
not by the prediction: the first strong take of each of four classes, by the two test actors in turn.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from fastemo.config import read_config
from fastemo.console import Console
from fastemo.corpus import ravdess
from fastemo.corpus.prepare import corpus_root
from fastemo.errors import one_line_errors
from fastemo.evaluation.tables import read_predictions
from fastemo.report import drawing
from fastemo.video.decode import decode_clip
from fastemo.video.sampling import frame_indices

_EMOTIONS = ("surprised", "fearful", "sad", "disgust")
_PIXELS, _ROW, _BARS = 150, 1.15, 1.25  # of a frame; height of a row and width of its bars, in inches


def draw(run: Path) -> Figure:
    """Four rows: the T frames of a clip in time, and one bar per class."""
    config = read_config(["--config", str(run / "config.yaml")])
    table = read_predictions(run / "predictions.csv")
    root = corpus_root(config.corpus, Console())
    count = config.video.num_frames
    spec = replace(config.video.spec, size=_PIXELS)
    indices = frame_indices(config.corpus.synthetic.num_frames, count)
    takes = {row: ravdess.parse_stem(Path(key).stem) for row, key in enumerate(table.keys)}
    figure = Figure(figsize=(_ROW * count + 0.75 + _BARS, (_ROW + 0.17) * len(_EMOTIONS)))
    width, height = figure.get_size_inches()
    for place, emotion in enumerate(_EMOTIONS):
        strong = [row for row, it in takes.items() if it.emotion_name == emotion and it.intensity == 2]
        actors = sorted({takes[row].actor for row in strong})
        row = next(row for row in strong if takes[row].actor == actors[place % len(actors)])
        frames = decode_clip(root / table.keys[row], indices, spec)
        strip = frames.transpose(2, 0, 3, 1).reshape(_PIXELS, -1, 3)
        bottom = height - (place + 1) * (_ROW + 0.17)
        axes = figure.add_axes((0, bottom / height, _ROW * count / width, _ROW / height))
        axes.imshow(strip, aspect="auto")
        axes.set_axis_off()
        axes.set_title(f"{emotion}, actor {takes[row].actor}", size=9, pad=2)
        bars = figure.add_axes(((_ROW * count + 0.72) / width, bottom / height, _BARS / width, _ROW / height))
        colours = [drawing.SERIES[name != emotion] for name in table.class_names]
        bars.barh(table.class_names, table.probabilities[row], color=colours)
        bars.set(xlim=(0, 1), xticks=[])
        bars.invert_yaxis()
        bars.grid(False)
        bars.tick_params(labelsize=7, pad=1)
        for y, share in enumerate(table.probabilities[row]):
            if share >= 0.05:
                side, colour, gap = ("right", "white", -0.03) if share > 0.7 else ("left", drawing.INK, 0.03)
                bars.text(share + gap, y, f"{share:.0%}", size=7, va="center", ha=side, color=colour)
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "assets" / "picture.jpg")
    with one_line_errors():
        options = parser.parse_args(arguments)
        with drawing.style():
            figure = draw(options.run)
            figure.savefig(options.out, dpi=150, pil_kwargs={"quality": 82})


if __name__ == "__main__":
    main()
