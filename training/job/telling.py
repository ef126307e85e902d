"""What a job says: of itself before the first step, and of each report while it trains."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict

from .. import host
from ..dataset.augment import spoken_triggers
from ..dataset.cache import CACHE_LIMIT
from ..dataset.samples import counted
from ..estimate import disk
from ..estimate.cautions import cautions, pair_cautions
from ..evaluation.early_stopping import Verdict
from ..evaluation.validation import Validation
from ..families import remark
from ..network.adapter import Adapter
from ..optim.remarks import remarks
from ..performance import memory
from ..prompting import unread
from ..recorder import Progress
from ..runs import live
from ..runs.account import Account
from ..runs.card import WIDGET as CARD_WIDGET
from ..tensors.precision import DTYPES, compute_dtype
from .wanted import Job

log = logging.getLogger("lora-atelier")


class Teller:
    """Tells the node, its bar, the pages and the log; what is worth keeping goes into the run's account."""

    def __init__(self, job: Job, name: str, now: live.Live, account: Account, advance: Callable[..., None]):
        self._job, self._name, self._now, self._account, self._advance = job, name, now, account, advance
        self.latest: Progress | None = None

    def say(self, line: str, step: int | None = None) -> None:
        if step is not None:
            self._advance(step)
        self._job.show(line)
        log.info("%s: %s", self._name, line)

    def warn(self, line: str) -> None:
        self._account.add("warnings", line)
        self.say(line)

    def count(self, line: str) -> None:
        self._account.add("counts", line)
        self.say(line)

    def progress(self, p: Progress) -> None:
        self.latest = p
        used, whole = host.memory()
        self._now.update(phase="training", used=used, memory=whole, **asdict(p))
        self.say(status_line(p), p.step)

    def measured(self, found: Validation, verdict: Verdict) -> None:
        held = f"held out {found.held_out:.4f}, " if found.held_out is not None else ""
        self.say(
            f"epoch {found.epoch} · fixed loss: {held}trained {found.training:.4f}"
            + (f" · {verdict.why}" if verdict.enough else "")
        )


def warn_of_pairs(job: Job, name: str, account: Account) -> None:
    """What pairs of pictures and the model do not have in common, before anything is encoded."""
    said = [*pair_cautions(job.prospect(0, 0)), *unread(job.preview.controls, job.model.family, "preview_control")]
    said += job.unlike_learnt
    for caution in said:
        account.add("warnings", caution)
        log.warning("%s: %s", name, caution)


def warn_of_towers(job: Job, name: str, awake: Sequence[str], account: Account) -> None:
    """Parts of the text encoder that learn nothing and stay on the device all the same."""
    line = (
        f"text encoder: {' and '.join(awake)} does not rest, since not all that it says of the texts could be kept: there are "
        f"more than fit the cache of {CACHE_LIMIT >> 30} GB, or it says what cannot be stored. Steps take more time and memory; "
        "fewer variants of captions help."
    )
    account.add("warnings", line)
    job.show(line)
    log.warning("%s: %s", name, line)


def foretell(job: Job, name: str, adapter: Adapter, account: Account) -> None:
    """Counts, cautions and notes on what is about to be trained, into the account of the run called ``name`` and the log."""
    numbers, layers, steps = adapter.parameter_count(), len(adapter.branches), job.total
    log.info(
        "training %s: %s\n%s\n%d steps, %d layers, %d numbers", name, job.config, job.plan.describe(), steps, layers, numbers
    )
    epochs, size = job.plan.epochs_for(steps), numbers * DTYPES[job.config.save_precision].itemsize
    account.add(
        "counts",
        f"{counted(steps, 'step')} in {counted(epochs, 'epoch')}; {counted(layers, 'layer')} with {numbers:,} numbers, about "
        f"{memory.size_text(size)} a file",
    )
    if unknown := remark(job.model.family):
        account.add("notes", unknown)
        log.info("%s: %s", name, unknown)
    shapes = [tuple(p.shape) for p in adapter.parameters()]
    beside, full = disk.beside_loras(host.runs_folder(), host.loras_folder(), memory.kept_bytes(shapes, job.config))
    prospect = job.prospect(size, beside or 0)
    told = pair_cautions(prospect)
    warned = [*cautions(prospect), *full]
    for caution in (one for one in warned if one not in told):
        account.add("warnings", caution)
        log.warning("%s: %s", name, caution)
    if job.trigger and job.card.trigger is None and not spoken_triggers(job.dataset):
        account.add(
            "notes",
            f"Every caption begins with {job.trigger!r}, so that is called the trigger phrase in the files. Write 'trigger: ...' "
            f"into {CARD_WIDGET} of Train LoRA to name another, or 'trigger:' alone if there is none.",
        )
    rates = [group["rate"] for group in adapter.parameter_groups()]
    for note in remarks(job.config.optimizer, steps, epochs, rates):
        if note not in warned:
            account.add("notes", note)
            log.info("%s: %s", name, note)


