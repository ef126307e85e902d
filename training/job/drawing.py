"""What the samples of a job are drawn with: the trained model itself, or another one that is wired in for that."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from .. import host
from ..config import TrainingConfig
from ..dataset.samples import counted
from ..errors import AtelierError
from ..network.base_layer import weight_shape
from ..network.scope import TEXT, Layers
from .wanted import Preview


@dataclass(frozen=True)
class Drawn:
    """A model that draws, and the layers that an adapter stands beside meanwhile."""

    model: host.Model
    layers: Layers
    trained: host.Model

    def make_way(self) -> None:
        """After a pause: the device is the trained model's alone."""
        self.model.make_way(self.trained)


def drawn_with(trained: host.Model, other: host.Model | None, layers: Layers) -> Drawn:
    """``layers`` are the trained ones. For those that ``other`` lacks stand layers that nobody calls."""
    if other is None:
        return Drawn(trained, layers, trained)
    model = trained.for_pauses(other)
    own = model.layers()
    return Drawn(model, {n: layer if n.startswith(TEXT) else own.get(n, nn.Identity()) for n, layer in layers.items()}, trained)


def check_kind(trained: host.Model, other: host.Model, config: TrainingConfig) -> None:
    """AtelierError if ``other`` cannot draw for what is ``trained``, as far as can be told before anything is loaded for it."""
    other.check("preview_model")
    cells = {model.cell for model in (trained, other)} - {None}
    if trained.latent_channels != other.latent_channels or trained.frames != other.frames or len(cells) > 1:
        raise _another(trained, other, "its latents are of another form")
    if config.network.weight_decompose and not trained.is_same(other):
        raise AtelierError(
            "preview_model: weight_decompose learns how large the trained model's weights are, with all that other nodes have "
            "laid on them, so on a model of other weights neither the samples nor the LoRA would be what was learnt. Switch "
            "weight_decompose off in Configure LoRA, or leave preview_model unconnected."
        )


def check(trained: host.Model, other: host.Model, layers: Layers) -> str:
    """A sentence on trained ``layers`` that the model which draws lacks; empty if it has all. AtelierError if it is of another
    kind."""
    mine, own = {n: layer for n, layer in layers.items() if not n.startswith(TEXT)}, other.layers()
    unlike = [n for n, layer in mine.items() if n in own and weight_shape(own[n]) != weight_shape(layer)]
    if unlike:
        raise _another(trained, other, f"{_of(unlike, mine)} {'has' if len(unlike) == 1 else 'have'} another size in it")
    absent = [name for name in mine if name not in own]
    if 2 * len(absent) > len(mine):
        raise _another(trained, other, f"{_of(absent, mine)} {'is' if len(absent) == 1 else 'are'} not in it")
    if not absent:
        return ""
    return f"preview_model: {_of(absent, mine)} {'is' if len(absent) == 1 else 'are'} not in it, so samples are drawn without."


def note(trained: host.Model, other: host.Model) -> str:
    """A sentence where ``other`` predicts something else; empty if not."""
    mine, its = map(_predicted, (trained, other))
    if mine == its:
        return ""
    return (
        f"preview_model: it predicts {its}, and the model that is trained {mine}, so the LoRA may do something else in it. "
        "Look at the samples early."
    )


def notes_of_wires(preview: Preview, model: host.Model) -> list[str]:
    """What is to be said of what came through wires to draw with, once it was found that ``model`` can."""
    if not preview.wired or not preview.steps:
        return []
    preview.wired.check(model, in_pauses=True)
    return [preview.wired.unused("preview_"), *preview.wired.remarks(model)]


def _predicted(model: host.Model) -> str:
    try:
        return model.prediction
    except AtelierError:  # in a way that is not trained; to draw with, it will do
        return "in a way of its own"


def _of(names: list[str], every: Iterable[str]) -> str:
    return f"{len(names)} of the {counted(len(list(every)), 'trained layer')}, such as {names[0]},"


def _another(trained: host.Model, other: host.Model, why: str) -> AtelierError:
    return AtelierError(
        f"preview_model: this {other.family} model is of another kind than the {trained.family} model that is trained: {why}. "
        "Connect one that the LoRA can be used on, such as the distilled model that was made from it, or none."
    )
