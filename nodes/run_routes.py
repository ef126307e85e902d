"""What pages ask of runs: a run's state and a wish to it; and for the window of runs which there are, where they lie, a file of
one, and that one be deleted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aiohttp import web

from ..training import host
from ..training.errors import AtelierError
from ..training.files import is_file, is_inside
from ..training.runs import catalogue, live, reader
from ..training.runs.layout import SAMPLES_FOLDER
from ..training.runs.record import read_record
from . import desktop
from .asked import PREFIX, Refused, answered, apart, body_of, table, text_of

PLACES = ("run", "loras")
_walker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lora-atelier-catalogue")
"""All files of all runs are looked at, which may take long; nothing that is asked besides waits for it."""


def run_state(name: str, since: int, newest: bool) -> dict[str, Any]:
    """A run as it is now; ``newest``: of all that a recipe of this name has made, which may be none."""
    runs = host.runs_folder()
    if newest:
        found = reader.latest(name, runs, live.running())
        if found is None:
            return {"name": None}
        name = found
    try:
        state = reader.state(name, runs, since)
    except AtelierError as error:
        raise Refused(404, str(error)) from error
    now = live.find(name)
    state["samples"] = [shown for sample in state["samples"] if (shown := _shown(sample, runs / name / SAMPLES_FOLDER))]
    folder = host.lora_name(host.loras_folder() / name)
    return {**state, "folder": folder, "live": now.status() if now is not None else None}


def _shown(sample: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """A sample as the page finds it; None for one that the host cannot show."""
    path = folder / sample.pop("file")
    try:
        return {**sample, **host.shown_picture(path)}
    except ValueError:
        return None


def listed() -> dict[str, Any]:
    """``runs`` with their sizes, and the folders that hold them."""
    runs, loras = host.runs_folder(), host.loras_folder()
    running = set(live.running())
    rows = [{**row, "live": row["name"] in running} for row in catalogue.entries(runs, loras)]
    return {"runs": rows, "folders": {"run": str(runs), "loras": str(loras)}}


def delete(name: str, what: str) -> dict[str, Any]:
    """``bytes`` that were freed, ``left``: what lies in the run's folders and is none of its own."""
    if name in live.running():
        raise AtelierError(f"name: {name} is being trained right now. Stop it first.")
    if name in live.drawn():
        raise AtelierError(f"name: a grid of {name} is being drawn right now. Wait until it is done, or cancel it.")
    deleted = catalogue.delete(name, host.runs_folder(), host.loras_folder(), what)  # type: ignore[arg-type]
    return {"bytes": deleted.bytes, "left": deleted.left}


def place(name: str, which: str, here: bool) -> dict[str, Any]:
    """``path`` of a run's folder, and whether it was ``opened``: on the desktop here, for a person who sits at it."""
    if which not in PLACES:
        raise AtelierError(f"which: {which[:40]!r} is none of {', '.join(PLACES)}.")
    folder = reader.folder_of(name, host.runs_folder())
    if which == "loras":
        folder = host.loras_folder() / folder.name
    if not folder.is_dir():
        raise AtelierError(f"{folder}: there is no such folder any more.")
    return {"path": str(folder), "opened": here and desktop.show(folder)}


def lora_file(name: str, file: str) -> Path:
    """A LoRA file of a run, to be downloaded; AtelierError for anything else."""
    folder = reader.folder_of(name, host.runs_folder())
    try:
        saved = {row["file"] for row in read_record(folder).saved}
    except FileNotFoundError:
        saved = set()
    loras = host.loras_folder()
    path = loras / folder.name / file
    if file not in saved or not is_file(path) or not is_inside(path, loras):
        raise AtelierError(f"file: {name} has no file called {file[:100]!r}.")
    return path


@table.get(f"{PREFIX}/runs")
@answered
async def get_runs(request: web.Request) -> Any:
    """``damaged``: the folders whose run cannot be read, by name, and why."""
    runs = host.runs_folder()
    return {"runs": await apart(reader.names, runs), "damaged": await apart(reader.set_aside, runs), "running": live.running()}


@table.get(f"{PREFIX}/runs/{{name}}")
@answered
async def get_run(request: web.Request) -> Any:
    """``?since=`` the last step that the page has; ``?newest=1``: see ``run_state``."""
    since = request.query.get("since", "0")
    if not since.isascii() or not since.isdigit() or len(since) > 12:
        raise Refused(400, "since: a number of steps is needed.")
    return await apart(run_state, request.match_info["name"], int(since), request.query.get("newest") == "1")


@table.post(f"{PREFIX}/runs/{{name}}/command")
@answered
async def post_command(request: web.Request) -> Any:
    values = await body_of(request, fields=("command",))
    command = text_of(values, "command", 20)
    if command not in live.COMMANDS:
        raise Refused(400, f"command: {command!r} is not one of {', '.join(live.COMMANDS)}.")
    now = live.find(request.match_info["name"])
    if now is None:
        raise Refused(404, f"name: no run called {request.match_info['name']!r} trains now.")
    now.send(command)  # type: ignore[arg-type]
    return now.status()


@table.get(f"{PREFIX}/catalogue")
@answered
async def get_catalogue(_request: web.Request) -> Any:
    return await apart(listed, worker=_walker)


@table.post(f"{PREFIX}/runs/{{name}}/delete")
@answered
async def post_delete(request: web.Request) -> Any:
    """``what``: ``state``, ``records`` or ``all``."""
    values = await body_of(request, fields=("what",))
    return await apart(delete, request.match_info["name"], text_of(values, "what", 20))


@table.post(f"{PREFIX}/runs/{{name}}/folder")
@answered
async def post_folder(request: web.Request) -> Any:
    """``which``: ``run`` or ``loras``."""
    which = text_of(await body_of(request, fields=("which",)), "which", 20)
    here = desktop.sits_here(request.remote, request.headers)
    return await apart(place, request.match_info["name"], which, here)


@table.get(f"{PREFIX}/runs/{{name}}/file")
async def get_file(request: web.Request) -> web.StreamResponse:
    """``?file=``: a LoRA file of the run, as its record names it."""
    try:
        path = await apart(lora_file, request.match_info["name"], request.query.get("file", ""))
    except (ValueError, OSError) as error:
        return web.json_response({"error": str(error)}, status=404)
    named = f"attachment; filename*=UTF-8''{quote(path.name)}"
    return web.FileResponse(
        path, headers={"Content-Disposition": named, "Content-Type": "application/octet-stream", "Cache-Control": "no-store"}
    )
