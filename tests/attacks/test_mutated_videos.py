"""Videos that somebody made wrong on purpose: each is rejected by name, decoded exactly, or an error by name.

What a full scan accepts decodes to exactly the frames of a full sequential decode. What only a quick scan accepts may
be damaged inside, where decoders paint over what they cannot read, with or without the frames that pruning drops: of
these, frames of the right shape are asked for, or an error by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random

import av
import numpy as np
import pytest
from helpers import full_or, noise_frame, numbered_frame, write_video
from mutations import MUTATIONS, checked, mixed_sizes, packed, parameter_sets, with_frames, with_parameters

from fastemo.corpus.clip import Clip
from fastemo.corpus.config import Verify
from fastemo.corpus.files.isolation import Limits, Unsettled, Workers
from fastemo.corpus.manifest import scan
from fastemo.errors import DecodeError
from fastemo.video.decode import decode_clip

Log = Callable[[str, Mapping[str, int]], None]
LIMITS = Limits(seconds=20, memory_bytes=1 << 30)


def grainy_frame(number: int, width: int, height: int) -> np.ndarray:
    """A numbered frame with grain, so that a flipped bit shows."""
    return np.clip(numbered_frame(number, width, height) + (noise_frame(number, width, height) >> 3), 0, 255)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Good MP4s of 24 small frames with B-frames: the index behind the frames and before them, with sound."""
    folder = tmp_path_factory.mktemp("sources")
    options = {"g": "12", "bf": "2", "x264-params": "scenecut=0:threads=1"}
    videos = [
        write_video(folder / "a.mp4", 24, options=options, draw=grainy_frame),
        write_video(folder / "b.mp4", 24, options=options, draw=grainy_frame, faststart=True),
        write_video(folder / "c.mp4", 24, options=options, draw=grainy_frame, silence=True),
    ]
    return [video.read_bytes() for video in videos]


@dataclass
class Attack:
    """Mutated files below a folder, one folder for each kind of mutation."""

    root: Path
    limits: Limits

    def put(self, fault: str, count: int, sources: Sequence[bytes], seed: str) -> None:
        folder = self.root / fault
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            # Each file from a generator of its own: one kind more leaves the others as they are.
            rng = Random(f"{seed} {fault} {number}")
            mutated = MUTATIONS[fault](sources[number % len(sources)], rng)
            (folder / f"{seed}-{number:04d}.mp4").write_bytes(mutated)

    def run(self, log: Log) -> dict[str, Counter[str]]:
        """Scan quickly and in full, decode what is accepted, and hold it to the rule."""
        rows: dict[Verify, dict[str, Clip]] = {}
        for verify in ("quick", "full"):
            found = scan(self.root, labels="folder", verify=verify, limits=self.limits)
            rows[verify] = {row.key: row for row in found.rows}
        assert rows["quick"].keys() == rows["full"].keys()
        # What both scans accept with equal frame counts is decoded once.
        accepted = [row for found in rows.values() for row in found.values() if row.status != "rejected"]
        jobs = sorted({(row.key, row.num_frames) for row in accepted})
        with Workers("mutations:checked", self.limits) as workers, ThreadPoolExecutor(2) as pool:
            results = dict(zip(jobs, pool.map(lambda job: self._check(workers, *job), jobs), strict=True))
        outcomes: dict[str, Counter[str]] = {}
        defects: list[str] = []
        for verify in rows:
            for key, row in rows[verify].items():
                settled = results.get((key, row.num_frames))
                outcome = rejection(row) if row.status == "rejected" else self._judge(verify, settled)
                name = f"{key.split('/')[0]}, {'every' if verify == 'full' else 'the first'} frame decoded by the scan"
                outcomes.setdefault(name, Counter())[outcome] += 1
                if outcome.startswith("DEFECT"):
                    defects.append(f"{verify} {key}: {outcome} {settled or row.reason}")
        assert defects == [], "\n".join(defects)
        for name, counts in outcomes.items():
            log(f"MP4: {name}", counts)
        return outcomes

    def _check(self, workers: Workers, key: str, num_frames: int) -> dict[str, str]:
        try:
            return workers.ask({"path": str(self.root / key), "num_frames": num_frames})
        except Unsettled as error:
            return {"outcome": str(error)}

    @staticmethod
    def _judge(verify: Verify, result: dict[str, str] | None) -> str:
        assert result is not None
        outcome = result["outcome"]
        if outcome == "decoded exactly" and not result["trouble"]:
            return outcome
        if verify == "quick" and outcome in ("decoded exactly", "other frames"):
            return "damage concealed by the decoder, frames of the right shape"
        if verify == "quick" and outcome == "decode error by name":
            return outcome
        return f"DEFECT: {outcome}"


