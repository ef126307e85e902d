"""Methods replaced for a while: what was there before is there afterwards, also after an error and one inside another."""

from __future__ import annotations

import pytest
import torch
from lora_atelier.training.tensors.method_patch import patched
from torch import nn


def doubled(_layer, usual):
    return lambda x: 2 * usual(x)


def test_the_method_is_another_one_for_a_while():
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    usual = layer(x)
    with patched([layer], "forward", doubled):
        assert torch.equal(layer(x), 2 * usual)
        with patched([layer], "forward", doubled):
            assert torch.equal(layer(x), 4 * usual)
        assert torch.equal(layer(x), 2 * usual)
    assert torch.equal(layer(x), usual) and "forward" not in layer.__dict__


def test_what_another_node_put_there_is_put_back():
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    theirs = layer.forward = lambda x: x + 1
    with pytest.raises(KeyError), patched([layer], "forward", doubled):
        assert torch.equal(layer(x), 2 * (x + 1))
        raise KeyError
    assert layer.__dict__["forward"] is theirs


def test_an_error_on_the_way_leaves_nothing():
    layers = [nn.Linear(2, 2), nn.Linear(2, 2)]

    def make(layer, usual):
        if layer is layers[1]:
            raise RuntimeError
        return usual

    with pytest.raises(RuntimeError), patched(layers, "forward", make):
        pass
    assert all("forward" not in layer.__dict__ for layer in layers)
