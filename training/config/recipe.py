"""Settings of a whole run: its name, its parts, its length and what is kept."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Literal

from .layer_rules import parse_rules
from .network import NetworkConfig
from .noise import LossConfig, NoiseConfig
from .optimizer import OptimizerConfig
from .refusal import check_kinds, choice, refuse, text_of
from .sweep import name_of

Precision = Literal["auto", "fp32", "bf16", "fp16"]
SavePrecision = Literal["fp16", "bf16", "fp32"]
WhenEnough = Literal["off", "say", "stop"]
OnDivergence = Literal["warn", "stop"]
Speed = Literal["auto", "eager"]
TextEncoders = Literal["none", "clip", "all"]
BaseWeights = Literal["as loaded", "fp8", "int8"]
Syntax = Literal["plain", "ComfyUI"]
"""What captions and prompts are: text as it stands, or text with weights in brackets and ``embedding:`` names."""
RUN_NAME = re.compile(r"[^\W_][\w .+-]*", re.UNICODE)
MOST_LETTERS = 100
"""Of a run's name."""
LONGEST_NAME = 200
"""Bytes; file systems know names of 255, and a step's number, an ending and that of a file being written come behind it."""
# Device names that Windows reserves, whatever the extension.
RESERVED = {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(1, 10)), *(f"lpt{i}" for i in range(1, 10))}


def check_run_name(name: str) -> str:
    """``name`` without surrounding blanks, if it is safe as a file name on every system."""
    name = text_of("name", name).strip()
    refuse(not name, "name: give the LoRA a name; it becomes the file's name.")
    refuse(
        not RUN_NAME.fullmatch(name) or ".." in name or name.endswith(".") or len(name) > MOST_LETTERS,
        f"name: {name!r} cannot be a file name. Use letters, digits, space, '-', '_', '+' or '.', at most 100 of them, "
        "starting with a letter or digit and without '..' or slashes.",
    )
    refuse(
        len(name.encode()) > LONGEST_NAME,
        f"name: {name!r} is too long for a file name. Use at most {LONGEST_NAME} bytes, which are 66 Chinese letters.",
    )
    refuse(name.split(".")[0].lower() in RESERVED, f"name: {name!r} is reserved by Windows; choose another.")
    return name


def check_swept_name(name: str, varied: str) -> None:
    """AtelierError where what a sweep varies makes a run's name too long for a file."""
    whole = name_of(name, varied)
    refuse(
        bool(varied) and (len(whole) > MOST_LETTERS or len(whole.encode()) > LONGEST_NAME),
        f"sweep: with its values behind it the name {whole!r} is too long for a file; shorten name, or vary fewer widgets.",
    )


@dataclass(frozen=True)
class LengthConfig:
    """How long the run is and what is kept on the way."""

    epochs: int = 10
    """Passes over the dataset."""
    max_steps: int = 0
    """If above 0, the run has exactly this many steps and ``epochs`` is not used; the last epoch may be cut short."""
    save_every: int = 1
    """Keep the LoRA of every N-th epoch; 0 keeps none on the way. The last one is always kept, without a number."""
    save_every_steps: int = 0
    """Keep the LoRA of every N-th step as well; 0 does not."""
    keep_last: int = 0
    """Keep only so many of the files saved on the way; 0 keeps all."""
    sample_every: int = 0
    """Draw the samples after every N-th epoch. If this and the next are 0, they are drawn at every save."""
    sample_every_steps: int = 0
    """Draw the samples after every N-th step."""
    when_enough: WhenEnough = "off"
    """What happens once the losses on a fixed set have settled or turned: nothing is measured, it is said, or the run ends."""
    on_divergence: OnDivergence = "warn"
    """What happens when the loss rises to several times its best."""

    def __post_init__(self) -> None:
        check_kinds(self)
        refuse(self.max_steps < 0, f"steps: {self.max_steps} is below 0; 0 means the epochs decide.")
        refuse(
            self.max_steps == 0 and self.epochs < 1,
            f"epochs: {self.epochs} would train nothing; use at least 1, or set steps.",
        )
        refuse(self.epochs > 100_000 or self.max_steps > 10_000_000, "epochs: that would never end; use fewer.")
        for widget, value in (
            ("save every", self.save_every), ("save every steps", self.save_every_steps), ("keep last", self.keep_last),
            ("sample every", self.sample_every), ("sample every steps", self.sample_every_steps),
        ):  # fmt: skip
            refuse(value < 0, f"{widget}: {value} is below 0.")
        choice("when enough", self.when_enough, WhenEnough)
        choice("on divergence", self.on_divergence, OnDivergence)


@dataclass(frozen=True)
class TextConfig:
    """How captions are read, and training of the text encoder beside the model."""

    encoders: TextEncoders = "none"
    """``clip`` trains CLIP-L and CLIP-G only, ``all`` whatever the loaded CLIP holds, T5 and language models included."""
    learning_rate: float = 0.0
    """Its own peak rate; 0 takes the optimizer's. A half to a tenth of that is usual."""

    syntax: Syntax = "plain"
    """Of captions, samples' prompts and the preservation prompt alike."""
    dropout: float = -1.0
    """Share of the values inside the encoders' adapters that a step does without; -1 takes the network's."""

    def __post_init__(self) -> None:
        check_kinds(self)
        choice("text encoder", self.encoders, TextEncoders)
        choice("prompt syntax", self.syntax, Syntax)
        refuse(not 0 <= self.learning_rate <= 10, f"text encoder rate: {self.learning_rate} is outside 0 to 10.")
        refuse(
            self.dropout != -1 and not 0 <= self.dropout < 1,
            f"text_encoder_dropout: {self.dropout} is outside 0 to 0.99; -1 takes dropout.",
        )


