"""Training job: from what is wired into the node to LoRA files on disk."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import compatibility, host
from .config import TrainingConfig, to_dict
from .config.refusal import text_of
from .config.sampling import SamplerSettings
from .dataset import precomputed
from .dataset.augment import plain_caption, trained_captions, trained_pictures
from .dataset.cache import CACHE_LIMIT, TensorCache
from .dataset.encoded import EncodedDataset, Work, work_of
from .dataset.images import to_picture
from .dataset.plan import Plan
from .dataset.samples import Dataset, counted
from .dataset.scan import refresh_captions
from .errors import AtelierError, NotFinite
from .estimate import disk, preflight, step_time
from .estimate.cautions import Prospect, cautions
from .evaluation.early_stopping import Verdict
from .evaluation.validation import Validation
from .families import family_named, remark
from .files import read_tensors, room_on_disk
from .loop import train
from .network import lora_file
from .network.adapter import Adapter
from .network.scope import Layers, Names, adaptable_layers, set_text_rate, trained_layers
from .network.warm_start import start_from
from .objective.loss import check_weighting
from .objective.noise import NoiseLevelSampler
from .optim import optimizers, schedules
from .optim.remarks import remarks
from .performance import memory
from .prompting import Control, ControlPictures, Prompter, controls_of, opened, shows_of
from .recorder import Callbacks, Progress
from .runs import live
from .runs import preview as beside
from .runs.account import Account, settings_of
from .runs.card import NO_CARD, Card, common_front
from .runs.card import WIDGET as CARD_WIDGET
from .runs.inputs import Inputs
from .runs.metadata import describe, is_whole
from .runs.opening import Opened, open_run
from .runs.record import SaveKind
from .runs.run import SAVED_LORAS, Epochs, Run
from .session import Session, total_steps
from .tensors.precision import DTYPE_NAMES, DTYPES, compute_dtype
from .tensors.safetensors_header import add_metadata, contents_digest

log = logging.getLogger("lora-atelier")
LONGEST_TRIGGER = 100
"""Characters of a trigger phrase that is taken from the captions; what is longer is a sentence."""
SAVING = ("save_every", "save_every_steps", "keep_last")
"""Settings of a run's length that decide which files it leaves."""
EVENT = "lora_atelier.run"
"""The message to the pages that tells of a run; its data is ``live.Live.status``."""


@dataclass(frozen=True)
class Preview:
    """How the sample pictures are drawn."""

    prompt: str
    """One a line; empty: the first caption of the dataset."""
    negative: str
    steps: int
    """0 switches previews off."""
    cfg: float
    sampler: str
    scheduler: str
    seed: int
    width: int = 0
    """Pixels; 0 takes the size that most of the dataset has."""
    height: int = 0
    controls: tuple[Control, ...] = ()
    """For models that edit: what each prompt is beside; empty takes those of the dataset's first pictures."""

    def __post_init__(self) -> None:
        for field in ("prompt", "negative"):
            text_of(f"preview_{field}", getattr(self, field))

    @property
    def settings(self) -> SamplerSettings:
        return SamplerSettings(self.sampler, self.scheduler, self.steps, self.cfg)

    def prompts(self, dataset: Dataset) -> list[str]:
        """One a picture."""
        first = next((caption for caption in trained_captions(dataset) if caption), "")
        return [line.strip() for line in self.prompt.splitlines() if line.strip()] or [first]


@dataclass(frozen=True)
class Trained:
    """What a finished job hands on."""

    epochs: Epochs
    tensors: dict[str, Tensor]
    """The final LoRA as it stands in the file."""
    losses: list[float]
    """Training loss of every step."""


