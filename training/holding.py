"""The model as training steps need it: held, with the adapter beside it, and with everything that saves memory or time.

When the device runs out of memory within a step, the run goes on with the next cheaper setting instead of ending there.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .checkpointing import checkpointed
from .compiling import Compiled
from .config import TrainingConfig
from .errors import is_out_of_memory
from .fallback import cheaper, difference, without_effect
from .network.attach import Adapter
from .offload import can_offload, offloaded

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
        self._blocks = [*model.blocks(), *(text.blocks() if text else ())]
        self._alone = not can_offload(model.device)
        """Whether everything else has been put aside already, as far as there is another place for it."""
        self._compiled = Compiled(model.blocks() if config.compile else [], say, cancelled)
        self._held, self._on = ExitStack(), False

    def __enter__(self) -> Holding:
        return self

    def __exit__(self, *error: object) -> None:
        self.let_go()

    def take(self) -> None:
        """From here on steps can be trained, and losses measured."""
        if not self._on:
            self._enter()
            self._on = True

    def let_go(self) -> None:
        """From here on the model is as everybody knows it, and pictures can be sampled."""
        self._on = False
        self._held.close()

    def attempt(self, work: Callable[[], Tensor]) -> Tensor:
        """What ``work`` gives, a loss whose gradient it adds to the adapter's.

        If the device has no memory left for it, it is done once more without any other model there, and then with the next
        cheaper setting; which then stays.
        """
        before = [None if p.grad is None else p.grad.clone() for p in self._parameters]
        while True:
            try:
                return self._compiled.attempt(work, self._parameters)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                less = cheaper(self.config, self._model.device) if self._alone else self.config
                if less is None:
                    raise
                traceback.clear_frames(error.__traceback__)  # the failed step's tensors
            # Only now is the error gone, and with it what it held.
            for parameter, gradient in zip(self._parameters, before, strict=True):
                parameter.grad = None if gradient is None else gradient.clone()
            self.let_go()
            gc.collect()
            slower = f"The run goes on, slower: {difference(self.config, less)}."
            self._say(f"memory: the device has no more of it. {slower if self._alone else 'All other models are put aside.'}")
            self.config, self._alone = less, True
            self._model.leave_room(None)
            self.take()

    def _enter(self) -> None:
        model, text, config, enter = self._model, self._text, self.config, self._held.enter_context
        model.keep_away(config.offload_blocks)
        enter(model.hold(text))
        enter(self._adapter.attached(self._layers))
        if config.compile:
            enter(self._compiled.on())
        if config.gradient_checkpointing:
            enter(checkpointed(self._blocks))
        if config.offload_activations:
            enter(offloaded([*model.weights(), *(text.weights() if text else ()), *self._parameters]))
