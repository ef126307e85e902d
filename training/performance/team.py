"""Processes that train one LoRA together (data parallelism): each takes its share of an update's batches, gradients are added up.

Of so many processes each update is that of one process with as many times the ``accumulate``: which batch is whose follows from
the step alone. torch.distributed carries what they tell each other: once an update the gradient of the adapter, which is all that
is trained, and a few bytes a step. The first process leads: it alone writes, draws and decides.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import AtelierError, chain_of, is_out_of_memory
from .lookout import Lookout

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)
MARK = "LORA_ATELIER_TEAM"
"""Set in the environment of processes that were started to train together; other packs may have process groups of their own."""
SHARD = "LORA_ATELIER_SHARD"
"""Set beside it where each of them shall hold a part of the model's blocks only."""
MEETING = timedelta(minutes=10)
"""So long they wait for each other at first, and for what all of them have said that they are about to do."""
PATIENCE = timedelta(days=7)
"""So long for the first one, while it draws samples or encodes. A process that is gone is noticed at once all the same."""
SILENCE = 120
"""Seconds without a sign of life from another machine after which a connection counts as lost."""
PACK = Path(__file__).resolve().parents[1]
SECONDS_TO_STOP = 5.0
"""A signal that stops one process reaches the others within these."""
CARRIED = ("cpu", "cuda")
"""Devices whose tensors are sent as they are; those of others by way of main memory."""
GOES_ON, IS_STOPPED, HAS_FAILED = range(3)


@dataclass(frozen=True)
class Failure:
    """Why a process has failed."""

    why: str = ""
    known: bool = True
    """Whether it is a sentence for the person; else a fault."""


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
    lookout: Lookout | None = None
    """Where devices of the processes wait for each other by NCCL."""

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
            self._leave()
            raise
        if largest != -smallest:
            self._leave()
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
        self,
        cancelled: Callable[[BaseException], bool],
        check: Callable[[], None],
        needing: bool = False,
        learns: bool = True,
    ) -> Iterator[None]:
        """A process's part of what all do, after which all know whether all have done theirs: so all leave the training at one
        step, and none waits for what never comes.

        ``cancelled`` tells a stop from an error, ``check`` raises where this process is to stop as well. ``needing``: whether
        they need each other before their parts are done, for what each has of the model. Then nobody could hear what a process
        says that has left early, and the others notice when it ends. ``learns``: whether there is something to be kept.
        """
        if self.size == 1:
            yield
            return
        try:
            yield
        except BaseException as error:
            if needing:
                self._leave()
                if _is_of_others(error):
                    raise AtelierError(GONE) from error
                raise
            with suppress(AtelierError):
                mine = IS_STOPPED if cancelled(error) else HAS_FAILED
                if self._said(mine) == HAS_FAILED:
                    known = isinstance(error, AtelierError)
                    self._reason(Failure(str(error) if known else f"{type(error).__name__}: {error}", known), mine)
                _agreed_on(error)
            raise
        try:
            said = self._said(GOES_ON)
            reason = self._reason(Failure(), GOES_ON) if said == HAS_FAILED else Failure()
        except AtelierError:
            if needing:  # its device may wait for another's part of the weights
                self._leave()
            raise
        if said == IS_STOPPED:
            deadline = time.monotonic() + SECONDS_TO_STOP
            try:
                while time.monotonic() < deadline:
                    check()
                    time.sleep(0.1)
            except BaseException as error:
                _agreed_on(error)
                raise
        if said != GOES_ON:
            why = reason.why.rstrip(".") or "Another process of this training has been stopped"
            raise _agreed_on(AtelierError(f"{why}.{f' {KEPT}' if learns else ''}"), reason.known)

    def goes_on_after(self, error: BaseException) -> bool:
        """Whether a sweep may go on after this error: all processes have left a training together, and none for a fault of the
        program or of its machine."""
        return self.in_order(error) and all(getattr(one, SURVIVED, True) for one in chain_of(error))

    def in_order(self, error: BaseException) -> bool:
        """Whether all processes have left a training together for this error, and could begin another one."""
        if self.size == 1:
            return True
        heard = self.lookout is not None and self.lookout.heard
        return not heard and any(getattr(one, AGREED, False) for one in chain_of(error))

    def training(self) -> AbstractContextManager[None]:
        """Around a training: the others are listened to, where devices could wait for one that is gone."""
        return nullcontext() if self.lookout is None else self.lookout.on(self.in_order)

    @property
    def intact(self) -> bool:
        """Whether what this process has learnt is whole."""
        return self.lookout is None or self.lookout.intact

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
        if complete and self.lookout is not None:
            self.lookout.summed(message.device)
        return list(places[:losses].clone().unbind())

    def _leave(self) -> None:
        """This process leaves, and what devices of others wait for from it does not come any more."""
        if self.lookout is not None:
            self.lookout.leave(torch.device("cuda"))

    def _reason(self, mine: Failure, state: int) -> Failure:
        """Why the first of those that have failed has; ``mine``: this one's words, if its ``state`` is that."""
        for rank, one in enumerate(self.every(mine if state == HAS_FAILED else None)):
            if one is not None:
                return replace(one, why=f"Process {rank} of this training has failed: {one.why}")
        return Failure()

    def every(self, mine: T) -> list[T]:
        """What each process has here, in the order of the processes."""
        if self.size == 1:
            return [mine]
        found: list[Any] = [None] * self.size
        with _Gone():
            dist.all_gather_object(found, mine, group=self.words)
        return found

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


