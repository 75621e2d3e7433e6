from __future__ import annotations

import pytest
import torch
from torch import nn

from training.averaging import Average


def network() -> nn.Sequential:
    made = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        for tensor in made.state_dict().values():
            tensor.zero_()
    return made


def test_it_follows_by_the_formula_and_counts_along() -> None:
    followed = network()
    average = Average(followed, 0.9)
    expected = 0.0
    for step in range(1, 201):
        with torch.no_grad():
            for tensor in followed.state_dict().values():
                tensor.fill_(step)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    state = average.network.state_dict()
    for name in ("0.weight", "1.weight", "1.running_mean"):
        assert state[name].flatten()[0].item() == pytest.approx(expected, rel=1e-5)
    assert state["1.num_batches_tracked"].item() == 200
    assert not average.network.training
    assert not any(each.requires_grad for each in average.network.parameters())


def test_restored_weights_go_on_being_averaged() -> None:
    followed = network()
    average = Average(followed, 0.5)
    average.network.load_state_dict({k: v + 4 for k, v in network().state_dict().items()})
    average.update(100)
    assert average.network.state_dict()["0.weight"].flatten()[0].item() == 2.0
