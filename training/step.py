"""Training step: from a batch to the scalar that gradients are taken of, in two parts.

``prepare`` does whatever is random, comes from the disk or is computed by Python; ``loss_of`` is the device's work alone, a
function of its inputs and the weights, so that it can be recorded once and replayed (``performance/step_graphs.py``).

Loop, validation and memory estimates ask a model in the same way, ``noised``, so that they cannot drift apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from . import seeding
from .config import LossConfig, SliderConfig
from .dataset.encoded import size_conditioning
from .dataset.plan import Batch
from .network.dropout import Drops
from .objective import loss as losses
from .objective import noise as noises
from .objective.preservation import base_prediction, preservation_loss
from .objective.slider import WAYS, slider_target
from .protocols import Conditions, Denoiser, EncodedText, Predictor, Together
from .session import Session
from .tensors.transfer import to_device, with_one_way_back

Sizes = Sequence[Mapping[str, float]]
LOOKED_AT = 1000
"""Batches of the first epoch by which the forms of all are counted."""


@dataclass(frozen=True)
class Noised:
    """Noised latents, what a model is given beside them, and what it should answer; all on its device."""

    x: Tensor
    """(B, C, h, w)"""
    sigma: Tensor
    """(B,)"""
    given: list[Together]
    target: Tensor
    """(B, C, h, w)"""


@dataclass(frozen=True)
class SliderInputs:
    """What a slider is asked beside its target at strength 1."""

    positive: list[Together] | None
    """What the model is given for the positive prompts; None where pictures are the ends."""
    negative: list[Together] | None
    before: Noised | None
    """The pictures at the other end, and what is asked of them; None where prompts are the ends."""
    guidance: float


class Passes(NamedTuple):
    """Passes of the network in a step, in this order; all but the first ones for each direction."""

    ends: int
    """Without a gradient, for what a slider is learnt from."""
    asked: int
    before: int
    """Without a gradient, for what the model answered before training."""
    held: int


@dataclass(frozen=True)
class StepInputs:
    """All that a step's loss and gradient depend on but for the weights; tensors are on the model's device."""

    noised: Noised
    mask: Tensor | None
    """(B, 1, h, w) in 0..1."""
    numbers: Tensor
    """(3,): floor of the mask, weight of the batch, and of how many batches the gradient becomes the mean."""
    drops: Drops | None
    """What dropout leaves out."""
    regularises: bool
    """Whether the pictures are shown to hold the model to what it was."""
    held: list[Together] | None
    """What the model is given for the prompt at which it is held; None without one."""
    untrained: list[Together] | None
    """What it is given for its answer before training, where a text encoder that learns has changed the rest; else None."""
    slider: SliderInputs | None = None
    passes: Passes | None = None
    """As many as any process's step has, where these work in step: what comes on top changes no number."""

    @property
    def parts(self) -> Tensor:
        """By what the loss is divided before its gradient is added to those of the other batches."""
        return self.numbers[2]


def noised(
    model: Predictor,
    x0: Tensor,
    sigma: Tensor,
    noise: Tensor,
    texts: Sequence[EncodedText],
    sizes: Sizes,
    mixed_in: Tensor | None = None,
) -> Noised:
    """Latents ``x0`` (B, C, h, w) with ``noise`` at ``sigma`` (B,), as a model is asked about them.

    ``texts`` and ``sizes`` are a conditioning and a size conditioning for each sample. ``mixed_in`` is the noise that the model
    is given where it is not the one asked for (input perturbation). Both are of standard deviation 1.
    """
    if model.noise_scale != 1.0:
        noise, mixed_in = noise * model.noise_scale, None if mixed_in is None else mixed_in * model.noise_scale
    x = noises.noisy(model.prediction, x0, noise if mixed_in is None else mixed_in, sigma)
    given = model.merged(conditions_of(model, x, texts, sizes))
    return Noised(x, sigma, given, noises.target(model.prediction, x0, noise, sigma))


def conditions_of(model: Predictor, x: Tensor, texts: Sequence[EncodedText], sizes: Sizes) -> list[Conditions]:
    """The host's conditioning of each sample of ``x``."""
    return [model.condition(text, x[i : i + 1], size) for i, (text, size) in enumerate(zip(texts, sizes, strict=True))]


def answer(model: Predictor, asked: Noised) -> Tensor:
    """(B, C, h, w) in float32."""
    return model.answer(asked.x, asked.sigma, asked.given)


def loaded(session: Session, batch: Batch) -> tuple[Tensor, list[dict[str, float]], Tensor | None]:
    """(latents as the model sees them, size conditioning of each sample, masks or None), on the model's device."""
    latents, views, mask = session.encoded.latents(batch)
    device = session.model.device
    x0 = session.model.latents_in(to_device(latents, device))
    return x0, [size_conditioning(view) for view in views], to_device(mask, device) if mask is not None else None


