"""AutoCaption: writes captions beside the pictures of a dataset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace as with_changes
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io

from ..training import captioning
from ..training.captioning import text
from ..training.errors import AtelierError
from .io_types import CATEGORY, DATASET, folded, searched
from .shown import log, logged

GIB = 1 << 30
WAITS = "waits for you: read the captions, then press Go on"
RARE = frozenset({
    "beams", "min_length", "max_length", "batch_size", "suffix", "replace", "deduplicate", "order", "underscores",
    "general_threshold", "character_threshold", "rating", "blacklist", "device", "hub_id", "download",
    "regularisation", "only",
})  # fmt: skip
"""Widgets that are right as they are for most sets."""


class AutoCaption(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..training import host

        return io.Schema(
            node_id="AutoCaption",
            display_name="Auto Caption",
            **searched("caption images", "tag images", "tagger", "wd14", "blip", "captioner", "trigger word"),
            category=CATEGORY,
            description="Writes a caption file beside every picture that has none (or beside all). Read and edit them "
            "afterwards: edited captions are noticed and kept.",
            inputs=folded([
                DATASET.Input("dataset", tooltip="The pictures, from Load Dataset."),
                io.Combo.Input(
                    "captioner", options=captioning.list_captioners(host.captioner_folder()), default=captioning.FILE_NAME,
                    tooltip="'file name' makes captions from the names of the files; 'existing captions' works on the text that "
                    "is there; 'connected clip' asks the language model at the input clip. Folders in models/captioners "
                    "(JoyCaption, Qwen-VL, Florence-2, BLIP, WD tagger and others) look at the pictures.",
                ),
                io.Combo.Input(
                    "mode", options=["fill missing", "overwrite", "append"], default="fill missing",
                    tooltip="fill missing: existing caption files are never touched. overwrite: all are written anew. append: "
                    "what is not in a caption yet is put behind it.",
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
                io.String.Input(
                    "prompt", default="",
                    tooltip="BLIP, GIT: words that the caption begins with. Florence-2: a task such as <CAPTION> or "
                    "<MORE_DETAILED_CAPTION>. Chat models: what they are asked. Empty: a detailed caption.",
                ),
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
                *_more_inputs(),
            ], RARE),
            outputs=[DATASET.Output(display_name="dataset", tooltip="The same pictures with their captions.")],
            hidden=[io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, captioner: str | None = None, download: bool = False) -> bool | str:
        """A sentence for a captioner that this computer doesn't have, in place of "value not in list".

        A download comes in its place, so then it need not be here.
        """
        from ..training import host

        folder = host.captioner_folder()
        if captioner is None or download or captioner in captioning.list_captioners(folder):
            return True
        return host.refusal(
            f"captioner: {captioner!r} is not in {folder}. Put the model's folder there, or choose another captioner."
        )

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
        suffix: str = "",
        replace: str = "",
        remove_tags: str = "",
        deduplicate: bool = False,
        order: Any = "as written",
        underscores: str = "spaces in tags",
        general_threshold: float = 0.6,
        character_threshold: float = 0.6,
        rating: bool = False,
        blacklist: str = "",
        device: str = "automatic",
        dry_run: bool = False,
        hub_id: str = "",
        download: bool = False,
        clip: Any = None,
        regularisation: bool = False,
        only: str = "",
        pause: bool = False,
    ) -> io.NodeOutput:
        if captioner == captioning.EXISTING and mode != "overwrite" and not download:
            raise AtelierError(f"mode: {mode!r} leaves existing captions as they are; choose 'overwrite' to work on them.")
        settings = captioning.GenerationSettings(prompt, beams, min_length, max_length)
        tagger = captioning.TaggerSettings(general_threshold, character_threshold, rating, text.parse_tags(blacklist))
        rules, removed = text.parse_rules(replace), text.parse_tags(remove_tags)
        work = text.TextWork(trigger, prefix, suffix, rules, removed, deduplicate, False, order)
        choice = Choice(
            captioner, hub_id if download else None, pattern, underscores, device, clip, settings, tagger, regularisation,
            tuple(filter(None, map(str.strip, only.splitlines()))),
        )  # fmt: skip
        node_id = cls.hidden.unique_id if cls.hidden else None
        captioned, report = choice.apply(dataset, mode, work, batch_size, dry_run, node_id)
        notes: tuple[str, ...] = ()
        if pause and not dry_run:
            again = choice.asked(captioned, mode, work, node_id)
            captioned, notes = review(
                captioned, report.told(captioned), node_id or "", workflow_of(cls.hidden), again
            )  # fmt: skip
        said = report.told(captioned)
        said = with_changes(said, warnings=(*notes, *said.warnings))
        logged("Auto Caption", said)
        asked = {"asked": [[change.picture.name, change.after] for change in report.changes]} if only.strip() else {}
        return io.NodeOutput(captioned, ui={**said.shown(), **asked})


def _more_inputs() -> list[Any]:
    """The inputs that came later. They are optional, so that prompts saved before go on working."""
    return [
        io.String.Input(
            "suffix", default="", optional=True,
            tooltip="Text behind the captioner's words, exactly as it stands here, for example ', flat colours'.",
        ),
        io.String.Input(
            "replace", default="", multiline=True, optional=True,
            tooltip="One rule a line: 'old -> new'. Whole words are replaced, line after line; 'old ->' takes them out.",
        ),
        io.String.Input(
            "remove_tags", default="", multiline=True, optional=True,
            tooltip="Tags that leave the captions, between commas: features that always belong to the subject, so that the "
            "trigger word learns them. '* hair' means every kind of hair.",
        ),
        io.Boolean.Input(
            "deduplicate", default=False, optional=True, tooltip="A tag that stands twice in a caption is kept only once."
        ),
        io.Combo.Input(
            "order", options=["as written", "by frequency"], default="as written", optional=True,
            tooltip="by frequency: the tags that most pictures of the dataset have come first in every caption that is written.",
        ),
        io.Combo.Input(
            "underscores", options=["spaces in tags", "spaces everywhere", "keep"], default="spaces in tags", optional=True,
            tooltip="Underscores become spaces: in a tagger's tags, in every caption, or nowhere. Faces such as ^_^ always stay.",
        ),
        io.Float.Input(
            "general_threshold", default=0.6, min=0.0, max=1.0, step=0.01, optional=True,
            tooltip="For taggers: a tag is taken from this probability on. Lower gives more tags, and more wrong ones.",
        ),
        io.Float.Input(
            "character_threshold", default=0.6, min=0.0, max=1.0, step=0.01, optional=True,
            tooltip="For taggers: the name of a character is taken from this probability on.",
        ),
        io.Boolean.Input(
            "rating", default=False, optional=True,
            tooltip="For taggers: the most probable rating (general, sensitive, ...) comes first as a tag.",
        ),
        io.String.Input(
            "blacklist", default="", multiline=True, optional=True,
            tooltip="For taggers: tags that are never taken, between commas. '*' stands for any letters.",
        ),
        io.Combo.Input(
            "device", options=["automatic", "cpu"], default="automatic", optional=True,
            tooltip="For models and taggers: where they work. cpu is slow, and leaves the GPU's memory alone.",
        ),
        io.Boolean.Input(
            "dry_run", default=False, optional=True,
            tooltip="Shows every caption before and after in a table, and writes nothing.",
        ),
        io.String.Input(
            "hub_id", default="", optional=True,
            tooltip="The name of a model on the Hugging Face hub, such as owner/model. Used only while download is on.",
        ),
        io.Boolean.Input(
            "download", default=False, optional=True,
            tooltip="On: the model named in hub_id is fetched into models/captioners, unless it is there, and used in place of "
            "captioner. Off: nothing is ever fetched.",
        ),
        io.Boolean.Input(
            "regularisation", default=False, optional=True,
            tooltip="Off: pictures whose role is regularisation are left alone; their class is their caption. On: they are "
            "captioned like the others.",
        ),
        io.Clip.Input(
            "clip", optional=True,
            tooltip="For 'connected clip': a language model that sees pictures, such as Qwen3-VL, from the stock CLIP loader.",
        ),
        io.String.Input(
            "only", default="", multiline=True, optional=True,
            tooltip="Names of pictures, one a line: only these are captioned, and all are handed on. Empty: all are captioned.",
        ),
        io.Boolean.Input(
            "pause", default=False, optional=True,
            tooltip="On: after captioning the run waits until you have read the captions and press Go on in this node.",
        ),
    ]  # fmt: skip


def workflow_of(hidden: Any) -> dict[str, Any]:
    """By what a page knows the workflow that the run came from: its ``id``, and its ``nodes`` as "id type"; empty without one."""
    workflow = (getattr(hidden, "extra_pnginfo", None) or {}).get("workflow")
    workflow = workflow if isinstance(workflow, dict) else {}
    nodes = [one for one in workflow.get("nodes") or () if isinstance(one, dict)]
    return {"id": str(workflow.get("id") or ""), "nodes": sorted(f"{one.get('id')} {one.get('type')}" for one in nodes)}


def review(
    dataset: Any, said: Any, node_id: str, workflow: dict[str, Any], again: Callable[[str], str]
) -> tuple[Any, tuple[str, ...]]:  # fmt: skip
    """Waits for the person; gives the dataset as it is then, and what there is to say of that. ``again`` asks for one caption."""
    from ..training import host
    from ..training.captioning.review import hold, reviewed

    show = host.status_of(node_id)
    log.info("Auto Caption: waits until the captions were read; press Go on in the node, or cancel the run.")

    def answer(picture: str) -> str:
        try:
            return again(picture)
        except Exception as error:
            if isinstance(error, AtelierError) or host.is_interrupt(error):
                raise
            raise AtelierError(f"captioner: {error}") from error  # the run goes on waiting
        finally:
            show(WAITS)

    def wait() -> None:
        show(WAITS)
        part = {"node": node_id, "workflow": workflow, "told": said.shown()["told"][0]}
        try:
            hold(node_id, part, lambda: host.send("lora_atelier.review", {}), host.check_interrupt, answer)
        finally:
            show("")

    return reviewed(dataset, wait)


@dataclass(frozen=True)
class Choice:
    """Which captioner, and what it needs to be loaded."""

    captioner: str
    hub_id: str | None
    """To be fetched and used in place of ``captioner``."""
    pattern: str
    underscores: str
    device: str
    clip: Any
    settings: Any
    tagger: Any
    regularisation: bool
    only: tuple[str, ...]

    def apply(
        self, dataset: Any, mode: Any, work: Any, batch_size: int, dry_run: bool, node_id: str | None
    ) -> tuple[Any, Any]:  # fmt: skip
        """Caption what there is to caption; a model is loaded, or fetched, only if there is something.

        Gives the dataset and the report.
        """
        from ..training import host
        from ..training.captioning.fill import fill, workload

        folder = host.captioner_folder()
        needed = bool(workload(dataset, mode, self.regularisation, self.only).work)
        name = self.captioner if needed else captioning.EXISTING
        if needed and self.hub_id is not None:
            from ..training.captioning.download import download

            name = download(self.hub_id, folder)
        spaces = self.underscores == "spaces everywhere" or (
            self.underscores == "spaces in tags" and name not in captioning.WITHOUT_FOLDER and captioning.is_tagger(folder / name)
        )
        model = None
        try:
            model = self._load(name, folder)
            return fill(
                dataset, model, mode, with_changes(work, spaces=spaces), batch_size, host.progress,
                host.status_of(node_id) if node_id else None, dry_run, self.regularisation, self.only,
            )  # fmt: skip
        finally:
            model = None
            host.free_memory()

    def asked(self, dataset: Any, mode: Any, work: Any, node_id: str | None) -> Callable[[str], str]:
        """A function that gives the caption which would be written for one picture; it writes nothing."""

        def again(picture: str) -> str:
            one = with_changes(self, only=(picture,), regularisation=True)
            _, report = one.apply(dataset, "append" if mode == "append" else "overwrite", work, 1, True, node_id)
            if not report.changes:
                raise AtelierError(f"captioner: no words were found for {picture}.")
            return str(report.changes[0].after)

        return again

    def _load(self, name: str, folder: Path) -> Any:
        from ..training import host

        device = torch.device("cpu") if self.device == "cpu" else host.torch_device()
        writer = host.TextWriter(self.clip) if name == captioning.CONNECTED and self.clip is not None else None
        if name not in captioning.WITHOUT_FOLDER:
            # Weights that are halves on the disk may be loaded as floats, and the work needs room as well.
            host.make_room(2 * captioning.weight_bytes(folder / name) + GIB, device)
        return captioning.load(name, folder, self.pattern, self.settings, device, self.tagger, writer, host.check_interrupt)
