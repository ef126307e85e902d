"""A run on disk. This module is the only writer of LoRA files, states and histories.

A run named ``ink`` is two folders: ``models/loras/lora-atelier/ink/`` with the LoRA files (``ink-000001.safetensors`` for epochs
on the way, ``ink.safetensors`` for the last one), and ``output/lora-atelier/ink/`` with

    run.json          where it stands (``record.py``)
    inputs.json       what decides it (``inputs.py``)
    history.jsonl     one line a step
    measured.jsonl    one line an epoch: the losses on a fixed set
    state/            everything needed to go on bit for bit, and the state before
    samples/          preview pictures

Their names are in ``layout.py``.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..dataset import moving
from ..errors import AtelierError, is_out_of_memory
from ..files import HandedOn, Serialised, Unreadable, append_text, flush, parse_json, replacing, sweep, write_text
from ..tensors.transfer import to_cpu
from . import preview
from .layout import (
    FILM_OR_SAMPLE,
    HISTORY_FILE,
    INPUTS_FILE,
    MEASURED_FILE,
    OLDER_STATE_FILE,
    OWNER_FILE,
    RUN_FILE,
    SAMPLES_FOLDER,
    STATE_FILE,
    STATE_FOLDER,
    film_of,
)
from .metadata import content_hashes, is_whole
from .record import Record, SavedLoRA, SaveKind, read_record
from .state import State, due_of, read_state, step_of, write_state

SAVED_LORAS = HandedOn()
"""What runs have handed on."""


class Run:
    """One training run's folders. Which run it is that goes on is found out in ``opening.py``."""

    def __init__(self, name: str, runs: Path, loras: Path):
        self.name = name
        self.folder = runs / name
        self.lora_folder = loras / name

    @classmethod
    def begin(cls, name: str, runs: Path, loras: Path) -> Run:
        """A new one, whose name gets a number behind it (``ink-2``) where it is taken: an earlier LoRA is never overwritten."""
        names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        run = next(run for run in (cls(one, runs, loras) for one in names) if not run.is_there())
        run.write(saved=[])
        run.sweep()
        return run

    def is_there(self) -> bool:
        """Whether anything was written under this name."""
        return (self.folder / RUN_FILE).exists() or bool(self.lora_files())

    def record(self) -> Record:
        """What run.json holds; an empty one for a run that does not exist yet. AtelierError if it is damaged."""
        try:
            return read_record(self.folder)
        except FileNotFoundError:
            return Record()

    def check_places(self) -> None:
        """Unreadable where something else is in the place of a file or folder that the run writes."""
        for name in (HISTORY_FILE, MEASURED_FILE, OWNER_FILE):
            path = self.folder / name
            if path.is_symlink() or (path.exists() and not path.is_file()):
                raise Unreadable(path, "this is no plain file")
        for path in (self.folder / STATE_FOLDER, self.folder / SAMPLES_FOLDER, self.lora_folder):
            if os.path.lexists(path) and not path.is_dir():
                raise Unreadable(path, "this is no folder")

    def write(self, **values: Any) -> None:
        """Changes fields of run.json."""
        write_text(self.folder / RUN_FILE, json.dumps({**self.record().values, **values}, indent=1))

    def write_inputs(self, inputs: str) -> None:
        write_text(self.folder / INPUTS_FILE, inputs)

    def sweep(self) -> None:
        """Removes what a killed process had not finished writing."""
        for folder in (self.folder, *(self.folder / part for part in (STATE_FOLDER, SAMPLES_FOLDER)), self.lora_folder):
            sweep(folder)

    def lora_files(self) -> list[Path]:
        return sorted(self.lora_folder.glob("*.safetensors"))

    def saved(self) -> list[SavedLoRA]:
        """LoRA files that were saved on the way and are still there, oldest first."""
        files = (SavedLoRA(self.lora_folder / r["file"], r["epoch"], r["step"], r["kind"]) for r in self.record().saved)
        return [saved for saved in files if saved.path.is_file()]

    def finished(self) -> bool:
        saved = self.saved()
        return bool(saved) and saved[-1].kind == "last"

    # LoRA files -----------------------------------------------------------------------------------------------------------

    def save_lora(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, epoch: int, step: int, kind: SaveKind
    ) -> SavedLoRA:
        """Writes one LoRA file, with ``metadata`` and the hashes of its tensors, and enters it in run.json."""
        saved = SavedLoRA(self._place(epoch, step, kind), epoch, step, kind)
        if not any(row["file"] == saved.path.name and row["step"] == step for row in self.record().saved):
            with suppress(OSError):  # a picture of what the file was before; where it cannot go, the next one takes its place
                self._remove_picture(saved.path)
        file = Serialised(tensors)
        file.write(saved.path, {**metadata, **content_hashes(file)})
        self._enter(saved)
        return saved

    def _place(self, epoch: int, step: int, kind: SaveKind) -> Path:
        """Where a file goes: by its epoch, unless that is the name of one of another step (epochs were longer then)."""
        by_step = f"-step{step:08d}"
        suffix = {"epoch": f"-{epoch:06d}", "last": ""}.get(kind, by_step)
        others = {row["file"] for row in self.record().saved if row["step"] != step and kind == "epoch"}
        name = f"{self.name}{suffix}.safetensors"
        return self.lora_folder / (f"{self.name}{by_step}.safetensors" if name in others else name)

    def _enter(self, saved: SavedLoRA) -> None:
        rows = [row for row in self.record().saved if row["file"] != saved.path.name]
        entry = {"file": saved.path.name, "epoch": saved.epoch, "step": saved.step, "kind": saved.kind}
        self.write(saved=[*rows, entry])

    def keep_end(self) -> None:
        """Before a finished run becomes longer: its last file becomes one on the way, under a name of its own."""
        if not self.finished():
            return
        record, last = self.record(), self.saved()[-1]
        # An epoch that was cut short is none: the longer run will have a whole one of that number.
        kind: SaveKind = "step" if record.steps_per_epoch and last.step % record.steps_per_epoch else "epoch"
        kept = SavedLoRA(self._place(last.epoch, last.step, kind), last.epoch, last.step, kind)
        if not kept.path.exists():
            with replacing(kept.path) as temporary:
                shutil.copyfile(last.path, temporary)
            if preview.is_ours(picture := preview.preview_of(last.path), record.pictures.get(last.path.name, "")):
                self.place_picture(picture, kept.path)
        rows = [row for row in record.saved if row["file"] not in (last.path.name, kept.path.name)]
        self.write(saved=[*rows, {"file": kept.path.name, "epoch": kept.epoch, "step": kept.step, "kind": kept.kind}])

    def place_picture(self, sample: Path, lora: Path) -> bool:
        """Puts a copy of a sample beside a LoRA file of the run; False where a person's picture is there."""
        pictures = self.record().pictures
        placed = preview.place(sample, lora, pictures.get(lora.name, ""))
        if placed:
            self.write(pictures={**pictures, lora.name: placed})
        return bool(placed)

    def _remove_picture(self, lora: Path) -> None:
        """Removes the picture beside a LoRA file, if the run has put it there."""
        if preview.is_ours(picture := preview.preview_of(lora), self.record().pictures.get(lora.name, "")):
            picture.unlink(missing_ok=True)

    def set_damaged_aside(self) -> list[str]:
        """Renames LoRA files of the run whose numbers are not those that were written, and tells their names."""
        names = []
        for saved in self.saved():
            if not is_whole(saved.path):
                saved.path.replace(saved.path.with_name(f"{saved.path.name}.damaged"))
                names.append(saved.path.name)
        return names

    def keep_last(self, count: int) -> None:
        """Deletes all but the newest ``count`` of the files saved on the way; the last epoch's and those of a stop stay.

        One that another program holds (Windows) keeps its row, and goes when the next is saved.
        """
        on_the_way = [saved for saved in self.saved() if saved.kind in ("epoch", "step")]
        old = on_the_way[: max(0, len(on_the_way) - count)]
        names = set[str]()
        for saved in old:  # first, since a row without its file does not count, but a file without its row would stay for ever
            with suppress(OSError):
                self._remove_picture(saved.path)
                saved.path.unlink(missing_ok=True)
                names.add(saved.path.name)
        if names:
            record = self.record()
            self.write(
                saved=[row for row in record.saved if row["file"] not in names],
                pictures={file: placed for file, placed in record.pictures.items() if file not in names},
            )

    # State ----------------------------------------------------------------------------------------------------------------

    def save_state(self, state: State) -> None:
        """The state before stays as well, for the case that this one is damaged."""
        for name in (HISTORY_FILE, MEASURED_FILE):
            flush(self.folder / name)  # never less than the state knows
        write_state(self.folder / STATE_FILE, state, self.folder / OLDER_STATE_FILE)

    def load_state(self, warn: Callable[[str], None] = lambda _: None) -> State | None:
        """The last complete state, or None when there is none; ``warn`` is told if it is not the newest.

        AtelierError if all there are are damaged.
        """
        found, damage = None, []
        for name in (STATE_FILE, OLDER_STATE_FILE):
            try:
                found = read_state(self.folder / name)
            except AtelierError as error:
                damage.append(str(error))
            if found is not None:
                break
        if damage and found is None:
            raise AtelierError(f"{damage[0]} Delete the folder {STATE_FOLDER} beside it, or choose 'start over'.")
        if damage and found is not None:
            warn(f"{damage[0]} It goes on from the state before, of step {found.step}")
        return found

    def state_step(self) -> int:
        """Steps that the newest state knows, by what it says itself; 0 if there is none."""
        steps = (step_of(self.folder / name) for name in (STATE_FILE, OLDER_STATE_FILE))
        return next((step for step in steps if step is not None), 0)

    def has_state(self) -> bool:
        """Whether there is one, sound or not."""
        return any(os.path.lexists(self.folder / name) for name in (STATE_FILE, OLDER_STATE_FILE))

    def state_is_due(self) -> bool:
        """Whether what belongs to the end of the newest state's step (measuring, saving, samples) is still to be done."""
        dues = (due_of(self.folder / name) for name in (STATE_FILE, OLDER_STATE_FILE))
        return next((due for due in dues if due is not None), False)

    def drop_state(self) -> int:
        """Deletes what the run needs to go on, and nothing else; how many bytes that were. OSError where the system refuses."""
        freed = 0
        for path in (self.folder / name for name in (STATE_FILE, OLDER_STATE_FILE)):
            if path.is_file() and not path.is_symlink():
                size = path.stat().st_size
                path.unlink()
                freed += size
        return freed

    # History --------------------------------------------------------------------------------------------------------------

    def append_history(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._append(HISTORY_FILE, rows)

    def append_measured(self, epoch: int, step: int, held_out: float | None, training: float) -> None:
        """The fixed losses at the end of an epoch (1-based)."""
        self._append(MEASURED_FILE, [{"step": step, "epoch": epoch, "held_out": held_out, "training": training}])

    def losses(self) -> list[float]:
        """The loss of every step that was written down."""
        return [row["loss"] for row in self._rows(HISTORY_FILE)]

    def cut_history(self, step: int) -> list[dict[str, Any]]:
        """Keeps the rows of the first ``step`` steps (what came after the state is trained again) and returns them."""
        return self._cut(HISTORY_FILE, step)

    def cut_measured(self, step: int) -> list[dict[str, Any]]:
        """The same for the fixed losses."""
        return self._cut(MEASURED_FILE, step)

    def _append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        append_text(self.folder / name, "".join(json.dumps(row) + "\n" for row in rows))

    def _cut(self, name: str, step: int) -> list[dict[str, Any]]:
        rows = [row for row in self._rows(name) if row["step"] <= step]
        if (self.folder / name).is_file():
            write_text(self.folder / name, "".join(json.dumps(row) + "\n" for row in rows))
        return rows

    def _rows(self, name: str) -> list[dict[str, Any]]:
        """The whole rows before the first that is damaged, as one that a kill has cut short is."""
        path = self.folder / name
        rows: list[dict[str, Any]] = []
        for line in path.read_bytes().splitlines() if path.is_file() else ():
            row = _row(line, FIELDS[name])
            if row is None:
                break
            rows.append(row)
        return rows

    def drop_samples(self) -> None:
        """Before a run begins: the samples of an earlier beginning are none of its own. Other pictures stay."""
        folder = self.folder / SAMPLES_FOLDER
        for path in folder.iterdir() if folder.is_dir() else ():
            if FILM_OR_SAMPLE.fullmatch(path.name.removeprefix(self.name)) and path.name.startswith(self.name):
                with suppress(OSError):
                    path.unlink()

    def save_sample(
        self, picture: Any, place: str, number: int, info: Any = None, film: Sequence[Any] = (), rate: float = moving.RATE
    ) -> Path:
        """A sample as PNG; ``picture`` is a PIL image of the ``number``-th prompt (from 0), ``info`` PNG metadata. The frames of
        the ``film`` that it is one of lie beside it as an animated WebP, which is there first.

        ``place`` is where the run stood: ``000003`` after an epoch, ``step00000250`` within one.
        """
        path = self.folder / SAMPLES_FOLDER / f"{self.name}-{place}{f'-{number + 1}' if number else ''}.png"
        if film:
            moving.save(film_of(path), film, rate)
        else:
            film_of(path).unlink(missing_ok=True)  # of an earlier beginning
        with replacing(path) as temporary:
            picture.save(temporary, format="PNG", pnginfo=info)
        return path


FIELDS = {HISTORY_FILE: ("step", "epoch", "loss", "rate"), MEASURED_FILE: ("step", "epoch", "training")}
"""What is a number in every row."""


def _row(line: bytes, numbers: Sequence[str]) -> dict[str, Any] | None:
    """A line of a history; None for one that is damaged."""
    try:
        row = parse_json(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or any(type(row.get(key)) not in (int, float) for key in numbers):
        return None
    return row if isinstance(row["step"], int) else None


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
    controls: tuple[tuple[Path, ...], ...] = ()
    """Control pictures of some of them, for models that edit."""
    recipe: str = ""
    """The name of its recipe, which the trainings of a sweep share."""
    varied: str = ""
    """What tells it from the others of its sweep (``config.sweep``)."""
    failed: str = ""
    """The error that ended it, where the others of its sweep went on."""
