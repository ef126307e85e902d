"""Every setting of a run, as frozen dataclasses that refuse contradictions in a painter's words.

The same classes travel in the workflow (as the widgets' values), in the LoRA's metadata and in the run's folder, so
``to_dict`` / ``from_dict`` keep to plain JSON values.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

from .errors import AtelierError
from .network.rules import parse_patterns, parse_rules

Crop = Literal["center", "random", "none", "focus"]
Role = Literal["training", "regularisation", "validation"]
Masks = Literal["off", "alpha", "files"]
Broken = Literal["stop", "leave out"]
Targets = Literal["attention", "attention + feed-forward", "all linear", "all"]
Algorithm = Literal["LoRA", "LoHa", "LoKr"]
OptimizerName = Literal["AdamW", "AdamW8bit", "SGD"]
ScheduleName = Literal["constant", "linear", "cosine"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
SavePrecision = Literal["fp16", "bf16", "fp32"]
Levels = Literal["auto", "uniform", "logit-normal", "shifted"]

T = TypeVar("T")
RUN_NAME = re.compile(r"[^\W_][\w .+-]*", re.UNICODE)
# Device names that Windows reserves, whatever the extension.
RESERVED = {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(1, 10)), *(f"lpt{i}" for i in range(1, 10))}


def _refuse(condition: bool, sentence: str) -> None:
    if condition:
        raise AtelierError(sentence)


def _choice(widget: str, value: str, allowed: Any) -> None:
    options = get_args(allowed)
    _refuse(value not in options, f"{widget}: {value!r} is not one of {', '.join(options)}.")


def check_run_name(name: str) -> str:
    """``name`` without surrounding blanks, if it is safe as a file name on every system."""
    name = name.strip()
    _refuse(not name, "name: give the LoRA a name; it becomes the file's name.")
    _refuse(
        not RUN_NAME.fullmatch(name) or ".." in name or name.endswith(".") or len(name) > 100,
        f"name: {name!r} cannot be a file name. Use letters, digits, space, '-', '_', '+' or '.', at most 100 of them, "
        "starting with a letter or digit and without '..' or slashes.",
    )
    _refuse(name.split(".")[0].lower() in RESERVED, f"name: {name!r} is reserved by Windows; choose another.")
    return name


@dataclass(frozen=True)
class SubsetConfig:
    """How the pictures of one folder are used."""

    folder: str
    """Folder as ``<root>/<relative path>``, for example ``input/portraits``; the root is one of the allowed ones."""
    resolution: int = 512
    """Side of the square whose area is the limit of every bucket, in pixels."""
    batch_size: int = 1
    """Pictures per step; a bucket's last batch may be shorter and is kept."""
    repeats: int = 0
    """Sightings of every picture per epoch; 0 takes the number before the first ``_`` of the folder name, else 1."""
    buckets: bool = True
    """Sort pictures into sizes near their own aspect ratio; off: every picture is cropped to the square."""
    bucket_step: int = 64
    """Bucket sides are multiples of this many pixels."""
    crop: Crop = "center"
    """Where the overflow is cut once the picture covers its bucket; ``none`` scales without keeping the aspect ratio."""
    caption_extension: str = ".txt"
    """Suffix of the caption file beside each picture."""
    role: Role = "training"
    """``regularisation``: cycled or cut to as many sightings as are trained; ``validation``: never trained on."""
    nested: bool = False
    """Take the pictures of sub-folders without a number in front as well."""
    flip: bool = False
    """Mirror every second sighting or so, left to right, by lot."""
    captions: bool = True
    """Off: caption files are not read; the class caption, or an empty text, takes their place."""
    class_caption: str = ""
    """Caption of pictures that have none; wins over the words in the folder's name."""
    caption_prefix: str = ""
    """Text in front of every caption, exactly as it stands here."""
    caption_suffix: str = ""
    """Text behind every caption, exactly as it stands here."""
    shuffle_captions: bool = False
    """Mix the comma-separated parts of a caption at every sighting."""
    keep_tokens: int = 0
    """So many parts at a caption's start are neither moved nor dropped."""
    caption_dropout: float = 0.0
    """Share of the sightings without any caption."""
    tag_dropout: float = 0.0
    """Share of the comma-separated parts that a sighting does without."""
    loss_weight: float = 1.0
    """Factor on the loss of these pictures; for regularisation it is the prior weight."""
    validation_share: float = 0.0
    """Share of the pictures that is held out: never trained on."""
    validation_seed: int = 0
    """Decides which pictures are held out, whatever the run's seed is."""
    masks: Masks = "off"
    """Where loss masks come from: the picture's transparency, or files (``<name>.mask.png`` or the folder ``masks``)."""
    mask_floor: float = 0.1
    """Weight of what the mask excludes; 0 ignores it."""
    broken: Broken = "stop"
    """What a picture that cannot be read does: it stops everything, or is left out and named."""

    def __post_init__(self) -> None:
        _refuse(not self.folder, "folder: choose a folder with pictures.")
        _refuse(not 64 <= self.resolution <= 4096, f"resolution: {self.resolution} is outside 64 to 4096 pixels.")
        _refuse(not 1 <= self.batch_size <= 1024, f"batch size: {self.batch_size} is outside 1 to 1024.")
        _refuse(not 0 <= self.repeats <= 10_000, f"repeats: {self.repeats} is outside 0 to 10000.")
        _refuse(
            self.bucket_step < 8 or self.bucket_step % 8 != 0,
            f"bucket step: {self.bucket_step} is not a multiple of 8 pixels (one cell of the latent).",
        )
        _refuse(
            self.resolution % self.bucket_step != 0,
            f"resolution: {self.resolution} is not a multiple of the bucket step {self.bucket_step}; "
            f"try {max(1, round(self.resolution / self.bucket_step)) * self.bucket_step}.",
        )
        _choice("crop", self.crop, Crop)
        _refuse(
            not re.fullmatch(r"\.[A-Za-z0-9_.-]{1,20}", self.caption_extension) or ".." in self.caption_extension,
            f"caption extension: {self.caption_extension!r} is not a file suffix such as .txt.",
        )
        for widget, value, allowed in (("role", self.role, Role), ("masks", self.masks, Masks), ("broken", self.broken, Broken)):
            _choice(widget, value, allowed)
        self._check_captions()
        self._check_use()

    def _check_captions(self) -> None:
        for widget, share in (("caption dropout", self.caption_dropout), ("tag dropout", self.tag_dropout)):
            _refuse(not 0 <= share < 1, f"{widget}: {share} is outside 0 to 0.99. For no captions at all, switch them off.")
        _refuse(not 0 <= self.keep_tokens <= 1000, f"keep tokens: {self.keep_tokens} is outside 0 to 1000.")
        moved = [
            widget
            for widget, on in (
                ("shuffle captions", self.shuffle_captions),
                ("caption dropout", self.caption_dropout > 0),
                ("tag dropout", self.tag_dropout > 0),
            )
            if on
        ]
        _refuse(
            not self.captions and bool(moved),
            f"captions: they are off, so {' and '.join(moved)} would have nothing to do. Switch captions on, or that off.",
        )

    def _check_use(self) -> None:
        _refuse(not 0 < self.loss_weight <= 100, f"loss weight: {self.loss_weight} is outside 0.001 to 100.")
        _refuse(not 0 <= self.mask_floor < 1, f"mask floor: {self.mask_floor} is outside 0 to 0.99; switch masks off instead.")
        _refuse(not 0 <= self.validation_share < 1, f"validation share: {self.validation_share} is outside 0 to 0.99.")
        _refuse(not 0 <= self.validation_seed < 2**64, f"validation seed: {self.validation_seed} is outside 0 to 2^64 - 1.")
        _refuse(
            self.role != "training" and self.validation_share > 0,
            f"validation share: nothing can be held out of a subset whose role is {self.role}. Set it to 0.",
        )


