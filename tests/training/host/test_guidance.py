"""The guidance that distilled networks are told in training."""

from __future__ import annotations

import pytest
import torch
from lora_atelier.training.config import LossConfig, TrainingConfig
from lora_atelier.training.errors import AtelierError

from ...zoo import build as animals
from ...zoo.recipes import RECIPES


def animal(name: str) -> animals.Animal:
    return animals.build(next(one for one in RECIPES if one.name == name))


@pytest.mark.parametrize(("name", "hears"), [("Flux dev", True), ("Flux schnell", False), ("SD 1.5", False)])
def test_a_network_that_hears_guidance_is_told_what_was_set(comfyui, name, hears):
    one = animal(name)
    x, text = one.latents(1), one.conditioning(1)
    said = {}
    for guidance in (None, 1.0, 3.5):
        model = one.model.for_training(None, guidance=guidance)
        given = model.condition(text, x, one.size)
        with model.hold(), torch.no_grad():
            said[guidance] = model.predict(x, one.levels(1), [given])
        assert model.hears_guidance is hears
        if hears:
            assert given["guidance"].cond.item() == (guidance or 1.0)
    assert torch.equal(said[None], said[1.0]), "which is usual"
    assert torch.equal(said[1.0], said[3.5]) is not hears


def test_a_guidance_that_is_none_is_refused():
    with pytest.raises(AtelierError, match=r"guidance: -1\.0 is outside 0 to 100"):
        TrainingConfig("a", guidance=-1.0)


@pytest.mark.parametrize(("written", "text"), [("", None), ('""', ""), (' "" ', ""), ("a woman", "a woman")])
def test_where_a_model_is_held(written, text):
    assert LossConfig(preservation=1.0, preservation_prompt=written).held_at == text