KEPT = "What was learnt is kept: start the same command again, and it goes on from there."


class Turns:
    """Which of a workflow's trainings begins: where there are several, the first process says it, and the others wait for it.

    Those that follow stay until the first one is through, with its samples and grid as well: a launcher ends all processes soon
    after one has ended.
    """

    def __init__(self) -> None:
        self._several, self._said, self._begun = False, list[str](), False
        self._apart = self._through = False
        """Whether this process has left a training for which the others were not told, and whether the first one is through."""

    def meet(self, nodes: Sequence[str], why: str = "") -> None:
        """All processes know which ``nodes`` each would train, or ``why`` it cannot. AtelierError where they differ."""
        every = team().every((tuple(nodes), why))
        refused = [f"Process {rank} of this training has failed: {one}" for rank, (_, one) in enumerate(every) if one]
        if refused and not why:
            raise AtelierError(refused[0])
        if not refused and len({found for found, _ in every}) > 1:
            told = " and ".join(sorted({", ".join(found) or "none" for found, _ in every}))
            raise AtelierError(f"The processes of this training would train different nodes ({told}). {SAME_FILE}")
        self._several = len(nodes) > 1

    def next(self) -> str:
        """In a process that follows: the node that trains next; empty where the first process is through."""
        node = team().told("")
        self._said, self._begun, self._through = [node], False, not node
        return node

    def begin(self, node: str, cancelled: Callable[[BaseException], bool], check: Callable[[], None]) -> None:
        """A training of this node begins here, as soon as all processes have come to it; AtelierError where one cannot."""
        if team().size == 1:
            return
        here = node
        if self._several:
            here = self._said.pop() if self._said else team().told(node)
        self._begun = True
        with team().together(cancelled, check, learns=False):
            if here != node:
                raise AtelierError(f"The processes would train different nodes ({here} and {node}). {SAME_FILE}")

    @contextmanager
    def training(self) -> Iterator[None]:
        """Around a training, so that it is known how it was left."""
        try:
            yield
        except BaseException as error:
            self._apart = self._apart or not team().in_order(error)
            raise

    def fail(self, why: str, stopped: bool) -> None:
        """This process has failed, or was ``stopped``. Where no training has begun in it yet, the others are told."""
        if not (self._begun or (self._several and team().leads)):
            self._begun = True
            with suppress(AtelierError), team().together(lambda _: stopped, lambda: None):
                raise AtelierError(why)

    def end(self) -> None:
        """The first process is through, and says so; the others wait for it. One that has left apart waits for nobody: the
        others notice that its connections end.
        """
        if self._apart or self._through:
            return
        with suppress(AtelierError):  # whoever would hear it is gone
            while team().told("") and not team().leads:  # another training, in which this process takes no part any more
                with suppress(AtelierError), team().together(lambda _: False, lambda: None):
                    raise AtelierError("it has failed before")


TURNS = Turns()
SAME_FILE = "Give every machine the same file."
GONE = "Another process of this training has ended; its log says why. The same command goes on from what was kept."
AGREED, SURVIVED = "_all_processes_know", "_a_sweep_goes_on"


def _agreed_on(error: E, known: bool = True) -> E:
    """Notes of an error that all processes know of it; ``known``: whether it is none of the program's own."""
    setattr(error, AGREED, True)
    setattr(error, SURVIVED, known)
    return error


