"""Training steps as CUDA graphs: forward pass, loss and backward pass recorded once for each shape of inputs, then replayed.

In a replay the device works through the recorded kernels without waiting for Python, which in small batches takes longer than the
kernels. What changes from step to step is copied into the places that were recorded; weights and gradient have fixed places too.

From the first step of a shape on, the replay's result counts, not that of the passes before it that prove it: so a run that was
interrupted goes exactly the way of one that was not. Which shapes are recorded follows from the plan alone, for the same reason.
"""

from __future__ import annotations

import gc
import logging
import math
import traceback
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ..errors import AtelierError, chain_of, is_out_of_memory
from ..tensors.tree import Opaque, put_together, taken_apart
from .device_work import DeviceWork, NotDeviceWork
from .recording import GraphRecorder, NotTried, Recording

log = logging.getLogger("lora-atelier")
T = TypeVar("T")
APART = {torch.float32: 1e-5}
"""Largest relative distance of a replayed loss and gradient from those of the ordinary step that is rounding."""
OF_A_FORM = 4
"""So many steps of one form are recorded, each for other constants."""
APART_IN_HALF = 2e-2
"""The same in bf16 and fp16. On an H200 a step of SDXL in bf16 came within 0.0085; docs/decisions.md says if that is rounding."""
ANOTHER_WAY = "the run goes on one operation at a time, slower, to the same LoRA."


@dataclass(eq=False)
class _Graph:
    places: list[Tensor]
    """Where the inputs lie that were recorded."""
    loss: Tensor
    recording: Recording
    proved: bool = field(default=False)
    """Whether its result was compared with an ordinary one; not while that proves nothing: zero, or not finite, as when fp16
    overflows."""

    def replay(self, tensors: Sequence[Tensor]) -> Tensor:
        torch._foreach_copy_(self.places, list(tensors))
        self.recording.replay()
        return self.loss.clone()


