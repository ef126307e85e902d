"""Context manager for training steps: loads the model, attaches the adapter, turns on compiling, checkpointing and offloading.

Steps are recorded and replayed where the device can. When it runs out of memory within a step, the step is done again with the
next cheaper setting instead of ending the run.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Hashable
from contextlib import ExitStack, suppress
from dataclasses import replace

from torch import Tensor

from .dataset.plan import Batch
from .errors import is_out_of_memory
from .performance.activation_offload import Offload, can_offload
from .performance.block_offload import Traffic
from .performance.checkpointing import checkpointed
from .performance.compiling import Compiled
from .performance.fallback import cheaper
from .performance.filling import order_of, paced
from .performance.recording import recorder_for
from .performance.sharding import Shards
from .performance.step_graphs import StepGraphs
from .performance.team import ALONE, Team
from .performance.thrift import Thrift, difference
from .session import Session
from .step import Passes, StepInputs, commonest_forms, form_of, passes_of, prepare
from .tensors.transfer import give_back_pinned

AT_LEAST = 12
"""So often a form of batches must come between two pauses to be recorded, which takes as long as four steps."""
MOST = 16
"""So many forms are recorded."""
OFTEN = 0.75
"""Share of the steps below which it is said how many are recorded."""
Learn = Callable[[StepInputs], Tensor]


class StepContext:
    """``thrift`` is what is done for less memory now; ``say`` hears of changes, ``cancelled`` tells a cancel apart.

    ``learn`` gives the loss for a step's inputs and adds its gradient to the adapter's. ``stretch`` is how many steps there are
    between two pauses at which the model is let go. Where the processes of ``team`` hold a
    part of the model's blocks each, all do the same passes of the network at once.
    """

    def __init__(
        self,
        session: Session,
        learn: Learn,
        say: Callable[[str], None],
        cancelled: Callable[[BaseException], bool],
        stretch: int,
        team: Team = ALONE,
    ):
        model = session.model
        self._stretch = stretch
        self.thrift = session.thrift
        self._session, self._learn, self._say, self._team = session, learn, say, team
        self.shards = Shards(team.blocks) if self.thrift.shards > 1 else None
        self._alone = not can_offload(model.device)
        """Whether everything else has been put aside already, as far as there is another place for it."""
        self._traffic = Traffic(self.thrift.away, say)
        self._offload = Offload(model.device)
        self._compiled = Compiled(model.blocks() if session.config.compile else [], say, cancelled)
        assert session.adapter.flat is not None
        self._flat = session.adapter.flat
        self._settled = set[Hashable]()
        """Forms of batches for which nothing is compiled any more."""
        self._graphs = self._recorded(cancelled) if session.config.speed == "auto" else None
        self._held, self._on = ExitStack(), False

    def _recorded(self, cancelled: Callable[[BaseException], bool]) -> StepGraphs[StepInputs] | None:
        session = self._session
        recorder = recorder_for(session.model.device, session.encoded.folder)
        if recorder is None:
            return None
        gradient, kind = [self._flat.gradient], session.model.compute_dtype
        return StepGraphs(recorder, self._learn, gradient, self._wanted, kind, self._say, cancelled)

    def _wanted(self) -> list[Hashable]:
        """The forms of batches that are worth recording."""
        forms, share = commonest_forms(self._session, AT_LEAST, MOST, self._stretch)
        if share < OFTEN and self._session.total_steps >= AT_LEAST:
            seldom = "too seldom" if self._stretch >= self._session.total_steps else "too seldom between two samples"
            self._say(
                f"speed: about {share:.0%} of the steps are recorded as CUDA graphs; the others have a picture size, or captions "
                f"of a length, that comes {seldom}, and run one operation at a time."
            )
        return forms

    def __enter__(self) -> StepContext:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.release()
        finally:
            with suppress(RuntimeError):  # of a device that is broken, which is told by what broke it
                give_back_pinned()

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

        If the device has no memory left for it, it is done once more without any other model there, then without recordings, and
        then with the next cheaper setting; which then stays.
        """
        session, graphs, flat = self._session, self._graphs, self._flat
        batch = session.plan.batch(step)
        before, unrecorded = flat.kept(), False
        while True:
            try:
                loss = self._done(step, batch, unrecorded)
                flat.is_empty = False
                if graphs is not None and unrecorded:
                    graphs.give_up("there is no memory for making one")
                return loss
            except Exception as error:
                if not is_out_of_memory(error) or self.shards is not None:  # the others would not do it once more
                    raise
                recorded = False
                less: Thrift | None = self.thrift
                if self._alone:
                    recorded = graphs is not None and len(graphs) > 0
                    # A recording is proved beside an ordinary step, which may have memory enough by itself.
                    unrecorded = graphs is not None and graphs.proving and not unrecorded
                    less = less if recorded or unrecorded else self._cheaper()
                if less is None:
                    raise
                traceback.clear_frames(error.__traceback__)  # the failed step's tensors
            # Only now is the error gone, and with it what it held.
            flat.restore(before)
            if graphs is not None and recorded:
                gc.collect()
                graphs.give_up("there is no memory for that beside the other picture sizes")
                unrecorded = False
                continue
            if unrecorded:
                gc.collect()
                continue
            self.release()
            gc.collect()
            slower = f"The run goes on, slower: {difference(self.thrift, less)}."
            self._say(f"memory: the device has no more of it. {slower if self._alone else 'All other models are put aside.'}")
            self.thrift, self._alone = less, True
            session.model.leave_room(None)
            self.acquire()

    def accompany(self, step: int) -> None:
        """What ``run`` does, for processes that need this one's part of the weights while it has no step of its own."""
        kept = self._flat.kept()
        self.run(step)
        self._flat.restore(kept)

    def _done(self, step: int, batch: Batch, unrecorded: bool) -> Tensor:
        """The step, replayed where it is recorded, unless it shall be ``unrecorded``."""
        session, graphs, compiled = self._session, self._graphs, self._compiled
        if session.text is not None:  # its answer is part of what is learnt from, so all of it is done again where a step is

            def whole() -> Tensor:
                self._flat.begin()
                return self._learn(self._alike(prepare(session, batch, step)))

            return compiled.run(whole, self._flat)
        inputs = self._alike(prepare(session, batch, step))
        if graphs is None or not graphs.active or unrecorded:
            return self._plain(inputs)
        if compiled.active and (form := form_of(session, batch)) not in self._settled:
            loss = self._plain(inputs)
            if compiled.settled:  # what is still to be compiled for this form cannot be compiled while it is recorded
                self._settled.add(form)
            return loss
        return graphs.run(inputs, lambda: form_of(session, batch), self._plain, watched=not compiled.active)

    def _alike(self, inputs: StepInputs) -> StepInputs:
        """``inputs`` with as many passes of the network as any process's step has."""
        if self.shards is None:
            return inputs
        return replace(inputs, passes=Passes(*self._team.most(passes_of(self._session, inputs))))

    def _plain(self, inputs: StepInputs) -> Tensor:
        """The step, one operation after the other."""
        return self._compiled.run(lambda: self._learn(inputs), self._flat)

    def _cheaper(self) -> Thrift | None:
        known = self._session.forecast
        return cheaper(self.thrift, self._session.model.device, order_of(known.activations) if known else None)

    def _enter(self) -> None:
        session, enter = self._session, self._held.enter_context
        if self._traffic.pace is not None and session.forecast is not None:
            self.thrift = paced(session.forecast, self.thrift, self._traffic.pace)
        thrift = self.thrift
        self._traffic.away = thrift.away
        enter(session.model.hold(session.text, offload=self._traffic if self.shards is None else self.shards))
        # What lies between two blocks is there for both, unless one's weights are away or its inputs are copies.
        enter(session.adapter.attached(session.layers, not (thrift.away or thrift.recomputed or thrift.shards > 1)))
        if thrift.compiled:
            enter(self._compiled.on())
        if thrift.recomputed:
            blocks = session.blocks()
            enter(checkpointed([blocks[i] for i in sorted(thrift.recomputed)]))
        if thrift.activations_away:
            weights = [*session.model.weights(), *(session.text.weights() if session.text else ())]
            enter(self._offload.on([*weights, *session.adapter.fixed()]))
        if self._graphs is not None and self._graphs.active and (reason := moving(session, thrift)) is not None:
            self._graphs.give_up(reason)


def moving(session: Session, thrift: Thrift) -> str | None:
    """Why steps of this run, with ``thrift`` for its memory, cannot be recorded; None if nothing is known against it."""
    if session.text is not None:
        return "the text encoder learns as well and reads other captions in every step"
    if thrift.shards > 1:
        return "each process holds a part of the model, and the weights come from the others in every step"
    if thrift.away:
        return "offload_blocks brings and takes away weights in every step"
    if thrift.activations_away:
        return "offload_activations takes numbers to main memory in every step"
    if session.model.has_copies:
        return "copies of the model on other GPUs take part"
    return None
