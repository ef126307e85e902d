"""LoRAs of several files beside one network, each picture of a batch with a file and a strength of its own.

For every layer the files' factors lie in one stack, (files, rank, in) and (files, out, rank), with zeros where a file has a lower
rank or nothing at all. A pass reads two tensors of fixed places, which tell for every row its file and its strength; so what
runs on the device in a pass is always the same, and can be recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import counted
from ..network.lora import LoRALayer, shares

Branches = Mapping[str, LoRALayer]
"""A file's plain LoRA layers by the layers that they stand beside, on the CPU."""


class UnusedLayers(RuntimeError):
    """Layers that a file changes were passed by, so what was drawn is not what the file says."""

    def __init__(self, message: str, files: Sequence[Branches] = ()):
        super().__init__(message)
        self.files = files


@dataclass(frozen=True, eq=False)
class Beside:
    """What stands beside the network for one picture; None: nothing."""

    file: Branches | None
    strength: float


@dataclass
class _Stack:
    """All files' factors of one layer in one number format, the scales in them."""

    down: Tensor
    """(files, rank, in), or (files, rank, in, kh, kw) of a convolution."""
    up: Tensor
    """(files, out, rank)."""
    conv: Mapping[str, Any] | None

    def write(self, seat: int, branch: LoRALayer | None) -> None:
        self.down[seat].zero_()
        self.up[seat].zero_()
        if branch is not None:
            of_down, of_up = shares(branch.scale)
            self.down[seat, : branch.rank].copy_(branch.down.detach() * of_down)
            self.up[seat, :, : branch.rank].copy_(branch.up.detach().flatten(1) * of_up)


@dataclass
class _Place:
    """For every row of a pass its file and its strength, where a recorded pass looks for them."""

    seat: Tensor
    """(rows,), or (1,) where all rows have the same."""
    strength: Tensor
    """Of the same shape, float32."""
    holds: tuple[tuple[int, float], ...] = ()

    def fill(self, rows: tuple[tuple[int, float], ...]) -> None:
        if rows != self.holds:
            self.seat.copy_(torch.tensor([seat for seat, _ in rows]))
            self.strength.copy_(torch.tensor([strength for _, strength in rows]))
            self.holds = rows


