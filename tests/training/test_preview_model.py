"""Runs whose samples another model draws: what is learnt, what is drawn, and where the models are meanwhile.

A training adapter is merged for training and absent from pictures, as ai-toolkit does with its assistant LoRAs.
"""

from __future__ import annotations

import dataclasses
import json
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lora_atelier.benchmarks import _counts
from lora_atelier.training import host, job
from lora_atelier.training.config import LengthConfig, NetworkConfig
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.job import drawing
from lora_atelier.training.network.scope import trained_layers
from PIL import Image
from safetensors import safe_open

from ..tiny_models import cached
from ..zoo.build import build
from ..zoo.recipes import RECIPES
from .test_job import NO_PREVIEW, Stop, dataset, fresh_folders, go, interrupt, only_training_checks, recipe  # noqa: F401

PREVIEW = dataclasses.replace(NO_PREVIEW, steps=2, prompt="picture 0", width=64, height=64)
SHORT = {"length": LengthConfig(max_steps=2)}


def assistant(t, seed=3):
    """A LoRA on all attention of the model, in the names that the stock loader reads."""
    stream, found = torch.Generator().manual_seed(seed), {}
    for name, layer in t.model.layers().items():
        if "attn" in name:
            found[f"diffusion_model.{name}.lora_A.weight"] = torch.randn(4, layer.in_features, generator=stream) * 0.1
            found[f"diffusion_model.{name}.lora_B.weight"] = torch.randn(layer.out_features, 4, generator=stream) * 0.1
    return found


def assisted(t, tensors):
    """The same model with the LoRA, as a stock loader hands it on."""
    with torch.inference_mode():
        patcher, _ = t.model.with_lora(None, tensors, 1.0)
    assert patcher.patches
    return SimpleNamespace(**{**vars(t), "model": host.Model(patcher)})


def another():
    """A second network of the tiny SD3's shape, from its file."""
    import comfy.sd

    with torch.inference_mode():
        return host.Model(comfy.sd.load_checkpoint_guess_config(str(cached("sd3")), output_vae=False, output_clip=False)[0])


def merged(t, tensors):
    """A second model into whose weights the LoRA was added by hand."""
    found = another()
    with torch.inference_mode():
        for name, layer in found.layers().items():
            if (down := tensors.get(f"diffusion_model.{name}.lora_A.weight")) is not None:
                added = layer.weight.float() + (tensors[f"diffusion_model.{name}.lora_B.weight"] @ down).to(layer.weight.device)
                layer.weight.copy_(added.to(layer.weight.dtype))
    return SimpleNamespace(**{**vars(t), "model": found})


def drawn(t, model):
    """What the stock sampler draws of the preview's prompt."""
    with torch.inference_mode():
        told, empty = t.text.for_sampling("picture 0"), t.text.for_sampling("")
        return model.sample(told, empty, PREVIEW.settings, latent_size=(8, 8), seed=PREVIEW.seed).clone()


def pixels(t, latent):
    return np.asarray(Image.fromarray((t.codec.decode(latent)[0].clamp(0, 1) * 255).round().byte().cpu().numpy())).astype(int)


def sample(run, epoch):
    return np.asarray(Image.open(host.runs_folder() / run / "samples" / f"{run}-{epoch:06d}.png")).astype(int)