@dataclass(frozen=True)
class NetworkConfig:
    """The adapter that is trained."""

    rank: int = 16
    """Width of the low-rank bottleneck."""
    alpha: float = 16.0
    """The adapter's output is scaled by alpha / rank; 0 means alpha = rank."""
    targets: Targets = "attention + feed-forward"
    """Which layers of the model get an adapter."""
    algorithm: Algorithm = "LoRA"
    """How the change of a weight is composed; LoHa and LoKr need the package lycoris-lora."""
    weight_decompose: bool = False
    """DoRA: the length of every row of a weight is trained apart from its direction."""
    rank_stabilised: bool = False
    """rs-LoRA: scale by alpha / sqrt(rank), so that high ranks learn as fast as low ones."""
    conv_rank: int = 0
    """Rank of convolutions larger than one pixel; 0 takes ``rank``."""
    conv_alpha: float = 0.0
    """Alpha of these convolutions; 0 keeps the ratio of alpha to rank."""
    lokr_factor: int = -1
    """LoKr splits a side of the weight into this number and the rest; -1 splits it as evenly as possible."""
    dropout: float = 0.0
    """Share of the values inside the bottleneck that a step does without; LoRA only."""
    rank_dropout: float = 0.0
    """Share of the ranks that a step does without."""
    module_dropout: float = 0.0
    """Share of the layers whose adapter sits a step out."""
    scale_weight_norms: float = 0.0
    """Largest norm of a layer's change, kept after every step; 0 sets no limit, 1 is a usual one."""
    lora_plus_ratio: float = 1.0
    """LoRA+: the up-matrices learn this many times faster; 16 is usual, 1 switches it off."""
    include: str = ""
    """Patterns of layer names, one a line; if there are any, these layers are trained and ``targets`` is not used."""
    exclude: str = ""
    """Patterns of layer names, one a line, that get no adapter."""
    rules: str = ""
    """Rank, alpha and rate by pattern, one a line: ``double_blocks.0-9.* rank=8 alpha=4 rate=0.5``."""
    start_from: str = ""
    """A LoRA file to go on from, as the host lists it; its layers and ranks are taken over."""

    def __post_init__(self) -> None:
        _refuse(not 1 <= self.rank <= 1024, f"rank: {self.rank} is outside 1 to 1024.")
        _refuse(not 0 <= self.alpha <= 1024, f"alpha: {self.alpha} is outside 0 to 1024.")
        _choice("targets", self.targets, Targets)
        _choice("algorithm", self.algorithm, Algorithm)
        _refuse(not 0 <= self.conv_rank <= 1024, f"conv rank: {self.conv_rank} is outside 0 to 1024; 0 takes the rank.")
        _refuse(not 0 <= self.conv_alpha <= 1024, f"conv alpha: {self.conv_alpha} is outside 0 to 1024.")
        _refuse(self.lokr_factor != -1 and self.lokr_factor < 2, f"LoKr factor: {self.lokr_factor} is neither -1 nor above 1.")
        for widget, share in (
            ("dropout", self.dropout), ("rank dropout", self.rank_dropout), ("module dropout", self.module_dropout),
        ):  # fmt: skip
            _refuse(not 0 <= share < 1, f"{widget}: {share} is outside 0 to 0.99.")
        _refuse(not 0 <= self.scale_weight_norms <= 1e6, f"scale weight norms: {self.scale_weight_norms} is outside 0 to 1e6.")
        _refuse(not 1 <= self.lora_plus_ratio <= 1024, f"LoRA+ ratio: {self.lora_plus_ratio} is outside 1 to 1024; 1 is off.")
        lora_only = {"dropout": self.dropout > 0, "LoRA+ ratio": self.lora_plus_ratio > 1}
        for widget, used in lora_only.items():
            _refuse(
                used and self.algorithm != "LoRA",
                f"{widget}: {self.algorithm} has no up-matrix behind a bottleneck to use it on. Switch it off, or choose LoRA.",
            )
        parse_patterns("include", self.include)
        parse_patterns("exclude", self.exclude)
        parse_rules(self.rules)

    @property
    def scale(self) -> float:
        """alpha / rank (rs-LoRA: alpha / sqrt(rank)), the factor in front of B(A(x)) in linear layers without a rule."""
        return (self.alpha or self.rank) / (self.rank**0.5 if self.rank_stabilised else self.rank)


