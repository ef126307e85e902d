"""DatasetFromNodes: what other nodes made, pictures and texts or latents and conditionings, becomes a dataset."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..training.config import SubsetConfig
from ..training.dataset import precomputed
from ..training.dataset.cache import CACHE_LIMIT, TensorCache
from ..training.dataset.samples import Dataset, Subset
from ..training.errors import AtelierError
from .io_types import CATEGORY, DATASET, folded, searched
from .load_dataset import RARE, clip_inputs, more_inputs
from .shown import shown

ABSENT = ("nested", "captions", "class_caption", "masks", "mask_floor", "broken", "caption_encoding", "further_captions")
"""Settings of Load Dataset that only mean something for a folder."""
CONTROLS = ("control", "control_2", "control_3")
FOR_BOTH = ("batch_size", "repeats", "role", "loss_weight", "validation_share", "validation_seed")
"""Settings that latents have as well."""


class DatasetFromNodes(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DatasetFromNodes",
            display_name="Dataset From Nodes",
            **searched("training dataset", "make dataset", "latents dataset"),
            category=CATEGORY,
            description="Pictures and texts, or latents and conditionings, that other nodes made become a dataset. Lists and "
            "batches are taken whole.",
            is_input_list=True,
            inputs=folded([
                io.Image.Input("images", optional=True, tooltip="Pictures, as a list or in batches. In place of latents."),
                io.String.Input(
                    "texts", optional=True, force_input=True,
                    tooltip="Captions of the images: one for all, or one for each picture.",
                ),
                io.Latent.Input(
                    "latents", optional=True,
                    tooltip="Pictures that a VAE has encoded, in place of images. They are trained on as they are.",
                ),
                io.Conditioning.Input(
                    "conditioning", optional=True,
                    tooltip="What a text encoder gave, for the latents: one for all, or one for each latent.",
                ),
                DATASET.Input(
                    "dataset", optional=True,
                    tooltip="Another dataset in front of this one, to train on several in one run.",
                ),
                io.Image.Input(
                    "control", optional=True,
                    tooltip="For models that edit (Flux Kontext, Qwen-Image-Edit): out of which picture each of the images is to "
                    "be made; one for all, or one for each.",
                ),
                io.Image.Input("control_2", optional=True, tooltip="A second control picture for each of the images."),
                io.Image.Input("control_3", optional=True, tooltip="A third control picture for each of the images."),
                io.Int.Input(
                    "resolution", default=512, min=64, max=4096, step=64,
                    tooltip="For images: pixels of the square's side. Buckets have other shapes and at most the square's area.",
                ),
                io.Int.Input(
                    "batch_size", default=1, min=1, max=1024,
                    tooltip="Pictures per step. A bucket's last batch may be shorter; no picture is dropped.",
                ),
                io.Int.Input("repeats", default=1, min=1, max=10_000, tooltip="How often every picture is shown in an epoch."),
                io.Boolean.Input(
                    "buckets", default=True,
                    tooltip="For images. On: every picture keeps nearly its own shape. Off: every picture is cut to the square.",
                ),
                io.Int.Input(
                    "bucket_step", default=64, min=8, max=512, step=8,
                    tooltip="For images: sides of buckets are multiples of this many pixels; 64 suits all models.",
                ),
                io.Combo.Input(
                    "crop", options=["center", "random", "none", "focus", "head"], default="center",
                    tooltip="For images: where overflow is cut off. random: elsewhere each time. none: the picture is stretched. "
                    "focus: around faces or what stands out (needs the Python package smartcrop). head: a square around the "
                    "largest face, enlarged where it is small (needs opencv-python-headless below 5).",
                ),
                *(entry for entry in more_inputs() if entry.id not in ABSENT),
                io.Mask.Input(
                    "masks", optional=True,
                    tooltip="What of each of the images is learnt: what is white. One for all, or one for each. The mask of "
                    "Load Image is white where a picture is transparent: put Invert Mask behind it.",
                ),
                *(entry for entry in more_inputs() if entry.id == "mask_floor"),
                io.String.Input(
                    "clip_frames", default="", optional=True,
                    tooltip="For models of films (Wan, HunyuanVideo): each batch of images is a film, as Get Video Components "
                    "gives it, with one text. Frames of a clip, or several numbers with commas between them, as 1, 17, 33; each "
                    "film has the largest that fits. Empty: each image is a picture.",
                ),
                *(entry for entry in clip_inputs() if entry.id == "clip_start"),
            ], RARE),
            outputs=[DATASET.Output(display_name="dataset", tooltip="For Auto Caption, Load Dataset, or Train LoRA.")],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> int:
        """Changes when files that this node has written are gone, so that they are written again."""
        from ..training.dataset.from_nodes import MADE

        return MADE.losses()

    @classmethod
    def execute(
        cls,
        images: list[Any] | None = None,
        texts: list[str] | None = None,
        latents: list[Any] | None = None,
        conditioning: list[Any] | None = None,
        dataset: list[Any] | None = None,
        **others: list[Any],
    ) -> io.NodeOutput:
        controls = {name: others[name] for name in CONTROLS if others.get(name) is not None}
        masks = others.get("masks")
        settings = {name: values[0] for name, values in others.items() if name not in (*CONTROLS, "masks")}
        encoded = latents is not None or conditioning is not None
        if encoded and controls:
            raise AtelierError(
                f"{next(iter(controls))}: control pictures of latents are part of their conditioning. Disconnect it, or connect "
                "images with texts."
            )
        if encoded and masks is not None:
            raise AtelierError("masks: they belong to images, and latents are connected. Disconnect it, or connect images.")
        if encoded:
            subset = _encoded(images, texts, latents, conditioning, settings)
        elif images is not None:
            subset = _pictures(images, texts, controls, masks, settings)
        else:
            raise AtelierError("images: nothing is connected. Connect images, or latents with conditioning.")
        own = Dataset((subset,))
        chained = dataset[0] + own if dataset else own
        return io.NodeOutput(chained, ui=shown(own, chained, "Dataset From Nodes", thumbnails=not encoded))


def _pictures(
    images: list[Any], texts: list[str] | None, controls: dict[str, list[Any]], masks: list[Any] | None, settings: dict[str, Any]
) -> Any:
    from ..training import host
    from ..training.dataset.from_nodes import subset_of

    folder = host.cache_folder() / "from-nodes"
    config = SubsetConfig("nodes/images", **settings)
    return subset_of(images, texts, config, folder, folder / "index.json", host.progress, controls, masks)


def _encoded(
    images: list[Any] | None,
    texts: list[str] | None,
    latents: list[Any] | None,
    conditioning: list[Any] | None,
    settings: dict[str, Any],
) -> Any:
    from ..training import host
    from ..training.dataset import from_nodes

    for name, value in (("images", images), ("texts", texts)):
        if value is not None:
            raise AtelierError(f"{name}: latents or conditioning are connected too. Connect images with texts, or the other two.")
    if latents is None or conditioning is None:
        there, missing = ("latents", "conditioning") if conditioning is None else ("conditioning", "latents")
        raise AtelierError(f"{missing}: they belong to the {there} that are connected. Connect both, or images with texts.")
    own = {name: value for name, value in settings.items() if name in FOR_BOTH}
    plain = SubsetConfig("nodes/latents")
    for name in sorted(settings.keys() - own.keys()):
        if settings[name] != getattr(plain, name):
            raise AtelierError(
                f"{name.replace('_', ' ')}: latents are trained on as they are, so {settings[name]!r} would have no effect. Set "
                f"it back to {getattr(plain, name)!r}, or connect images."
            )
    cache = TensorCache(host.cache_folder(), CACHE_LIMIT)
    samples = precomputed.store(latents, conditioning, cache)
    from_nodes.MADE.add(cache.path(key) for one in samples if one.ready for key in (one.ready.latent, one.ready.text))
    side = round(max(sample.width * sample.height for sample in samples) ** 0.5 / 64) * 64
    config = SubsetConfig("nodes/latents", min(max(side, 64), 4096), **own)
    return Subset(config, samples, config.repeats or 1, warnings=precomputed.remarks(latents))
