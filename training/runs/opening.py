"""Opening a run: whether what is queued goes on with a run that is there, or begins one, and why.

A run goes on if nothing has changed that decides its LoRA, and it may become longer where its rates so far are those of the
longer run. Where pictures or captions have changed, or the rates would have been others, the person is asked: that may be a
mended caption, or another experiment. Any other change begins a run of its own beside the old one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..dataset.samples import counted
from ..errors import AtelierError
from ..files import read_json
from .inputs import Difference, Inputs, compare, decisive_of
from .layout import INPUTS_FILE
from .owner import Owner
from .run import Run

LARGEST = 1 << 30
"""Bytes of an inputs.json, which has a line of some 150 for every picture."""
WHENS = ("continue", "continue with the changes", "start over")
"""What happens with an earlier run of the same recipe."""
EARLIER = f"by an earlier version, or its {INPUTS_FILE} is gone: its pictures and captions are not known"
SameRates = Callable[[int, int, int], bool]
"""(steps of the run so far, of the run from now on, steps that are done) -> whether what is done had the same rates."""


@dataclass(frozen=True)
class Opened:
    """The run that is trained, owned by this process, and why it is this one."""

    run: Run
    owner: Owner
    finished: bool
    """There is nothing to train: it is handed on as it is."""
    why: str
    """A sentence for the person."""
    changes: str = ""
    """What has changed since the run began, if it goes on all the same."""

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.owner.release()


@dataclass(frozen=True)
class _Found:
    """A run that is there, seen beside what is queued."""

    run: Run = field(compare=False)
    change: Difference
    step: int
    """Of its state; 0: there is none."""
    total: int
    """Steps that it was to have."""
    end: int
    """Step of the last LoRA file of a finished run; 0: it is not finished."""
    unknown: bool = False
    """Begun by an earlier version, which did not note its pictures."""
    foreign: bool = False
    """Of another recipe, whose own name ends in a number."""
    damaged: str = ""
    """What is wrong with its files."""
    gone: str = ""
    """Name of the last LoRA file of a run that was finished, where that is not in its place any more."""
    kept: bool = False
    """Whether there is a state, of whatever step."""
    due: bool = False
    """Whether it is finished but for what belongs to its last step, such as samples."""

    @property
    def finished(self) -> bool:
        return self.end > 0

    @property
    def usable(self) -> bool:
        return not self.foreign and not self.damaged


def open_run(
    name: str, inputs: Inputs, total: int, when: str, runs: Path, loras: Path, *, same_rates: SameRates, width: int = 1
) -> Opened:
    """The run for a recipe of this name, owned by this process; ``width``: batches to a step of the optimizer.

    AtelierError with a question where the person has to choose, and while another process trains the run.
    """
    if when not in WHENS:
        raise AtelierError(f"when_interrupted: {when!r} is none of {', '.join(WHENS)}.")
    while True:
        found = [_look(name, run, inputs) for run in _runs_of(name, runs, loras)]
        opened = _choose(name, found, total, when, runs, loras, same_rates, width)
        opened.owner.take()
        try:
            # Somebody may have trained it between the look and the lock.
            if [_look(name, run, inputs) for run in _runs_of(name, runs, loras)] != found:
                opened.owner.release()
                continue
            opened.run.sweep()
            return opened
        except BaseException:
            opened.owner.release()
            raise


def _runs_of(name: str, runs: Path, loras: Path) -> Iterator[Run]:
    """The runs of the recipe called ``name``, the newest in front: ``ink-3``, ``ink-2``, ``ink``."""
    pattern = re.compile(rf"{re.escape(name)}(?:-(\d{{1,9}}))?")
    numbers = {}
    for folder in [*(runs.iterdir() if runs.is_dir() else ()), *(loras.iterdir() if loras.is_dir() else ())]:
        match = pattern.fullmatch(folder.name)
        if match and folder.is_dir() and (match[1] is None or int(match[1]) > 1):
            numbers[int(match[1] or 1)] = folder.name
    for number in sorted(numbers, reverse=True):
        run = Run(numbers[number], runs, loras)
        if run.is_there():
            yield run


def _look(name: str, run: Run, inputs: Inputs) -> _Found:
    try:
        record = run.record()
        if record.recipe not in (None, name):
            return _Found(run, Difference(settings=("it is another recipe's",)), 0, 0, 0, foreign=True)
        run.check_places()
        finished = run.finished()
        step, end = run.state_step(), run.saved()[-1].step if finished else 0
        before = record.total or 0
        ended = record.saved[-1]["file"] if record.saved and record.saved[-1]["kind"] == "last" else ""
        kept = run.has_state()
        due = bool(end) and step == end == before and run.state_is_due()
        more: dict[str, Any] = {"kept": kept, "gone": "" if finished or kept else ended, "due": due}
        try:
            stored = Inputs.read(read_json(run.folder / INPUTS_FILE, LARGEST))
        except FileNotFoundError:
            config = record.values.get("config")
            settings = decisive_of(config) if isinstance(config, dict) else None
            if settings is None:
                return _Found(run, Difference(settings=("its folder holds files of another run",)), step, before, end, **more)
            change = compare(Inputs(settings, inputs.subsets, inputs.models), inputs)
            return _Found(run, change, step, before, end, unknown=True, **more)
        return _Found(run, compare(stored, inputs), step, before, end, **more)
    except AtelierError as error:
        return _Found(run, Difference(settings=("its files are damaged",)), 0, 0, 0, damaged=str(error))


def _choose(
    name: str, known: list[_Found], total: int, when: str, runs: Path, loras: Path, same_rates: SameRates, width: int
) -> Opened:
    """What is opened; nothing is touched yet."""

    def on(one: _Found, why: str, finished: bool = False, changes: str = "") -> Opened:
        return Opened(one.run, Owner(one.run.folder), finished, f"{one.run.name}: {why}", changes)

    def new(why: str) -> Opened:
        taken = {one.run.name for one in known}
        free = next(n for n in (name, *(f"{name}-{i}" for i in range(2, len(taken) + 3))) if n not in taken)
        run = Run(free, runs, loras)
        return Opened(run, Owner(run.folder), False, f"{free}: begins, since {why}")

    if when == "start over":
        return new("'start over' is chosen")
    questions = []
    for one in known:
        if one.change or one.unknown:
            continue
        place = f"step {one.step} of {total}"
        if one.finished and total == one.total and one.due:
            return on(one, f"goes on after {place}, since what belongs to its end was not done")
        if one.finished and total == one.total:
            ended_early = one.step > 0 and one.end < total
            if ended_early and when != "continue":
                return on(one, f"goes on from {place}, where it was ended")
            early = f"; it was ended at step {one.end} of {total}, and 'continue with the changes' goes on from there"
            return on(one, f"is finished and handed on as it is{early if ended_early else ''}", finished=True)
        if one.gone and total >= one.total:
            raise AtelierError(_gone(one))
        if one.step == 0 and not one.gone and (not one.run.lora_files() or (one.kept and total == one.total)):
            return on(one, "begins again, since no state of it was kept")
        if one.step and total == one.total:
            return on(one, f"goes on from {place}")
        if one.finished and one.step == 0 and total > one.end:
            questions.append((one, _without_state(one, total)))
        if total < one.step or one.step == 0:
            continue
        even = one.step % width == 0 or not one.finished
        if one.total and even and same_rates(one.total, total, one.step):
            return on(one, f"goes on from {place} (it was to have {one.total})")
        questions.append((one, _rates(one, total, even)))
    for one in known:
        if one.step == 0 and not one.run.lora_files() and one.usable and not one.gone:
            return on(one, "begins, since it had not come to its first save")
    for one in known:
        if not one.usable or one.change.others or total < max(one.step, one.end):
            continue
        if one.step == 0:
            if (one.finished or one.gone) and (one.unknown or (one.change.pictures and one.change.related)):
                questions.append((one, _without_state(one, total)))
        elif one.unknown:
            questions.append((one, f"name: {one.run.name} was begun {EARLIER}."))
        elif one.change.pictures and one.change.related:
            questions.append((one, f"dataset: since {one.run.name} was trained up to step {one.step}: {one.change}."))
    if when == "continue with the changes":
        return _with_changes(known, total, on, new)
    if questions:
        one, said = questions[0]
        raise AtelierError(said if one.step == 0 else f"{said} {_choices(one, total)}")
    return new(_why_new(name, known, total))


def _with_changes(known: list[_Found], total: int, on: Callable[..., Opened], new: Callable[[str], Opened]) -> Opened:
    """The run that differs least and whose state can go on; of those alike the newest."""
    sound = [one for one in known if one.usable]
    able = [one for one in sound if 0 < one.step <= total - one.finished and not one.change.unfit]
    ended = [one for one in sound if one.finished and one.step == 0]

    def far(one: _Found) -> tuple[int, bool, bool, bool]:
        return len(one.change.others), not one.change.related, bool(one.change.pictures), one not in able

    if able:
        one = min([*able, *ended], key=far)
        if one in ended:  # not an older one that has less to do with it
            raise AtelierError(_without_state(one, total))
        parts = [str(one.change)] if one.change else []
        if one.total and one.total != total:
            parts.append(f"{counted(total, 'step')} instead of {one.total}")
        if one.unknown:
            parts.append(f"begun {EARLIER}")
        said = "; ".join(parts) or "nothing"
        return on(one, f"goes on from step {one.step} of {total} with what has changed: {said}", changes=said)
    if not sound:
        return new("there is no run of this name to go on with")
    one = sound[0]
    if one.finished and one.step == 0:
        raise AtelierError(_without_state(one, total))
    if one.step == 0:
        why = "no state of it was kept"
    elif one.change.unfit:
        why = f"{'; '.join(one.change.unfit)}, with which what it has learnt does not fit together"
    else:
        why = f"it has {counted(one.step, 'step')} already, and {total} are asked for. Raise epochs or steps"
    raise AtelierError(f"when_interrupted: {one.run.name} cannot go on with the changes: {why}. Or choose 'start over'.")


def _rates(one: _Found, total: int, even: bool) -> str:
    if not one.total:
        return (
            f"length: {one.run.name} does not say how many steps it was to have, nor therefore whether its rates were the same."
        )
    if not even:
        return (
            f"accumulate: {one.run.name} has ended within a group of batches, so {counted(total, 'step')} "
            "would not be the longer run."
        )
    return (
        f"schedule: {one.run.name} was trained up to step {one.step} for {counted(one.total, 'step')}; in a run of {total} the "
        "learning rates of these steps would have been others."
    )


def _choices(one: _Found, total: int) -> str:
    longer = "" if one.step < total or not one.finished else "raise epochs or max_steps and "
    return (
        f"To go on from step {one.step} with what is queued now (its files stay), {longer}set when_interrupted of Train "
        "LoRA to 'continue with the changes'; to begin a new run beside it, set that to 'start over'."
    )


def _without_state(one: _Found, total: int) -> str:
    kept = "what it needs to go on was not kept (keep_state of Train LoRA)"
    if one.unknown:
        said = f"name: {one.run.name} was begun {EARLIER}, and {kept}."
    elif one.change:
        said = f"{'dataset' if one.change.pictures else 'name'}: since {one.run.name} was trained: {one.change}; and {kept}."
    else:
        said = f"length: {one.run.name} ended at step {one.end}, and {kept}, so it cannot become longer."
    return (
        f"{said} To train {counted(total, 'step')} from the beginning in a run beside it, set when_interrupted to 'start over'. "
        "To train on from what it has learnt, with a fresh optimizer, choose its last file in start_from of Configure LoRA."
    )


def _gone(one: _Found) -> str:
    return (
        f"name: {one.run.name} was finished, but {one.gone} is gone from {one.run.lora_folder}, and no state of it was kept. Put "
        "the file back there and queue again, or set when_interrupted to 'start over' to train from the beginning in a run "
        "beside it."
    )


def _why_new(name: str, known: list[_Found], total: int) -> str:
    own = [one for one in known if not one.foreign]
    if not own:
        taken = any(one.run.name == name for one in known)
        return f"{name} is a run of another recipe" if taken else "there is none of this name"
    # The newest if it cannot be used, else the one that is most like it.
    one = own[0] if own[0].damaged else min((one for one in own if not one.damaged), key=lambda one: len(one.change.others))
    if one.damaged:
        return f"{one.run.name} is set aside: {one.damaged}"
    if one.change.others:
        return f"{one.run.name} is another: {'; '.join(one.change.others[:4])}"
    if total < one.step:
        return f"{one.run.name} is longer ({counted(one.step, 'step')})"
    if not one.change:
        other = f", which is of another length ({counted(one.total, 'step')})," if one.total != total else ""
        return f"of {one.run.name}{other} no state was kept, and its files stay"
    return f"{one.run.name} was trained on other pictures"
