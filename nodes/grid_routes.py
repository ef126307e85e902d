"""What the gallery of Epoch Weight Grid asks the server: which grids there are, a grid's cells, a favourite, a LoRA to be kept.

The routes themselves are in ``routes.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..training import host
from ..training.errors import AtelierError
from ..training.runs.layout import CELLS_FOLDER


def pages() -> dict[str, Any]:
    """``damaged``: the pages that cannot be read, and why."""
    from ..training.grid import gallery

    sound, damaged = gallery.pages(host.runs_folder())
    return {"pages": sound, "damaged": damaged}


def page(query: Mapping[str, str]) -> dict[str, Any]:
    """A page's facts, its cells with the addresses of their pictures."""
    from ..training.grid import gallery

    folder, facts = gallery.page(host.runs_folder(), query.get("run", ""), query.get("page", ""))
    for cell in facts["cells"].values():
        if "cell" in cell:
            cell["picture"] = host.shown_picture(folder / CELLS_FOLDER / cell["cell"])
        if "film" in cell:
            cell["film"] = host.shown_picture(folder / CELLS_FOLDER / cell["film"])
    return {"run": query.get("run", ""), **facts}


def favourite(run: str, cell: str, on: bool) -> dict[str, Any]:
    from ..training.grid import gallery

    gallery.mark(host.runs_folder(), run, cell, on)
    return {"favourite": on}


def keep(loras: Sequence[str], name: str) -> dict[str, Any]:
    """Copies a listed LoRA, or writes the mean of several; answers with the name under which every loader lists the file."""
    from ..training.grid import gallery, mean

    known = host.lora_files()
    for lora in loras:
        if lora not in known:
            raise AtelierError(f"lora: {lora!r} is not in the list of Load LoRA.")
    paths = list(map(host.lora_path, loras))
    folder = host.all_loras_folder()
    kept = mean.keep(paths, name, folder) if len(paths) > 1 else gallery.keep(paths[0], name, folder)
    return {"lora": host.lora_name(kept)}
