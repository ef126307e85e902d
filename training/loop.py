"""The training loop: read it from top to bottom. Everything it calls is a formula, a file or the host."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from . import loss as losses
from . import noise as noises
from .config import TrainingConfig
from .dataset.plan import Batch, Plan
from .divergence import Finding, Watch
from .ema import Average
from .encode import Encoded, size_conditioning
from .enough import Verdict, judge
from .errors import AtelierError, is_out_of_memory
from .holding import Holding
from .memory import what_helps
from .network.attach import Adapter
from .optim import optimizers, schedules
from .preservation import base_answer, preservation_loss
from .run import Run, SaveKind, State, finite
from .transfer import to_device, with_one_way_back
from .validation import Validation, validate


class Denoiser(Protocol):
    """The frozen model (``host.Model``)."""

    @property
    def prediction(self) -> noises.Prediction: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def compute_dtype(self) -> torch.dtype: ...
    def keep_away(self, share: float) -> None: ...
    def leave_room(self, needed: int | None) -> None: ...
    def hold(self, text: Any = None) -> Any: ...
    def blocks(self) -> list[nn.Module]: ...
    def weights(self) -> list[Tensor]: ...
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
    """Called before every step, and before every batch that is only looked at; raises when the person cancelled."""
    progress: Callable[[Progress], None] = lambda _: None
    """Called a few times a second at most."""
    save: Callable[[SaveKind, int, int], None] = lambda kind, epoch, step: None
    """Writes the LoRA file of a ``kind`` (``epoch``, ``step``, ``last``, ``moment``)."""
    sample: Callable[[int, int], None] | None = None
    """Draws the sample pictures; the model is let go for it. None: there are none."""
    measured: Callable[[Validation, Verdict], None] = lambda _validation, _verdict: None
    """Called with the fixed losses of an epoch and what follows from them."""
    warn: Callable[[str], None] = lambda _: None
    """Called once when the loss runs away, when compiling fails, and when a setting changes for want of memory."""
    wishes: Callable[[], frozenset[str]] = frozenset
    """Called after every step: what the person wants at once (``live.Wish``)."""
    cancelled: Callable[[BaseException], bool] = lambda _: False
    """Whether an error is the person's cancel."""
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
    (seed, step), so a resumed run sees what an uninterrupted one would have. At a pause (the end of an epoch, a save, a sample)
    losses are measured and files written with the model held as it is; for samples it is let go, and then exactly as the graph
    knows it.
    """
    total, width = total_steps(config, plan), config.optimizer.accumulate
    updates = config.optimizer.updates(total)
    schedules.check(config.optimizer, updates)
    parameters = list(adapter.parameters())
    groups = [(group["params"], config.optimizer.peak * group["rate"]) for group in adapter.parameter_groups()]
    optimizer = optimizers.build(config.optimizer, groups)
    scaler = torch.amp.GradScaler(model.device.type, enabled=computes_in_half(model))
    average = Average(adapter.state(), config.ema_decay) if config.ema_decay else None
    holding = Holding(model, text, layers, adapter, config, watcher.warn, watcher.cancelled)
    state = run.load_state()
    step, due, sound = 0, False, True
    if state is not None:
        step, due = state.step, state.due or state.step >= total
        adapter.load_state(state.adapter)
        optimizer.load_state_dict(dict(state.optimizer))
        scaler.load_state_dict(dict(state.scaler))
        if average is not None:
            average.load_state(state.average)
    book = Book(run, adapter, plan, config, watcher, step, total, due)

    def snapshot() -> None:
        # Gradients are not kept: a group of batches that is not complete is gone through again, and then what is due after it.
        done = step if step == total else step - step % width
        averages = average.state() if average else {}
        at = State(done, adapter.state(), optimizer.state_dict(), scaler.state_dict(), averages, due and done == step)
        run.save_state(at)
        book.snapped = time.monotonic()

    @contextmanager
    def best_weights() -> Iterator[None]:
        """What is saved, sampled and measured: averages, where there are any."""
        with optimizers.averaged(optimizer), average.swapped_in() if average else nullcontext():
            yield

    def learn_from(step: int) -> Tensor:
        """The loss of a batch, whose gradient is added to those before it. Nothing of the graph outlives this call."""
        adapter.begin_step(config.seed, step)
        loss = step_loss(model, adapter, levels, encoded, plan, plan.batch(step), config, step)
        scaler.scale(loss / min(width, total - (step - step % width))).backward()
        return loss.detach()

    try:
        with holding:
            finished = False
            while not finished:
                pause, wishes = step if due else next_pause(step, config, plan, total), frozenset[str]()
                while step < pause:
                    watcher.check()
                    holding.take()
                    loss = holding.attempt(partial(learn_from, step))
                    factor = schedules.factor(config.optimizer, step // width, updates)
                    rate = optimizers.used_rate(optimizer, config.optimizer.peak * factor)

                    if (step + 1) % width == 0 or step + 1 == total:
                        sound = False
                        scaler.unscale_(optimizer)
                        if config.optimizer.clip_norm > 0:
                            nn.utils.clip_grad_norm_(parameters, config.optimizer.clip_norm)
                        optimizers.set_rate(optimizer, factor)
                        scaler.step(optimizer)
                        scaler.update()
                        optimizer.zero_grad(set_to_none=True)
                        if config.network.scale_weight_norms > 0:
                            adapter.limit_norms(config.network.scale_weight_norms)
                        if average is not None:
                            average.update()

                    step += 1
                    sound = True
                    book.enter(step, loss, rate)
                    wishes = watcher.wishes()
                    if step == pause or wishes or book.due():
                        book.report()
                        if book.diverged or wishes:
                            break
                        if step < pause and book.wants_snapshot():
                            snapshot()

                due, enough = True, False
                epoch, epoch_ends = plan.epoch_of(step - 1) + 1, step % plan.steps_per_epoch == 0 or step == total
                with best_weights():
                    if epoch_ends and measures(config, plan):
                        holding.take()
                        validation = validate(model, adapter, encoded, plan, levels, epoch, watcher.check)
                        enough = book.judged(validation, step)
                    finished = book.diverged or enough or "stop" in wishes or step == total
                    kind = save_kind(step, epoch, epoch_ends, finished, config) or ("step" if "save" in wishes else None)
                    if kind is not None:
                        watcher.save(kind, epoch, step)
                    wanted = "sample" in wishes or wants_sample(step, epoch, epoch_ends, kind is not None, config)
                    if wanted and watcher.sample is not None:
                        holding.let_go()
                        watcher.sample(epoch, step)
                due = False
                snapshot()
    except LostNumbers as lost:
        raise AtelierError(
            f"The numbers became NaN or infinite at step {lost.step}. The files and the state saved before that are intact. "
            "Lower the learning rate, or set precision to bf16 or fp32, and queue again."
        ) from lost
    except BaseException as error:
        # Cancel, out of memory, a vanished file: what was learnt so far is sound, so it is kept.
        out_of_memory = is_out_of_memory(error)
        if out_of_memory:
            traceback.clear_frames(error.__traceback__)  # the failed step's tensors: saving needs a little room as well
        if step and sound and book.sound():
            snapshot()
            saved = run.saved()
            if not saved or saved[-1].step != step:
                with best_weights():
                    watcher.save("moment", plan.epoch_of(step - 1) + 1, step)
        if out_of_memory:
            advice = what_helps(holding.config, max(len(batch.samples) for batch in plan.epoch_batches(0)), model.device)
            raise AtelierError(no_memory(step, due, advice)) from error
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
    x0 = model.latents_in(to_device(latents, model.device))
    draw = noises.step_generator(config.seed, step)
    sigma = to_device(levels.draw(len(x0), (x0.shape[-2], x0.shape[-1]), draw), model.device)
    drawn = noises.make_noise(x0.shape, config.noise, draw)
    noise = to_device(drawn, model.device)
    entering = to_device(noises.perturbed(drawn, config.noise, draw), model.device)
    x = noises.noisy(model.prediction, x0, entering, sigma)
    sizes = [size_conditioning(shown) for shown in views]
    texts = with_one_way_back(encoded.conditionings(batch), model.device)
    conditions = [model.condition(text, x[i : i + 1], size) for i, (text, size) in enumerate(zip(texts, sizes, strict=True))]

    answer = model.predict(x, sigma, conditions)
    strength, prompt = config.loss.preservation, config.loss.preservation_prompt
    if strength and not prompt and subset.role == "regularisation":
        before = base_answer(model, adapter, x, sigma, conditions)
        return subset.loss_weight * strength * preservation_loss(answer, before)
    wanted = noises.target(model.prediction, x0, noise, sigma)
    mask = to_device(mask, model.device) if mask is not None else None
    loss = losses.batch_loss(answer, wanted, mask, subset.mask_floor, subset.loss_weight, model.prediction, sigma, config.loss)
    if strength and prompt:
        held = encoded.text(prompt)
        conditions = [model.condition(held, x[i : i + 1], size) for i, size in enumerate(sizes)]
        before = base_answer(model, adapter, x, sigma, conditions)
        loss = loss + strength * preservation_loss(model.predict(x, sigma, conditions), before)
    return loss


class Book:
    """What the loop writes down and tells. Losses stay on the device until it is time: reading one is a sync."""

    def __init__(
        self,
        run: Run,
        adapter: Adapter,
        plan: Plan,
        config: TrainingConfig,
        watcher: Watcher,
        step: int,
        total: int,
        due: bool = False,
    ):
        self._run, self._adapter, self._plan, self._config, self._watcher = run, adapter, plan, config, watcher
        self._step, self._total, self._pending = step, total, list[tuple[Tensor, float]]()
        self._clock, self._reported, self.snapped = Clock(), time.monotonic(), time.monotonic()
        self._watch, self._warned = Watch(), False
        finding = self._watch.feed(row["loss"] for row in run.cut_history(step))
        self.diverged = self._stops(finding)
        """Whether the run shall end because its loss runs away."""
        # What was measured at the very step whose end is still due is measured again.
        self._measured = [Validation(r["epoch"], r["held_out"], r["training"]) for r in run.cut_measured(step - due)]

    def enter(self, step: int, loss: Tensor, rate: float) -> None:
        self._step = step
        self._clock.steps += 1
        self._pending.append((loss, rate))

    def due(self) -> bool:
        return time.monotonic() - self._reported > self._watcher.interval

    def wants_snapshot(self) -> bool:
        return time.monotonic() - self.snapped > self._watcher.snapshot_interval

    def settle(self) -> list[dict[str, Any]]:
        """Reads the pending losses and writes them down; raises when a number is gone."""
        if not self._pending:
            return []
        values = torch.stack([loss for loss, _ in self._pending]).tolist()
        first = self._step - len(values) + 1
        rows = [
            {"step": s, "epoch": self._plan.epoch_of(s - 1) + 1, "loss": value, "rate": rate}
            for s, (value, (_, rate)) in enumerate(zip(values, self._pending, strict=True), start=first)
        ]
        bad = next((row for row in rows if not abs(row["loss"]) < float("inf")), None)
        if bad is not None or not finite(self._adapter.state()):
            raise LostNumbers(bad["step"] if bad else self._step)
        self._run.append_history(rows)
        self._pending.clear()
        return rows

    def sound(self) -> bool:
        """Writes the pending losses down; whether all numbers are still there, so that the state may be kept."""
        try:
            self.settle()
        except LostNumbers:
            return False
        return finite(self._adapter.state())

    def report(self) -> None:
        """Tells how it goes, and finds out whether the loss runs away."""
        rows = self.settle()
        speed, left = self._clock.report(self._total - self._step)
        mean = sum(row["loss"] for row in rows) / len(rows)
        epochs = self._plan.epochs_for(self._total)
        last = rows[-1]
        self._watcher.progress(Progress(self._step, self._total, last["epoch"], epochs, mean, last["rate"], speed, left))
        self._reported = time.monotonic()
        finding = self._watch.feed(row["loss"] for row in rows)
        if finding.alarm != "none" and not self._warned:
            self._watcher.warn(finding.why)
            self._warned = True
        self.diverged = self._stops(finding)

    def _stops(self, finding: Finding) -> bool:
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


def no_memory(step: int, due: bool, advice: str) -> str:
    """What to do when the device had no memory left after ``step``; ``due``: while measuring, saving or sampling there."""
    said = f"memory: the device ran out of memory after step {step}. What was saved is intact: "
    if due:
        return f"{said}draw smaller previews (preview width and height) or none (preview steps 0), and queue again to go on."
    return f"{said}close what else uses the device and queue again to go on. {advice}"


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


def computes_in_half(model: Denoiser) -> bool:
    """fp16 gradients underflow without loss scaling; bf16 and fp32 need none.

    Scaling waits for the device once a step to see whether a gradient overflowed, except with AdamW, which sees that itself.
    """
    return model.compute_dtype == torch.float16