class StepGraphs(Generic[T]):
    """The recorded steps of a run. Whatever goes wrong with one costs its speed, never the run.

    ``learn(inputs)`` gives a loss, a scalar, and adds to ``gradient``, tensors whose places stay. ``wanted`` gives the forms of
    batches that are worth recording, and is asked once. ``computes_in`` decides what is rounding. ``say`` receives the one
    sentence if steps cannot be recorded; ``cancelled`` tells the person's cancel from an error.
    """

    def __init__(
        self,
        recorder: GraphRecorder,
        learn: Callable[[T], Tensor],
        gradient: Sequence[Tensor],
        wanted: Callable[[], Collection[Hashable]],
        computes_in: torch.dtype,
        say: Callable[[str], None],
        cancelled: Callable[[BaseException], bool] = lambda _: False,
    ):
        self.active = True
        """Whether steps may be recorded or replayed."""
        self.proving = False
        """Whether the last step was, or was to be, proved against an ordinary one, which takes more memory than one alone."""
        self._recorder, self._learn, self._gradient, self._cancelled = recorder, learn, list(gradient), cancelled
        self._ask, self._say, self._apart = wanted, say, APART.get(computes_in, APART_IN_HALF)
        self._wanted: Collection[Hashable] | None = None
        self._graphs: dict[Hashable, _Graph] = {}
        self._seen = set[Hashable]()
        """Inputs whose step was looked through, and need not be again when it is recorded anew."""
        self._of_form = defaultdict[Hashable, set[Hashable]](set)
        """Inputs of each form that were to be recorded: of several, each set is for other constants."""
        self._full = False
        """Whether there is no memory for more beside those that are there."""
        self._told_memory = self._told_constants = False
        """What was said once."""

    def __len__(self) -> int:
        return len(self._graphs)

    def run(self, inputs: T, form: Callable[[], Hashable], plain: Callable[[T], Tensor], watched: bool = True) -> Tensor:
        """The loss for ``inputs``, whose gradient is added: replayed, or by ``plain``, which does what ``learn`` does.

        ``form`` tells the form of this batch. ``watched``: whether ``learn`` is looked through before it is recorded, which
        compiled code does not allow.
        """
        self.proving = False
        if not self.active:
            return plain(inputs)
        try:
            tensors, rest = taken_apart(inputs)
        except Opaque as error:
            self.give_up(f"the model is given something beside its pictures that cannot be looked into, {error}")
            return plain(inputs)
        key = rest, tuple((t.shape, t.dtype, t.device) for t in tensors)
        graph = self._graphs.get(key)
        if graph is not None and graph.proved:
            return graph.replay(tensors)
        elsewhere = next((t.device for t in tensors if t.device != self._gradient[0].device), None)
        if elsewhere is not None:  # a recording would take a number of there for a constant
            self.give_up(f"one of its inputs lies on {elsewhere}")
            return plain(inputs)
        if graph is None and not self._is_wanted(key, form()):
            return plain(inputs)
        self.proving = True
        before = [g.clone() for g in self._gradient]
        graph, loss = self._proved(graph, tensors, rest, plain, before, watched and key not in self._seen)
        if graph is not None:
            self._graphs[key] = graph
            self._seen.add(key)
            return loss
        self._restore(before)
        return plain(inputs)

    def drop(self) -> None:
        """Lets go of all recordings: weights may move from here on. Their memory is given back."""
        if self._graphs:
            for graph in self._graphs.values():
                graph.recording.reset()
            self._graphs.clear()
            self._recorder.emptied()
        self._full = False

    def give_up(self, reason: str) -> None:
        """Records nothing any more, and says why."""
        self.drop()
        self.active = self.proving = False
        self._say(f"speed: training steps cannot be recorded as CUDA graphs ({reason}); {ANOTHER_WAY}")

    def _is_wanted(self, key: Hashable, form: Hashable) -> bool:
        if self._wanted is None:
            self._wanted = frozenset(self._ask())
        if form not in self._wanted or self._full:
            return False
        known = self._of_form[form]
        if key not in known and len(known) == OF_A_FORM:
            if not self._told_constants:
                self._say(f"speed: steps of one picture size are given a new constant again and again; with such {ANOTHER_WAY}")
            self._told_constants = True
            return False
        known.add(key)
        return True

    def _restore(self, gradient: Sequence[Tensor]) -> None:
        torch._foreach_copy_(self._gradient, list(gradient))

    def _proved(
        self,
        graph: _Graph | None,
        tensors: Sequence[Tensor],
        rest: Hashable,
        plain: Callable[[T], Tensor],
        before: Sequence[Tensor],
        watched: bool,
    ) -> tuple[_Graph | None, Tensor]:
        """A recording, made unless it is given, and the loss that it gives, its gradient added; None where it is not to be."""
        places = [torch.empty_like(tensor) for tensor in tensors] if graph is None else graph.places

        def given() -> T:
            torch._foreach_copy_(places, list(tensors))
            made: T = put_together(places, rest)
            return made

        with self._recorder.aside():
            if graph is None:
                try:
                    with DeviceWork() if watched else nullcontext():
                        self._learn(given())
                except NotDeviceWork as error:
                    self.give_up(str(error))
                    return None, before[0]
                self._restore(before)
            wanted = plain(given()).clone()
        expected = [g.clone() for g in self._gradient]
        self._restore(before)
        if graph is None:
            try:
                graph = self._recorded(places, rest, wanted)
                self._restore(before)
            except Exception as error:
                if self._cancelled(error) or isinstance(error, AtelierError):
                    raise
                log.info("a training step could not be recorded", exc_info=True)
                cause = _cause(error)
                if is_out_of_memory(cause):
                    self._full = True
                    number, verb = len(self._graphs), "is" if len(self._graphs) == 1 else "are"
                    kept = f"{number} of the picture sizes {verb} recorded; with the others " if number else ""
                    if not self._told_memory:
                        self._say(f"speed: there is no memory to record more training steps as CUDA graphs; {kept}{ANOTHER_WAY}")
                    self._told_memory = True
                else:
                    self.give_up(_reason(cause))
                traceback.clear_frames(error.__traceback__)  # or they would hold what the capture has made
                del cause
                gc.collect()
                return None, wanted
        try:
            loss = graph.replay(tensors)
            far, whole, of_loss, known = self._distance(before, expected, wanted, loss)
        except Exception:
            graph.recording.reset()
            self._graphs = {key: other for key, other in self._graphs.items() if other is not graph}
            if not self._graphs:
                self._recorder.emptied()
            raise
        graph.proved = math.isfinite(whole) and whole > 0 and math.isfinite(known)
        if graph.proved and not (far <= self._apart * whole and of_loss <= self._apart):
            graph.recording.reset()
            if not self._graphs:
                self._recorder.emptied()
            self.give_up(f"a replayed one gave another gradient, by {far / whole:.1%} of it, or another loss, by {of_loss:.1%}")
            return None, wanted
        return graph, loss

    def _recorded(self, places: list[Tensor], rest: Hashable, like: Tensor) -> _Graph:
        loss = torch.zeros_like(like)

        def work() -> None:
            loss.copy_(self._learn(put_together(places, rest)))

        return _Graph(places, loss, self._recorder.capture(work))

    def _distance(
        self, before: Sequence[Tensor], expected: Sequence[Tensor], wanted: Tensor, loss: Tensor
    ) -> tuple[float, float, float, float]:
        """(of the gradient that was added from the expected one, norm of that one, the same of the loss, and it itself)."""
        far = torch.stack([(a - b).square().sum() for a, b in zip(self._gradient, expected, strict=True)]).sum().sqrt()
        whole = torch.stack([(b - c).square().sum() for b, c in zip(expected, before, strict=True)]).sum().sqrt()
        of_loss = (loss - wanted).abs() / wanted.abs().clamp_min(1e-12)
        a, b, c, d = torch.stack([far, whole, of_loss.float(), wanted.float()]).tolist()  # waits for the device, once for a shape
        return a, b, c, d


def _cause(error: BaseException) -> BaseException:
    """A lack of memory wherever it is; else where it began, since a capture that has failed fails once more as it is ended."""
    chain = list(chain_of(error))
    return next((one for one in chain if is_out_of_memory(one)), chain[-1])


def _reason(error: BaseException) -> str:
    """The first line of what went wrong, not too long."""
    if isinstance(error, NotTried):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= 160 else text[:159] + "…"
