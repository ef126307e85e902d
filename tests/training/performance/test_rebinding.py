"""Functions that change tensors by name: rewritten they give the same numbers, spoil nothing, and are left as they were."""

from __future__ import annotations

import ast
import functools
import importlib.util
import linecache
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.performance import rebinding
from lora_atelier.training.performance.rebinding import fresh_name, is_lost, rebound, rewritten, root_of
from torch import Tensor

from ...zoo.build import build
from ...zoo.recipes import RECIPES


def gated(x: Tensor, y: Tensor, gate: Tensor = None, *, times: int = 2) -> Tensor:
    x.addcmul_(y.tanh(), gate)
    for _ in range(times):
        x[1:].mul_(gate[1:]).add_(y[1:])
    x.mul_(y.cos()).add_(gate)
    z = (x * x).add_(y)
    x.lerp_(z.sin(), 0.3)
    return modulated(x, y).addcdiv_(y, 2 + gate.square())


def modulated(x: Tensor, y: Tensor) -> Tensor:
    return x.addcmul_(x, y).add_(y)


def inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    stream = torch.Generator().manual_seed(2)
    return [torch.randn(3, 4, generator=stream, dtype=torch.float64).to(dtype) for _ in range(3)]


def test_autograd_gets_what_it_needs_and_the_numbers_are_the_same():
    """By finite differences; without it autograd refuses."""
    leaves = [t.requires_grad_() for t in inputs()]

    def value(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
        return gated(x.sin(), y, gate)

    with pytest.raises(RuntimeError, match="inplace"):
        value(*leaves).sum().backward()
    with torch.no_grad():
        wanted = value(*leaves)
    before = gated.__code__
    with rebound([gated, modulated]):
        assert torch.equal(value(*leaves), wanted)
        assert torch.autograd.gradcheck(value, leaves)
        kept = inputs()[0]
        given = kept.clone()
        gated(given, *inputs()[1:])
        assert torch.equal(given, kept)
    assert gated.__code__ is before and gated.__kwdefaults__ == {"times": 2}
    gated(given, *inputs()[1:])
    assert not torch.equal(given, kept)


def test_what_is_changed_keeps_its_type():
    x, y, gate = inputs()
    with torch.no_grad():
        wanted = gated(x.half(), y.half(), gate.float())
        with rebound([gated, modulated]):
            found = gated(x.half(), y.half(), gate.float())
    assert found.dtype == torch.float16 and torch.equal(found, wanted)


def test_a_function_is_rewritten_once_and_put_back_after_an_error():
    before = gated.__code__
    with pytest.raises(KeyError), rebound([gated]):
        first = gated.__code__
        raise KeyError
    assert gated.__code__ is before and first is not before and rewritten(gated) is first
    with rebound([gated]):
        with rebound([gated]):
            assert gated.__code__ is first
        assert gated.__code__ is first
    assert gated.__code__ is before
    assert rewritten(inputs) is None, "nothing in it is changed in place"


METHOD = """
import torch


def kept(function):
    return function


class Block:
    @kept
    def forward(self, x: "Tensor", gate=(0.0, -0.0, {"a", "b"}), *rest, **more) -> "Tensor":
        \"\"\"Two lines,
        one of them indented.\"\"\"
        scale = [part * 1.0 for part in rest if part in {"a", "b", 1}]
        x.mul_(2)
        x = torch.mul(x, 1)
        return x, \'\'\'
    text\'\'\', scale

    def untouched(self, x):
        return x * 2
"""


def imported(path: Path, text: str) -> ModuleType:
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("future", ["", "from __future__ import annotations\n"])
def test_a_method_keeps_its_texts_and_its_signature(tmp_path, future, monkeypatch):
    monkeypatch.setattr(rebinding, "_rewritten", {})
    block = imported(tmp_path / "blocks.py", future + METHOD).Block
    before, x = block.forward.__code__, torch.ones(2)
    wanted = block().forward(x.clone())
    with rebound([block.forward, block.untouched]):
        assert block.forward.__code__ is not before
        found = block().forward(x)
        assert block.forward.__code__.co_firstlineno == before.co_firstlineno
        assert block.forward.__code__.co_consts[0] == before.co_consts[0]
    assert torch.equal(found[0], wanted[0]) and found[1:] == wanted[1:] and x.tolist() == [1, 1]
    assert not is_lost(block.forward) and not is_lost(block.untouched)


@pytest.mark.parametrize(
    "now",
    [
        METHOD.replace("x.mul_(2)", "x.mul_(3)"),
        METHOD.replace("x.mul_(2)", "x.add_(2)"),
        METHOD.replace("-0.0", "0.0").replace("1.0", "True"),
        METHOD.replace("forward", "backward"),
        METHOD.replace("forward(self", "forward(self, y"),
        "\n" + METHOD,
        "x = 1\n" * 40,
        "# nothing\n" * 40,
        "if True:\n    pass\n" * 20,
        "'''" + METHOD,
        "",
        None,
    ],
)
def test_a_file_that_has_changed_since_it_was_imported_is_not_believed(tmp_path, now, monkeypatch):
    monkeypatch.setattr(rebinding, "_rewritten", {})  # it knows functions by their code
    path = tmp_path / "blocks.py"
    block = imported(path, METHOD).Block
    path.unlink() if now is None else path.write_text(now, encoding="utf-8")
    before = block.forward.__code__
    with rebound([block.forward]):
        assert block.forward.__code__ is before and block().forward(torch.ones(2))[0].tolist() == [2, 2]
    assert is_lost(block.forward) and not is_lost(block.untouched)
    path.write_text(METHOD, encoding="utf-8")
    assert rewritten(block.forward) is not None and not is_lost(block.forward), "as it was"


def test_a_model_whose_code_cannot_be_read_any_more_is_not_trained(comfyui, monkeypatch):
    """Under checkpointing nothing would be said of its gradient, which is wrong by 0.75 for a small PixelDiT."""
    from lora_atelier.training.host import in_place

    models = [build(next(one for one in RECIPES if one.family == family)).model for family in ("LTXV", "SD15")]
    found = [one for one in in_place.functions() if one.__module__ == "comfy.ldm.lightricks.model"]
    assert found and not any(map(is_lost, in_place.functions()))
    for function in found:
        path = function.__code__.co_filename
        lines = Path(path).read_text(encoding="utf-8").replace(".addcmul_(", ".addcdiv_(").splitlines(keepends=True)
        monkeypatch.delitem(rebinding._rewritten, function.__code__, raising=False)
        monkeypatch.setitem(linecache.cache, path, (0, None, lines, path))
    lost = any(map(is_lost, found))
    models[1].for_training(None)
    if not lost:
        return  # this host's has nothing to be rewritten
    with pytest.raises(AtelierError, match=r"lightricks.model\.py: training this model needs .* Restart ComfyUI\.$"):
        models[0].for_training(None)


@pytest.mark.parametrize("wraps", [False, True], ids=["plainly", "with its name"])
def test_a_model_of_which_another_pack_has_changed_such_a_function_is_not_trained(comfyui, monkeypatch, wraps):
    models = [build(next(one for one in RECIPES if one.family == family)).model for family in ("LTXV", "SD15")]
    block = importlib.import_module("comfy.ldm.lightricks.model").BasicTransformerBlock
    before = block.forward

    def patched(self, *args, **kwargs):
        return before(self, *args, **kwargs)

    models[0].for_training(None)
    monkeypatch.setattr(block, "forward", functools.wraps(before)(patched) if wraps else patched)
    models[1].for_training(None)
    with pytest.raises(AtelierError, match=r"BasicTransformerBlock\.forward.* Disable that pack and restart ComfyUI\.$"):
        models[0].for_training(None)


def home() -> Path:
    """The folder of the host's networks."""
    found = importlib.util.find_spec("comfy.ldm.util")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent


def changing(tree: ast.AST, names: tuple[str, ...] = ()) -> Iterator[str]:
    """Functions of a file that change a variable, or a part of one, in place by name."""
    for node in ast.iter_child_nodes(tree):
        inner = (*names, node.name) if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else names
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Attribute) and fresh_name(called.attr) and root_of(called.value):
            yield ".".join(inner)
        yield from changing(node, inner)