def averaged(session: Session, step: int) -> int:
    """Of how many batches the gradient to which a step adds becomes the mean; the run's last ones may be fewer."""
    width = session.config.optimizer.accumulate
    return min(width, session.total_steps - (step - step % width))


def prepare(session: Session, batch: Batch, step: int) -> StepInputs:
    """The inputs of a step; everything random among them follows from (seed, step)."""
    model, config = session.model, session.config
    subset = session.plan.dataset.subsets[batch.subset].config
    drops = session.adapter.drops(config.seed, step)
    session.adapter.drop(drops)  # a text encoder that is trained answers here
    x0, sizes, mask = loaded(session, batch)
    draw = seeding.step_generator(config.seed, step)
    place = seeding.even_place(config.seed, step) if config.noise.level_draw == "stratified" else None
    sigma = to_device(session.levels.draw(len(x0), x0.shape[2:], draw, place), model.device)
    drawn = noises.make_noise(x0.shape, config.noise, draw)
    noise = to_device(drawn, model.device)
    mixed_in = to_device(noises.perturbed(drawn, config.noise, draw), model.device)
    texts = with_one_way_back(session.encoded.conditionings(batch), model.device)
    asked = noised(model, x0, sigma, noise, texts, sizes, mixed_in)
    held, prompt = None, config.loss.held_at
    if config.loss.preservation and prompt is not None:
        held = model.merged(conditions_of(model, asked.x, session.encoded.held(prompt, batch), sizes))
    regularises = subset.role == "regularisation"
    untrained = None
    if session.text is not None and (
        (config.loss.preservation and regularises and prompt is None) or _holds_outside(mask, config.loss)
    ):
        with torch.no_grad(), session.adapter.disabled():
            untrained = model.merged(conditions_of(model, asked.x, session.encoded.conditionings(batch), sizes))
    strength = config.loss.preservation if regularises and config.loss.preservation and prompt is None else 1.0
    slider = None
    if subset.slider is not None:
        slider = _slider(session, batch, subset.slider, asked, (sigma, noise, mixed_in), texts, sizes)
    each = strength / len(WAYS) if slider else strength  # the two directions are added up to their mean
    numbers = torch.tensor([subset.mask_floor, subset.loss_weight * each, averaged(session, step)])
    return StepInputs(asked, mask, to_device(numbers, model.device), drops, regularises, held, untrained, slider)


def _slider(
    session: Session, batch: Batch, slider: SliderConfig, asked: Noised, drawn: tuple[Tensor, Tensor, Tensor],
    texts: Sequence[EncodedText], sizes: Sizes,
) -> SliderInputs:  # fmt: skip
    """``drawn``: level, noise, and the noise that is mixed in; both ends of a pair have the same."""
    model = session.model
    if slider.source == "prompts":
        positive, negative = (model.merged(conditions_of(model, asked.x, side, sizes)) for side in session.encoded.ends(batch))
        return SliderInputs(positive, negative, None, slider.guidance)
    latents, views = session.encoded.befores(batch)
    x0 = model.latents_in(to_device(latents, model.device))
    sigma, noise, mixed_in = drawn
    before = noised(model, x0, sigma, noise, texts, [size_conditioning(one) for one in views], mixed_in)
    return SliderInputs(None, None, before, slider.guidance)


def passes_of(session: Session, inputs: StepInputs) -> Passes:
    """How often the network is gone through in a step, by its inputs; it goes through those that are not alike one by one."""
    config, slider, asked = session.config.loss, inputs.slider, len(inputs.noised.given)
    ends, before, held = 0, 0, 0
    if slider is not None and slider.before is not None:
        asked = max(asked, len(slider.before.given))
    elif slider is not None:
        ends = asked + len(slider.positive or []) + len(slider.negative or [])
    if _holds_at_its_captions(inputs, config) or _holds_outside(inputs.mask, config):
        before = len(inputs.untrained or inputs.noised.given)
    if config.preservation and inputs.held is not None:
        held = len(inputs.held)
    return Passes(ends, asked, before + held, held)


def _idly(session: Session, asked: Noised, count: int, learning: bool) -> Tensor | float:
    """0, after so many more passes of the network; its gradient is 0 too."""
    if count <= 0:
        return 0.0
    model, (members, conditions) = session.model, (asked.given[0].members, asked.given[0].conditions)
    x, sigma = torch.stack([asked.x[i] for i in members]), torch.stack([asked.sigma[i] for i in members])
    alone = [Together(tuple(range(len(members))), conditions)]
    if not learning:
        for _ in range(count):
            base_prediction(model, session.adapter, x, sigma, alone)
        return 0.0
    answers = [model.answer(x, sigma, alone).sum() for _ in range(count)]
    return 0.0 * torch.stack(answers).sum()


