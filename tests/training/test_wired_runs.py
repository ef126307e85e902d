"""Samples and regularisation pictures through SAMPLER, SIGMAS and GUIDER wires."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lora_atelier.training import host, regularisation
from lora_atelier.training.config import LengthConfig
from lora_atelier.training.config.sampling import Sampling
from lora_atelier.training.dataset.images import to_picture
from lora_atelier.training.errors import AtelierError
from PIL import Image

from .grid.test_wired import NEGATIVE, guiders, levels, nodes, out, samplers, snapshot, wired
from .test_job import NO_PREVIEW, dataset, fresh_folders, go, recipe  # noqa: F401
from .test_preview_model import another, assistant, assisted, pixels, sample

SHORT = {"length": LengthConfig(max_steps=2)}
WIRES = ("sde", "flux2", "dual")
PREVIEW = dataclasses.replace(NO_PREVIEW, steps=77, cfg=9.0, prompt="picture 0", negative=NEGATIVE, width=64, height=64)


def stock(t, model, wires=WIRES, seed=0):
    """Encoding, guider and SamplerCustomAdvanced, with a MODEL as it is."""
    custom = nodes()[0]
    sampler, schedule, guider = wires
    with torch.inference_mode():
        guides = guiders(guider, model.patcher, t.text.for_sampling, "picture 0")
        noise, latent = out(custom.RandomNoise.execute(seed)), {"samples": torch.zeros(1, t.channels, 8, 8)}
        schedule = levels(schedule, model.patcher)
        return out(custom.SamplerCustomAdvanced.execute(noise, guides, samplers(sampler), schedule, latent))["samples"].clone()


def with_wires(given, **more):
    return dataclasses.replace(PREVIEW, wired=given, **more)


def test_samples_are_those_of_the_stock_nodes_and_the_run_is_the_same_one(tiny, dataset):  # noqa: F811
    """Before the first step the model's own, after the last one with the LoRA; nothing of it counts for the weights."""
    t = tiny("sd3")
    given = wired(t, WIRES)
    state, before = snapshot(given.guider), stock(t, t.model)
    learnt = go(t, dataset, recipe("through", **SHORT), with_wires(given))
    assert np.abs(sample("through", 0) - pixels(t, before)).max() <= 1
    with torch.inference_mode():
        theirs = host.Model(t.model.with_lora(None, learnt.tensors, 1.0)[0])
    assert np.abs(sample("through", 1) - pixels(t, stock(t, theirs))).max() <= 2
    assert np.abs(sample("through", 1) - pixels(t, before)).max() > 8
    assert snapshot(given.guider) == state and torch.equal(stock(t, t.model), before)
    plain = go(t, dataset, recipe("plain", **SHORT))
    assert all(torch.equal(learnt.tensors[name], plain.tensors[name]) for name in plain.tensors)
    inputs = [json.loads((host.runs_folder() / name / "inputs.json").read_text()) for name in ("through", "plain")]
    assert inputs[0] == inputs[1]

    told = json.loads((host.runs_folder() / "through" / "run.json").read_text(encoding="utf-8"))["account"]
    assert told["notes"][0] == (
        "sampler, sigmas, guider: they came through their wires, so preview_sampler, preview_scheduler, preview_steps, "
        "preview_cfg are not used."
    )
    again = go(t, dataset, recipe("through", **SHORT), PREVIEW)  # the run is finished, whatever draws
    assert [file.path for file in again.epochs.files] == [file.path for file in learnt.epochs.files]


@pytest.mark.parametrize("text", ["none", "all"])
def test_samples_of_a_model_that_only_draws(tiny, dataset, text):  # noqa: F811
    """The guider of the model that is trained, with what lies on it, draws with the other one; the text encoder may learn."""
    from lora_atelier.training.config import TextConfig

    t, other = tiny("sd3"), another()
    with_it = assisted(t, assistant(t))
    given = wired(SimpleNamespace(**{**vars(t), "model": other}), ("euler", "flux2", "cfg"))
    before = stock(t, other, ("euler", "flux2", "cfg"))
    go(
        with_it, dataset, recipe("apart", text=TextConfig(encoders=text), **SHORT), with_wires(given), preview_model=other
    )  # fmt: skip
    assert np.abs(sample("apart", 0) - pixels(t, before)).max() <= 1
    assert torch.equal(stock(t, other, ("euler", "flux2", "cfg")), before)


