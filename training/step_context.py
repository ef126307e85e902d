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
from .performance.activation_offload import Offload, can_offload
from .performance.block_offload import Traffic
from .performance.checkpointing import checkpointed
from .performance.compiling import Compiled
from .performance.fallback import cheaper
from .performance.filling import order_of, paced
from .performance.thrift import Thrift, difference
from .session import Session


class StepContext:
    """``thrift`` is what is done for less memory now; ``say`` hears of changes, ``cancelled`` tells a cancel apart."""

    def __init__(self, session: Session, say: Callable[[str], None], cancelled: Callable[[BaseException], bool]):
        model = session.model
        self.thrift = session.thrift
        self._session, self._say = session, say
        self._alone = not can_offload(model.device)
        """Whether everything else has been put aside already, as far as there is another place for it."""
        self._traffic = Traffic(self.thrift.away, say)
        self._offload = Offload(model.device)
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

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        """What ``work`` gives, a loss whose gradient it adds to the adapter's.

        If the device has no memory left for it, it is done once more without any other model there, and then with the next
        cheaper setting; which then stays.
        """
        flat = self._session.adapter.flat
        assert flat is not None
        before = flat.kept()
        while True:
            try:
                return self._compiled.run(work, flat)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                less = self._cheaper() if self._alone else self.thrift
                if less is None:
                    raise
                traceback.clear_frames(error.__traceback__)  # the failed step's tensors
            # Only now is the error gone, and with it what it held.
            flat.restore(before)
            self.release()
            gc.collect()
            slower = f"The run goes on, slower: {difference(self.thrift, less)}."
            self._say(f"memory: the device has no more of it. {slower if self._alone else 'All other models are put aside.'}")
            self.thrift, self._alone = less, True
            self._session.model.leave_room(None)
            self.acquire()

    def _cheaper(self) -> Thrift | None:
        known = self._session.forecast
        return cheaper(self.thrift, self._session.model.device, order_of(known.activations) if known else None)

    def _enter(self) -> None:
        session, enter = self._session, self._held.enter_context
        if self._traffic.pace is not None and session.forecast is not None:
            self.thrift = paced(session.forecast, self.thrift, self._traffic.pace)
        thrift = self.thrift
        self._traffic.away = thrift.away
        enter(session.model.hold(session.text, offload=self._traffic))
        # What lies between two blocks is there for both, unless one's weights are away or its inputs are copies.
        enter(session.adapter.attached(session.layers, not (thrift.away or thrift.recomputed)))
        if thrift.compiled:
            enter(self._compiled.on())
        if thrift.recomputed:
            blocks = session.blocks()
            enter(checkpointed([blocks[i] for i in sorted(thrift.recomputed)]))
        if thrift.activations_away:
            weights = [*session.model.weights(), *(session.text.weights() if session.text else ())]
            enter(self._offload.on([*weights, *session.adapter.fixed()]))
