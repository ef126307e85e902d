"""The work of a job: encoding, the forecast, the loop, and the pace that is kept for the next one."""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress

from .. import compatibility, host
from ..dataset.cache import CACHE_LIMIT, TensorCache
from ..dataset.encoded import TowerAnswers, Work, work_of
from ..dataset.samples import counted
from ..errors import AtelierError
from ..estimate import preflight, step_time
from ..loop import train
from ..network.adapter import Adapter
from ..network.scope import TEXT
from ..performance.team import ALONE, Team
from ..prompting import Prompter
from ..recorder import Callbacks
from ..runs import live
from ..runs.account import Account
from ..runs.followed import Followed
from ..runs.run import Run
from ..session import Session
from .drawing import drawn_with
from .saver import Saver
from .telling import Teller, foretell, remark_on_numbers, warn_of_pairs, warn_of_towers
from .wanted import Job


def train_job(job: Job, run: Run, now: live.Live, account: Account, team: Team = ALONE) -> None:
    """Trains the run to its end, alone or as the first of several processes (``follow_job``: the others)."""
    encoded, told = job.encoded, job.prompter()
    with _part(team):
        warn_of_pairs(job, run.name, account)
        adapter = job.adapter()
        kept = _rests(job, adapter) if job.learns_text else ()
        _encode_share(job, bool(kept), team)
    with _part(team):
        _encode(job, bool(kept), told)
        if kept:
            awake = job.text.settle()
            if rest := [name for name in kept if name not in awake]:
                job.show(f"text encoder: {' and '.join(rest)} at rest: every text has been read, and nothing of it learns")
            if awake:
                warn_of_towers(job, run.name, awake, account)
        if job.learns_text:
            encoded.live = job.text.encode_live
        layers = {name: job.layers[name] for name in adapter.branches}
        foretell(job, run.name, adapter, account)
        advance = host.progress(job.total)
        teller = Teller(job, run.name, now, account, advance)
        drawn = drawn_with(job.model, job.drawn, layers)
        saver = Saver(job, run, adapter, layers, drawn, told, advance, now, teller.warn)
        callbacks = Callbacks(
            check=host.check_interrupt, progress=teller.progress, save=saver.save,
            sample=saver.sample if job.preview.steps else None, draws_apart=drawn.model.base is not job.model.base,
            measured=teller.measured, warn=teller.warn, commands=now.pop_commands, cancelled=host.is_interrupt,
        )  # fmt: skip
        remark_on_numbers(job, account, teller)
        text, begun = job.text if job.learns_text else None, run.state_step()
        name = host.device_name(job.model.device)
        like = step_time.circumstances(job.config, job.plan, job.inputs.models["model"], name, encoded.shows)
        if team.size > 1:
            like["processes"] = f"{team.size}{' sharded' if team.shards else ''}"
        pace = step_time.earlier(host.runs_folder(), like)
        session = Session(
            job.model, text, layers, adapter, job.levels, encoded, job.plan, job.config, shards=team.size if team.shards else 1
        )  # fmt: skip
        try:
            session = preflight.fit(session, teller.count, teller.warn, times=pace is None)
        except Exception as error:
            if (said := compatibility.told(error, job.model)) is not None:
                raise said from error
            raise
        alone = team.size == 1  # else a timed pass of one says nothing of them all
        expected = pace or (step_time.expected(host.runs_folder(), like, session) if alone else None)
        if expected is not None and job.total > begun:
            teller.count(expected.sentence(job.total - begun))
    try:
        train(session, run, callbacks, team)
    finally:
        last = teller.latest
        if last and (seen := step_time.kept(1 / max(1e-9, last.steps_per_second), last.step - begun, like)):
            with suppress(OSError, AtelierError):  # a full disk and a damaged record are told where the run is kept
                run.write(pace=seen)
    saved = run.saved()
    end = f", the last at step {saved[-1].step} of {job.total}" if saved else ""
    job.show(f"{run.name}: {counted(len(saved), 'file')} saved{end}")


def follow_job(job: Job, team: Team) -> None:
    """This process's part of what another one trains."""
    with _part(team):
        adapter = job.adapter()
        kept = _rests(job, adapter) if job.learns_text else ()
        _encode_share(job, bool(kept), team)
    with _part(team):
        _encode(job, bool(kept))
        if kept:
            job.text.settle()
        if job.learns_text:
            job.encoded.live = job.text.encode_live
        layers = {name: job.layers[name] for name in adapter.branches}
        text = job.text if job.learns_text else None
        session = Session(
            job.model, text, layers, adapter, job.levels, job.encoded, job.plan, job.config,
            shards=team.size if team.shards else 1,
        )  # fmt: skip
        session = preflight.fit(session, job.show, job.show, times=False)
    train(session, Followed(), Callbacks(check=host.check_interrupt, cancelled=host.is_interrupt), team)


def _part(team: Team) -> AbstractContextManager[None]:
    """What a process does by itself, after which all go on or all leave."""
    return team.together(host.is_interrupt, host.check_interrupt)


def _rests(job: Job, adapter: Adapter) -> tuple[str, ...]:
    """The towers of the text encoder that don't learn, which read every text once."""
    learning = [name.removeprefix(TEXT) for name in adapter.branches if name.startswith(TEXT)]
    answers = TowerAnswers(TensorCache(host.cache_folder(), CACHE_LIMIT), job.encoded.text_identity)
    return job.text.learns(learning, answers)


def _encode_share(job: Job, in_part: bool, team: Team) -> None:
    """This process's part, of several, of what is encoded, into the cache that they share."""
    if team.size > 1:
        work = _work(job, in_part)
        job.encoded.prepare(work.share(team.share), host.progress(len(work)))


def _encode(job: Job, in_part: bool, told: Prompter | None = None) -> None:
    """Pictures, captions, and what the samples are ``told``: all while the encoders are at hand.

    Several processes have had a part each; then each has what it lacks, which is little.
    """
    work = _work(job, in_part)
    count = len(work)
    advance = host.progress(count)

    def step(done: int) -> None:
        advance(done)
        if done % 10 == 0 or done == count:
            job.show(f"preparing pictures and captions: {done} of {count}")

    job.encoded.prepare(work, step)
    if told is None:
        return
    for number, prompt in enumerate(job.preview.prompts(job.dataset) if job.preview.steps else ()):
        if job.learns_text:
            place = told.controls.place(number)
            told.controls.latents(place)  # while there is room for the VAE
            if in_part:
                job.text.read_ahead(prompt, told.controls.seen(place))
                job.text.read_ahead(job.preview.negative, told.controls.seen(place))
        else:
            told(prompt, number)
            told(job.preview.negative, number)


def _work(job: Job, in_part: bool) -> Work:
    """What is encoded before the first step: no captions if their encoder changes in every step, or ``in_part`` if some of it
    doesn't."""
    held = [job.config.loss.held_at] if job.config.loss.held_at is not None else []
    # Both ends of a slider are among its pictures' captions.
    work = work_of(job.plan, job.plan.epochs_for(job.total), job.encoded.shows, held)
    return work.reading(held, captions=not job.learns_text, in_part=in_part)
