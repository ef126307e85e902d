"""Processes that train one LoRA together (data parallelism): each takes its share of an update's batches, gradients are added up.

Of so many processes each update is that of one process with as many times the ``accumulate``: which batch is whose follows from
the step alone. torch.distributed carries what they tell each other: once an update the gradient of the adapter, which is all that
is trained, and a few bytes a step. The first process leads: it alone writes, draws and decides.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import AtelierError, is_out_of_memory

T = TypeVar("T")
MARK = "LORA_ATELIER_TEAM"
"""Set in the environment of processes that were started to train together; other packs may have process groups of their own."""
SHARD = "LORA_ATELIER_SHARD"
"""Set beside it where each of them shall hold a part of the model's blocks only."""
MEETING = timedelta(minutes=10)
"""So long they wait for each other at first, and for what all of them have said that they are about to do."""
PATIENCE = timedelta(days=7)
"""So long for the first one, while it draws samples or encodes. A process that is gone is noticed at once all the same."""
SECONDS_TO_STOP = 5.0
"""A signal that stops one process reaches the others within these."""
CARRIED = ("cpu", "cuda")
"""Devices whose tensors are sent as they are; those of others by way of main memory."""
GOES_ON, IS_STOPPED, HAS_FAILED = range(3)


@dataclass(frozen=True)
class Team:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    words: Any = None
    """torch's group for what is said, in main memory."""
    numbers: Any = None
    """torch's group for gradients and weights: NCCL's where every process has a GPU of its own."""
    blocks: Any = None
    """torch's group for the weights of the model's blocks, of which each process holds a part; None where each holds all."""

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def shards(self) -> bool:
        """Whether the processes need each other within a step, for the weights of the model's blocks."""
        return self.blocks is not None

    @property
    def way(self) -> str:
        """What carries numbers between them, such as ``nccl``."""
        return str(dist.get_backend(self.numbers)) if self.size > 1 else ""

    def round(self, step: int, pause: int, width: int) -> range:
        """The steps, from ``step``, that the processes do at once, one each: not beyond ``pause`` nor the update's last batch."""
        return range(step, min(step + self.size, pause, step - step % width + width))

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """What of the items is this process's part of the work."""
        return items[self.rank :: self.size]

    def told(self, value: T) -> T:
        """What the first process has here, in every process. AtelierError where one of them is gone."""
        if self.size == 1:
            return value
        box = [value if self.leads else None]
        with _Gone():
            dist.broadcast_object_list(box, group=self.words, device=torch.device("cpu"))
        found: T = box[0]  # type: ignore[assignment]
        return found

    def agreed(self, wanted: bool) -> bool:
        """The first process's answer, on every step: no device is waited for."""
        if self.size == 1:
            return wanted
        answer = torch.tensor([int(wanted)])
        with _Gone():
            dist.broadcast(answer, 0, group=self.words)
        return bool(answer.item())

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            with _Gone():
                dist.all_reduce(torch.zeros(1), group=self.words)

    def most(self, counts: Sequence[int]) -> tuple[int, ...]:
        """The largest of each of these numbers that any process has."""
        found = torch.tensor(list(counts))
        if self.size > 1:
            with _Gone():
                dist.all_reduce(found, dist.ReduceOp.MAX, group=self.words)
        return tuple(found.tolist())

    def check_alike(self, number: int) -> None:
        """AtelierError where the processes have other numbers here."""
        try:
            largest, smallest = self.most([number, -number])
        except AtelierError:
            self._let_go()
            raise
        if largest != -smallest:
            self._let_go()
            raise AtelierError(
                "--shard: the processes have asked for different blocks of the model in one step, so what was computed is wrong, "
                "and was not learnt from. Train this model or these pictures without --shard."
            )

    def equalise(self, weights: Tensor) -> None:
        """The weights become those of the first process, once all are here: one may have drawn samples for an hour, and a GPU's
        own way of sending them gives up after ``MEETING``."""
        self.wait()
        if self.size > 1:
            self._carry(weights, lambda tensor: dist.broadcast(tensor, 0, group=self.numbers))

    @contextmanager
    def together(
        self, cancelled: Callable[[BaseException], bool], check: Callable[[], None], needing: bool = False
    ) -> Iterator[None]:
        """A process's part of a round, after which all know whether all have done theirs: so all leave the training at one step,
        and none waits on its device for a gradient that never comes.

        ``cancelled`` tells a stop from an error, ``check`` raises where this process is to stop as well. ``needing``: whether
        they need each other before their parts are done, for what each has of the model. Then nobody could hear what a process
        says that has left early, and the others notice when it ends.
        """
        try:
            yield
        except BaseException as error:
            if needing:
                self._let_go()
                if _is_of_others(error):
                    raise AtelierError(GONE) from error
                raise
            with suppress(AtelierError):
                self._said(IS_STOPPED if cancelled(error) else HAS_FAILED)
            raise
        try:
            said = self._said(GOES_ON)
        except AtelierError:
            if needing:  # its device may wait for another's part of the weights
                self._let_go()
            raise
        if said == IS_STOPPED:
            deadline = time.monotonic() + SECONDS_TO_STOP
            while time.monotonic() < deadline:
                check()
                time.sleep(0.1)
        if said != GOES_ON:
            raise AtelierError(GONE)

    def added_up(self, message: Tensor, losses: int, loss: Tensor | None, complete: bool) -> list[Tensor]:
        """The losses, ``losses`` of them, of a round of which this process's is ``loss``.

        ``message``: the gradient, and behind it a place for each process's loss. Where the update is ``complete`` the gradient
        becomes the sum of all processes' gradients, in the same call.
        """
        if self.size == 1:
            assert loss is not None
            return [loss]
        places = message[-self.size :]
        places.zero_()
        if loss is not None:
            places[self.rank] = loss
        self._carry(message if complete else places, lambda tensor: dist.all_reduce(tensor, group=self.numbers))
        return list(places[:losses].clone().unbind())

    def _let_go(self) -> None:
        """What the device still waits for from others does not come any more."""
        if self.way == "nccl":
            with suppress(Exception):
                self.blocks._get_backend(torch.device("cuda")).abort()

    def _said(self, mine: int) -> int:
        """The worst that any process has to say."""
        if self.size == 1:
            return GOES_ON
        worst = torch.tensor([mine])
        with _Gone():
            dist.all_reduce(worst, dist.ReduceOp.MAX, group=self.words)
        return int(worst.item())

    @staticmethod
    def _carry(tensor: Tensor, act: Callable[[Tensor], object]) -> None:
        there = tensor if tensor.device.type in CARRIED else tensor.cpu()
        with _Gone():
            act(there)
        if there is not tensor:
            tensor.copy_(there)