HARMLESS = {
    "comfy.ldm.flux.math: _apply_rope1": "a product, whose own numbers autograd does not keep",
    "comfy.ldm.flux.math: apply_rope1": "a product, whose own numbers autograd does not keep",
    "comfy.ldm.genmo.joint_model.layers: TimestepEmbedder.timestep_embedding": "no gradient reaches the level of noise",
    "comfy.ldm.hidream.model: MOEFeedForwardSwiGLU.moe_infer": "only while nothing is learnt",
    "comfy.ldm.hidream_o1.utils: get_rope_index_fix_point": "places, of which there is no gradient",
    "comfy.ldm.krea2.model: SingleStreamBlock.forward": "norms and products, of which autograd keeps copies itself",
    "comfy.ldm.lens.model: LensTransformer2DModel._build_joint_attention_mask": "a mask",
    "comfy.ldm.modules.attention: attention_basic": "not taken while a model is held",
    "comfy.ldm.util: AdamWwithEMAandWings.step": "an optimizer",
}
"""Functions of networks that are trained, and why what they change in place spoils no gradient (tests/zoo looks at each)."""
NO_NETWORK = ("vae", "autoencoder", "tokenizer", "sam3", "seedvr", "minimax", "audio", "ace", "hunyuan3d", "triposplat", "moge",
              "mmaudio", "cascade", "av_model", "ema", "rt_detr", "depth_anything", "supir")  # fmt: skip
"""Parts of the paths of what is no network that is trained."""


def test_every_change_by_name_in_the_hosts_networks_is_known(comfyui):
    from lora_atelier.training.host import in_place

    root, known = home(), {f"{module}: {name}" for module, names in in_place.READ.items() for name in names}
    found = set()
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        if not any(word in part for part in parts for word in NO_NETWORK):
            module = ".".join(("comfy", "ldm", *parts))
            found |= {f"{module}: {name}" for name in changing(ast.parse(file.read_text(encoding="utf-8")))}
    assert found - known - HARMLESS.keys() == set(), "read what they change, and who counts on it"
