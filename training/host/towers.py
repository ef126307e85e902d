"""Towers of a text encoder: the encoders in one CLIP (CLIP-L, T5, a language model), of which some may learn and others not.

What a tower that doesn't learn says of its tokens is always the same. So it is asked once, and what it said is kept; the tower
may stay in main memory meanwhile. All else that the host makes of a text (which tower reads which tokens, how their answers
become one) remains the host's work in every step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import torch
from comfy import sd1_clip
from torch import Tensor, nn

from ..errors import AtelierError, NotFinite
from ..performance.lent import visiting
from ..protocols import Answers
from ..tensors.finite import first_lost
from ..tensors.method_patch import patched

STATES, POOLED, EXTRA = "states", "pooled", "extra."
"""Names of an answer's parts: hidden states, pooled, and whatever else the tower has."""
KEYS = "keys"
"""What stands in the mark of a text: the names of all answers of which it is made, as JSON."""


def towers_of(clip: Any) -> dict[str, nn.Module]:
    """The encoders in a CLIP, by their dotted names."""
    every = clip.cond_stage_model.named_modules()
    return {name: module for name, module in every if isinstance(module, sd1_clip.ClipTokenWeightEncoder)}


def frozen_towers(clip: Any, learning: Collection[str]) -> dict[str, nn.Module]:
    """Those of several towers that have none of the layers with the names ``learning``; none where there is but one."""
    towers = towers_of(clip)
    found = {name: tower for name, tower in towers.items() if not any(layer.startswith(f"{name}.") for layer in learning)}
    return found if len(found) < len(towers) else {}


