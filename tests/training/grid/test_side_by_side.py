"""LoRAs of several files beside one network: every row gets what its own file gives it, and nothing of the others."""

from __future__ import annotations

import pytest
import torch
from lora_atelier.training.grid.side_by_side import Beside, SideBySide, UnusedLayers
from lora_atelier.training.network.adapter import Adapter
from lora_atelier.training.network.lora import LoRALayer

LAYERS = {
    "linear": lambda: torch.nn.Linear(8, 12),
    "conv": lambda: torch.nn.Conv2d(8, 12, 3, stride=2, padding=1),
    "pointwise": lambda: torch.nn.Conv2d(8, 12, 1),
}
SHAPES = [
    ("linear", (3, 8)), ("linear", (3, 5, 8)), ("linear", (6, 5, 8)), ("linear", (3, 2, 5, 8)), ("conv", (3, 8, 6, 6)),
    ("conv", (6, 8, 5, 7)), ("pointwise", (3, 8, 4, 4)),
]  # fmt: skip


def branch(layer, rank: int, seed: int, scale: float = 0.5) -> LoRALayer:
    stream = torch.Generator().manual_seed(seed)
    out = LoRALayer(layer, rank, scale, stream)
    out.up.data = torch.randn(out.up.shape, generator=stream)
    return out


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def asked(owner: SideBySide, pictures, layer, x, times: int = 1, seats: int = 0) -> torch.Tensor:
    with torch.no_grad(), owner.attached(pictures, seats) as rows:
        rows.spread(len(pictures) * times)
        return layer(x)


def alone(file, strength: float, layers, x) -> torch.Tensor:
    """As an adapter of its own adds it, which other tests hold to the formula."""
    adapter = Adapter(file)
    adapter.strength = strength
    with torch.no_grad(), adapter.attached(layers):
        return layers["a"](x)


@pytest.mark.parametrize("files", [1, 3], ids=["one file", "three files"])
@pytest.mark.parametrize(("kind", "shape"), SHAPES)
def test_each_picture_gets_its_own_file_at_its_own_strength(kind, shape, files):
    layers = {"a": LAYERS[kind]()}
    # Of different ranks and scales; the last one has nothing for this layer.
    read = [{"a": branch(layers["a"], 2, 2, 0.5)}, {"a": branch(layers["a"], 5, 3, 3.0)}, {}]
    chosen = [read[0]] * 3 if files == 1 else read
    strengths, x = (0.5, -2.0, 1.0), numbers(*shape)
    owner = SideBySide(layers, torch.device("cpu"))
    found = asked(owner, [Beside(f, s) for f, s in zip(chosen, strengths, strict=True)], layers["a"], x)
    each = len(x) // 3
    for row, (file, strength) in enumerate(zip(chosen, strengths, strict=True)):
        part = slice(row * each, (row + 1) * each)
        assert torch.allclose(found[part], alone(file, strength, layers, x[part]), atol=1e-5), row
    with torch.no_grad():
        assert not torch.allclose(found, layers["a"](x), atol=1e-2), "and it is gone again"
    assert not layers["a"]._forward_hooks


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_an_output_that_lies_otherwise_is_added_to_as_well(memory):
    layers = {"a": torch.nn.Conv2d(8, 12, 3)}
    files = [{"a": branch(layers["a"], 2, seed)} for seed in (2, 3)]
    x = numbers(2, 8, 6, 6).to(memory_format=memory)
    found = asked(SideBySide(layers, x.device), [Beside(files[0], 1.0), Beside(files[1], 1.0)], layers["a"], x)
    for row, file in enumerate(files):
        assert torch.allclose(found[row], alone(file, 1.0, layers, x[row : row + 1])[0], atol=1e-5)