def directions(session: Session, inputs: StepInputs) -> Generator[StepInputs, None, None]:
    """The inputs of each loss of a step, one at a time: of a slider one for each direction, of all else the inputs themselves.

    The adapter keeps the strength of a direction until the next is asked for, since a backward pass may compute blocks anew; it
    is to be closed, so that none ever stays.
    """
    slider, asked = inputs.slider, inputs.noised
    if slider is None:
        yield inputs
    elif slider.before is not None:
        if inputs.passes is not None:
            _idly(session, asked, inputs.passes.ends, learning=False)
        for way, own in zip(WAYS, (asked, slider.before), strict=True):
            with session.adapter.at(way):
                yield replace(inputs, noised=own)
    else:
        model, adapter = session.model, session.adapter
        sides = (asked.given, slider.positive or [], slider.negative or [])
        before, positive, negative = (base_prediction(model, adapter, asked.x, asked.sigma, side) for side in sides)
        if inputs.passes is not None:
            _idly(session, asked, inputs.passes.ends - sum(map(len, sides)), learning=False)
        for way in WAYS:
            target = slider_target(way, before, positive, negative, slider.guidance)
            with adapter.at(way):
                yield replace(inputs, noised=replace(asked, target=target))


def _holds_at_its_captions(inputs: StepInputs, config: LossConfig) -> bool:
    """Whether the model is only held to what it answered before training, at the batch's own captions."""
    return bool(config.preservation) and inputs.held is None and inputs.regularises


def _holds_outside(mask: Tensor | None, config: LossConfig) -> bool:
    """Whether the model's answer before training is wanted outside the mask."""
    return mask is not None and config.mask_preservation > 0


def loss_of(session: Session, inputs: StepInputs) -> Tensor:
    """The loss of one batch, a scalar that gradients can be taken of.

    Nothing in it is random, waits for the device, or comes from main memory.
    """
    model, adapter, config = session.model, session.adapter, session.config.loss
    asked, most = inputs.noised, inputs.passes
    adapter.drop(inputs.drops)
    prediction = answer(model, asked)
    idle = _idly(session, asked, most.asked - len(asked.given), learning=True) if most else 0.0
    strength = config.preservation
    floor, weight, _ = inputs.numbers.unbind()
    given, before, gone = inputs.untrained or asked.given, None, 0
    only_held = _holds_at_its_captions(inputs, config)
    if only_held or _holds_outside(inputs.mask, config):
        before, gone = base_prediction(model, adapter, asked.x, asked.sigma, given), len(given)
    if only_held and before is not None:
        loss = weight * preservation_loss(prediction, before)
    else:
        loss = losses.batch_loss(
            prediction, asked.target, inputs.mask, floor, weight, model.prediction, asked.sigma, config, before
        )  # fmt: skip
    held = inputs.held if strength else None
    if held is not None:
        before, gone = base_prediction(model, adapter, asked.x, asked.sigma, held), gone + len(held)
    if most:
        _idly(session, asked, most.before - gone, learning=False)
    if held is not None and before is not None:
        after = model.answer(asked.x, asked.sigma, held)
        loss = loss + strength * preservation_loss(after, before)
    if most:
        return loss + idle + _idly(session, asked, most.held - len(held or ()), learning=True)
    return loss


def form_of(session: Session, batch: Batch) -> Hashable:
    """What of a batch decides the shapes of its inputs, and what is computed with them."""
    subset = session.plan.dataset.subsets[batch.subset]
    config, slider = subset.config, subset.config.slider
    has_mask = any(subset.samples[i].mask is not None for i in batch.samples)
    asked: Hashable = ()
    if slider is not None:
        ends = session.encoded.ends(batch) if slider.source == "prompts" else ()
        asked = slider.source, slider.guidance, tuple(map(_shapes, ends))
    return (
        batch.size,
        batch.frames,
        config.role == "regularisation",
        has_mask,
        _shapes(session.encoded.conditionings(batch)),
        asked,
    )


def _shapes(texts: Sequence[EncodedText]) -> Hashable:
    return tuple(tuple(sorted((k, tuple(v.shape) if isinstance(v, Tensor) else ()) for k, v in text.items())) for text in texts)


def commonest_forms(session: Session, at_least: int, most: int, steps: int) -> tuple[list[Hashable], float]:
    """(the forms of batches that come at least so often in so many ``steps``, commonest first and at most ``most``; the share of
    the steps that are of one of these).

    They are counted in the first epoch, wherever the run goes on, so that a resumed run counts the same.
    """
    batches = session.plan.epoch_batches(0)[:LOOKED_AT]
    found = Counter(form_of(session, batch) for batch in batches).most_common(most)
    often = [(form, count) for form, count in found if count * steps >= at_least * len(batches)]
    return [form for form, _ in often], sum(count for _, count in often) / max(1, len(batches))


def computes_in_half(model: Denoiser) -> bool:
    """fp16 gradients underflow without loss scaling; bf16 and fp32 need none.

    Scaling waits for the device once a step to see whether a gradient overflowed, except with AdamW, which sees that itself.
    """
    return model.compute_dtype == torch.float16
