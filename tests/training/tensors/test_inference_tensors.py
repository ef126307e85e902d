"""What graphs load, however it was moved, as autograd takes it; the four kinds are what ``nn.Module.to`` makes of a weight."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from lora_atelier.training.host.weights import identity_of, mended, put_back, without_inference_tensors
from lora_atelier.training.network.base_layer import bias_of, weight_of
from lora_atelier.training.tensors.inference_tensors import is_ordinary, ordinary
from torch import nn

NUMBERS = torch.arange(12.0).reshape(3, 4)


def parameter(numbers: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(numbers.clone(), requires_grad=False)


def made_in_a_graph(numbers: torch.Tensor) -> nn.Parameter:
    with torch.inference_mode():
        return parameter(numbers)


def moved_outside(numbers: torch.Tensor) -> nn.Parameter:
    found = made_in_a_graph(torch.zeros_like(numbers))
    found.data = numbers.clone()
    return found


def moved_inside(numbers: torch.Tensor) -> nn.Parameter:
    found = parameter(torch.zeros_like(numbers))
    with torch.inference_mode():
        found.data = numbers.clone()
    return found


KINDS: dict[str, Callable[[torch.Tensor], nn.Parameter]] = {
    "ordinary": parameter, "made in a graph": made_in_a_graph, "moved outside": moved_outside, "moved inside": moved_inside,
}  # fmt: skip


def layer(kind: str) -> nn.Linear:
    made = nn.Linear(4, 3)
    made.weight, made.bias = KINDS[kind](NUMBERS), KINDS[kind](NUMBERS[:, 0])
    made.register_buffer("note", KINDS[kind](NUMBERS).data if kind == "ordinary" else KINDS[kind](NUMBERS))
    return made


@pytest.mark.parametrize("mode", [True, False], ids=["in inference mode", "outside"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_ordinary_tensor_lies_over_the_same_storage_and_learns(kind, mode):
    weight = KINDS[kind](NUMBERS)
    assert is_ordinary(weight) == (kind == "ordinary")
    with torch.inference_mode(mode):
        found = ordinary(weight)
    assert is_ordinary(found) and found.data_ptr() == weight.data_ptr() and torch.equal(found, NUMBERS)
    x = torch.ones(2, 4, requires_grad=True)
    F.linear(x, found).sum().backward()
    assert torch.equal(x.grad, NUMBERS.sum(0).expand(2, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_a_view_that_shares_its_storage_keeps_place_and_strides(kind):
    with torch.inference_mode(kind != "ordinary"):
        view = KINDS["ordinary"](NUMBERS)[1:, 1:].t()
    assert torch.equal(ordinary(view), NUMBERS[1:, 1:].t()) and ordinary(view).stride() == (1, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_and_buffers_have_stand_ins_for_a_while(kind):
    root = layer(kind)
    mine = [*root.parameters(), root.note]
    swapped = without_inference_tensors(root.modules())
    assert len(swapped) == (0 if kind == "ordinary" else 3)
    inside = [*root.parameters(), root.note]
    assert all(is_ordinary(t) for t in inside) and [t.data_ptr() for t in inside] == [t.data_ptr() for t in mine]
    x = torch.ones(1, 4, requires_grad=True)
    root(x).sum().backward()
    put_back(swapped)
    assert all(a is b for a, b in zip([*root.parameters(), root.note], mine, strict=True))


def tied(kind: str) -> nn.Sequential:
    """Two layers with one weight, on which something is noted."""
    root = nn.Sequential(layer(kind), layer(kind))
    root[1].weight = root[0].weight
    root[0].weight.noted = "by a loader"
    return root


def assert_tied(root: nn.Sequential) -> None:
    assert root[0].weight is root[1].weight and root[0].weight.noted == "by a loader"


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_that_two_layers_share_stays_one_weight(kind):
    root = tied(kind)
    swapped = without_inference_tensors(root.modules())
    assert_tied(root)
    put_back(swapped)
    assert_tied(root)
    mended(SimpleNamespace(model=root))
    assert_tied(root)
    assert is_ordinary(root[0].weight) or root[0].weight.is_inference()


def test_what_does_not_lie_number_by_number_is_left_alone():
    root = layer("made in a graph")
    with torch.inference_mode():
        root.table = NUMBERS.to_sparse()
    table = root.table
    swapped = without_inference_tensors(root.modules())
    assert root.table is table and is_ordinary(root.weight)
    put_back(swapped)
    assert root.weight.is_inference()


@pytest.mark.parametrize("mode", [True, False], ids=["in inference mode", "outside"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_of_a_layer_does_not_depend_on_how_it_was_moved(kind, mode):
    root = layer(kind)
    with torch.inference_mode(mode):
        assert torch.equal(weight_of(root, torch.device("cpu")), NUMBERS)
        assert torch.equal(bias_of(root, NUMBERS), NUMBERS[:, 0])
        assert identity_of(root, None) == identity_of(layer("ordinary"), None)


def test_a_weight_that_the_host_moves_meanwhile_stays_where_it_moved_it():
    root = layer("made in a graph")
    swapped = without_inference_tensors(root.modules())
    root.weight.data = NUMBERS + 1
    put_back(swapped)
    assert torch.equal(root.weight, NUMBERS + 1) and root.bias.is_inference()


def test_what_nobody_could_use_is_mended_for_good_and_what_is_shared_stays_one():
    root, patcher = nn.Sequential(layer("moved outside"), layer("made in a graph")), SimpleNamespace()
    root.append(nn.Linear(4, 3))
    root[2].weight = root[0].weight
    root[0].weight.note = "the host's"
    kept, places = root[1].weight, [p.data_ptr() for p in (*root.parameters(), *root.buffers())]
    patcher.model = root
    assert mended(patcher) is patcher
    assert is_ordinary(root[0].weight) and is_ordinary(root[0].note) and root[1].weight is kept and kept.is_inference()
    assert root[2].weight is root[0].weight and root[0].weight.note == "the host's"
    assert [p.data_ptr() for p in (*root.parameters(), *root.buffers())] == places
    with torch.inference_mode():
        assert torch.equal(root[0](torch.eye(4)), NUMBERS.t() + NUMBERS[:, 0])


def test_what_is_laid_on_a_weight_counts_however_it_is_wrapped():
    """Such as the whole difference of a weight, which some nodes hand over as ("diff", (weight,))."""

    def of(patch: object) -> str:
        return identity_of(layer("ordinary"), SimpleNamespace(patches={"weight": [(1.0, patch, 1.0, None, None)]}))

    assert of(("diff", (NUMBERS,))) == of(("diff", (NUMBERS.clone(),))) != of(("diff", (NUMBERS + 1,)))
    assert of((NUMBERS,)) == of((NUMBERS.clone(),)) != of((NUMBERS + 1,))
