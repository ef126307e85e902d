"""AutoCaption: writes captions beside the pictures of a dataset."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .wires import CATEGORY, DATASET


class AutoCaption(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..training import captioning, host

        return io.Schema(
            node_id="AutoCaption",
            display_name="Auto Caption",
            category=CATEGORY,
            description="Writes a caption file beside every picture that has none (or beside all). Read and edit them "
            "afterwards: edited captions are noticed and kept.",
            inputs=[
                DATASET.Input("dataset", tooltip="The pictures, from Load Dataset."),
                io.Combo.Input(
                    "captioner", options=captioning.list_captioners(host.captioner_folder()), default=captioning.FILE_NAME,
                    tooltip="'file name' makes captions from the names of the files. Folders in models/captioners with a BLIP or "
                    "BLIP-2 model look at the pictures.",
                ),
                io.Combo.Input(
                    "mode", options=["fill missing", "overwrite"], default="fill missing",
                    tooltip="fill missing: existing caption files are never touched. overwrite: all are written anew.",
                ),
                io.String.Input(
                    "pattern", default="{name}",
                    tooltip="For 'file name': {name} is the file name in words ('cat-face_01' gives 'cat face'), {folder} the "
                    "folder's name without its number.",
                ),
                io.String.Input(
                    "trigger", default="",
                    tooltip="A word that stands for what is learnt. It is put first, with a comma, in every caption that is "
                    "written.",
                ),
                io.String.Input(
                    "prefix", default="",
                    tooltip="Text in front of the captioner's words, exactly as it stands here, for example 'a photo of '.",
                ),
                io.String.Input("prompt", default="", tooltip="For models: words that the caption begins with."),
                io.Int.Input(
                    "beams", default=4, min=1, max=32,
                    tooltip="For models: how many wordings are weighed against each other. More is slower and a little better.",
                ),
                io.Int.Input(
                    "min_length", default=5, min=0, max=512,
                    tooltip="For models: the caption has at least this many tokens, a word being one or two of them.",
                ),
                io.Int.Input(
                    "max_length", default=75, min=1, max=512, tooltip="For models: the caption has at most this many tokens."
                ),
                io.Int.Input(
                    "batch_size", default=4, min=1, max=256, tooltip="For models: pictures at a time. Less needs less memory."
                ),
            ],
            outputs=[DATASET.Output(display_name="dataset", tooltip="The same pictures with their captions.")],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, captioner: str | None = None) -> bool | str:
        """A sentence for a captioner that this computer doesn't have, in place of "value not in list"."""
        from ..training import captioning, host

        folder = host.captioner_folder()
        if captioner is None or captioner in captioning.list_captioners(folder):
            return True
        return f"captioner: {captioner!r} is not in {folder}. Put the model's folder there, or choose another captioner."

    @classmethod
    def execute(
        cls,
        dataset: Any,
        captioner: str,
        mode: Any,
        pattern: str,
        trigger: str,
        prefix: str,
        prompt: str,
        beams: int,
        min_length: int,
        max_length: int,
        batch_size: int,
    ) -> io.NodeOutput:
        from ..training import captioning, host
        from ..training.captioning.fill import fill, missing
        from ..training.dataset.samples import counted
        from ..training.dataset.scan import refresh_captions

        settings = captioning.GenerationSettings(prompt, beams, min_length, max_length)
        work, kept = missing(dataset, mode)
        if not work:
            captioned = refresh_captions(dataset)
            return io.NodeOutput(captioned, ui={"text": [f"nothing to write, {counted(kept, 'caption')} kept"]})
        if captioner != captioning.FILE_NAME:
            host.free_memory()
        model = captioning.load(captioner, host.captioner_folder(), pattern, settings, host.torch_device())
        try:
            captioned, report = fill(dataset, model, mode, prefix, trigger, batch_size, host.progress)
        finally:
            del model
            host.free_memory()
        return io.NodeOutput(captioned, ui={"text": [report.describe(captioned)]})
