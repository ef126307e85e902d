"""What a training job is made of: the values that the node was given, once everything fits together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from .. import compatibility, host
from ..config import TrainingConfig
from ..config.refusal import refuse, text_of
from ..config.sampling import SamplerSettings
from ..dataset import moving
from ..dataset.augment import letters_of, spoken_triggers, trained_captions
from ..dataset.encoded import EncodedDataset
from ..dataset.plan import Plan
from ..dataset.samples import Dataset
from ..estimate.cautions import Prospect
from ..families import family_named
from ..files import room_on_disk
from ..network.adapter import Adapter
from ..network.scope import Layers, Names, set_text_part, trained_layers
from ..network.warm_start import start_from
from ..objective.noise import NoiseLevelSampler
from ..optim import schedules
from ..performance import memory
from ..prompting import Control, ControlPictures, Prompter, controls_of, is_pair, opened, ready_pairs, shows_of
from ..runs.card import NO_CARD, Card, common_front
from ..runs.inputs import Inputs
from ..runs.opening import Opened, open_run
from ..runs.run import Epochs
from ..tensors.safetensors_header import contents_digest

FASTEST = 120
"""Frames a second of a sample at most."""
LONGEST_TRIGGER = 100
"""Characters of a trigger phrase that is taken from the captions; what is longer is a sentence."""


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
    wired: host.Wired = host.NOTHING_WIRED
    """What came through wires in place of sampler, schedule and guidance."""
    frames: int = 1
    """Of a film; 1 is a picture."""
    rate: float = moving.RATE
    """Frames a second of a film."""

    def __post_init__(self) -> None:
        refuse(not 0 < self.rate <= FASTEST, f"preview_rate: {self.rate:g} is outside 0 to {FASTEST}; 16 and 24 are usual.")
        for field in ("prompt", "negative"):
            text_of(f"preview_{field}", getattr(self, field))

    @property
    def settings(self) -> SamplerSettings:
        return SamplerSettings(self.sampler, self.scheduler, self.steps, self.cfg)

    @property
    def drawn_at(self) -> tuple[int, float] | None:
        """(steps, guidance) of the pictures; None if there are none, or a guider's guidance is no single number."""
        if not self.steps or (self.wired.guider is not None and self.wired.cfg is None):
            return None
        told = self.wired.told(self.settings)
        return told.steps, told.cfg

    def prompts(self, dataset: Dataset) -> list[str]:
        """One a picture."""
        training = [subset for subset in dataset.subsets if subset.config.role == "training" and not subset.ready]
        # A model that edits is asked for what it learns beside that picture's own control picture.
        pairs = Dataset(tuple(replace(one, samples=tuple(s for s in one.samples if s.controls)) for one in training))
        first = next((caption for caption in (*trained_captions(pairs), *trained_captions(dataset)) if caption), "")
        return [line.strip() for line in self.prompt.splitlines() if line.strip()] or [first]


@dataclass(frozen=True)
class Named:
    """What the graph calls the models, as far as it tells."""

    model: str = ""
    """File of the trained one."""
    loras: tuple[str, ...] = ()
    """Those that lie on it."""
    drawn: str = ""
    """File of the model that samples are drawn with, where that is another one."""
    drawn_loras: tuple[str, ...] = ()
    """LoRAs that lie on that one."""


NOTHING_NAMED = Named()


