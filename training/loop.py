"""The training loop: read it from top to bottom. Everything it calls is a formula, a file or the host."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from . import loss as losses
from . import noise as noises
from .checkpointing import checkpointed
from .config import TrainingConfig
from .dataset.plan import Batch, Plan
from .divergence import Finding, Watch
from .ema import Average
from .encode import Encoded, size_conditioning
from .enough import Verdict, judge
from .errors import AtelierError
from .network.attach import Adapter
from .optim import optimizers, schedules
from .preservation import base_answer, preservation_loss
from .run import Run, SaveKind, State, finite
from .validation import Validation, validate


class Denoiser(Protocol):
    """The frozen model (``host.Model``)."""

    @property
    def prediction(self) -> noises.Prediction: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def compute_dtype(self) -> torch.dtype: ...
    def hold(self, text: Any = None) -> Any: ...
    def blocks(self) -> list[nn.Module]: ...
    def latents_in(self, latents: Tensor) -> Tensor: ...
    def condition(self, text: Mapping[str, Tensor], x: Tensor, size: Mapping[str, int]) -> dict[str, Any]: ...
    def predict(self, x: Tensor, sigma: Tensor, conditions: Sequence[dict[str, Any]]) -> Tensor: ...


@dataclass
class Progress:
    """What the loop tells while it runs; all numbers are plain Python ones."""

    step: int
    total: int
    epoch: int
    """1-based."""
    epochs: int
    loss: float
    """Mean over the recent steps."""
    rate: float
    """Learning rate of the last step."""
    steps_per_second: float
    seconds_left: float


@dataclass
class Watcher:
    """The loop's way to the outside; every callable may raise to stop the run."""

    check: Callable[[], None] = lambda: None
    """Called every step; raises when the person cancelled."""
    progress: Callable[[Progress], None] = lambda _: None
    """Called a few times a second at most."""
    save: Callable[[SaveKind, int, int], None] = lambda kind, epoch, step: None
    """Writes the LoRA file of a ``kind`` (``epoch``, ``step``, ``last``, ``moment``)."""
    sample: Callable[[int, int], None] = lambda epoch, step: None
    """Draws the sample pictures."""
    measured: Callable[[Validation, Verdict], None] = lambda _validation, _verdict: None
    """Called with the fixed losses of an epoch and what follows from them."""
    warn: Callable[[str], None] = lambda _: None
    """Called once when the loss runs away."""
    wishes: Callable[[], frozenset[str]] = frozenset
    """Called after every step: what the person wants at once (``live.Wish``)."""
    interval: float = 0.5
    """Seconds between two reports; a report costs the one device sync there is."""
    snapshot_interval: float = 300.0
    """Seconds between two snapshots of the state inside an epoch; there is one at the end of every epoch as well."""


@dataclass
class Clock:
    """Speed over the recent steps and the time that is left."""

    started: float = field(default_factory=time.monotonic)
    steps: int = 0

    def report(self, left: int) -> tuple[float, float]:
        """(steps a second, seconds left)."""
        speed = self.steps / max(1e-9, time.monotonic() - self.started)
        return speed, left / speed if speed > 0 else 0.0


