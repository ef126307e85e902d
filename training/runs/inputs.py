"""Inputs of a run: what decides its LoRA, kept beside it field by field, so that a change can be named.

Settings that decide no weight (what is saved and drawn when, where values are kept meanwhile) are not among them, and neither is
one of which the chosen schedule or optimizer makes no use.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..config import SubsetConfig, TrainingConfig, from_dict, to_dict
from ..dataset.samples import Dataset, Sample, Subset, counted
from ..errors import AtelierError

NO_MATTER = frozenset({
    "name", "varied", "comment", "save_precision", "gradient_checkpointing", "compile", "offload_activations", "offload_blocks",
    "speed", "text.syntax", "length.save_every", "length.save_every_steps", "length.keep_last", "length.sample_every",
    "length.sample_every_steps",
})  # fmt: skip
"""Fields of a recipe that decide no weight, or (compiling, recomputing, recording) only how it is rounded. The syntax decides
something where a caption has a character that it knows, and that is among the models."""
LENGTH = frozenset({"length.epochs", "length.max_steps", "length.when_enough", "length.on_divergence"})
"""Fields that decide when it ends, which is compared in steps."""
NOWHERE = frozenset({
    "folder", "caption_extension", "caption_encoding", "caption_lines", "broken", "nested", "repeats", "captions",
    "class_caption", "further_captions",
})  # fmt: skip
"""Fields of a subset that only decide which pictures and captions there are, and these are compared themselves."""
STRUCTURE = ("network.", "optimizer.name", "optimizer.optimizer_args", "optimizer.weight_decay", "text.encoders", "ema_decay")
"""Settings with which the stored state is of another form, or holds the old value."""
FREE = frozenset({"network.dropout", "network.rank_dropout", "network.module_dropout", "network.scale_weight_norms"})
"""Settings of the network that leave its form alone."""
CHOICE = re.compile(r"[{}]|\\\|")
"""Without any of these ``wildcards`` changes no caption."""
WIDGETS = {
    "optimizer.name": "optimizer", "text.encoders": "text_encoder", "text.learning_rate": "text_encoder_rate",
    "text.dropout": "text_encoder_dropout",
    "noise.levels": "noise_levels", "noise.lowest": "lowest_level", "noise.highest": "highest_level",
    "noise.offset": "noise_offset", "noise.perturbation": "input_perturbation", "loss.kind": "loss",
}  # fmt: skip
"""Fields that have another name where they are set."""
NAMED = 3
"""Pictures that are named of each kind of change."""
MODELS = {"model": "the model", "prediction": "what the model predicts", "clip": "the text encoder", "vae": "the VAE",
          "start_from": "the LoRA to start from", "reading": "how the captions are read (text syntax)"}  # fmt: skip


@dataclass(frozen=True)
class SampleInputs:
    """One sample, in short digests."""

    name: str
    key: str
    caption: str
    rest: str
    """Mask, focus, conditioning and control pictures."""


@dataclass(frozen=True)
class SubsetInputs:
    """A folder's settings and pictures, in their order."""

    settings: Mapping[str, Any]
    pictures: tuple[SampleInputs, ...]


