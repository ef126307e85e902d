"""The table of families: shifts against the authors' own schedules, and layers that are left out."""

from __future__ import annotations

import math

import pytest
from lora_atelier.training.config import NetworkConfig, TrainingConfig
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.families import FAMILIES, UNKNOWN, BySize, Family, family_named, remark
from lora_atelier.training.network.scope import trained_layers
from torch import nn


@pytest.mark.parametrize(
    ("pipeline", "family", "tokens"),
    [("flux.pipeline_flux", "Flux", (256, 4096)), ("qwenimage.pipeline_qwenimage", "QwenImage", (256, 4096, 8192))],
)
def test_a_shift_by_size_is_that_of_the_authors(pipeline, family, tokens):
    """Both pipelines have the same function; the numbers of Qwen-Image are those of its published scheduler."""
    import importlib

    shift = importlib.import_module(f"diffusers.pipelines.{pipeline}").calculate_shift
    published = {"QwenImage": {"max_seq_len": 8192, "max_shift": 0.9}}.get(family, {})
    ours = family_named(family).shift
    assert isinstance(ours, BySize)
    for count in tokens:
        side = math.isqrt(count) * 2
        expected = math.exp(shift((side // 2) ** 2, **published))
        assert ours.factor((side, side)) == pytest.approx(expected, rel=1e-6)


def test_tokens_of_one_cell_count_four_times_as_much():
    assert BySize(patch=1).factor((64, 64)) == pytest.approx(BySize(patch=2).factor((128, 128)))


def layers(*names: str) -> dict[str, nn.Module]:
    return {name: nn.Linear(2, 2) for name in names}


def test_what_follows_the_picture_no_more_is_left_out():
    """In the last block of a Qwen-Image the text's stream ends, so nothing there can learn but keys and values."""
    found = layers(
        "transformer_blocks.0.txt_mlp.net.0.proj", "transformer_blocks.0.attn.to_add_out", "transformer_blocks.11.attn.to_q",
        "transformer_blocks.11.attn.add_q_proj", "transformer_blocks.11.attn.add_k_proj", "transformer_blocks.11.attn.to_add_out",
        "transformer_blocks.11.txt_mlp.net.2", "transformer_blocks.11.img_mlp.net.2", "transformer_blocks.1.attn.to_add_out",
    )  # fmt: skip
    config = TrainingConfig(name="x", network=NetworkConfig(targets="all linear"))
    left = set(found) - set(trained_layers(found, config, family_named("QwenImage")))
    assert left == {f"transformer_blocks.11.{n}" for n in ("attn.add_q_proj", "attn.to_add_out", "txt_mlp.net.2")}
    assert set(trained_layers(found, config)) == set(found)


def test_an_unknown_family_gets_defaults_and_a_sentence():
    assert family_named("Tomorrow") is UNKNOWN
    assert remark("Tomorrow").startswith("Tomorrow is ") and remark("Tomorrow").endswith(".")
    assert remark("SDXL") == ""
    assert UNKNOWN.levels == "logit-normal" and UNKNOWN.key_format == ("diffusion_model.",) and not UNKNOWN.refused


def test_every_refusal_ends_a_sentence():
    for name, family in FAMILIES.items():
        assert not family.refused or str(AtelierError(f"{name} {family.refused}")).endswith("."), name


def test_a_pattern_without_blocks_leaves_nothing_out():
    assert Family(untrainable=r"blocks\.LAST\.").without_untrainable(["out"]) == ["out"]