GONE = (
    "Another process of this training has ended; its log says why. What was learnt is kept: start the same command again, and it "
    "goes on from there."
)


class _Gone:
    """What torch says where another process is gone becomes a sentence."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise AtelierError(GONE) from error


def _is_of_others(error: BaseException) -> bool:
    """Whether it is what torch says where another process is gone."""
    if is_out_of_memory(error):  # of its own, in what NCCL asks for
        return False
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


ALONE = Team()


@cache
def team() -> Team:
    """The processes that were started with this one to train together; ``ALONE`` where none were."""
    if os.environ.get(MARK) != "1" or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return ALONE
    if not (dist.is_available() and dist.is_gloo_available()):
        raise AtelierError("This torch was built without torch.distributed and gloo, so several processes cannot train together.")
    if not dist.is_initialized():
        try:
            dist.init_process_group("gloo", timeout=MEETING)
        except RuntimeError as error:
            raise AtelierError(f"The processes did not find each other within {MEETING}: {error}") from error
    shards = os.environ.get(SHARD) == "1"
    places: list[tuple[str, str, bool, bool]] = [("", "", False, False)] * dist.get_world_size()
    dist.all_gather_object(places, (socket.gethostname(), _gpu(), dist.is_nccl_available(), shards))
    if len({place[3] for place in places}) > 1:
        raise AtelierError(
            "--shard: some of the processes were started with it and some without. Give it on every machine, or on none."
        )
    apart = len({place[:2] for place in places}) == len(places) and all(gpu and nccl for _, gpu, nccl, _ in places)
    words = dist.new_group(backend="gloo", timeout=PATIENCE)
    numbers = dist.new_group(backend="nccl", timeout=MEETING) if apart else words
    blocks = None
    if shards:  # what goes wrong there shall leave the words alone
        blocks = numbers if apart else dist.new_group(backend="gloo", timeout=MEETING)
    return Team(dist.get_rank(), dist.get_world_size(), words, numbers, blocks)


def _gpu() -> str:
    """What tells this process's GPU from others; empty without one."""
    return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid) if torch.cuda.is_available() else ""
