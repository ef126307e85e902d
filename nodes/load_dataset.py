"""LoadDataset: a folder of pictures becomes a dataset, and shows what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy_api.latest import io

from .wires import CATEGORY, DATASET

NO_FOLDER = "(no folder with pictures yet)"
"""Shown in the list while there is nothing to choose."""


class LoadDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..training import host
        from ..training.dataset.folders import list_folders

        return io.Schema(
            node_id="LoadDataset",
            display_name="Load Dataset",
            category=CATEGORY,
            description="Pictures of a folder, with the captions in the .txt files beside them. Several of these nodes in a row "
            "make one dataset.",
            inputs=[
                io.Combo.Input(
                    "folder", options=list_folders(host.dataset_roots()) or [NO_FOLDER],
                    tooltip="A folder inside ComfyUI's input or datasets folder: pictures, or sub-folders named like '10_name', "
                    "where 10 is the number of repeats.",
                ),
                io.Int.Input(
                    "resolution", default=512, min=64, max=4096, step=64,
                    tooltip="Pixels of the square's side. Buckets have other shapes and at most the square's area.",
                ),
                io.Int.Input(
                    "batch_size", default=1, min=1, max=1024,
                    tooltip="Pictures per step. A bucket's last batch may be shorter; no picture is dropped.",
                ),
                io.Int.Input(
                    "repeats", default=0, min=0, max=10_000,
                    tooltip="How often every picture is shown in an epoch. 0: the number before the first _ of the folder's "
                    "name, else 1.",
                ),
                io.Boolean.Input(
                    "buckets", default=True,
                    tooltip="On: every picture keeps nearly its own shape. Off: every picture is cut to the square.",
                ),
                io.Int.Input(
                    "bucket_step", default=64, min=8, max=512, step=8,
                    tooltip="Sides of buckets are multiples of this many pixels; 64 suits all models.",
                ),
                io.Combo.Input(
                    "crop", options=["center", "random", "none"], default="center",
                    tooltip="Where overflow is cut off. random: elsewhere in each epoch. none: nothing is cut, the picture is "
                    "stretched.",
                ),
                io.String.Input(
                    "caption_extension", default=".txt", tooltip="Ending of the caption files beside the pictures."
                ),
                DATASET.Input(
                    "dataset", optional=True,
                    tooltip="Another dataset in front of this one, to train on several folders or sizes in one run.",
                ),
            ],
            outputs=[DATASET.Output(display_name="dataset", tooltip="For Auto Caption, another Load Dataset, or Train LoRA.")],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, folder: str | None = None) -> bool | str:
        """A sentence for a folder that this computer doesn't have, in place of "value not in list"."""
        from ..training.errors import AtelierError

        try:
            _resolve(folder) if folder is not None else None
        except AtelierError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder: str, caption_extension: str = ".txt", **others: Any) -> str:
        """Changes with the folder's pictures and captions, so that an edited folder is read again."""
        from ..training.dataset.scan import folder_stamp
        from ..training.errors import AtelierError

        try:
            path, root = _resolve(folder)
            return folder_stamp(path, caption_extension, root)
        except AtelierError as error:
            return str(error)

    @classmethod
    def execute(
        cls,
        folder: str,
        resolution: int,
        batch_size: int,
        repeats: int,
        buckets: bool,
        bucket_step: int,
        crop: Any,
        caption_extension: str,
        dataset: Any = None,
    ) -> io.NodeOutput:
        from ..training import host
        from ..training.config import SubsetConfig
        from ..training.dataset.plan import Plan
        from ..training.dataset.samples import Dataset
        from ..training.dataset.scan import scan
        from ..training.dataset.thumbnails import write_thumbnails

        config = SubsetConfig(
            folder, resolution, batch_size, repeats, buckets, bucket_step, crop, caption_extension.strip()
        )  # fmt: skip
        path, root = _resolve(folder)
        own = Dataset(scan(path, config, root))
        thumbnails = write_thumbnails(own, host.temp_folder() / "lora-atelier")
        chained = dataset + own if dataset is not None else own
        images = [{"filename": thumbnail.name, "subfolder": "lora-atelier", "type": "temp"} for thumbnail in thumbnails]
        text = f"{chained.describe()}\n{Plan(chained, 0).describe()}"
        return io.NodeOutput(chained, ui={"images": images, "text": [text]})


def _resolve(folder: str) -> tuple[Path, Path]:
    """(folder, its root); AtelierError naming the widget."""
    from ..training import host
    from ..training.dataset.folders import resolve_folder
    from ..training.errors import AtelierError

    roots = host.dataset_roots()
    if folder == NO_FOLDER:
        places = " or ".join(str(root) for root in roots.values())
        raise AtelierError(f"folder: put your pictures into a new folder inside {places}, refresh the page and choose it.")
    return resolve_folder(folder, roots), roots[folder.split("/")[0]]
