"""Which text encoders and VAEs belong to a model, asked of every family: none may be refused wrongly."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from lora_atelier.training import compatibility, host
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.families import family_named

from .build import build
from .recipes import RECIPES, Recipe
from .test_zoo import params, present

UNTOLD = {
    "HunyuanDiT 1.2", "HunyuanDiT 1.0",  # a second encoder's text says as much as the first's
    "HunyuanImage 2.1 distilled", "HunyuanImage 2.1 with ByT5", "Anima",  # ask for numbers before they read the text
    "HiDream O1",  # reads tokens
}  # fmt: skip
"""Families whose wrong texts are only noticed in the first pass."""
NO_POOLED = {
    "SDXL", "SDXL_instructpix2pix", "SDXLRefiner", "HunyuanVideo", "HunyuanVideoSkyreelsI2V", "Kandinsky5", "Kandinsky5Image",
    "HiDream",
}  # fmt: skip
"""Families that cannot do without a pooled vector; the others' networks take zeros for it."""
VAES = {
    "SD": (
        {"decoder.conv_in.weight": (512, 4, 3, 3), "decoder.up.3.upsample.conv.weight": (512, 512, 3, 3)},
        {"SD15", "SDXL", "PixArtSigma", "HunyuanDiT", "AuraFlow"},
    ),
    "Flux": (
        {"decoder.conv_in.weight": (512, 16, 3, 3), "decoder.up.3.upsample.conv.weight": (512, 512, 3, 3)},
        {"SD3", "Flux", "Chroma", "Lumina2", "ZImage", "HiDream", "Omnigen2", "Kandinsky5Image", "LongCatImage", "Boogu"},
    ),
    "Wan 2.1": (
        {
            "decoder.middle.0.residual.0.gamma": (384, 1, 1, 1),
            "decoder.head.0.gamma": (96, 1, 1, 1),
            "encoder.conv1.weight": (96, 3, 3, 3, 3),
            "decoder.head.2.weight": (3, 96, 3, 3, 3),
        },
        {"WAN21_T2V", "QwenImage", "CosmosT2IPredict2", "Anima", "JoyImage", "Krea2"},
    ),
    "pixels": ({"pixel_space_vae": ()}, {"ChromaRadiance", "ZImagePixelSpace", "PixelDiTT2I", "HiDreamO1"}),
}  # fmt: skip
"""Weights by which the host knows a VAE, with their shapes, and families that are published with it."""


@pytest.fixture(scope="module", params=params(list(RECIPES)))
def animal(request, comfyui):
    return build(present(request.param))


def width(given: int) -> torch.Tensor:
    return torch.zeros(1, 7, given)


def test_its_own_text_is_read(animal):
    assert host.outline_of(animal.model) is not None
    compatibility.check_text(animal.model, animal.conditioning(0))


@pytest.mark.parametrize("given", [768, 2048, 4096])
def test_a_text_of_another_width_is_told_by_it(animal, given):
    right = animal.recipe.text["cond"][-1]
    if given == right or animal.recipe.name in UNTOLD:
        pytest.skip("its own, or noticed later")
    text = {**animal.conditioning(0), "cond": width(given)}
    for changed in (text, text | {"pooled_output": torch.zeros(1, 768)} if "pooled_output" in text else text):
        with pytest.raises(AtelierError, match=rf"^clip: the text is encoded in vectors of {given} numbers, and this .* {right}"):
            compatibility.check_text(animal.model, changed)


def test_a_pooled_vector_is_missed_where_there_has_to_be_one(animal):
    text = animal.conditioning(0)
    if text.pop("pooled_output", None) is None:
        pytest.skip("it has none")
    if animal.recipe.family not in NO_POOLED:
        compatibility.check_text(animal.model, text)
        return
    with pytest.raises(AtelierError, match=r"^clip: there is no pooled vector, and this .* reads one"):
        compatibility.check_text(animal.model, text)


def test_a_text_without_the_words_that_the_network_reads_is_refused(animal):
    text, tokens = animal.conditioning(0), family_named(animal.recipe.family).reads_tokens
    if text.pop(tokens, None) is None:
        pytest.skip("it reads what an encoder makes of them")
    with pytest.raises(AtelierError, match=r"^clip: the text does not come as the words' numbers, which this .* reads itself"):
        compatibility.check_text(animal.model, text)


@pytest.fixture(scope="module")
def vaes(comfyui):
    """Without weights, made by the host as if from a file."""
    import comfy.sd

    made = {}
    for name, (shapes, _) in VAES.items():
        logging.disable(logging.WARNING)  # most of the file is missing
        with torch.device("meta"):
            made[name] = comfy.sd.VAE(sd={key: torch.empty(shape) for key, shape in shapes.items()})
        logging.disable(logging.NOTSET)
    return made


def latents_of(recipe: Recipe) -> SimpleNamespace:
    """What is asked of a model about its latents, without its network."""
    import comfy.supported_models

    form = getattr(comfy.supported_models, recipe.family).latent_format()
    model = host.Model.__new__(host.Model)
    model.patcher = SimpleNamespace(get_model_object=lambda _: form)
    model.base = SimpleNamespace(model_config=type(recipe.family, (), {})())
    return model


@pytest.mark.parametrize("recipe", [pytest.param(r, id=r.name) for r in {r.family: r for r in RECIPES}.values()])
def test_the_vaes_that_a_family_is_published_with_are_taken_and_others_are_not(recipe, vaes, comfyui):
    model, text = latents_of(present(recipe)), host.TextEncoder(object())
    for name, (_, families) in VAES.items():
        if recipe.family in families:
            compatibility.check(model, text, host.PictureCodec(vaes[name]))
        elif any(recipe.family in others for _, others in VAES.values()):
            with pytest.raises(AtelierError, match=rf"^vae: its latent .*, and this {recipe.family} model works on"):
                compatibility.check(model, text, host.PictureCodec(vaes[name]))
