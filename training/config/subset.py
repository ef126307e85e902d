"""Settings of a subset: how the pictures of a folder are used."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from .lists import listed
from .refusal import check_kinds, choice, refuse
from .slider import SliderConfig

Crop = Literal["center", "random", "none", "focus", "head"]
Role = Literal["training", "regularisation", "validation"]
Masks = Literal["off", "alpha", "files"]
Broken = Literal["stop", "leave out"]

CaptionLines = Literal["one text", "alternatives", "first line"]
DroppedCaption = Literal["empty", "trigger words"]
ClipStart = Literal["beginning", "middle", "chunks", "evenly"]
ENDING = re.compile(r"(\.[A-Za-z0-9_-]{1,20}){1,2}")
FURTHER_ENDING = re.compile(r'(\.(?! )[^.,，、､،/\\:*?"<>|\x00-\x1f\x7f]{1,100}(?<! )){1,2}')
"""A further file's ending may have any words; commas stand between several of them."""

# Auto Caption and the captions' dialog write to files with the caption's ending: to no picture, table or program.
CAPTION_ENDINGS = (
    ".txt", ".text", ".caption", ".captions", ".cap", ".tags", ".tag", ".prompt", ".wd14", ".wd14_cap", ".llmcap", ".booru",
)  # fmt: skip
GUESSED = (
    "utf-8", "gb18030", "big5", "shift-jis", "euc-jp", "euc-kr", "windows-1250", "windows-1251", "koi8-r", "windows-1252",
    "windows-1253", "windows-1254", "utf-16-le", "utf-16-be",
)  # fmt: skip
"""Encodings that a guess may find."""
ENCODINGS = (*GUESSED, "windows-874", "windows-1255", "windows-1256", "windows-1258")


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
    """Flip horizontally with probability 1/2, each time anew."""
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
    caption_encoding: str = "detect"
    """Encoding of the caption files that are not UTF-8, one of ``ENCODINGS``; ``detect`` guesses where letters tell enough."""
    caption_lines: CaptionLines = "one text"
    """What the lines of a caption file are: joined to one text, or alternatives, of which every sighting takes one, or the
    caption and remarks below it."""

    head_margin: float = 0.75
    """Room around the face, in shares of its size on every side; only for the crop ``head``."""
    fixed_height: int = 0
    """Without buckets: height of the one size, whose width is ``resolution``, in pixels; 0 is the square."""
    bucket_no_upscale: bool = False
    """A picture that would have to be enlarged for its bucket gets a smaller one of its own."""
    slider: SliderConfig | None = None
    """What a slider is learnt from on these pictures; None: the pictures themselves are learnt."""
    wildcards: bool = False
    """Of ``{a|b}`` in a caption every sighting takes one; off: braces are text."""
    further_captions: str = ""
    """Endings of further caption files beside a picture, with commas between them (``.short.txt, .json``); their texts are
    alternatives to the caption."""
    trigger_words: str = ""
    """Words, with commas between them; a part of a caption in which one of them stands is neither moved nor dropped."""
    keep_separator: str = ""
    """What parts a caption: the parts in front of it, and behind a second one, are neither moved nor dropped (``|||``)."""
    dropped_caption: DroppedCaption = "empty"
    """What ``caption_dropout`` leaves of a caption: nothing, or those of the trigger words that stand in it."""
    clip_frames: str = ""
    """Numbers of frames that clips of films may have, with commas between them (``1, 17, 33``); empty: films are not used."""
    clip_start: ClipStart = "beginning"
    """Which clips of a film: one from its beginning or middle, one behind the other, or overlapping ones that cover all of it."""
    clip_rate: float = 0.0
    """Frames a second of the clips; 0 is each film's own."""

    def __post_init__(self) -> None:
        check_kinds(self)
        refuse(not self.folder, "folder: choose a folder with pictures.")
        refuse(not 64 <= self.resolution <= 4096, f"resolution: {self.resolution} is outside 64 to 4096 pixels.")
        refuse(not 1 <= self.batch_size <= 1024, f"batch size: {self.batch_size} is outside 1 to 1024.")
        refuse(not 0 <= self.repeats <= 10_000, f"repeats: {self.repeats} is outside 0 to 10000.")
        refuse(
            self.bucket_step < 8 or self.bucket_step % 8 != 0,
            f"bucket step: {self.bucket_step} is not a multiple of 8 pixels (one cell of the latent).",
        )
        refuse(
            self.resolution % self.bucket_step != 0,
            f"resolution: {self.resolution} is not a multiple of the bucket step {self.bucket_step}; "
            f"try {max(1, round(self.resolution / self.bucket_step)) * self.bucket_step}.",
        )
        height = self.fixed_height
        refuse(
            height != 0 and (not 64 <= height <= 4096 or height % self.bucket_step != 0),
            f"fixed height: {height} is no multiple of the bucket step {self.bucket_step} between 64 and 4096; 0 is the square.",
        )
        refuse(
            height != 0 and self.buckets, "fixed height: buckets choose the sizes themselves. Switch buckets off, or set it to 0."
        )
        refuse(height not in (0, self.resolution) and self.crop == "head", "fixed height: heads are cut out square. Set it to 0.")
        refuse(
            self.bucket_no_upscale and not self.buckets,
            "bucket no upscale: without buckets all pictures are brought to one size. Switch one of the two.",
        )
        choice("crop", self.crop, Crop)
        ending = self.caption_extension.lower()
        refuse(
            not ENDING.fullmatch(self.caption_extension),
            f"caption extension: {self.caption_extension!r} is not a file suffix such as .txt.",
        )
        refuse(
            not ending.endswith(CAPTION_ENDINGS),
            f"caption extension: {self.caption_extension!r} files are no caption files, and captions would be written over them. "
            f"Use one of {', '.join(CAPTION_ENDINGS)}.",
        )
        for widget, value, allowed in (("role", self.role, Role), ("masks", self.masks, Masks), ("broken", self.broken, Broken)):
            choice(widget, value, allowed)
        self._check_captions()
        self._check_clips()
        self._check_use()

    @property
    def fixed_size(self) -> tuple[int, int]:
        """(width, height) of all pictures where there are no buckets, and the area that no bucket exceeds."""
        return self.resolution, self.fixed_height or self.resolution

    @property
    def side(self) -> int:
        """Pixels a side of the square with that area."""
        return round(math.sqrt(math.prod(self.fixed_size)))

    @property
    def further_endings(self) -> tuple[str, ...]:
        """Of further caption files, in their order."""
        return listed(self.further_captions)

    @property
    def triggers(self) -> tuple[str, ...]:
        """The trigger words."""
        return listed(self.trigger_words)

    @property
    def clip_counts(self) -> tuple[int, ...]:
        """Numbers of frames of clips, ascending; none where films are not used."""
        return tuple(sorted(int(part) for part in listed(self.clip_frames) if part.isdecimal()))

    def _check_clips(self) -> None:
        choice("clip start", self.clip_start, ClipStart)
        for part in listed(self.clip_frames):
            refuse(
                not (part.isdecimal() and 1 <= int(part) <= 10_000),
                f"clip frames: {part!r} is no number of frames from 1 to 10000. Write whole numbers with commas between them, "
                "such as 1, 17, 33, or leave it empty to do without films.",
            )
        rate = self.clip_rate
        refuse(
            not (rate == 0 or 0.1 <= rate <= 1000),
            f"clip rate: {rate} is outside 0.1 to 1000 frames a second; 0 is the film's own.",
        )

    def _check_captions(self) -> None:
        choice("caption lines", self.caption_lines, CaptionLines)
        choice("dropped caption", self.dropped_caption, DroppedCaption)
        self._check_further()
        encodings = ("detect", *ENCODINGS)
        refuse(
            self.caption_encoding not in encodings,
            f"caption encoding: {self.caption_encoding!r} is not one of {', '.join(encodings)}.",
        )
        for widget, share in (("caption dropout", self.caption_dropout), ("tag dropout", self.tag_dropout)):
            refuse(not 0 <= share < 1, f"{widget}: {share} is outside 0 to 0.99. For no captions at all, switch them off.")
        refuse(not 0 <= self.keep_tokens <= 1000, f"keep tokens: {self.keep_tokens} is outside 0 to 1000.")
        moved = [
            widget
            for widget, on in (
                ("shuffle captions", self.shuffle_captions),
                ("caption dropout", self.caption_dropout > 0),
                ("tag dropout", self.tag_dropout > 0),
            )
            if on
        ]
        refuse(
            not self.captions and bool(moved),
            f"captions: they are off, so {' and '.join(moved)} would have nothing to do. Switch captions on, or that off.",
        )

    def _check_further(self) -> None:
        for ending in self.further_endings:
            refuse(
                not FURTHER_ENDING.fullmatch(ending) or not ending.lower().endswith((*CAPTION_ENDINGS, ".json")),
                f"further captions: {ending!r} is no ending of caption files. Use such as .short.txt, .long.txt or .json, with "
                "commas between them.",
            )
            refuse(
                ending.lower() == self.caption_extension.lower(),
                f"further captions: {ending} is caption_extension already. Name the endings of other files, or leave it empty.",
            )
        refuse(
            bool(self.keep_separator) and (not self.keep_separator.strip() or "," in self.keep_separator),
            f"keep separator: {self.keep_separator!r} would part every caption. Use a sign that no caption has otherwise, such "
            "as |||.",
        )
        refuse(
            self.dropped_caption == "trigger words" and self.caption_dropout > 0 and not self.triggers,
            "dropped caption: trigger words are to stay, but trigger_words is empty. Write them there, or choose empty.",
        )

    def _check_use(self) -> None:
        refuse(not 0 < self.loss_weight <= 100, f"loss weight: {self.loss_weight} is outside 0.001 to 100.")
        refuse(not 0 <= self.mask_floor < 1, f"mask floor: {self.mask_floor} is outside 0 to 0.99; switch masks off instead.")
        refuse(not 0 <= self.validation_share < 1, f"validation share: {self.validation_share} is outside 0 to 0.99.")
        refuse(not 0 <= self.head_margin <= 5, f"head margin: {self.head_margin} is outside 0 to 5 times the face's size.")
        refuse(not 0 <= self.variants <= 100, f"crop variants: {self.variants} is outside 0 to 100.")
        refuse(not 0 <= self.validation_seed < 2**64, f"validation seed: {self.validation_seed} is outside 0 to 2^64 - 1.")
        refuse(
            self.role != "training" and self.validation_share > 0,
            f"validation share: nothing can be held out of a subset whose role is {self.role}. Set it to 0.",
        )
