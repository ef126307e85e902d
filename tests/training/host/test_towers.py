"""Towers of a text encoder that don't learn: read once, and all is as if they read in every step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lora_atelier.tests.training.test_job import Stop, dataset, fresh_folders, go, interrupt, recipe  # noqa: F401
from lora_atelier.training import host, job
from lora_atelier.training.config import LengthConfig, LossConfig, NetworkConfig, OptimizerConfig, TextConfig
from lora_atelier.training.dataset.cache import TensorCache
from lora_atelier.training.dataset.encoded import TowerAnswers
from lora_atelier.training.network.adapter import Adapter
from lora_atelier.training.network.scope import TEXT, text_layers
from safetensors.torch import load_file
from torch import Tensor

from ... import tiny_large
from ...zoo import build as animals
from ...zoo import texts
from ...zoo.recipes import RECIPES

SD3 = texts.Reader(
    "CLIP-L, CLIP-G and T5 (SD 3)", "text_encoders.sd3_clip", "SD3Tokenizer", lambda m: m.sd3_clip(t5_attention_mask=True),
    {"clip_l": texts.CLIP, "clip_g": texts.CLIP, "t5xxl": {**texts.T5, "d_model": 4096, "num_layers": 1}},
)  # fmt: skip
RESTING = {
    SD3.name: {"t5xxl"}, "CLIP-L and T5 (Flux)": {"t5xxl"}, "CLIP-L and Llama 3 (Hunyuan Video)": {"llama"},
    "CLIP-L, CLIP-G, T5 and Llama 3 (HiDream)": {"t5xxl", "llama"}, "Qwen 2.5 VL and CLIP-L (Kandinsky 5)": {"qwen25_7b"},
}  # fmt: skip
READERS = [replace(one, dtype=torch.float32) for one in (SD3, *texts.READERS) if one.name in RESTING]
CAPTIONS = [
    "ohwx, a red house",
    "",
    "a (green:1.4) house under (old, crooked trees:0.7)",
    ", ".join(f"thing {i}" for i in range(90)),
]


@pytest.fixture(
    scope="module", params=[pytest.param(r, id=r.name, marks=[pytest.mark.all_models] if r.large else []) for r in READERS]
)
def clip(request, comfyui):
    try:
        return request.param, texts.build(request.param)
    except ModuleNotFoundError as error:
        pytest.skip(f"this ComfyUI has none: {error}")


@pytest.fixture(scope="module")
def model(comfyui) -> host.Model:
    """Something for the text encoder to be held beside."""
    return animals.build(next(one for one in RECIPES if one.name == "SD 1.5")).model


@contextmanager
def counted(clip) -> Iterator[Counter[str]]:
    """Rows that go through each tower."""
    from comfy.sd1_clip import SDClipModel

    passes: Counter[str] = Counter()
    hooks = []
    for name, module in clip.cond_stage_model.named_modules():
        if isinstance(module, SDClipModel):
            hooks.append(
                module.register_forward_hook(lambda _module, given, _out, name=name: passes.update({name: len(given[0])}))
            )
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()


def adapter_of(text: host.TextEncoder) -> tuple[Adapter, dict[str, torch.nn.Module]]:
    known = text.lora_names()
    layers = {TEXT + name: layer for name, layer in text.layers().items() if name in known}
    adapter = Adapter.fresh(text_layers(layers, "clip"), NetworkConfig(rank=2, alpha=2.0), 3)
    stream = torch.Generator().manual_seed(3)
    for branch in adapter.branches.values():
        branch.up.data = torch.randn(branch.up.shape, generator=stream) * 0.05
    return adapter.to(text.device), layers


def answers(model, text, adapter, layers, caption) -> tuple[dict[str, Tensor], list[Tensor]]:
    """What is said of a caption, and the gradient of a number made of it."""
    parameters = [parameter for branch in adapter.branches.values() for parameter in (branch.up, branch.down)]
    with model.hold(text), adapter.attached(layers):
        said = text.encode_live(caption)
        stream = torch.Generator().manual_seed(1)
        parts = (said[name].float() for name in sorted(said) if said[name].requires_grad)
        loss = sum((part * torch.randn(part.shape, generator=stream).to(part.device)).mean() for part in parts)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return said, [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def test_a_step_is_what_it_would_be_if_all_towers_read(clip, model, tmp_path):
    reader, loaded, syntax = *clip, "ComfyUI"
    usual, text = (host.TextEncoder(loaded, syntax).for_training() for _ in range(2))
    adapter, layers = adapter_of(usual)
    kept = TowerAnswers(TensorCache(tmp_path, 2**30), text.identity())
    learning = [name.removeprefix(TEXT) for name in adapter.branches]
    assert set(text.learns(learning, kept)) == RESTING[reader.name]
    with counted(loaded) as passes:
        assert len(list(text.read_all_ahead(CAPTIONS))) == len(CAPTIONS)
    assert RESTING[reader.name] <= passes.keys()
    for caption in CAPTIONS:
        expected, slopes = answers(model, usual, adapter, layers, caption)
        with counted(loaded) as passes:
            said, found = answers(model, text, adapter, layers, caption)
        assert passes and not passes.keys() & RESTING[reader.name], "what doesn't learn reads nothing in a step"
        assert said.keys() == expected.keys()
        for name, value in expected.items():
            assert (said[name].shape, said[name].dtype) == (value.shape, value.dtype)
            value = value.detach().float()
            assert torch.allclose(said[name].float(), value, rtol=1e-6, atol=1e-6 * float(value.abs().max())), name
        assert any(one.abs().max() > 0 for one in found)
        for one, other in zip(found, slopes, strict=True):
            assert (one - other).norm() <= 1e-5 * other.norm() + 1e-9
    again = host.TextEncoder(loaded, syntax).for_training()
    again.learns(learning, TowerAnswers(TensorCache(tmp_path, 2**30), text.identity()))
    with counted(loaded) as passes:
        list(again.read_all_ahead(CAPTIONS))
    assert not passes.keys() & RESTING[reader.name] and (not RESTING[reader.name] or not passes), "an earlier run has read it"
    assert all("encode_token_weights" not in vars(module) for module in loaded.cond_stage_model.modules())


def test_what_was_not_read_before_is_read_once_and_pictures_take_it_too(comfyui, tmp_path):
    with torch.inference_mode():
        loaded = tiny_large.flux_text_encoder()
    text = host.TextEncoder(loaded).for_training()
    adapter, _ = adapter_of(text)
    expected = text.for_sampling("a new prompt")
    text.learns([name.removeprefix(TEXT) for name in adapter.branches], TowerAnswers(TensorCache(tmp_path, 2**30), "x"))
    with counted(loaded) as passes:
        for _ in range(3):
            text.encode_live("a new prompt")
            ((cond, extras),) = text.for_sampling("a new prompt")
    assert passes["t5xxl"] == 1 and passes["clip_l"] == 6
    assert torch.equal(cond, expected[0][0]) and torch.equal(extras["pooled_output"], expected[0][1]["pooled_output"])
    text.learns([], TowerAnswers(TensorCache(tmp_path, 2**30), "x"))
    with counted(loaded) as passes:
        text.encode_live("a new prompt")
    assert passes["t5xxl"] == 1, "where nothing is said to learn, nothing is known to be still"


def flux_text(cache):
    """(CLIP, encoder in which CLIP-L learns, what keeps T5's answers)."""
    with torch.inference_mode():
        loaded = tiny_large.flux_text_encoder()
    text = host.TextEncoder(loaded).for_training()
    adapter, _ = adapter_of(text)
    return loaded, text, [name.removeprefix(TEXT) for name in adapter.branches], TowerAnswers(cache, "x")


def test_what_the_cache_has_lost_is_read_again_and_its_mark_does_not_outlive_it(comfyui, tmp_path):
    from lora_atelier.training.host.towers import key_of

    cache = TensorCache(tmp_path, 2**30)
    loaded, text, learning, answers = flux_text(cache)
    texts = ["a cat", "a dog", "a mouse"]
    text.learns(learning, answers)
    list(text.read_all_ahead(texts))
    assert text.settle() == ()
    gone = answers._key(f"t5xxl:{key_of(text.tokenize('a dog')['t5xxl'])}")
    cache.path(gone).unlink()
    text.learns(learning, TowerAnswers(cache, "x"))
    with counted(loaded) as passes:
        list(text.read_all_ahead(texts))
    assert passes["t5xxl"] == 1 and text.settle() == () and cache.has(gone)


def test_a_tower_does_not_rest_where_the_cache_is_too_small_for_what_it_says(comfyui, monkeypatch, tmp_path):
    from lora_atelier.training.dataset import encoded

    monkeypatch.setattr(encoded, "IN_MEMORY", 0)
    texts = [f"a cat, number {number}" for number in range(12)]
    _, text, learning, answers = flux_text(TensorCache(tmp_path / "large", 2**30))
    text.learns(learning, answers)
    list(text.read_all_ahead(texts))
    size = sum(path.stat().st_size for path in (tmp_path / "large").rglob("*.safetensors"))
    assert text.settle() == () and text._frozen.at_rest
    text.learns(learning, TowerAnswers(TensorCache(tmp_path / "small", size // 2), "x"))
    list(text.read_all_ahead(texts))
    assert text.settle() == ("t5xxl",) and not text._frozen.at_rest and text.resting is None
    with counted(text.clip) as passes:
        text.encode_live(texts[-1])
    assert not passes["t5xxl"], "what is still kept is still of use"


def test_what_cannot_be_kept_is_not_noted_as_read(comfyui, monkeypatch, tmp_path):
    from lora_atelier.training.host import towers

    cache = TensorCache(tmp_path, 2**30)
    loaded, text, learning, answers = flux_text(cache)
    text.learns(learning, answers)
    with monkeypatch.context() as context:
        context.setattr(towers, "parts_of", lambda answer: None)
        list(text.read_all_ahead(["a cat"]))
    assert text.settle() == ("t5xxl",)
    text.learns(learning, TowerAnswers(cache, "x"))
    with counted(loaded) as passes:
        list(text.read_all_ahead(["a cat"]))
    assert passes["t5xxl"] == 1


def test_a_disk_that_fills_up_in_a_step_ends_no_run(comfyui, monkeypatch, tmp_path):
    from lora_atelier.training.errors import AtelierError

    _, text, learning, answers = flux_text(TensorCache(tmp_path, 2**30))

    def full(*_):
        raise AtelierError("cache: cannot be written")

    monkeypatch.setattr(TensorCache, "put", full)
    text.learns(learning, answers)
    with pytest.raises(AtelierError, match="cannot be written"):
        list(text.read_all_ahead(["a cat"]))
    text.settle()
    with counted(text.clip) as passes:
        for _ in range(2):
            text.encode_live("a dog")
    assert passes["t5xxl"] == 1


def test_a_tower_that_gives_no_numbers_is_named(comfyui, tmp_path):
    from lora_atelier.training.errors import NotFinite

    with torch.inference_mode():
        loaded = tiny_large.flux_text_encoder()
        next(p for n, p in loaded.cond_stage_model.named_parameters() if "t5xxl" in n and "wi_0" in n).fill_(float("nan"))
    text = host.TextEncoder(loaded).for_training()
    text.learns(["clip_l.x"], TowerAnswers(TensorCache(tmp_path, 2**30), "x"))
    with pytest.raises(NotFinite, match=r"clip: its part t5xxl gives NaN"):
        text.encode_live("a cat")


def test_what_rests_stays_in_main_memory_while_the_others_learn(comfyui, model, tmp_path):
    from lora_atelier.training.host.towers import towers_of

    with torch.inference_mode():
        loaded = tiny_large.flux_text_encoder()
    text = host.TextEncoder(loaded).for_training()
    whole = sum(weight.nbytes for weight in text.weights())
    adapter, layers = adapter_of(text)
    text.encode("a cat")  # which brings all of it to the device
    text.learns([name.removeprefix(TEXT) for name in adapter.branches], TowerAnswers(TensorCache(tmp_path, 2**30), "x"))
    list(text.read_all_ahead(["a cat"]))
    places, sizes = {}, {}
    with model.hold(text), adapter.attached(layers):
        for name, tower in towers_of(text.clip).items():
            places[name] = {parameter.device.type for parameter in tower.parameters()}
            sizes[name] = sum(value.nbytes for value in (*tower.parameters(), *tower.buffers()))
        known = text.encode_live("a cat")["cond"]
        assert torch.isfinite(text.encode_live("a dog")["cond"]).all(), "what was not read ahead is read all the same"
        assert {parameter.device.type for parameter in towers_of(text.clip)["t5xxl"].parameters()} == {"cpu"}
    assert places == {"clip_l": {text.device.type}, "t5xxl": {"cpu"}}
    gone = 0 if text.device.type == "cpu" else sizes["t5xxl"]
    assert sum(weight.nbytes for weight in text.weights()) == whole - gone
    assert not set(text.blocks()) & set(loaded.cond_stage_model.t5xxl.modules())
    assert torch.allclose(known.cpu(), text.for_sampling("a cat")[0][0].cpu(), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def flux(comfyui, tmp_path_factory):
    """A tiny Flux with CLIP-L and T5."""
    import comfy.sd
    import comfy.utils

    folder = tmp_path_factory.mktemp("flux")
    with torch.inference_mode():
        patcher = comfy.sd.load_diffusion_model(str(tiny_large.flux(folder / "flux.safetensors", 4)))
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(tiny_large.flux_autoencoder(folder / "ae.safetensors"))))
        loaded = tiny_large.flux_text_encoder()
    return SimpleNamespace(model=host.Model(patcher), text=host.TextEncoder(loaded), codec=host.PictureCodec(vae), clip=loaded)


def learning(name: str, **changes):
    values = {
        "text": TextConfig("clip"), "length": LengthConfig(max_steps=5), "optimizer": OptimizerConfig(learning_rate=1e-2),
        "loss": LossConfig(preservation=0.1, preservation_prompt="a thing"),
    }  # fmt: skip
    return recipe(name, **{**values, **changes})


def test_a_run_in_which_clip_learns_asks_t5_for_each_text_once(flux, dataset, monkeypatch, tmp_path):  # noqa: F811
    """Captions, the prompts of samples, and what the model is held to; the LoRA is that of a run in which T5 reads every time."""
    monkeypatch.setattr(host, "cache_folder", lambda: tmp_path / "cache")
    preview = job.Preview("a sample\nanother", "ugly", 1, 1.0, "euler", "normal", 0)
    with counted(flux.clip) as passes:
        done = go(flux, dataset, learning("kept"), preview)
    read = {"picture 0", "picture 1", "", "a thing", "a sample", "another", "ugly"}
    assert passes["t5xxl"] == len(read) + 1 and passes["clip_l"] > 2 * len(read), "and one by which the wires are checked"
    assert any("lora_te1" in name and tensor.abs().max() > 0 for name, tensor in done.tensors.items())
    monkeypatch.setattr(host.TextEncoder, "learns", lambda *_: ())
    with counted(flux.clip) as passes:
        usual = go(flux, dataset, learning("usual"), preview)
    assert passes["t5xxl"] > 2 * len(read)
    assert done.losses == pytest.approx(usual.losses, rel=1e-4)
    for name, tensor in usual.tensors.items():
        assert torch.allclose(done.tensors[name], tensor, rtol=1e-3, atol=1e-5), name


def test_a_run_that_goes_on_is_the_same_to_the_bit(flux, dataset, interrupt, monkeypatch, tmp_path):  # noqa: F811
    whole = go(flux, dataset, learning("whole"))
    with monkeypatch.context() as patch, pytest.raises(type(interrupt)):
        Stop(patch, 4, interrupt)
        go(flux, dataset, learning("parted"))
    parted = go(flux, dataset, learning("parted"))
    assert 0 < len(parted.losses) == len(whole.losses) and parted.losses == whole.losses
    assert all(torch.equal(tensor, parted.tensors[name]) for name, tensor in whole.tensors.items())
    assert load_file(parted.epochs.files[-1].path).keys() == whole.tensors.keys()
