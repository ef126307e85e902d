"""Compatibility check of model, text encoder and VAE, before anything is encoded, drawn or written.

A VAE is told by what the host says of it. A text encoder is told by what it gives for one caption: a model of shapes without
numbers is asked whether it could read that. It is refused only where the model could read the same text in another width, so that
whatever else such a model cannot do counts for nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import host
from .dataset import moving
from .errors import AtelierError, NotFinite, is_out_of_memory
from .estimate.activations import Shapes
from .families import family_named
from .protocols import CanvasText, EncodedText
from .tensors.finite import is_finite

SIDES = (256, 512)
"""Pixels of the squares that are asked about, the second where the network cannot do with the first; without numbers a size costs
nothing."""
PARTS = ("cond", "pooled_output")
MOST_TRIALS = 4
"""Widths that are tried in turn: there is one for each part, and one for a part that was not there at all."""
USUAL_POOLED = 768
"""Width of a pooled vector where there is nothing to tell it by yet."""
MISFIT = re.compile(
    r"cannot be multiplied|same reduction dim|normalized_shape|size of tensor|to have \d+ channels|Sizes of tensors must match|"
    r"invalid for input of size|tensor\.size\[|expected .* channels|Mismatching argument|conditioning with"
)
"""What torch, or a network, says when two things are not of one shape."""
LACKS = re.compile(r"NoneType|required positional argument|pooled")
"""What Python says when a part of the text isn't there."""
ASKS = tuple(
    re.compile(pattern)
    for pattern in (
        r"got \[\d+, (?P<given>\d+)\] X \[(?P<wanted>\d+), \d+\]",
        r"\(\d+x(?P<given>\d+) and (?P<wanted>\d+)x\d+\)",
        r"normalized_shape=\[(?P<wanted>\d+)\].*size ?\[(?:\d+, )*(?P<given>\d+)\]",
        r"=(?P<wanted>\d+) features .* got (?P<given>\d+)",
    )
)
"""The same with the width that there was, and the one that the network reads."""


@dataclass(frozen=True)
class Misreading:
    """A part of a text that the model could read in another width."""

    part: str
    given: int
    """0 if the text has no such part."""
    wanted: int


def check(model: host.Model, text: host.TextEncoder, codec: host.PictureCodec) -> None:
    """AtelierError naming the wire of a text encoder or VAE that is not there, and of a VAE whose latents are another model's."""
    if text.clip is None:
        raise AtelierError(
            "clip: the file that was loaded holds no text encoder. Connect a Load CLIP with the one that belongs to the model."
        )
    if not codec.is_there:
        raise AtelierError(
            "vae: the file that was loaded holds no VAE. Connect a Load VAE with the one that belongs to the model."
        )
    dimensions, frames = codec.dimensions, model.frames
    if codec.channels is not None and codec.channels != model.latent_channels:
        made, read = f"has {codec.channels} channels", f"one with {model.latent_channels}"
    elif dimensions is not None and dimensions != (3 if frames else 2):
        made = f"is that of {({1: 'sound', 2: 'a picture', 3: 'a film'}).get(dimensions, 'something else')}"
        read = "that of a film" if frames else "that of a picture"
    elif None not in (model.cell, codec.cell) and codec.cell != model.cell:
        made, read = f"has a cell for {codec.cell} pixels", f"one with a cell for {model.cell}"
    else:
        return
    raise AtelierError(
        f"vae: its latent {made}, and this {model.family} model works on {read}. Connect the VAE that belongs to the model, from "
        "its Load Checkpoint or from Load VAE."
    )


def square_of(model: host.Model, codec: host.PictureCodec) -> int:
    """Pixels of which a picture's sides have to be multiples: what a cell of the latent covers, or what the network reads."""
    return math.lcm(codec.downscale, family_named(model.family).square)


def cells_of(width: int, height: int, model: host.Model, codec: host.PictureCodec) -> tuple[int, int]:
    """(height, width) of the latent of the largest picture that can be drawn within so many pixels."""
    square, cell = square_of(model, codec), codec.downscale
    return height // square * square // cell, width // square * square // cell


