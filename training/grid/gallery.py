"""Gallery of grids that were drawn: their pages are read back from the pictures, favourites lie beside them.

What a picture says of itself is checked like a request: anybody may have put it there.
"""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..config import check_run_name
from ..config.numbers import MAX_VALUES
from ..config.sampling import Sampling
from ..dataset.png_text import png_text
from ..errors import AtelierError
from ..files import Unreadable, is_file, is_inside, parse_json, read_json, replacing, write_text
from ..runs.layout import CELL, CELLS_FOLDER, FAVOURITES, FILM, FILM_OR_CELL, GRIDS_FOLDER, PAGE
from ..runs.reader import number
from .advice import Advice
from .pages import KEY
from .score import Score

PLACE = re.compile(r"(\d{1,4}),(\d{1,4})")
LARGEST = 2**20
"""Bytes of a list of favourites."""
MOST = 200
"""Pages that are listed, newest first."""


def pages(runs: Path) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """(the pages of all grids below ``runs``, newest first; those that cannot be read).

    The former as ``run``, ``page``, and ``prompt`` and ``seed`` to tell them by; the latter as ``run``, ``page`` and ``why``.
    """
    found = []
    for run in _runs(runs):
        for name in _names(runs / run / GRIDS_FOLDER):
            path, match = runs / run / GRIDS_FOLDER / name, PAGE.fullmatch(name)
            # Each part of a large page says all of it, so the first is enough.
            if match is not None and match["part"] in (None, "1") and os.path.lexists(path):
                found.append((os.lstat(path).st_mtime_ns, path, run, match["page"]))
    sound, damaged = [], []
    for _, path, run, page in sorted(found, reverse=True)[:MOST]:
        try:
            facts = _facts(path, runs)
            sound.append({"run": run, "page": page, "prompt": facts["prompt"], "seed": facts["seed"]})
        except (Unreadable, FileNotFoundError) as error:
            damaged.append({"run": run, "page": page, "why": str(error)})
    return sound, damaged


def page(runs: Path, run: str, name: str) -> tuple[Path, dict[str, Any]]:
    """The folder and the facts of one page, with ``favourites``; AtelierError if there is none of that name."""
    folder = _folder(runs, run)
    match = PAGE.fullmatch(f"{name}.png")
    for path in (folder / f"{name}.png", folder / f"{name}-1.png") if match and match["page"] == name else ():
        try:
            facts = _facts(path, runs)
        except FileNotFoundError:
            continue
        except Unreadable as error:
            raise AtelierError(f"page: {error}. Draw the grid again.") from error
        kept = favourites(folder)
        for cell in facts["cells"].values():
            # A cell may have been deleted since; one with another name is none of ours.
            file = cell.pop("file", "").removeprefix(f"{CELLS_FOLDER}/")
            if _is_cell(runs, folder, file):
                cell |= {"cell": file, "favourite": file in kept}
            film = cell.pop("film", "").removeprefix(f"{CELLS_FOLDER}/")
            if FILM_OR_CELL.fullmatch(film) and film.endswith(FILM) and _is_there(runs, folder, film):
                cell["film"] = film
        return folder, facts
    raise AtelierError(f"page: there is no grid {name!r} of {run!r}.")


def favourites(folder: Path) -> list[str]:
    """Names of the cells that were marked; they keep their mark when a later grid shows them again. None from a damaged list."""
    try:
        return _marked(folder)
    except Unreadable:
        return []


def _marked(folder: Path) -> list[str]:
    try:
        names = read_json(folder / FAVOURITES, LARGEST)
    except FileNotFoundError:
        return []
    if not isinstance(names, list) or not all(isinstance(name, str) and CELL.fullmatch(name) for name in names):
        raise Unreadable(folder / FAVOURITES, "this is no list of cells")
    return list(dict.fromkeys(names))


def mark(runs: Path, run: str, cell: str, on: bool) -> None:
    """Marks a cell of a run's grids as a favourite, or takes the mark away."""
    folder = _folder(runs, run)
    if not _is_cell(runs, folder, cell):
        raise AtelierError(f"cell: there is no cell {cell!r} in the grids of {run!r}.")
    try:
        others = [name for name in _marked(folder) if name != cell]
    except Unreadable as error:  # what can be saved of it by hand is not overwritten
        raise AtelierError(
            f"{folder / FAVOURITES}: the list of favourites is damaged ({error.why}). Mend or delete it."
        ) from error
    write_text(folder / FAVOURITES, json.dumps([*others, *([cell] if on else [])], indent=1))


