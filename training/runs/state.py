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
from ..files import Serialised, open_plain, parse_json
from ..tensors.safetensors_header import read_header
from ..tensors.transfer import to_cpu

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
    plain: dict[str, Any] = {"step": state.step, "due": state.due, "scaler": dict(state.scaler)}
    plain["optimizer"] = _split_tensors(state.optimizer, "optimizer", tensors)
    # Copies, since some optimizers give all parameters one and the same table, and a file may not hold shared memory.
    there = dict(zip(tensors, to_cpu(list(tensors.values())), strict=True))
    file, said = Serialised(there), json.dumps(plain)
    if path.exists():
        _keep(path, older)
    file.write(path, {"state": said, "sha256": _checksum(said, file.data)})


def _keep(path: Path, older: Path) -> None:
    """``older`` becomes what ``path`` is, which stays at its place wherever the file system can name a file twice."""
    link = older.with_name(f"{older.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        os.link(path, link)
        os.replace(link, older)
    except OSError:
        link.unlink(missing_ok=True)
        os.replace(path, older)


def read_state(path: Path) -> State | None:
    """The state in ``path``, None if there is none; AtelierError if it is not the one that was written."""
    from safetensors import SafetensorError, safe_open

    try:
        said, data = _opened(path)
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            stated = said.get("sha256")  # none in a state of an earlier version
            if stated is not None and stated != _checksum(said["state"], memoryview(whole)[data:]):
                raise ValueError("its checksum is another")
        plain = parse_json(said["state"].encode(), finite=False)
        with safe_open(path, framework="pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - not a dict
        adapter, average = (
            {k.removeprefix(part): v for k, v in tensors.items() if k.startswith(part)} for part in ("adapter.", "average.")
        )
        optimizer = _join_tensors(plain["optimizer"], tensors)
        step, due = plain["step"], plain.get("due", False)
        if type(step) is not int or step < 0 or not isinstance(due, bool) or not isinstance(optimizer, dict):
            raise ValueError("its step is no number")
        return State(step, adapter, optimizer, dict(plain["scaler"]), average, due)
    except FileNotFoundError:
        return None
    except (*DAMAGED, SafetensorError) as error:
        raise AtelierError(f"{path}: the saved state is damaged ({error}).") from error


def step_of(path: Path) -> int | None:
    """The step of which the state in ``path`` is, by its header alone; None if there is none, or it is damaged."""
    try:
        step = parse_json(_opened(path)[0]["state"].encode(), finite=False)["step"]
    except DAMAGED:
        return None
    return step if type(step) is int and step >= 0 else None


def _opened(path: Path) -> tuple[Mapping[str, str], int]:
    """What a state's file says about itself, and where its numbers begin; FileNotFoundError if there is none."""
    with open_plain(path) as file:
        begin = 8 + int.from_bytes(file.read(8), "little")
    return read_header(path).metadata, begin


def _checksum(said: str, data: Any) -> str:
    digest = hashlib.sha256(said.encode())
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
