"""From what is wired into the node to LoRA files on disk: a job is put together, its run opened, and trained or handed on."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial

import torch

from .. import compatibility, host
from ..config import TrainingConfig, to_dict
from ..dataset import precomputed
from ..dataset.augment import trained_captions, trained_pictures
from ..dataset.cache import CACHE_LIMIT, TensorCache
from ..dataset.encoded import EncodedDataset
from ..dataset.plan import Plan
from ..dataset.renewed import unlike
from ..dataset.samples import Dataset, some
from ..dataset.scan import refresh_captions
from ..errors import AtelierError
from ..families import family_named
from ..files import read_tensors
from ..network.scope import adaptable_layers, trained_layers
from ..objective.loss import check_weighting
from ..optim import optimizers
from ..performance import memory
from ..performance.team import TURNS, Team
from ..performance.team import team as team_here
from ..prompting import controls_of, is_pair, shows_of
from ..runs import live
from ..runs.account import Account, settings_of
from ..runs.card import NO_CARD, Card
from ..runs.card import WIDGET as CARD_WIDGET
from ..runs.inputs import Inputs, compare
from ..runs.metadata import is_whole
from ..runs.opening import Opened
from ..runs.run import SAVED_LORAS, Epochs, Run
from ..session import total_steps
from ..tensors.precision import compute_dtype
from . import drawing
from .checks import check_clips, check_dataset, check_sharding, check_sizes, check_texts
from .telling import of_models
from .training import follow_job, train_job
from .wanted import NOTHING_NAMED, Job, Named, Preview, Trained

log = logging.getLogger("lora-atelier")
SAVING = ("save_every", "save_every_steps", "keep_last")
"""Settings of a run's length that decide which files it leaves."""
EVENT = "lora_atelier.run"
"""The message to the pages that tells of a run; its data is ``live.Live.status``."""


@TURNS.training()
@torch.inference_mode(False)  # a graph runs in inference mode, where nothing that can learn may be made
def run_training(
    model: host.Model,
    text: host.TextEncoder,
    codec: host.PictureCodec,
    dataset: Dataset,
    config: TrainingConfig,
    *,
    preview: Preview,
    when: str = "continue",
    graph: Mapping[str, str],
    show: Callable[[str], None] = lambda _: None,
    node: str = "",
    named: Named = NOTHING_NAMED,
    preview_model: host.Model | None = None,
    card: Card = NO_CARD,
    thumbnail: int = 0,
    keep_state: bool = True,
) -> Trained:
    """Trains, or goes on with, the run that these inputs describe. ``show`` receives a line of status for the node ``node``;
    ``named``, ``card``, ``thumbnail``, ``keep_state``: as in ``Job``. ``preview_model`` draws the samples; None: the trained.

    Raises AtelierError for anything the person can mend, and the host's interrupt when cancelled; both after saving.
    """
    team = team_here()
    TURNS.begin(node, host.is_interrupt, host.check_interrupt)
    config = config.shared_by(team.size)
    with team.together(host.is_interrupt, host.check_interrupt, learns=False):
        here = refresh_captions(dataset) if team.leads else dataset
    dataset = team.told(here)
    text = text.reading(config.text.syntax)
    model.check()
    compatibility.check(model, text, codec)
    predicts = ""
    through = drawing.notes_of_wires(preview, preview_model or model)
    if preview_model is not None:  # before the model's file is read again, as some hosts do for a training
        drawing.check_kind(model, preview_model, config)
        predicts = drawing.note(model, preview_model)
        if model.draws_alike(preview_model):
            preview_model = None  # copies of their own the host would take for others, and move all weights at each pause
    check_dataset(dataset, config)
    precomputed.check(dataset, model.latent_channels, model.frames)
    check_clips(dataset, model, codec)
    check_sizes(dataset, model, codec)
    check_weighting(model.prediction, config.loss)
    optimizers.check(config.optimizer, model.device.type)
    model = model.for_training(compute_dtype(config.precision, model.device), config.base_weights, config.guidance)
    check_sharding(model, config, team)
    learns_text = config.text.encoders != "none"
    if learns_text:
        text.check()
        text = text.for_training()
    try:
        layers, names = adaptable_layers(model, text if learns_text else None)
        pairs = any(map(is_pair, dataset.samples))
        shows = shows_of(family_named(model.family), text, pairs)
        # Refuses what the model lacks before anything is encoded.
        trained = trained_layers(layers, config, family_named(model.family), shows.shown)
        lacking = drawing.check(model, preview_model, trained) if preview_model is not None else ""
        plan = Plan(dataset, config.seed)
        encoded = EncodedDataset(dataset, config.seed, codec, text, TensorCache(host.cache_folder(), CACHE_LIMIT), shows)
        job = Job(
            model, text, codec, dataset, config, plan, total_steps(config, plan), layers, names, preview, graph, show, encoded,
            card, thumbnail, keep_state, preview_model, named,
        )  # fmt: skip
        check_texts(job)
        with team.together(host.is_interrupt, host.check_interrupt, learns=False):
            opening = job.open(when) if team.leads else None
        if opening is None:
            return _followed(job, team)
        with opening as opened:
            return _trained(job, opened, node, (lacking, predicts, *through), team)
    finally:
        model.retire()
        text.retire()


