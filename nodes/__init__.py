"""The canvas side: one file a node, which only translates between widgets and the trainer."""

from __future__ import annotations

import sys

from comfy_api.latest import ComfyExtension

from .auto_caption import AutoCaption
from .configure_lora import ConfigureLoRA
from .dataset_from_nodes import DatasetFromNodes
from .epoch_weight_grid import EpochWeightGrid
from .load_dataset import LoadDataset
from .render_regularisation import RenderRegularisation
from .slider_dataset import SliderDataset
from .train_lora import TrainLoRA


class Atelier(ComfyExtension):
    """The pack's nodes in the order in which they are wired."""

    async def get_node_list(self) -> list[type]:
        return [
            LoadDataset, DatasetFromNodes, AutoCaption, RenderRegularisation, SliderDataset, ConfigureLoRA, TrainLoRA,
            EpochWeightGrid,
        ]  # fmt: skip


if "server" in sys.modules:  # graphs may be run without one
    from ..training import host
    from . import routes

    host.add_routes(routes.table)