@dataclass(frozen=True)
class Job:
    """What a run consists of, once everything fits together."""

    model: host.Model
    text: host.TextEncoder
    codec: host.PictureCodec
    dataset: Dataset
    config: TrainingConfig
    plan: Plan
    total: int
    """Steps of the whole run."""
    layers: Layers
    """All that can carry an adapter, not only what is trained."""
    names: Names
    preview: Preview
    graph: Mapping[str, str]
    show: Callable[[str], None]
    encoded: EncodedDataset
    model_name: str = ""
    """Of the file that the model was loaded from, if that is known."""
    card: Card = NO_CARD
    """What the files say of the LoRA."""
    thumbnail: int = 0
    """Pixels a side of the picture in the files; 0: none."""
    keep_state: bool = True
    """Whether what the run needs to go on stays after its last step."""

    def prospect(self, file_bytes: int, state_bytes: int) -> Prospect:
        """What there is to be cautious of before the first step."""
        training = [subset.config for subset in self.dataset.subsets if subset.config.role == "training" and not subset.ready]
        return Prospect(
            self.config, self.plan.steps_per_epoch, file_bytes, state_bytes, room_on_disk(host.loras_folder()),
            self.model_name, self.model.family, memory.bytes_of(self.model.weights()), tuple(one.resolution for one in training),
            self.model.device.type, samples=len(self.preview.prompts(self.dataset)) if self.preview.steps else 0,
            focus=any(subset.config.crop == "focus" for subset in self.dataset.subsets if not subset.ready),
            pairs=sum(bool(sample.controls) for sample in self.dataset.samples) if training else None,
        )  # fmt: skip

    @cached_property
    def trigger(self) -> str:
        """The trigger phrase: the person's, or else what every caption begins with."""
        found = self.card.trigger or common_front(trained_captions(self.dataset))
        return found if self.card.trigger or len(found) <= LONGEST_TRIGGER else ""

    @property
    def learns_text(self) -> bool:
        return self.config.text.encoders != "none"

    @cached_property
    def levels(self) -> NoiseLevelSampler:
        """At which noise levels the model is asked."""
        family = family_named(self.model.family)
        return NoiseLevelSampler.suited(self.model.prediction, self.config.noise, self.model.sigmas, family)

    @cached_property
    def inputs(self) -> Inputs:
        """Everything that decides the LoRA's weights."""
        start = self.config.network.start_from
        config = replace(self.config, noise=replace(self.config.noise, levels=self.levels.distribution))
        return Inputs.of(config, self.dataset, {
            "model": self.model.identity(), "prediction": str(self.model.prediction), "clip": self.encoded.text_identity,
            "vae": self.encoded.picture_identity, "start_from": contents_digest(host.lora_path(start)) if start else "",
            "reading": " ".join(self._readings()),
        }, self.encoded.shows.shown)  # fmt: skip

    def open(self, when: str) -> Opened:
        """The run that this is, or becomes."""
        optimizer = self.config.optimizer

        def same_rates(before: int, now: int, done: int) -> bool:
            return schedules.same_so_far(optimizer, *map(optimizer.updates, (before, now, done)))

        return open_run(
            self.config.name, self.inputs, self.total, when, host.runs_folder(), host.loras_folder(), same_rates=same_rates,
            width=optimizer.accumulate,
        )  # fmt: skip

    def _readings(self) -> list[str]:
        """How captions are read, where any of them has a character for which the syntax matters."""
        told = (s for s in self.dataset.subsets if not s.ready)
        texts = [plain_caption(sample.caption, subset.config) for subset in told for sample in subset.samples]
        texts.append(self.config.loss.preservation_prompt if self.config.loss.preservation else "")
        return sorted({reading for text in texts for reading in self.text.reading_of(text)})

    def prompter(self) -> Prompter:
        """What reads the prompts of sample pictures."""
        given = self.preview.controls or opened(controls_of(self.dataset, len(self.preview.prompts(self.dataset))))
        shows = shows_of(family_named(self.model.family), self.text, bool(given) and self.preview.steps > 0)
        return Prompter(self.text, ControlPictures(self.codec, shows, given), live=self.learns_text)

    def adapter(self) -> Adapter:
        """The adapter at step 0."""
        network, seed = self.config.network, self.config.seed
        wanted = trained_layers(self.layers, self.config, family_named(self.model.family), self.encoded.shows.shown)
        if network.start_from:
            adapter = start_from(host.lora_path(network.start_from), self.layers, self.names, network, wanted, seed)
        else:
            adapter = Adapter.fresh(wanted, network, seed)
        set_text_rate(adapter, self.config)
        return adapter.to(self.model.device)


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
    model_name: str = "",
    card: Card = NO_CARD,
    thumbnail: int = 0,
    keep_state: bool = True,
) -> Trained:
    """Trains, or goes on with, the run that these inputs describe. ``show`` receives a line of status for the node ``node``;
    ``model_name``: of the file that the model was loaded from, if that is known. ``card``, ``thumbnail``, ``keep_state``: as in
    ``Job``.

    Raises AtelierError for anything the person can mend, and the host's interrupt when cancelled; both after saving.
    """
    dataset = refresh_captions(dataset)
    text = text.reading(config.text.syntax)
    model.check()
    compatibility.check(model, text, codec)
    check_dataset(dataset, config)
    precomputed.check(dataset, model.latent_channels, model.frames)
    check_weighting(model.prediction, config.loss)
    optimizers.check(config.optimizer, model.device.type)
    model = model.for_training(compute_dtype(config.precision, model.device), config.base_weights)
    learns_text = config.text.encoders != "none"
    if learns_text:
        text.check()
        text = text.for_training()
    try:
        layers, names = adaptable_layers(model, text if learns_text else None)
        shows = shows_of(family_named(model.family), text, any(sample.controls for sample in dataset.samples))
        # Refuses what the model lacks before anything is encoded.
        trained_layers(layers, config, family_named(model.family), shows.shown)
        plan = Plan(dataset, config.seed)
        encoded = EncodedDataset(dataset, config.seed, codec, text, TensorCache(host.cache_folder(), CACHE_LIMIT), shows)
        job = Job(
            model, text, codec, dataset, config, plan, total_steps(config, plan), layers, names, preview, graph, show, encoded,
            model_name, card, thumbnail, keep_state,
        )  # fmt: skip
        _check_texts(job)
        with job.open(when) as opened:
            return _trained(job, opened, node)
    finally:
        model.retire()
        text.retire()