def test_an_adapter_is_there_in_training_and_nowhere_else(tiny, dataset):  # noqa: F811
    t = tiny("sd3")
    given = assistant(t)
    with_it = assisted(t, given)
    before = [drawn(t, one.model) for one in (t, with_it)]
    learnt = go(
        with_it, dataset, recipe("helped", **SHORT), PREVIEW, preview_model=t.model,
        named=job.Named("z_image_turbo", ("zimage_turbo_training_adapter_v2",), "z_image_turbo"),
    )  # fmt: skip
    by_hand = go(merged(t, given), dataset, recipe("by-hand", **SHORT))
    without = go(t, dataset, recipe("without", **SHORT))
    for name, tensor in learnt.tensors.items():
        torch.testing.assert_close(tensor, by_hand.tensors[name], rtol=1e-3, atol=1e-5)
    assert any(not torch.allclose(learnt.tensors[n], without.tensors[n], rtol=1e-2, atol=1e-4) for n in learnt.tensors)
    assert learnt.tensors.keys() == without.tensors.keys()
    assert all(learnt.tensors[n].shape == without.tensors[n].shape for n in learnt.tensors)

    assert np.abs(sample("helped", 0) - pixels(t, before[0])).max() <= 1
    assert np.abs(sample("helped", 0) - pixels(t, before[1])).max() > 8
    with torch.inference_mode():
        theirs = host.Model(t.model.with_lora(None, learnt.tensors, 1.0)[0])
        both = host.Model(with_it.model.with_lora(None, learnt.tensors, 1.0)[0])
    assert np.abs(sample("helped", 1) - pixels(t, drawn(t, theirs))).max() <= 2
    assert np.abs(sample("helped", 1) - pixels(t, drawn(t, both))).max() > 8
    assert all(torch.equal(drawn(t, one.model), then) for one, then in zip((t, with_it), before, strict=True))

    with safe_open(learnt.epochs.files[-1].path, framework="pt") as file:
        said = file.metadata()
    assert said["ss_sd_model_name"] == "z_image_turbo"
    assert json.loads(said["lora_atelier.laid_on_model"]) == ["zimage_turbo_training_adapter_v2"]
    told = json.loads((host.runs_folder() / "helped" / "run.json").read_text(encoding="utf-8"))["account"]
    assert any("zimage_turbo_training_adapter_v2" in one and "is not in its files" in one for one in told["notes"])
    assert not any("distilled" in one or "preview_model" in one for one in told["warnings"])


def test_the_node_hands_on_the_model_that_draws(tiny, dataset, fresh_folders):  # noqa: F811
    """With the LoRA, and without what lay on the trained one; both from the graph, and the name of each."""
    from lora_atelier.nodes.train_lora import TrainLoRA

    t = tiny("sd3")
    with_it = assisted(t, assistant(t))
    prompt = {
        "1": {"inputs": {"ckpt_name": "turbo.safetensors"}},
        "2": {"inputs": {"model": ["1", 0], "lora_name": "assist.safetensors", "strength_model": 1.0}},
        "3": {"inputs": {"model": ["2", 0], "preview_model": ["1", 0]}},
    }

    class Node(TrainLoRA):
        hidden = SimpleNamespace(prompt=prompt, unique_id="3", extra_pnginfo=None)

    with torch.inference_mode():
        *_, model, _clip = Node.execute(
            with_it.model.patcher, t.text.clip, t.codec.vae, dataset, recipe(**SHORT), "continue", "picture 0", "", 0, 1.0,
            "euler", "normal", 0, preview_model=t.model.patcher,
        ).args  # fmt: skip
    assert model.model is t.model.base and model.patches
    assert all(len(laid) == 1 for laid in model.patches.values()), "the LoRA alone lies on each weight"
    with safe_open(fresh_folders / "loras" / "tiny" / "tiny.safetensors", framework="pt") as file:
        said = file.metadata()
    assert said["ss_sd_model_name"] == "turbo" and json.loads(said["lora_atelier.laid_on_model"]) == ["assist"]


def test_a_run_that_goes_on_is_one_that_was_never_cancelled(tiny, dataset, monkeypatch, interrupt):  # noqa: F811
    t, other = tiny("sd3"), another()
    whole = go(t, dataset, recipe("whole", length=LengthConfig(epochs=2)), PREVIEW, preview_model=other)
    only_training_checks(monkeypatch)
    with monkeypatch.context() as patch, pytest.raises(type(interrupt)):
        Stop(patch, 5, interrupt)
        go(t, dataset, recipe("parts", length=LengthConfig(epochs=2)), PREVIEW, preview_model=other)
    # Which model draws decides nothing of the LoRA, so a run goes on with another one.
    parts = go(t, dataset, recipe("parts", length=LengthConfig(epochs=2)), PREVIEW)
    assert all(torch.equal(parts.tensors[n], whole.tensors[n]) for n in whole.tensors)


