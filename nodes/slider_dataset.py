"""SliderDataset: pictures on which a LoRA of two directions is learnt, from prompts or from pairs."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..training.config import SliderConfig, SliderSource
from .io_types import CATEGORY, DATASET, searched
from .shown import shown


class SliderDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SliderDataset",
            display_name="Slider Dataset",
            **searched("concept slider", "slider lora", "lora slider", "leco", "attribute slider"),
            category=CATEGORY,
            description="Train LoRA learns a slider: more of something at strength 1, less of it at -1. What that is, prompts "
            "say, and the pictures are only what it is practised on; or pairs of pictures show it.",
            inputs=[
                DATASET.Input(
                    "dataset",
                    tooltip="The pictures. For prompts any of the target, such as those that Render Regularisation draws; for "
                    "pairs the pictures with much of it, each with the one from before in a folder control.",
                ),
                io.Combo.Input(
                    "source", options=list(get_args(SliderSource)), default="prompts",
                    tooltip="prompts: between two prompts, whatever the pictures show. pairs of pictures: between each "
                    "picture and its control picture.",
                ),
                io.String.Input(
                    "target", default="a photo of a person", multiline=True,
                    tooltip="What the slider works on; several, one a line. Empty: whatever is drawn.",
                ),
                io.String.Input(
                    "positive", default="a photo of a very old person", multiline=True,
                    tooltip="The target with much of it, where strength 1 leads. A line for each of the target's, or one.",
                ),
                io.String.Input(
                    "negative", default="a photo of a very young person", multiline=True,
                    tooltip="The target with the opposite of it, where strength -1 leads. Lines as for positive.",
                ),
                io.String.Input(
                    "preserve", default="",
                    tooltip="What the slider must not change along with it, such as 'male, female': each stands in front of the "
                    "prompts in its turn.",
                ),
                io.Float.Input(
                    "guidance", default=3.0, min=0.1, max=100.0, step=0.1, round=False,
                    tooltip="How far strength 1 goes, in times of the way from negative to positive. 2 to 4 is usual.",
                ),
            ],
            outputs=[DATASET.Output(display_name="dataset", tooltip="For Train LoRA.")],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, dataset: Any, source: Any, target: str, positive: str, negative: str, preserve: str, guidance: float
    ) -> io.NodeOutput:
        from ..training.dataset.sliders import slider_of

        made = slider_of(dataset, SliderConfig(source, target, positive, negative, preserve, guidance))
        return io.NodeOutput(made, ui=shown(made, made, "Slider Dataset", _done(made)))


def _done(made: Any) -> list[str]:
    """What is learnt, in a line."""
    slider = made.subsets[0].config.slider
    if slider.source != "prompts":
        return ["slider: from the control pictures (-1) to the pictures (1)"]
    rows = slider.ends
    more = f", and {len(rows) - 1} more such rows" if len(rows) > 1 else ""
    return [f"slider: {rows[0].target or 'whatever is drawn'!r} from {rows[0].negative!r} (-1) to {rows[0].positive!r} (1){more}"]
