"""Every text encoder that captions go through: does it learn, does the file say what it learnt, is what is kept exact?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
import torch
from lora_atelier.training import host
from lora_atelier.training.config import NetworkConfig
from lora_atelier.training.dataset.cache import TensorCache, cache_key
from lora_atelier.training.network import lora_file
from lora_atelier.training.network.adapter import Adapter
from lora_atelier.training.network.scope import TEXT, Layers, text_layers
from lora_atelier.training.performance.checkpointing import checkpointed
from torch import Tensor

from . import build as animals
from .recipes import RECIPES
from .slopes import named, slope
from .texts import READERS, Reader, build

PLAIN = 'ohwx, a red house under old trees, a sign that says "open"'
"""To learn from. Where a word has a weight, the host asks the encoder for an empty text as well, and language models mask all of
that with -1.7e38: beside such a number torch's fused attention loses the logarithm of the sum, and the way back is wrong."""
CAPTION = 'ohwx, a red house under (old:1.2) trees, a sign that says "open"'


@pytest.fixture(
    scope="module",
    params=[pytest.param(r, id=r.name, marks=[pytest.mark.all_models] if r.large else []) for r in READERS],
)
def text(request, comfyui) -> Iterator[host.TextEncoder]:
    reader: Reader = request.param
    try:
        clip = build(reader)
    except ModuleNotFoundError as error:
        pytest.skip(f"this ComfyUI has none: {error}")
    text = host.TextEncoder(clip)
    if not text.encode(CAPTION)["cond"].isfinite().all():
        pytest.skip("this ComfyUI itself gives no numbers for it")
    yield text


def test_the_encoder_of_every_family_is_here(comfyui):
    """As the host's list of models names them, so that a new one shows up."""
    import comfy.supported_models
    from lora_atelier.training import families

    trained = [kind for kind in comfy.supported_models.models if not families.family_named(kind.__name__).refused]
    # Where the network reads the words itself, its encoder only numbers them and has nothing to learn with.
    trained = [kind for kind in trained if not families.family_named(kind.__name__).reads_tokens]
    wanted = {kind.__name__: target.clip for kind in trained if (target := kind.clip_target(kind, {})) is not None}
    here = [reader.kind() for reader in READERS if reader.is_known()]

    def same(one: type, other: type) -> bool:  # made anew by a function each time, or extended
        return any((base.__module__, base.__qualname__) == (other.__module__, other.__qualname__) for base in one.__mro__)

    assert not {name for name, target in wanted.items() if not any(same(one, target) for one in here)}


@pytest.fixture(scope="module")
def model(comfyui) -> host.Model:
    """Something for the text encoder to be held beside."""
    return animals.build(next(recipe for recipe in RECIPES if recipe.name == "SD 1.5")).model


def layers_of(text: host.TextEncoder) -> Layers:
    known = text.lora_names()
    return {TEXT + name: layer for name, layer in text.layers().items() if name in known}


def new_adapter(text: host.TextEncoder) -> Adapter:
    """On all that is trained of it, with up-matrices unlike zero, so that all gradients are."""
    adapter = Adapter.fresh(text_layers(layers_of(text), "all"), NetworkConfig(rank=2, alpha=2.0), 3)
    stream = torch.Generator().manual_seed(3)
    for branch in adapter.branches.values():
        branch.up.data = torch.randn(branch.up.shape, generator=stream) * 0.05
    return adapter.to(text.clip.patcher.load_device)


@contextmanager
def held(model: host.Model, text: host.TextEncoder, adapter: Adapter, again: bool = False) -> Iterator[None]:
    with model.hold(text), adapter.attached(layers_of(text)), checkpointed(text.blocks() if again else []):
        yield


def number(said: Mapping[str, Tensor]) -> Tensor:
    """What an encoder says of a caption as one number, in float64; masks and the like are no part of it."""
    total = torch.zeros((), dtype=torch.float64)
    for name in sorted(name for name in said if name.startswith(("cond", "pooled"))):
        value = said[name].double()
        weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name)), dtype=torch.float64)
        total = total.to(value.device) + (value * weights.to(value.device)).sum() / value.numel() ** 0.5
    return total