def test_a_pass_may_hold_the_pictures_more_than_once_or_only_some():
    layers = {"a": torch.nn.Linear(8, 12)}
    files = [{"a": branch(layers["a"], 2, seed)} for seed in (2, 3)]
    pictures = [Beside(files[0], 0.5), Beside(files[1], 1.0), Beside(None, 1.0)]
    owner, x = SideBySide(layers, torch.device("cpu")), numbers(6, 8)
    plain = layers["a"](x)
    with torch.no_grad(), owner.attached(pictures) as rows:
        rows.spread(6)
        whole = layers["a"](x)
        rows.choose([2, 0])
        rows.spread(4)
        some = layers["a"](x[:4])
        rows.choose([1])
        rows.spread(3)
        single = layers["a"](x[:3])
        for batch in (0, 1, 3):
            rows.choose([0, 1])
            with pytest.raises(RuntimeError, match="do not fit"):
                rows.spread(batch)
        rows.choose([0, 1])
        rows.spread(2)
        with pytest.raises(ValueError, match="2 pictures do not fit a layer with 3 rows"):
            layers["a"](x[:3])
    own = [alone(file, s, layers, x) for file, s in ((files[0], 0.5), (files[1], 1.0))]
    for row in (0, 3):
        assert torch.allclose(whole[row], own[0][row], atol=1e-5) and torch.allclose(whole[row + 1], own[1][row + 1], atol=1e-5)
    assert torch.equal(whole[2], plain[2]) and torch.equal(some[[0, 2]], plain[[0, 2]])
    assert torch.allclose(some[[1, 3]], own[0][[1, 3]], atol=1e-5) and torch.allclose(single, own[1][:3], atol=1e-5)


def test_files_that_stay_keep_their_seats_and_what_is_recorded_stays_true():
    """A recorded pass reads fixed places, so a new file of a known form must come into them."""
    layers = {"a": torch.nn.Linear(8, 12)}
    one, two, three, large = ({"a": branch(layers["a"], rank, seed)} for rank, seed in ((2, 2), (2, 3), (1, 4), (9, 5)))
    owner, x = SideBySide(layers, torch.device("cpu")), numbers(2, 8)
    states, places = [], []
    for pair in ((one, two), (two, three), (three, one), (one, one), (one, large)):
        found = asked(owner, [Beside(file, 1.0) for file in pair], layers["a"], x, seats=2)
        for row, file in enumerate(pair):
            assert torch.allclose(found[row], alone(file, 1.0, layers, x)[row], atol=1e-5)
        states.append(owner.state[0])
        places.append([stack.down.data_ptr() for stack in owner._stacks.values()])
    assert states[0] == states[1] == states[2] == states[3] != states[4], "only a higher rank needs another place"
    assert places[0] == places[3]
    assert owner.bytes == 4 * owner.numbers([one, large], 2) == 4 * 2 * 9 * (8 + 12)
    owner.release()
    assert owner.bytes == 0


def test_half_precision_is_added_in_half_precision():
    layers = {"a": torch.nn.Linear(64, 64)}
    files = [{"a": branch(layers["a"], 4, seed, 1 / 128)} for seed in (2, 3)]
    x = numbers(2, 64)
    exact = [alone(file, 0.7, layers, x) for file in files]
    layers["a"].half()
    found = asked(SideBySide(layers, x.device), [Beside(file, 0.7) for file in files], layers["a"], x.half())
    assert found.dtype == torch.float16
    for row in range(2):
        assert (found[row].float() - exact[row][row]).norm() < 2e-3 * exact[row][row].norm()


def test_a_file_whose_layers_are_passed_by_is_named_and_only_that():
    layers = {"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)}
    good, bad = {"a": branch(layers["a"], 1, 1)}, {"a": branch(layers["a"], 1, 2), "b": branch(layers["b"], 1, 3)}
    owner = SideBySide(layers, torch.device("cpu"))
    with pytest.raises(UnusedLayers, match="such as b") as caught, owner.attached([Beside(good, 1.0), Beside(bad, 1.0)]) as rows:
        rows.spread(2)
        layers["a"](torch.zeros(2, 2))
        layers["b"].forward(torch.zeros(2, 2))  # as a compiled network calls it
    assert caught.value.files == [bad]
    assert not any(layer._forward_hooks for layer in layers.values())
    with owner.attached([Beside(bad, 1.0)]) as rows:
        rows.spread(1)
        layers["a"](torch.zeros(1, 2))
        layers["b"](torch.zeros(1, 2))
