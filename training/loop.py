"""The training loop: read it from top to bottom. Everything it calls is a formula, a file or the host."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from . import loss as losses
from . import noise as noises
from .config import TrainingConfig
from .dataset.plan import Plan
from .encode import Encoded, size_conditioning
from .errors import AtelierError
from .network.attach import Adapter
from .optim import optimizers, schedules
from .run import Run, SaveKind, State, finite


class Denoiser(Protocol):
    """The frozen model (``host.Model``)."""

    @property
    def prediction(self) -> noises.Prediction: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def compute_dtype(self) -> torch.dtype: ...
    def hold(self) -> Any: ...
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
    """Writes the LoRA file of a ``kind`` (``epoch``, ``last``, ``moment``)."""
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

    Noise, levels, crops and order are functions of (seed, step), so a resumed run sees what an uninterrupted one would have.
    The model is held for one epoch at a time: between epochs it is exactly as the graph knows it, and pictures can be sampled.
    """
    total = total_steps(config, plan)
    epochs = plan.epochs_for(total)
    schedules.check(config.optimizer, total)
    optimizer = optimizers.build(config.optimizer, [(adapter.parameters(), config.optimizer.peak)])
    scaler = torch.amp.GradScaler(model.device.type, enabled=computes_in_half(model))
    state = run.load_state()
    step = 0
    if state is not None:
        step = state.step
        adapter.load_state(state.adapter)
        optimizer.load_state_dict(dict(state.optimizer))
        scaler.load_state_dict(dict(state.scaler))
    run.cut_history(step)

    pending: list[Tensor] = []  # losses on the device: reading one is a sync, so they are read together
    reported = snapped = time.monotonic()
    clock = Clock()

    def settle() -> list[dict[str, Any]]:
        """Reads the pending losses and writes them down; raises when a number is gone."""
        values = torch.stack(pending).tolist()
        rows = [
            {"step": s, "epoch": plan.epoch_of(s - 1) + 1, "loss": v, "rate": rate_at(config, s - 1, total)}
            for s, v in enumerate(values, start=step - len(values) + 1)
        ]
        pending.clear()
        bad = next((row for row in rows if not abs(row["loss"]) < float("inf")), None)
        if bad is not None or not finite(adapter.state()):
            raise LostNumbers(bad["step"] if bad else step)
        run.append_history(rows)
        return rows

    def report() -> None:
        nonlocal reported
        rows = settle()
        speed, left = clock.report(total - step)
        mean, last = sum(row["loss"] for row in rows) / len(rows), rows[-1]
        watcher.progress(Progress(step, total, last["epoch"], epochs, mean, optimizers.effective_rate(optimizer), speed, left))
        reported = time.monotonic()

    def snapshot() -> None:
        nonlocal snapped
        run.save_state(State(step, adapter.state(), optimizer.state_dict(), scaler.state_dict()))
        snapped = time.monotonic()

    try:
        while step < total:
            epoch = plan.epoch_of(step)
            end = min(total, (epoch + 1) * plan.steps_per_epoch)
            with model.hold(), adapter.attached(layers):
                while step < end:
                    watcher.check()
                    batch = plan.batch(step)
                    subset = plan.dataset.subsets[batch.subset].config
                    latents, views, mask = encoded.latents(batch)
                    x0 = model.latents_in(latents.to(model.device))
                    draw = noises.step_generator(config.seed, step)
                    sigma = levels.draw(len(x0), (x0.shape[-2], x0.shape[-1]), draw).to(model.device)
                    drawn = noises.make_noise(x0.shape, config.noise, draw)
                    noise, entering = drawn.to(model.device), noises.perturbed(drawn, config.noise, draw).to(model.device)
                    x = noises.noisy(model.prediction, x0, entering, sigma)
                    conditions = [
                        model.condition(text, x[i : i + 1], size_conditioning(shown))
                        for i, (text, shown) in enumerate(zip(encoded.conditionings(batch), views, strict=True))
                    ]

                    answer = model.predict(x, sigma, conditions)
                    wanted = noises.target(model.prediction, x0, noise, sigma)
                    mask = mask.to(model.device) if mask is not None else None
                    loss = losses.batch_loss(
                        answer, wanted, mask, subset.mask_floor, subset.loss_weight, model.prediction, sigma, config.loss
                    )
                    scaler.scale(loss).backward()

                    scaler.unscale_(optimizer)
                    if config.optimizer.clip_norm > 0:
                        nn.utils.clip_grad_norm_(adapter.parameters(), config.optimizer.clip_norm)
                    optimizers.set_rate(optimizer, schedules.factor(config.optimizer, step, total))
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad(set_to_none=True)

                    step += 1
                    clock.steps += 1
                    pending.append(loss.detach())
                    if step == end or time.monotonic() - reported > watcher.interval:
                        report()
                        if step < end and time.monotonic() - snapped > watcher.snapshot_interval:
                            snapshot()
            if step == total or (epoch + 1) % config.length.save_every == 0:
                with optimizers.averaged(optimizer):
                    watcher.save("last" if step == total else "epoch", epoch + 1, step)
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
                if pending:
                    settle()
            snapshot()
            if step % plan.steps_per_epoch or not run.saved() or run.saved()[-1].step != step:
                with optimizers.averaged(optimizer):
                    watcher.save("moment", plan.epoch_of(step - 1) + 1, step)
        raise


class LostNumbers(Exception):
    """A loss or a weight is not finite."""

    def __init__(self, step: int):
        super().__init__(f"step {step}")
        self.step = step


def total_steps(config: TrainingConfig, plan: Plan) -> int:
    return config.length.max_steps or config.length.epochs * plan.steps_per_epoch


def rate_at(config: TrainingConfig, step: int, total: int) -> float:
    """Learning rate of a 0-based step."""
    return config.optimizer.peak * schedules.factor(config.optimizer, step, total)


def computes_in_half(model: Denoiser) -> bool:
    """fp16 gradients underflow without loss scaling; bf16 and fp32 need none."""
    return model.compute_dtype == torch.float16
