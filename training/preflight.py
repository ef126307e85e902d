"""What is looked at before the first step: how much memory the run will need, and whether that is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import nn

from . import host, memory, offload
from . import noise as noises
from .config import TrainingConfig
from .dataset.plan import Batch, Plan
from .encode import Encoded
from .errors import is_out_of_memory
from .network.attach import Adapter


def tell(
    model: host.Model,
    text: host.TextEncoder | None,
    layers: Mapping[str, nn.Module],
    adapter: Adapter,
    encoded: Encoded,
    plan: Plan,
    levels: noises.LevelSampler,
    config: TrainingConfig,
    say: Callable[[str], None],
) -> None:
    """Says what the run will need and what there is, and what can be changed if that is too little; it starts all the same.

    ``text`` is the text encoder if it is trained as well, else None.
    """
    if config.offload_activations and not offload.can_offload(model.device):
        say(offload.NOTHING_TO_DO)
        config = replace(config, offload_activations=False)
    if config.compile:
        say("compile: the first steps of every picture size take longer, since the model's blocks are compiled for it")
    batch = largest_batch(plan)
    advice = memory.what_helps(config, len(batch.samples), model.device)
    try:
        with model.hold(text):
            need = memory_needed(model, text, layers, adapter, encoded, batch, levels, config)
            free = host.free_bytes(model.device) + need.model  # all other models have been put aside
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        say(f"memory: not even one picture at {batch.size[0]} x {batch.size[1]} goes through the model. {advice}")
        return
    line = memory.line(need, free)
    say(line if memory.fits(need, free) else f"memory: this will probably not fit: {line}. {advice}")


def largest_batch(plan: Plan) -> Batch:
    """The batch of the first epoch with the most pixels."""
    return max(plan.epoch_batches(0), key=lambda batch: batch.size[0] * batch.size[1] * len(batch.samples))


def memory_needed(
    model: host.Model,
    text: host.TextEncoder | None,
    layers: Mapping[str, nn.Module],
    adapter: Adapter,
    encoded: Encoded,
    batch: Batch,
    levels: noises.LevelSampler,
    config: TrainingConfig,
) -> memory.Need:
    """What a step with ``batch`` needs, from one picture's forward pass. The model is held by the caller.

    Nothing random is drawn, and the adapter is as it was.
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
        found = memory.measure(blocks, [*frozen, *adapter.parameters()], forward)
    return memory.Need(
        model=memory.bytes_of(frozen),
        adapter=memory.adapter_needs([tuple(p.shape) for p in adapter.parameters()], config),
        activations=found.needed(config, len(batch.samples)),
    )
