"""What the gallery of Epoch Weight Grid asks the server: which grids there are, a grid's cells, a favourite, a LoRA to be kept.

The routes themselves are in ``routes.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def keep(lora: str, name: str) -> dict[str, Any]:
    """Copies a listed LoRA; answers with the name under which every loader lists the copy."""
    from ..training.grid import gallery

    if lora not in host.lora_files():
        raise AtelierError(f"lora: {lora!r} is not in the list of Load LoRA.")
    kept = gallery.keep(host.lora_path(lora), name, host.all_loras_folder())
    return {"lora": host.lora_name(kept)}