def _trained(job: Job, opened: Opened, node: str) -> Trained:
    """What the opened run ends in: by training, or as it was if it is finished and its files are whole."""
    run, config, why = opened.run, job.config, opened.why
    finished = opened.finished
    if finished and (damaged := run.set_damaged_aside()):
        why = f"{why}; {', '.join(damaged)} {'was' if len(damaged) == 1 else 'were'} damaged and set aside"
        finished = run.finished()
        if not finished and run.state_step() == 0:
            why = f"{why}, and since no state of it was kept, it begins again"
    if finished and (others := _saved_otherwise(run.record().values, job)):
        why = f"{why}; {', '.join(others)} would have counted while it was trained, so its files stay as they were saved"
    if finished and (gone := run.saved()[-1].step - len(run.losses())) > 0:
        why = f"{why}; the losses of {gone} of its steps are gone from its history"
    facts = {"total": job.total, "steps_per_epoch": job.plan.steps_per_epoch}
    now = live.Live(
        run.name, partial(host.send, EVENT), node=node, recipe=config.name, samples=job.preview.steps > 0, opening=why, **facts
    )
    job.show(why)
    log.info("%s", why)
    if finished:
        run.write(opening=why)
        now.update(phase="finished")
    else:
        run.keep_end()
        run.write_inputs(job.inputs.stored())
        done = run.state_step()
        changes = [row for row in run.record().changes if row["step"] <= done] if done else []
        changes += [{"step": done, "changed": opened.changes}] if opened.changes else []
        run.write(
            config=to_dict(config), card=asdict(job.card), dataset=job.dataset.describe(), family=job.model.family, failed="",
            opening=why, changes=changes, **facts,
        )  # fmt: skip
        account = Account(run, settings_of(config))
        with live.entered(now, host.is_interrupt), _noted(run):
            _train(job, run, now, account)
            if not job.keep_state:
                _drop_state(job, run, account)
    saved = run.saved()
    if not saved:
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
        ),
        tensors=read_tensors(saved[-1].path, "put it back and queue again"),
        losses=run.losses(),
    )


