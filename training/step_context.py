"""Context manager for training steps: loads the model, attaches the adapter, turns on compiling, checkpointing and offloading.

When the device runs out of memory within a step, the step is done again with the next cheaper setting instead of ending the run.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from contextlib import ExitStack

from torch import Tensor

from .errors import is_out_of_memory
from .performance.activation_offload import can_offload, offloaded
from .performance.checkpointing import checkpointed
from .performance.compiling import Compiled
from .performance.fallback import cheaper, difference, without_effect
from .session import Session
from .step import StepInputs, prepare


class StepContext:
    """``config`` holds the settings in use; ``say`` receives a sentence when they change, ``cancelled`` tells a cancel apart."""

    def __init__(self, session: Session, say: Callable[[str], None], cancelled: Callable[[BaseException], bool]):
        model = session.model
        self.config = without_effect(session.config, model.device)
        self._session, self._say, self._parameters = session, say, list(session.adapter.parameters())
        self._alone = not can_offload(model.device)
        """Whether everything else has been put aside already, as far as there is another place for it."""
        self._compiled = Compiled(model.blocks() if session.config.compile else [], say, cancelled)
        self._held, self._on = ExitStack(), False

    def __enter__(self) -> StepContext:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def acquire(self) -> None:
        """From here on steps can be trained, and losses measured."""
        if not self._on:
            self._enter()
            self._on = True

    def release(self) -> None:
        """From here on the model is as everybody knows it, and pictures can be sampled."""
        self._on = False
        self._held.close()

    def run(self, step: int, learn: Callable[[StepInputs], Tensor]) -> Tensor:
        """What ``learn`` gives for the inputs of ``step``, a loss whose gradient it adds to the adapter's.

        If the device has no memory left for it, it is done once more without any other model there, and then with the next
        cheaper setting; which then stays.
        """
        session = self._session
        before = [None if p.grad is None else p.grad.clone() for p in self._parameters]
        while True:
            try:
                inputs = prepare(session, session.plan.batch(step), step)
                return self._compiled.run(lambda: learn(inputs), self._parameters)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                less = cheaper(self.config, self._session.model.device) if self._alone else self.config
                if less is None:
                    raise
                traceback.clear_frames(error.__traceback__)  # the failed step's tensors
            # Only now is the error gone, and with it what it held.
            for parameter, gradient in zip(self._parameters, before, strict=True):
                parameter.grad = None if gradient is None else gradient.clone()
            self.release()
            gc.collect()
            slower = f"The run goes on, slower: {difference(self.config, less)}."
            self._say(f"memory: the device has no more of it. {slower if self._alone else 'All other models are put aside.'}")
            self.config, self._alone = less, True
            self._session.model.leave_room(None)
            self.acquire()

    def _enter(self) -> None:
        session, config, enter = self._session, self.config, self._held.enter_context
        enter(session.model.hold(session.text, offload=config.offload_blocks))
        enter(session.adapter.attached(session.layers))
        if config.compile:
            enter(self._compiled.on())
        if config.gradient_checkpointing:
            enter(checkpointed(session.blocks()))
        if config.offload_activations:
            weights = [*session.model.weights(), *(session.text.weights() if session.text else ())]
            enter(offloaded([*weights, *self._parameters]))
