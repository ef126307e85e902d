"""Gallery of grids that were drawn: their pages are read back from the pictures, favourites lie beside them."""

from __future__ import annotations

import filecmp
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ..config import check_run_name
from ..errors import AtelierError
from ..files import replacing, write_text
from ..runs.layout import CELLS_FOLDER, GRIDS_FOLDER
from .pages import KEY

PAGE = re.compile(r"(?P<page>grid-[0-9a-f]{12})(?:-1)?\.png")
"""Large pages go on as ``-2``, ``-3``; each says all of them, so the first is enough."""
CELL = re.compile(r"[0-9a-f]{24}\.png")
FAVOURITES = "favourites.json"
MOST = 200
"""Pages that are listed, newest first."""


def pages(runs: Path) -> list[dict[str, Any]]:
    """The pages of all grids below ``runs``, newest first: ``run``, ``page`` and ``prompt`` and ``seed`` to tell them by."""
    found = [path for path in runs.glob(f"*/{GRIDS_FOLDER}/grid-*.png") if PAGE.fullmatch(path.name)]
    newest = sorted(((path.stat().st_mtime_ns, path) for path in found), reverse=True)[:MOST]
    out = []
    for _, path in newest:
        facts = _facts(path)
        if facts is not None:
            run, page = path.parents[1].name, PAGE.fullmatch(path.name)["page"]  # type: ignore[index]
            out.append({"run": run, "page": page, "prompt": facts["prompt"], "seed": facts["seed"]})
    return out


def page(runs: Path, run: str, name: str) -> tuple[Path, dict[str, Any]]:
    """The folder and the facts of one page, with ``favourites``; AtelierError if there is none of that name."""
    folder = _folder(runs, run)
    match = PAGE.fullmatch(f"{name}.png")
    for path in (folder / f"{name}.png", folder / f"{name}-1.png") if match and match["page"] == name else ():
        if path.is_file() and (facts := _facts(path)) is not None:
            kept = favourites(folder)
            for cell in facts["cells"].values():
                # A cell may have been deleted since; one with another name is none of ours.
                file = str(cell.pop("file", "")).removeprefix(f"{CELLS_FOLDER}/")
                if CELL.fullmatch(file) and (folder / CELLS_FOLDER / file).is_file():
                    cell |= {"cell": file, "favourite": file in kept}
            return folder, facts
    raise AtelierError(f"page: there is no grid {name!r} of {run!r}.")


def favourites(folder: Path) -> list[str]:
    """Names of the cells that were marked; they keep their mark when a later grid shows them again."""
    try:
        names = json.loads((folder / FAVOURITES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def mark(runs: Path, run: str, cell: str, on: bool) -> None:
    """Marks a cell of a run's grids as a favourite, or takes the mark away."""
    folder = _folder(runs, run)
    if not CELL.fullmatch(cell) or not (folder / CELLS_FOLDER / cell).is_file():
        raise AtelierError(f"cell: there is no cell {cell!r} in the grids of {run!r}.")
    others = [name for name in favourites(folder) if name != cell]
    write_text(folder / FAVOURITES, json.dumps([*others, *([cell] if on else [])], indent=1))


def keep(lora: Path, name: str, folder: Path) -> Path:
    """Copies a LoRA file to ``folder`` under a name of one's choice; another file of that name is not overwritten."""
    name = check_run_name(name.strip().removesuffix(".safetensors"))
    target = folder / f"{name}.safetensors"
    if target.is_file():
        if filecmp.cmp(lora, target, shallow=False):
            return target
        raise AtelierError(f"name: {target.name} is there already and is another LoRA; choose another name.")
    with replacing(target) as temporary:
        shutil.copyfile(lora, temporary)
    return target


def _folder(runs: Path, run: str) -> Path:
    inside = {folder.name for folder in runs.iterdir() if not folder.is_symlink()} if runs.is_dir() else set()
    if run not in inside:
        raise AtelierError(f"run: there is no run called {run!r}.")
    return runs / run / GRIDS_FOLDER


def _facts(path: Path) -> dict[str, Any] | None:
    """What a page says of itself; None for a picture that says nothing of the kind."""
    try:
        with Image.open(path) as picture:
            facts = json.loads(picture.info[KEY])
        whole = isinstance(facts, Mapping) and isinstance(facts["cells"], dict) and isinstance(facts["epochs"], list)
        whole = whole and all(isinstance(cell, dict) for cell in facts["cells"].values())
        return dict(facts) if whole and {"prompt", "seed", "strengths", "scores"} <= facts.keys() else None
    except (OSError, ValueError, KeyError, SyntaxError):
        return None
