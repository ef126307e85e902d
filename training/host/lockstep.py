"""Lockstep sampling: several pictures through one sampler, each as if alone, with one call of the model for all of them.

A sampler that is given a batch treats it as one thing: noise that it draws on its way, adaptive step sizes and tolerances are
then not those of the single picture. Here the sampler runs once a picture, in threads that take turns (never two at a time).
Each stops where it asks the model; what is asked alike is answered in one batch. Global random numbers are kept apart too, so
every sampler, also one that another pack has brought, gives each picture what it would have alone.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Rows = Callable[[Sequence[int]], None]
"""Told before every call of the model which pictures are in it."""


class OutOfStep(RuntimeError):
    """The pictures asked for different things although only whole batches were allowed."""


@dataclass(frozen=True)
class ModelCall:
    """One call of the model, by one picture's sampler."""

    x: Tensor
    """(1, ...)."""
    sigma: Tensor
    """(1,)."""
    options: Mapping[str, object]


class LockstepSampler:
    """A sampler function of the host's kind that leads every row of its batch through ``sampler`` by itself."""

    def __init__(self, sampler: Callable[..., Tensor], rows: Rows, *, whole: bool = False):
        self.sampler, self.rows, self.whole = sampler, rows, whole
        """``whole``: refuse, with OutOfStep, to ask the model for less than all pictures at once."""

    def __call__(
        self,
        model: Callable[..., Tensor],
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, object] | None = None,
        callback: Callable[..., None] | None = None,
        disable: bool | None = None,
        **options: object,
    ) -> Tensor:
        def lead(walker: _SamplerThread) -> Tensor:
            call = callback if walker.index == 0 else None
            own = _Model(model, walker)
            part = x[walker.index : walker.index + 1].clone()
            return self.sampler(own, part, sigmas, extra_args=dict(extra_args or {}), callback=call, disable=True, **options)

        walkers = [_SamplerThread(index, lead, x.device) for index in range(len(x))]
        try:
            answers: list[Tensor | None] = [None] * len(walkers)
            while walking := [walker for walker in walkers if not walker.arrived]:
                for walker in walking:
                    self.rows([walker.index])
                    walker.resume(answers[walker.index])
                for group in _alike([walker for walker in walking if not walker.arrived]):
                    if self.whole and len(group) < len(walkers):
                        raise OutOfStep("this sampler does not keep the pictures in step")
                    for walker, answer in zip(group, self._ask(model, group), strict=True):
                        answers[walker.index] = answer
            return torch.cat([walker.result for walker in walkers])
        finally:
            for walker in walkers:
                walker.stop()

    def _ask(self, model: Callable[..., Tensor], group: Sequence[_SamplerThread]) -> list[Tensor]:
        questions = [walker.question for walker in group]
        self.rows([walker.index for walker in group])
        sigma = torch.cat([q.sigma.reshape(-1) for q in questions])
        answer = model(torch.cat([q.x for q in questions]), sigma, **questions[0].options)
        return list(answer.split(1))


class _Model:
    """What a sampler takes for the model: asked with one picture, it waits for the others."""

    def __init__(self, model: Callable[..., Tensor], walker: _SamplerThread):
        self._model, self._walker = model, walker

    def __call__(self, x: Tensor, sigma: Tensor, **options: object) -> Tensor:
        return self._walker.ask(ModelCall(x, sigma, options))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class _Stopped(BaseException):
    """Ends a sampler whose answer is no longer wanted."""


class _SamplerThread:
    """One picture's sampler in a thread of its own, which runs only while ``resume`` waits for it."""

    question: ModelCall
    result: Tensor

    def __init__(self, index: int, work: Callable[[_SamplerThread], Tensor], device: torch.device):
        self.index, self.arrived = index, False
        self._work = work
        self._modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled()  # each thread has its own
        self._device = device if device.type == "cuda" else None
        self._answer: Tensor | None = None
        self._error: BaseException | None = None
        self._stopping = False
        self._turn, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._random = _random_state(self._device)
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), daemon=True)

    def resume(self, answer: Tensor | None) -> None:
        """Lets the sampler run until its next question or its end; raises what it raised."""
        _set_random_state(self._random, self._device)
        self._answer = answer
        self._hand_over()
        self._random = _random_state(self._device)
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Ends the thread, wherever it is."""
        if self._thread.ident is not None and not self.arrived:
            self._stopping = True
            self._hand_over()
        if self._thread.ident is not None:
            self._thread.join()

    def ask(self, question: ModelCall) -> Tensor:
        """Called in the thread."""
        if question.x.shape[0] != 1:
            raise OutOfStep("this sampler asks the model for several pictures at once")
        self.question = question
        self._done.release()
        self._turn.acquire()
        if self._stopping or self._answer is None:
            raise _Stopped
        return self._answer

    def _hand_over(self) -> None:
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._turn.release()
        self._done.acquire()

    def _run(self) -> None:
        try:
            if self._device is not None:
                torch.cuda.set_device(self._device)
            with torch.inference_mode(self._modes[0]), torch.set_grad_enabled(self._modes[1]):
                self.result = self._work(self)
        except _Stopped:
            pass
        except BaseException as error:  # an interrupt too: it is raised again where the sampler was called
            self._error = error
        finally:
            self.arrived = True
            self._done.release()


def _alike(walkers: Sequence[_SamplerThread]) -> list[list[_SamplerThread]]:
    """The walkers whose questions one call can answer: the same noise level, the very same options, the same shape."""
    groups: list[list[_SamplerThread]] = []
    for walker in walkers:
        for group in groups:
            a, b = walker.question, group[0].question
            same = a.options.keys() == b.options.keys() and all(a.options[k] is b.options[k] for k in a.options)
            if same and a.x.shape == b.x.shape and a.x.dtype == b.x.dtype and torch.equal(a.sigma, b.sigma):
                group.append(walker)
                break
        else:
            groups.append([walker])
    return groups


def _random_state(device: torch.device | None) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device is not None else [])]


def _set_random_state(state: Sequence[Tensor], device: torch.device | None) -> None:
    torch.set_rng_state(state[0])
    if device is not None:
        torch.cuda.set_rng_state(state[1], device)
