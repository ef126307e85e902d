"""Outlook: what a recipe that is only typed yet would come to: steps, sizes, memory, time, and what is to be warned of.

Every field of the page is checked before it is used.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import Any, get_args, get_type_hints

import torch

from ..training import host
from ..training.config import NetworkConfig, SliderSource, SubsetConfig, TrainingConfig, sweep
from ..training.dataset.controls import nearest
from ..training.dataset.plan import latent_frames
from ..training.dataset.steps_ahead import SubsetSource, controls, pairs, steps_per_epoch
from ..training.errors import AtelierError
from ..training.estimate import activations, disk
from ..training.estimate.cautions import Prospect, cautions, expected_files
from ..training.estimate.recipe import look_ahead, sizes
from ..training.families import family_named
from ..training.files import room_on_disk
from ..training.grid.foreseen import AXES, grid_cautions
from ..training.performance.memory import Activations
from ..training.performance.thrift import Thrift
from ..training.tensors.precision import compute_dtype
from ..training.tensors.safetensors_header import read_header
from .asked import Refused, text_of
from .configure_lora import KINDS as PARTS
from .configure_lora import NOTHING, WIDGETS, build_all
from .folders import index_of, named

MOST_DATASETS = 64
LONGEST = 10_000
"""Characters of a text."""
LARGEST_SIDE = 16_384
"""Pixels, as Train LoRA's widgets have it."""
MOST_SAMPLES = 10_000_000
"""Of one save, each frame of a film counted."""
MOST_LORAS = 256
"""Names that are looked at."""
OUTLOOK = ("widgets", "datasets", "model", "loras", "texts", "grids", "samples", "steps", "guidance", "preview", "film")


@lru_cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def checked(kind: type, field: str, value: Any) -> Any:
    """``value`` if a field of the dataclass could hold it; ranges and choices are the dataclass's own business."""
    wanted = _hints(kind)[field]
    name = getattr(wanted, "__name__", "")
    if wanted is bool:
        fits = isinstance(value, bool)
    elif wanted is int:
        fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**64
    elif wanted is float:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300 and math.isfinite(value)
    else:  # a text, or a choice among texts
        name, fits = "str", isinstance(value, str) and len(value) <= LONGEST and "\0" not in value
    if not fits:
        raise Refused(400, f"{field}: this is no {name}.")
    return float(value) if wanted is float else value


def recipes_of(values: Any) -> list[TrainingConfig]:
    """The recipes that Configure LoRA's widgets describe, several for a sweep; AtelierError for contradictions."""
    if not isinstance(values, dict):
        raise Refused(400, "widgets: an object is needed.")
    own = {f.name for f in dataclasses.fields(TrainingConfig)} - set(PARTS)
    widgets = {}
    for widget, value in values.items():
        if widget == "preset":
            continue
        if widget == "sweep":
            widgets[widget] = checked(TrainingConfig, "varied", value)
            continue
        part, field = WIDGETS.get(widget, ("", widget))
        if not part and field not in own:
            raise Refused(400, f"widgets: {widget[:40]!r} is unknown.")
        widgets[widget] = checked(PARTS[part] if part else TrainingConfig, field, value)
    if widgets.get("start_from", NOTHING) not in (NOTHING, ""):
        host.lora_path(widgets["start_from"])  # refuses a name that no loader lists
    return build_all(**widgets)


def sources_of(values: Any) -> list[SubsetSource] | None:
    """The Load Dataset nodes in front of a run, in their order; None if nobody knows them."""
    if values is None:
        return None
    if not isinstance(values, list) or not 0 < len(values) <= MOST_DATASETS or not all(isinstance(v, dict) for v in values):
        raise Refused(400, "datasets: a list of objects is needed.")
    fields, out = {f.name for f in dataclasses.fields(SubsetConfig)} - {"slider"}, []
    for widgets in values:
        known = {k: checked(SubsetConfig, k, v) for k, v in widgets.items() if k in fields}
        folder, root = named(text_of(known, "folder"))
        source, slider = SubsetSource(SubsetConfig(**known), folder, root, index_of(folder)), slider_of(widgets.get("slider"))
        if slider is None:
            out.append(source)
        elif source.config.role != "validation":
            out.append(source.sliding(slider))
    return out


