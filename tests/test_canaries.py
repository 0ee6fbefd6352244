"""Facts about the dependencies that the code is built on: when one changes, its canary falls silent first."""

import errno
import sys

import av
import av.error
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from helpers import REPOSITORY, TRAIN, command, frame_number, turn, write_image, write_video

from fastemo.corpus.files.probe import CONTAINERS_ONLY, probe_video
from fastemo.video.bitstream.pruning import UNPROBED


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state()
    return Accelerator(cpu=True)


def test_prepare_leaves_our_loader_untouched(accelerator):
    """So the loader shards itself by rank and world size, and evaluation removes duplicates by key."""

    class Loader:
        def __iter__(self):
            return iter([])

    loader = Loader()
    assert accelerator.prepare(loader) is loader


def test_a_prepared_scheduler_steps_once_a_process(accelerator):
    """So the trainer steps its own scheduler."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer, prepared = accelerator.prepare(optimizer, scheduler)
    assert type(prepared).__name__ == "AcceleratedScheduler"
    assert prepared.step_with_optimizer


def test_unwrapping_keeps_mixed_precision():
    """So evaluation runs in the precision of training, without the wrapper's collectives."""
    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    seen = []

    class Model(torch.nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            seen.append(y.dtype)
            return y

    model = accelerator.unwrap_model(accelerator.prepare(Model(4, 4)))
    assert model(torch.ones(1, 4)).dtype == torch.float32
    assert seen == [torch.bfloat16]


def test_a_second_accelerator_cannot_change_the_precision_by_itself():
    """So the trainer resets Accelerate's state."""
    AcceleratorState._reset_state()
    Accelerator(cpu=True, mixed_precision="no")
    with pytest.raises(ValueError, match="AcceleratorState"):
        Accelerator(cpu=True, mixed_precision="bf16")
    AcceleratorState._reset_state()


def test_a_script_inside_the_package_finds_the_package(tmp_path):
    """`accelerate launch fastemo/train.py` puts the script's folder first on sys.path."""
    done = command(sys.executable, "-S", TRAIN, "--help", cwd=tmp_path)
    # Without site-packages (-S) the guard alone can have found fastemo; a dependency is what is missed first.
    assert "No module named 'fastemo'" not in done.stderr
    assert "jsonargparse" in done.stderr


def test_no_module_is_called_like_one_of_the_standard_library():
    ours = {path.stem for path in (REPOSITORY / "fastemo").glob("*.py")} - {"__init__"}
    assert not ours & sys.stdlib_module_names


class TestPyAV:
    """What every PyAV from 17 on offers."""

    @pytest.fixture
    def video(self, tmp_path):
        """H.264 whose matrix is in its own headers, and not in the MP4's."""
        return write_video(tmp_path / "clip.mp4", options={"x264-params": "colormatrix=bt709"})

    def test_opening_without_a_probe(self, video):
        matrices = []
        for options in (CONTAINERS_ONLY, UNPROBED):
            with av.open(str(video), options=options) as container:
                matrices.append(int(container.streams.video[0].codec_context.colorspace))
                frames = [frame_number(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
                assert frames == list(range(12)), "the options of `av.open` now reach the decoder of the frames too"
        assert matrices[0] == 1, "opening a file no longer decodes a frame of it: UNPROBED is needless"
        assert matrices[1] == 2, "the options of `av.open` no longer reach its probe: pruning takes twice as long"

    def test_rates_that_are_unknown_are_falsy_and_others_are_numbers(self, video):
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            assert float(stream.average_rate) == 25
            assert stream.time_base * 25 * 512 == 1
        assert not av.VideoFrame(16, 16, "rgb24").time_base

    def test_a_format_that_is_not_on_the_list_is_an_invalid_argument(self, tmp_path):
        """So the message can say which containers are read."""
        path = write_image(tmp_path / "frame.png", np.zeros((16, 16, 3), np.uint8))
        with pytest.raises(av.error.FFmpegError) as raised:
            av.open(str(path), options=CONTAINERS_ONLY)
        assert raised.value.errno == errno.EINVAL


def test_ravdess_headers_count_one_frame_too_many(clips_folder):
    """So frames are counted by packets, and decord's length is never believed."""
    import decord

    path = clips_folder / "ravdess" / "Actor_01" / "02-01-01-01-01-01-01.mp4"
    with av.open(str(path)) as container:
        header = container.streams.video[0].frames
    assert probe_video(path).num_frames == header - 1
    reader = decord.VideoReader(str(path), num_threads=1)
    assert len(reader) == header
    assert np.array_equal(reader[header - 1].asnumpy(), reader[header - 2].asnumpy())


def test_pyav_gives_a_frames_display_matrix_by_its_type(tmp_path):
    """Not public: the container of a frame's side data, which PyAV 19 iterates by type and others by value."""
    plain = write_video(tmp_path / "plain.mp4", 2)
    assert [probe_video(turn(plain, tmp_path / "turned.mp4", it)).orientation for it in range(1, 9)] == [*range(1, 9)]
