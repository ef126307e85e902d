"""A run on disk. This module is the only writer of LoRA files, states and histories.

A run named ``ink`` is two folders: ``models/loras/lora-atelier/ink/`` with the LoRA files (``ink-000001.safetensors`` for epochs
on the way, ``ink.safetensors`` for the last one), and ``output/lora-atelier/ink/`` with

    run.json          what makes this run this run (its identity) and where it stands
    history.jsonl     one line a step
    measured.jsonl    one line an epoch: the losses on a fixed set
    state/            everything needed to go on bit for bit
    samples/          preview pictures

Their names are in ``layout.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import AtelierError, is_out_of_memory
from ..files import Serialised, append_text, flush, replacing, sweep, write_tensors, write_text
from ..tensors.transfer import to_cpu
from .layout import HISTORY_FILE, MEASURED_FILE, RUN_FILE, SAMPLES_FOLDER, STATE_FILE, STATE_FOLDER
from .metadata import content_hashes

SaveKind = Literal["epoch", "step", "last", "moment"]
"""A numbered epoch; a step in between; the last epoch, unnumbered; or the moment at which a run was stopped."""


@dataclass(frozen=True)
class SavedLoRA:
    """One LoRA file of a run."""

    path: Path
    epoch: int
    """1-based; for a file of the moment the epoch that was under way."""
    step: int
    """Steps trained since the run began."""
    kind: SaveKind = "epoch"

    @property
    def label(self) -> str:
        """What stands above its column in a grid."""
        return f"step {self.step}" if self.kind in ("step", "moment") else f"epoch {self.epoch}"


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


class Run:
    """One training run's folders. ``Run.open`` finds an unfinished one again."""

    def __init__(self, name: str, runs: Path, loras: Path):
        self.name = name
        self.folder = runs / name
        self.lora_folder = loras / name

    @classmethod
    def open(cls, name: str, identity: str, runs: Path, loras: Path, *, start_over: bool) -> Run:
        """The run of this name and identity, or a new one.

        The identity is a hash of everything that decides the outcome. A name taken by another identity gets a number behind
        it (``ink-2``), so an earlier LoRA is never overwritten. ``start_over`` always begins a new one.
        """
        number = 1
        while True:
            run = cls(name if number == 1 else f"{name}-{number}", runs, loras)
            known = run.read().get("identity")
            if known is None and not run.lora_files():
                run.folder.mkdir(parents=True, exist_ok=True)
                run.write(identity=identity, saved=[])
                run.sweep()
                return run
            if known == identity and not start_over:
                run.sweep()
                return run
            number += 1

    def read(self) -> dict[str, Any]:
        """The contents of run.json; empty for a run that does not exist yet."""
        path = self.folder / RUN_FILE
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return values
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise AtelierError(f"{path}: this file is damaged; rename or delete its folder and queue again.") from error

    def write(self, **values: Any) -> None:
        """Changes fields of run.json."""
        write_text(self.folder / RUN_FILE, json.dumps({**self.read(), **values}, indent=1, ensure_ascii=False))

    def sweep(self) -> None:
        """Removes what a killed process had not finished writing."""
        for folder in (self.folder, *(self.folder / part for part in (STATE_FOLDER, SAMPLES_FOLDER)), self.lora_folder):
            sweep(folder)

    def lora_files(self) -> list[Path]:
        return sorted(self.lora_folder.glob("*.safetensors"))

    def saved(self) -> list[SavedLoRA]:
        """LoRA files that were saved on the way and are still there, oldest first."""
        rows = self.read().get("saved", [])
        files = (SavedLoRA(self.lora_folder / r["file"], r["epoch"], r["step"], r["kind"]) for r in rows)
        return [saved for saved in files if saved.path.is_file()]

    def finished(self) -> bool:
        saved = self.saved()
        return bool(saved) and saved[-1].kind == "last"

    # LoRA files -----------------------------------------------------------------------------------------------------------

    def save_lora(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, epoch: int, step: int, kind: SaveKind
    ) -> SavedLoRA:
        """Writes one LoRA file, with ``metadata`` and the hashes of its tensors, and enters it in run.json."""
        suffix = {"epoch": f"-{epoch:06d}", "last": ""}.get(kind, f"-step{step:08d}")
        saved = SavedLoRA(self.lora_folder / f"{self.name}{suffix}.safetensors", epoch, step, kind)
        file = Serialised(tensors)
        file.write(saved.path, {**metadata, **content_hashes(file)})
        rows = [r for r in self.read().get("saved", []) if r["file"] != saved.path.name]
        self.write(saved=[*rows, {"file": saved.path.name, "epoch": epoch, "step": step, "kind": kind}])
        return saved

    def keep_last(self, count: int) -> None:
        """Deletes all but the newest ``count`` of the files saved on the way; the last epoch's and those of a stop stay."""
        on_the_way = [saved for saved in self.saved() if saved.kind in ("epoch", "step")]
        old = on_the_way[: max(0, len(on_the_way) - count)]
        names = {saved.path.name for saved in old}
        for saved in old:  # first, since a row without its file does not count, but a file without its row would stay for ever
            saved.path.unlink(missing_ok=True)
        if names:
            self.write(saved=[r for r in self.read().get("saved", []) if r["file"] not in names])

    # State ----------------------------------------------------------------------------------------------------------------

    def save_state(self, state: State) -> None:
        for name in (HISTORY_FILE, MEASURED_FILE):
            flush(self.folder / name)  # never less than the state knows
        tensors = {f"adapter.{k}": v for k, v in state.adapter.items()}
        tensors |= {f"average.{k}": v for k, v in state.average.items()}
        plain: dict[str, Any] = {"step": state.step, "due": state.due, "scaler": dict(state.scaler)}
        plain["optimizer"] = _split_tensors(state.optimizer, "optimizer", tensors)
        # Copies, since some optimizers give all parameters one and the same table, and a file may not hold shared memory.
        there = dict(zip(tensors, to_cpu(list(tensors.values())), strict=True))
        write_tensors(self.folder / STATE_FILE, there, {"state": json.dumps(plain)})

    def load_state(self) -> State | None:
        """The last complete state, or None when there is none."""
        from safetensors import SafetensorError, safe_open

        path = self.folder / STATE_FILE
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                plain = json.loads(file.metadata()["state"])
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise AtelierError(f"{path}: the saved state is damaged; delete it, or choose 'start over'.") from error
        adapter, average = (
            {k.removeprefix(part): v for k, v in tensors.items() if k.startswith(part)} for part in ("adapter.", "average.")
        )
        optimizer = _join_tensors(plain["optimizer"], tensors)
        return State(plain["step"], adapter, optimizer, plain["scaler"], average, plain.get("due", False))

    # History --------------------------------------------------------------------------------------------------------------

    def append_history(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._append(HISTORY_FILE, rows)

    def append_measured(self, epoch: int, step: int, held_out: float | None, training: float) -> None:
        """The fixed losses at the end of an epoch (1-based)."""
        self._append(MEASURED_FILE, [{"step": step, "epoch": epoch, "held_out": held_out, "training": training}])

    def cut_history(self, step: int) -> list[dict[str, Any]]:
        """Keeps the rows of the first ``step`` steps (what came after the state is trained again) and returns them."""
        return self._cut(HISTORY_FILE, step)

    def cut_measured(self, step: int) -> list[dict[str, Any]]:
        """The same for the fixed losses."""
        return self._cut(MEASURED_FILE, step)

    def _append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        append_text(self.folder / name, "".join(json.dumps(row) + "\n" for row in rows))

    def _cut(self, name: str, step: int) -> list[dict[str, Any]]:
        path = self.folder / name
        rows: list[dict[str, Any]] = []
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    break  # a line cut short by a kill
                if row["step"] <= step:
                    rows.append(row)
            write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        return rows

    def save_sample(self, picture: Any, place: str, number: int, info: Any = None) -> Path:
        """A sample as PNG; ``picture`` is a PIL image of the ``number``-th prompt (from 0), ``info`` PNG metadata.

        ``place`` is where the run stood: ``000003`` after an epoch, ``step00000250`` within one.
        """
        path = self.folder / SAMPLES_FOLDER / f"{self.name}-{place}{f'-{number + 1}' if number else ''}.png"
        with replacing(path) as temporary:
            picture.save(temporary, format="PNG", pnginfo=info)
        return path


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


def finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether every number is finite; few calls of the device and one wait for all of them, or in main memory if it is full."""
    values = list(tensors.values())
    try:
        return bool(torch.stack(torch._foreach_norm(values, float("inf"))).isfinite().all())
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    return all(bool(tensor.isfinite().all()) for tensor in to_cpu(values))


@dataclass(frozen=True)
class Epochs:
    """All saved LoRAs of a run, first to last; the value of the EPOCHS wire."""

    name: str
    base: str
    """The family of the model they were trained on."""
    files: tuple[SavedLoRA, ...]
    captions: tuple[str, ...] = ()
    """The captions they were trained with."""
    pictures: tuple[Path, ...] = ()
    """The pictures they were trained with, where these are files."""
