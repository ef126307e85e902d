"""Query, key and value as layers of their own in a file, and one fused layer here."""

from __future__ import annotations

import pytest
import torch
from lora_atelier.training.network import lora_file
from lora_atelier.training.network.adapter import Adapter
from lora_atelier.training.network.slices import LayerSlice
from torch import nn

from .support import close

IN, EACH = 10, 6
PARTS = ("to_q", "to_k", "to_v")
LAYERS = {"qkv": nn.Linear(IN, 3 * EACH)}
NAMES = {"qkv": ["diffusion_model.qkv", *(LayerSlice(f"transformer.{part}", EACH * i, EACH) for i, part in enumerate(PARTS))]}


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def file_of(ranks: tuple[int, ...], alphas: tuple[float | None, ...], same_down: bool = False) -> dict[str, torch.Tensor]:
    out = {}
    for i, (part, rank, alpha) in enumerate(zip(PARTS, ranks, alphas, strict=False)):
        out[f"transformer.{part}.lora_A.weight"] = some(rank, IN, seed=0 if same_down else i)
        out[f"transformer.{part}.lora_B.weight"] = some(EACH, rank, seed=10 + i)
        if alpha is not None:
            out[f"transformer.{part}.alpha"] = torch.tensor(alpha)
    return out


def patched_by_comfyui(file: dict[str, torch.Tensor]) -> torch.Tensor:
    """The layer's weight, as ComfyUI patches the rows of each part."""
    import comfy.lora

    table = {name: ("qkv.weight", (0, name.start, name.rows)) for name in NAMES["qkv"] if isinstance(name, LayerSlice)}
    patches = comfy.lora.load_lora(file, table)
    assert len(patches) == sum(name.endswith("lora_A.weight") for name in file)
    listed = [(1.0, patch, 1.0, where[1], None) for where, patch in patches.items()]
    return comfy.lora.calculate_weight(listed, LAYERS["qkv"].weight.detach().clone(), "qkv.weight")


@pytest.mark.parametrize(
    ("ranks", "alphas", "same_down", "rank"),
    [
        ((4, 4, 4), (None, None, None), False, 12),
        ((2, 4, 3), (1.0, 4.0, 6.0), False, 9),
        ((4, 4, 4), (2.0, 2.0, 2.0), True, 4),
        ((4,), (None,), False, 4),
    ],
)
def test_they_become_one_lora_that_does_what_comfyui_does(comfyui, ranks, alphas, same_down, rank):
    file, x = file_of(ranks, alphas, same_down), some(5, IN, seed=20)
    adapter = Adapter(lora_file.read(file, LAYERS, NAMES)[0])
    assert adapter.branches["qkv"].rank == rank
    with torch.no_grad(), adapter.attached(LAYERS):
        mine = LAYERS["qkv"](x)
    assert close(mine, nn.functional.linear(x, patched_by_comfyui(file), LAYERS["qkv"].bias))


def test_the_file_that_is_written_has_the_fused_layers_name(comfyui):
    adapter = Adapter(lora_file.read(file_of((4, 4, 4), (None,) * 3), LAYERS, NAMES)[0])
    written = lora_file.to_file(adapter, NAMES, "QwenImage", torch.float32)
    assert {name.rpartition(".lora")[0] for name in written if "lora" in name} == {"diffusion_model.qkv"}


def test_a_part_of_another_size_is_named():
    file = file_of((4, 4, 4), (None,) * 3)
    file["transformer.to_k.lora_B.weight"] = some(EACH + 1, 4)
    with pytest.raises(ValueError, match=r"transformer\.to_k has other sizes than this model's layer"):
        Adapter(lora_file.read(file, LAYERS, NAMES)[0])
    file = file_of((4, 4, 4), (None,) * 3)
    file["transformer.to_v.lora_A.weight"] = some(4, IN + 1)
    with pytest.raises(ValueError, match="has other sizes than this model's layer"):
        Adapter(lora_file.read(file, LAYERS, NAMES)[0])


def test_parts_of_another_kind_are_left_for_the_host():
    file = file_of((4, 4, 4), (None,) * 3) | {"transformer.to_q.dora_scale": torch.ones(EACH, 1)}
    branches, unused = lora_file.read(file, LAYERS, NAMES)
    assert not branches and sorted(unused) == [f"transformer.{part}" for part in sorted(PARTS)]