def _drop_state(job: Job, run: Run, account: Account) -> None:
    """Deletes what a run needs to go on, once its last file is on the disk and holds what was written."""
    last = next(iter(run.saved()[-1:]), None)
    if last is None or last.kind != "last" or last.step < job.total:
        account.add("notes", "It was ended before its last step, so what it needs to go on is kept.")
    elif not is_whole(last.path):
        account.add("warnings", f"{last.path.name} does not hold what was written, so what the run needs to go on is kept.")
    else:
        freed = memory.size_text(run.drop_state())
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


def check_dataset(dataset: Dataset, config: TrainingConfig) -> None:
    """Refuses what could not be learnt from."""
    trained = [subset for subset in dataset.subsets if subset.config.role == "training" and not subset.ready]
    if trained and all(sample.caption is None for subset in trained for sample in subset.samples):
        raise AtelierError(
            "dataset: no picture has a caption. Put an Auto Caption node between Load Dataset and Train LoRA, or write a "
            f"{trained[0].config.caption_extension} file beside each picture."
        )
    if config.text.encoders != "none" and any(subset.ready for subset in dataset.subsets):
        raise AtelierError(
            "text encoder: conditioning that another node has made cannot train it. Set it to none, or give captions as text."
        )
    priors = any(subset.config.role == "regularisation" for subset in dataset.subsets)
    if config.loss.preservation and not config.loss.preservation_prompt and not priors:
        raise AtelierError(
            "output preservation: there are no regularisation pictures at whose captions it could hold the model. Give it a "
            "prompt, or connect a Load Dataset whose role is regularisation."
        )


def _check_texts(job: Job) -> None:
    """Refuses, by one text of each source, what the model cannot read."""
    if any(not subset.ready for subset in job.dataset.subsets):
        job.show("reading a first caption")
        compatibility.check_text(job.model, job.encoded.text(""))
    for subset in (subset for subset in job.dataset.subsets if subset.ready):
        compatibility.check_text(job.model, job.encoded.stored_text(subset.samples[0]), "conditioning")


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


def _encode(job: Job, told: Prompter) -> None:
    """Pictures, captions, and what the samples are told: all while the encoders are at hand."""
    work = _work(job)
    count = len(work)
    advance = host.progress(count)

    def step(done: int) -> None:
        advance(done)
        if done % 10 == 0 or done == count:
            job.show(f"preparing pictures and captions: {done} of {count}")

    job.encoded.prepare(work, step)
    for number, prompt in enumerate(job.preview.prompts(job.dataset) if job.preview.steps else ()):
        if job.learns_text:
            told.controls.latents(told.controls.place(number))  # while there is room for the VAE
        else:
            told(prompt, number)
            told(job.preview.negative, number)


def _work(job: Job) -> Work:
    """What is encoded before the first step: no captions if their encoder changes in every step."""
    work = work_of(job.plan, job.plan.epochs_for(job.total), job.encoded.shows)
    held = [job.config.loss.preservation_prompt] if job.config.loss.preservation_prompt else []
    return work.reading(held, captions=not job.learns_text)


