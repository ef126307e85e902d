"""Batched text encoding: several captions in one pass of a text encoder.

The host encodes a prompt at a time: on a GPU that leaves most of it idle (or reads all weights from the main memory once a
caption), on a CPU the weights are cast anew for each. Its encoders take lists of token rows though, and give every row what it
would have alone. So when the host asks an encoder for the rows of one caption, the rows of the captions that come next go through
with them, and are there when their turn comes. Everything else (joining encoders, weights, long prompts) remains the host's work.

The same words may be read in several versions (with a LoRA at several strengths, say): whoever lays them beside the encoder's
layers is told before each pass in which version every row is to be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from comfy import sd1_clip
from torch import Tensor

from ..errors import is_out_of_memory

TOKENS_AT_ONCE, TOKENS_ON_CPU = 4096, 320
FEWEST, MOST = 16, 64
"""Captions that are known to the encoders at a time; so many answers wait in memory."""
Row = tuple[int, ...]
Read = tuple[int, Row]
"""A row in a version."""
Answer = tuple[Tensor, Tensor | None, dict[str, Tensor]]
"""What an encoder gives for rows: hidden states (rows, tokens, width), pooled (rows, width), and whatever else it has."""


Versions = Callable[[Sequence[int]], None]
"""Told before a pass the version of each of its rows."""


def one_version(_versions: Sequence[int]) -> None:
    """Nothing tells versions apart."""


class BatchedEncoders:
    """The encoders in ``clip``, knowing which ``tokens`` (each as ``clip.tokenize`` gives it) they will be asked for in turn.

    ``versions`` says in which version each is read, if not all in one, and ``tell`` is told them.
    """

    def __init__(self, clip: Any, tokens: Sequence[Any], versions: Sequence[int] | None = None, tell: Versions = one_version):
        self._versions = [0] * len(tokens) if versions is None else versions
        self._tell = tell
        coming = [(version, _rows(one)) for version, one in zip(self._versions, tokens, strict=True)]
        encoders = (m for m in clip.cond_stage_model.modules() if isinstance(m, sd1_clip.ClipTokenWeightEncoder))
        self._aheads = [_Ahead(encoder, coming, clip.patcher.load_device, tell) for encoder in encoders]

    @contextmanager
    def in_place(self, number: int) -> Iterator[None]:
        """While this lasts, an encoder that is asked for caption ``number`` reads the following ones in the same pass."""
        self._tell([self._versions[number]])
        with ExitStack() as stack:
            for ahead in self._aheads:
                stack.enter_context(ahead.in_place(self._versions[number]))
            yield


def captions_of_a_pass(tokens: Any, device: torch.device) -> int:
    """How many captions as long as ``tokens`` the encoders on ``device`` are told of at a time: as many as fill a GPU's pass."""
    longest = max((sum(map(len, rows)) for rows in _rows(tokens).values()), default=0)
    return FEWEST if device.type == "cpu" or not longest else min(MOST, max(FEWEST, TOKENS_AT_ONCE // longest))


class _Ahead:
    """Stands before an encoder's ``encode``."""

    def __init__(self, encoder: Any, coming: Sequence[tuple[int, dict[str, list[Row]]]], device: torch.device, tell: Versions):
        self._encoder, self._coming, self._tell = encoder, coming, tell
        self._version = 0
        self._tokens = TOKENS_ON_CPU if device.type == "cpu" else TOKENS_AT_ONCE
        """As many go through at once; 0: every caption alone."""
        self._encode = encoder.encode
        self._found: dict[Read, Answer] = {}

    @contextmanager
    def in_place(self, version: int) -> Iterator[None]:
        self._version = version
        own = vars(self._encoder).get("encode")
        self._encoder.encode = self
        try:
            yield
        finally:
            if own is None:
                del self._encoder.encode
            else:
                self._encoder.encode = own

    def __call__(self, rows: list[list[Any]]) -> Any:
        if not self._tokens or not rows or not all(_plain(row) for row in rows):
            return self._encode(rows)
        wanted = [(self._version, tuple(row)) for row in rows]
        missing = [one for one in dict.fromkeys(wanted) if one not in self._found]
        if missing:
            lot = self._lot(missing)
            parts = self._read(lot)
            if parts is None:
                self._tokens = 0
                return self._encode(rows)
            self._found |= zip(lot, parts, strict=True)
        return _joined([self._found[one] for one in wanted])

    def _read(self, lot: list[Read]) -> list[Answer] | None:
        """The answer to each row; None where there is no memory for them all, or where the encoder's answer cannot be parted.

        What is tried next waits until this has returned: an error that is still held holds the memory too.
        """
        try:
            self._tell([version for version, _ in lot])
            return _parts(self._encode([list(row) for _, row in lot]), len(lot))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return None
        finally:
            self._tell([self._version])

    def _lot(self, missing: list[Read]) -> list[Read]:
        """``missing`` and what comes of the same length, as many as go through at once."""
        first = missing[0][1]
        kinds = {kind for _, one in self._coming for kind, rows in one.items() if first in rows}
        if len(kinds) != 1:  # no telling what this encoder will be asked for
            return missing
        (kind,) = kinds
        after = ((version, row) for version, one in self._coming for row in one.get(kind, []) if len(row) == len(first))
        most = self._tokens // len(first)
        ahead = [one for one in dict.fromkeys(after) if one not in missing and one not in self._found]
        return [*missing, *ahead[: max(0, most - len(missing))]]


def _rows(tokens: Any) -> dict[str, list[Row]]:
    """The rows of plain tokens by the name of the encoder that they are for; of what the host tokenizes otherwise, none."""
    if not isinstance(tokens, dict):
        return {}
    named = {kind: [[part[0] for part in section] for section in sections] for kind, sections in tokens.items()}
    return {kind: [tuple(row) for row in rows if row and _plain(row)] for kind, rows in named.items()}


def _plain(row: Sequence[Any]) -> bool:
    """Whether a row is tokens only, no learned embedding or picture."""
    return all(isinstance(token, int) for token in row)


def _parts(answer: Any, count: int) -> list[Answer] | None:
    """The answer to each of ``count`` rows, or None where it cannot be parted."""
    states, pooled, extra = answer[0], answer[1], dict(answer[2]) if len(answer) > 2 else {}
    tensors = [states, *([] if pooled is None else [pooled]), *extra.values()]
    if not all(isinstance(tensor, Tensor) and tensor.ndim and len(tensor) == count for tensor in tensors):
        return None
    one = [slice(i, i + 1) for i in range(count)]
    return [(states[i], None if pooled is None else pooled[i], {name: t[i] for name, t in extra.items()}) for i in one]


def _joined(parts: list[Answer]) -> tuple[Any, ...]:
    """What the encoder would have answered to all of them; always a copy, since the host weighs tokens in place."""
    states = torch.cat([states for states, _, _ in parts])
    pooled = [pooled for _, pooled, _ in parts if pooled is not None]
    extra = {name: torch.cat([more[name] for _, _, more in parts]) for name in parts[0][2]}
    return (states, torch.cat(pooled) if pooled else None, *([extra] if extra else []))
