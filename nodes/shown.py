"""What a node shows of a dataset: sentences and tables in its panel and the log, thumbnails, and its pictures one by one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ..training.dataset.samples import Dataset

LISTED = 200
"""Pictures in the table that the canvas receives."""
THUMBNAILS = "lora-atelier"
"""Their folder inside the host's temp folder."""
log = logging.getLogger("lora-atelier")


def shown(
    own: Dataset,
    chained: Dataset,
    title: str,
    done: Sequence[str] = (),
    amiss: Sequence[str] = (),
    *,
    thumbnails: bool = True,
    table: bool = True,
) -> dict[str, Any]:
    """The node's ``ui``: notes, pictures and thumbnails are of its ``own`` pictures, the plan is of all that are ``chained``.

    The node's panel draws the thumbnails. ``title``: of the node, for the log; ``done`` and ``amiss``: as for ``report.told``.
    """
    from ..training.dataset.report import inspect, told

    said = told(own, chained, done, amiss)
    images = _thumbnails(own) if thumbnails else []
    listed = {"pictures": [picture.to_dict() for picture in inspect(own)[:LISTED]]} if table else {}
    logged(title, said)
    return {"thumbnails": images, **said.shown(), **listed}


def logged(title: str, said: Any) -> None:
    """Writes what a node says (a ``Statement``) into the log as well, where a run without a page leaves it too."""
    log.info("%s: %s", title, said.text())


def _thumbnails(own: Dataset) -> list[dict[str, str]]:
    """As the canvas finds them."""
    from ..training import host
    from ..training.dataset.thumbnails import write_thumbnails

    written = write_thumbnails(own, host.temp_folder() / THUMBNAILS)
    return [{"filename": path.name, "subfolder": THUMBNAILS, "type": "temp"} for path in written]