def latent_frames(widget: str, frames: int, model: host.Model, codec: host.PictureCodec) -> int:
    """Frames of the latent of a film of ``frames``, 0 for a picture; AtelierError for what cannot be drawn."""
    if frames == 1:
        return 0
    family = family_named(model.family)
    if not model.frames or (family.known and not family.films):
        raise AtelierError(f"{widget}: this {model.family} model draws pictures, which have one frame. Set it to 1.")
    if not 1 < frames <= moving.MOST:
        raise AtelierError(f"{widget}: {frames} is outside 1 to {moving.MOST}; 1 draws pictures.")
    if codec.dimensions is not None and codec.dimensions != 3:
        raise AtelierError(f"{widget}: the connected VAE knows pictures only. Connect the model's own, or set it to 1.")
    fitting = moving.nearest(frames, codec.frames_into, codec.frames_out)
    if fitting != [frames]:
        raise AtelierError(
            f"{widget}: {frames} frames is no length that this VAE makes; the nearest are {' and '.join(map(str, fitting))}."
        )
    return codec.frames_into(frames)


def check_text(model: host.Model, text: EncodedText, wire: str = "clip") -> None:
    """AtelierError if the model cannot read ``text``, one encoded caption; ``wire`` is where it came in."""
    tokens = family_named(model.family).reads_tokens
    if tokens and tokens not in text:
        raise AtelierError(
            f"{wire}: the text does not come as the words' numbers, which this {model.family} model reads itself. Connect the "
            "CLIP that belongs to the model, from its Load Checkpoint, or conditioning that was made with it."
        )
    found = misread(model, text)
    if found is None:
        return
    whose = "it" if wire == "conditioning" else "the text"
    if found.part == "cond":
        made, read = f"{whose} is encoded in vectors of {found.given} numbers", f"vectors of {found.wanted}"
    elif found.given:
        made, read = f"the pooled vector has {found.given} numbers", f"one of {found.wanted}"
    else:
        made, read = "there is no pooled vector", "one"
    if wire == "preview_model":
        raise AtelierError(
            f"preview_model: the text that the connected clip gives is not what this {model.family} model reads: {made}, "
            f"and it reads {read}. Connect one that the LoRA can be used on, or none."
        )
    mend = "Connect the CLIP that belongs to the model" if wire == "clip" else "Encode the captions with the CLIP of the model"
    raise AtelierError(
        f"{wire}: {made}, and this {model.family} model reads {read}. {mend}, from its Load Checkpoint, or from Load CLIP with "
        "the type of the model."
    )


def check_conditioning(model: host.Model, conditioning: CanvasText) -> None:
    """``check_text`` for a CONDITIONING."""
    cond, extras = conditioning[0][:2]
    check_text(model, {"cond": cond, **{name: value for name, value in extras.items() if isinstance(value, Tensor)}})


def misread(model: host.Model, text: EncodedText) -> Misreading | None:
    """The first part of ``text`` that keeps the model from reading it; None if it can, or if there is no telling."""
    outline = host.outline_of(model)
    if outline is None:
        return None
    given = {name: value for name, value in text.items() if value is not None}
    for side in SIDES:
        attempt = partial(_trial, outline, side)
        first = attempt(given)
        if first.error is None or first.is_misfit(given):
            return _search(attempt, given, first)
    return None


def _search(attempt: Callable[[EncodedText], _Trial], text: EncodedText, last: _Trial) -> Misreading | None:
    """What of the text, in the width that its failure asks for, lets the pass come further, until nothing of it is in the way."""
    now = dict(text)
    for _ in range(MOST_TRIALS):
        if last.error is None or not last.is_misfit(now):
            break
        others = _others(now, last.error)
        trials = {part: attempt(now | {part: other}) for part, other in others.items()}
        better = {part: trial for part, trial in trials.items() if trial.beats(last)}
        if not better:
            return None
        part, last = max(better.items(), key=lambda pair: (pair[1].error is None, pair[1].calls))
        now |= {part: others[part]}
    else:
        return None
    changed = (Misreading(part, _width(text.get(part)), _width(now.get(part))) for part in PARTS)
    return next((found for found in changed if found.given != found.wanted), None)