def train(
    model: Denoiser,
    text: Any,
    layers: Mapping[str, nn.Module],
    adapter: Adapter,
    levels: noises.LevelSampler,
    encoded: Encoded,
    plan: Plan,
    config: TrainingConfig,
    run: Run,
    watcher: Watcher,
) -> None:
    """Trains ``adapter`` beside ``layers`` until the configured length, from wherever ``run`` stopped.

    ``text`` is the text encoder if it is trained as well, else None. Noise, levels, crops, dropout and order are functions of
    (seed, step), so a resumed run sees what an uninterrupted one would have. The model is held from one pause to the next (the
    end of an epoch, a save, a sample): in between it is exactly as the graph knows it, and pictures can be sampled.
    """
    total, width = total_steps(config, plan), config.optimizer.accumulate
    updates = config.optimizer.updates(total)
    schedules.check(config.optimizer, updates)
    groups = [(group["params"], config.optimizer.peak * group["rate"]) for group in adapter.parameter_groups()]
    optimizer = optimizers.build(config.optimizer, groups)
    scaler = torch.amp.GradScaler(model.device.type, enabled=computes_in_half(model))
    average = Average(adapter.state(), config.ema_decay) if config.ema_decay else None
    blocks = [*model.blocks(), *(text.blocks() if text else ())] if config.gradient_checkpointing else []
    state = run.load_state()
    step = 0
    if state is not None:
        step = state.step
        adapter.load_state(state.adapter)
        optimizer.load_state_dict(dict(state.optimizer))
        scaler.load_state_dict(dict(state.scaler))
        if average is not None:
            average.load_state(state.average)
    book = Book(run, adapter, plan, config, watcher, step, total)

    def snapshot() -> None:
        # Gradients are not kept: a group of batches that is not complete is gone through again.
        done = step if step == total else step - step % width
        averages = average.state() if average else {}
        run.save_state(State(done, adapter.state(), optimizer.state_dict(), scaler.state_dict(), averages))
        book.snapped = time.monotonic()

    @contextmanager
    def best_weights() -> Iterator[None]:
        """What is saved, sampled and measured: averages, where there are any."""
        with optimizers.averaged(optimizer), average.swapped_in() if average else nullcontext():
            yield

    try:
        finished = step >= total
        while not finished:
            pause = next_pause(step, config, plan, total)
            with ExitStack() as held:
                held.enter_context(model.hold(text))
                held.enter_context(adapter.attached(layers))
                held.enter_context(checkpointed(blocks))
                while step < pause:
                    watcher.check()
                    batch = plan.batch(step)
                    adapter.begin_step(config.seed, step)
                    loss = step_loss(model, adapter, levels, encoded, plan, batch, config, step)
                    first = step - step % width
                    scaler.scale(loss / min(width, total - first)).backward()

                    step += 1
                    if step % width == 0 or step == total:
                        scaler.unscale_(optimizer)
                        if config.optimizer.clip_norm > 0:
                            nn.utils.clip_grad_norm_(adapter.parameters(), config.optimizer.clip_norm)
                        optimizers.set_rate(optimizer, schedules.factor(config.optimizer, first // width, updates))
                        scaler.step(optimizer)
                        scaler.update()
                        optimizer.zero_grad(set_to_none=True)
                        if config.network.scale_weight_norms > 0:
                            adapter.limit_norms(config.network.scale_weight_norms)
                        if average is not None:
                            average.update()

                    book.enter(step, loss)
                    wishes = watcher.wishes()
                    if step == pause or wishes or book.due():
                        finished = book.report(optimizers.effective_rate(optimizer)) or "stop" in wishes
                        if finished or wishes:
                            break
                        if step < pause and book.wants_snapshot():
                            snapshot()

            epoch, epoch_ends = plan.epoch_of(step - 1) + 1, step % plan.steps_per_epoch == 0 or step == total
            with best_weights():
                if epoch_ends and measures(config, plan):
                    validation = validate(model, text, layers, adapter, encoded, plan, levels, epoch)
                    finished = book.judged(validation, step) or finished
                finished = finished or step == total
                kind = save_kind(step, epoch, epoch_ends, finished, config) or ("step" if "save" in wishes else None)
                if kind is not None:
                    watcher.save(kind, epoch, step)
                if "sample" in wishes or wants_sample(step, epoch, epoch_ends, kind is not None, config):
                    watcher.sample(epoch, step)
            snapshot()
    except LostNumbers as lost:
        raise AtelierError(
            f"The numbers became NaN or infinite at step {lost.step}. The files and the state saved before that are intact. "
            "Lower the learning rate, or set precision to bf16 or fp32, and queue again."
        ) from lost
    except BaseException:
        # Cancel, out of memory, a vanished file: what was learnt so far is sound, so it is kept.
        if step and finite(adapter.state()):
            with suppress(LostNumbers):
                book.settle()
            snapshot()
            if step % plan.steps_per_epoch or not run.saved() or run.saved()[-1].step != step:
                with best_weights():
                    watcher.save("moment", plan.epoch_of(step - 1) + 1, step)
        raise


def step_loss(
    model: Denoiser,
    adapter: Adapter,
    levels: noises.LevelSampler,
    encoded: Encoded,
    plan: Plan,
    batch: Batch,
    config: TrainingConfig,
    step: int,
) -> Tensor:
    """The loss of one batch, a scalar that gradients can be taken of; everything random in it follows from (seed, step)."""
    subset = plan.dataset.subsets[batch.subset].config
    latents, views, mask = encoded.latents(batch)
    x0 = model.latents_in(latents.to(model.device))
    draw = noises.step_generator(config.seed, step)
    sigma = levels.draw(len(x0), (x0.shape[-2], x0.shape[-1]), draw).to(model.device)
    drawn = noises.make_noise(x0.shape, config.noise, draw)
    noise, entering = drawn.to(model.device), noises.perturbed(drawn, config.noise, draw).to(model.device)
    x = noises.noisy(model.prediction, x0, entering, sigma)
    sizes = [size_conditioning(shown) for shown in views]
    conditions = [
        model.condition(text, x[i : i + 1], size)
        for i, (text, size) in enumerate(zip(encoded.conditionings(batch), sizes, strict=True))
    ]

    answer = model.predict(x, sigma, conditions)
    strength, prompt = config.loss.preservation, config.loss.preservation_prompt
    if strength and not prompt and subset.role == "regularisation":
        before = base_answer(model, adapter, x, sigma, conditions)
        return subset.loss_weight * strength * preservation_loss(answer, before)
    wanted = noises.target(model.prediction, x0, noise, sigma)
    mask = mask.to(model.device) if mask is not None else None
    loss = losses.batch_loss(answer, wanted, mask, subset.mask_floor, subset.loss_weight, model.prediction, sigma, config.loss)
    if strength and prompt:
        held = encoded.text(prompt)
        conditions = [model.condition(held, x[i : i + 1], size) for i, size in enumerate(sizes)]
        before = base_answer(model, adapter, x, sigma, conditions)
        loss = loss + strength * preservation_loss(model.predict(x, sigma, conditions), before)
    return loss


class Book:
    """What the loop writes down and tells. Losses stay on the device until it is time: reading one is a sync."""

    def __init__(self, run: Run, adapter: Adapter, plan: Plan, config: TrainingConfig, watcher: Watcher, step: int, total: int):
        self._run, self._adapter, self._plan, self._config, self._watcher = run, adapter, plan, config, watcher
        self._step, self._total, self._pending = step, total, list[Tensor]()
        self._clock, self._reported, self.snapped = Clock(), time.monotonic(), time.monotonic()
        self._watch, self._warned = Watch(), False
        self._watch.feed(row["loss"] for row in run.cut_history(step))
        self._measured = [Validation(r["epoch"], r["held_out"], r["training"]) for r in run.cut_measured(step)]

    def enter(self, step: int, loss: Tensor) -> None:
        self._step = step
        self._clock.steps += 1
        self._pending.append(loss.detach())

    def due(self) -> bool:
        return time.monotonic() - self._reported > self._watcher.interval

    def wants_snapshot(self) -> bool:
        return time.monotonic() - self.snapped > self._watcher.snapshot_interval

    def settle(self) -> list[dict[str, Any]]:
        """Reads the pending losses and writes them down; raises when a number is gone."""
        if not self._pending:
            return []
        values = torch.stack(self._pending).tolist()
        rows = [
            {
                "step": s, "epoch": self._plan.epoch_of(s - 1) + 1, "loss": v,
                "rate": rate_at(self._config, s - 1, self._total),
            }
            for s, v in enumerate(values, start=self._step - len(values) + 1)
        ]  # fmt: skip
        self._pending.clear()
        bad = next((row for row in rows if not abs(row["loss"]) < float("inf")), None)
        if bad is not None or not finite(self._adapter.state()):
            raise LostNumbers(bad["step"] if bad else self._step)
        self._run.append_history(rows)
        return rows

    def report(self, rate: float) -> bool:
        """Tells how it goes; True if the run shall stop because its loss runs away."""
        rows = self.settle()
        speed, left = self._clock.report(self._total - self._step)
        mean = sum(row["loss"] for row in rows) / len(rows)
        epochs = self._plan.epochs_for(self._total)
        self._watcher.progress(Progress(self._step, self._total, rows[-1]["epoch"], epochs, mean, rate, speed, left))
        self._reported = time.monotonic()
        finding = self._watch.feed(row["loss"] for row in rows)
        return self._diverges(finding)

    def _diverges(self, finding: Finding) -> bool:
        if finding.alarm != "none" and not self._warned:
            self._watcher.warn(finding.why)
            self._warned = True
        return finding.alarm == "stop" and self._config.length.on_divergence == "stop"

    def judged(self, validation: Validation, step: int) -> bool:
        """Writes the fixed losses of an epoch down; True if it is enough, and the run shall end then."""
        self._measured.append(validation)
        self._run.append_measured(validation.epoch, step, validation.held_out, validation.training)
        verdict = judge(self._measured)
        self._watcher.measured(validation, verdict)
        return verdict.enough and self._config.length.when_enough == "stop"


class LostNumbers(Exception):
    """A loss or a weight is not finite."""

    def __init__(self, step: int):
        super().__init__(f"step {step}")
        self.step = step


def total_steps(config: TrainingConfig, plan: Plan) -> int:
    return config.length.max_steps or config.length.epochs * plan.steps_per_epoch


def next_pause(step: int, config: TrainingConfig, plan: Plan, total: int) -> int:
    """The next step after which the model is let go: the end of the epoch or the run, or a save or sample on the way."""
    ends = [total, (plan.epoch_of(step) + 1) * plan.steps_per_epoch]
    for every in (config.length.save_every_steps, config.length.sample_every_steps):
        if every:
            ends.append((step // every + 1) * every)
    return min(ends)


def save_kind(step: int, epoch: int, epoch_ends: bool, finished: bool, config: TrainingConfig) -> SaveKind | None:
    """Which file is written after ``step``; ``epoch`` is 1-based."""
    length = config.length
    if finished:
        return "last"
    if epoch_ends and length.save_every and epoch % length.save_every == 0:
        return "epoch"
    return "step" if length.save_every_steps and step % length.save_every_steps == 0 else None


def wants_sample(step: int, epoch: int, epoch_ends: bool, saved: bool, config: TrainingConfig) -> bool:
    """Whether pictures are drawn after ``step``: as asked for, and without any wish at every save."""
    length = config.length
    if not length.sample_every_steps and not length.sample_every:
        return saved
    by_step = bool(length.sample_every_steps) and step % length.sample_every_steps == 0
    return by_step or (epoch_ends and bool(length.sample_every) and epoch % length.sample_every == 0)


def measures(config: TrainingConfig, plan: Plan) -> bool:
    """Whether fixed losses are taken after an epoch: where pictures are held out, or somebody asks whether it is enough."""
    return bool(plan.validation) or config.length.when_enough != "off"


def rate_at(config: TrainingConfig, step: int, total: int) -> float:
    """Learning rate of a 0-based step."""
    optimizer = config.optimizer
    return optimizer.peak * schedules.factor(optimizer, step // optimizer.accumulate, optimizer.updates(total))


def computes_in_half(model: Denoiser) -> bool:
    """fp16 gradients underflow without loss scaling; bf16 and fp32 need none."""
    return model.compute_dtype == torch.float16