def _train(job: Job, run: Run, now: live.Live, account: Account) -> None:
    encoded, told = job.encoded, job.prompter()
    _encode(job, told)
    if job.learns_text:
        encoded.live = job.text.encode_live
    adapter = job.adapter()
    layers = {name: job.layers[name] for name in adapter.branches}
    log.info(
        "training %s: %s\n%s\n%d steps, %d layers, %d numbers", run.name, job.config, job.plan.describe(), job.total,
        len(layers), adapter.parameter_count(),
    )  # fmt: skip
    epochs, size = job.plan.epochs_for(job.total), adapter.parameter_count() * DTYPES[job.config.save_precision].itemsize
    account.add(
        "counts",
        f"{counted(job.total, 'step')} in {counted(epochs, 'epoch')}; {counted(len(layers), 'layer')} with "
        f"{adapter.parameter_count():,} numbers, about {memory.size_text(size)} a file",
    )  # fmt: skip
    if unknown := remark(job.model.family):
        account.add("notes", unknown)
        log.info("%s: %s", run.name, unknown)
    shapes = [tuple(p.shape) for p in adapter.parameters()]
    beside, full = disk.beside_loras(host.runs_folder(), host.loras_folder(), memory.kept_bytes(shapes, job.config))
    warned = [*cautions(job.prospect(size, beside or 0)), *full]
    for caution in warned:
        account.add("warnings", caution)
        log.warning("%s: %s", run.name, caution)
    if job.trigger and not job.card.trigger:
        account.add(
            "notes",
            f"Every caption begins with {job.trigger!r}, so that is called the trigger phrase in the files. Write 'trigger: ...' "
            f"into {CARD_WIDGET} of Train LoRA to name another.",
        )
    rates = [group["rate"] for group in adapter.parameter_groups()]
    for note in remarks(job.config.optimizer, job.total, epochs, rates):
        if note not in warned:
            account.add("notes", note)
            log.info("%s: %s", run.name, note)
    advance = host.progress(job.total)

    def say(line: str, step: int | None = None) -> None:
        if step is not None:
            advance(step)
        job.show(line)
        log.info("%s: %s", run.name, line)

    def warn(line: str) -> None:
        account.add("warnings", line)
        say(line)

    def tell(line: str) -> None:
        account.add("counts", line)
        say(line)

    saver = _Saver(job, run, adapter, layers, told, advance, now, warn)

    def measured(found: Validation, verdict: Verdict) -> None:
        held = f"held out {found.held_out:.4f}, " if found.held_out is not None else ""
        say(
            f"epoch {found.epoch} · fixed loss: {held}trained {found.training:.4f}"
            + (f" · {verdict.why}" if verdict.enough else "")
        )

    begun, latest = run.state_step(), list[Progress]()

    def progress(p: Progress) -> None:
        latest[:] = [p]
        used, whole = host.memory()
        now.update(phase="training", used=used, memory=whole, **asdict(p))
        say(status_line(p), p.step)

    callbacks = Callbacks(
        check=host.check_interrupt, progress=progress, save=saver.save, sample=saver.sample if job.preview.steps else None,
        measured=measured, warn=warn, commands=now.pop_commands, cancelled=host.is_interrupt,
    )  # fmt: skip
    if compute_dtype(job.config.precision, job.model.device) != DTYPES.get(job.config.precision):
        tell(
            f"precision: this CPU has no instructions for {job.config.precision}; the run computes in fp32, which is faster here"
        )
    if remark_on_weights := job.model.remark():
        account.add("notes", remark_on_weights)
        say(remark_on_weights)
    text = job.text if job.learns_text else None
    like = step_time.circumstances(job.config, job.plan, job.inputs.models["model"], host.device_name(job.model.device))
    pace = step_time.earlier(host.runs_folder(), like)
    session = Session(job.model, text, layers, adapter, job.levels, encoded, job.plan, job.config)
    try:
        session = preflight.fit(session, tell, warn, times=pace is None)
    except Exception as error:
        if (said := compatibility.told(error, job.model)) is not None:
            raise said from error
        raise
    if (expected := pace or step_time.expected(host.runs_folder(), like, session)) is not None and job.total > begun:
        tell(expected.sentence(job.total - begun))
    try:
        train(session, run, callbacks)
    finally:
        if latest and (seen := step_time.kept(1 / max(1e-9, latest[0].steps_per_second), latest[0].step - begun, like)):
            with suppress(OSError, AtelierError):  # a full disk and a damaged record are told where the run is kept
                run.write(pace=seen)
    saved = run.saved()
    last = f", the last at step {saved[-1].step} of {job.total}" if saved else ""
    job.show(f"{run.name}: {counted(len(saved), 'file')} saved{last}")


def status_line(p: Progress) -> str:
    """``epoch 3/10 · step 45/150 · loss 0.1234 · rate 1.0e-04 · 9.2 steps/s · 0:12 left``; in the end without the last."""
    minutes, seconds = divmod(max(1, round(p.seconds_left)), 60)  # 0:00 would be the end
    hours, minutes = divmod(minutes, 60)
    left = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    quick = p.steps_per_second
    speed = f"{quick:.2f} steps/s" if quick >= 0.1 else f"{1 / max(quick, 1e-9):.1f} s/step"
    place = f"epoch {p.epoch}/{p.epochs} · step {p.step}/{p.total}"
    return f"{place} · loss {p.loss:.4f} · rate {p.rate:.1e} · {speed}" + (f" · {left} left" if p.step < p.total else "")


