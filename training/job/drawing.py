"""What the samples of a job are drawn with: the trained model itself, or another one that is wired in for that."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from .. import host
from ..dataset.samples import counted
from ..errors import AtelierError
from ..network.base_layer import weight_shape
from ..network.scope import TEXT, Layers


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


def check(trained: host.Model, other: host.Model, layers: Layers) -> str:
    """A sentence on trained ``layers`` that the model which draws lacks; empty if it has all. AtelierError if it is of another
    kind."""
    cells = {model.cell for model in (trained, other)} - {None}
    if trained.latent_channels != other.latent_channels or trained.frames != other.frames or len(cells) > 1:
        raise _another(trained, other, "its latents are of another form")
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


def _of(names: list[str], every: Iterable[str]) -> str:
    return f"{len(names)} of the {counted(len(list(every)), 'trained layer')}, such as {names[0]},"


def _another(trained: host.Model, other: host.Model, why: str) -> AtelierError:
    return AtelierError(
        f"preview_model: this {other.family} model is of another kind than the {trained.family} model that is trained: {why}. "
        "Connect one that the LoRA can be used on, such as the distilled model that was made from it, or none."
    )
