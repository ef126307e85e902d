"""What the captions' dialog of Load Dataset asks the server; every function takes plain JSON values and gives such back."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from ..training.captioning import editing
from ..training.config import SubsetConfig
from ..training.dataset.films import ENDINGS, is_film
from ..training.dataset.images import EXTENSIONS, open_picture
from ..training.dataset.samples import Dataset, Stretch
from ..training.dataset.words import joined, parts
from ..training.errors import AtelierError
from ..training.files import is_inside, replacing
from .folders import named, subsets_of

LOOKS = (
    "folder",
    "resolution",
    "repeats",
    "buckets",
    "bucket_step",
    "crop",
    "caption_extension",
    "nested",
    "captions",
    "class_caption",
    "caption_encoding",
    "caption_lines",
    "head_margin",
    "fixed_height",
    "bucket_no_upscale",
    "caption_prefix",
    "caption_suffix",
    "wildcards",
    "further_captions",
    "clip_frames",
    "clip_start",
    "clip_rate",
)
"""Settings of Load Dataset that decide which pictures there are and how they are cut."""
WHERE = {"folder": "folder", "nested": "nested", "clip_frames": "clip_frames"}
"""Fields of a request, with the widgets that decide which pictures there are."""
SHOWN = EXTENSIONS | ENDINGS
"""Endings of what there are thumbnails of."""
FILMS = "lora-atelier-films"
"""Folder inside the host's temp folder with small pictures of films."""
THUMBNAIL = 224
"""Longer side in pixels."""
MAX_CAPTIONS = 10_000
EXPECTED = {"str": "a text of at most 10000 letters", "int": "a number", "float": "a number", "bool": "true or false"}
"""What a widget of a kind holds, for a sentence."""


MAX_LETTERS = 5_000_000
"""Letters of all captions of a bulk change together."""
MAX_WORK = 100_000_000
"""Letters of all captions times tags with wildcards: what a bulk change may compare, some seconds' work."""
LONGEST = 1000
"""Letters of a name, or of the tags of a bulk change."""
LONGEST_WIDGET = 10_000
"""Letters of a widget, such as the words in front of every caption."""


def pictures(body: Mapping[str, Any]) -> dict[str, Any]:
    """Every picture of a folder with size, bucket, crop box, caption file and its version, and where its control pictures are.

    A film comes once, with its length and its clips. ``notes`` are remarks on them.
    """
    from ..training.dataset.augment import count_of
    from ..training.dataset.report import inspect, remarks

    settings = body.get("settings")
    if not isinstance(settings, dict):
        raise wrong("settings", "the node's widgets")
    config = config_of({name: settings[name] for name in LOOKS if name in settings})
    folder, root = place_of(config.folder)
    subsets = subsets_of(folder, dataclasses.replace(config, broken="leave out"), root)
    files = {one.picture: one for one in editing.listed(folder, config, root)}
    rows: list[dict[str, Any]] = []
    films: dict[tuple[int, Path], dict[str, Any]] = {}
    for picture in inspect(Dataset(subsets)):
        name = picture.path.relative_to(folder).as_posix()
        if name not in files:  # taken out while the folder was read
            continue
        if (known := films.get((picture.subset, picture.path))) is not None:
            known["clips"] += 1
            continue
        controls = [place for one in picture.controls if (place := _named(one.path, folder, config.folder))]
        said = {
            "choices": count_of(picture.caption, config), "fallback": picture.caption or "", "caption": files[name].caption,
            "version": files[name].version, "controls": controls,
        }  # fmt: skip
        rows.append({**picture.to_dict(), "picture": name, **said})
        if picture.shown.stretch is not None:
            films[picture.subset, picture.path] = rows[-1]["film"] = _film(picture.path, picture.shown.stretch)
    return {"pictures": rows, "notes": [remark for subset in subsets for remark in (*subset.warnings, *remarks(subset))]}


