"""Every setting of a run, as frozen dataclasses that refuse contradictions in a painter's words.

The same classes travel in the workflow (as the widgets' values), in the LoRA's metadata and in the run's folder, so
``to_dict`` / ``from_dict`` keep to plain JSON values.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar, get_args

from .errors import AtelierError
from .network.rules import parse_patterns, parse_rules
from .optim import arguments

Crop = Literal["center", "random", "none", "focus"]
Role = Literal["training", "regularisation", "validation"]
Masks = Literal["off", "alpha", "files"]
Broken = Literal["stop", "leave out"]
Targets = Literal["attention", "attention + feed-forward", "all linear", "all", "none"]
Algorithm = Literal["LoRA", "LoHa", "LoKr"]
OptimizerName = Literal[
    "AdamW", "AdamW8bit", "Lion", "Prodigy", "DAdaptAdam", "DAdaptAdamW", "Adafactor", "AdamWScheduleFree", "CAME", "SGD",
]  # fmt: skip
ScheduleName = Literal["constant", "linear", "cosine", "cosine with restarts", "annealing", "polynomial"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
SavePrecision = Literal["fp16", "bf16", "fp32"]
WhenEnough = Literal["off", "say", "stop"]
OnDivergence = Literal["warn", "stop"]
TextEncoders = Literal["none", "clip", "all"]
Levels = Literal["auto", "uniform", "logit-normal", "shifted", "sigmoid"]
LossKind = Literal["mse", "huber", "smooth-l1"]
HuberSchedule = Literal["snr", "constant"]
Weighting = Literal["none", "min-SNR", "debiased", "sigma-sqrt", "cosmap"]

T = TypeVar("T")
# Auto Caption writes to files with the caption's ending: never to pictures, tables of captions, or weights.
NO_CAPTIONS = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".gif", ".tif", ".tiff", ".heic", ".heif", ".jxl", ".jp2", ".tga", ".psd",
    ".jsonl", ".safetensors",
)  # fmt: skip
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
    variants: int = 4
    """How many places of a random crop are cached per picture; 0 encodes every sighting in its step and caches no picture."""

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
        _refuse(
            self.caption_extension.lower().endswith(NO_CAPTIONS),
            f"caption extension: {self.caption_extension!r} files are no caption files, and captions would be written over them. "
            "Use .txt.",
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
        _refuse(not 0 <= self.variants <= 100, f"crop variants: {self.variants} is outside 0 to 100.")
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
    def trains_model(self) -> bool:
        """Whether any layers of the model are named; ``include`` outranks ``targets``, also where these are none."""
        return self.targets != "none" or bool(parse_patterns("include", self.include))

    @property
    def scale(self) -> float:
        """alpha / rank (rs-LoRA: alpha / sqrt(rank)), the factor in front of B(A(x)) in linear layers without a rule."""
        return (self.alpha or self.rank) / (self.rank**0.5 if self.rank_stabilised else self.rank)


@dataclass(frozen=True)
class OptimizerConfig:
    """How the adapter's weights move. A step here is one of the optimizer: ``accumulate`` batches."""

    name: OptimizerName = "AdamW"
    learning_rate: float = 1e-4
    """Peak rate; the schedule multiplies it by a factor between 0 and 1. Prodigy and D-adaptation take 1."""
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this L2 norm; 0 switches clipping off."""
    schedule: ScheduleName = "cosine"
    warmup_steps: int = 0
    """Steps over which the rate rises linearly from 0."""
    warmup_share: float = 0.0
    """The same as a share of all steps."""
    min_rate: float = 0.0
    """Where the schedule ends instead of at 0, as a rate; a constant rate has no use for it."""
    min_share: float = 0.0
    """The same as a share of the peak rate."""
    cycles: int = 1
    """Falls of the rate, for cosine with restarts and annealing."""
    cycle_steps: int = 0
    """Length of one cycle of annealing, which stays at the minimum after the last; 0 spreads the cycles over the run."""
    power: float = 1.0
    """Exponent of polynomial; 1 is a line."""
    optimizer_args: str = ""
    """More settings of the optimizer as ``key=value``; ``lr`` and ``weight_decay`` win over the fields above."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one step of the optimizer."""

    def __post_init__(self) -> None:
        _choice("optimizer", self.name, OptimizerName)
        _choice("schedule", self.schedule, ScheduleName)
        for key in ("lr", "weight_decay"):
            value = self.args.get(key, 0.0)
            _refuse(
                isinstance(value, bool) or not isinstance(value, (int, float)),
                f"optimizer arguments: {key} has to be a number, not {value}.",
            )
        _refuse(
            not 0 < self.peak <= 10,
            f"learning rate: {self.peak:g} must be above 0 and at most 10 (1e-4 is usual for AdamW).",
        )
        _refuse(not 0 <= self.decay < 1, f"weight decay: {self.decay:g} is outside 0 to 1.")
        _refuse(self.max_grad_norm < 0, f"gradient clipping: {self.max_grad_norm} is below 0; 0 switches it off.")
        _refuse(not 1 <= self.accumulate <= 10_000, f"accumulate: {self.accumulate} batches are outside 1 to 10000.")
        self._check_schedule()
        self._check_optimizer()

    def _check_schedule(self) -> None:
        _refuse(self.warmup_steps < 0, f"warmup: {self.warmup_steps} steps is below 0.")
        _refuse(not 0 <= self.warmup_share < 1, f"warmup: a share of {self.warmup_share} is outside 0 to 0.99.")
        _refuse(
            self.warmup_steps > 0 and self.warmup_share > 0,
            f"warmup: {self.warmup_steps} steps and a share of {self.warmup_share} contradict each other; set one of them to 0.",
        )
        _refuse(not self.min_rate >= 0, f"min rate: {self.min_rate} is below 0.")
        _refuse(not 0 <= self.min_share <= 1, f"min rate: a share of {self.min_share} is outside 0 to 1.")
        _refuse(
            self.min_rate > 0 and self.min_share > 0,
            f"min rate: {self.min_rate} and a share of {self.min_share} contradict each other; set one of them to 0.",
        )
        _refuse(
            self.schedule != "constant" and self.min_rate > self.peak,
            f"min rate: {self.min_rate} lies above the learning rate {self.peak}, from which the schedule falls.",
        )
        _refuse(not 1 <= self.cycles <= 10_000, f"cycles: {self.cycles} is outside 1 to 10000.")
        _refuse(not 0 <= self.cycle_steps <= 10_000_000, f"cycle steps: {self.cycle_steps} is outside 0 to 10000000.")
        _refuse(not 0 < self.power <= 10, f"power: {self.power} is outside 0.01 to 10.")

    def _check_optimizer(self) -> None:
        fixed = self.schedule == "constant" and self.warmup_steps == 0 and self.warmup_share == 0
        _refuse(
            self.adaptive and self.peak < 0.01,
            f"learning rate: {self.name} finds the rate itself and multiplies it by this one, so {self.peak} would learn "
            "nothing. Set it to 1.",
        )
        _refuse(
            self.name == "DAdaptAdamW" and not self.args.get("decouple", True),
            "optimizer arguments: DAdaptAdamW is DAdaptAdam with decouple=True; for decouple=False choose DAdaptAdam.",
        )
        _refuse(
            self.name == "AdamWScheduleFree" and self.schedule != "constant",
            "schedule: AdamWScheduleFree averages the weights instead of lowering the rate; choose constant.",
        )
        relative, warm = self.args.get("relative_step", False), self.args.get("warmup_init", False)
        _refuse(
            self.name == "Adafactor" and bool(warm) and not relative,
            "optimizer arguments: warmup_init=True of Adafactor needs relative_step=True.",
        )
        _refuse(
            self.own_rate and not fixed,
            "schedule: with relative_step=True Adafactor sets its own rate; choose constant, no warmup.",
        )
        _refuse(
            self.own_rate and "lr" in self.args,
            "optimizer arguments: with relative_step=True Adafactor sets its own rate; remove lr, or say relative_step=False.",
        )

    @cached_property
    def args(self) -> dict[str, arguments.Value]:
        """``optimizer_args`` as values."""
        return arguments.parse(self.optimizer_args)

    @property
    def peak(self) -> float:
        """The rate at the schedule's factor 1: ``lr`` of the optimizer arguments, or the learning rate."""
        return float(self.args.get("lr", self.learning_rate))  # type: ignore[arg-type]

    @property
    def decay(self) -> float:
        """``weight_decay`` of the optimizer arguments, or the field of that name."""
        return float(self.args.get("weight_decay", self.weight_decay))  # type: ignore[arg-type]

    @property
    def adaptive(self) -> bool:
        """Whether the optimizer estimates a rate that ``peak`` only multiplies."""
        return self.name in ("Prodigy", "DAdaptAdam", "DAdaptAdamW")

    @property
    def own_rate(self) -> bool:
        """Whether the optimizer takes no rate from outside."""
        return self.name == "Adafactor" and bool(self.args.get("relative_step", False))

    @property
    def clip_norm(self) -> float:
        """The norm that gradients are scaled down to; 0 for Adafactor with its own rate, which clips its updates instead."""
        return 0.0 if self.own_rate else self.max_grad_norm

    def updates(self, batches: int) -> int:
        """Steps of the optimizer in ``batches`` batches; what is left over at the end makes one more."""
        return -(-batches // self.accumulate)


@dataclass(frozen=True)
class NoiseConfig:
    """At which noise levels the model is asked, and what the noise is."""

    levels: Levels = "auto"
    """``auto`` takes what suits the model: uniform for eps and v, for flow what its family is trained with (``families``)."""
    logit_mean: float = 0.0
    """``logit-normal``: mean of the logit; below 0 asks for details more often, above 0 for composition."""
    logit_std: float = 1.0
    """``logit-normal``: standard deviation of the logit."""
    sigmoid_scale: float = 1.0
    """``sigmoid`` and ``shifted``: the levels are sigmoid(scale x normal number); larger spreads them to both ends."""
    shift: float = 0.0
    """``shifted``: factor of the shift towards noise; 0 takes the family's own, 3 for one that has none."""
    lowest: float = 0.0
    """Start of the range that is asked for, as a share of the schedule: 0 is no noise."""
    highest: float = 1.0
    """End of that range: 1 is nothing but noise."""
    offset: float = 0.0
    """Noise offset: strength of one more random number for a whole channel, which lets brightness be learnt; 0 is off."""
    offset_each_channel: bool = True
    """Off: one number moves all channels of a picture alike."""
    offset_random: bool = False
    """On: every picture gets a strength of its own between 0 and ``offset``."""
    pyramid_iterations: int = 0
    """Pyramid (multires) noise: layers of coarser noise that are added; 0 is off, 6 is usual."""
    pyramid_discount: float = 0.3
    """Each coarser layer counts this much of the one before."""
    perturbation: float = 0.0
    """Input perturbation: share of noise that the model sees but is not asked for; 0 is off, 0.1 is usual."""

    def __post_init__(self) -> None:
        _choice("noise levels", self.levels, Levels)
        _refuse(not -10 <= self.logit_mean <= 10, f"logit mean: {self.logit_mean} is outside -10 to 10; 0 is usual.")
        _refuse(not 0.01 <= self.logit_std <= 10, f"logit std: {self.logit_std} is outside 0.01 to 10; 1 is usual.")
        _refuse(not 0.01 <= self.sigmoid_scale <= 10, f"sigmoid scale: {self.sigmoid_scale} is outside 0.01 to 10; 1 is usual.")
        _refuse(
            self.shift != 0 and not 0.01 <= self.shift <= 100,
            f"shift: {self.shift} is outside 0.01 to 100; 0 takes what suits the model.",
        )
        _refuse(
            not 0 <= self.lowest < self.highest <= 1,
            f"noise range: {self.lowest} to {self.highest} is no range within 0 to 1; everything is 0 to 1.",
        )
        _refuse(not 0 <= self.offset <= 1, f"noise offset: {self.offset} is outside 0 to 1; 0.1 is usual.")
        _refuse(not 0 <= self.pyramid_iterations <= 16, f"pyramid noise: {self.pyramid_iterations} layers is outside 0 to 16.")
        _refuse(not 0 < self.pyramid_discount < 1, f"pyramid discount: {self.pyramid_discount} must lie between 0 and 1.")
        _refuse(not 0 <= self.perturbation <= 1, f"input perturbation: {self.perturbation} is outside 0 to 1; 0.1 is usual.")
        _refuse(
            self.offset > 0 and self.pyramid_iterations > 0,
            "noise offset: pyramid noise is on as well, and both do the same. Set one of them to 0.",
        )


@dataclass(frozen=True)
class LossConfig:
    """How wrong an answer counts."""

    kind: LossKind = "mse"
    """``huber`` and ``smooth-l1`` forgive single large errors, such as those of a picture that does not fit the others."""
    huber_schedule: HuberSchedule = "snr"
    """``snr``: forgiving only where there is much noise; ``constant``: everywhere alike."""
    huber_threshold: float = 0.1
    """From about this error on, ``huber`` and ``smooth-l1`` grow linearly instead of as the square."""
    weighting: Weighting = "none"
    """How much each noise level counts: ``min-SNR`` and ``debiased`` are for eps and v models, ``sigma-sqrt`` and ``cosmap`` for
    flow models."""
    snr_gamma: float = 5.0
    """``min-SNR``: levels with a higher signal-to-noise ratio than this count less; 5 is the paper's."""
    preservation: float = 0.0
    """Output preservation: how strongly the model is held to what it answered before training; 0 is off, 1 is usual."""
    preservation_prompt: str = ""
    """What it is held at: a class such as ``a woman``; empty: the captions of the regularisation pictures."""

    def __post_init__(self) -> None:
        _choice("loss", self.kind, LossKind)
        _choice("huber schedule", self.huber_schedule, HuberSchedule)
        _choice("weighting", self.weighting, Weighting)
        _refuse(
            not 0.0001 <= self.huber_threshold <= 1,
            f"huber threshold: {self.huber_threshold} is outside 0.0001 to 1; 0.1 is usual.",
        )
        _refuse(not 0.01 <= self.snr_gamma <= 1000, f"min-SNR gamma: {self.snr_gamma} is outside 0.01 to 1000; 5 is usual.")
        _refuse(not 0 <= self.preservation <= 100, f"output preservation: {self.preservation} is outside 0 to 100; 1 is usual.")


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
        _refuse(self.max_steps < 0, f"steps: {self.max_steps} is below 0; 0 means the epochs decide.")
        _refuse(
            self.max_steps == 0 and self.epochs < 1,
            f"epochs: {self.epochs} would train nothing; use at least 1, or set steps.",
        )
        _refuse(self.epochs > 100_000 or self.max_steps > 10_000_000, "epochs: that would never end; use fewer.")
        for widget, value in (
            ("save every", self.save_every), ("save every steps", self.save_every_steps), ("keep last", self.keep_last),
            ("sample every", self.sample_every), ("sample every steps", self.sample_every_steps),
        ):  # fmt: skip
            _refuse(value < 0, f"{widget}: {value} is below 0.")
        _choice("when enough", self.when_enough, WhenEnough)
        _choice("on divergence", self.on_divergence, OnDivergence)


@dataclass(frozen=True)
class TextConfig:
    """Training of the text encoder beside the model."""

    encoders: TextEncoders = "none"
    """``clip`` trains CLIP-L and CLIP-G only, ``all`` whatever the loaded CLIP holds, T5 and language models included."""
    learning_rate: float = 0.0
    """Its own peak rate; 0 takes the optimizer's. A half to a tenth of that is usual."""

    def __post_init__(self) -> None:
        _choice("text encoder", self.encoders, TextEncoders)
        _refuse(not 0 <= self.learning_rate <= 10, f"text encoder rate: {self.learning_rate} is outside 0 to 10.")


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
    seed: int = 0
    """Seeds the adapter, the order of pictures, the crops and the noise."""
    comment: str = ""
    """Free text for the LoRA's metadata (``ss_training_comment``)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", check_run_name(self.name))
        _choice("precision", self.precision, Precision)
        _choice("save precision", self.save_precision, SavePrecision)
        _refuse(not 0 <= self.ema_decay < 1, f"EMA decay: {self.ema_decay} is outside 0 to 0.9999; 0 is off, 0.999 is usual.")
        _refuse(
            not self.network.trains_model and self.text.encoders == "none",
            "targets: neither the model nor the text encoder would be trained; choose layers, or a text encoder.",
        )
        drops = self.network.dropout > 0 or self.network.rank_dropout > 0 or self.network.module_dropout > 0
        _refuse(
            self.compile and drops,
            "compile: with dropout every step is another computation, which would be compiled anew. Switch one of them off.",
        )
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
        "network": NetworkConfig, "optimizer": OptimizerConfig, "noise": NoiseConfig, "loss": LossConfig,
        "length": LengthConfig, "text": TextConfig,
    }  # fmt: skip
    parts = {k: from_dict(nested[k], v) if k in nested and isinstance(v, dict) else v for k, v in values.items()}
    return kind(**parts)