class _Saver:
    """Writes LoRA files with their metadata, and draws what they make of the prompts; ``told``: a prompt as CONDITIONING."""

    def __init__(
        self,
        job: Job,
        run: Run,
        adapter: Adapter,
        layers: Layers,
        told: Prompter,
        advance: Callable[..., None],
        now: live.Live,
        say: Callable[[str], None],
    ):
        self.job, self.run, self.adapter, self.layers, self.told = job, run, adapter, layers, told
        self.advance, self.now, self._say, self._said_lost = advance, now, say, False

    def save(self, kind: SaveKind, epoch: int, step: int) -> None:
        job, config = self.job, self.job.config
        tensors = lora_file.to_file(self.adapter, job.names, job.model.family, DTYPES[config.save_precision], self.layers)
        metadata = describe(
            config, job.dataset, job.plan, family=job.model.family, prediction=job.model.prediction, epoch=epoch,
            step=step, total_steps=job.total, graph=job.graph, sizes=self.adapter.sizes(),
            precision=DTYPE_NAMES.get(job.model.compute_dtype, ""), card=replace(job.card, trigger=job.trigger),
        )  # fmt: skip
        if changes := self.run.record().changes:
            metadata["lora_atelier.changes"] = json.dumps(changes)
        saved = self.run.save_lora(tensors, metadata, epoch=epoch, step=step, kind=kind)
        log.info("model saved: %s", saved.path)
        if config.length.keep_last:
            self.run.keep_last(config.length.keep_last)

    def sample(self, epoch: int, step: int) -> None:
        """One picture a prompt; that one is none is said once."""
        self.now.update(phase="sampling")
        for number, prompt in enumerate(self.job.preview.prompts(self.job.dataset)):
            try:
                self._draw(prompt, number, epoch, step)
            except NotFinite as lost:
                if not self._said_lost:
                    self._say(f"preview at step {step}: no picture was saved. {lost}")
                self._said_lost = True
        self.now.update(phase="training" if step else "preparing")

    def _show_beside(self, path: Path, picture: Any, step: int) -> None:
        """The first sample of a step becomes the picture of the file that was saved there, beside it and within."""
        try:
            for saved in self.run.saved():
                if saved.step == step:
                    beside.place(path, saved.path)
                    if self.job.thumbnail:
                        add_metadata(saved.path, {"modelspec.thumbnail": beside.thumbnail(picture, self.job.thumbnail)})
        except (OSError, AtelierError) as error:  # a full disk: the file itself is there
            self._say(f"preview at step {step}: the LoRA file got no picture. {error}")

    def _draw(self, prompt: str, number: int, epoch: int, step: int) -> None:
        from PIL.PngImagePlugin import PngInfo

        job, p = self.job, self.job.preview
        bucket = max(job.plan.buckets, key=lambda row: len(row[2]))[1]
        width, height = p.width or bucket[0], p.height or bucket[1]
        cells = job.codec.downscale
        with self.adapter.attached(self.layers):
            latent = job.model.sample(
                self.told(prompt, number),
                self.told(p.negative, number),
                p.settings,
                latent_size=(height // cells, width // cells),
                seed=p.seed,
            )
        pixels = job.codec.decode(latent)[0]
        compatibility.check_picture(job.model, latent, pixels)
        picture = to_picture(pixels)
        facts = {"prompt": prompt, "negative": p.negative, "epoch": epoch, "step": step, "seed": p.seed}
        info = PngInfo()
        info.add_text("parameters", json.dumps(facts))
        info.add_text(beside.KEY, beside.MARK)
        epoch_ends = step % job.plan.steps_per_epoch == 0 or step == job.total
        path = self.run.save_sample(picture, f"{epoch:06d}" if epoch_ends else f"step{step:08d}", number, info)
        if number == 0:
            self._show_beside(path, picture, step)
        self.now.update()
        self.advance(step, picture)
