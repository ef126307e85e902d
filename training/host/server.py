"""Server of the host: progress, cancel, status, routes, events; and what its widgets list."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.utils
from comfy.cli_args import args

from .folders import output_folder


def progress(total: int) -> Callable[..., None]:
    """``advance(step, preview=None)``: moves the node's bar, shows a PIL picture in the node, and raises when cancelled."""
    bar = comfy.utils.ProgressBar(total)

    def advance(step: int, preview: object = None) -> None:
        bar.update_absolute(step, total, ("JPEG", preview, 512) if preview is not None else None)
        check_interrupt()

    return advance


def check_interrupt() -> None:
    """Raises the host's own interrupt when the person pressed cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def is_interrupt(error: BaseException) -> bool:
    return type(error).__name__ == "InterruptProcessingException"


def samplers() -> list[str]:
    return list(comfy.samplers.KSampler.SAMPLERS)


def schedulers() -> list[str]:
    return list(comfy.samplers.KSampler.SCHEDULERS)


def status_of(node_id: str) -> Callable[[str], None]:
    """A function that writes one line of text into the panel of the node with this id."""

    def show(line: str) -> None:
        send("lora_atelier.status", {"node": str(node_id), "line": line})

    return show


class _SaidOnce(str):
    """A refusal of a node's widgets, which the host writes down for every widget that was looked at.

    It asks of each refusal whether it is one of its own blockers, which are no errors: once it was written down, this one is.
    """

    _said = False

    def __str__(self) -> str:
        self._said = True
        return super().__str__()

    def _kind(self) -> type:
        from comfy_execution.graph_utils import ExecutionBlocker

        return ExecutionBlocker if self._said else str

    __class__ = property(_kind)


def refusal(sentence: str) -> str:
    """What ``validate_inputs`` gives back for a sentence that the person is to read once."""
    return _SaidOnce(sentence)


def upload_limit() -> int | None:
    """Bytes that the server takes of one file; None where it takes any number."""
    return int(args.max_upload_size * 1024 * 1024) or None


def shown_picture(path: Path) -> dict[str, str]:
    """How the canvas finds a picture in the output folder, which may have links in it; ValueError for one that lies elsewhere."""
    place, output = Path(os.path.abspath(path)), Path(os.path.abspath(output_folder()))
    if not place.is_relative_to(output):  # the same folder by another name
        place, output = place.resolve(), output.resolve()
    relative = place.relative_to(output)
    return {"filename": relative.name, "subfolder": relative.parent.as_posix(), "type": "output"}


def _server() -> Any:
    """The host's server, or None where a graph runs without one; nothing is imported to find out."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def add_routes(table: Any) -> bool:
    """Lets the server answer an aiohttp table of routes too, to its own pages (``guarded``); only before it starts.

    False without a server.
    """
    server = _server()
    if server is None:
        return False
    from .senders import guarded  # aiohttp is there wherever a server is

    for route in table:
        server.routes.route(route.method, route.path)(guarded(route.handler))
    return True


def send(event: str, data: dict[str, Any]) -> None:
    """Tells every open page; from any thread."""
    server = _server()
    if server is not None:
        server.send_sync(event, data)