class SideBySide:
    """Plain LoRA files beside the ``layers`` of one network that works on ``device``."""

    def __init__(self, layers: Mapping[str, nn.Module], device: torch.device):
        self.layers, self.device = layers, device
        self._seats: list[Branches | None] = []
        self._stacks: dict[tuple[str, torch.dtype], _Stack] = {}
        self._places: dict[int, _Place] = {}
        self._called: set[str] = set()
        self._hooked: frozenset[str] = frozenset()
        self._version = 0
        self._now: _Place | None = None

    @property
    def state(self) -> tuple[Hashable, Hashable]:
        """What a recorded pass depends on beside the contents of fixed places: (what is the same for all passes until stacks
        are made anew, what tells passes apart)."""
        return (self._version, self._hooked), None if self._now is None else len(self._now.seat)

    @property
    def bytes(self) -> int:
        """What the stacks take on the device."""
        return sum(stack.down.nbytes + stack.up.nbytes for stack in self._stacks.values())

    def numbers(self, files: Sequence[Branches], seats: int) -> int:
        """How many numbers the stacks would hold with these ``files``, and so many ``seats`` at least."""
        ranks: dict[str, int] = {}
        sizes: dict[str, int] = {}
        for name, branch in (pair for file in files for pair in file.items()):
            ranks[name] = max(ranks.get(name, 0), branch.rank)
            sizes[name] = branch.down[0].numel() + len(branch.up)
        return max(len(files), seats, len(self._seats), 1) * sum(rank * sizes[name] for name, rank in ranks.items())

    def release(self) -> None:
        """Lets go of all files."""
        self._seats, self._now = [], None
        self._drop(list(self._stacks))

    @contextmanager
    def attached(self, pictures: Sequence[Beside], seats: int = 0) -> Iterator[Rows]:
        """The network with each picture's file beside it; ``seats`` tells of how many files there will be pictures at most.

        UnusedLayers when the block ended well, yet some layer of a file was never asked.
        """
        files = list({id(one.file): one.file for one in pictures if one.file is not None}.values())
        self._seat(files, seats)
        names = {name for file in files for name in file}
        self._hooked = frozenset(name for file in self._seats if file is not None for name in file)
        with ExitStack() as stack:
            stack.callback(setattr, self, "_now", None)
            for name in self._hooked:
                handle = self.layers[name].register_forward_hook(self._hook(name))
                stack.callback(handle.remove)
            yield Rows(self, [(self._seat_of(one.file), one.strength if one.file is not None else 0.0) for one in pictures])
        # What was called once is called in every pass; in one that is replayed no layer is.
        if left := names - self._called:
            passed = [file for file in files if any(name in left for name in file)]
            raise UnusedLayers(
                f"{counted(len(left), 'layer')} {'was' if len(left) == 1 else 'were'} passed by, such as {min(left)}", passed
            )

    def choose(self, rows: tuple[tuple[int, float], ...]) -> None:
        """The next pass of the network has these (seat, strength) in its rows."""
        rows = rows[:1] if len(set(rows)) == 1 else rows
        if len(rows) not in self._places:
            shape, device = (len(rows),), self.device
            place = _Place(torch.zeros(shape, dtype=torch.long, device=device), torch.zeros(shape, device=device))
            self._places[len(rows)] = place
        self._now = self._places[len(rows)]
        self._now.fill(rows)

    def _seat_of(self, file: Branches | None) -> int:
        return next((i for i, one in enumerate(self._seats) if one is file), 0) if file is not None else 0

    def _seat(self, files: Sequence[Branches], seats: int) -> None:
        """Every file in a seat; those that sit already stay where they are."""
        if len(self._seats) < max(len(files), seats, 1):
            self._drop(list(self._stacks))
            self._seats = [None] * max(len(files), seats, 1)
        new = [file for file in files if not any(one is file for one in self._seats)]
        free = [i for i, one in enumerate(self._seats) if not any(one is file for file in files)]
        for seat, file in zip(free, new, strict=False):
            self._seats[seat] = file
            too_small = [key for key, stack in self._stacks.items() if key[0] in file and file[key[0]].rank > stack.down.shape[1]]
            self._drop(too_small)
            for (name, _), stack in self._stacks.items():
                stack.write(seat, file.get(name))

    def _drop(self, keys: Sequence[tuple[str, torch.dtype]]) -> None:
        for key in keys:
            del self._stacks[key]
        self._version += bool(keys)

    def _stack(self, name: str, x: Tensor) -> _Stack:
        """Made at the first pass, when the number format of the layer's input is known."""
        key = name, x.dtype
        if key not in self._stacks:
            there = [file[name] for file in self._seats if file is not None and name in file]
            outputs, *inputs = there[0].shape
            rank = max(branch.rank for branch in there)
            shapes = (len(self._seats), rank, *inputs), (len(self._seats), outputs, rank)
            down, up = (torch.empty(shape, dtype=x.dtype, device=x.device) for shape in shapes)
            stack = _Stack(down, up, there[0].conv)
            for seat, file in enumerate(self._seats):
                stack.write(seat, None if file is None else file.get(name))
            self._stacks[key] = stack
            self._version += 1
        return self._stacks[key]

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        def hook(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            self._called.add(name)
            if self._now is None:
                raise RuntimeError("nobody has told which pictures this pass is for")
            stack = self._stack(name, inputs[0])
            return (_beside_linear if stack.conv is None else _beside_conv)(stack, self._now, inputs[0], output)

        return hook


class Rows:
    """The pictures of a batch, as the network's passes ask for them."""

    def __init__(self, owner: SideBySide, pictures: Sequence[tuple[int, float]]):
        self._owner, self._pictures = owner, list(pictures)
        self.choose(range(len(pictures)))

    def choose(self, rows: Sequence[int]) -> None:
        """The next calls of the model are for these pictures."""
        self._rows = list(rows)

    def exactly(self, rows: Sequence[int]) -> None:
        """The next passes have these pictures in their rows."""
        self._owner.choose(tuple(self._pictures[row] for row in rows))

    def spread(self, batch: int) -> None:
        """The host puts the chosen pictures one, two or more times into a pass of ``batch`` rows, each time all in order."""
        times, rest = divmod(batch, len(self._rows))
        if rest or not times:
            raise RuntimeError(f"{len(self._rows)} pictures do not fit a pass of {batch}")
        self._owner.choose(tuple(self._pictures[row] for row in self._rows) * times)


def _beside_linear(stack: _Stack, place: _Place, x: Tensor, output: Tensor) -> Tensor | None:
    """Adds to ``output`` where that can be done in place, else returns the sum."""
    down, up, strength = _chosen(stack, place)
    rows = len(strength)
    if len(down) == 1:  # one file for all
        narrow = _weighed(F.linear(x, down[0]), strength).reshape(1, -1, down.shape[1])
    else:
        narrow = _weighed(torch.bmm(_in_rows(x, rows).reshape(rows, -1, x.shape[-1]), down.mT), strength)
    return _add(output, (len(narrow), -1, output.shape[-1]), narrow, up.mT)


def _beside_conv(stack: _Stack, place: _Place, x: Tensor, output: Tensor) -> Tensor | None:
    """The same for a convolution; several files' are one with a group for each picture."""
    down, up, strength = _chosen(stack, place)
    assert stack.conv is not None
    pictures = x if x.ndim == 4 else x.unsqueeze(0)
    if len(down) == 1:
        narrow = F.conv2d(pictures, down[0], **stack.conv)
        up = up.expand(len(narrow), -1, -1)
    else:
        count = len(_in_rows(pictures, len(strength))) // len(strength)
        down, up = (part.repeat_interleave(count, 0) for part in (down, up))
        grouped = F.conv2d(pictures.reshape(1, -1, *pictures.shape[2:]), down.flatten(0, 1), groups=len(down), **stack.conv)
        narrow = grouped.view(len(down), -1, *grouped.shape[2:])
    narrow = _weighed(narrow, strength).flatten(2)
    return _add(output, (len(narrow), up.shape[1], -1), up, narrow)


def _chosen(stack: _Stack, place: _Place) -> tuple[Tensor, Tensor, Tensor]:
    """(down, up, strength) of the rows; one pair of factors for all where there is one file, or all rows have the same."""
    strength = place.strength.to(stack.up.device)
    if len(stack.up) == 1:
        return stack.down, stack.up, strength
    seat = place.seat.to(stack.up.device)
    return stack.down.index_select(0, seat), stack.up.index_select(0, seat), strength


def _in_rows(x: Tensor, rows: int) -> Tensor:
    """``x``, whose first dimension may hold several rows a picture (tokens, chunks, windows), each picture's in a row."""
    if len(x) % rows:
        raise ValueError(f"{rows} pictures do not fit a layer with {len(x)} rows")
    return x


def _weighed(narrow: Tensor, strength: Tensor) -> Tensor:
    if len(strength) > 1:
        strength = strength.repeat_interleave(len(_in_rows(narrow, len(strength))) // len(strength))
    return narrow.mul_(strength.view(-1, *[1] * (narrow.ndim - 1)))


def _add(output: Tensor, shape: tuple[int, ...], left: Tensor, right: Tensor) -> Tensor | None:
    """``output`` plus a product for each row; in place where it may be, without a copy of it."""
    if output.is_contiguous() and output.dtype == left.dtype and not torch.is_grad_enabled():
        output.view(shape).baddbmm_(left, right)
        return None
    return output + torch.bmm(left, right).view(output.shape).to(output.dtype)
