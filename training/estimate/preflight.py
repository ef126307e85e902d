"""Preflight: memory of a run, measured by one forward pass before its first step, and the settings that make it fit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from .. import host
from ..dataset.plan import Batch
from ..errors import is_out_of_memory
from ..performance import activation_offload, memory
from ..performance.block_offload import Traffic
from ..performance.fallback import cheaper, steps_down
from ..performance.filling import filled
from ..performance.thrift import difference
from ..protocols import Denoiser, TrainedText
from ..session import Session
from ..step import answer, noised
from .step_time import PASSES

LONG = 5.0
"""Seconds from which on one timed pass says enough."""


def fit(
    session: Session, say: Callable[[str], None], warn: Callable[[str], None] | None = None, *, times: bool = True
) -> Session:  # fmt: skip
    """``session``, or the same run in less memory if there is too little; the cheapest one if even that is too little.

    Says what the run will need and what there is, and warns (by default in the same way) of what is changed, and what else can
    be; the run starts all the same. The model will ask for so much room when it is held. ``times``: whether a pass is timed too.
    """
    model, config, warn = session.model, session.config, warn or say
    if (config.offload_activations or config.offload_blocks) and not activation_offload.can_offload(model.device):
        warn(activation_offload.NOTHING_TO_DO)
    if config.compile:
        say("compile: the first steps, and those of a second picture size, take longer, since the model's blocks are compiled")
    least = held = asked = session.thrift
    batch = largest_batch(session)
    pictures = len(batch.samples)
    if asked.shards > 1:
        # A process alone has no one to gather weights from; they come from main memory for this.
        held = replace(asked, movable=len(model.blocks()), shards=1)
        if activation_offload.can_offload(model.device):
            held = held.keeping_away(tuple(range(held.movable)))
    elif activation_offload.can_offload(model.device) and weights_of(model, session.text).needed(held) > host.memory()[1]:
        *_, held = steps_down(held, model.device)  # the model alone is larger than the device
    while True:
        try:
            with model.hold(session.text, offload=Traffic(held.away)):
                found = measured(session, batch)
                seconds = pass_seconds(session, batch) if times else None
                # All other models have been put aside.
                free = host.free_bytes(model.device) + found.weights.needed(held)
            break
        except Exception as error:
            less = cheaper(held, model.device)
            if not is_out_of_memory(error):
                raise
        if less is None:
            advice = memory.what_helps(config, held, pictures, model.device, any(weights_of(model, None).spared))
            warn(f"memory: not even one picture at {batch.size[0]} x {batch.size[1]} goes through the model. {advice}")
            return replace(session, thrift=held if asked.shards == 1 else asked.recomputing(held.recomputed))
        held = less
        least = held if asked.shards == 1 else asked.recomputing(held.recomputed)
    now = filled(found, config, pictures, least, model.device, lambda need: memory.fits(need, free))
    need = found.need(now, config, pictures)
    line, fits = memory.line(need, free), memory.fits(need, free)
    if now.shards > 1:
        say(memory.shared(found.weights, now))
    model.leave_room(math.ceil(memory.MARGIN * (need.adapter + need.activations)) if fits else None)
    if changed := difference(asked, now):
        warn(f"memory: it would not fit as it is set. For this run {changed}; that is slower, to the same LoRA.")
    if fits:
        say(line)
    else:
        advice = memory.what_helps(config, now, pictures, model.device, any(found.weights.spared))
        warn(f"memory: this will probably not fit: {line}. {advice}")
    return replace(session, thrift=now, forecast=found, pass_seconds=seconds)


def largest_batch(session: Session) -> Batch:
    """The batch of the first epoch with the most pixels, those of control pictures included, and its largest picture first."""
    encoded = session.encoded
    if not encoded.shows.shown:
        return session.plan.largest_batch()
    every = {batch: [encoded.pixels(batch, i) for i in range(len(batch.samples))] for batch in session.plan.epoch_batches(0)}
    batch, pixels = max(every.items(), key=lambda one: max(one[1]) * len(one[1]))
    order = sorted(range(len(pixels)), key=lambda i: -pixels[i])
    return replace(batch, samples=tuple(batch.samples[i] for i in order), sightings=tuple(batch.sightings[i] for i in order))


def weights_of(model: Denoiser, text: TrainedText | None) -> memory.Weights:
    """All that is frozen on the model's device, where a text encoder need not be."""
    beside = text.weights() if text is not None and text.device == model.device else ()
    return memory.Weights.of(model.blocks(), [*model.weights(), *beside])


def measured(session: Session, batch: Batch) -> memory.Measured:
    """What a step needs, from one picture's forward pass. The model is held by the caller.

    Nothing random is drawn, and the adapter is as it was. Of blocks that are kept away, what came of them is counted too.
    """
    adapter = session.adapter
    frozen = [*session.model.weights(), *(session.text.weights() if session.text else ())]
    forward = partial(_one_picture, session, batch)
    with adapter.attached(session.layers), adapter.listening():
        found = memory.measure(session.blocks(), [*frozen, *adapter.parameters()], forward, session.model.device)
    return memory.Measured(weights_of(session.model, session.text), found, tuple(tuple(p.shape) for p in adapter.parameters()))


def pass_seconds(session: Session, batch: Batch) -> float | None:
    """Seconds of one picture's forward pass, after ``measured``; None if there is no memory for it. The model is held by the
    caller.

    The quickest of a few counts, as nothing makes one quicker than it is; where they take long, one is enough.
    """
    found = math.inf
    try:
        with torch.no_grad(), session.adapter.attached(session.layers):
            for _ in range(PASSES):
                host.check_interrupt()
                start = time.monotonic()
                _one_picture(session, batch).item()  # waits for the device
                found = min(found, time.monotonic() - start)
                if found > LONG:
                    break
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None
    return found


def _one_picture(session: Session, batch: Batch) -> Tensor:
    """The mean square of the model's answer to the batch's first picture."""
    model = session.model
    one = replace(batch, samples=batch.samples[:1], sightings=batch.sightings[:1])
    x0 = model.latents_in(session.encoded.latents(one)[0].to(model.device))
    sigma = session.levels.quantiles(1, x0.shape[2:]).to(model.device)
    asked = noised(model, x0, sigma, torch.zeros_like(x0), session.encoded.conditionings(one), [{}])
    return answer(model, asked).square().mean()
