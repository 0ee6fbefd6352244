"""What a user can get wrong, in one line; and choices."""

import pytest
import torch

from benchmarks import epoch_time, reliability, scaling, throughput
from benchmarks.common.options import choose
from benchmarks.common.peers import PEERS


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (throughput, ["--corpus", "/no/such/folder"], "/no/such/folder"),
        (throughput, ["--peers", "somebody"], "--peers takes all, none, or some of decord"),
        (throughput, ["--rounds", "0"], "--rounds must be at least 1, not 0"),
        (throughput, ["--num_frames", "0"], "--num_frames must be at least 1"),
        (throughput, ["--out", "found.txt"], "--out must be a JSON file ending in .json, not 'found.txt'"),
        (reliability, ["--out", "found.txt"], "--out must be a JSON file"),
        (epoch_time, ["--models", "resnet"], "--models takes all, or some of early_cnn"),
        (epoch_time, ["--peers", "somebody"], "--peers takes all, none, or some of report, plain"),
        (epoch_time, ["--clips", "2000"], "--clips and --batch_size must be at most 1440"),
        (epoch_time, ["--clips", "0"], "--clips must be at least 1, not 0"),
        (epoch_time, ["--crop_size", "200"], "--crop_size 200 is larger than --size 128"),
        (scaling, ["--processes", "two"], "--processes must be comma-separated numbers from 1, not 'two'"),
        (scaling, ["--processes", "1,3"], "--batch_size 8 cannot be split evenly over 3 processes"),
        (scaling, ["--processes", "1,1000", "--batch_size", "1000"], "need more than 1440 clips"),
        (scaling, ["--model", "vgg"], "--model must be one of early_cnn"),
        (scaling, ["--precision", "int8"], "--precision must be one of auto"),
        (scaling, ["--size", "8"], "--size must be at least 36, not 8"),
        (scaling, ["--hosts", "10.0.0.1,10.0.0.2"], "--host_rank must be this host's index in --hosts, 0 to 1"),
        (scaling, ["--hosts", "127.0.0.2,127.0.0.3", "--host_rank", "0"], "--host_rank is for real hosts"),
        (scaling, ["--hosts", "127.0.0.2"], "--hosts must be two or more different"),
        (scaling, ["--port", "1"], "--host_rank and --port need --hosts"),
    ],
)
def test_a_mistake_is_reported_in_one_line(script, arguments, message, one_line_of):
    assert message in one_line_of(script.main, arguments)


def test_choices():
    assert choose("--peers", "none", PEERS, can_be_none=True) == []
    assert choose("--peers", "pyav, jpeg", PEERS) == ["pyav", "jpeg"]
    with pytest.raises(ValueError, match=r"--peers takes all, or some of decord, .*, not 'torchvision'"):
        choose("--peers", "pyav,torchvision", PEERS)
    can_run = [name for name, peer in PEERS.items() if torch.cuda.is_available() or not peer.on_gpu]
    assert throughput.parse([]).peer_names == can_run


@pytest.mark.parametrize(
    ("arguments", "has_gpu", "clips"),
    [("--batch_size 32 --clips 100", False, 128), ("--batch_size 512", True, 1024), ("--batch_size 64", False, 64)],
)
def test_an_epoch_is_whole_batches(arguments, has_gpu, clips):
    assert epoch_time.clips_an_epoch("r3d18", epoch_time.parse(arguments.split()), has_gpu=has_gpu) == clips