@pytest.mark.parametrize("kind", ["plain", "dynamic"])
def test_while_a_run_learns_the_device_is_its_models_alone(loaded, dataset, monkeypatch, kind):  # noqa: F811
    """Another network comes for the pictures and goes again, however much room there is; and where drawing fails too."""
    t = loaded(kind)
    other = another()
    there: list[tuple[str, int]] = []
    real_draw, real_hold = host.Model.sample, host.Model.hold

    def bytes_of():
        return _counts.loaded_bytes().get(id(other.base), 0)

    def draw(self, *given, **named):
        found = real_draw(self, *given, **named)
        there.append(("drawn", bytes_of()))
        assert self.base is other.base
        return found

    @contextmanager
    def hold(self, *given, **named):
        with real_hold(self, *given, **named):
            there.append(("held", bytes_of()))
            yield

    monkeypatch.setattr(host.Model, "sample", draw)
    monkeypatch.setattr(host.Model, "hold", hold)
    go(t, dataset, recipe(**SHORT), PREVIEW, preview_model=other)
    assert [what for what, _ in there].count("drawn") == 2
    assert not any(size for what, size in there if what == "held") and not bytes_of()
    if kind == "plain":
        assert all(size for what, size in there if what == "drawn"), "or nothing was counted"

    def broken(self, *given, **named):
        real_draw(self, *given, **named)
        raise RuntimeError("the sampler failed")

    monkeypatch.setattr(host.Model, "sample", broken)
    with pytest.raises(RuntimeError, match="the sampler failed"):
        go(t, dataset, recipe("broken"), PREVIEW, preview_model=other)
    assert not bytes_of()


def test_a_paged_model_is_on_the_device_once(loaded, dataset, monkeypatch):  # noqa: F811
    """A run trains on the model's resident twin; what draws without the adapter is the same twin, not the model's pages."""
    t = loaded("dynamic")
    with_it = assisted(t, assistant(t))
    seen = []
    real = host.Model.sample

    def draw(self, *given, **named):
        seen.append((self.base, bool(self.patcher.patches)))  # and not what draws itself, which nobody else holds
        return real(self, *given, **named)

    monkeypatch.setattr(host.Model, "sample", draw)
    go(with_it, dataset, recipe(**SHORT), PREVIEW, preview_model=t.model)
    twin, _ = with_it.model.patcher.non_dynamic_delegate_model
    assert seen and all(base is twin and not patched for base, patched in seen)
    assert twin.model_loaded_weight_memory == 0 and _counts.strangers() == 0


def bypassed(t, tensors):
    """The model with the LoRA beside its weights, as the stock Load LoRA (Bypass) hands it on."""
    import comfy.sd

    if not hasattr(comfy.sd, "load_bypass_lora_for_models"):
        pytest.skip("this host has no such loader")
    with torch.inference_mode():
        return host.Model(comfy.sd.load_bypass_lora_for_models(t.model.patcher, None, tensors, 1.0, 0.0)[0])


def test_a_lora_in_bypass_mode_is_seen_or_refused(loaded, dataset):  # noqa: F811
    t = loaded("dynamic")
    model = bypassed(t, assistant(t))
    with pytest.raises(AtelierError, match=r"^model: another node injects .*Bypass"):
        go(SimpleNamespace(**{**vars(t), "model": model}), dataset, recipe(**SHORT), NO_PREVIEW)
    t = loaded("plain")
    model = bypassed(t, assistant(t))
    assert model.patched_weights == model.injected == 1
    assert model.has_more_patches(t.model) and not t.model.patched_weights


def told_of(run):
    account = json.loads((host.runs_folder() / run / "run.json").read_text(encoding="utf-8"))["account"]
    (note,) = (one for one in account["notes"] if "laid on" in one)
    return note