def remark_on_numbers(job: Job, account: Account, teller: Teller) -> None:
    """How the device and the weights have it computed otherwise than it seems."""
    if compute_dtype(job.config.precision, job.model.device) != DTYPES.get(job.config.precision):
        teller.count(
            f"precision: this CPU has no instructions for {job.config.precision}; the run computes in fp32, which is faster here"
        )
    if job.config.guidance != 1 and not job.model.hears_guidance:
        teller.warn("guidance: this model is told none, so the widget changes nothing. Set it back to 1.")
    if remark_on_weights := job.model.remark():
        account.add("notes", remark_on_weights)
        teller.say(remark_on_weights)


def of_models(job: Job) -> list[str]:
    """What lies on the trained model, and which other one draws, a sentence each."""
    said = [_laid(job)]
    if job.drawn is not None and job.preview.steps:
        name = f", {job.named.drawn}," if job.named.drawn else ""
        without = " which is the trained one without that," if job.model.has_more_patches(job.drawn) else ""
        said.append(f"preview_model: samples are drawn with the model there{name}{without} and the trained LoRA.")
    return list(filter(None, said))


def _laid(job: Job) -> str:
    """A sentence on what lies on the trained model; empty if nothing does."""
    count = job.model.patched_weights
    if not count:
        return ""
    named = f" ({', '.join(job.named.loras)})" if job.named.loras else ""
    weights = count - job.model.injected
    where = f"{counted(weights, 'weight')} of it" if weights else "it"
    with_it = _draws_with_it(job) if job.preview.steps else None
    drawn = "" if with_it is None else f" Samples are drawn {'with' if with_it else 'without'} it."
    # A file's magnitudes are those of the weights that it learnt beside.
    measured = job.config.network.weight_decompose
    use = " weight_decompose has measured the weights with it, so use the LoRA with it too." if measured else ""
    said = f"model: what other nodes have laid on {where}{named} was there while the LoRA learnt, and is not in its files."
    return f"{said}{drawn}{use}"


def _draws_with_it(job: Job) -> bool | None:
    """Whether samples are drawn with what lies on the trained model; None: there is no telling."""
    found = True if job.drawn is None else job.model.is_laid_on(job.drawn)
    mine, its = set(job.named.loras), set(job.named.drawn_loras)
    if found is None and mine and its:  # by what the graph calls them
        found = True if mine <= its else False if mine.isdisjoint(its) else None
    return found


def status_line(p: Progress) -> str:
    """``epoch 3/10 · step 45/150 · loss 0.1234 · rate 1.0e-04 · 9.2 steps/s · 0:12 left``; in the end without the last."""
    minutes, seconds = divmod(max(1, round(p.seconds_left)), 60)  # 0:00 would be the end
    hours, minutes = divmod(minutes, 60)
    left = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    quick = p.steps_per_second
    speed = f"{quick:.2f} steps/s" if quick >= 0.1 else f"{1 / max(quick, 1e-9):.1f} s/step"
    place = f"epoch {p.epoch}/{p.epochs} · step {p.step}/{p.total}"
    return f"{place} · loss {p.loss:.4f} · rate {p.rate:.1e} · {speed}" + (f" · {left} left" if p.step < p.total else "")
