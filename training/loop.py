"""Training loop. Read it from top to bottom: everything it calls is a formula, a file or the host."""

from __future__ import annotations

import operator
import time
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from functools import reduce

import torch
from torch import Tensor, nn

from .config import TrainingConfig
from .dataset.plan import Plan
from .errors import AtelierError, NotFinite, is_out_of_memory
from .evaluation.validation import validate
from .files import Unreadable
from .network.adapter import Adapter
from .optim import optimizers, schedules
from .optim.ema import Average
from .optim.flat_optimizer import FlatOptimizer
from .performance.memory import what_helps
from .performance.team import ALONE, Team
from .recorder import Callbacks, LostNumbers, Recorder
from .runs.followed import Followed
from .runs.record import SaveKind
from .runs.run import Run
from .runs.state import State
from .session import Session
from .step import StepInputs, computes_in_half, directions, loss_of
from .step_context import StepContext


def train(session: Session, run: Run | Followed, callbacks: Callbacks, team: Team = ALONE) -> None:
    """Trains the session's adapter until the configured length, from wherever ``run`` stopped.

    Noise, levels, crops, dropout and order are functions of (seed, step), so a resumed run sees what an uninterrupted one would
    have. At a pause (the end of an epoch, a save, a sample) losses are measured and files written with the model held as it is;
    for samples it is released, and then exactly as the graph knows it. They are drawn before the first step as well.

    Of several processes (``team``) each does its steps of an update, whose gradients are added up; what is decided, written and
    drawn is the first one's, whose ``run`` it is.
    """
    model, adapter, plan, config = session.model, session.adapter, session.plan, session.config
    total, width = session.total_steps, config.optimizer.accumulate
    updates = config.optimizer.updates(total)
    schedules.check(config.optimizer, updates)
    flat = adapter.flatten(model.compute_dtype, team.size)
    optimizer = FlatOptimizer(config.optimizer, flat)
    scaler = torch.amp.GradScaler(model.device.type, enabled=computes_in_half(model))
    average = Average(flat, config.ema_decay) if config.ema_decay else None

    def part() -> AbstractContextManager[None]:
        """What a process does by itself, after which all go on or all leave."""
        return team.together(callbacks.cancelled, callbacks.check)

    with part():
        state = run.load_state(callbacks.warn)
    state = team.told(state)
    step, due, sound = 0, False, True
    if state is not None:
        step, due = state.step, state.due or state.step >= total
        go_on(state, adapter, optimizer, scaler, average)
    team.equalise(flat.weights)
    recorder = Recorder(session, run, callbacks, step, due)

    def snapshot() -> None:
        # Gradients are not kept: a group of batches that is not complete is gone through again, and then what is due after it.
        done = step if step == total else step - step % width
        averages = average.state() if average else {}
        at = State(done, adapter.state(), optimizer.state(), scaler.state_dict(), averages, due and done == step)
        run.save_state(at)
        recorder.snapped = time.monotonic()

    @contextmanager
    def best_weights() -> Iterator[None]:
        """What is saved, sampled and measured: averages, where there are any."""
        with optimizers.averaged(optimizer.of_torch), average.swapped_in() if average else nullcontext():
            yield

    def learn_from(inputs: StepInputs) -> Tensor:
        """The loss of a batch, of a slider in each direction, whose gradient is added to those before it. Nothing of the graph
        outlives this call."""
        found = []
        try:
            with closing(directions(session, inputs)) as ways:
                for way in ways:  # each collected by itself, so that in half precision two add up as exactly as two batches
                    if session.text is None:  # else its answer is an input, and has begun the step
                        flat.begin()
                    loss = loss_of(session, way)
                    scaler.scale(loss / inputs.parts).backward()
                    flat.collect()
                    found.append(loss.detach())
        except BaseException:  # what is left of a recording that has failed could not be given back later
            adapter.end_step()
            flat.drop()
            raise
        return reduce(operator.add, found)

    def ready() -> None:
        callbacks.check()
        steps.acquire()

    def together_ready() -> None:
        """All processes that need each other for every pass are there, or all leave."""
        with part():
            ready()

    drawn = callbacks.sample is not None
    steps = StepContext(
        session, learn_from, callbacks.warn, callbacks.cancelled, between_samples(config, plan, total) if drawn else total, team
    )
    drawing = False
    try:
        with part():
            if state is None and callbacks.sample is not None:  # what the prompts give before anything is learnt
                drawing = True
                callbacks.sample(0, 0)
                drawing = False
                recorder.start_clock()
        with steps:
            finished = False
            while not finished:
                pause, commands = step if due else next_pause(step, config, plan, total), frozenset[str]()
                while step < pause:
                    together = team.round(step, pause, width)
                    if team.shards:
                        together_ready()
                    with team.together(callbacks.cancelled, callbacks.check, team.shards):
                        if not team.shards:
                            ready()
                        loss = steps.run(step + team.rank) if step + team.rank in together else None
                        if team.shards and loss is None:
                            steps.accompany(step)
                    if steps.shards is not None:
                        team.check_alike(steps.shards.asked())
                    complete = together.stop % width == 0 or together.stop == total
                    losses = team.added_up(flat.message, len(together), loss, complete)
                    factor = schedules.factor(config.optimizer, step // width, updates)
                    rate = optimizers.used_rate(optimizer.of_torch, config.optimizer.peak * factor)

                    if complete:
                        sound = False
                        with optimizer.gradients_in_place():
                            scaler.unscale_(optimizer.of_torch)
                            if config.optimizer.clip_norm > 0:
                                nn.utils.clip_grad_norm_(flat.parameters, config.optimizer.clip_norm)
                            optimizers.set_rate(optimizer.of_torch, factor)
                            scaler.step(optimizer.of_torch)
                        scaler.update()
                        flat.zero()
                        if config.network.scale_weight_norms > 0:
                            adapter.limit_norms(config.network.scale_weight_norms)
                        if average is not None:
                            average.update()

                    sound = True
                    for loss in losses:
                        step += 1
                        recorder.enter(step, loss, rate)
                    with part():
                        commands, ends = callbacks.commands(), False
                        if step == pause or (team.leads and (commands or recorder.due())):
                            recorder.report()
                            ends = recorder.diverged or bool(commands)
                            if not ends and step < pause and recorder.wants_snapshot():
                                snapshot()
                    if team.agreed(ends):
                        break

                due, enough = True, False
                epoch, epoch_ends = plan.epoch_of(step - 1) + 1, step % plan.steps_per_epoch == 0 or step == total
                with best_weights():
                    if team.shards and epoch_ends and measures(config, plan):  # all, since each needs the others' parts
                        together_ready()
                        with team.together(callbacks.cancelled, callbacks.check, needing=True):
                            validation = validate(session, epoch, together_ready)
                        with part():
                            enough = team.leads and recorder.judged(validation, step)
                    elif epoch_ends and measures(config, plan):
                        with part():
                            if team.leads:
                                steps.acquire()
                                validation = validate(session, epoch, callbacks.check)
                                enough = recorder.judged(validation, step)
                    finished = team.told(recorder.diverged or enough or "stop" in commands or step == total)
                    kind = save_kind(step, epoch, epoch_ends, finished, config) or ("step" if "save" in commands else None)
                    with part():
                        if kind is not None:
                            callbacks.save(kind, epoch, step)
                        # The last file gets a picture in any case: it is the one that is shown.
                        wanted = finished or "sample" in commands
                        wanted = wanted or wants_sample(step, epoch, epoch_ends, kind is not None, config)
                        if wanted and callbacks.sample is not None:
                            steps.release()
                            callbacks.sample(epoch, step)
                due = False
                with part():
                    snapshot()
                team.equalise(flat.weights)  # different GPUs round differently
    except LostNumbers as lost:
        raise AtelierError(lost_numbers(lost.step, lost.step <= width and not config.network.start_from)) from lost
    except BaseException as error:
        # Cancel, out of memory, a vanished file: what was learnt so far is sound, so it is kept.
        out_of_memory = is_out_of_memory(error)
        if out_of_memory:
            traceback.clear_frames(error.__traceback__)  # the failed step's tensors: saving needs a little room as well
        if step and sound and recorder.sound() and team.intact:  # the first waits for the device, which the second is about
            # NotFinite: in averages, or in what the optimizer keeps: the state before that stays. Unreadable: the record, which
            # is told when the run is opened again.
            with suppress(NotFinite, Unreadable):
                snapshot()
                saved = run.saved()
                if not saved or saved[-1].step != step:
                    with best_weights():
                        callbacks.save("moment", plan.epoch_of(step - 1) + 1, step)
        if out_of_memory:
            largest = max(len(batch.samples) for batch in plan.epoch_batches(0))
            advice = what_helps(config, steps.thrift, largest, model.device)
            raise AtelierError(no_memory(step, due or drawing, advice, callbacks.draws_apart)) from error
        raise


def go_on(
    state: State, adapter: Adapter, optimizer: FlatOptimizer, scaler: torch.amp.GradScaler, average: Average | None
) -> None:
    """Takes over what a run had learnt; its rates are today's. AtelierError where that doesn't fit."""
    rates = [group.get("initial_lr") for group in optimizer.of_torch.param_groups]
    try:
        adapter.load_state(state.adapter)
        optimizer.load_state(state.optimizer)
        scaler.load_state_dict(dict(state.scaler))
        if average is not None:
            average.load_state(state.average)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise AtelierError(
            f"state: what the run had learnt does not fit what is to be trained ({error}). Set when_interrupted to 'start over'."
        ) from error
    for group, rate in zip(optimizer.of_torch.param_groups, rates, strict=True):
        group["initial_lr"] = rate


def lost_numbers(step: int, untrained: bool) -> str:
    """What to do when a loss or a weight was no number after ``step``; ``untrained``: nothing had been learnt before."""
    if untrained:
        return (
            f"The numbers were NaN or infinite at step {step}, before anything was learnt, so the learning rate is not "
            "the cause, and what was encoded is sound: it is the model in its number format. Set precision to bf16 or fp32."
        )
    return (
        f"The numbers became NaN or infinite at step {step}. The files and the state saved before that are intact. Lower the "
        "learning rate, or set precision to bf16 or fp32, and queue again: with when_interrupted on 'continue with the changes' "
        "it goes on from that state."
    )


def no_memory(step: int, due: bool, advice: str, apart: bool = False) -> str:
    """What to do when the device had no memory left after ``step``; ``due``: while measuring, saving or sampling there, ``apart``
    with another network."""
    said = f"memory: the device ran out of memory after step {step}. What was saved is intact: "
    if due:
        other = ", connect a smaller preview_model, which is a network of its own, or leave it unconnected" if apart else ""
        return (
            f"{said}draw smaller previews (preview width and height) or none (preview steps 0){other}, and queue again to go on."
        )
    return (
        f"{said}close what else uses the device and queue again to go on. {advice} What changes the result as well (batch_size, "
        "resolution, precision) needs when_interrupted on 'continue with the changes' to go on from here."
    )


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


def between_samples(config: TrainingConfig, plan: Plan, total: int) -> int:
    """At most so many steps come between two samples, at which the model is let go."""
    length = config.length
    by_steps, by_epochs = length.sample_every_steps, length.sample_every
    if not by_steps and not by_epochs:
        by_steps, by_epochs = length.save_every_steps, length.save_every
    return min([total, *([by_steps] if by_steps else []), *([by_epochs * plan.steps_per_epoch] if by_epochs else [])])


def measures(config: TrainingConfig, plan: Plan) -> bool:
    """Whether fixed losses are taken after an epoch: where pictures are held out, or somebody asks whether it is enough."""
    return bool(plan.validation) or config.length.when_enough != "off"
