"""What epochs have to reach, and the arithmetic from passes to there: ratios within rounds, limits, utilisation."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.epoch_loops import EpochPass
from benchmarks.measure import Pass, paired_ratio, rates, summary
from benchmarks.targets import Rounds, Target

# Dense bf16 and fp16 on tensor cores, by what a GPU's name says, the longer names first. Source: NVIDIA's data sheets.
_PEAK_FLOPS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "A10": 125e12,
    "T4": 65e12,
}
_H100_RATES = {"late_fusion": 3500, "r3d18": 650}  # clips/s
_H100_LEAST_BATCH = 64

LIMITS = {"warm_over_bare": 0.95, "cold_over_limit": 0.85, "warm_over_report": 4, "data_wait": 0.02}


def peak_flops(gpu: str | None, precision: str) -> float | None:
    """Operations a second that a device can do at most; `None` where that is not known, as of processors."""
    if gpu is None or precision not in ("bf16", "fp16"):
        return None
    words = gpu.replace("-", " ").split()
    for name, peak in _PEAK_FLOPS.items():
        if set(name.split()) <= set(words):
            return peak
    return None


def utilisation(clips_per_second: float, flops_a_clip: float, peak: float | None) -> dict[str, float | None]:
    """Operations a second that were needed, and what share of the peak that is (MFU)."""
    done = clips_per_second * flops_a_clip
    return {"flops_per_second": done, "peak_flops_per_second": peak, "mfu": done / peak if peak else None}


def joint_limit(limit: float, ceiling: float) -> float:
    """Clips/s where the same processors decode and train: the seconds that each takes a clip, added."""
    return 1 / (1 / limit + 1 / ceiling)


def joint_rates(passes: Mapping[str, Mapping[int, Pass]]) -> dict[int, float]:
    """The joint limit by round."""
    limits, ceilings = (rates(dict(passes.get(name, {}))) for name in ("limit", "bare"))
    return {number: joint_limit(limits[number], ceilings[number]) for number in limits.keys() & ceilings.keys()}


def is_decode_bound(passes: Mapping[str, Mapping[int, Pass]]) -> bool | None:
    """Whether the model trains faster than its clips can be decoded."""
    ratio = paired_ratio(*(rates(dict(passes.get(name, {}))) for name in ("bare", "limit")))
    return None if ratio is None else ratio["median"] > 1


def ratios(passes: Rounds) -> dict[str, dict[str, float]]:
    """One model's `<what>_over_<what>`: medians and extremes of ratios of clips/s within a round."""
    speed = {name: rates(rounds) for name, rounds in passes.items() if rounds}
    speed["joint_limit"] = joint_rates(passes)
    pairs = [("warm", "bare"), ("cold", "limit"), ("cold", "joint_limit"), ("warm", "report"), ("warm", "plain")]
    found = {
        f"{above}_over_{below}": paired_ratio(speed.get(above, {}), speed.get(below, {})) for above, below in pairs
    }
    return {name: ratio for name, ratio in found.items() if ratio is not None}


def data_wait(passes: Rounds) -> dict[str, float] | None:
    """Share of warm epochs that the loop waited for batches."""
    shares = [
        it.waited / it.seconds
        for it in passes.get("warm", {}).values()
        if isinstance(it, EpochPass) and it.waited is not None
    ]
    return summary(shares) if shares else None


def median_rate(passes: Rounds, name: str) -> float | None:
    found = list(rates(passes.get(name, {})).values())
    return summary(found)["median"] if found else None


def r3d18_over_late_fusion(measured: Mapping[str, Rounds]) -> float | None:
    """How much longer R3D-18's epoch takes over as many clips."""
    slow, quick = (median_rate(measured.get(name, {}), "warm") for name in ("r3d18", "late_fusion"))
    return quick / slow if slow and quick else None


def targets(measured: Mapping[str, Rounds], *, gpu: str | None, batch_size: int) -> list[Target]:
    """The issue's rows that epochs are measured for; `measured` holds every model's passes."""
    found = []
    for model, passes in measured.items():
        reached = ratios(passes)
        found.append(
            Target(
                f"warm_over_bare_{model}",
                f"{model}: warm epoch over the bare loop's ceiling",
                _median(reached, "warm_over_bare"),
                LIMITS["warm_over_bare"],
                "x",
            )
        )
    waits = {model: share["median"] for model, passes in measured.items() if (share := data_wait(passes))}
    longest = max(waits, key=waits.__getitem__) if waits else None
    found.append(
        Target(
            "data_wait",
            "share of a warm epoch spent waiting for data, the most of any model",
            waits[longest] if longest else None,
            LIMITS["data_wait"],
            "",
            is_upper=True,
            note=longest or "",
        )
    )
    found.append(
        Target(
            "late_fusion_over_report",
            "late_fusion: warm epoch over the report's way",
            _median(ratios(measured.get("late_fusion", {})), "warm_over_report"),
            LIMITS["warm_over_report"],
            "x",
            note="stated for 112 px, T = 10",
        )
    )
    found += [_cold(model, passes, gpu) for model, passes in measured.items() if is_decode_bound(passes)]
    return found + _h100(measured, gpu, batch_size)


def _cold(model: str, passes: Rounds, gpu: str | None) -> Target:
    """The cold epoch against the joint limit; on a GPU, which decodes by itself, the limit is measured elsewhere."""
    reached = ratios(passes)
    plain, joint = _median(reached, "cold_over_limit"), _median(reached, "cold_over_joint_limit")
    note = "of 1/(1/decode + 1/ceiling), as both share the processors"
    note += f"; {plain:.2f} x of the decode alone" if plain is not None else ""
    return Target(
        f"cold_over_limit_{model}",
        f"{model}: cold first epoch over the limit of pruned decode and training",
        None if gpu else joint,
        LIMITS["cold_over_limit"],
        "x",
        note="gpu_check.py measures NVDEC's limit" if gpu else note,
    )


def _h100(measured: Mapping[str, Rounds], gpu: str | None, batch_size: int) -> list[Target]:
    is_judged = gpu is not None and "H100" in gpu and batch_size >= _H100_LEAST_BATCH
    return [
        Target(
            f"h100_{model}",
            f"{model}: warm epoch on an H100, batch of {_H100_LEAST_BATCH} or more",
            median_rate(measured.get(model, {}), "warm") if is_judged else None,
            bound,
            "clips/s",
        )
        for model, bound in _H100_RATES.items()
    ]


def _median(found: Mapping[str, dict[str, float]], name: str) -> float | None:
    return found[name]["median"] if name in found else None
