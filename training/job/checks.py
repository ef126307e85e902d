"""What could not be learnt from, or be read by the model, is refused before anything is encoded."""

from __future__ import annotations

from .. import compatibility, host
from ..config import TrainingConfig
from ..dataset.plan import size_of
from ..dataset.samples import Dataset
from ..errors import AtelierError
from ..families import family_named
from ..performance import sharding
from ..performance.team import Team
from .wanted import Job


def check_dataset(dataset: Dataset, config: TrainingConfig) -> None:
    """Refuses what could not be learnt from."""
    trained = [subset for subset in dataset.subsets if subset.config.role == "training" and not subset.ready]
    if any(subset.config.slider for subset in dataset.subsets):
        _check_slider(dataset, config)
    elif trained and all(sample.caption is None for subset in trained for sample in subset.samples):
        raise AtelierError(
            "dataset: no picture has a caption. Put an Auto Caption node between Load Dataset and Train LoRA, or write a "
            f"{trained[0].config.caption_extension} file beside each picture."
        )
    if config.loss.mask_preservation and all(sample.mask is None for sample in dataset.samples):
        raise AtelierError(
            "mask preservation: no picture has a mask outside of which the model could be held. Set masks of Load Dataset to "
            "files or alpha, connect masks to Dataset From Nodes, or set mask_preservation to 0."
        )
    if config.text.encoders != "none" and any(subset.ready for subset in dataset.subsets):
        raise AtelierError(
            "text encoder: conditioning that another node has made cannot train it. Set it to none, or give captions as text."
        )
    priors = any(subset.config.role == "regularisation" for subset in dataset.subsets)
    if config.loss.preservation and config.loss.held_at is None and not priors:
        raise AtelierError(
            "output preservation: there are no regularisation pictures at whose captions it could hold the model. Give it a "
            "prompt, or connect a Load Dataset whose role is regularisation."
        )


def check_sharding(model: host.Model, config: TrainingConfig, team: Team) -> None:
    """Refuses what cannot be where each process holds a part of the model's blocks; ``model`` is ``for_training``."""
    if not team.shards:
        return
    beside = {
        "offload_blocks": (config.offload_blocks > 0, "0"),
        "offload_activations": (config.offload_activations, "false"),
        "compile": (config.compile, "false"),
    }
    for widget, (wanted, off) in beside.items():
        if wanted:
            raise AtelierError(
                f"{widget}: it does not go together with --shard, which gathers each block's weights for its own passes. Add "
                f"--set ConfigureLoRA.{widget}={off}, or train without --shard."
            )
    if model.has_copies:
        raise AtelierError("--shard: copies of the model on other GPUs take part. Take the node out that makes them.")
    sharding.check(model.blocks(), model.device, team.way)


def check_clips(dataset: Dataset, model: host.Model, codec: host.PictureCodec) -> None:
    """Refuses clips of films that the model does not know, or of which the VAE would leave frames out."""
    for number, subset in enumerate(dataset.subsets, start=1):
        counts = sorted({sample.frames for sample in subset.samples} - {1})
        if not counts:
            continue
        where = f"clip frames: subset {number} ({subset.config.folder}) has clips of {counts[-1]} frames"
        if not model.frames:
            raise AtelierError(
                f"{where}, and a {model.family} model draws single pictures. Choose a model of films, set clip_frames to 1, "
                "which takes one frame of each, or leave it empty."
            )
        if not codec.takes_films:
            raise AtelierError(f"{where}, and this VAE encodes single pictures. Connect the VAE that belongs to the model.")
        wrong = [frames for frames in counts if codec.nearest_frames(frames) != (frames,)]
        if wrong:
            near = [n for n in codec.nearest_frames(wrong[0]) if n != wrong[0]]
            raise AtelierError(
                f"clip frames: the VAE does not encode all frames of a clip of {wrong[0]}, and would leave the last ones out. "
                f"Write {' or '.join(map(str, near))} in place of it."
            )


def check_sizes(dataset: Dataset, model: host.Model, codec: host.PictureCodec) -> None:
    """Refuses sizes at which pictures would be shown to a network that cuts them into larger squares."""
    square = family_named(model.family).square
    for number, subset in enumerate(dataset.subsets, start=1):
        if subset.ready:
            # What a latent says of its cells' size is not relied on; tiny autoencoders say nothing that could be.
            ready, cell = [one.ready for one in subset.samples if one.ready], codec.cell or square
            sizes = {(one.cells[0] * cell, one.cells[1] * cell) for one in ready}
        else:
            sizes = {size_of(sample, subset.config) for sample in subset.samples}
        wrong = next((size for size in sorted(sizes) if size[0] % square or size[1] % square), None)
        if wrong is not None:
            widget = "latents" if subset.ready else "bucket step"
            mend = "Encode pictures whose sides are" if subset.ready else "Set bucket_step and the sizes of the dataset to"
            raise AtelierError(
                f"{widget}: subset {number} ({subset.config.folder}) has pictures that would be shown at {wrong[0]} x "
                f"{wrong[1]} pixels, and this {model.family} model reads squares of {square}. {mend} multiples of {square}."
            )


def _check_slider(dataset: Dataset, config: TrainingConfig) -> None:
    """Refuses what has no meaning, or another one, where two directions are learnt."""
    if not all(subset.config.slider for subset in dataset.subsets):
        raise AtelierError(
            "dataset: some of its pictures are a slider's and some are not, and a LoRA is one or the other. Put Slider Dataset "
            "behind all of them, or take it out."
        )
    if config.text.encoders != "none":
        raise AtelierError("text encoder: a slider is learnt by the model alone. Set it to none.")
    if config.loss.preservation or config.loss.mask_preservation:
        raise AtelierError(
            "output preservation: a slider is held by its target prompt and by what it preserves. Set preservation and "
            "mask_preservation to 0."
        )
    if config.length.when_enough != "off":
        raise AtelierError("when enough: a slider has no fixed losses by which that could be told. Set it to off.")


def check_texts(job: Job) -> None:
    """Refuses, by one text of each source, what the model cannot read."""
    if job.preview.steps:
        _ = job.preview_cells  # refuses a length of films that cannot be drawn
    captions = any(not subset.ready for subset in job.dataset.subsets)
    if captions or job.preview.steps:
        job.show("reading a first caption")
        if captions or job.drawn is None:
            compatibility.check_text(job.model, job.encoded.text(""))
        if job.drawn is not None:
            compatibility.check_text(job.drawn, job.encoded.text(""), "preview_model")
    for subset in (subset for subset in job.dataset.subsets if subset.ready):
        compatibility.check_text(job.model, job.encoded.stored_text(subset.samples[0]), "conditioning")
