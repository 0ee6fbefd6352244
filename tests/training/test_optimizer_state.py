"""An optimiser's state goes where the weights are, whichever way it was saved."""

import pytest
import torch
from torch import nn

from fastemo.training.state import load_optimizer


def adam(device, **kernel):
    weight = nn.Parameter(torch.ones(3, 2, device=device))
    return torch.optim.Adam([weight], lr=0.1, **kernel), weight


def saved(device="cpu", **kernel):
    optimizer, weight = adam(device, **kernel)
    weight.sum().backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize(("was_fused", "is_fused"), [(False, False), (False, True), (True, True)])
def test_the_count_of_updates_lies_beside_the_weights_of_a_fused_kernel_only(was_fused, is_fused):
    state = saved(fused=was_fused)
    optimizer, weight = adam("meta")
    optimizer.param_groups[0]["fused"] = is_fused  # which torch refuses to be made for a device without memory
    load_optimizer(optimizer, state)
    assert optimizer.param_groups[0]["fused"] == is_fused
    assert optimizer.state[weight]["step"].device.type == ("meta" if is_fused else "cpu")
    assert optimizer.state[weight]["exp_avg"].device.type == "meta"


@pytest.mark.parametrize("was_fused", [False, True])
@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_training_resumes_by_another_kernel(device, was_fused, is_fused):
    optimizer, weight = adam(device, fused=is_fused)
    load_optimizer(optimizer, saved(device, fused=was_fused))
    weight.sum().backward()
    optimizer.step()
    assert optimizer.state[weight]["step"] == 2
