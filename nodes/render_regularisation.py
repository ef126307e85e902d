"""RenderRegularisation: the model draws pictures of the class, which become a regularisation set."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..training.config import SubsetConfig, Syntax
from ..training.config.refusal import text_of
from ..training.config.sampling import Sampling
from ..training.dataset.folders import folder_to_fill
from ..training.dataset.samples import Dataset, counted
from ..training.errors import AtelierError
from .folders import subsets_of
from .io_types import CATEGORY, DATASET, folded, searched
from .shown import shown
from .train_lora import graph_of


class RenderRegularisation(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RenderRegularisation",
            display_name="Render Regularisation",
            **searched("regularization", "class images", "prior preservation", "dreambooth"),
            category=CATEGORY,
            description="Draws pictures of the class (a man, a cat) with the model as it is, and hands them on as a "
            "regularisation set, so that the model keeps what it knew. Pictures that are there already are not drawn again.",
            inputs=folded([*_inputs(), *_more_inputs()], ("render_batch_size", "class_caption", "write_captions")),
            outputs=[
                DATASET.Output(display_name="dataset", tooltip="For Train LoRA, or another Load Dataset."),
                io.String.Output(display_name="folder", tooltip="The folder of the pictures, as Load Dataset lists it."),
                io.Int.Output(display_name="pictures", tooltip="How many pictures the set has."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, folder: str | None = None) -> bool | str:
        """A sentence for a name that leads elsewhere, before anything runs."""
        from ..training import host
        from ..training.regularisation import check_repeats

        try:
            if folder is not None:
                check_repeats(folder_to_fill(folder, host.dataset_roots())[1])
        except AtelierError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder: str | None = None, count: int | None = None, **others: Any) -> str:
        """Changes when somebody changes the pictures or captions; what this node wrote itself doesn't count."""
        from ..training import host
        from ..training.regularisation import set_stamp

        if folder is None or count is None:
            return ""
        try:
            name, path = folder_to_fill(folder, host.dataset_roots())
        except AtelierError as error:
            return str(error)
        return set_stamp(path, host.dataset_root(name), count)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        folder: str,
        prompts: str,
        negative: str,
        count: int,
        width: int,
        height: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        seed: int,
        render_batch_size: int = 1,
        resolution: int = 512,
        batch_size: int = 1,
        loss_weight: float = 1.0,
        class_caption: str = "",
        write_captions: bool = False,
        dataset: Any = None,
        prompt_syntax: Any = "plain",
        sampler: Any = None,
        sigmas: Any = None,
    ) -> io.NodeOutput:
        from ..training import host, regularisation
        from ..training.grid.axes import prompt_lines

        name, path = folder_to_fill(text_of("folder", folder), host.dataset_roots())
        regularisation.check_repeats(path)
        config = SubsetConfig(
            name, resolution, batch_size, role="regularisation", loss_weight=loss_weight, class_caption=class_caption
        )
        sampling = Sampling(negative, sampler_name, scheduler, steps, cfg, width, height, seed)
        order = regularisation.Order(tuple(prompt_lines(prompts)), count, sampling)
        models = host.Model(model), host.TextEncoder(clip, prompt_syntax), host.PictureCodec(vae)
        wired = host.Wired(sampler, sigmas)
        pictures = regularisation.RegularisationSet(*models, order, path, graph_of(cls.hidden) if cls.hidden else {}, wired)
        show = host.status_of(cls.hidden.unique_id) if cls.hidden else lambda line: None
        state = pictures.render(render_batch_size, host.progress(count), show, write_captions)
        of_wires = [*filter(None, [wired.unused()]), *wired.remarks(models[0])]
        return _read(config, path, host.dataset_root(name), dataset, state, count, of_wires)


def _read(config: Any, path: Any, root: Any, upstream: Any, state: Any, count: int, remarks: list[str]) -> io.NodeOutput:
    """The whole folder as a dataset behind ``upstream``, and what the canvas shows of it."""
    own = Dataset(subsets_of(path, config, root))
    chained = upstream + own if upstream is not None else own
    total = sum(len(subset.samples) for subset in own.subsets)
    others = [f"{counted(total - count, 'other picture')} in the folder taken as well."] if total > count else []
    done, amiss = [state.describe(config.folder)], [*state.remarks(), *others, *remarks]
    ui = shown(own, chained, "Render Regularisation", done, amiss, table=False)
    return io.NodeOutput(chained, config.folder, total, ui=ui)


