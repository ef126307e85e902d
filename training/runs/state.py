"""State of a run: everything needed to go on bit for bit, in one safetensors file with a checksum."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import AtelierError
from ..files import Serialised, full_disk_named, open_plain, parse_json, put_in_place
from ..tensors.finite import check_finite
from ..tensors.safetensors_header import LIMIT
from ..tensors.transfer import to_cpu

CHECKSUM = "sha256"
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, RecursionError)
"""What reading a file can end in that holds anything at all."""


@dataclass(frozen=True)
class State:
    """Where a run stopped."""

    step: int
    adapter: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    scaler: Mapping[str, Any]
    average: Mapping[str, Tensor] = field(default_factory=dict)
    """The averaged weights, if there are any."""
    due: bool = False
    """Whether what belongs to the end of this step (measuring, saving, samples) is still to be done."""


def write_state(path: Path, state: State, older: Path) -> None:
    """Writes ``state``; what was at ``path`` until then is at ``older`` afterwards."""
    tensors = {f"adapter.{k}": v for k, v in state.adapter.items()}
    tensors |= {f"average.{k}": v for k, v in state.average.items()}
    plain: dict[str, Any] = {"step": state.step, "due": state.due, "scaler": dict(state.scaler), "checked": True}
    plain["optimizer"] = _split_tensors(state.optimizer, "optimizer", tensors)
    # Copies, since some optimizers give all parameters one and the same table, and a file may not hold shared memory.
    there = dict(zip(tensors, to_cpu(list(tensors.values())), strict=True))
    check_finite(path.name, there)
    file, said = Serialised(there), json.dumps(plain)
    if path.exists():
        _keep(path, older)
    entries = parse_json(bytes(file.plain[8 : len(file.plain) - len(file.data)]))
    file.write(path, {"state": said, CHECKSUM: _checksum(said, entries, file.data)})


def _keep(path: Path, older: Path) -> None:
    """``older`` becomes what ``path`` is, which stays at its place wherever the file system can name a file twice."""
    if older.exists() and os.path.samefile(path, older):
        return  # a run was killed between the two names; giving a file a name that it has would leave the link behind
    link = older.with_name(f"{older.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        os.link(path, link)
        put_in_place(link, older)
    except OSError:
        link.unlink(missing_ok=True)
        with full_disk_named(older):
            put_in_place(path, older)


def read_state(path: Path) -> State | None:
    """The state in ``path``, None if there is none; AtelierError if it is not the one that was written."""
    from safetensors import SafetensorError, safe_open

    try:
        entries, begin = _header(path)
        metadata = entries.pop("__metadata__")
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            plain = _plain(metadata)
            # A state of an earlier version has none.
            if (plain.get("checked") or CHECKSUM in metadata) and metadata.get(CHECKSUM) != _checksum(
                metadata["state"], entries, memoryview(whole)[begin:]
            ):
                raise ValueError("its checksum is another")
        with safe_open(path, framework="pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - not a dict
        adapter, average = (
            {k.removeprefix(part): v for k, v in tensors.items() if k.startswith(part)} for part in ("adapter.", "average.")
        )
        optimizer = _join_tensors(plain["optimizer"], tensors)
        due, scaler = plain.get("due", False), plain["scaler"]
        if not isinstance(due, bool) or not isinstance(optimizer, dict) or not isinstance(scaler, dict):
            raise ValueError("its parts are of other kinds")
        return State(plain["step"], adapter, optimizer, scaler, average, due)
    except FileNotFoundError:
        return None
    except (*DAMAGED, SafetensorError) as error:
        raise AtelierError(f"{path}: the saved state is damaged ({error}).") from error


def step_of(path: Path) -> int | None:
    """The step of which the state in ``path`` is, by its header alone; None if there is none, or it is damaged."""
    try:
        step: int = _plain(_header(path)[0]["__metadata__"])["step"]
    except DAMAGED:
        return None
    return step


def due_of(path: Path) -> bool | None:
    """``State.due`` of the state in ``path``, by its header alone; None if there is none, or it is damaged."""
    try:
        return _plain(_header(path)[0]["__metadata__"]).get("due") is True
    except DAMAGED:
        return None


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file says of its tensors and itself, and where its numbers begin."""
    with open_plain(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(LIMIT, os.fstat(file.fileno()).st_size - 8):
            raise ValueError("it is cut short")
        return dict(parse_json(file.read(length))), 8 + length


def _plain(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Everything but the numbers."""
    plain: dict[str, Any] = parse_json(metadata["state"].encode(), finite=False)
    if type(plain["step"]) is not int or not 0 <= plain["step"] < 2**53:
        raise ValueError("its step is no number")
    return plain


def _checksum(said: str, entries: Mapping[str, Any], data: Any) -> str:
    """SHA-256 (hex) of everything in the file."""
    digest = hashlib.sha256(json.dumps([said, entries], sort_keys=True).encode())
    digest.update(data)
    return digest.hexdigest()


def _split_tensors(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` as JSON, its tensors put aside into ``tensors`` and replaced by references (safetensors holds no structure)."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, Mapping):
        return {"items": [[k, _split_tensors(v, f"{path}.{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, Sequence) and not isinstance(value, str):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_split_tensors(v, f"{path}.{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, (str, int, float, bool)):
        return {"value": value}
    raise TypeError(f"a state cannot hold {type(value).__name__} at {path}")


def _join_tensors(value: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content].clone()
    if kind == "items":
        return {k: _join_tensors(v, tensors) for k, v in content}
    if kind in ("tuple", "list"):
        parts = [_join_tensors(v, tensors) for v in content]
        return tuple(parts) if kind == "tuple" else parts
    return content
