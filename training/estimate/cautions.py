"""Cautions before a run: what can be done and will probably not do what the person means, a sentence each.

Nothing here stops a run. What is only a guess, such as what a file's name says of a model, is said to be one.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

from ..config import TrainingConfig
from ..dataset.samples import counted
from ..families import assistant_word, edit_word, family_named, few_steps_word, noise_half, seems_schnell
from ..optim.optimizers import SOURCES, needs_cuda
from ..optim.remarks import of_rates
from ..performance.memory import size_text
from ..runs.record import SaveKind

MANY = 200
"""Files from which on nobody looks at each."""
DRAWINGS = 2000
"""Sample pictures from which on drawing them is most of a run."""
LISTED = 100_000
"""Files up to which epochs are looked for among them one by one."""
TINY = 200_000_000
"""Bytes of a network that is smaller than any published one, of whose sizes nothing is known."""


@dataclass(frozen=True)
class Sides:
    """The resolutions at which a family was made, as the side of a square in pixels."""

    least: int
    usual: int
    most: int


_SDXL = Sides(768, 1024, 1536)
_FLUX = Sides(384, 1024, 1536)
SIDES = {
    "SD15": Sides(448, 512, 768), "SD20": Sides(448, 768, 960),
    **dict.fromkeys(("SDXL", "SDXLRefiner", "SSD1B", "Segmind_Vega", "KOALA_700M", "KOALA_1B"), _SDXL),
    "SD3": Sides(512, 1024, 1536), "AuraFlow": Sides(512, 1024, 1536), "Flux": _FLUX, "FluxSchnell": _FLUX, "Chroma": _FLUX,
    "Flux2": Sides(512, 1024, 2048), "QwenImage": Sides(512, 1328, 2048), "ZImage": Sides(512, 1024, 2048),
    "HunyuanImage21": Sides(512, 2048, 2560), "HiDream": Sides(512, 1024, 1536), "Lumina2": Sides(512, 1024, 1536),
}  # fmt: skip
"""By the host's name of the family, as their makers publish it, with what trainers commonly use below it."""
WHY_NOT = "A LoRA that is trained on such a model takes the few steps out of it again, and its pictures get soft. "
BASE = "Train on the model that it was made from{}, with this one at preview_model of Train LoRA, and use the LoRA on this one"
ADAPTED = "; or lay a training adapter on this one for training{}, and connect it without at preview_model"
INSTEAD = {
    "schnell": "Flux.1 dev", "klein": "the klein model with base in its name", "turbo": "the one without Turbo in its name",
}  # fmt: skip
ADAPTERS = {
    "ZImage": "ostris/zimage_turbo_training_adapter", "Krea2": "ostris/krea2_turbo_training_adapter",
    "FluxSchnell": "ostris/FLUX.1-schnell-training-adapter",
}  # fmt: skip
"""Where training adapters are published, by the host's name of the family."""
MOST_STEPS, LEAST_GUIDANCE = 16, 2.0
"""Nobody asks a model that was distilled for few steps for more steps than that at a guidance from here on."""

HALVES = {"WAN21_T2V": 0.875}
"""By the host's name of the family: the level at which the second half of a model of two takes over, which for Wan 2.2 T2V A14B
its makers publish (``boundary`` in ``wan_t2v_A14B.py``). The host calls such a half as it calls a Wan 2.1."""
NEARLY = 0.01
"""By how much a range of levels may go beyond a half, of which nothing is said."""