class _Gone:
    """What torch says where another process is gone becomes a sentence, and so does what NCCL says of itself."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, RuntimeError) or is_out_of_memory(error):
            return
        said = str(error)
        if "CUDA error" in said or "HIP error" in said:  # its own, which came to light here
            return
        if "NCCL" in said and not any(word in said for word in NCCL_MISSES):
            last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "")
            raise AtelierError(f"NCCL, which carries numbers between the GPUs, has failed: {last[:300]}") from error
        raise AtelierError(GONE) from error


NCCL_MISSES = ("remote", "Remote", "abort", "peer", "timeout", "timed out")
"""Of which one is in what NCCL says when another process is gone."""


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
    places: list[Any] = [None] * dist.get_world_size()
    own = {"host": socket.gethostname(), "gpu": _gpu(), "nccl": dist.is_nccl_available(), "shard": shards, **_versions()}
    dist.all_gather_object(places, own)
    _check_alike(places)
    apart = len({(place["host"], place["gpu"]) for place in places}) == len(places) and all(
        place["gpu"] and place["nccl"] for place in places
    )
    words = dist.new_group(backend="gloo", timeout=PATIENCE)
    numbers = dist.new_group(backend="nccl", timeout=MEETING) if apart else words
    blocks = None
    if shards:  # what goes wrong there shall leave the words alone
        blocks = numbers if apart else dist.new_group(backend="gloo", timeout=MEETING)
    lookout = Lookout(dist.new_group(backend="gloo", timeout=PATIENCE), lambda: _abort(numbers)) if apart else None
    if len({place["host"] for place in places}) > 1:
        keep_alive()
    return Team(dist.get_rank(), dist.get_world_size(), words, numbers, blocks, lookout)


def _versions() -> dict[str, str]:
    """What has to be the same program in all processes: what one asks, the others must answer."""
    found = hashlib.sha1(usedforsecurity=False)
    for path in sorted(PACK.rglob("*.py")):
        found.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return {"pack": found.hexdigest()[:10], "torch": ".".join(str(torch.__version__).split(".")[:2])}


def _check_alike(places: Sequence[Any]) -> None:
    """AtelierError where processes differ in what they have to have in common; ``places``: what each says of itself."""
    told = [place if isinstance(place, dict) else {} for place in places]
    if len({place.get("pack") for place in told}) > 1:
        hosts = ", ".join(sorted({str(place.get("host", "one of them")) for place in told}))
        raise AtelierError(
            f"The processes have different versions of LoRA Atelier ({hosts}). Bring it to the same state on every machine."
        )
    if len(torches := sorted({str(place["torch"]) for place in told})) > 1:
        raise AtelierError(f"The processes have different versions of torch ({', '.join(torches)}). Install the same everywhere.")
    if len({place["shard"] for place in told}) > 1:
        raise AtelierError(
            "--shard: some of the processes were started with it and some without. Give it on every machine, or on none."
        )


def _abort(group: Any) -> None:
    """What the device waits for in NCCL's group does not come any more."""
    backend = group._get_backend(torch.device("cuda"))
    for name in ("abort", "_shutdown"):  # the names that versions of torch have for it
        if hasattr(backend, name):
            with suppress(Exception):
                getattr(backend, name)()
            return


def keep_alive() -> int:
    """The connections of this process to others notice within some minutes that a machine has lost its power or its network
    (Linux, where gloo leaves that to the system, which waits for hours); how many these are."""
    count = 0
    for entry in Path("/proc/self/fd").glob("*") if hasattr(socket, "TCP_USER_TIMEOUT") else ():
        with suppress(OSError, ValueError):
            if not os.readlink(entry).startswith("socket:["):
                continue
            copy = os.dup(int(entry.name))
            try:
                there = socket.socket(fileno=copy)
            except OSError:
                os.close(copy)
                continue
            with there:
                kind = there.family in (socket.AF_INET, socket.AF_INET6) and there.type == socket.SOCK_STREAM
                if kind and there.getpeername():
                    there.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                    there.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE // 2)
                    there.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, SILENCE // 8)
                    there.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
                    there.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * SILENCE)
                    count += 1
    return count


def _gpu() -> str:
    """What tells this process's GPU from others; empty without one."""
    return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid) if torch.cuda.is_available() else ""
