"""Files and samples that a job leaves on the way."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import compatibility
from ..dataset import moving
from ..dataset.images import to_picture
from ..errors import AtelierError, NotFinite
from ..network import lora_file
from ..network.adapter import Adapter
from ..network.scope import Layers
from ..prompting import Prompter, is_pair
from ..runs import live
from ..runs import preview as beside
from ..runs.metadata import PAIRS, describe
from ..runs.record import SaveKind
from ..runs.run import Run
from ..tensors.precision import DTYPE_NAMES, DTYPES
from ..tensors.safetensors_header import add_metadata
from .drawing import Drawn
from .wanted import Job

log = logging.getLogger("lora-atelier")


class Saver:
    """Writes LoRA files with their metadata, and draws what they make of the prompts; ``told``: a prompt as CONDITIONING."""

    def __init__(
        self,
        job: Job,
        run: Run,
        adapter: Adapter,
        layers: Layers,
        drawn: Drawn,
        told: Prompter,
        advance: Callable[..., None],
        now: live.Live,
        say: Callable[[str], None],
    ):
        self.job, self.run, self.adapter, self.layers, self.drawn, self.told = job, run, adapter, layers, drawn, told
        self.advance, self.now, self._say, self._said_lost = advance, now, say, False

    def save(self, kind: SaveKind, epoch: int, step: int) -> None:
        job, config = self.job, self.job.config
        tensors = lora_file.to_file(self.adapter, job.names, job.model.family, DTYPES[config.save_precision], self.layers)
        metadata = describe(
            config, job.dataset, job.plan, family=job.model.family, prediction=job.model.prediction, epoch=epoch,
            step=step, total_steps=job.total, graph=job.graph, sizes=self.adapter.sizes(),
            precision=DTYPE_NAMES.get(job.model.compute_dtype, ""), card=replace(job.card, trigger=job.trigger),
            name=self.run.name, model=job.named.model, laid=job.named.loras, patched=job.model.patched_weights,
        )  # fmt: skip
        if job.encoded.shows.shown:
            metadata[PAIRS] = str(sum(map(is_pair, job.dataset.samples)))
        sliders = dict.fromkeys(one.config.slider.identity for one in job.dataset.subsets if one.config.slider)
        if sliders:
            metadata["lora_atelier.slider"] = " | ".join(sliders)
        if changes := self.run.record().changes:
            metadata["lora_atelier.changes"] = json.dumps(changes)
        saved = self.run.save_lora(tensors, metadata, epoch=epoch, step=step, kind=kind)
        log.info("model saved: %s", saved.path)
        if config.length.keep_last:
            self.run.keep_last(config.length.keep_last)

    def sample(self, epoch: int, step: int) -> None:
        """One picture or film a prompt; that one is none is said once."""
        self.now.update(phase="sampling")
        try:
            for number, prompt in enumerate(self.job.preview.prompts(self.job.dataset)):
                self._tried(prompt, number, epoch, step)
        finally:
            self.drawn.make_way()
        self.now.update(phase="training" if step else "preparing")

    def _tried(self, prompt: str, number: int, epoch: int, step: int) -> None:
        try:
            self._draw(prompt, number, epoch, step)
        except NotFinite as lost:
            if not self._said_lost:
                self._say(f"preview at step {step}: no picture was saved. {lost}")
            self._said_lost = True

    def _show_beside(self, path: Path, picture: Any, step: int) -> None:
        """The first sample of a step becomes the picture of the file that was saved there, beside it and within."""
        try:
            for saved in self.run.saved():
                if saved.step == step:
                    self.run.place_picture(path, saved.path)
                    if self.job.thumbnail:
                        add_metadata(saved.path, {"modelspec.thumbnail": beside.thumbnail(picture, self.job.thumbnail)})
        except (OSError, AtelierError) as error:  # a full disk: the file itself is there
            self._say(f"preview at step {step}: the LoRA file got no picture. {error}")

    def _draw(self, prompt: str, number: int, epoch: int, step: int) -> None:
        from PIL.PngImagePlugin import PngInfo

        job, p = self.job, self.job.preview
        with self.adapter.attached(self.drawn.layers):
            latent = self.drawn.model.sample(
                self.told(prompt, number), self.told(p.negative, number), p.settings,
                latent_size=job.preview_cells, seed=p.seed, wired=p.wired,
            )  # fmt: skip
        pixels = job.codec.decode(latent)[: p.frames]
        compatibility.check_picture(self.drawn.model, latent, pixels)
        frames = [to_picture(one) for one in pixels]
        picture = frames[moving.middle(len(frames))]
        facts: dict[str, Any] = {"prompt": prompt, "negative": p.negative, "epoch": epoch, "step": step, "seed": p.seed}
        if len(frames) > 1:
            facts |= {"frames": len(frames), "rate": p.rate}
        if job.named.drawn:
            facts["model"] = job.named.drawn
        info = PngInfo()
        info.add_text("parameters", json.dumps(facts))
        info.add_text(beside.KEY, beside.MARK)
        epoch_ends = step % job.plan.steps_per_epoch == 0 or step == job.total
        place = f"{epoch:06d}" if epoch_ends else f"step{step:08d}"
        path = self.run.save_sample(picture, place, number, info, frames if len(frames) > 1 else (), p.rate)
        if number == 0:
            self._show_beside(path, picture, step)
        self.now.update()
        self.advance(step, picture)
