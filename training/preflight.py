"""What is looked at before the first step: how much memory the run will need, whether that is there, and what makes it fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import nn

from . import host, memory, offload
from . import noise as noises
from .config import TrainingConfig
from .dataset.plan import Batch, Plan
from .encode import Encoded
from .errors import is_out_of_memory
from .fallback import cheaper, difference, steps_down, without_effect
from .network.attach import Adapter


def fitting(
    model: host.Model,
    text: host.TextEncoder | None,
    layers: Mapping[str, nn.Module],
    adapter: Adapter,
    encoded: Encoded,
    plan: Plan,
    levels: noises.LevelSampler,
    config: TrainingConfig,
    say: Callable[[str], None],
) -> TrainingConfig:
    """``config``, or the same run in less memory if there is too little; the cheapest one if even that is too little.

    Says what the run will need and what there is, what is changed, and what else can be; the run starts all the same. The model
    will ask for so much room when it is held. ``text`` is the text encoder if it is trained as well, else None.
    """
    if (config.offload_activations or config.offload_blocks) and not offload.can_offload(model.device):
        say(offload.NOTHING_TO_DO)
    if config.compile:
        say("compile: the first steps of every picture size take longer, since the model's blocks are compiled for it")
    wanted = now = without_effect(config, model.device)
    batch = largest_batch(plan)
    pictures = len(batch.samples)
    if offload.can_offload(model.device) and weights_of(model, text).needed(now) > host.memory()[1]:
        *_, now = steps_down(now, model.device)  # the model alone is larger than the device
    while True:
        try:
            model.keep_away(now.offload_blocks)
            with model.hold(text):
                found = measured(model, text, layers, adapter, encoded, batch, levels)
                # All other models have been put aside.
                free = host.free_bytes(model.device) + found.weights.needed(now)
            break
        except Exception as error:
            less = cheaper(now, model.device)
            if not is_out_of_memory(error):
                raise
        if less is None:
            advice = memory.what_helps(now, pictures, model.device)
            say(f"memory: not even one picture at {batch.size[0]} x {batch.size[1]} goes through the model. {advice}")
            return now
        now = less
    ways = list(steps_down(now, model.device))
    now = next((way for way in ways if memory.fits(found.need(way, pictures), free)), ways[-1])
    need = found.need(now, pictures)
    line, fits = memory.line(need, free), memory.fits(need, free)
    model.leave_room(math.ceil(memory.MARGIN * (need.adapter + need.activations)) if fits else None)
    if changed := difference(wanted, now):
        say(f"memory: it would not fit as it is set. For this run {changed}; that is slower, to the same LoRA.")
    if fits:
        say(line)
    else:
        say(f"memory: this will probably not fit: {line}. {memory.what_helps(now, pictures, model.device)}")
    return now


def largest_batch(plan: Plan) -> Batch:
    """The batch of the first epoch with the most pixels."""
    return max(plan.epoch_batches(0), key=lambda batch: batch.size[0] * batch.size[1] * len(batch.samples))


def weights_of(model: host.Model, text: host.TextEncoder | None) -> memory.Weights:
    """All that is frozen on the model's device, where a text encoder need not be."""
    beside = text.weights() if text is not None and text.device == model.device else ()
    return memory.Weights.of(model.blocks(), [*model.weights(), *beside])


def measured(
    model: host.Model,
    text: host.TextEncoder | None,
    layers: Mapping[str, nn.Module],
    adapter: Adapter,
    encoded: Encoded,
    batch: Batch,
    levels: noises.LevelSampler,
) -> memory.Measured:
    """What a step needs, from one picture's forward pass. The model is held by the caller.

    Nothing random is drawn, and the adapter is as it was. Of blocks that are kept away, what came of them is counted too.
    """
    blocks = [*model.blocks(), *(text.blocks() if text else ())]
    frozen = [*model.weights(), *(text.weights() if text else ())]
    one = replace(batch, samples=batch.samples[:1], sightings=batch.sightings[:1])

    def forward() -> object:
        x = model.latents_in(encoded.latents(one)[0].to(model.device))
        sigma = levels.quantiles(1, (x.shape[-2], x.shape[-1])).to(model.device)
        (told,) = encoded.conditionings(one)
        return model.predict(x, sigma, [model.condition(told, x, {})]).square().mean()

    with adapter.attached(layers):
        found = memory.measure(blocks, [*frozen, *adapter.parameters()], forward, model.device)
    return memory.Measured(weights_of(model, text), found, tuple(tuple(p.shape) for p in adapter.parameters()))
