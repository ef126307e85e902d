"""EpochWeightGrid: saved epochs x strengths on one page a prompt and seed."""

from __future__ import annotations

import json
from typing import Any, get_args

from comfy_api.latest import io

from ..training.config import Syntax, sampling
from ..training.config.refusal import text_of
from ..training.dataset import moving
from ..training.dataset.augment import trained_pictures
from ..training.errors import AtelierError
from ..training.families import family_named
from ..training.runs import live, reader
from ..training.runs.layout import GRIDS_FOLDER
from .io_types import CATEGORY, DATASET, EPOCHS, folded, searched
from .shown import logged
from .train_lora import graph_of

AS_TRAINED = "as trained"
Given = str | list[str] | None
"""A text, which the host gives as a list of one; None (or a list of it) for what is linked."""


def first(given: Given) -> str | None:
    return given[0] if isinstance(given, (list, tuple)) and given else given if isinstance(given, str) else None


def single(name: str, given: Any) -> Any:
    """The one value that came through a wire; AtelierError for several, of which a page could show but one."""
    if not isinstance(given, list):
        return given
    if not given:
        raise AtelierError(f"{name}: nothing came through the wire. Connect a node that gives something, or none.")
    if any(one is not given[0] and not (isinstance(one, (str, int, float)) and one == given[0]) for one in given):
        raise AtelierError(
            f"{name}: {len(given)} values came through the wire, and all cells of a grid share one. Connect a single one; the "
            "model without a LoRA, not Train LoRA's."
        )
    return given[0]


class EpochWeightGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EpochWeightGrid",
            display_name="Epoch Weight Grid",
            **searched(
                "xy plot", "xyz plot", "lora grid", "compare loras", "compare epochs", "lora strength test", "choose epoch"
            ),
            category=CATEGORY,
            description="Shows every saved epoch at several strengths, so that the best one is picked by eye, and measures what "
            "can be measured. The first column is drawn without any LoRA. Cells that were drawn before are not drawn again.",
            inputs=[*_inputs(), *_more_inputs()],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="One page a prompt and seed; large grids go on on the next."),
                io.String.Output(display_name="notes", tooltip="The numbers, and which epoch they speak for."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
            is_input_list=True,  # so that the trainings of a sweep are on one page
        )

    @classmethod
    def validate_inputs(
        cls,
        prompts: Given = None,
        which_epochs: Given = None,
        strengths: Given = None,
        more_seeds: Given = None,
        lora_files: Given = None,
        shown_frame: Given = None,
    ) -> bool | str:
        """A sentence for what cannot be read or found, before anything is trained; what is linked comes as None."""
        from ..training import host
        from ..training.grid import axes, files, plan

        prompts, which_epochs, strengths, more_seeds, lora_files, shown_frame = map(
            first, (prompts, which_epochs, strengths, more_seeds, lora_files, shown_frame)
        )
        try:
            if shown_frame is not None:
                moving.frame_named("shown_frame", shown_frame, moving.MOST)
            prompt_count = len(axes.prompt_lines(prompts)) if prompts is not None else 1
            strength_count = len(axes.parse_strengths(strengths)) if strengths is not None else 1
            seed_count = len(axes.parse_seeds(0, more_seeds)) if more_seeds is not None else 1
            if which_epochs is not None:
                axes.parse_epochs(which_epochs)
            if lora_files:
                files.choose_files(lora_files, host.lora_files())
            plan.check_size(prompt_count * seed_count * (1 + strength_count), 64, 64)
        except AtelierError as error:
            return host.refusal(str(error))
        return True

    @classmethod
    def fingerprint_inputs(cls, lora_files: Given = None, **_others: Any) -> str:
        """Changes when a file that is named was changed or joined by others, and when pages that were shown are gone."""
        from ..training import host
        from ..training.grid.files import choose_files
        from ..training.grid.pages import SHOWN

        lost, lora_files = SHOWN.losses(), first(lora_files)
        try:
            names = choose_files(lora_files, host.lora_files()) if lora_files else []
            return json.dumps([lost, *([str(path), path.stat().st_mtime_ns] for path in map(host.lora_path, names))])
        except (AtelierError, OSError) as error:
            return f"{lost} {error}"

    @classmethod
    def execute(cls, model: Any, clip: Any, vae: Any, prompts: Any, epochs: Any = None, **others: Any) -> io.NodeOutput:
        """One grid of all that came through the wires: several runs side by side, several prompts on a page each."""
        runs = [run for run in (epochs if isinstance(epochs, list) else [epochs]) if run is not None]
        lines = "\n".join(text_of("prompts", one) for one in (prompts if isinstance(prompts, list) else [prompts]))
        given = {"model": model, "clip": clip, "vae": vae, **others}
        return cls.draw(runs, lines, **{name: single(name, value) for name, value in given.items()})

    @classmethod
    def draw(
        cls,
        epochs: list[Any],
        prompts: str,
        model: Any,
        clip: Any,
        vae: Any,
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
        more_seeds: str = "",
        lora_files: str = "",
        text_encoder: str = "tied",
        text_encoder_strength: float = 1.0,
        cells_at_once: int = 0,
        scores: bool = True,
        dataset: Any = None,
        clip_vision: Any = None,
        prompt_syntax: Any = AS_TRAINED,
        control: Any = None,
        sampler: Any = None,
        sigmas: Any = None,
        guider: Any = None,
        frames: int = 1,
        shown_frame: str = "middle",
    ) -> io.NodeOutput:
        from ..training import host, prompting
        from ..training.grid import axes as typed
        from ..training.grid import origin, plan, render
        from ..training.grid.files import read_metadata
        from ..training.grid.pages import SHOWN

        for widget, value in (
            ("prompts", prompts), ("which_epochs", which_epochs), ("strengths", strengths), ("more_seeds", more_seeds),
            ("lora_files", lora_files),
        ):  # fmt: skip
            text_of(widget, value)
        runs = [*epochs, *_named_runs(lora_files)]
        choice = typed.parse_epochs(which_epochs)
        wrapped, text = host.Model(model), host.TextEncoder(clip)
        files = [saved.path for run in runs for saved in run.files]
        facts = list(map(read_metadata, files))
        given, of_controls = prompting.of_grid(
            prompting.apart(control, "control"), [run.controls for run in runs], any(origin.PAIRS in one for one in facts),
            wrapped.family,
        )  # fmt: skip
        shows = prompting.shows_of(family_named(wrapped.family), text, bool(given))
        lines, places = plan.beside(typed.prompt_lines(prompts), len(given) if shows.shown else 0)
        axes = plan.Axes(
            lines,
            plan.columns_of(runs, choice),
            typed.parse_strengths(strengths),
            typed.parse_seeds(seed, more_seeds),
            text_encoder_strength if text_encoder == "separate" else None,
            places,
        )
        plan.check_size(axes.cells, width, height)
        syntax = origin.prompt_syntax(facts) if prompt_syntax == AS_TRAINED else prompt_syntax
        shown = moving.frame_named("shown_frame", text_of("shown_frame", shown_frame), frames) + 1
        hidden = cls.hidden
        codec = host.PictureCodec(vae)
        name = origin.model_name(hidden.prompt, hidden.unique_id) if hidden else ""
        grid = render.Grid(
            wrapped,
            text.reading(syntax),
            codec,
            axes,
            sampling.Sampling(negative, sampler_name, scheduler, steps, cfg, width, height, seed, frames, shown),
            host.runs_folder() / runs[0].name / GRIDS_FOLDER,
            graph_of(hidden) if hidden else {},
            base=f"{name} ({wrapped.family})" if name else wrapped.family,
            together=cells_at_once,
            judge=_judge(runs, dataset, clip_vision) if scores else None,
            losses=_losses(runs),
            remarks=[*plan.remarks(runs, choice, axes.strengths), *of_controls],
            controls=prompting.ControlPictures(codec, shows, given, (width, height)),
            show=host.status_of(hidden.unique_id) if hidden else lambda _line: None,
            wired=host.Wired(sampler, sigmas, guider),
        )
        grid.check()
        with live.drawing(run.name for run in runs):
            try:
                grid.render(host.progress(axes.cells))
            finally:
                # A cancelled grid is assembled too: what was drawn is shown, the rest stays blank.
                pages = grid.save_pages()
        notes, said = "\n".join(grid.notes()), grid.statement()
        logged("Epoch Weight Grid", said)
        SHOWN.add(pages)
        images = [host.shown_picture(page) for page in pages]
        return io.NodeOutput(
            render.to_batch(list(render.drawn_pages(pages))), notes, ui={"images": images, **said.shown(), "text": [notes]}
        )  # fmt: skip


def _named_runs(lora_files: str) -> list[Any]:
    from ..training import host
    from ..training.grid import files

    return files.as_runs(files.choose_files(lora_files, host.lora_files()), host.lora_path, files.read_metadata)


def _losses(runs: list[Any]) -> dict[str, Any]:
    """What the runs have measured that were trained here; a file of the same name from elsewhere is none of theirs."""
    from ..training import host

    own = [run for run in runs if all(file.path.parent == host.loras_folder() / run.name for file in run.files)]
    return {run.name: reader.measured(host.runs_folder() / run.name) for run in own}


