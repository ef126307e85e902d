"""Context manager for training steps: loads the model, attaches the adapter, turns on compiling, checkpointing and offloading.

Steps are recorded and replayed where the device can. When it runs out of memory within a step, the step is done again with the
next cheaper setting instead of ending the run.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor

from .config import TrainingConfig
from .errors import is_out_of_memory
from .performance.activation_offload import can_offload, offloaded
from .performance.checkpointing import checkpointed
from .performance.compiling import Compiled
from .performance.fallback import cheaper, difference, without_effect
from .performance.step_graphs import StepGraphs, recorder_for
from .session import Session
from .step import StepInputs, commonest_forms, form_of, prepare

AT_LEAST = 12
"""So often a form of batches must come in a run to be recorded, which takes as long as four steps."""
MOST = 16
"""So many forms are recorded."""
Learn = Callable[[StepInputs], Tensor]


class StepContext:
    """``config`` holds the settings in use; ``say`` receives a sentence when they change, ``cancelled`` tells a cancel apart.

    ``learn`` gives the loss for a step's inputs and adds its gradient to the adapter's.
    """

    def __init__(self, session: Session, learn: Learn, say: Callable[[str], None], cancelled: Callable[[BaseException], bool]):
        model = session.model
        self.config = without_effect(session.config, model.device)
        self._session, self._learn, self._say, self._parameters = session, learn, say, list(session.adapter.parameters())
        self._alone = not can_offload(model.device)
        """Whether everything else has been put aside already, as far as there is another place for it."""
        self._compiled = Compiled(model.blocks() if session.config.compile else [], say, cancelled)
        self._gradient: Tensor | None = None
        """Where all parameters' gradients lie, if they must keep their places."""
        self._places: list[Tensor] = []
        self._graphs = self._recorded(cancelled) if session.config.speed == "auto" else None
        self._held, self._on = ExitStack(), False

    def _recorded(self, cancelled: Callable[[BaseException], bool]) -> StepGraphs[StepInputs] | None:
        session = self._session
        recorder = recorder_for(session.model.device)
        if recorder is None:
            return None
        gradient = torch.zeros(sum(p.numel() for p in self._parameters), device=self._parameters[0].device)
        places = gradient.split([p.numel() for p in self._parameters])
        self._gradient, self._places = gradient, [place.view_as(p) for p, place in zip(self._parameters, places, strict=True)]
        self._put_in_place()
        wanted = partial(commonest_forms, session, AT_LEAST, MOST)
        return StepGraphs(recorder, self._learn, [gradient], wanted, session.model.compute_dtype, self._say, cancelled)

    def __enter__(self) -> StepContext:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    @property
    def gradient_stays(self) -> bool:
        """Whether gradients have places of their own, which they must keep."""
        return self._gradient is not None

    def acquire(self) -> None:
        """From here on steps can be trained, and losses measured."""
        if not self._on:
            self._enter()
            self._on = True

    def release(self) -> None:
        """From here on the model is as everybody knows it, and pictures can be sampled."""
        self._on = False
        if self._graphs is not None:
            self._graphs.drop()
        self._held.close()

    def run(self, step: int) -> Tensor:
        """The loss of a step, whose gradient is added to the adapter's.

        If the device has no memory left for it, it is done once more without recordings, then without any other model there, and
        then with the next cheaper setting; which then stays.
        """
        session, graphs = self._session, self._graphs
        batch = session.plan.batch(step)
        before = self._kept(step)
        while True:
            try:
                inputs = prepare(session, batch, step)
                if graphs is None:
                    return self._plain(inputs)
                return graphs.run(inputs, lambda: form_of(session, batch), self._plain, watched=not self._compiled.active)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                recorded = graphs is not None and len(graphs) > 0
                less = cheaper(self.config, session.model.device) if self._alone and not recorded else self.config
                if less is None:
                    raise
                traceback.clear_frames(error.__traceback__)  # the failed step's tensors
            # Only now is the error gone, and with it what it held.
            self._restore(before)
            if graphs is not None and recorded:
                gc.collect()
                graphs.give_up("there is no memory for that beside the other picture sizes")
                continue
            self.release()
            gc.collect()
            slower = f"The run goes on, slower: {difference(self.config, less)}."
            self._say(f"memory: the device has no more of it. {slower if self._alone else 'All other models are put aside.'}")
            self.config, self._alone = less, True
            session.model.leave_room(None)
            self.acquire()

    def _plain(self, inputs: StepInputs) -> Tensor:
        """The step, one operation after the other."""
        loss = self._compiled.run(lambda: self._learn(inputs), self._parameters)
        if self._places and self.config.compile:  # which may have given parameters other gradients
            self._put_in_place()
        return loss

    def _put_in_place(self) -> None:
        for parameter, place in zip(self._parameters, self._places, strict=True):
            if parameter.grad is not None and parameter.grad is not place:
                place.copy_(parameter.grad)
            parameter.grad = place

    def _kept(self, step: int) -> list[Tensor | None]:
        """A copy of the gradient before ``step``, as ``_restore`` takes it; where it is known to be zero there is none."""
        if self._gradient is not None:
            return [self._gradient.clone() if step % self.config.optimizer.accumulate else None]
        return [None if p.grad is None else p.grad.clone() for p in self._parameters]

    def _restore(self, before: list[Tensor | None]) -> None:
        if self._gradient is not None:
            (whole,) = before
            _ = self._gradient.zero_() if whole is None else self._gradient.copy_(whole)
            return
        for parameter, gradient in zip(self._parameters, before, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()

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
        if self._graphs is not None and self._graphs.active and (reason := moving(session, config)) is not None:
            self._graphs.give_up(reason)


def moving(session: Session, config: TrainingConfig) -> str | None:
    """Why steps of this run, with ``config`` for settings, cannot be recorded; None if nothing is known against it."""
    if session.text is not None:
        return "the text encoder learns as well and reads other captions in every step"
    if config.offload_blocks:
        return "offload_blocks brings and takes away weights in every step"
    if config.offload_activations:
        return "offload_activations takes numbers to main memory in every step"
    if session.model.has_copies:
        return "copies of the model on other GPUs take part"
    return None
