"""LoadDataset: a folder of pictures becomes a dataset, and shows what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..training.config import ENCODINGS, SubsetConfig
from ..training.dataset.folders import list_folders
from ..training.dataset.samples import Dataset
from ..training.dataset.scan import folder_stamp
from ..training.errors import AtelierError
from .folders import named, subsets_of
from .io_types import CATEGORY, DATASET, folded, searched
from .shown import shown

NO_FOLDER = "(no folder with pictures yet)"
"""Shown in the list while there is nothing to choose."""
RARE = frozenset({
    "bucket_step", "caption_extension", "nested", "class_caption", "caption_prefix", "caption_suffix", "shuffle_captions",
    "keep_tokens", "caption_dropout", "tag_dropout", "loss_weight", "validation_share", "validation_seed", "mask_floor", "broken",
    "variants", "caption_encoding", "caption_lines", "head_margin", "fixed_height", "bucket_no_upscale", "wildcards",
    "further_captions", "trigger_words", "keep_separator", "dropped_caption", "clip_frames", "clip_start", "clip_rate",
})  # fmt: skip
"""Widgets that most folders need no change of."""


class LoadDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..training import host

        return io.Schema(
            node_id="LoadDataset",
            display_name="Load Dataset",
            **searched("training images", "training folder", "training dataset", "image folder", "buckets"),
            category=CATEGORY,
            description="Pictures of a folder, with the captions in the .txt files beside them. Several of these nodes in a row "
            "make one dataset.",
            inputs=folded([
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
                    "crop", options=["center", "random", "none", "focus", "head"], default="center",
                    tooltip="Where overflow is cut off. random: elsewhere each time. none: the picture is stretched. "
                    "focus: around faces or what stands out (needs the Python package smartcrop). head: a square around the "
                    "largest face, enlarged where it is small (needs opencv-python-headless below 5).",
                ),
                io.String.Input(
                    "caption_extension", default=".txt",
                    tooltip="Ending of the caption files beside the pictures, such as .txt or .caption.",
                ),
                DATASET.Input(
                    "dataset", optional=True,
                    tooltip="Another dataset in front of this one, to train on several folders or sizes in one run.",
                ),
                *more_inputs(),
                *clip_inputs(),
            ], RARE),
            outputs=[DATASET.Output(display_name="dataset", tooltip="For Auto Caption, another Load Dataset, or Train LoRA.")],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, folder: str | None = None) -> bool | str:
        """A sentence for a folder that this computer doesn't have, in place of "value not in list"."""
        try:
            _resolve(folder) if folder is not None else None
        except AtelierError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(
        cls, folder: str, caption_extension: str = ".txt", nested: bool = False, clip_frames: str | None = "", **others: Any
    ) -> str:  # fmt: skip
        """Changes with the folder's pictures and captions, so that an edited folder is read again."""
        try:
            path, root = _resolve(folder)
            return folder_stamp(path, caption_extension, root, nested, bool((clip_frames or "").strip()))
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
        **more: Any,
    ) -> io.NodeOutput:
        config = SubsetConfig(
            folder, resolution, batch_size, repeats, buckets, bucket_step, crop, caption_extension.strip(), **more
        )  # fmt: skip
        from ..training import host

        path, root = _resolve(folder)
        own = Dataset(subsets_of(path, config, root, host.progress))
        chained = dataset + own if dataset is not None else own
        return io.NodeOutput(chained, ui=shown(own, chained, "Load Dataset"))


def clip_inputs() -> list[Any]:
    """How films become clips."""
    return [
        io.String.Input(
            "clip_frames", default="", optional=True,
            tooltip="For models of films (Wan, HunyuanVideo): frames of a clip, or several numbers with commas between them, as "
            "1, 17, 33; each film has the largest that fits. Mostly 4k + 1, as the VAE wants. Empty: films are not used.",
        ),
        io.Combo.Input(
            "clip_start", options=["beginning", "middle", "chunks", "evenly"], default="beginning", optional=True,
            tooltip="Which clips of a film. beginning, middle: one from there. chunks: one behind the other, without the rest at "
            "the end. evenly: as many as cover the whole film, overlapping where they must.",
        ),
        io.Float.Input(
            "clip_rate", default=0.0, min=0.0, max=1000.0, step=1.0, optional=True,
            tooltip="Frames a second for which the model was made: Wan 16, Wan 2.2 5B 24, HunyuanVideo 24. Films of other rates "
            "give the frames nearest in time. 0: all frames of a film, one after the other.",
        ),
    ]  # fmt: skip


