"""Starting points against the forecast: what is set for a memory is what published models are expected to need."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from lora_atelier.training.config import NetworkConfig, OptimizerConfig, TrainingConfig
from lora_atelier.training.estimate import activations
from lora_atelier.training.estimate.recipe import sizes
from lora_atelier.training.performance.memory import Activations
from lora_atelier.training.performance.thrift import Thrift
from lora_atelier.training.starting import points

from .published import PUBLISHED, outline

PARTS = points.catalogue()
LISTED = {"Cosmos-Predict2": "Cosmos-Predict2 2B", "Illustrious": "SDXL", "Pony": "SDXL", "NoobAI v-pred": "SDXL"}
MODELS = [
    name for name in PARTS.models if LISTED.get(name, name) in PUBLISHED and name not in ("Illustrious", "Pony", "NoobAI v-pred")
]


QUICK = {"SD 1.5", "SDXL", "Flux dev", "Z-Image"}
EACH = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.all_models]) for name in MODELS]
"""The others' passes on the meta device take minutes; they are tried when their numbers change."""


@cache
def kept(model: str, rank: int, side: int) -> Activations | None:
    return activations.activations(outline(LISTED.get(model, model)), NetworkConfig(rank, float(rank)), (side, side))


def test_every_listed_model_is_measured() -> None:
    assert {*MODELS, "Illustrious", "Pony", "NoobAI v-pred", points.OTHER} == PARTS.models.keys()


@pytest.mark.parametrize("model", MODELS)
def test_parameters_are_counted(model: str, comfyui: object) -> None:
    stored = outline(LISTED.get(model, model)).stored
    assert PARTS.models[model].billions == pytest.approx((sum(stored.blocks) + stored.outside) / 2e9, rel=0.02)


@pytest.mark.parametrize("memory", PARTS.memory)
@pytest.mark.parametrize("model", EACH)
def test_what_is_set_fits(model: str, memory: str, comfyui: object) -> None:
    """By the project's own forecast, with its margin, into what is left of the memory."""
    part, there = PARTS.models[model], PARTS.memory[memory]
    fit = points.fitted(part, there)
    if not fit.fits:
        assert part.billions > 20
        return
    config = TrainingConfig(
        "fit", NetworkConfig(part.rank, part.alpha), OptimizerConfig("AdamW8bit" if there.eight_bit_optimizer else "AdamW"),
        gradient_checkpointing=fit.thrift.gradient_checkpointing, base_weights=fit.thrift.base_weights,  # type: ignore[arg-type]
        offload_blocks=fit.thrift.offload_blocks,
    )  # fmt: skip
    found = outline(LISTED.get(model, model))
    blocks = len(found.stored.blocks)
    thrift = Thrift.asked(config, blocks, blocks, torch.device("cuda"))
    _, adapter, _ = sizes(config, found.layers(), found.lora_names())
    measured = kept(model, part.rank, fit.side)
    assert adapter is not None and measured is not None
    need = (found.stored.needed(thrift) + adapter + measured.needed(thrift, config, fit.batch_size)) / 1e9
    assert need * points.MARGIN <= there.gib * points.GIB - points.RESERVED + 0.3
