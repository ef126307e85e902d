"""Whole runs with masks, outside of which the model's answer before training is the target."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from lora_atelier.training import loop, step
from lora_atelier.training.config import LengthConfig, LossConfig, SubsetConfig, TextConfig
from lora_atelier.training.dataset import scan
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.errors import AtelierError
from PIL import Image

from .test_job import fresh_folders, go, recipe  # noqa: F401

SHORT = LengthConfig(max_steps=4)
HELD = LossConfig(mask_preservation=0.8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, comfyui):
    """Four pictures, of which two have masks."""
    folder, stream = tmp_path_factory.mktemp("masked"), np.random.default_rng(0)
    for i in range(4):
        noise = Image.fromarray(stream.integers(0, 256, (8, 8, 3), np.uint8))
        noise.resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {i}", encoding="utf-8")
        if i < 2:
            mask = np.zeros((64, 64), np.uint8)
            mask[:, : 24 + 16 * i] = 255
            Image.fromarray(mask).save(folder / f"{i}.mask.png")
    return folder


def read(folder, **settings):
    return Dataset(scan.scan(folder, SubsetConfig("input/masked", resolution=64, bucket_step=32, **settings)))


class Watched:
    """The loss of each step, beside the passes of the model as it was and the loss by another way."""

    def __init__(self, monkeypatch):
        self.real, self.base = loop.loss_of, step.base_prediction
        self.steps, self.asked = [], 0
        monkeypatch.setattr(loop, "loss_of", self.loss)
        monkeypatch.setattr(step, "base_prediction", self.count)

    def count(self, *given):
        self.asked += 1
        return self.base(*given)

    def loss(self, session, inputs):
        self.asked = 0
        found = self.real(session, inputs)
        asked, mask, floor = inputs.noised, inputs.mask, inputs.numbers[0]
        with torch.no_grad():
            answer = session.model.answer(asked.x, asked.sigma, asked.given)
            with session.adapter.disabled():
                before = session.model.answer(asked.x, asked.sigma, inputs.untrained or asked.given)
        if mask is None:
            wanted = (answer - asked.target).square().mean()
        else:
            inside = mask.clamp_min(floor)
            inside, outside = inside / inside.mean((2, 3), True), (1 - inside) / (1 - inside).mean((2, 3), True).clamp_min(1e-6)
            wanted = ((answer - asked.target) ** 2 * inside + 0.8 * (answer - before) ** 2 * outside).mean()
        moved = (answer - before).abs().max().item()
        self.steps.append((mask is not None, self.asked, found.item(), wanted.item(), moved))
        return found


def test_a_step_with_masks_asks_the_model_as_it_was_once(tiny, pictures, monkeypatch):
    seen = Watched(monkeypatch)
    go(
        tiny("sd3"),
        read(pictures, masks="files", mask_floor=0.1),
        recipe(loss=HELD, precision="fp32", length=LengthConfig(epochs=2)),
    )
    assert [(masked, asked) for masked, asked, *_ in seen.steps] == [(masked, int(masked)) for masked, *_ in seen.steps]
    assert sum(masked for masked, *_ in seen.steps) == 4 and len(seen.steps) == 8
    for _, _, found, wanted, _ in seen.steps:
        assert found == pytest.approx(wanted, rel=1e-4)
    assert seen.steps[-1][-1] > 0, "or nothing was compared"


def test_with_a_text_encoder_that_learns_it_is_asked_with_the_text_as_it_was(tiny, pictures, monkeypatch):
    t, wanted = tiny("sd3"), {}
    with torch.inference_mode():
        for i in range(2):
            wanted[i] = t.text.encode(f"picture {i}")["cond"]
    seen = []
    real = loop.loss_of

    def watched(session, inputs):
        if inputs.mask is not None:
            (now,), (before,) = inputs.noised.given, inputs.untrained
            seen.append((now.conditions["c_crossattn"].detach().cpu(), before.conditions["c_crossattn"].cpu()))
            assert not before.conditions["c_crossattn"].requires_grad
        return real(session, inputs)

    monkeypatch.setattr(loop, "loss_of", watched)
    config = recipe(loss=HELD, text=TextConfig("clip"), length=LengthConfig(max_steps=4), precision="fp32")
    go(t, read(pictures, masks="files"), config)
    now, before = seen[-1]
    near = [torch.allclose(before.float(), one.float().cpu(), atol=1e-4) for one in wanted.values()]
    assert any(near) and not torch.allclose(now.float(), before.float(), atol=1e-3)


def test_without_any_mask_it_is_refused(tiny, pictures):
    with pytest.raises(AtelierError, match="mask preservation: no picture has a mask"):
        go(tiny("sd3"), read(pictures), recipe(loss=HELD))


def test_it_decides_the_run(tiny, pictures):
    plain = go(tiny("sd3"), read(pictures, masks="files"), recipe("one", length=SHORT))
    held = go(tiny("sd3"), read(pictures, masks="files"), recipe("two", loss=HELD, length=SHORT))
    assert any(not torch.equal(plain.tensors[key], held.tensors[key]) for key in plain.tensors)
    changed = recipe("two", loss=dataclasses.replace(HELD, mask_preservation=0.5), length=SHORT)
    beside = go(tiny("sd3"), read(pictures, masks="files"), changed)
    assert beside.epochs.files[-1].path.name == "two-2.safetensors", "another run"
