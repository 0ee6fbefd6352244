"""Figures that results are held beside: the report's own, and published ones on RAVDESS from the picture alone."""

from __future__ import annotations

from dataclasses import dataclass

# Test accuracy by (model, frames, augmented), of 240 clips of two actors (its table 4 and section 6).
_REPORT = {
    ("early_cnn", 6, False): 0.1667,
    ("early_cnn", 10, False): 0.2167,
    ("early_cnn", 16, False): 0.2167,
    ("early_cnn", 6, True): 0.2833,
    ("early_cnn", 10, True): 0.2667,
    ("early_cnn", 16, True): 0.2833,
    ("early_resnet18", 10, True): 0.425,
    ("late_fusion", 10, True): 0.529,
    ("r3d18", 10, True): 0.604,
    ("cnn_lstm", 10, True): 0.6208,
}


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """A published accuracy, 0 .. 1, on RAVDESS without sound.

    Attributes:
        what: Who or what reached it.
        how: On whom it was tested, and after which training.
        source: The publication.
    """

    what: str
    accuracy: float
    how: str
    source: str


ANCHORS = (
    Anchor(
        what="People",
        accuracy=0.75,
        how="human raters of the video-only files, about",
        source="Livingstone & Russo (2018), The Ryerson Audio-Visual Database of Emotional Speech and Song, PLoS ONE",
    ),
    Anchor(
        what="Action units + BiLSTM",
        accuracy=0.621,
        how="actors never seen, five folds (protocol kfold5)",
        source="Luna-Jiménez et al. (2022), A Proposal for Multimodal Emotion Recognition Using Aural Transformers and "
        "Action Units on RAVDESS Dataset, Applied Sciences 12(1), 327",
    ),
    Anchor(
        what="MAE-DFER",
        accuracy=0.756,
        how="actors never seen, six folds, self-supervised on faces before",
        source="Sun et al. (2023), MAE-DFER: Efficient Masked Autoencoder for Self-supervised Dynamic Facial "
        "Expression Recognition, ACM Multimedia",
    ),
)


def report_accuracy(model: str, num_frames: int, augmented: bool) -> float | None:
    """The report's test accuracy, 0 .. 1; None where it has none for this configuration.

    Source: the report that fastemo implements, on RAVDESS, both files of each take, actors 23 and 24, with pretrained
    weights for all models but `early_cnn`.
    """
    return _REPORT.get((model, num_frames, augmented))
