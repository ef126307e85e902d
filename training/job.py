"""One training job, from what is wired into the node to LoRA files on disk."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from . import host
from .config import TrainingConfig, to_dict
from .dataset import pairs
from .dataset.cache import TensorCache, cache_key
from .dataset.plan import Plan
from .dataset.samples import Dataset
from .dataset.scan import refresh_captions
from .dataset.sightings import trained_captions
from .encode import Encoded, Work, work_of
from .errors import AtelierError
from .grid.plan import Epochs
from .grid.render import to_picture
from .loop import Progress, Watcher, total_steps, train
from .loss import check_weighting
from .metadata import describe
from .network import keys, targets
from .network.attach import Adapter
from .noise import LevelSampler
from .run import Run, SaveKind

log = logging.getLogger("lora-atelier")
CACHE_LIMIT = 20 * 2**30
"""Bytes on disk for latents and text encodings; the longest unused go first."""
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Preview:
    """How the picture at every save is sampled."""

    prompt: str
    """Empty: the first caption of the dataset."""
    negative: str
    steps: int
    """0 switches previews off."""
    cfg: float
    sampler: str
    scheduler: str
    seed: int


@dataclass(frozen=True)
class Trained:
    """What a finished job hands on."""

    epochs: Epochs
    tensors: dict[str, Tensor]
    """The final LoRA as it stands in the file."""
    losses: list[float]
    """Training loss of every step."""


@torch.inference_mode(False)  # a graph runs in inference mode, where nothing that can learn may be made
def run_training(
    model: host.Model,
    text: host.TextEncoder,
    codec: host.PictureCodec,
    dataset: Dataset,
    config: TrainingConfig,
    *,
    preview: Preview,
    start_over: bool,
    graph: Mapping[str, Any],
    show: Callable[[str], None] = lambda _: None,
) -> Trained:
    """Trains, or goes on with, the run that these inputs describe. ``show`` receives a line of status for the node.

    Raises AtelierError for anything the person can mend, and the host's interrupt when cancelled; both after saving.
    """
    dataset = refresh_captions(dataset)
    trained = [subset for subset in dataset.subsets if subset.config.role == "training" and not subset.ready]
    if trained and all(sample.caption is None for subset in trained for sample in subset.samples):
        raise AtelierError(
            "dataset: no picture has a caption. Put an Auto Caption node between Load Dataset and Train LoRA, or write a "
            f"{trained[0].config.caption_extension} file beside each picture."
        )
    pairs.check(dataset, model.latent_channels)
    check_weighting(model.prediction, config.loss)
    model = model.for_training(DTYPES.get(config.precision))
    plan = Plan(dataset, config.seed)
    total = total_steps(config, plan)
    layers = targets.choose(model.layers(), config.network.targets)
    names = model.lora_names()
    layers = {name: layer for name, layer in layers.items() if name in names}
    identity = cache_key(
        _outcome(config), dataset.fingerprint, model.identity(), text.identity(), codec.identity(), str(model.prediction)
    )
    run = Run.open(config.name, identity, host.runs_folder(), host.loras_folder(), start_over=start_over)
    encoded = Encoded(dataset, config.seed, codec, text, TensorCache(host.cache_folder(), CACHE_LIMIT))
    if not run.finished():
        run.write(config=to_dict(config), dataset=dataset.describe(), family=model.family)
        log.info("training %s: %s\n%s\n%d steps, %d layers", run.name, config, plan.describe(), total, len(layers))
        _encode(encoded, work_of(plan, plan.epochs_for(total)), show)
        adapter = Adapter.fresh(layers, config.network, config.seed).to(model.device)
        saver = _Saver(run, adapter, model, text, codec, config, dataset, plan, names, preview, graph, total)
        _train(model, layers, adapter, encoded, plan, config, run, saver, total, show)
    saved = run.saved()
    files = tuple(s for s in saved if s.kind != "moment")
    return Trained(
        epochs=Epochs(run.name, model.family, files, trained_captions(dataset)),
        tensors=load_file(saved[-1].path),
        losses=[row["loss"] for row in run.cut_history(total)],
    )


def _outcome(config: TrainingConfig) -> dict[str, Any]:
    """The settings that decide the LoRA's weights; its name and comment do not."""
    return {k: v for k, v in to_dict(config).items() if k not in ("name", "comment")}