def _film(path: Path, stretch: Stretch) -> dict[str, Any]:
    """How long a film is, and what its clips are."""
    from ..training.dataset.index import Index

    facts = Index().remembered(path)
    seconds = round(stretch.of * facts.film[2] / facts.film[1], 2) if facts and facts.film else None
    return {"frames": stretch.of, "seconds": seconds, "clips": 1, "each": len(stretch.frames)}


def _named(path: Path, folder: Path, name: str) -> dict[str, str] | None:
    """A control picture as ``thumbnail`` is asked for it: in the folder called ``name``, or in one beside that."""
    if path.is_relative_to(folder):
        return {"folder": name, "picture": path.relative_to(folder).as_posix()}
    around = PurePosixPath(name).parent
    if not path.is_relative_to(folder.parent) or str(around) == ".":
        return None
    return {"folder": (around / path.parent.relative_to(folder.parent)).as_posix(), "picture": path.name}


def config_of(values: Mapping[str, Any]) -> SubsetConfig:
    """Widgets of Load Dataset; AtelierError for values that none of them could have."""
    kinds = {f.name: type(f.default) for f in dataclasses.fields(SubsetConfig) if f.default is not dataclasses.MISSING}
    for name, value in values.items():
        kind = kinds.get(name, str)
        if kind is float and type(value) is int and abs(value) < 1 << 53:  # a page sends 1.0 as 1
            values = {**values, name: float(value)}
        elif type(value) is not kind or (isinstance(value, str) and not is_plain(value, LONGEST_WIDGET)):
            raise wrong(name, EXPECTED[kind.__name__])
        if (isinstance(value, int) and abs(value) > 1 << 64) or (isinstance(value, float) and not math.isfinite(value)):
            raise wrong(name, "a smaller number")
    return SubsetConfig(**{"folder": "", **values})


def is_plain(text: str, longest: int = LONGEST) -> bool:
    return len(text) <= longest and "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def place_of(name: str) -> tuple[Path, Path]:
    """(folder, its root); AtelierError also for names that are too long for the disk."""
    try:
        return named(name)
    except OSError as error:
        raise AtelierError(f"folder: {name[:100]!r} is not a folder here ({error.strerror}).") from error


def thumbnail(query: Mapping[str, str]) -> bytes:
    """A small JPEG of one picture of a folder, or with ``made`` of one in the host's output folder; of a film its middle.

    ``films``: animated pictures of the folder are films.
    """
    if "made" in query:
        return _thumbnail(_made(query["made"]), False)
    name, wanted = query.get("folder", ""), query.get("picture", "")
    if not (is_plain(name) and is_plain(wanted)):
        raise wrong("picture", "names of at most 1000 letters")
    folder, root = place_of(name)
    steps = PurePosixPath(wanted).parts
    path = folder.joinpath(*steps)
    plain = bool(steps) and not wanted.startswith("/") and not any(step.startswith(".") or "\\" in step for step in steps)
    try:
        there = path.suffix.lower() in SHOWN and path.is_file() and path.resolve().is_relative_to(root.resolve())
    except OSError:  # a name that is too long for the disk
        there = False
    if not (plain and there):
        raise AtelierError(f"picture: {wanted!r} is not in {name}.")
    return _thumbnail(path, bool(query.get("films")))


def _thumbnail(path: Path, films: bool) -> bytes:
    """A small JPEG of the picture, or of the middle frame of what is a film; ``films``: animated pictures are films.

    How long a film is is known since its folder was read; of one that nobody has read a frame near the middle will do. Finding it
    takes a while, so its JPEG is kept until the host empties its temp folder.
    """
    from ..training import host
    from ..training.dataset.cache import cache_key
    from ..training.dataset.clips import about_middle, middle_of
    from ..training.dataset.index import Index

    facts = Index().remembered(path) if films or is_film(path) else None
    length = facts.film[0] if facts and facts.film else 0
    if not (length or is_film(path)):
        return _small(open_picture(path))
    stat = path.stat()
    kept = host.temp_folder() / FILMS / f"{cache_key(str(path), stat.st_size, stat.st_mtime_ns, length)[:32]}.jpg"
    with suppress(OSError):
        return kept.read_bytes()
    small = _small(middle_of(path, length) if length else about_middle(path))
    with suppress(OSError, AtelierError), replacing(kept, durable=False) as temporary:  # a full disk costs only time
        temporary.write_bytes(small)
    return small