def rejection(row: Clip) -> str:
    assert row.reason
    if "examining it failed" in row.reason:
        return "DEFECT: an exception of ours"
    causes = {
        "crashed the decoder's process": ": it crashed the decoder",
        "took longer": ": exceeded its time limit",
        "needs more than": ": exceeded its memory limit",
    }
    return "rejected by name" + next((cause for words, cause in causes.items() if words in row.reason), "")


FAULTS = [fault for fault in MUTATIONS if "millions" not in fault]


def test_mutations(tmp_path, sources, fault_log):
    """Over eighteen hundred in full."""
    attack, each = Attack(tmp_path, LIMITS), full_or(6, 115)
    for fault in FAULTS:
        attack.put(fault, each, sources, "slow")
    total = sum(attack.run(fault_log).values(), Counter())
    assert total.total() == 2 * each * len(FAULTS)
    assert total["decoded exactly"] > 0.25 * each * len(FAULTS)
    assert total["rejected by name"] > 0.25 * each * len(FAULTS)


def test_tables_that_say_millions_of_frames(tmp_path, sources, fault_log):
    """Counting 16 million, of a file of 20 KB, took over a minute and a gigabyte of the process that trains."""
    attack, count = Attack(tmp_path, full_or(Limits(seconds=2, memory_bytes=1 << 30), LIMITS)), full_or(1, 8)
    for fault in MUTATIONS.keys() - set(FAULTS):
        attack.put(fault, count, sources, "slow")
    assert sum(attack.run(fault_log).values(), Counter()).total() == 2 * count
    (tmp_path / "bomb").mkdir()
    (tmp_path / "bomb" / "a.mp4").write_bytes(with_frames(sources[0], 2**22))
    for verify in ("quick", "full"):
        (row,) = scan(tmp_path / "bomb", verify=verify, limits=Limits(seconds=1, memory_bytes=1 << 30)).rejected
        assert row.reason == "decoding took longer than 1 s"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "name", "count"),
    [
        (0, "ravdess/Actor_01/02-01-01-01-01-01-01.mp4", 2),
        (1, "awkward/header_157_decodes_110.mp4", 4),
        (2, "awkward/negative_pts_header_98_decodes_95.mp4", 6),
        (3, "awkward/hevc_variable_frame_rate.mov", 2),
    ],
)
def test_mutations_of_real_clips(tmp_path, clips_folder, fault_log, number, name, count):
    """With those above two thousand in full; in the sample each clip has a quarter of the kinds."""
    attack, count, faults = Attack(tmp_path, LIMITS), *full_or((1, FAULTS[number::4]), (count, FAULTS))
    data = (clips_folder / name).read_bytes()
    for fault in faults:
        attack.put(fault, count, [data], Path(name).stem)
    assert sum(attack.run(fault_log).values(), Counter()).total() == 2 * count * len(faults)


@pytest.mark.parametrize("all_in_header", [False, True])
def test_several_frame_sizes_in_one_stream(tmp_path, all_in_header, fault_log):
    """FFmpeg changes size on the way; a sample of it would have frames of two sizes."""
    clips = [write_video(tmp_path / f"{width}.mp4", 12, width, 48, draw=grainy_frame) for width in (64, 96)]
    root = tmp_path / "all" / "several frame sizes in one stream"
    root.mkdir(parents=True)
    for number, keep in enumerate(([12, 12], [1, 12], [12, 1])):
        mixed_sizes(root / f"{number}.mp4", clips, keep, all_in_header=all_in_header)
    Attack(tmp_path / "all", LIMITS).run(fault_log)
    full = scan(tmp_path / "all", verify="full")
    assert [row.status for row in full.rows] == ["rejected"] * 3
    assert {row.reason for row in full.rejected} <= {f"frame {n} is 96x48, earlier ones 64x48" for n in (1, 12)}


def test_a_list_of_files_is_no_video(tmp_path, sources):
    """FFmpeg would go by its content, open the files that it names, and call their frames its own."""
    (tmp_path / "other.mp4").write_bytes(sources[0])
    path = tmp_path / "list.mp4"
    path.write_text("ffconcat version 1.0\nfile other.mp4\n")
    with av.open(str(path)) as container:
        assert container.format.name == "concat"
    with pytest.raises(DecodeError, match=r"list\.mp4"):
        decode_clip(path, [0], None)


@pytest.mark.parametrize("empty", [b"", b"\x67"])
def test_a_parameter_set_without_content(tmp_path, sources, empty):
    """Pruning must not read its first byte: an IndexError names no file."""
    path = tmp_path / "a.mp4"
    path.write_bytes(with_parameters(sources[0], lambda it: packed(it, [*parameter_sets(it), empty])))
    assert checked({"path": str(path), "num_frames": 24})["outcome"] in ("decoded exactly", "decode error by name")