def _inputs() -> list[Any]:
    """The models, and what is drawn."""
    from ..training import host

    return [
        io.Model.Input("model", tooltip="The model to be trained, without any LoRA: its own idea of the class is what counts."),
        io.Clip.Input("clip", tooltip="The text encoder for the prompts."),
        io.Vae.Input("vae", tooltip="Turns latents into pictures."),
        io.String.Input(
            "folder", default="input/reg/1_man",
            tooltip="Where the pictures go, inside ComfyUI's input or datasets folder; it is made if it is missing. The words "
            "behind '1_' are the pictures' caption. A name without input/ or datasets/ in front lies in input.",
        ),
        io.String.Input(
            "prompts", multiline=True, default="a photo of a man",
            tooltip="What is drawn: the class without the trigger word. Several lines are taken in turn.",
        ),
        io.String.Input("negative", multiline=True, default="", tooltip="Negative prompt of every picture."),
        io.Int.Input(
            "count", default=100, min=1, max=100_000,
            tooltip="Pictures of the whole set. Training pictures x repeats shows each of them once an epoch: 30 x 25 are 750.",
        ),
        io.Int.Input("width", default=512, min=16, max=16384, step=8, tooltip="Width of the pictures in pixels."),
        io.Int.Input("height", default=512, min=16, max=16384, step=8, tooltip="Height of the pictures in pixels."),
        io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Sampling steps of every picture."),
        io.Float.Input("cfg", default=4.0, min=0.0, max=100.0, step=0.1, tooltip="Guidance of every picture."),
        io.Combo.Input("sampler_name", options=host.samplers(), default="euler", tooltip="Sampler of every picture."),
        io.Combo.Input("scheduler", options=host.schedulers(), default="normal", tooltip="Scheduler of every picture."),
        io.Int.Input(
            "seed", default=0, min=0, max=2**64 - 1, control_after_generate=False,
            tooltip="Seed of the first picture; each next one has the next seed.",
        ),
        io.Int.Input(
            "render_batch_size", default=1, min=1, max=256,
            tooltip="Pictures drawn at a time. More is quicker on a GPU and needs more memory.",
        ),
    ]  # fmt: skip


def _more_inputs() -> list[Any]:
    """How the set is used in training."""
    return [
        io.Int.Input(
            "resolution", default=512, min=64, max=4096, step=64,
            tooltip="For training: pixels of the square's side, as in Load Dataset.",
        ),
        io.Int.Input("batch_size", default=1, min=1, max=1024, tooltip="For training: pictures of this set per step."),
        io.Float.Input(
            "loss_weight", default=1.0, min=0.001, max=100.0, step=0.05,
            tooltip="For training: how much these pictures count, the prior weight.",
        ),
        io.String.Input(
            "class_caption", default="", optional=True,
            tooltip="For training: caption of pictures that have none. Empty: the words behind the number in the folder's name.",
        ),
        io.Boolean.Input(
            "write_captions", default=False, optional=True,
            tooltip="On: the prompt is written into a .txt file beside each picture that has none. Not needed for a set that is "
            "named by its class.",
        ),
        io.Combo.Input(
            "prompt_syntax", options=list(get_args(Syntax)), default="plain", optional=True,
            tooltip="plain: prompts are text as it stands, brackets and all. ComfyUI: (weights:1.2) and embedding:names in them "
            "count.",
        ),
        DATASET.Input(
            "dataset", optional=True,
            tooltip="The training pictures, from Load Dataset or Auto Caption: both sets go on together.",
        ),
        io.Sampler.Input(
            "sampler", optional=True, tooltip="Takes the place of sampler_name: a sampler with settings of its own, of any node."
        ),
        io.Sigmas.Input(
            "sigmas", optional=True,
            tooltip="Takes the place of scheduler and steps: the noise levels that any scheduler node gives.",
        ),
    ]  # fmt: skip