def _followed(job: Job, team: Team) -> Trained:
    """What another process trains, and hands on."""
    nothing: dict[str, object] = {}
    with team.together(host.is_interrupt, host.check_interrupt, learns=False):  # the first one looks at the run
        pass
    theirs, finished = team.told((nothing, False))
    own = _decides(job)
    with team.together(host.is_interrupt, host.check_interrupt, learns=False):
        if others := [name for name, value in own.items() if theirs.get(name) != value]:
            told = _unlike_settings(theirs.get("settings"), job) or ", ".join(others)
            raise AtelierError(
                f"The processes would train different things ({told}). Give every machine the same files, and start the same "
                "command there."
            )
        if files := unlike(job.dataset, host.check_interrupt):
            raise AtelierError(
                f"dataset: not here as the first process has it: {some(files)}. Give every machine the same pictures in the same "
                "places, and captions and masks with them."
            )
    try:
        if not finished:
            with team.training():
                follow_job(job, team)
    except AtelierError as error:
        if not (job.config.varied and team.goes_on_after(error)):
            raise
        log.error("%s: %s", job.config.run_name, error)
    return Trained(Epochs(job.config.run_name, job.model.family, (), (), ()), {}, [])


def _unlike_settings(theirs: object, job: Job) -> str:
    """How the first process's inputs, as they are stored, differ from this one's."""
    try:
        said = str(compare(job.inputs, Inputs.read(json.loads(str(theirs)))))
        return said.replace(" now and was ", " in the first process and here ")
    except (ValueError, AtelierError):
        return ""


def _decides(job: Job) -> dict[str, object]:
    """What must be alike in processes that train together."""
    return {**job.inputs.models, "settings": job.inputs.stored(), "name": job.config.run_name, "steps": job.total}


def _trained(job: Job, opened: Opened, node: str, of_drawing: tuple[str, ...], team: Team) -> Trained:
    """What the opened run ends in: by training, or as it was if it is finished and its files are whole. ``of_drawing``: notes on
    the model that draws."""
    run, config, failed = opened.run, job.config, ""
    with team.together(host.is_interrupt, host.check_interrupt, learns=False):
        finished, why = _looked_at(job, opened)
    facts = {"total": job.total, "steps_per_epoch": job.plan.steps_per_epoch}
    now = live.Live(
        run.name, partial(host.send, EVENT), node=node, recipe=config.name, samples=job.preview.steps > 0, opening=why, **facts
    )
    job.show(why)
    log.info("%s", why)
    team.told((_decides(job), finished))
    with team.together(host.is_interrupt, host.check_interrupt, learns=False):
        pass
    if finished:
        run.write(opening=why)
        now.update(phase="finished")
    else:
        if any(saved.step < job.total for saved in run.saved()[-1:]):  # else only what belongs to its end is left to do
            run.keep_end()
        if not run.has_state():
            run.drop_samples()
        run.write_inputs(job.inputs.stored())
        done = run.state_step()
        changes = [row for row in run.record().changes if row["step"] <= done] if done else []
        changes += [{"step": done, "changed": opened.changes}] if opened.changes else []
        run.write(
            config=to_dict(config), card=asdict(job.card), dataset=job.dataset.describe(), family=job.model.family, failed="",
            opening=why, changes=changes, **facts,
        )  # fmt: skip
        account = Account(run, settings_of(config))
        account.add("notes", *filter(None, (*of_drawing, *of_models(job))))
        try:
            with live.entered(now, host.is_interrupt), _noted(run), team.training():
                train_job(job, run, now, account, team)
                if not job.keep_state:
                    _drop_state(job, run, account)
        except AtelierError as error:
            if not (config.varied and team.goes_on_after(error)):  # several processes go on or end together
                raise
            # One value may be too much for the memory or break the training; the others of the sweep are trained all the same.
            failed = str(error)
            log.error("%s: %s", run.name, failed)
            job.show(f"{run.name}: {failed}")
            SAVED_LORAS.incomplete()
    saved = run.saved()
    if not saved and not failed:
        raise AtelierError(f"{run.name}: its files are gone from {run.lora_folder}. Put them back there and queue again.")
    files = tuple(s for s in saved if s.kind != "moment")
    SAVED_LORAS.add(s.path for s in files)
    return Trained(
        epochs=Epochs(
            run.name,
            job.model.family,
            files,
            trained_captions(job.dataset),
            trained_pictures(job.dataset),
            controls_of(job.dataset, 1),
            job.config.name,
            job.config.varied,
            failed,
        ),
        tensors=read_tensors(saved[-1].path, "put it back and queue again") if saved else {},
        losses=run.losses(),
    )