@dataclass(frozen=True)
class Inputs:
    """Everything that decides a run."""

    settings: Mapping[str, Any]
    """Fields of the recipe by dotted name."""
    subsets: tuple[SubsetInputs, ...]
    models: Mapping[str, str]
    """Fingerprints by the names of ``MODELS``."""

    @classmethod
    def of(cls, config: TrainingConfig, dataset: Dataset, models: Mapping[str, str], controls: bool = False) -> Inputs:
        """``controls``: whether the model is shown control pictures."""
        return cls(decisive(config), tuple(_subset(subset, controls) for subset in dataset.subsets), dict(models))

    def stored(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Inputs:
        """What ``stored`` wrote; a setting that did not exist then has today's default. AtelierError for anything else.

        Whether it decides anything is asked beside the stored ones, not beside the other defaults.
        """
        try:
            subsets = tuple(
                SubsetInputs(_used({**_settings(SubsetConfig("-")), **subset["settings"]}), tuple(map(_read, subset["pictures"])))
                for subset in values["subsets"]
            )
            models = {str(name): str(value) for name, value in values["models"].items()}
            return cls(_recipe_used({**_recipe(TrainingConfig("default")), **values["settings"]}), subsets, models)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise AtelierError("what decided this run is damaged; rename or delete its folder.") from error


def _read(picture: Mapping[str, Any]) -> SampleInputs:
    return SampleInputs(*(str(picture[key]) for key in ("name", "key", "caption", "rest")))


@dataclass(frozen=True)
class Difference:
    """How inputs differ from those of a run; each part in words, empty where there is no difference."""

    settings: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()
    related: bool = True
    """Whether any picture is in both."""
    unfit: tuple[str, ...] = field(default=())
    """Those of the changes with which the stored state cannot go on."""

    @property
    def others(self) -> tuple[str, ...]:
        """What makes it another experiment, not the same with mended pictures."""
        return (*self.models, *self.settings)

    def __bool__(self) -> bool:
        return bool(self.settings or self.models or self.pictures)

    def __str__(self) -> str:
        return "; ".join((*self.models, *self.settings, *self.pictures))


def compare(before: Inputs, now: Inputs) -> Difference:
    """What is different in ``now``."""
    changed = _changed(before.settings, now.settings)
    settings = [_told(key, before.settings.get(key), value) for key, value in changed.items()]
    unfit = [said for key, said in zip(changed, settings, strict=True) if key.startswith(STRUCTURE) and key not in FREE]
    for number, then, today in _paired(before.subsets, now.subsets):
        where = f" of folder {number}" if len(now.subsets) > 1 else ""
        old = then.settings
        settings += [_told(key, old.get(key), value, where) for key, value in _changed(old, today.settings).items()]
    models = [f"{said} is another" for name, said in MODELS.items() if before.models.get(name, "") != now.models.get(name, "")]
    unfit += [f"{MODELS[name]} is another" for name in ("model", "prediction") if f"{MODELS[name]} is another" in models]
    then_pictures, pictures = _all(before), _all(now)
    related = bool({p.key for p in then_pictures} & {p.key for p in pictures})
    return Difference(tuple(settings), tuple(models), tuple(_all_pictures(before, now)), related, tuple(unfit))


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are others now. One that is not used on either side says nothing that the one that decides so doesn't."""
    found = {key: (before.get(key), value) for key, value in now.items()}
    return {key: value for key, (then, value) in found.items() if then is not None and value is not None and then != value}


def _paired(before: Sequence[SubsetInputs], now: Sequence[SubsetInputs]) -> Iterable[tuple[int, SubsetInputs, SubsetInputs]]:
    """Folders (number, then, now): by their place, or if they are more or fewer now, each beside those that held its pictures."""
    keys = [{picture.key for picture in subset.pictures} for subset in before]
    for number, today in enumerate(now):
        mine = {picture.key for picture in today.pictures}
        for place, then in enumerate(before):
            if place == number if len(before) == len(now) else keys[place] & mine:
                yield number + 1, then, today


def decisive(config: TrainingConfig) -> dict[str, Any]:
    """The fields that decide weights by dotted name, without those of which the chosen schedule or optimizer makes no use."""
    return _recipe_used(_recipe(config))


def _recipe(config: TrainingConfig) -> dict[str, Any]:
    """The fields that may decide weights by dotted name."""
    flat = {key: value for key, value in flattened(to_dict(config)) if key not in NO_MATTER | LENGTH}
    optimizer = config.optimizer
    arguments = {key: value for key, value in optimizer.args.items() if key not in ("lr", "weight_decay")}
    return flat | {
        "optimizer.learning_rate": optimizer.peak, "optimizer.weight_decay": optimizer.decay,
        "optimizer.optimizer_args": ", ".join(f"{key}={arguments[key]}" for key in sorted(arguments)),
    }  # fmt: skip


def _recipe_used(flat: Mapping[str, Any]) -> dict[str, Any]:
    """None in the place of what decides nothing beside the others."""
    schedule, levels = flat["optimizer.schedule"], flat["noise.levels"]
    no_convolutions = flat["network.targets"] != "all" and not flat["network.include"]
    unused = {
        "optimizer.min_rate": schedule == "constant",
        "optimizer.min_share": schedule == "constant",
        "optimizer.cycles": schedule not in ("cosine with restarts", "annealing"),
        "optimizer.cycle_steps": schedule != "annealing",
        "optimizer.power": schedule != "polynomial",
        "network.conv_rank": no_convolutions,
        "network.conv_alpha": no_convolutions,
        "network.lokr_factor": flat["network.algorithm"] != "LoKr",
        "text.learning_rate": flat["text.encoders"] == "none",
        "text.dropout": flat["text.encoders"] == "none",
        "noise.logit_mean": levels not in ("auto", "logit-normal"),
        "noise.logit_std": levels not in ("auto", "logit-normal"),
        "noise.sigmoid_scale": levels in ("uniform", "logit-normal"),
        "noise.shift": levels not in ("auto", "shifted"),
        "noise.offset_each_channel": flat["noise.offset"] == 0,
        "noise.offset_random": flat["noise.offset"] == 0,
        "noise.pyramid_discount": flat["noise.pyramid_iterations"] == 0,
        "loss.huber_schedule": flat["loss.kind"] == "mse",
        "loss.huber_threshold": flat["loss.kind"] == "mse",
        "loss.snr_gamma": flat["loss.weighting"] != "min-SNR",
        "loss.preservation_prompt": flat["loss.preservation"] == 0,
    }
    return {key: None if unused.get(key) else value for key, value in flat.items()}


def decisive_of(stored: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same of a recipe as an earlier version has written it; None if it means nothing any more."""
    names = {f.name for f in fields(TrainingConfig)}
    with suppress(AtelierError, TypeError, ValueError, AttributeError):
        config = from_dict(TrainingConfig, {key: value for key, value in stored.items() if key in names})
        # What ``auto`` was is not known, so it is not compared.
        return decisive(config) | ({"noise.levels": None} if config.noise.levels == "auto" else {})
    return None


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _subset(subset: Subset, controls: bool) -> SubsetInputs:
    config, pictures = subset.config, tuple(_picture(sample, controls) for sample in subset.samples)
    around = config.caption_prefix + config.caption_suffix
    whole = around + "\n".join(sample.caption or "" for sample in subset.samples)
    idle: dict[str, Any] = {"wildcards": False} if not CHOICE.search(whole) else {}
    idle |= {"keep_separator": ""} if config.keep_separator not in whole else {}
    return SubsetInputs(_used(_settings(config) | idle) | {"repeats": subset.repeats}, pictures)


def _settings(config: SubsetConfig) -> dict[str, Any]:
    """A subset's settings that may decide something."""
    settings = {**to_dict(config), "slider": config.slider.identity if config.slider else "none"}
    return {key: value for key, value in settings.items() if key not in NOWHERE}


def _used(settings: Mapping[str, Any]) -> dict[str, Any]:
    """None in the place of what decides nothing beside the others."""
    still = not settings["shuffle_captions"] and settings["tag_dropout"] == 0
    whole = settings["caption_dropout"] == 0
    unused = {
        "validation_seed": settings["validation_share"] == 0,
        "mask_floor": settings["masks"] == "off",
        "variants": settings["crop"] != "random",
        "head_margin": settings["crop"] != "head",
        "keep_tokens": still,
        "trigger_words": still and (whole or settings["dropped_caption"] == "empty"),
        "dropped_caption": whole,
    }
    return {key: None if unused.get(key) else value for key, value in settings.items()}


def _picture(sample: Sample, controls: bool) -> SampleInputs:
    rest = [sample.mask_key, sample.focus, sample.ready and sample.ready.text, *([sample.head] if sample.head else [])]
    if controls:
        rest += [control.key for control in sample.controls]
    rest += [f"before {sample.before.key}"] if sample.before else []
    return SampleInputs(sample.path.name, sample.key[:16], _digest(sample.caption), _digest(rest))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _all(inputs: Inputs) -> list[SampleInputs]:
    return [picture for subset in inputs.subsets for picture in subset.pictures]


def _all_pictures(before: Inputs, now: Inputs) -> Iterable[str]:
    """What happened to the pictures, in words, and whether they are in other folders although none has changed."""
    said = list(_pictures(_all(before), _all(now)))
    if not said and [_sums(subset) for subset in before.subsets] != [_sums(subset) for subset in now.subsets]:
        said.append("the pictures are in other folders, or these are used in other numbers")
    return said


def _sums(subset: SubsetInputs) -> tuple[int, Any]:
    return len(subset.pictures), subset.settings.get("repeats")


def _pictures(before: Sequence[SampleInputs], now: Sequence[SampleInputs]) -> Iterable[str]:
    """What happened to pictures, in words."""
    if before == now:
        return
    if [(p.key, p.caption, p.rest) for p in before] == [(p.key, p.caption, p.rest) for p in now]:
        return  # renamed, in the same order
    by_name, by_key = {p.name: p for p in before}, {p.key: p for p in before}
    names, keys = {p.name for p in now}, {p.key for p in now}
    kinds: dict[str, list[str]] = {}
    for picture in now:
        then = by_key.get(picture.key) or by_name.get(picture.name)
        if then is None:
            kinds.setdefault("added", []).append(picture.name)
        elif then.key != picture.key:
            kinds.setdefault("another picture under the same name", []).append(picture.name)
        else:
            if then.caption != picture.caption:
                kinds.setdefault("another caption", []).append(picture.name)
            if then.rest != picture.rest:
                kinds.setdefault("another mask, focus, control picture or conditioning", []).append(picture.name)
    gone = [p.name for p in before if p.key not in keys and p.name not in names]
    if gone:
        kinds["gone"] = gone
    if not kinds:
        yield "the pictures are in another order, or in other numbers"
    for kind, found in kinds.items():
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        yield (
            f"{counted(len(found), 'picture')} {kind} ({', '.join(found[:NAMED])}{more})"
            if kind in ("added", "gone")
            else (f"{kind}: {', '.join(found[:NAMED])}{more}")
        )


def _told(key: str, before: Any, now: Any, where: str = "") -> str:
    spoken = WIDGETS.get(key, key.rpartition(".")[2])
    return f"{spoken}{where} is {_short(now, before)} now and was {_short(before, now)}"


def _short(value: Any, other: Any) -> str:
    """In few characters, but never the same ones as for the ``other``."""
    said, beside = (f"{one:g}" if isinstance(one, float) else str(one) for one in (value, other))
    if said == beside:
        said = str(value)
    if len(said) > 40 and said[:40] == str(other)[:40]:
        first = next((i for i, pair in enumerate(zip(said, str(other), strict=False)) if pair[0] != pair[1]), 40)
        said = f"…{said[max(0, first - 10) :]}"
    return f"{said[:40]}…" if len(said) > 40 else said or "empty"