def more_inputs() -> list[Any]:
    """Settings that came later; optional, so that older workflows stay valid."""
    share = {"min": 0.0, "max": 0.99, "step": 0.01, "optional": True}
    return [
        io.Combo.Input(
            "role", options=["training", "regularisation", "validation"], default="training", optional=True,
            tooltip="training: learnt. regularisation: pictures of the class, cycled or cut to as many as are trained, so that "
            "the model keeps what it knew. validation: never trained on.",
        ),
        io.Boolean.Input(
            "nested", default=False, optional=True, tooltip="Take the pictures of sub-folders without a number in front as well."
        ),
        io.Boolean.Input(
            "flip", default=False, optional=True,
            tooltip="Mirror every second sighting or so, by lot. Not for faces or text, which are not symmetrical.",
        ),
        io.Boolean.Input(
            "captions", default=True, optional=True,
            tooltip="Off: caption files are not read, and the class caption or an empty text takes their place. "
            "Strengthens a style.",
        ),
        io.String.Input(
            "class_caption", default="", optional=True,
            tooltip="Caption of pictures that have none. Empty: the words behind the number in the folder's name.",
        ),
        io.String.Input(
            "caption_prefix", default="", optional=True,
            tooltip="Text in front of every caption, exactly as it stands here, for example 'ohwx, '. Files are not changed.",
        ),
        io.String.Input(
            "caption_suffix", default="", optional=True, tooltip="Text behind every caption, exactly as it stands here."
        ),
        io.Boolean.Input(
            "shuffle_captions", default=False, optional=True,
            tooltip="Mix the parts between commas at every sighting, so that their order is not learnt.",
        ),
        io.Int.Input(
            "keep_tokens", default=0, min=0, max=1000, optional=True,
            tooltip="So many parts at a caption's start are neither moved nor dropped; 1 keeps a trigger word in front.",
        ),
        io.Float.Input(
            "caption_dropout", default=0.0, tooltip="Share of the sightings without any caption; 0.1 is usual if any.", **share
        ),
        io.Float.Input("tag_dropout", default=0.0, tooltip="Share of the parts that a sighting does without.", **share),
        io.Float.Input(
            "loss_weight", default=1.0, min=0.001, max=100.0, step=0.05, optional=True,
            tooltip="How much these pictures count. For regularisation this is the prior weight.",
        ),
        io.Float.Input(
            "validation_share", default=0.0, tooltip="Share of the pictures that is held out: never trained on.", **share
        ),
        io.Int.Input(
            "validation_seed", default=0, min=0, max=2**64 - 1, control_after_generate=False, optional=True,
            tooltip="Decides which pictures are held out, whatever the run's seed is.",
        ),
        io.Combo.Input(
            "masks", options=["off", "alpha", "files"], default="off", optional=True,
            tooltip="What is learnt of a picture. alpha: what is not transparent. files: what is white in name.mask.png beside "
            "the picture or in masks/name.png. off: all; transparency is laid on white.",
        ),
        io.Float.Input(
            "mask_floor", default=0.1, tooltip="How much the outside of a mask still counts; 0: not at all.", **share
        ),
        io.Combo.Input(
            "broken", options=["stop", "leave out"], default="stop", optional=True,
            tooltip="What a picture that cannot be read does: stop the node, or be left out and named.",
        ),
        io.Int.Input(
            "variants", default=4, min=0, max=100, optional=True,
            tooltip="How many places of a random crop are cached per picture and taken in turn. 0: every sighting is encoded in "
            "its step, and no picture is cached; every crop is new, and every step slower.",
        ),
        io.Combo.Input(
            "caption_encoding", options=["detect", *ENCODINGS], default="detect", optional=True,
            tooltip="How caption files were saved that are not UTF-8. detect: told by their letters where these are enough, and "
            "asked about where not. gb18030 and big5 are Chinese, windows-1251 and koi8-r Cyrillic, windows-1252 Western.",
        ),
        io.Combo.Input(
            "caption_lines", options=["one text", "alternatives", "first line"], default="one text", optional=True,
            tooltip="What several lines in a caption file are. one text: they are joined. alternatives: every line is a caption, "
            "and the sightings of the picture take them in turn. first line: the others are not read.",
        ),
        io.Float.Input(
            "head_margin", default=0.75, min=0.0, max=5.0, step=0.05, optional=True,
            tooltip="For the crop head: room on every side of the face, in shares of its size. 0.75 has hair and neck, 1 some "
            "shoulder.",
        ),
        io.Int.Input(
            "fixed_height", default=0, min=0, max=4096, step=8, optional=True,
            tooltip="With buckets off: height of the one size to which all pictures are cut; resolution is its width. 0: square.",
        ),
        io.Boolean.Input(
            "bucket_no_upscale", default=False, optional=True,
            tooltip="On: a picture that would have to be enlarged for its bucket gets a smaller one of its own. Many sizes make "
            "steps slower.",
        ),
        io.Boolean.Input(
            "wildcards", default=False, optional=True,
            tooltip="On: of {red|blue} in a caption every sighting takes one, as in ComfyUI's prompts. Off: braces are text.",
        ),
        io.String.Input(
            "further_captions", default="", optional=True,
            tooltip="Endings of further caption files beside the pictures, with commas between them: '.short.txt, .json'. Their "
            "texts are alternatives to the caption, which the sightings take in turn.",
        ),
        io.String.Input(
            "trigger_words", default="", optional=True,
            tooltip="Words, with commas between them: the part of a caption in which one of them stands is neither moved by "
            "shuffle_captions nor left out by tag_dropout, wherever it stands.",
        ),
        io.String.Input(
            "keep_separator", default="", optional=True,
            tooltip="A sign such as |||: the parts of a caption in front of it, and behind a second one, are neither moved nor "
            "left out. The sign itself is not read.",
        ),
        io.Combo.Input(
            "dropped_caption", options=["empty", "trigger words"], default="empty", optional=True,
            tooltip="What caption_dropout leaves of a caption: nothing, as usual, or the trigger_words that stand in it.",
        ),
    ]  # fmt: skip


def _resolve(folder: str) -> tuple[Path, Path]:
    """(folder, its root); AtelierError naming the widget."""
    from ..training import host

    if folder == NO_FOLDER:
        places = " or ".join(str(root) for root in host.dataset_roots().values())
        raise AtelierError(
            "folder: drop your pictures on this node or press Add pictures. You can also put them into a new folder inside "
            f"{places}, refresh the page and choose it."
        )
    return named(folder)