def gradients(model: host.Model, text: host.TextEncoder, adapter: Adapter, again: bool = False) -> dict[str, Tensor]:
    parameters = named(adapter)
    with held(model, text, adapter, again):
        loss = number(text.encode_live(PLAIN))
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(parameters.items(), found, strict=True)}


def test_a_text_encoder_learns(text, model, record_property):
    """Along its gradient the loss has that slope, and the gradient is the same with recomputed blocks."""
    adapter = new_adapter(text)
    assert not {name for name in adapter.branches if layers_of(text)[name].weight.ndim != 2}, "a bank of experts has three"
    found = gradients(model, text, adapter)
    length = torch.stack([g.double().norm() for g in found.values()]).norm().item()
    assert 0 < length < float("inf")
    by_layer = {name: max(found[f"{name}.{part}"].abs().max() for part in ("down", "up")) for name in adapter.branches}
    learning = [name for name, most in by_layer.items() if most > 0]
    record_property("targets", len(learning))
    record_property("left_out", len(by_layer) - len(learning))
    # Where the last layers are not read, nothing can be learnt in them.
    assert len(learning) >= 0.3 * len(by_layer)

    direction = {name: g / length for name, g in found.items()}
    measured = []
    with held(model, text, adapter), torch.no_grad():
        for step in (0.01, 0.03, 0.003, 0.1, 1e-3, 1e-4, 3e-5):  # one that is long for rounding and short for the curve
            measured.append(slope(lambda: number(text.encode_live(PLAIN)).item(), adapter, direction, step))
            if abs(measured[-1] - length) <= 2e-3 * length:
                break
        else:
            pytest.fail(f"slopes {measured}, gradient {length}")

    twice = gradients(model, text, adapter, again=True)
    far = {name: (found[name] - twice[name]).norm() / found[name].norm().clamp_min(1e-9) for name in found}
    assert max(far.values()) <= 1e-3


def test_its_file_goes_into_the_stock_loader_and_reads_as_it_was_trained(text, model, caplog):
    import comfy.sd

    adapter = new_adapter(text)
    with held(model, text, adapter), torch.no_grad():
        live = {k: v.clone() for k, v in text.encode_live(CAPTION).items()}
    before = text.encode(CAPTION)
    names = {TEXT + name: found for name, found in text.lora_names().items()}
    tensors = lora_file.to_file(adapter, names, "SD15", torch.float32, layers_of(text))
    with torch.inference_mode():
        _, loaded = comfy.sd.load_lora_for_models(None, text.clip, tensors, 0.0, 1.0)
    assert "lora key not loaded" not in caplog.text
    there = host.TextEncoder(loaded).encode(CAPTION)
    assert there.keys() == live.keys()
    for part in live:
        # Merged weights are rounded to the half precision that the encoder is kept in.
        far, change = ((live[part].float() - other[part].float()).norm() for other in (there, before))
        assert far <= 0.05 * change, (part, far, change)
    changes = [(live[part].float() - before[part].float()).norm() / before[part].float().norm().clamp_min(1e-9) for part in live]
    assert max(changes) > 0.01
    after = text.encode(CAPTION)
    assert all(torch.equal(before[part], after[part]) for part in before), "and without it, it reads as before"


def test_what_is_kept_of_a_caption_is_all_that_a_graph_would_give(text, tmp_path):
    """Pooled vector, masks and every further tensor, to the bit, also through the cache on the disk."""
    ((cond, extras),) = text.for_sampling(CAPTION)
    expected = {"cond": cond, **{name: value for name, value in extras.items() if isinstance(value, Tensor)}}
    others = {name for name, value in extras.items() if value is not None and not isinstance(value, Tensor)}
    assert others <= {"num_layers_stacked"}, "which GPT-OSS tells and no model asks for"
    found = text.encode(CAPTION)
    cache = TensorCache(tmp_path, 2**30)
    key = cache_key("text", CAPTION)
    cache.put(key, found)
    for one in (found, cache.get(key)):
        assert one.keys() == expected.keys()
        for name, value in expected.items():
            assert one[name].dtype == value.dtype and torch.equal(one[name], value.cpu()), name