@dataclass(frozen=True)
class OptimizerConfig:
    """How the adapter's weights move."""

    name: OptimizerName = "AdamW"
    learning_rate: float = 1e-4
    """Peak rate; the schedule multiplies it by a factor between 0 and 1."""
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this L2 norm; 0 switches clipping off."""
    schedule: ScheduleName = "cosine"
    warmup_steps: int = 0
    """Steps over which the rate rises linearly from 0."""

    def __post_init__(self) -> None:
        _choice("optimizer", self.name, OptimizerName)
        _choice("schedule", self.schedule, ScheduleName)
        _refuse(
            not 0 < self.learning_rate <= 10,
            f"learning rate: {self.learning_rate} must be above 0 and at most 10 (1e-4 is usual for AdamW).",
        )
        _refuse(not 0 <= self.weight_decay < 1, f"weight decay: {self.weight_decay} is outside 0 to 1.")
        _refuse(self.max_grad_norm < 0, f"gradient clipping: {self.max_grad_norm} is below 0; 0 switches it off.")
        _refuse(self.warmup_steps < 0, f"warmup: {self.warmup_steps} steps is below 0.")


@dataclass(frozen=True)
class NoiseConfig:
    """At which noise levels the model is asked."""

    levels: Levels = "auto"
    """``auto`` takes what suits the model: uniform for eps and v, logit-normal for flow, shifted for Flux."""

    def __post_init__(self) -> None:
        _choice("noise levels", self.levels, Levels)


@dataclass(frozen=True)
class LengthConfig:
    """How long the run is and what is kept on the way."""

    epochs: int = 10
    """Passes over the dataset."""
    max_steps: int = 0
    """If above 0, the run has exactly this many steps and ``epochs`` is not used; the last epoch may be cut short."""
    save_every: int = 1
    """Keep the LoRA of every N-th epoch; the last one is always kept, without a number."""

    def __post_init__(self) -> None:
        _refuse(self.max_steps < 0, f"steps: {self.max_steps} is below 0; 0 means the epochs decide.")
        _refuse(
            self.max_steps == 0 and self.epochs < 1,
            f"epochs: {self.epochs} would train nothing; use at least 1, or set steps.",
        )
        _refuse(self.epochs > 100_000 or self.max_steps > 10_000_000, "epochs: that would never end; use fewer.")
        _refuse(self.save_every < 1, f"save every: {self.save_every} epochs; use at least 1.")


@dataclass(frozen=True)
class TrainingConfig:
    """One whole, valid recipe."""

    name: str
    """File name of the LoRA, without extension."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    length: LengthConfig = field(default_factory=LengthConfig)
    precision: Precision = "auto"
    """Number format of the model's computation; ``auto`` keeps what ComfyUI loaded. The adapter itself is always fp32."""
    save_precision: SavePrecision = "fp16"
    """Number format in the LoRA file."""
    seed: int = 0
    """Seeds the adapter, the order of pictures, the crops and the noise."""
    comment: str = ""
    """Free text for the LoRA's metadata (``ss_training_comment``)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", check_run_name(self.name))
        _choice("precision", self.precision, Precision)
        _choice("save precision", self.save_precision, SavePrecision)
        _refuse(not 0 <= self.seed < 2**64, f"seed: {self.seed} is outside 0 to 2^64 - 1.")


def to_dict(config: Any) -> dict[str, Any]:
    """Plain JSON values of a configuration."""
    return dataclasses.asdict(config)


def from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """The configuration that ``to_dict`` wrote; an unknown field is an error, a missing one takes its default."""
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    _refuse(bool(unknown), f"{kind.__name__}: unknown setting {', '.join(unknown)}.")
    nested = {
        "network": NetworkConfig, "optimizer": OptimizerConfig, "noise": NoiseConfig, "length": LengthConfig,
    }  # fmt: skip
    parts = {k: from_dict(nested[k], v) if k in nested and isinstance(v, dict) else v for k, v in values.items()}
    return kind(**parts)