@pytest.mark.parametrize(
    ("drawn", "names", "steps", "said"),
    [
        ("itself", ("a", ("ink",)), 1, "Samples are drawn with it."),
        ("itself", ("a", ("ink",)), 0, ""),
        ("plain", ("a", ("ink",), "a"), 1, "Samples are drawn without it."),
        ("plain", ("a", ("ink",), "a"), 0, ""),
        ("same", ("a", ("ink",), "a"), 1, "Samples are drawn with it."),
        ("other", ("a", ("ink",), "a", ("quick",)), 1, "Samples are drawn without it."),
        ("other", ("a", ("ink",), "a", ("quick", "ink")), 1, "Samples are drawn with it."),
        ("other", ("a",), 1, ""),
    ],
)
def test_whether_samples_are_drawn_with_what_lies_on_the_model(tiny, dataset, drawn, names, steps, said):  # noqa: F811
    t = tiny("sd3")
    with_it = assisted(t, assistant(t))
    others = {"itself": None, "plain": t.model, "same": host.Model(with_it.model.patcher.clone())}
    model = others[drawn] if drawn in others else assisted(t, assistant(t, 4)).model
    preview = dataclasses.replace(PREVIEW, steps=steps)
    go(with_it, dataset, recipe("a", length=LengthConfig(max_steps=1)), preview, preview_model=model, named=job.Named(*names))
    assert told_of("a").endswith(f"not in its files.{f' {said}' if said else ''}")


def test_what_is_the_same_on_both_wires_moves_nothing(tiny, dataset, monkeypatch):  # noqa: F811
    """The host takes copies with patches of their own for others; one that is all the same is not asked at all."""
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    with_it = assisted(tiny("sd3"), assistant(tiny("sd3")))
    with torch.inference_mode():
        shifted = host.Model(ModelSamplingSD3().patch(with_it.model.patcher, 5.0)[0])
    asked, real = [], host.Model.for_pauses
    monkeypatch.setattr(host.Model, "for_pauses", lambda self, other: asked.append(other) or real(self, other))
    for i, other in enumerate((host.Model(with_it.model.patcher.clone()), shifted)):
        go(with_it, dataset, recipe(f"a{i}", length=LengthConfig(max_steps=1)), PREVIEW, preview_model=other)
        assert asked == [shifted] * i


@pytest.mark.parametrize("apart", [True, False])
def test_out_of_memory_while_another_network_draws_names_it(tiny, dataset, monkeypatch, apart):  # noqa: F811
    t = tiny("sd3")

    def full(*_given, **_named):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(job.saver.Saver, "sample", full)
    with pytest.raises(AtelierError, match="smaller previews") as told:
        drawn = another() if apart else t.model
        go(assisted(t, assistant(t)), dataset, recipe(**SHORT), PREVIEW, preview_model=drawn)
    assert ("preview_model" in str(told.value)) == apart


@pytest.mark.parametrize("kind", ["plain", "dynamic"])
def test_a_cancel_while_the_adapters_copy_draws_leaves_nothing(loaded, dataset, monkeypatch, interrupt, kind):  # noqa: F811
    """Both models are then what they were, and the run goes on to what it would have been."""
    t = loaded(kind)
    with_it = assisted(t, assistant(t))
    before = [drawn(t, one.model) for one in (t, with_it)]
    whole = go(with_it, dataset, recipe("whole", **SHORT), PREVIEW, preview_model=t.model)
    real, calls = host.Model.sample, []

    def cancelled(self, *given, **named):
        calls.append(self.base)
        real(self, *given, **named)
        if len(calls) == 2:
            raise interrupt
        return real(self, *given, **named)

    with monkeypatch.context() as patch, pytest.raises(type(interrupt)):
        patch.setattr(host.Model, "sample", cancelled)
        go(with_it, dataset, recipe("parts", **SHORT), PREVIEW, preview_model=t.model)
    assert len(calls) == 2
    if kind == "dynamic":
        twin, _ = with_it.model.patcher.non_dynamic_delegate_model
        assert set(calls) == {twin} and twin.model_loaded_weight_memory == 0 and _counts.strangers() == 0
    parts = go(with_it, dataset, recipe("parts", **SHORT), PREVIEW, preview_model=t.model)
    assert all(torch.equal(parts.tensors[name], whole.tensors[name]) for name in whole.tensors)
    assert all(torch.equal(drawn(t, one.model), then) for one, then in zip((t, with_it), before, strict=True))