def _made(name: str) -> Path:
    from ..training import host

    top = host.output_folder()
    try:
        path = top / name if is_plain(name) and not name.startswith("/") and "\\" not in name else top
        there = path.suffix.lower() in SHOWN and is_inside(path, top) and path.is_file()
    except OSError:  # a name that is too long for the disk
        there = False
    if not there:
        raise AtelierError(f"made: {name[:100]!r} is no picture or film in ComfyUI's output folder.")
    return path


def _small(image: Image.Image) -> bytes:
    image.thumbnail((THUMBNAIL, THUMBNAIL), reducing_gap=2.0)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def save(body: Mapping[str, Any]) -> dict[str, Any]:
    """Writes edited captions; ``undo`` are the edits that take them back, ``now`` how the files stand.

    ``unclear`` is a sentence where nothing was written yet, because the person has to allow UTF-8 first (``utf8``).
    """
    edits, utf8 = body.get("edits"), body.get("utf8", False)
    if type(utf8) is not bool:
        raise wrong("utf8", "true or false")
    if not isinstance(edits, list):
        raise wrong("edits", "a list")
    wanted = [_edit(edit) for edit in edits]
    widgets = {"extension": "caption_extension", "encoding": "caption_encoding", **WHERE}
    config = config_of({widget: body[field] for field, widget in widgets.items() if field in body})
    folder, root = place_of(config.folder)
    try:
        undo, now = editing.write(folder, wanted, config, root, utf8)
    except editing.Unclear as unclear:
        return {"unclear": str(unclear), "undo": [], "now": []}
    return {"undo": [dataclasses.asdict(edit) for edit in undo], "now": [dataclasses.asdict(one) for one in now]}


def change(body: Mapping[str, Any]) -> dict[str, Any]:
    """What an operation makes of captions; no file is touched. ``filter`` gives back those that have a tag."""
    captions, operation = body.get("captions"), body.get("operation")
    text, other = body.get("text", ""), body.get("other", "")
    if not isinstance(captions, dict) or not all(isinstance(c, str) for c in captions.values()) or len(captions) > MAX_CAPTIONS:
        raise wrong("captions", f"at most {MAX_CAPTIONS} texts by picture")
    for field, value in (("text", text), ("other", other)):
        if not isinstance(value, str) or not is_plain(value) or len(value.splitlines()) > 1:
            raise wrong(field, f"one line of at most {LONGEST} letters")
    if not text.strip():
        raise AtelierError("Write the tags or words first.")
    letters = sum(map(len, captions.values()))
    patterns = sum("*" in part for part in parts(text))
    if letters > MAX_LETTERS or letters * patterns > MAX_WORK:
        raise AtelierError("captions: this is too much text for one change. Show fewer captions, or use fewer tags with *.")
    if operation == "filter":
        return {"captions": editing.with_tag(captions, text)}
    if operation in ("add", "addFirst"):
        return {"captions": editing.with_more(captions, joined(parts(text)), operation == "addFirst")}
    if operation == "remove":
        return {"captions": editing.with_less(captions, parts(text))}
    if operation == "replace":
        return {"captions": editing.with_other(captions, text, other)}
    raise wrong("operation", "filter, add, addFirst, remove or replace")


def _edit(edit: Any) -> editing.Edit:
    if not isinstance(edit, dict):
        raise wrong("edits", "a list of objects")
    picture, caption, version, original = (edit.get(field) for field in ("picture", "caption", "version", "original"))
    optional = all(value is None or isinstance(value, str) for value in (caption, original))
    if not (isinstance(picture, str) and isinstance(version, str) and optional):
        raise wrong("edits", "objects with picture, caption and version")
    return editing.Edit(picture, caption, version, original)


def wrong(field: str, wanted: str) -> Exception:
    return AtelierError(f"{field}: expected {wanted}.")
