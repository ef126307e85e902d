"""What a node shows of a dataset: sentences and notes, a table of the pictures, thumbnails."""

from __future__ import annotations

from typing import Any

from ..training.dataset.plan import Plan
from ..training.dataset.samples import Dataset
from ..training.errors import AtelierError

LISTED = 200
"""Pictures in the table that the canvas receives."""
THUMBNAILS = "lora-atelier"
"""Their folder inside the host's temp folder."""


def shown(own: Dataset, chained: Dataset, *first: str, thumbnails: bool = True, table: bool = True) -> dict[str, Any]:
    """The node's ``ui``: notes, table and thumbnails are of its ``own`` pictures, the plan is of all that are ``chained``."""
    from ..training.dataset.report import inspect, remarks

    images = _thumbnails(own) if thumbnails else []
    notes = [f"Note: {remark}" for subset in own.subsets for remark in remarks(subset)]
    text = "\n".join([*first, chained.describe(), *notes, describe_plan(chained)])
    listed = {"pictures": [picture.to_dict() for picture in inspect(own)[:LISTED]]} if table else {}
    return {"images": images, "text": [text], **listed}


def describe_plan(dataset: Dataset) -> str:
    """The bucket table, or what is missing for one: the node in front of the training pictures may come first."""
    try:
        return Plan(dataset, 0).describe()
    except AtelierError:
        if all(subset.config.role != "training" for subset in dataset.subsets):
            return "no training pictures yet: connect this node to a Load Dataset whose role is training"
        raise


def _thumbnails(own: Dataset) -> list[dict[str, str]]:
    """As the canvas finds them."""
    from ..training import host
    from ..training.dataset.thumbnails import write_thumbnails

    written = write_thumbnails(own, host.temp_folder() / THUMBNAILS)
    return [{"filename": path.name, "subfolder": THUMBNAILS, "type": "temp"} for path in written]