def test_a_guider_that_cannot_draw_ends_the_run_before_anything_is_encoded(tiny, dataset):  # noqa: F811
    t = tiny("sd3")
    given = wired(tiny("sd15"), ("euler", "ays", "cfg"))
    with pytest.raises(AtelierError, match="guider: its model"):
        go(t, dataset, recipe("never", **SHORT), with_wires(given))
    assert not (host.runs_folder() / "never").exists()
    go(t, dataset, recipe("blind", **SHORT), with_wires(given, steps=0))  # nothing is drawn

    mine = wired(t, WIRES)
    mine.guider.original_conds["middle"][0]["control"] = SimpleNamespace(get_extra_hooks=list)
    with pytest.raises(AtelierError, match="no room in the pauses"):
        go(t, dataset, recipe("never", **SHORT), with_wires(mine))
    mine.check(t.model)  # of a grid


def test_what_is_said_of_few_steps_goes_by_what_draws(tiny):
    t = tiny("sd15")
    assert with_wires(host.NOTHING_WIRED).drawn_at == (77, 9.0)
    assert with_wires(wired(t, ("euler", "ays", "cfg"))).drawn_at == (3, 3.5)
    assert with_wires(wired(t, ("euler", "ays", "basic"))).drawn_at == (3, 1.0)
    assert with_wires(wired(t, ("euler", "ays", "dual"))).drawn_at is None
    assert with_wires(wired(t, ("euler", "ays", "cfg")), steps=0).drawn_at is None


def test_the_node_takes_the_wires(tiny, dataset):  # noqa: F811
    from lora_atelier.nodes.train_lora import TrainLoRA

    t = tiny("sd3")
    given = wired(t, WIRES)

    class Node(TrainLoRA):
        hidden = SimpleNamespace(prompt=None, unique_id="3", extra_pnginfo=None)

    with torch.inference_mode():
        Node.execute(
            t.model.patcher, t.text.clip, t.codec.vae, dataset, recipe("node", **SHORT), "continue", "picture 0", NEGATIVE,
            20, 4.0, "lcm", "normal", 0, preview_width=64, preview_height=64, sampler=given.sampler, sigmas=given.sigmas,
            guider=given.guider,
        )  # fmt: skip
    assert np.abs(sample("node", 0) - pixels(t, stock(t, t.model))).max() <= 1
    assert {"sampler", "sigmas", "guider"} <= {entry.id for entry in TrainLoRA.define_schema().inputs}


def order(**changes):
    sampling = Sampling(NEGATIVE, "lcm", "simple", 50, 3.5, 64, 64, 5)
    return regularisation.Order(("picture 0",), 2, dataclasses.replace(sampling, **changes))


def test_regularisation_pictures_through_wires(tiny, tmp_path):
    """As SamplerCustomAdvanced draws them; with other wires, or none, they are not the pictures that are there."""
    t = tiny("sd3")
    given = wired(t, ("sde", "flux2", "cfg"))
    through = host.Wired(given.sampler, given.sigmas)

    def fill(wires, **changes):
        with torch.inference_mode():
            found = regularisation.RegularisationSet(t.model, t.text, t.codec, order(**changes), tmp_path, {}, wires)
            return found.render(1, lambda *_: None)

    assert len(fill(through).missing) == 2
    for seed in (5, 6):
        drawn = np.asarray(Image.open(tmp_path / f"reg-{seed - 5:05d}.png")).astype(int)
        latent = stock(t, t.model, ("sde", "flux2", "cfg"), seed)
        assert np.array_equal(drawn, np.asarray(to_picture(t.codec.decode(latent)[0])).astype(int))
    assert len(fill(through, steps=3).kept) == 2  # what is not used does not count
    bent = host.Wired(given.sampler, given.sigmas * torch.tensor([1.0, 1.001, 1.0, 1.0]))
    with pytest.raises(AtelierError, match="other values through its wires"):
        fill(bent)
    with pytest.raises(AtelierError, match="made with other settings"):
        fill(host.NOTHING_WIRED)
    with pytest.raises(AtelierError, match="sigmas: 0 levels"):
        fill(host.Wired(sigmas=torch.tensor([])))