def _encode(encoded: Encoded, work: Work, show: Callable[[str], None]) -> None:
    count = len(work)
    advance = host.progress(count)

    def step(done: int) -> None:
        advance(done)
        if done % 10 == 0 or done == count:
            show(f"preparing pictures and captions: {done} of {count}")

    encoded.prepare(work, step)


def _train(
    model: host.Model,
    layers: dict,
    adapter: Adapter,
    encoded: Encoded,
    plan: Plan,
    config: TrainingConfig,
    run: Run,
    saver: _Saver,
    total: int,
    show: Callable[[str], None],
) -> None:
    levels = LevelSampler.suited(model.prediction, config.noise, model.sigmas, model.is_flux)
    advance = host.progress(total)

    def report(progress: Progress) -> None:
        line = status_line(progress)
        advance(progress.step)
        show(line)
        log.info("%s: %s", run.name, line)

    saver.advance = advance
    watcher = Watcher(check=host.check_interrupt, progress=report, save=saver.save)
    train(model, layers, adapter, levels, encoded, plan, config, run, watcher)


def status_line(p: Progress) -> str:
    """``epoch 3/10 · step 45/150 · loss 0.1234 · rate 1.0e-04 · 9.2 steps/s · 0:12 left``"""
    minutes, seconds = divmod(round(p.seconds_left), 60)
    hours, minutes = divmod(minutes, 60)
    left = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    pace = p.steps_per_second
    speed = f"{pace:.2f} steps/s" if pace >= 0.1 else f"{1 / max(pace, 1e-9):.1f} s/step"
    place = f"epoch {p.epoch}/{p.epochs} · step {p.step}/{p.total}"
    return f"{place} · loss {p.loss:.4f} · rate {p.rate:.1e} · {speed} · {left} left"


class _Saver:
    """Writes an epoch's file with its metadata and shows what it draws."""

    def __init__(
        self,
        run: Run,
        adapter: Adapter,
        model: host.Model,
        text: host.TextEncoder,
        codec: host.PictureCodec,
        config: TrainingConfig,
        dataset: Dataset,
        plan: Plan,
        names: dict[str, list[str]],
        preview: Preview,
        graph: Mapping[str, Any],
        total: int,
    ):
        self.run, self.adapter, self.model, self.text, self.codec = run, adapter, model, text, codec
        self.config, self.dataset, self.plan, self.names = config, dataset, plan, names
        self.preview, self.graph, self.total = preview, graph, total
        self.advance: Callable[..., None] = lambda *_: None

    def save(self, kind: SaveKind, epoch: int, step: int) -> None:
        tensors = keys.to_file(self.adapter, self.names, self.model.family, DTYPES[self.config.save_precision])
        metadata = describe(
            self.config, self.dataset, self.plan, family=self.model.family, prediction=self.model.prediction, epoch=epoch,
            step=step, total_steps=self.total, tensors=tensors, graph=self.graph,
        )  # fmt: skip
        saved = self.run.save_lora(tensors, metadata, epoch=epoch, step=step, kind=kind)
        log.info("model saved: %s", saved.path)
        if kind != "moment" and self.preview.steps > 0:
            self._draw(epoch, step)

    def _draw(self, epoch: int, step: int) -> None:
        from PIL.PngImagePlugin import PngInfo

        p = self.preview
        prompt = p.prompt or next((caption for caption in trained_captions(self.dataset) if caption), "")
        width, height = self.plan.buckets[0][1]
        cells = self.codec.downscale
        with self.adapter.attached(self.model.layers()):
            latent = self.model.sample(
                self.text.for_sampling(prompt), self.text.for_sampling(p.negative),
                latent_size=(height // cells, width // cells), steps=p.steps, cfg=p.cfg, sampler=p.sampler,
                scheduler=p.scheduler, seed=p.seed,
            )  # fmt: skip
        picture = to_picture(self.codec.decode(latent)[0])
        info = PngInfo()
        info.add_text("parameters", json.dumps({"prompt": prompt, "epoch": epoch, "step": step, "seed": p.seed}))
        self.run.save_sample(picture, epoch, info)
        self.advance(step, picture)
