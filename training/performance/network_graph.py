"""Network graph: a network's forward pass without gradients, recorded once for each form of its inputs and replayed after that.

The first pass of a form runs as always, and makes what is made on first use. The second is recorded and compared with the
network's own; so is the third, whose inputs are others, since a recording could have taken a number for a constant. From then on
passes are replayed: inputs are copied into their fixed places, and the answer is copied out.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..tensors.method_patch import patched
from .device_work import DeviceWork, NotDeviceWork
from .recording import GraphRecorder, NotTried, Recording

log = logging.getLogger("lora-atelier")
FORMS = 4
"""Forms of inputs that are recorded at most: each keeps memory."""
APART = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 2e-2}
"""By number format: how far (as norms, relatively) a replay may be from the network's own answer."""
State = tuple[Hashable, Hashable]
SMALL = 1024
"""Numbers of a tensor outside the device that are compared, since a recording would take them for constants."""


class NotRecordable(RuntimeError):
    """The reason for which passes of a network are not recorded."""


@dataclass
class _Form:
    """What is known of passes with inputs of one form."""

    passes: int = 0
    recording: Recording | None = None
    places: tuple[Tensor, ...] = ()
    answer: list[Tensor] = field(default_factory=list)
    """One tensor: what the last replay gave. The next one overwrites it."""


class NetworkGraph:
    """Recorded passes of ``network`` on ``device``.

    ``state`` tells what else they depend on than their inputs: (what makes all recordings void when it changes, what tells
    one form from another).
    """

    def __init__(self, network: nn.Module, recorder: GraphRecorder, device: torch.device, state: Callable[[], State]):
        self.network, self.device = network, device
        self._recorder, self._state = recorder, state
        self._forms: dict[Hashable, _Form] = {}
        self._ground: Hashable = None
        # Asked before every pass, so not by a walk over the modules; the tensors in these may be replaced.
        self._homes = [home for module in network.modules() for home in (module._parameters, module._buffers) if home]
        self.reason = ""
        """Why nothing is recorded any more; empty while it is."""
        self.replays = 0

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While it lasts, the network's passes are recorded and replayed."""
        with patched([self.network], "forward", lambda _network, usual: self._runner(usual)):
            yield

    def drop(self) -> None:
        """Lets go of all recordings and of the memory that they hold."""
        made = [form.recording for form in self._forms.values() if form.recording is not None]
        self._forms.clear()
        self._ground = None
        for recording in made:
            recording.reset()
        if made:
            self._recorder.emptied()

    def _runner(self, usual: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.reason or torch.is_grad_enabled():
                return usual(*args, **kwargs)
            try:
                return self._pass(usual, args, kwargs)
            except NotRecordable as why:
                self.give_up(str(why))
            return usual(*args, **kwargs)  # here nothing of the attempt is held any more

        return forward

    def give_up(self, reason: str) -> None:
        """No pass is recorded from here on; said once."""
        self.reason = reason
        self.drop()
        log.info("grid: the network's passes are not recorded (%s); they run as always, to the same pictures", reason)

    def _pass(self, usual: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs: list[Tensor] = []
        common, apart = self._state()
        key = self._form_of((args, kwargs), inputs), apart
        # A recording reads the weights where they were: once the host has moved them, something else is there.
        ground = common, tuple(tensor.data_ptr() for tensor in self._tensors())
        if ground != self._ground:
            self.drop()
            self._ground = ground
        if key not in self._forms and len(self._forms) == FORMS:
            return usual(*args, **kwargs)
        form = self._forms.setdefault(key, _Form())
        form.passes += 1
        if form.passes == 1:
            return usual(*args, **kwargs)
        if form.recording is not None and form.passes > 3:
            return self._replayed(form, inputs)
        expected = usual(*args, **kwargs) if form.recording else self._looked_through(usual, args, kwargs)
        if not isinstance(expected, Tensor):
            raise NotRecordable("its answer is more than one tensor")
        if form.recording is None:
            self._record(form, usual, args, kwargs, inputs, expected)
        self._compare(self._replayed(form, inputs), expected)
        return expected

    def _looked_through(self, usual: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The answer of a pass that is the device's work alone, where it will be recorded; else NotRecordable."""
        with self._recorder.aside():
            try:
                with DeviceWork():
                    return usual(*args, **kwargs)
            except NotDeviceWork as why:
                raise NotRecordable(str(why)) from None

    def _record(
        self, form: _Form, usual: Callable[..., Any], args: Any, kwargs: Any, inputs: list[Tensor], expected: Tensor
    ) -> None:
        away = next((tensor for tensor in self._tensors() if tensor.device != self.device), None)
        if away is not None:
            raise NotRecordable("some of its weights are not on the device")
        form.places = tuple(tensor.clone(memory_format=torch.preserve_format) for tensor in inputs)
        # Their places alone, in the order in which ``_form_of`` has met them.
        own_args, own_kwargs = _replaced((args, kwargs), self.device, iter(form.places))

        form.answer[:] = [torch.empty_like(expected)]  # nothing that is made in a recording may outlive it

        def work() -> None:
            form.answer[0].copy_(usual(*own_args, **own_kwargs))

        try:
            form.recording = self._recorder.capture(work)
        except NotTried as why:
            raise NotRecordable(str(why)) from None
        except Exception as error:
            lines = str(error).strip().splitlines()
            raise NotRecordable(f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}") from None

    def _replayed(self, form: _Form, inputs: list[Tensor]) -> Tensor:
        assert form.recording is not None
        for place, tensor in zip(form.places, inputs, strict=True):
            place.copy_(tensor)
        form.recording.replay()
        self.replays += 1
        return form.answer[0].clone()

    def _compare(self, found: Tensor, expected: Tensor) -> None:
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise NotRecordable("a replay's answer is of another form")
        far, whole = torch.stack([(found.float() - expected.float()).norm(), expected.float().norm()]).tolist()
        if not far <= APART.get(expected.dtype, 2e-2) * whole and whole == whole:  # NaN has its own message, elsewhere
            raise NotRecordable(f"a replay is {far / whole if whole else far:.2g} of the answer away from it")

    def _tensors(self) -> Iterator[Tensor]:
        for home in self._homes:
            yield from (tensor for tensor in home.values() if tensor is not None)

    def _form_of(self, value: Any, inputs: list[Tensor]) -> Hashable:
        """Everything of the arguments that a recording takes for constant; ``inputs`` gets the tensors that it does not."""
        if isinstance(value, Tensor):
            if value.device == self.device:
                inputs.append(value)
                return "input", tuple(value.shape), value.stride(), value.dtype
            if value.numel() > SMALL:
                raise NotRecordable("it is given large tensors that are not on its device")
            return tuple(value.shape), value.dtype, tuple(value.flatten().tolist())
        if isinstance(value, Mapping):
            return tuple((key, self._form_of(part, inputs)) for key, part in value.items())
        if type(value) in (list, tuple):
            return type(value).__name__, tuple(self._form_of(part, inputs) for part in value)
        if isinstance(value, uuid.UUID):  # the host's names for its conditionings, new with every sampling
            return "uuid"
        if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
            return type(value).__name__, value
        raise NotRecordable(f"it is given a {type(value).__name__}")


def _replaced(value: Any, device: torch.device, places: Iterator[Tensor]) -> Any:
    """``value`` with the tensors on ``device`` replaced, in order, by ``places``."""
    if isinstance(value, Tensor):
        return next(places) if value.device == device else value
    if isinstance(value, Mapping):
        return {key: _replaced(part, device, places) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_replaced(part, device, places) for part in value)
    return value