@dataclass(frozen=True)
class Prospect:
    """What is known of a run that is to be; None, 0 or nothing where that isn't known."""

    config: TrainingConfig
    steps_per_epoch: int | None = None
    file_bytes: int | None = None
    """Of a LoRA file."""
    state_bytes: int | None = None
    """Of what a run needs to go on, once."""
    free_bytes: int | None = None
    """On the disk that the files go to."""
    model: str = ""
    """Name of the model's file."""
    family: str = ""
    """The host's name of it."""
    model_bytes: int | None = None
    sides: tuple[int, ...] = ()
    """Resolutions of the training pictures."""
    device: str = ""
    """The kind of device, such as ``cuda``."""
    samples: int = 0
    """Pictures that are drawn at every save."""
    focus: bool = False
    """Whether pictures are cropped around what stands out."""
    pairs: int | None = None
    """Pictures that have control pictures."""
    few_steps: str = ""
    """What of the model itself, beside its name, says that it was distilled for few steps."""
    loras: tuple[str, ...] = ()
    """Names of the LoRAs that lie on the model."""
    preview: str | None = None
    """Name of the model that samples are drawn with, if that is another one; empty if it has none that is known."""
    preview_loras: tuple[str, ...] = ()
    """Names of the LoRAs that lie on that one."""
    assisted: bool = False
    """Whether that one is the trained model without all that lies on it."""
    drawn_at: tuple[int, float] | None = None
    """(steps, guidance) of the samples, where some are drawn."""
    trainings: int = 1
    """Those of a sweep, which leave their files one after the other."""
    film: tuple[int, int, int] | None = None
    """(frames, width, height) of the samples, where they are films; then ``samples`` counts frames."""
    film_bytes: int | None = None
    """What drawing one of these takes beside the model's weights."""
    device_bytes: int | None = None
    """Memory of the device that models work on."""

    @property
    def total(self) -> int | None:
        length = self.config.length
        return length.max_steps or (length.epochs * self.steps_per_epoch if self.steps_per_epoch else None)

    @property
    def epochs(self) -> int | None:
        """Those that are begun."""
        if self.config.length.max_steps and not self.steps_per_epoch:
            return None
        total, each = self.total, self.steps_per_epoch
        return -(-total // each) if total and each else self.config.length.epochs


@dataclass(frozen=True)
class Expected:
    """A LoRA file that will be there."""

    epoch: int
    step: int
    kind: SaveKind

    @property
    def counted(self) -> int:
        return self.step if self.kind == "step" else self.epoch


def cautions(prospect: Prospect) -> list[str]:
    """All of them, the gravest first."""
    return [
        *_packages(prospect), *of_rates(prospect.config), *_distilled(prospect), *_halves(prospect),
        *pair_cautions(prospect), *_sizes(prospect),
        *_saves(prospect), *_films(prospect),
    ]  # fmt: skip


def pair_cautions(prospect: Prospect) -> list[str]:
    """Where pairs of pictures and a model that edits do not come together."""
    return list(_pairs(prospect))


def _pairs(prospect: Prospect) -> Iterator[str]:
    if prospect.pairs is None or not prospect.family:
        return
    family, word = family_named(prospect.family), edit_word(prospect.model)
    have = f"{counted(prospect.pairs, 'picture')} {'has' if prospect.pairs == 1 else 'have'} control pictures"
    if prospect.pairs and not family.edits:
        yield (
            f"dataset: {have}, which a {prospect.family} model does not read; they are trained on by their captions alone. "
            "Load a model that edits, such as Flux Kontext or Qwen-Image-Edit."
        )
    elif prospect.pairs and prospect.model and not word and not family.always_edits:
        yield (
            f"dataset: {have}, and nothing in the model's name ({prospect.model}) says that it edits; a model that does not will "
            "hardly learn to. It is shown them all the same."
        )
    elif not prospect.pairs and word:
        yield (
            f"dataset: this model edits pictures, by its name ({word}), and the dataset has no control pictures; it is trained "
            "as one that draws from text. Put what each picture is made from into a folder control beside them."
        )


def _packages(prospect: Prospect) -> Iterator[str]:
    name = prospect.config.optimizer.name
    source = SOURCES[name]
    if source.package and not _is_installed(source.module):
        yield (
            f"optimizer: {name} needs the Python package {source.package.split('>')[0]}, which is not installed. Install it for "
            f'ComfyUI\'s Python with: pip install "{source.package}", or choose {source.instead}.'
        )
    elif prospect.device and prospect.device != "cuda" and (said := needs_cuda(prospect.config.optimizer)):
        yield said
    if prospect.focus and not _is_installed("smartcrop"):
        yield "crop: focus needs the Python package smartcrop, which is not installed. Install it, or choose another crop."


def _is_installed(module: str) -> bool:
    """Whether the package of a module is there; it is not imported."""
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def _distilled(prospect: Prospect) -> Iterator[str]:
    yield from _trained_on_few_steps(prospect)
    drawn = (prospect.model, *prospect.loras) if prospect.preview is None else (prospect.preview, *prospect.preview_loras)
    (quick, word), at = _speeding(drawn), prospect.drawn_at
    if word and at is not None and at[0] > MOST_STEPS and at[1] >= LEAST_GUIDANCE:
        yield (
            f"preview_cfg: {quick} seems by its name to be distilled for few steps ({word}), and samples are drawn in {at[0]} "
            f"steps at guidance {at[1]:g}, which burns them. Models of that kind want 4 to 8 steps and guidance 1."
        )


def _speeding(names: tuple[str, ...]) -> tuple[str, str]:
    """(name, word) of the first that seems to be for few steps, in which training adapters are called after their models."""
    words = ((name, few_steps_word(name)) for name in names if not assistant_word(name))
    return next(((name, word) for name, word in words if word), ("", ""))


def _trained_on_few_steps(prospect: Prospect) -> Iterator[str]:
    if prospect.preview is not None and (kept := next((name for name in prospect.preview_loras if assistant_word(name)), None)):
        yield (
            f"preview_model: {kept} lies on it, by its name for training alone, so samples, and the MODEL that is handed on, are "
            "with it. Connect the model as it comes from its loader to preview_model of Train LoRA."
        )
    laid = next((name for name in prospect.loras if assistant_word(name)), None)
    if laid is not None and prospect.preview is None:
        yield (
            f"preview_model: {laid} lies on the model, by its name for training alone. So that samples, and the MODEL that is "
            "handed on, are without it, connect the model as it comes from its loader to preview_model of Train LoRA."
        )
    if laid is not None:
        return
    ways = BASE + ADAPTED
    page = _in_brackets(ADAPTERS.get(prospect.family, ""))
    name, word = _speeding(prospect.loras)
    # On a model that is for few steps anyhow the LoRA is not what makes it so, and may be one that takes them out.
    if name and not (few_steps_word(prospect.model) or seems_schnell(prospect.family, prospect.model)):
        yield (
            f"model: {name} lies on it, by its name a LoRA for few steps ({word}); that is a guess. {WHY_NOT}Connect the model "
            "as it comes from its loader to model, and the one with that LoRA to preview_model."
        )
    elif prospect.assisted:
        return
    elif seems_schnell(prospect.family, prospect.model):
        yield (
            "model: by its layers it is Flux.1 schnell, which is distilled for few steps, or was made from it. "
            f"{WHY_NOT}{ways.format(_in_brackets(INSTEAD['schnell']), page)}."
        )
    elif word := few_steps_word(prospect.model):
        yield (
            f"model: by its name, {prospect.model}, it seems to be distilled for few steps ({word}); that is a guess. {WHY_NOT}"
            f"{ways.format(_in_brackets(INSTEAD.get(word, '')), page)}."
        )
    elif prospect.few_steps:
        yield f"model: {prospect.few_steps}, so it was distilled for few steps. {WHY_NOT}{ways.format('', page)}."


def _halves(prospect: Prospect) -> Iterator[str]:
    """Where one of two models that share the levels between them is trained on what the other draws."""
    half, boundary = noise_half(prospect.model), HALVES.get(prospect.family)
    noise = prospect.config.noise
    if not half or boundary is None:
        return
    lowest, highest = (boundary, 1.0) if half == "high" else (0.0, boundary)
    if noise.lowest >= lowest - NEARLY and noise.highest <= highest + NEARLY:
        return
    widget = "lowest_level" if half == "high" else "highest_level"
    yield (
        f"{widget}: by its name, {prospect.model} is the {half}-noise half of a Wan 2.2 14B and draws levels from {lowest:g} to "
        f"{highest:g}, and it would be trained on {noise.lowest:g} to {noise.highest:g}, which reaches into what the other half "
        f"draws. Set lowest_level to {lowest:g} and highest_level to {highest:g}, and train the other half by itself."
    )


def _in_brackets(said: str) -> str:
    return f" ({said})" if said else ""


def _sizes(prospect: Prospect) -> Iterator[str]:
    own = SIDES.get(prospect.family)
    if own is None or prospect.model_bytes is None or prospect.model_bytes < TINY:
        return
    for side in sorted(set(prospect.sides)):
        if not own.least <= side <= own.most:
            yield (
                f"resolution: {side} is not a size of its own for a model of the family {prospect.family} ({own.least} to "
                f"{own.most}, best {own.usual}): what it draws badly there is learnt as well. Set it to "
                f"{f'{own.least} or more' if side < own.least else f'{own.most} or less'}."
            )


def number_of_saves(prospect: Prospect) -> int:
    """LoRA files that will have been written, those that ``keep_last`` deletes among them; 0 if the length is not known."""
    length, total, epochs = prospect.config.length, prospect.total, prospect.epochs
    if epochs is None and total is None:
        return 0
    # The last file is written in any case.
    by_epoch = (epochs - 1) // length.save_every if length.save_every and epochs else 0
    by_step = (total - 1) // length.save_every_steps if length.save_every_steps and total else 0
    return by_epoch + by_step + 1


def _saves(prospect: Prospect) -> Iterator[str]:
    length, written = prospect.config.length, number_of_saves(prospect)
    kept = prospect.trainings * (min(written, length.keep_last + 1) if length.keep_last else written)
    needed = kept * (prospect.file_bytes or 0) + 2 * (prospect.state_bytes or 0)
    free = prospect.free_bytes
    size = f" of {size_text(prospect.file_bytes)}, {size_text(kept * prospect.file_bytes)} in all" if prospect.file_bytes else ""
    if kept > MANY:
        yield f"save_every: {kept:,} files would be saved{size}. Raise save_every or save_every_steps, or set keep_last."
    if free is not None and needed > free:
        of = "the run's" if prospect.trainings == 1 else "the sweep's"
        yield (
            f"disk: {of} {counted(kept, 'file')} and what it needs to go on take about {size_text(needed)}, and "
            f"{size_text(free)} are free. Raise save_every, set keep_last, or make room."
        )
    drawn, film = prospect.samples * _times_drawn(prospect, written), prospect.film
    if drawn > DRAWINGS and film:
        yield (
            f"samples: films of {drawn:,} frames in all would be drawn on the way. Raise sample_every, lower preview_frames, or "
            "write fewer preview prompts."
        )
    elif drawn > DRAWINGS:
        yield f"samples: {drawn:,} pictures would be drawn on the way. Raise sample_every, or write fewer preview prompts."


def _films(prospect: Prospect) -> Iterator[str]:
    """Of samples that no device of this size can draw, wherever the weights are meanwhile."""
    film, needed, there = prospect.film, prospect.film_bytes, prospect.device_bytes
    if film and prospect.samples and needed and there and needed > there:
        frames, width, height = film
        yield (
            f"preview_frames: a sample of {frames} frames at {width} x {height} takes about {size_text(needed)} beside the "
            f"model's weights, by ComfyUI's own measure, and {size_text(there)} is all the memory there is. Lower "
            "preview_frames, preview_width or preview_height."
        )


def _times_drawn(prospect: Prospect, saves: int) -> int:
    length, total, epochs = prospect.config.length, prospect.total or 0, prospect.epochs or 0
    if not length.sample_every and not length.sample_every_steps:
        return saves
    by_epoch = epochs // length.sample_every if length.sample_every else 0
    return by_epoch + (total // length.sample_every_steps if length.sample_every_steps else 0)


def expected_files(prospect: Prospect) -> list[Expected] | None:
    """The LoRA files that there will be in the end; None where that cannot be told, or there are too many."""
    length, total, epochs, each = prospect.config.length, prospect.total, prospect.epochs, prospect.steps_per_epoch
    if epochs is None or number_of_saves(prospect) > LISTED or (length.save_every_steps and not each):
        return None
    ends = range(length.save_every, epochs, length.save_every) if length.save_every else ()
    files = [Expected(epoch, epoch * (each or 0), "epoch") for epoch in ends]
    taken = {file.step for file in files}
    if length.save_every_steps and total and each:
        steps = (step for step in range(length.save_every_steps, total, length.save_every_steps) if step not in taken)
        files += [Expected((step - 1) // each + 1, step, "step") for step in steps]
        files.sort(key=lambda file: file.step)
    if length.keep_last:
        files = files[-length.keep_last :]
    return [*files, Expected(epochs, total or 0, "last")]
