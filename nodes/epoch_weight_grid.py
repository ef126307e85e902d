"""EpochWeightGrid: saved epochs x strengths on one page a prompt."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .train_lora import graph_of
from .wires import CATEGORY, EPOCHS


class EpochWeightGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..training import host

        return io.Schema(
            node_id="EpochWeightGrid",
            display_name="Epoch Weight Grid",
            category=CATEGORY,
            description="Shows every saved epoch at several strengths, so that the best one is picked by eye. The first column "
            "is drawn without any LoRA. Cells that were drawn before are not drawn again.",
            inputs=[
                io.Model.Input("model", tooltip="The model to judge on. It may be another one than the LoRA was trained on."),
                io.Clip.Input("clip", tooltip="The text encoder for the prompts."),
                io.Vae.Input("vae", tooltip="Turns latents into pictures."),
                EPOCHS.Input("epochs", tooltip="Saved LoRAs, from Train LoRA."),
                io.String.Input("prompts", multiline=True, default="", tooltip="One prompt a line; each gets a page of its own."),
                io.String.Input("negative", multiline=True, default="", tooltip="Negative prompt of every cell."),
                io.String.Input("which_epochs", default="all", tooltip="all, every 2, or numbers: 1, 3, 6-10(+2)."),
                io.String.Input("strengths", default="0.6, 0.8, 1.0", tooltip="0.6, 0.8, 1.0 or 0-1(+0.25) or 0-1[5]."),
                io.Combo.Input("sampler_name", options=host.samplers(), default="euler", tooltip="Sampler of every cell."),
                io.Combo.Input("scheduler", options=host.schedulers(), default="normal", tooltip="Scheduler of every cell."),
                io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Sampling steps of every cell."),
                io.Float.Input("cfg", default=4.0, min=0.0, max=100.0, step=0.1, tooltip="Guidance of every cell."),
                io.Int.Input("width", default=512, min=16, max=16384, step=8, tooltip="Width of a cell in pixels."),
                io.Int.Input("height", default=512, min=16, max=16384, step=8, tooltip="Height of a cell in pixels."),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**64 - 1, control_after_generate=False,
                    tooltip="One seed for all cells, so that only epoch and strength differ.",
                ),
            ],
            outputs=[io.Image.Output(display_name="grid", tooltip="One page a prompt.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        epochs: Any,
        prompts: str,
        negative: str,
        which_epochs: str,
        strengths: str,
        sampler_name: str,
        scheduler: str,
        steps: int,
        cfg: float,
        width: int,
        height: int,
        seed: int,
    ) -> io.NodeOutput:
        from ..training import host
        from ..training.grid import plan, render

        axes = render.Axes(
            tuple(plan.prompt_lines(prompts)),
            tuple(plan.choose_epochs(epochs, which_epochs)),
            tuple(plan.parse_numbers(strengths, "strengths", 0.25)),
        )
        plan.check_size(axes.cells, width, height, len(axes.prompts))
        grid = render.Grid(
            host.Model(model),
            host.TextEncoder(clip),
            host.PictureCodec(vae),
            epochs,
            axes,
            render.Sampling(negative, sampler_name, scheduler, steps, cfg, width, height, seed),
            host.runs_folder() / epochs.name / "grids",
            graph_of(cls.hidden),
        )
        advance = host.progress(axes.cells)
        try:
            grid.render(advance)
        finally:
            # A cancelled grid is assembled too: what was drawn is shown, the rest stays blank.
            pages = grid.save_pages()
        shown = [host.shown_picture(page) for page in pages]
        return io.NodeOutput(render.to_batch([grid.page(i) for i in range(len(pages))]), ui={"images": shown})