@dataclass(frozen=True)
class TrainingConfig:
    """One whole, valid recipe."""

    name: str
    """File name of the LoRA, without extension."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    length: LengthConfig = field(default_factory=LengthConfig)
    text: TextConfig = field(default_factory=TextConfig)
    precision: Precision = "auto"
    """Number format of the model's computation; ``auto`` keeps what ComfyUI loaded. The adapter itself is always fp32."""
    save_precision: SavePrecision = "fp16"
    """Number format in the LoRA file."""
    ema_decay: float = 0.0
    """Save and sample a running average of the weights with this decay; 0 takes the weights as they are."""
    gradient_checkpointing: bool = False
    """Compute the blocks' inner values twice instead of keeping them: about a third slower, and far less memory."""
    compile: bool = False
    """Compile the model's blocks with torch.compile: faster after the first steps, where a compiler is there."""
    offload_activations: bool = False
    """Keep in main memory what the backward pass needs: slower, and far less memory on the GPU."""
    offload_blocks: float = 0.0
    """Share of the model's blocks whose weights stay in main memory and come to the GPU for their own passes only; 0 to 1."""
    base_weights: BaseWeights = "as loaded"
    """How the model's large weights are held while it trains: as they are, or rounded to eight bits, in half of the memory."""
    guidance: float = 1.0
    """The guidance that a guidance-distilled network is told in training; others are told none."""
    speed: Speed = "auto"
    """``auto`` records training steps as CUDA graphs where that can be done; ``eager`` sends each operation anew."""
    seed: int = 0
    """Seeds the adapter, the order of pictures, the crops and the noise."""
    comment: str = ""
    """Free text for the LoRA's metadata (``ss_training_comment``)."""
    varied: str = ""
    """What tells this training from the others of its sweep (``sweep.varied``); empty for one that stands alone."""

    def shared_by(self, processes: int) -> TrainingConfig:
        """The recipe of so many processes that each have ``accumulate`` batches of an update; of one the recipe itself."""
        if processes == 1:
            return self
        return replace(self, optimizer=replace(self.optimizer, accumulate=processes * self.optimizer.accumulate))

    @property
    def run_name(self) -> str:
        """What its run and its files are called."""
        return name_of(self.name, self.varied)

    def __post_init__(self) -> None:
        check_kinds(self)
        object.__setattr__(self, "name", check_run_name(self.name))
        check_swept_name(self.name, self.varied)
        choice("precision", self.precision, Precision)
        choice("save precision", self.save_precision, SavePrecision)
        choice("base weights", self.base_weights, BaseWeights)
        choice("speed", self.speed, Speed)
        refuse(not 0 <= self.guidance <= 100, f"guidance: {self.guidance} is outside 0 to 100; 1 is usual in training.")
        refuse(not 0 <= self.ema_decay < 1, f"EMA decay: {self.ema_decay} is outside 0 to 0.9999; 0 is off, 0.999 is usual.")
        refuse(
            not self.network.trains_model and self.text.encoders == "none",
            "targets: neither the model nor the text encoder would be trained; choose layers, or a text encoder.",
        )
        own = self.text.learning_rate if self.text.encoders != "none" else 0.0
        several = own not in (0, self.optimizer.peak) or self.network.lora_plus_ratio != 1
        refuse(
            self.optimizer.name == "Prodigy"
            and (several or any(rule.rate not in (None, 1) for rule in parse_rules(self.network.rules))),
            "optimizer: Prodigy estimates one rate for everything it trains. Set text_encoder_rate to 0, lora_plus_ratio to 1 "
            "and no rate= in rules, or choose DAdaptAdam, which keeps the ratio of different rates.",
        )
        refuse(
            self.text.encoders != "none" and self.text.dropout > 0 and self.network.algorithm != "LoRA",
            f"text_encoder_dropout: {self.network.algorithm} has no bottleneck to use it on. Set it to -1, or choose LoRA.",
        )
        refuse(not 0 <= self.offload_blocks <= 1, f"offload blocks: {self.offload_blocks} is outside 0 to 1.")
        refuse(
            self.offload_blocks > 0 and not self.gradient_checkpointing,
            "offload blocks: without gradient_checkpointing the backward pass would hold all that came. Switch that on.",
        )
        refuse(
            self.base_weights != "as loaded" and self.network.weight_decompose,
            "base_weights: weight_decompose measures the model's weights, which rounded ones would not be. Set base_weights to "
            "'as loaded', or switch weight_decompose off.",
        )
        refuse(
            self.offload_blocks > 0 and self.compile,
            "compile: blocks whose weights come and go cannot be compiled. Switch compile off, or set offload_blocks to 0.",
        )
        refuse(not 0 <= self.seed < 2**64, f"seed: {self.seed} is outside 0 to 2^64 - 1.")