def _looked_at(job: Job, opened: Opened) -> tuple[bool, str]:
    """(whether the run is finished and its files are whole, why it goes on as it does)."""
    run, finished, why = opened.run, opened.finished, opened.why
    if finished and (damaged := run.set_damaged_aside()):
        why = f"{why}; {', '.join(damaged)} {'was' if len(damaged) == 1 else 'were'} damaged and set aside"
        finished = run.finished()
        if not finished and run.state_step() == 0:
            told = f"{', '.join(damaged)} in {run.lora_folder} {'does' if len(damaged) == 1 else 'do'} not hold what was written"
            raise AtelierError(
                f"{run.name}: {told}, and was set aside there as .damaged. No state of the run was kept. Put a sound copy back "
                "and queue again, or set when_interrupted to 'start over' to train from the beginning in a run beside it."
            )
    if finished and (others := _saved_otherwise(run.record().values, job)):
        why = f"{why}; {', '.join(others)} would have counted while it was trained, so its files stay as they were saved"
    if finished and (gone := run.saved()[-1].step - len(run.losses())) > 0:
        why = f"{why}; the losses of {gone} of its steps are gone from its history"
    return finished, why


def _drop_state(job: Job, run: Run, account: Account) -> None:
    """Deletes what a run needs to go on, once its last file is on the disk and holds what was written."""
    last = next(iter(run.saved()[-1:]), None)
    if last is None or last.kind != "last" or last.step < job.total:
        account.add("notes", "It was ended before its last step, so what it needs to go on is kept.")
    elif not is_whole(last.path):
        account.add("warnings", f"{last.path.name} does not hold what was written, so what the run needs to go on is kept.")
    else:
        try:
            freed = memory.size_text(run.drop_state())
        except OSError as error:  # the LoRA is there: a file that another program holds fails nothing
            account.add(
                "warnings",
                f"What the run needed to go on could not be deleted ({error.filename}: {error.strerror}). Delete it in Runs … of "
                "Train LoRA.",
            )
            return
        account.add(
            "notes",
            f"What it needed to go on ({freed}) was deleted after its last file was found whole, so it cannot be made longer. "
            "Set keep_state of Train LoRA to 'keep' for runs that you want to make longer.",
        )


def _saved_otherwise(record: Mapping[str, object], job: Job) -> list[str]:
    """The settings of what is saved that are others than those of a run, whose ``record`` may hold anything."""
    stored, config = record.get("config"), job.config
    before, now = stored if isinstance(stored, Mapping) else {}, to_dict(config)
    found = [name for name in ("save_precision",) if before.get(name, now[name]) != now[name]]
    length = before.get("length")
    if isinstance(length, Mapping):
        found += [name for name in SAVING if length.get(name, now["length"][name]) != now["length"][name]]
    if "card" in record and record["card"] != asdict(job.card):
        found.append(CARD_WIDGET)
    return found


@contextmanager
def _noted(run: Run) -> Iterator[None]:
    """What ended the run, other than a cancel, stays with it: queueing again may not be enough."""
    try:
        yield
    except Exception as error:
        if not host.is_interrupt(error):
            with suppress(OSError, AtelierError):  # a full disk is told all the same, and a damaged record hides no other error
                run.write(failed=str(error))
        raise
