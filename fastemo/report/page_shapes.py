"""The shapes of a run's and a study's JSON files, as far as a page needs them."""

from __future__ import annotations

from typing import Any

from fastemo.report.page_check import (
    DIFFERENCE,
    SHARE,
    Shape,
    list_of,
    map_of,
    maybe,
    number,
    record,
    scalar,
    text,
    whole,
)


def _drawn(value: Any, where: str) -> float | None:
    """A point of a curve, None where there is none."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 1e9 else None


_INTERVAL = list_of(SHARE, 2)
_PROBES = map_of(
    record(
        {"accuracy": SHARE, "interval": _INTERVAL, "difference": DIFFERENCE},
        {"difference_interval": list_of(DIFFERENCE, 2), "agreement": SHARE},
    )
)
_COST = record(
    {"parameters": whole, "flops_per_clip": whole}, {"clips_per_second": number(0), "epoch_seconds": number(0)}
)
_ORDER = record({"right": whole, "swapped": whole, "elsewhere": whole, "accuracy": SHARE, "interval": _INTERVAL})
_ONE_FILE = record(
    {"accuracy": SHARE, "num_clips": whole},
    {"uar": SHARE, "macro_f1": SHARE, "intervals": record({"accuracy": _INTERVAL})},
)
_MACHINE = record({}, {"processor": text, "processors": whole, "gpu": text})
_CALIBRATION = record(
    {
        "ece": SHARE,
        "bins": list_of(
            record(
                {"low": SHARE, "high": SHARE, "num_clips": whole}, {"confidence": number(0, 1.001), "accuracy": SHARE}
            )
        ),
    }
)
_METRICS: dict[str, Shape] = {
    "accuracy": SHARE,
    "uar": SHARE,
    "macro_f1": SHARE,
    "per_class": map_of(maybe(SHARE)),
    "confusion": list_of(list_of(whole)),
    "num_clips": whole,
}
_RESULT: dict[str, Shape] = {
    "num_takes": whole,
    "one_file_a_take": _ONE_FILE,
    "probes": _PROBES,
    "cost": _COST,
    "corpus": text,
    "protocol": text,
}
TEST = record(
    _METRICS,
    {
        **_RESULT,
        "model": text,
        "split": text,
        "seed": whole,
        "fold": whole,
        "versions": map_of(text),
        "machine": _MACHINE,
        "intervals": record({"accuracy": _INTERVAL}, {"actors": record({"accuracy": _INTERVAL, "num_groups": whole})}),
        "calibration": _CALIBRATION,
        "groups": map_of(map_of(record({"num_clips": whole, "accuracy": SHARE}, {"uar": SHARE, "macro_f1": SHARE}))),
        "gaps": list_of(
            record(
                {
                    "by": text,
                    "best": text,
                    "worst": text,
                    "best_accuracy": SHARE,
                    "worst_accuracy": SHARE,
                    "gap": SHARE,
                },
                {"p": SHARE},
            )
        ),
        "trained_on": text,
        "classes": list_of(text),
        "left_out": map_of(whole),
    },
)
_CELL_RESULT = record(_METRICS, {**_RESULT, "interval": _INTERVAL, "epochs": whole, "order": _ORDER})
EPOCH = record(
    {"epoch": whole},
    # A loss that was not finite is written as NaN, which leaves a gap in the curve.
    dict.fromkeys(("train_loss", "train_accuracy", "val_loss", "val_accuracy"), _drawn),
)
EXAMPLES = record(
    {
        "examples": list_of(
            record(
                {"key": text, "kind": text, "label": text, "prediction": text, "probability": SHARE, "frames": text},
                {"gradcam": text, "frame_indices": list_of(whole)},
            )
        )
    }
)
_COMPARISON = record(
    {"a": text, "b": text, "difference": DIFFERENCE, "interval": list_of(DIFFERENCE, 2)},
    {
        **dict.fromkeys(("num_clips", "num_takes", "only_a", "only_b"), whole),
        **dict.fromkeys(("p_mcnemar", "p_mcnemar_holm", "p_bootstrap", "p_bootstrap_holm"), SHARE),
    },
)
_ROW = record(
    {"label": text, "settings": map_of(scalar), "cells": list_of(text)},
    {
        "accuracy": SHARE,
        "accuracies": list_of(SHARE),
        "interval": _INTERVAL,
        "report": SHARE,
        "order": _ORDER,
        "probes": _PROBES,
        "cost": _COST,
    },
)
STUDY = record(
    {
        "name": text,
        "cells": list_of(
            record(
                {"name": text, "status": text, "folder": text},
                {"settings": map_of(scalar), "seed": whole, "reason": text, "attempts": whole, "result": _CELL_RESULT},
            )
        ),
        "parts": list_of(
            record(
                {"name": text, "rows": list_of(_ROW)},
                {
                    "title": text,
                    "comparisons": list_of(_COMPARISON),
                    "order_comparisons": list_of(_COMPARISON),
                    "comparison_note": text,
                },
            )
        ),
    },
    {
        "description": text,
        "command": text,
        "date": text,
        "machine": _MACHINE,
        "versions": map_of(text),
        "corpus": text,
        "protocol": text,
        "minutes": number(0),
    },
)