def test_what_a_lora_that_measured_the_weights_is_for_is_said(tiny, dataset):  # noqa: F811
    t = tiny("sd3")
    measured = recipe("a", length=LengthConfig(max_steps=1), network=NetworkConfig(rank=2, alpha=1.0, weight_decompose=True))
    go(assisted(t, assistant(t)), dataset, measured)
    assert told_of("a").endswith("so use the LoRA with it too.")


def named(name):
    return build(next(one for one in RECIPES if one.name == name)).model


def test_a_model_of_another_kind_is_refused_by_the_sockets_name(tiny, dataset):  # noqa: F811
    with pytest.raises(AtelierError, match=r"^preview_model: this SD15 model is of another kind than the SD3 model"):
        go(tiny("sd3"), dataset, recipe(), preview_model=tiny("sd15").model)
    assert not (host.runs_folder() / "tiny").exists()


def test_it_is_refused_before_the_model_is_loaded_for_training(tiny, dataset, monkeypatch):  # noqa: F811
    t = tiny("sd3")

    def loads(*_given):
        raise AssertionError("the model's file would be read again")

    monkeypatch.setattr(host.Model, "for_training", loads)
    with pytest.raises(AtelierError, match=r"^preview_model: this SD15 model is of another kind"):
        go(t, dataset, recipe(), preview_model=tiny("sd15").model)
    measured = recipe(network=NetworkConfig(rank=2, alpha=1.0, weight_decompose=True))
    for other in (another(), assisted(t, assistant(t)).model):
        with pytest.raises(AtelierError, match=r"^preview_model: weight_decompose .* Switch weight_decompose off"):
            go(t, dataset, measured, preview_model=other)
    with pytest.raises(AssertionError, match="read again"):  # the very same model draws rightly
        go(t, dataset, measured, preview_model=host.Model(t.model.patcher.clone()))


def test_a_model_that_cannot_draw_is_refused_by_the_sockets_name(comfyui):
    with pytest.raises(AtelierError, match=r"^preview_model: "):
        drawing.check_kind(named("Flux dev"), named("Flux Fill"), recipe())


def test_another_prediction_is_said(tiny):
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    eps = tiny("sd15").model
    with torch.inference_mode():
        v, lcm, x0 = (
            host.Model(ModelSamplingDiscrete().patch(eps.patcher, kind, False)[0]) for kind in ("v_prediction", "lcm", "x0")
        )
    assert drawing.note(eps, eps) == drawing.note(eps, lcm) == ""
    assert drawing.note(eps, v).startswith("preview_model: it predicts v, and the model that is trained eps,")
    assert drawing.note(eps, x0).startswith("preview_model: it predicts in a way of its own,")
    drawing.check_kind(eps, x0, recipe())


def test_what_the_model_that_draws_lacks_is_said(comfyui):
    """Flux.1 schnell is Flux.1 dev without the layers that are told a guidance."""
    dev, schnell = named("Flux dev"), named("Flux schnell")
    layers, names = dev.layers(), dev.lora_names()
    every = {name: layer for name, layer in layers.items() if name in names}
    said = drawing.check(dev, schnell, every)
    assert said.startswith(f"preview_model: 2 of the {len(every)} trained layers, such as guidance_in.")
    assert drawing.check(dev, schnell, trained_layers(every, recipe())) == ""
    ghost = drawing.drawn_with(dev, schnell, every).layers["guidance_in.in_layer"]
    assert isinstance(ghost, torch.nn.Identity)