def keep(lora: Path, name: str, folder: Path) -> Path:
    """Copies a LoRA file to ``folder`` under a name of one's choice; another file of that name is not overwritten."""
    name = check_run_name(name.strip().removesuffix(".safetensors"))
    target = folder / f"{name}.safetensors"
    if not is_file(lora):
        raise AtelierError(f"lora: {lora.name} is no file; choose another one.")
    if os.path.lexists(target):
        if not is_file(target):
            raise AtelierError(f"name: {target.name} is there already and is no file; choose another name.")
        if filecmp.cmp(lora, target, shallow=False):
            return target
        raise AtelierError(f"name: {target.name} is there already and is another LoRA; choose another name.")
    with replacing(target) as temporary:
        shutil.copyfile(lora, temporary)
    return target


def _folder(runs: Path, run: str) -> Path:
    folder = runs / run / GRIDS_FOLDER
    if run not in _runs(runs) or not is_inside(folder, runs):
        raise AtelierError(f"run: there is no run called {run!r}.")
    return folder


def _runs(runs: Path) -> list[str]:
    """The folders of ``runs`` that are no links."""
    try:
        return [entry.name for entry in os.scandir(runs) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _is_cell(runs: Path, folder: Path, name: str) -> bool:
    return CELL.fullmatch(name) is not None and _is_there(runs, folder, name)


def _is_there(runs: Path, folder: Path, name: str) -> bool:
    path = folder / CELLS_FOLDER / name
    return is_file(path) and is_inside(path, runs)


def _facts(path: Path, runs: Path) -> dict[str, Any]:
    """What a page says of itself, with what is known of pages and nothing else; Unreadable for what says nothing of the kind."""
    if not is_inside(path, runs):
        raise Unreadable(path, "this is a link that leads out of the runs' folder")
    text = png_text(path, KEY)
    if text is None:
        raise Unreadable(path, "this says nothing of a grid")
    try:
        stated = parse_json(text.encode("utf-8", "replace"), finite=False)
    except ValueError as error:
        raise Unreadable(path, f"what is written in it is damaged, {error}") from error
    try:
        return _page(_dict(stated))
    except (KeyError, TypeError, ValueError) as error:
        raise Unreadable(path, f"what is written in it is not what a grid says ({error})") from error


def _page(stated: dict[str, Any]) -> dict[str, Any]:
    """The known parts of a page's facts; KeyError, TypeError or ValueError if one is not as a grid writes it."""
    epochs = [_column(_dict(column)) for column in _list(stated["epochs"])]
    strengths = [_number(value) for value in _list(stated["strengths"])]
    of_text = stated.get("text_strength")
    known = {field.name: stated[field.name] for field in fields(Sampling) if field.name in stated}
    for name, value in known.items():
        known[name] = _text(value) if isinstance(value, str) else _number(value)

    def is_place(place: str) -> bool:
        match = PLACE.fullmatch(place)
        return match is not None and int(match[1]) <= len(epochs) and int(match[2]) < len(strengths)

    cells = {}
    for place, cell in _dict(stated["cells"]).items():
        cells[place] = {name: _text(value) for name, value in _dict(cell).items() if name in ("file", "film", "failed")}
        if not is_place(place):
            raise ValueError(f"a cell at {place[:20]!r}")
    names = [field.name for field in fields(Score)]
    scores = {place: score for place, score in _dict(stated["scores"]).items() if is_place(place)}
    # A score that is no number was not measured.
    scores = {place: {name: score[name] for name in names} for place, score in scores.items() if _is_scored(score, names)}
    said = _dict(stated.get("advice") or {})
    advice = {field.name: None if said.get(field.name) is None else _text(said[field.name]) for field in fields(Advice)}
    return {
        "prompt": _text(stated["prompt"]),
        "epochs": epochs,
        "strengths": strengths,
        "text_strength": None if of_text is None else _number(of_text),
        **known,
        "seed": _whole(stated["seed"]),
        "cells": cells,
        "scores": scores,
        "advice": advice,
    }


def _column(stated: dict[str, Any]) -> dict[str, Any]:
    """A file, or a mean of those in ``mean``; None for an epoch and step that nobody knows."""
    number = {name: None if stated[name] is None else _whole(stated[name]) for name in ("epoch", "step")}
    several = {"mean": [_text(name) for name in _list(stated["mean"])]} if "mean" in stated else {}
    return {"file": _text(stated["file"]), "label": _text(stated["label"]), **number, **several}


def _dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("an object")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > MAX_VALUES:
        raise TypeError("a list")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a text")
    return value


def _number(value: Any) -> float:
    if number(value) is None:
        raise TypeError("a number")
    return value  # type: ignore[no-any-return]


def _whole(value: Any) -> int:
    if type(value) is not int or not -1 <= value < 2**64:
        raise TypeError("a whole number")
    return value


def _is_scored(score: Any, names: list[str]) -> bool:
    return isinstance(score, dict) and all(number(score.get(name)) is not None for name in names)