def slider_of(value: Any) -> SliderSource | None:
    """From what a Slider Dataset behind a folder learns; None without one."""
    found: SliderSource | None = next((source for source in get_args(SliderSource) if source == value), None)
    if found is None and value is not None:
        raise Refused(400, f"slider: one of {', '.join(get_args(SliderSource))} is needed.")
    return found


def model_of(values: Any) -> Path | None:
    """The file of the loader in front of a run; None if nobody knows it."""
    if values is None:
        return None
    if not isinstance(values, dict):
        raise Refused(400, "model: an object is needed.")
    return host.model_file(text_of(values, "widget"), text_of(values, "file"))


def texts_of(values: Any) -> tuple[Path, ...]:
    """The files of the loader in front of a run's text encoder."""
    if values is None:
        return ()
    if not isinstance(values, list) or len(values) > 4 or not all(isinstance(one, dict) for one in values):
        raise Refused(400, "texts: a list of at most 4 objects is needed.")
    named = [(text_of(one, "widget"), text_of(one, "file")) for one in values]
    try:
        return tuple(host.model_file(widget, file, host.TEXT_WIDGETS) for widget, file in named)
    except AtelierError:  # of another pack's loader; what the encoder adds is not known then
        return ()


def outlook(values: dict[str, Any]) -> dict[str, Any]:
    """The curve, the steps and what is expected of file and memory; ``sentence`` is what stands in the way of one of them."""
    sentences: list[str] = []

    def tried(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except AtelierError as error:
            sentences.append(str(error))
            return None

    recipes = tried(lambda: recipes_of(values.get("widgets"))) or []
    config = next(iter(recipes), None)
    sources = tried(lambda: sources_of(values.get("datasets")))
    steps = tried(lambda: steps_per_epoch(sources)) if sources else None
    ahead = tried(lambda: look_ahead(config, steps)) if config else None
    model = tried(lambda: model_of(values.get("model")))
    texts = texts_of(values.get("texts"))
    expected = (tried(lambda: _sizes(config, model, sources, texts)) if config and model else None) or Sizes()
    grids, samples = grids_of(values.get("grids")), samples_of(values.get("samples"))
    of_grids = [grid_cautions(grid, None) for grid in grids]
    warned: list[str] = []
    if config:
        beside, full = disk.beside_loras(host.runs_folder(), host.loras_folder(), expected.state)
        prospect = _prospect(config, steps, dataclasses.replace(expected, state=beside), model, sources, samples)
        prospect = dataclasses.replace(prospect, trainings=len(recipes))
        prospect = dataclasses.replace(prospect, **pictures_of(values, model), **films_of(values, model, sources))
        files = expected_files(prospect)
        of_grids = [grid_cautions(grid, files) for grid in grids]
        warned = [*cautions(prospect), *full]
    warned = list(dict.fromkeys([*(one for found in of_grids for one in found), *warned]))
    drawn = dataclasses.asdict(ahead) if ahead else {}
    notes = [*sweep.remarks([recipe.varied for recipe in recipes]), *drawn.get("notes", ())]
    drawn["notes"] = [note for note in notes if note not in warned]
    told = [sentence for sentence in warned if sentence not in sentences]
    shown = {name: value for name, value in dataclasses.asdict(expected).items() if name != "state"}
    return {**drawn, **shown, "warnings": told, "grids": of_grids, "sentence": sentences[0] if sentences else ""}


def grids_of(values: Any) -> tuple[dict[str, str], ...]:
    """The text widgets of the grids behind a run."""
    if values is None:
        return ()
    if not isinstance(values, list) or len(values) > MOST_DATASETS or not all(isinstance(grid, dict) for grid in values):
        raise Refused(400, "grids: a list of objects is needed.")
    for grid in values:
        if grid.keys() - {"which_epochs", *AXES} or not all(isinstance(v, str) for v in grid.values()):
            raise Refused(400, "grids: only texts of a grid's axes are needed.")
    return tuple(values)


def samples_of(value: Any) -> int:
    """Pictures, or frames of films, that Train LoRA draws at every save."""
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_SAMPLES:
        raise Refused(400, f"samples: a number up to {MOST_SAMPLES} is needed.")
    return value


def loras_of(values: Any) -> tuple[str, ...]:
    """Names of the LoRAs that lie on a model."""
    if values is None:
        return ()
    if not isinstance(values, list) or not all(isinstance(v, str) and len(v) <= 1000 for v in values):
        raise Refused(400, "loras: a list of names is needed.")
    return tuple(PureWindowsPath(file).stem for file in values[:MOST_LORAS])


def pictures_of(values: Mapping[str, Any], model: Path | None) -> dict[str, Any]:
    """What a prospect has of the LoRAs on the trained ``model``, and of how and with what its samples are drawn."""
    loras, other = loras_of(values.get("loras")), values.get("preview")
    found: dict[str, Any] = {"loras": loras}
    if values.get("steps") is not None and values.get("guidance") is not None:
        steps, guidance = samples_of(values["steps"]), checked(NetworkConfig, "alpha", values["guidance"])
        found["drawn_at"] = (steps, guidance) if steps else None
    if other is None:
        return found
    if not isinstance(other, dict):
        raise Refused(400, "preview: an object is needed.")
    drawn = None
    with suppress(AtelierError):  # of another pack's loader, or gone; then there is no name to tell anything by
        drawn = model_of(other.get("model"))
    on_drawn = loras_of(other.get("loras"))
    assisted = drawn is not None and drawn == model and set(on_drawn) < set(loras)
    return {**found, "preview": drawn.stem if drawn else "", "preview_loras": on_drawn, "assisted": assisted}


def films_of(values: Mapping[str, Any], model: Path | None, sources: list[SubsetSource] | None) -> dict[str, Any]:
    """What a prospect has of samples that are films: a side of 0 is that of the largest pictures that are trained on."""
    film = values.get("film")
    if film is None:
        return {}
    if not isinstance(film, dict) or film.keys() != {"frames", "width", "height"}:
        raise Refused(400, "film: an object with frames, width and height is needed.")
    if not all(type(number) is int and 0 <= number <= LARGEST_SIDE for number in film.values()):
        raise Refused(400, f"film: numbers from 0 to {LARGEST_SIDE} are needed.")
    side = max((source.config.side for source in sources or ()), default=0)
    size, frames = (film["width"] or side, film["height"] or side), film["frames"]
    if frames < 2 or not all(size):
        return {}
    drawn, found = model, None
    with suppress(AtelierError, OSError):  # as for its name
        drawn = model_of(values["preview"].get("model")) if values.get("preview") else model
        found = None if drawn is None else _outline(drawn, drawn.stat().st_mtime_ns, None)
    needed = None
    if found is not None and found.frames and found.cell is not None:
        needed = found.drawing_bytes((latent_frames(frames, found.frames_each), *found.latents(size).shape[2:]))
    return {"film": (frames, *size), "film_bytes": needed, "device_bytes": host.memory()[1]}


def _prospect(
    config: TrainingConfig,
    steps: int | None,
    expected: Sizes,
    model: Path | None,
    sources: list[SubsetSource] | None,
    samples: int,
) -> Prospect:
    """What is known of the run that these make."""
    sets = [source.config for source in sources or ()]
    outline, paired = None, None
    with suppress(AtelierError, OSError):  # told where its size is asked for
        outline = None if model is None else _outline(model, model.stat().st_mtime_ns, None)
    with suppress(AtelierError):  # told where its steps are asked for
        paired = pairs(sources) if sources else None
    return Prospect(
        config, steps, expected.bytes, expected.state, room_on_disk(host.loras_folder()),
        model.stem if model else "", outline.family if outline else "",
        outline.stored.needed(Thrift(0, 0)) if outline else None,
        tuple(subset.side for subset in sets if subset.role == "training"), host.torch_device().type, samples,
        any(subset.crop == "focus" for subset in sets), paired, outline.few_steps_mark if outline else "",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is expected of a run, in bytes; None where nobody can tell yet."""

    bytes: int | None = None
    """Of a LoRA file."""
    memory: int | None = None
    """Of the model's weights, the adapter and its optimizer."""
    activations: int | None = None
    """Of what a step keeps, which comes on top."""
    state: int | None = None
    """Of what a run keeps on the disk to go on."""


def _sizes(config: TrainingConfig, path: Path, sources: list[SubsetSource] | None, texts: tuple[Path, ...]) -> Sizes:
    changed = path.stat().st_mtime_ns
    dtype = compute_dtype(config.precision, host.torch_device())
    activations: int | None = None
    outline = _outline(path, changed, dtype)
    if outline is None:
        return Sizes()
    learns_text = config.text.encoders != "none"
    stamps = tuple(text.stat().st_mtime_ns for text in texts)
    layers, text_bytes = (_text_outline(texts, stamps) if learns_text and texts else None) or (None, 0)
    size, adapter, state = sizes(config, outline.layers(), outline.lora_names(), layers)
    if adapter is None:
        return Sizes(size)
    blocks = len(outline.stored.blocks)
    thrift = Thrift.asked(config, blocks, blocks, host.torch_device())
    if sources and not learns_text:  # what an encoder keeps is not known before it reads a caption
        # A bucket's area is at most that of the square.
        for side, pictures in largest_batches([source.config for source in sources], outline.frames_each):
            kept = _activations(path, changed, config.network, dtype, side, _controls(outline.family, sources, side))
            activations = None if kept is None else max(activations or 0, kept.needed(thrift, config, pictures))
    return Sizes(size, outline.stored.needed(thrift) + text_bytes + adapter, activations, state)


def largest_batches(subsets: Sequence[SubsetConfig], frames_each: int = 4) -> list[tuple[int, int]]:
    """(side of a square in pixels, pictures) of the batches among which the one that needs most is: none has more of both.

    A clip counts as so many pictures as its latent has frames, by the largest number that a film may have; ``frames_each``:
    ``Outline.frames_each``.
    """
    sizes = {
        (
            round(one.side / 64) * 64 if one.fixed_height else one.resolution,
            one.batch_size * latent_frames(max(one.clip_counts, default=1), frames_each),
        )
        for one in subsets
    }
    return sorted(a for a in sizes if not any(a != b and a[0] <= b[0] and a[1] <= b[1] for b in sizes))


@lru_cache(maxsize=2)
def _outline(path: Path, _changed: int, dtype: torch.dtype | None) -> host.Outline | None:
    return host.outline(read_header(path), dtype)


@lru_cache(maxsize=2)
def _text_outline(paths: tuple[Path, ...], _changed: tuple[int, ...]) -> tuple[dict[str, torch.nn.Linear], int] | None:
    return host.text_outline([read_header(path) for path in paths])


def _controls(family: str, sources: list[SubsetSource], side: int) -> tuple[tuple[int, int], ...]:
    """Sizes of what a model of this family is shown beside the picture that has most of it."""
    known = family_named(family)
    try:
        found = controls(sources) if known.edits else ()
    except AtelierError:  # told where their steps are asked for
        return ()
    if known.controls_in_shapes:
        return tuple(nearest(*size) for size in found)
    return tuple((side, side) for _ in found) if known.controls_as_large else found


@lru_cache(maxsize=64)
def _activations(
    path: Path,
    changed: int,
    network: NetworkConfig,
    dtype: torch.dtype | None,
    side: int,
    beside: tuple[tuple[int, int], ...],
) -> Activations | None:
    """Of one picture of so many pixels a side, beside control pictures."""
    outline = _outline(path, changed, dtype)
    return None if outline is None else activations.activations(outline, network, (side, side), beside)