@dataclass(frozen=True)
class _Trial:
    """How far a pass of shapes came."""

    error: Exception | None
    calls: int
    """Of torch's functions."""

    def is_misfit(self, text: EncodedText) -> bool:
        """Whether it failed as it does with a text of another model."""
        return _lacks_pooled(text, self.error) or bool(MISFIT.search(str(self.error)))

    def beats(self, other: _Trial) -> bool:
        """Whether it came further than ``other``, or to the end."""
        return self.error is None or (self.calls > other.calls and str(self.error) != str(other.error))


class _Counting(Shapes):
    calls = 0

    def __torch_function__(self, *given: Any, **named: Any) -> Any:
        self.calls += 1
        return super().__torch_function__(*given, **named)


def _trial(outline: host.Outline, side: int, text: EncodedText) -> _Trial:
    counting, error = _Counting(), None
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.device("meta"), counting:
            x = outline.latents_in(outline.latents((side, side)))
            outline.predict(x, torch.ones(1), [outline.condition(text, x, {})])
    except Exception as found:  # many families, many ways to ask for numbers
        error = found
    return _Trial(error, counting.calls)


def _others(text: EncodedText, error: Exception) -> dict[str, Tensor]:
    """Parts of a text in the width that a failure asks for."""
    if _lacks_pooled(text, error):
        return {"pooled_output": torch.empty(1, USUAL_POOLED)}
    out: dict[str, Tensor] = {}
    for pattern in ASKS:
        if found := pattern.search(str(error)):
            given, wanted = int(found["given"]), int(found["wanted"])
            for part, value in ((part, text[part]) for part in PARTS if part in text):
                width = _width(value)
                new = 0
                if part == "pooled_output" and width < given:
                    new = width + wanted - given  # it is read together with other numbers
                elif width % given == 0:
                    new = width // given * wanted  # several layers' answers lie in one vector
                if new > 0 and isinstance(value, Tensor):
                    out[part] = torch.empty(*value.shape[:-1], new)
            break
    return out


def _lacks_pooled(text: EncodedText, error: Exception | None) -> bool:
    """Whether a pooled vector is what may have been missed."""
    if "pooled_output" in text or not isinstance(error, (AttributeError, KeyError, TypeError)):
        return False
    return bool(LACKS.search(str(error)))


def _width(part: object) -> int:
    return part.shape[-1] if isinstance(part, Tensor) else 0


def check_picture(model: host.Model, latents: Tensor, pixels: Tensor) -> None:
    """NotFinite, with the likely cause, where what was sampled or decoded is NaN or infinite: as a picture it would be black."""
    if not is_finite(latents):
        raise NotFinite(
            f"model: what this {model.family} model drew is NaN or infinite, not a picture. Where that is so with a LoRA only, "
            "its strength or the learning rate is too high; else load the model in another number format (--bf16-unet or "
            "--fp32-unet)."
        )
    if not is_finite(pixels):
        raise NotFinite(
            "vae: what it makes of the drawn latent is NaN or infinite, not a picture. Start ComfyUI with --fp32-vae or "
            "--bf16-vae, or connect another VAE."
        )


def told(error: Exception, model: host.Model) -> AtelierError | None:
    """Where two shapes don't fit in a model's pass, a sentence about the wires that bring them; None for any other error."""
    if isinstance(error, AtelierError) or is_out_of_memory(error):
        return None
    shapes = isinstance(error, (RuntimeError, ValueError)) and MISFIT.search(str(error))
    if not shapes and not (isinstance(error, (AttributeError, KeyError, TypeError)) and LACKS.search(str(error))):
        return None
    why = str(error).strip().splitlines()[0]
    return AtelierError(
        f"model, clip, vae: this {model.family} model cannot work on what clip and vae give it ({why}). Connect the CLIP and the "
        "VAE that belong to the model."
    )
