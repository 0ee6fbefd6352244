"""Results of the reference study, for comparison."""

from __future__ import annotations

# Test accuracy by model, frames and augmentation, of 240 clips of two actors (its table 4 and section 6).
_REPORT = {
    "early_cnn": {(6, False): 0.1667, (10, False): 0.2167, (16, False): 0.2167}
    | {(6, True): 0.2833, (10, True): 0.2667, (16, True): 0.2833},
    "early_resnet18": {(10, True): 0.425},
    "late_fusion": {(10, True): 0.529},
    "r3d18": {(10, True): 0.604},
    "cnn_lstm": {(10, True): 0.6208},
}


def report_accuracy(
    model: str, num_frames: int, augmented: bool, *, backbone: object = None, fusion: object = "mean"
) -> float | None:
    """The test accuracy of Roy (2025), 0 .. 1; None if the study has none for this configuration.

    Args:
        backbone, fusion: `model.backbone` and `model.fusion`; the study has ResNet-18 alone, and no attention.

    Source: K. Roy, Emotion Recognition in Videos Through Deep Neural Network Models (2025), on RAVDESS, both files of
    each take, actors 23 and 24, with pretrained weights for all models but `early_cnn`.
    """
    is_other = backbone not in (None, "resnet18") or fusion == "attention"
    return None if is_other else _REPORT.get(model, {}).get((num_frames, augmented))
