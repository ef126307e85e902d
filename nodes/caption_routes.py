"""What the captions' dialog of Load Dataset asks the server; every function takes plain JSON values and gives such back."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from ..training.captioning import editing
from ..training.captioning.text import parts
from ..training.config import SubsetConfig
from ..training.dataset.images import EXTENSIONS, open_picture
from ..training.dataset.samples import Dataset
from ..training.errors import AtelierError
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
)
"""Settings of Load Dataset that decide which pictures there are and how they are cut."""
THUMBNAIL = 224
"""Longer side in pixels."""
MAX_CAPTIONS = 10_000


def pictures(body: Mapping[str, Any]) -> dict[str, Any]:
    """Every picture of a folder with size, bucket, crop box, caption file and its version; ``notes`` are remarks on them."""
    from ..training.dataset.report import inspect, remarks

    settings = body.get("settings")
    if not isinstance(settings, dict):
        raise _wrong("settings", "the node's widgets")
    kinds = {f.name: type(f.default) for f in dataclasses.fields(SubsetConfig) if f.default is not dataclasses.MISSING}
    values = {name: settings[name] for name in LOOKS if name in settings}
    for name, value in values.items():
        if type(value) is not kinds.get(name, str):
            raise _wrong(name, kinds.get(name, str).__name__)
    config = SubsetConfig(**{"folder": "", **values})
    folder, root = named(config.folder)
    subsets = subsets_of(folder, dataclasses.replace(config, broken="leave out"), root)
    files = {one.picture: one for one in editing.listed(folder, config.caption_extension, root, config.nested)}
    rows = []
    for picture in inspect(Dataset(subsets)):
        name = picture.path.relative_to(folder).as_posix()
        said = {"fallback": picture.caption or "", "caption": files[name].caption, "version": files[name].version}
        rows.append({**picture.to_dict(), "picture": name, **said})
    return {"pictures": rows, "notes": [remark for subset in subsets for remark in (*subset.warnings, *remarks(subset))]}


def thumbnail(query: Mapping[str, str]) -> bytes:
    """A small JPEG of one picture of a folder."""
    folder, root = named(query.get("folder", ""))
    wanted = query.get("picture", "")
    steps = PurePosixPath(wanted).parts
    path = folder.joinpath(*steps)
    plain = bool(steps) and not wanted.startswith("/") and not any(step.startswith(".") or "\\" in step for step in steps)
    if not (plain and path.suffix.lower() in EXTENSIONS and path.is_file() and path.resolve().is_relative_to(root.resolve())):
        raise AtelierError(f"picture: {wanted!r} is not in {query.get('folder')}.")
    image = open_picture(path)
    image.thumbnail((THUMBNAIL, THUMBNAIL), reducing_gap=2.0)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def save(body: Mapping[str, Any]) -> dict[str, Any]:
    """Writes edited captions; ``undo`` are the edits that take them back, ``now`` how the files stand."""
    extension, nested, edits = body.get("extension", ".txt"), body.get("nested", False), body.get("edits")
    if not isinstance(extension, str):
        raise _wrong("extension", "a text")
    if type(nested) is not bool:
        raise _wrong("nested", "true or false")
    if not isinstance(edits, list):
        raise _wrong("edits", "a list")
    wanted = [_edit(edit) for edit in edits]
    config = SubsetConfig(str(body.get("folder", "")), caption_extension=extension)  # checks the extension
    folder, root = named(config.folder)
    undo, now = editing.write(folder, [editing.Edit(*edit) for edit in wanted], config.caption_extension, root, nested)
    return {"undo": [dataclasses.asdict(edit) for edit in undo], "now": [dataclasses.asdict(one) for one in now]}


def change(body: Mapping[str, Any]) -> dict[str, Any]:
    """What an operation makes of captions; no file is touched. ``filter`` gives back those that have a tag."""
    captions, operation = body.get("captions"), body.get("operation")
    text, other = body.get("text", ""), body.get("other", "")
    if not isinstance(captions, dict) or not all(isinstance(c, str) for c in captions.values()) or len(captions) > MAX_CAPTIONS:
        raise _wrong("captions", f"at most {MAX_CAPTIONS} texts by picture")
    if not isinstance(text, str) or not isinstance(other, str):
        raise _wrong("text", "a text")
    if not text.strip():
        raise AtelierError("Write the tags or words first.")
    if operation == "filter":
        return {"captions": editing.with_tag(captions, text)}
    if operation in ("add", "addFirst"):
        return {"captions": editing.with_more(captions, ", ".join(parts(text)), operation == "addFirst")}
    if operation == "remove":
        return {"captions": editing.with_less(captions, parts(text))}
    if operation == "replace":
        return {"captions": editing.with_other(captions, text, other)}
    raise _wrong("operation", "filter, add, addFirst, remove or replace")


def _edit(edit: Any) -> tuple[str, str | None, str]:
    if not isinstance(edit, dict):
        raise _wrong("edits", "a list of objects")
    picture, caption, version = edit.get("picture"), edit.get("caption"), edit.get("version")
    if not isinstance(picture, str) or not isinstance(version, str) or not (caption is None or isinstance(caption, str)):
        raise _wrong("edits", "objects with picture, caption and version")
    return picture, caption, version


def _wrong(field: str, wanted: str) -> Exception:
    return AtelierError(f"{field}: expected {wanted}.")
