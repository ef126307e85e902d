"""Whole runs with the engine's less common settings: text encoder, averages, accumulation, saves by step, and their resume."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from lora_atelier.training import host, loop, step
from lora_atelier.training.config import LengthConfig, LossConfig, NetworkConfig, OptimizerConfig, TextConfig
from lora_atelier.training.config.sampling import SamplerSettings
from lora_atelier.training.dataset.images import to_picture
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.grid import plan, render
from lora_atelier.training.grid.axes import parse_epochs
from lora_atelier.training.network.adapter import Adapter
from lora_atelier.training.network.scope import TEXT, adaptable_layers, set_text_part, trained_layers
from lora_atelier.training.performance import checkpointing
from lora_atelier.training.runs import reader
from PIL import Image
from safetensors.torch import load_file

from .test_job import NO_PREVIEW, Stop, dataset, fresh_folders, go, interrupt, only_training_checks, recipe  # noqa: F401

WITH_TEXT = {"text": TextConfig("clip", 5e-3)}


def encoded(clip) -> torch.Tensor:
    with torch.inference_mode():
        return clip.encode_from_tokens(clip.tokenize("picture 1")).clone()


@pytest.mark.parametrize("name", ["sd15", "sd3"])
@pytest.mark.parametrize("again", [False, True], ids=["kept", "checkpointed"])
def test_the_text_encoder_learns_and_its_part_loads_in_the_stock_loader(tiny, dataset, caplog, name, again):  # noqa: F811
    t = tiny(name)
    before = encoded(t.text.clip)
    trained = go(t, dataset, recipe(gradient_checkpointing=again, **WITH_TEXT))
    parts = {k: v for k, v in trained.tensors.items() if k.startswith("lora_te")}
    prefix = "lora_te_text_model_" if name == "sd15" else "lora_te1_text_model_"
    assert parts and all(k.startswith(prefix) for k in parts)
    moved = [k for k, v in parts.items() if k.endswith("lora_up.weight") and v.abs().max() > 0]
    # What reads no layer behind it (the last one, where an earlier output is taken) may stay at zero; all others move.
    assert len(moved) >= 0.8 * sum(k.endswith("lora_up.weight") for k in parts)
    with caplog.at_level("WARNING"), torch.inference_mode():
        _, clip = t.model.with_lora(t.text.clip, trained.tensors, 1.0)
        changed = encoded(clip)
    assert "not loaded" not in caplog.text
    assert (changed - before).abs().max() > 1e-4
    assert torch.equal(encoded(t.text.clip), before)


def test_checkpointing_does_not_change_the_text_encoders_gradient(tiny):
    t = tiny("sd15")
    layers, _ = adaptable_layers(t.model, t.text)
    config = recipe(network=NetworkConfig(targets="none", rank=2), **WITH_TEXT)
    adapter = Adapter.fresh(trained_layers(layers, config), config.network, 1)
    for branch in adapter.branches.values():
        branch.up.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(2))

    def gradients(blocks: list) -> list[torch.Tensor]:
        with t.model.hold(t.text), adapter.attached(layers), checkpointing.checkpointed(blocks):
            out = t.text.encode_live("a red apple")["cond"]
            return list(torch.autograd.grad(out.square().mean(), list(adapter.parameters()), allow_unused=True))

    plain, again = gradients([]), gradients(t.text.blocks())
    assert sum(g is not None and bool(g.abs().max() > 0) for g in plain) > len(plain) / 2
    for one, other in zip(plain, again, strict=True):
        assert (one is None) == (other is None)
        assert one is None or (one - other).norm() <= 1e-4 * one.norm() + 1e-12


def test_the_text_encoder_can_be_trained_alone(tiny, dataset):  # noqa: F811
    tensors = go(tiny("sd15"), dataset, recipe(network=NetworkConfig(rank=2, targets="none"), **WITH_TEXT)).tensors
    assert tensors and all(k.startswith("lora_te_") for k in tensors)


def test_its_own_rate_is_a_factor_on_the_optimizers(tiny):
    t = tiny("sd15")
    config = recipe(**WITH_TEXT)
    adapter = Adapter.fresh(trained_layers(adaptable_layers(t.model, t.text)[0], config), config.network, 1)
    set_text_part(adapter, config)
    rates = {name.startswith(TEXT): branch.rate for name, branch in adapter.branches.items()}
    assert rates == {True: pytest.approx(0.5), False: 1.0}


def test_its_own_dropout_is_that_of_its_branches_alone(tiny):
    t = tiny("sd15")
    for own, found in ((-1.0, {(True, None), (False, None)}), (0.0, {(True, 0.0), (False, None)})):
        config = recipe(network=NetworkConfig(rank=4, dropout=0.2), text=TextConfig("clip", 5e-3, dropout=own))
        adapter = Adapter.fresh(trained_layers(adaptable_layers(t.model, t.text)[0], config), config.network, 1)
        set_text_part(adapter, config)
        assert {(name.startswith(TEXT), branch.dropout) for name, branch in adapter.branches.items()} == found


def test_the_same_dropout_written_twice_is_the_same_run(tiny, dataset):  # noqa: F811
    t = tiny("sd3")
    settings = {"network": NetworkConfig(rank=4, dropout=0.2), "length": LengthConfig(max_steps=2)}
    shared, twice, none = (
        go(t, dataset, recipe(name, **settings, text=TextConfig("clip", 5e-3, dropout=own))).tensors
        for name, own in (("shared", -1.0), ("twice", 0.2), ("none", 0.0))
    )
    assert all(torch.equal(shared[key], twice[key]) for key in shared)
    assert any(not torch.equal(shared[key], none[key]) for key in shared if key.startswith("lora_te"))


def test_a_clip_without_the_wanted_encoder_is_refused(tiny):
    t = tiny("sd3")
    layers, _ = adaptable_layers(t.model, None)
    with pytest.raises(AtelierError, match="text encoder: the connected clip"):
        trained_layers(layers, recipe(**WITH_TEXT))


def test_neither_model_nor_text_encoder_is_refused():
    with pytest.raises(AtelierError, match="targets"):
        recipe(network=NetworkConfig(targets="none"))
    with pytest.raises(AtelierError, match="targets"):
        recipe(network=NetworkConfig(targets="none", include="# only a comment"))


def test_layers_that_are_named_are_trained_whatever_the_targets(tiny):
    t = tiny("sd3")
    layers, _ = adaptable_layers(t.model, t.text)
    named = NetworkConfig(targets="none", include="joint_blocks.0.*qkv")
    chosen = trained_layers(layers, recipe(network=named))
    assert chosen and all(name.startswith("joint_blocks.0.") and name.endswith("qkv") for name in chosen)
    with_text = trained_layers(layers, recipe(network=named, **WITH_TEXT))
    assert {name for name in with_text if not name.startswith(TEXT)} == set(chosen) and len(with_text) > len(chosen)


def test_a_file_without_a_text_encoders_part_gets_a_new_one(tiny, dataset, monkeypatch, caplog):  # noqa: F811
    t = tiny("sd15")
    first = go(t, dataset, recipe("first", length=LengthConfig(epochs=1)))
    monkeypatch.setattr(host, "lora_path", lambda _: first.epochs.files[-1].path)
    network = NetworkConfig(rank=3, start_from="first.safetensors")
    both = go(t, dataset, recipe("both", network=network, length=LengthConfig(epochs=1), **WITH_TEXT)).tensors
    assert "holds nothing of the text encoder" in caplog.text
    ranks = {k.startswith("lora_te"): v.shape[0] for k, v in both.items() if k.endswith("lora_down.weight")}
    assert ranks == {False: 2, True: 3}, "the file's rank for the model, the widget's for what is new"
    assert set(first.tensors) == {k for k in both if not k.startswith("lora_te")}
    moved = [k for k, v in both.items() if k.startswith("lora_te") and k.endswith("lora_up.weight") and v.abs().max() > 0]
    assert moved


def test_a_grid_draws_a_lora_with_a_text_part_as_the_stock_loader_does(tiny, dataset, tmp_path):  # noqa: F811
    t = tiny("sd15")
    trained = go(t, dataset, recipe(**WITH_TEXT))
    sampling = render.Sampling("", "euler", "normal", 2, 2.0, 64, 64, 3)
    axes = plan.Axes(("picture 1",), plan.columns_of([trained.epochs], parse_epochs("last")), (0.7,), (3,))
    grid = render.Grid(t.model, t.text, t.codec, axes, sampling, tmp_path / "grids", {})
    grid.render(lambda done, page: None)
    with torch.inference_mode():
        model, clip = t.model.with_lora(t.text.clip, trained.tensors, 0.7)
        text = host.TextEncoder(clip)
        latent = host.Model(model).sample(
            text.for_sampling("picture 1"),
            text.for_sampling(""),
            SamplerSettings("euler", "normal", 2, 2.0),
            latent_size=(8, 8),
            seed=3,
        )
        stock = render.to_picture(t.codec.decode(latent)[0])
    ours, without = (Image.open(grid.book.cells[0][place]).convert("RGB") for place in ((1, 0), (0, 0)))
    a, b = (torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8).int() for p in (ours, stock))
    assert (a - b).abs().max() <= 2
    control = torch.frombuffer(bytearray(without.tobytes()), dtype=torch.uint8).int()
    assert (a - control).abs().max() > 2


SETTINGS = {
    "accumulation": {"optimizer": OptimizerConfig(learning_rate=1e-2, accumulate=2)},
    "average": {"ema_decay": 0.9},
    "dropout": {"network": NetworkConfig(rank=4, dropout=0.2, rank_dropout=0.2, module_dropout=0.2)},
    "DoRA": {"network": NetworkConfig(rank=2, weight_decompose=True)},
    "text encoder": WITH_TEXT,
    "text encoder's dropout": {"text": TextConfig("clip", 5e-3, dropout=0.3)},
    "checkpointing and dropout": {"network": NetworkConfig(rank=4, dropout=0.3), "gradient_checkpointing": True},
    "norms": {"network": NetworkConfig(rank=2, scale_weight_norms=0.01)},
    "schedule-free": {"optimizer": OptimizerConfig("AdamWScheduleFree", 1e-2, schedule="constant")},
    "preservation": {"loss": LossConfig(preservation=1.0, preservation_prompt="a picture")},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_run_that_was_cancelled_ends_at_the_very_same_lora(tiny, dataset, monkeypatch, interrupt, setting):  # noqa: F811
    """Cancelled after five of nine steps: within an epoch, and within a group of accumulated batches."""
    t = tiny("sd3")
    whole = go(t, dataset, recipe("whole", **SETTINGS[setting]))
    only_training_checks(monkeypatch)
    with monkeypatch.context() as patch:
        Stop(patch, 6, interrupt)
        with pytest.raises(type(interrupt)):
            go(t, dataset, recipe("cut", **SETTINGS[setting]))
    resumed = go(t, dataset, recipe("cut", **SETTINGS[setting]))
    assert whole.tensors.keys() == resumed.tensors.keys()
    assert all(torch.equal(whole.tensors[k], resumed.tensors[k]) for k in whole.tensors)
    assert whole.losses == resumed.losses


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s not in ("schedule-free",)])
def test_each_setting_changes_what_is_learnt(tiny, dataset, setting):  # noqa: F811
    t = tiny("sd3")
    plain, other = go(t, dataset, recipe("plain")), go(t, dataset, recipe("other", **SETTINGS[setting]))
    both = plain.tensors.keys() & other.tensors.keys()
    if setting == "checkpointing and dropout":
        without = dataclasses.replace(recipe("kept", **SETTINGS[setting]), gradient_checkpointing=False)
        kept = go(t, dataset, without).tensors
        assert all(torch.allclose(kept[k], other.tensors[k], atol=1e-5) for k in kept)
    same = all(plain.tensors[k].shape == other.tensors[k].shape and torch.equal(plain.tensors[k], other.tensors[k]) for k in both)
    assert not same


def test_accumulated_batches_make_one_step_along_their_mean_gradient(tiny, dataset, monkeypatch):  # noqa: F811
    """SGD at rate 1 from up = 0: the weights in the file are minus the mean of the three gradients that autograd gives."""
    found: list[dict[str, torch.Tensor]] = []
    real = step.loss_of

    def watched(session, *others):
        loss = real(session, *others)
        branches = session.adapter.branches
        ups = {
            f"lora_unet_{name.replace('.', '_')}.lora_up.weight": b.used("up", torch.float32)[0] for name, b in branches.items()
        }
        gradients = torch.autograd.grad(loss, list(ups.values()), retain_graph=True)
        found.append(dict(zip(ups, gradients, strict=True)))
        return loss

    monkeypatch.setattr(loop, "loss_of", watched)
    sgd = OptimizerConfig(
        "SGD", 1.0, weight_decay=0.0, max_grad_norm=0.0, schedule="constant", optimizer_args="momentum=0", accumulate=3
    )  # fmt: skip
    config = recipe(optimizer=sgd, length=LengthConfig(epochs=1))
    saved = {k: v for k, v in go(tiny("sd3"), dataset, config).tensors.items() if k.endswith("lora_up.weight")}
    assert len(found) == 3 and saved.keys() == found[0].keys()
    for name, up in saved.items():
        wanted = -torch.stack([gradients[name] for gradients in found]).mean(0).cpu()
        assert (up - wanted).norm() <= 1e-5 * wanted.norm()
    assert any(not torch.allclose(found[0][name], found[1][name]) for name in saved)


def test_files_on_the_way_are_kept_and_thrown_away_as_asked(tiny, dataset):  # noqa: F811
    length = LengthConfig(epochs=3, save_every=1, save_every_steps=2, keep_last=3)
    trained = go(tiny("sd3"), dataset, recipe(length=length))
    kept = [(f.path.name, f.label) for f in trained.epochs.files]
    assert kept == [
        ("tiny-step00000004.safetensors", "step 4"),
        ("tiny-000002.safetensors", "epoch 2"),
        ("tiny-step00000008.safetensors", "step 8"),
        ("tiny.safetensors", "epoch 3"),
    ]
    assert sorted(p.name for p in trained.epochs.files[0].path.parent.glob("*.safetensors")) == sorted(n for n, _ in kept)


def test_nothing_is_kept_on_the_way_if_nobody_asks(tiny, dataset):  # noqa: F811
    trained = go(tiny("sd3"), dataset, recipe(length=LengthConfig(epochs=3, save_every=0)))
    assert [f.path.name for f in trained.epochs.files] == ["tiny.safetensors"]


def test_samples_come_when_asked_for_one_for_each_prompt(tiny, dataset):  # noqa: F811
    preview = dataclasses.replace(NO_PREVIEW, steps=1, prompt="picture 0\npicture 1", width=64, height=32)
    go(tiny("sd3"), dataset, recipe(length=LengthConfig(epochs=3, sample_every_steps=4, sample_every=3)), preview)
    names = sorted(p.name for p in (host.runs_folder() / "tiny" / "samples").iterdir())
    assert names == [
        "tiny-000000-2.png", "tiny-000000.png", "tiny-000003-2.png", "tiny-000003.png",
        "tiny-step00000004-2.png", "tiny-step00000004.png", "tiny-step00000008-2.png",
        "tiny-step00000008.png",
    ]  # fmt: skip


def test_what_the_prompts_give_before_the_first_step_is_the_models_own(tiny, dataset):  # noqa: F811
    """Drawn once a run, not again when it goes on; and what is trained does not depend on it."""
    t, preview = tiny("sd3"), dataclasses.replace(NO_PREVIEW, steps=2, prompt="picture 1", width=64, height=64, seed=5)
    trained = go(t, dataset, recipe(length=LengthConfig(epochs=1)), preview)
    with torch.inference_mode():
        text = t.text.for_sampling("picture 1")
        latent = t.model.sample(text, t.text.for_sampling(""), preview.settings, latent_size=(8, 8), seed=5)
        expected = to_picture(t.codec.decode(latent)[0])
    path = host.runs_folder() / "tiny" / "samples" / "tiny-000000.png"
    with Image.open(path) as drawn:
        assert np.abs(np.asarray(drawn, dtype=int) - np.asarray(expected, dtype=int)).max() <= 2
    assert go(t, dataset, recipe("plain", length=LengthConfig(epochs=1))).losses == trained.losses
    before = path.stat().st_mtime_ns
    longer = recipe(length=LengthConfig(epochs=2), optimizer=OptimizerConfig(learning_rate=1e-2, schedule="constant"))
    go(t, dataset, longer, preview, when="continue with the changes")
    assert path.stat().st_mtime_ns == before
    labels = [sample["label"] for sample in reader.state("tiny", host.runs_folder())["samples"]]
    assert labels[0] == "start" and labels[-1] == "epoch 2"
    assert {sample["prompt"] for sample in reader.state("tiny", host.runs_folder())["samples"]} == {"picture 1"}


def test_a_run_ends_once_its_fixed_loss_has_settled(tiny, dataset):  # noqa: F811
    """At a rate that changes nothing the fixed loss is settled as soon as there are enough values to say so."""
    still = OptimizerConfig("SGD", 1e-12, weight_decay=0.0, schedule="constant")
    config = recipe(optimizer=still, length=LengthConfig(epochs=12, save_every=0, when_enough="stop"))
    trained = go(tiny("sd3"), dataset, config)
    assert len(trained.losses) < 12 * 3 and len(trained.losses) % 3 == 0
    assert trained.epochs.files[-1].kind == "last"
    assert go(tiny("sd3"), dataset, config).losses == trained.losses  # finished, so nothing is trained again


def test_the_averaged_weights_are_what_is_saved(tiny, dataset):  # noqa: F811
    t = tiny("sd3")
    plain = go(t, dataset, recipe("plain", length=LengthConfig(epochs=3, save_every_steps=1)))
    averaged = go(t, dataset, recipe("averaged", ema_decay=0.9))
    first, second, third = (load_file(f.path) for f in plain.epochs.files[:3])
    saved = load_file(averaged.epochs.files[0].path)
    for name in (k for k in saved if k.endswith(("lora_up.weight", "lora_down.weight"))):
        # Decay min(0.9, (1 + n) / (10 + n)) after n updates, and 0 at the first.
        by_hand = first[name]
        for n, weights in ((1, second), (2, third)):
            decay = (1 + n) / (10 + n)
            by_hand = decay * by_hand + (1 - decay) * weights[name]
        assert (saved[name] - by_hand).norm() <= 1e-5 * by_hand.norm()
    assert plain.losses == averaged.losses