@dataclass(frozen=True)
class Trained:
    """What a finished job hands on."""

    epochs: Epochs
    tensors: dict[str, Tensor]
    """The final LoRA as it stands in the file; empty where a training of a sweep has failed before it saved one."""
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
    card: Card = NO_CARD
    """What the files say of the LoRA."""
    thumbnail: int = 0
    """Pixels a side of the picture in the files; 0: none."""
    keep_state: bool = True
    """Whether what the run needs to go on stays after its last step."""
    drawn: host.Model | None = None
    """The model that samples are drawn with; None: the trained one."""
    named: Named = NOTHING_NAMED

    def prospect(self, file_bytes: int, state_bytes: int) -> Prospect:
        """What there is to be cautious of before the first step."""
        training = [subset.config for subset in self.dataset.subsets if subset.config.role == "training" and not subset.ready]
        of_pairs = any(one.slider is not None and one.slider.source == "pairs of pictures" for one in training)
        paired = None if of_pairs else sum(map(is_pair, self.dataset.samples))  # a slider's are its other end
        return Prospect(
            self.config, self.plan.steps_per_epoch, file_bytes, state_bytes, room_on_disk(host.loras_folder()),
            self.named.model, self.model.family, memory.bytes_of(self.model.weights()), tuple(one.side for one in training),
            self.model.device.type,
            samples=len(self.preview.prompts(self.dataset)) * self.preview.frames if self.preview.steps else 0,
            focus=any(subset.config.crop == "focus" for subset in self.dataset.subsets if not subset.ready),
            pairs=paired if training or paired else None,
            few_steps=self.model.few_steps_mark, loras=self.named.loras, preview=self.named.drawn if self.drawn else None,
            preview_loras=self.named.drawn_loras, assisted=self.drawn is not None and self.model.has_more_patches(self.drawn),
            drawn_at=self.preview.drawn_at, **self._films(),
        )  # fmt: skip

    def _films(self) -> dict[str, Any]:
        """What a prospect has of samples that are films."""
        if not self.preview.steps or self.preview.frames == 1:
            return {}
        needed = (self.drawn or self.model).drawing_bytes(self.preview_cells)
        return {"film": (self.preview.frames, *self.preview_size), "film_bytes": needed, "device_bytes": host.memory()[1]}

    @cached_property
    def trigger(self) -> str:
        """The trigger phrase: the person's, those of the trigger words that captions have, or else what every caption begins
        with."""
        if self.card.trigger is not None:
            return self.card.trigger
        if any(subset.config.slider for subset in self.dataset.subsets):
            return ""  # it works without a word
        if words := spoken_triggers(self.dataset):
            return ", ".join(words)[:LONGEST_TRIGGER]
        found = common_front(trained_captions(self.dataset))
        return found if len(found) <= LONGEST_TRIGGER else ""

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
            self.config.run_name, self.inputs, self.total, when, host.runs_folder(), host.loras_folder(), same_rates=same_rates,
            width=optimizer.accumulate,
        )  # fmt: skip

    def _readings(self) -> list[str]:
        """How captions are read, where any of them has a character for which the syntax matters."""
        told = [s for s in self.dataset.subsets if not s.ready]
        texts = [letters_of(sample.caption, subset.config) for subset in told for sample in subset.samples]
        texts += [text for s in told if s.config.slider for text in s.config.slider.prompts]
        texts.append((self.config.loss.held_at or "") if self.config.loss.preservation else "")
        return sorted({reading for text in texts for reading in self.text.reading_of(text)})

    def prompter(self) -> Prompter:
        """What reads the prompts of sample pictures."""
        prompts = self.preview.prompts(self.dataset)
        files = () if self.preview.controls else controls_of(self.dataset, len(prompts))
        ready = () if self.preview.controls or files else ready_pairs(self.dataset, len(prompts))
        there = bool(self.preview.controls or files or ready) and self.preview.steps > 0
        shows = shows_of(family_named(self.model.family), self.text, there)
        given = self.preview.controls or (opened(files) if shows.shown else ())
        stored = [self.encoded.stored_text(sample) for sample in ready] if shows.shown else []
        controls = ControlPictures(self.codec, shows, given, self.preview_size, stored)
        return Prompter(self.text, controls, live=self.learns_text)

    @property
    def unlike_learnt(self) -> list[str]:
        """What is drawn otherwise than it is learnt, a sentence each, where conditionings came from other nodes."""
        trained = [subset for subset in self.dataset.subsets if subset.config.role == "training"]
        if not self.preview.steps or not all(subset.ready for subset in trained):
            return []
        said = []
        if not self.preview.prompt.strip():
            said.append(
                "preview_prompt: it is empty, and conditionings from other nodes say no words, so samples are drawn without any. "
                "Write what the conditionings say."
            )
        if self.text.sees and not self.preview.controls and ready_pairs(self.dataset, 1):
            said.append(
                "preview_control: samples stand beside the control pictures' latents that came with the conditionings; the text "
                "encoder, which sees pictures, has none to see. Connect a picture for each prompt."
            )
        return said

    @property
    def preview_size(self) -> tuple[int, int]:
        """(width, height) of the sample pictures in pixels."""
        bucket = max(self.plan.buckets, key=lambda row: len(row[2]))[1]
        return self.preview.width or bucket[0], self.preview.height or bucket[1]

    @cached_property
    def preview_cells(self) -> tuple[int, ...]:
        """What the latent of a sample has: (height, width), or (frames, height, width) of a film. AtelierError for a length that
        cannot be drawn."""
        model = self.drawn or self.model
        frames = compatibility.latent_frames("preview_frames", self.preview.frames, model, self.codec)
        return (*([frames] if frames else []), *compatibility.cells_of(*self.preview_size, model, self.codec))

    def adapter(self) -> Adapter:
        """The adapter at step 0."""
        network, seed = self.config.network, self.config.seed
        wanted = trained_layers(self.layers, self.config, family_named(self.model.family), self.encoded.shows.shown)
        if network.start_from:
            adapter = start_from(host.lora_path(network.start_from), self.layers, self.names, network, wanted, seed)
        else:
            adapter = Adapter.fresh(wanted, network, seed)
        set_text_part(adapter, self.config)
        return adapter.to(self.model.device)
