"""Processes that train one LoRA together (data parallelism): each takes its share of an update's batches, gradients are added up.

Of so many processes each update is that of one process with as many times the ``accumulate``: which batch is whose follows from
the step alone. torch.distributed carries what they tell each other: once an update the gradient of the adapter, which is all that
is trained, and a few bytes a step. The first process leads: it alone writes, draws and decides.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import AtelierError

T = TypeVar("T")
MARK = "LORA_ATELIER_TEAM"
"""Set in the environment of processes that were started to train together; other packs may have process groups of their own."""
PATIENCE = timedelta(days=7)
"""So long they wait for each other: while samples are drawn, and pictures encoded. A process that is gone is noticed at once."""
CARRIED = ("cpu", "cuda")
"""Devices whose tensors are sent as they are; those of others by way of main memory."""


@dataclass(frozen=True)
class Team:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

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
        with _gone():
            dist.broadcast_object_list(box, device=torch.device("cpu"))
        found: T = box[0]  # type: ignore[assignment]
        return found

    def agreed(self, wanted: bool) -> bool:
        """The first process's answer, on every step: no device is waited for."""
        if self.size == 1:
            return wanted
        answer = torch.tensor([int(wanted)])
        with _gone():
            dist.broadcast(answer, 0)
        return bool(answer.item())

    def wait(self) -> None:
        """Until all processes are here."""
        self.told(None)
        self._sum(torch.zeros(1))

    def equalise(self, weights: Tensor) -> None:
        """The weights become those of the first process."""
        if self.size > 1:
            self._carry(weights, lambda tensor: dist.broadcast(tensor, 0))

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
        self._sum(message if complete else places)
        return list(places[:losses].clone().unbind())

    def _sum(self, tensor: Tensor) -> None:
        if self.size > 1:
            self._carry(tensor, dist.all_reduce)

    @staticmethod
    def _carry(tensor: Tensor, act: object) -> None:
        there = tensor if tensor.device.type in CARRIED else tensor.cpu()
        with _gone():
            act(there)  # type: ignore[operator]
        if there is not tensor:
            tensor.copy_(there)


class _gone:
    """What torch says where another process is gone becomes a sentence."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RuntimeError):
            raise AtelierError(
                "Another process of this training is gone. What was learnt is kept: start the same command again, and it goes on "
                "from there."
            ) from error


ALONE = Team()


@cache
def team() -> Team:
    """The processes that were started with this one to train together; ``ALONE`` where none were."""
    if os.environ.get(MARK) != "1" or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return ALONE
    if not dist.is_available():
        raise AtelierError("This torch was built without torch.distributed, so several processes cannot train together.")
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    return Team(dist.get_rank(), dist.get_world_size())