class FrozenTowers:
    """Towers that don't learn, and what they have said."""

    def __init__(self, clip: Any, learning: Collection[str], answers: Answers) -> None:
        self.towers = frozen_towers(clip, learning)
        self._names = {tower: name for name, tower in self.towers.items()}
        self._answers = answers
        self._last: list[str] = []
        self._wanted: dict[str, None] = {}
        self._awake: set[str] = set()
        self._begun = False

    def __bool__(self) -> bool:
        """Whether any of them can rest."""
        return bool(self.at_rest)

    @property
    def at_rest(self) -> dict[str, nn.Module]:
        """Those whose weights need not be at hand, since everything is known that they have said."""
        return {name: tower for name, tower in self.towers.items() if name not in self._awake}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While it lasts a frozen tower reads only what it has not read before."""
        self._last = []
        with patched(self.towers.values(), "encode_token_weights", self._asked):
            yield

    def known(self, text: str) -> bool:
        """Whether ``note`` was told of this text, with these towers, and all that they said of it is still there."""
        mark = self._answers.get(self._mark(text)) or {}
        if KEYS not in mark:  # none, or one of an earlier version, which does not say what it stands for
            return False
        keys = json.loads(bytes(mark[KEYS].tolist()))
        if not all(map(self._answers.has, keys)):
            return False
        self._wanted |= dict.fromkeys(keys)
        return True

    def note(self, text: str) -> None:
        """All of them have read what they read of this text, which was the last."""
        self.took()
        if not self._awake:
            said = json.dumps(sorted(set(self._last))).encode()
            self._answers.put(self._mark(text), {KEYS: torch.tensor(list(said), dtype=torch.uint8)})

    def took(self) -> None:
        """What was read last will be asked for again."""
        self._wanted |= dict.fromkeys(self._last)

    def settle(self) -> tuple[str, ...]:
        """Once everything has been read: the towers that cannot rest, since what they said is not all kept.

        From now on a disk that takes nothing more stops nothing.
        """
        self._begun = True
        self._awake |= {key.partition(":")[0] for key in self._wanted if not self._answers.has(key)}
        return tuple(sorted(self._awake))

    def _mark(self, text: str) -> str:
        return hashlib.sha256(json.dumps([sorted(self.towers), text]).encode()).hexdigest()

    def modules(self) -> set[nn.Module]:
        """Of those that rest."""
        return {module for tower in self.at_rest.values() for module in tower.modules()}

    @contextmanager
    def away(self, device: torch.device) -> Iterator[None]:
        """While it lasts, the weights of those that rest come to ``device`` for what they have not read before, and go again."""
        with visiting(list(self.at_rest.values()), device):
            yield

    def _asked(self, tower: nn.Module, read: Callable[..., Any]) -> Callable[..., Any]:
        def encode_token_weights(pairs: Any, *more: Any, **named: Any) -> Any:
            found = None if more or named else key_of(pairs)
            if found is None:
                self._cannot_rest(tower)
                return read(pairs, *more, **named)
            key = f"{self._names[tower]}:{found}"
            known = self._answers.get(key)
            if known is not None:
                self._last.append(key)
                return told(known)
            with torch.no_grad():
                answer = read(pairs)
            parts = parts_of(answer)
            if parts is None:
                self._cannot_rest(tower)
                return answer
            self._check(tower, parts)
            self._last.append(key)
            self._keep(key, parts)
            return answer

        return encode_token_weights

    def _cannot_rest(self, tower: nn.Module) -> None:
        """What it is told, or says, cannot be kept. Where its weights are while the model is held is settled by then."""
        if not self._begun:
            self._awake.add(self._names[tower])

    def _keep(self, key: str, parts: Mapping[str, Tensor]) -> None:
        try:
            self._answers.put(key, parts)
        except NotFinite:
            raise
        except AtelierError:
            if not self._begun:  # in a step it is held in memory, or read again
                raise

    def _check(self, tower: nn.Module, parts: Mapping[str, Tensor]) -> None:
        if first_lost(parts) is not None:
            raise NotFinite(
                f"clip: its part {self._names[tower]} gives NaN or infinite numbers for a text, so nothing of that was kept. "
                "Start ComfyUI with --fp32-text-enc or --bf16-text-enc, or connect another CLIP."
            )


def key_of(pairs: Any) -> str | None:
    """Equal for equal tokens with equal weights; None for what it cannot tell apart."""
    digest = hashlib.sha256()
    try:
        digest.update(json.dumps(pairs, default=lambda value: _named(value, digest)).encode())
    except TypeError:
        return None
    return digest.hexdigest()


def _named(value: Any, digest: Any) -> Any:
    """A learned embedding or a picture among the tokens."""
    if not isinstance(value, Tensor):
        raise TypeError(type(value).__name__)
    still = value.detach().to("cpu").contiguous()
    digest.update(still.reshape(-1).view(torch.uint8).numpy().tobytes())
    return [str(still.dtype), list(still.shape)]


def parts_of(answer: Any) -> dict[str, Tensor] | None:
    """A tower's answer as tensors that autograd takes; None where there is anything else in it."""
    states, pooled, extra = answer[0], answer[1], dict(answer[2]) if len(answer) > 2 else {}
    found = {STATES: states, **({POOLED: pooled} if pooled is not None else {})}
    found |= {f"{EXTRA}{name}": value for name, value in extra.items()}
    if len(answer) > 3 or not all(isinstance(value, Tensor) for value in found.values()):
        return None
    with torch.inference_mode(False), torch.no_grad():
        kept = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in found.items()}
        return kept | ({EXTRA: torch.zeros(1)} if len(answer) > 2 else {})


def told(parts: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """The answer, anew: the host may change what it is given."""
    device = comfy.model_management.intermediate_device()
    fresh = {name: value.to(device, copy=True) for name, value in parts.items()}
    extra = {name.removeprefix(EXTRA): value for name, value in fresh.items() if name.startswith(EXTRA) and name != EXTRA}
    return (fresh[STATES], fresh.get(POOLED), *([extra] if EXTRA in fresh else []))


def outside(modules: Iterable[nn.Module], towers: FrozenTowers) -> list[nn.Module]:
    """The modules that are no part of a tower at rest."""
    inside = towers.modules()
    return [module for module in modules if module not in inside]


def weights_outside(model: nn.Module, towers: FrozenTowers) -> list[Tensor]:
    """Parameters and buffers that are no part of a tower at rest."""
    modules = outside(model.modules(), towers)
    every = (value for module in modules for value in (*module._parameters.values(), *module._buffers.values()))
    return list({id(value): value for value in every if value is not None}.values())