def _judge(runs: list[Any], dataset: Any, clip_vision: Any) -> Any:
    """None without pictures to compare with: the connected dataset's, or those that a connected run was trained with."""
    from ..training import host
    from ..training.grid import features, judge

    several = dict.fromkeys(path for run in runs for path in run.pictures)  # runs of one dataset name the same ones
    pictures = trained_pictures(dataset) if dataset is not None else list(several)
    if not pictures:
        return None
    return judge.Judge(host.PictureReader(clip_vision) if clip_vision is not None else features.ColoursAndEdges(), pictures)


def _inputs() -> list[Any]:
    """The models, the axes and the sampler."""
    from ..training import host

    return [
        io.Model.Input("model", tooltip="The model to judge on. It may be another one than the LoRA was trained on."),
        io.Clip.Input("clip", tooltip="The text encoder for the prompts."),
        io.Vae.Input("vae", tooltip="Turns latents into pictures."),
        EPOCHS.Input("epochs", optional=True, tooltip="Saved LoRAs, from Train LoRA; or name files in lora_files."),
        io.String.Input("prompts", multiline=True, default="", tooltip="One prompt a line; each gets a page of its own."),
        io.String.Input("negative", multiline=True, default="", tooltip="Negative prompt of every cell."),
        io.String.Input(
            "which_epochs", default="all",
            tooltip="all, every 2, or numbers: 1, 3, 6-10(+2), last. mean 3-5, mean 2 4 6: the mean of several as one column.",
        ),
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
    ]  # fmt: skip


def _more_inputs() -> list[Any]:
    """What is seldom needed, and what the numbers are made from."""
    more = [
        io.String.Input(
            "more_seeds", default="", optional=True, tooltip="Further seeds, each with pages of its own: 1, 2, 3 or 10-12."
        ),
        io.String.Input(
            "lora_files", multiline=True, default="", optional=True,
            tooltip="LoRA files of any origin, one a line, as Load LoRA lists them; a folder or * takes several.",
        ),
        io.Combo.Input(
            "text_encoder", options=["tied", "separate"], default="tied", optional=True,
            tooltip="tied: the text encoder gets the strength of the row. separate: text_encoder_strength in all rows.",
        ),
        io.Float.Input(
            "text_encoder_strength", default=1.0, min=-100.0, max=100.0, step=0.05, optional=True,
            tooltip="Strength on the text encoder, where it is separate. Only for LoRAs that have a part in it.",
        ),
        io.Int.Input(
            "cells_at_once", default=0, min=0, max=64, optional=True,
            tooltip="Cells that are drawn in one batch, of several files too; 0: as many as fit, up to 8; 1: one by one.",
        ),
        io.Boolean.Input(
            "scores", default=True, optional=True,
            tooltip="Measure each cell: like the dataset, like a single training picture, like the picture without a LoRA.",
        ),
        io.Combo.Input(
            "prompt_syntax", options=[AS_TRAINED, *get_args(Syntax)], default=AS_TRAINED, optional=True,
            tooltip="plain: prompts are text as it stands, brackets and all. ComfyUI: (weights:1.2) and embedding:names in them "
            "count. "
            "as trained: what the LoRA's recipe says.",
        ),
    ]  # fmt: skip
    of_films = [
        io.Int.Input(
            "frames", default=1, min=1, max=1000, step=4, optional=True,
            tooltip="For video models: frames of each cell, such as 33 or 81; most models want 4 times a number and 1 more. "
            "1: pictures.",
        ),
        io.String.Input(
            "shown_frame", default="middle", optional=True,
            tooltip="Which frame of a film stands on the page and is measured: first, middle, last or a number from 1. All of "
            "them are kept: another frame is shown without drawing again.",
        ),
    ]  # fmt: skip
    return [
        *folded(more, [entry.id for entry in more]),
        DATASET.Input(
            "dataset", optional=True, tooltip="Pictures to compare with. Not needed for a run that comes from Train LoRA."
        ),
        io.Image.Input(
            "control",
            optional=True,
            tooltip="For models that edit: the picture beside each prompt, as a batch. Without it all prompts stand beside a "
            "control picture of the run's dataset.",
        ),
        io.ClipVision.Input(
            "clip_vision", optional=True, tooltip="Compares by what is seen; without it only colours and edges are compared."
        ),
        io.Sampler.Input(
            "sampler", optional=True, tooltip="Takes the place of sampler_name: a sampler with settings of its own, of any node."
        ),
        io.Sigmas.Input(
            "sigmas", optional=True,
            tooltip="Takes the place of scheduler and steps: the noise levels that any scheduler node gives.",
        ),
        io.Guider.Input(
            "guider", optional=True,
            tooltip="Takes the place of cfg: how prompts guide the model. Cells are drawn with the model and the prompts of this "
            "node; all else in the guider stays.",
        ),
        *folded(of_films, [entry.id for entry in of_films]),
    ]  # fmt: skip
