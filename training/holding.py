"""The model as training steps need it: held, with the adapter beside it, and with everything that saves memory or time.

When the device runs out of memory within a step, the run goes on with the next cheaper setting instead of ending there.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .checkpointing import checkpointed
from .compiling import Compiled
from .config import TrainingConfig
from .errors import is_out_of_memory
from .fallback import cheaper, difference, without_effect
from .network.attach import Adapter
from .offload import offloaded

if TYPE_CHECKING:
    from .loop import Denoiser


class Holding:
    """``config`` is what is used now; ``say`` hears when that changes, and ``cancelled`` tells a cancel from an error."""

    def __init__(
        self,
        model: Denoiser,
        text: Any,
        layers: Mapping[str, nn.Module],
        adapter: Adapter,
        config: TrainingConfig,
        say: Callable[[str], None],
        cancelled: Callable[[BaseException], bool],
    ):
        self.config = without_effect(config, model.device)
        self._model, self._text, self._layers, self._adapter = model, text, layers, adapter
        self._say, self._parameters = say, list(adapter.parameters())
        self._compiled = Compiled(model.blocks() if config.compile else [], say, cancelled)
        self._held = ExitStack()

    @contextmanager
    def on(self) -> Iterator[None]:
        """Steps can be trained while this lasts; outside of it the model is as everybody knows it."""
        with self._held:
            self._enter()
            yield

    def attempt(self, work: Callable[[], Tensor]) -> Tensor:
        """What ``work`` gives, a loss whose gradient it adds to the adapter's.

        If the device has no memory left for it, it is done once more with the next cheaper setting, which then stays.
        """
        before = [None if p.grad is None else p.grad.clone() for p in self._parameters]
        while True:
            try:
                return self._compiled.attempt(work, self._parameters)
            except Exception as error:
                less = cheaper(self.config, self._model.device) if is_out_of_memory(error) else None
                if less is None:
                    raise
                traceback.clear_frames(error.__traceback__)  # the failed step's tensors
            # Only now is the error gone, and with it what it held.
            for parameter, gradient in zip(self._parameters, before, strict=True):
                parameter.grad = None if gradient is None else gradient.clone()
            self._held.close()
            gc.collect()
            self._say(f"memory: the device has no more of it. The run goes on, slower: {difference(self.config, less)}.")
            self.config = less
            self._enter()

    def _enter(self) -> None:
        model, text, config, enter = self._model, self._text, self.config, self._held.enter_context
        model.keep_away(config.offload_blocks)
        enter(model.hold(text))
        enter(self._adapter.attached(self._layers))
        if config.compile:
            enter(self._compiled.on())
        if config.gradient_checkpointing:
            enter(checkpointed([*model.blocks(), *(text.blocks() if text else ())]))
        if config.offload_activations:
            enter(offloaded([*model.weights(), *(text.weights() if text else ()), *self._parameters]))
