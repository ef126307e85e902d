"""Network that draws a grid's batches: the model's own, or where the host pages that in and out its resident twin, recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext

from .. import host
from ..network.scope import Layers
from ..performance.network_graph import NetworkGraph
from .side_by_side import Beside, Rows, SideBySide


class BatchNetwork:
    """``model``'s network with LoRA files beside its ``layers``; its passes are recorded where they can be."""

    def __init__(self, model: host.Model, layers: Layers):
        self._own, self._layers = model, layers
        self._stay = ExitStack()
        self._graph: NetworkGraph | None = None
        self._replays = 0
        self._take(model, layers)
        self.is_settled = not (layers and model.is_paged)
        """Whether it stays the network that it is now."""

    def _take(self, model: host.Model, layers: Layers) -> None:
        self._replays = self.replays
        self.model = model
        """What samples; its weights are those of the model that was given."""
        self.beside = beside = SideBySide(layers, model.device)
        recorder = model.recorder() if layers else None
        network = model.base.diffusion_model
        self._graph = None if recorder is None else NetworkGraph(network, recorder, model.device, lambda: beside.state)

    @property
    def replays(self) -> int:
        """How many passes were replayed."""
        return self._replays + (0 if self._graph is None else self._graph.replays)

    def settle(self, pictures: int, latent_size: tuple[int, ...], beside: int) -> None:
        """Before the first batch, of so many ``pictures``: a resident twin draws from here on, if it fits.

        ``beside``: bytes that are needed on its device besides its weights and its passes.
        """
        self.is_settled = True
        model = self._stay.enter_context(self._own.resident(pictures, latent_size, beside))
        if model is not self._own:
            self._take(model, model.layers())

    @contextmanager
    def attached(self, pictures: Sequence[Beside], seats: int) -> Iterator[Rows]:
        """While it lasts the network's passes have each picture's file beside them: see ``SideBySide.attached``."""
        recorded = nullcontext() if self._graph is None else self._graph.in_place()
        with self.beside.attached(pictures, seats) as rows, self.model.each_call(rows.spread), recorded:
            yield rows

    def let_go(self) -> None:
        """Lets go of all files and recordings."""
        self.beside.release()
        if self._graph is not None:
            self._graph.drop()

    def release(self) -> None:
        """The same, and of a twin that drew."""
        self.let_go()
        if self.model is not self._own:
            self._take(self._own, self._layers)
            self._stay.close()
            host.free_memory()
