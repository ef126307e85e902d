"""What is read out of another trainer's configuration: widgets' values, and all that has no counterpart here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import AtelierError

LONGEST = 200
"""Characters of a value that is shown as lost."""
PATH = "names a file or folder of another computer; choose it here"
CACHED = "needs no setting here: latents and texts are always cached"
SPEED = "is decided here by itself"
LOGGED = "belongs to that trainer's own log or server"
MODEL = "is read from the model's file here"


@dataclass(frozen=True)
class Lost:
    """A setting without a counterpart."""

    setting: str
    value: str
    why: str


@dataclass(frozen=True)
class Imported:
    """What a file says."""

    origin: str
    """Whose file it is."""
    nodes: Mapping[str, Mapping[str, Any]]
    """Widgets' values by the node's class."""
    lost: tuple[Lost, ...]
    own: bool = False
    """A preset that was saved here."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """The whole recipe of a LoRA that was trained here, as ``config.to_dict`` gives it."""


class Collector:
    """Takes settings out of a file one after the other; what nobody has taken in the end is lost."""

    def __init__(self, origin: str, settings: Mapping[str, Any]) -> None:
        self.origin = origin
        self.rest = dict(settings)
        self.nodes: dict[str, dict[str, Any]] = {}
        self.lost: list[Lost] = []

    def take(self, *names: str) -> Any:
        """The first of these settings that says something; all of them count as taken."""
        values = [self.rest.pop(name, None) for name in names]
        return next((value for value in values if value is not None and value != ""), None)

    def set(self, node: str, widget: str, value: Any) -> None:
        if value is not None:
            self.nodes.setdefault(node, {})[widget] = value

    def lose(self, setting: str, value: Any, why: str) -> None:
        text = str(value)
        self.lost.append(Lost(setting, text if len(text) <= LONGEST else f"{text[:LONGEST]} ...", why))

    def number(self, node: str, widget: str, *names: str, factor: float = 1.0, whole: bool = False) -> float | None:
        """Sets a widget to a number; one that is none is lost."""
        value = self.take(*names)
        number = number_of(value)
        if value is not None and number is None:
            self.lose(names[0], value, "is no number")
        if number is None:
            return None
        number *= factor
        self.set(node, widget, round(number) if whole else number)
        return number

    def switch(self, node: str, widget: str, *names: str) -> bool | None:
        value = self.take(*names)
        if value is None:
            return None
        on = truth(value)
        if on is None:
            self.lose(names[0], value, "is neither true nor false")
            return None
        self.set(node, widget, on)
        return on

    def choice(self, node: str, widget: str, known: Mapping[str, Any], *names: str) -> Any:
        """Sets a widget to what the setting's word is called here; a word that is not known is lost."""
        value = self.take(*names)
        if value is None:
            return None
        found = known.get(str(value).lower())
        if found is None:
            self.lose(names[0], value, f"is not offered here; there are {', '.join(dict.fromkeys(map(str, known.values())))}")
            return None
        self.set(node, widget, found)
        return found

    def sizes(self, setting: str, value: Any) -> None:
        """Sets the pictures' size to the largest of those that are written."""
        if value in (None, ""):
            return
        sizes = sides_of(value)
        if not sizes:
            self.lose(setting, value, "is no size")
            return
        largest = max(sizes, key=square_of)
        side = square_of(largest)
        self.set("LoadDataset", "resolution", side)
        if len(sizes) > 1:
            self.lose(setting, value, f"is one size a Load Dataset node; {side} was taken, chain more of them for the rest")
        elif len(set(largest)) > 1 or side != largest[0]:
            self.lose(setting, value, f"became {side}, the side of a square of about this area")

    def drop(self, why: str, *names: str) -> None:
        """Settings that are not taken over, and why; those that say nothing are not worth a word."""
        for name in names:
            value = self.rest.pop(name, None)
            if value not in (None, "", False, 0, [], {}):
                self.lose(name, value, why)

    def finish(self) -> Imported:
        for name, value in self.rest.items():
            if value not in (None, "", False, [], {}):
                self.lose(name, value, "has no counterpart here")
        if not self.nodes:
            raise AtelierError(f"This file of {self.origin} says nothing that a LoRA could be trained by.")
        return Imported(self.origin, self.nodes, tuple(self.lost))


def number_of(value: Any) -> float | None:
    """``value`` as a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and abs(number) < 1e15 else None


def truth(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)) and value in (0, 1):
        return bool(value)
    return {"true": True, "false": False, "on": True, "off": False, "1": True, "0": False}.get(str(value).strip().lower())


def sides_of(value: Any) -> list[list[float]]:
    """Sizes as they are written: ``512``, ``1024x768``, several with commas between them; what is none is left out."""
    sizes = []
    for part in str(value or "").lower().strip("()[] ").replace("×", "x").split(","):
        sides = [number_of(side.strip()) for side in part.split("x")]
        if len(sides) <= 2 and all(side is not None and 0 < side < 1e5 for side in sides):
            sizes.append([side for side in sides if side is not None])
    return sizes


def square_of(sides: Sequence[float]) -> int:
    """The side of a square of about this area, a multiple of 64."""
    return max(64, round(math.sqrt(sides[0] * sides[-1]) / 64) * 64)


OPTIMIZERS = {
    "adamw": "AdamW", "adam": "AdamW", "adamw8bit": "AdamW8bit", "adamw_8bit": "AdamW8bit", "adam8bit": "AdamW8bit",
    "adam_8bit": "AdamW8bit", "pagedadamw8bit": "AdamW8bit", "lion": "Lion", "prodigy": "Prodigy", "dadaptation": "DAdaptAdam",
    "dadaptadam": "DAdaptAdam", "dadapt_adam": "DAdaptAdam", "dadaptadamw": "DAdaptAdamW", "adafactor": "Adafactor",
    "adamwschedulefree": "AdamWScheduleFree", "schedule_free_adamw": "AdamWScheduleFree", "came": "CAME", "sgd": "SGD",
    "sgdnesterov": "SGD", "adam8": "AdamW8bit", "adamw8": "AdamW8bit", "lion8bit": "Lion8bit", "lion_8bit": "Lion8bit",
    "pagedlion8bit": "Lion8bit", "prodigy8bit": "Prodigy", "prodigyplusschedulefree": "ProdigyPlusScheduleFree",
    "prodigy_plus_schedule_free": "ProdigyPlusScheduleFree", "muon": "Muon", "automagic": "ProdigyPlusScheduleFree",
}  # fmt: skip
"""Other trainers' names, in small letters."""
NEAREST = {
    "adam", "adam8", "adam8bit", "adam_8bit", "pagedadamw8bit", "sgdnesterov", "pagedlion8bit", "prodigy8bit", "automagic",
}  # fmt: skip
"""Those whose counterpart is not quite the same."""
SCHEDULES = {
    "constant": "constant", "constant_with_warmup": "constant", "linear": "linear", "cosine": "cosine",
    "cosine_with_restarts": "cosine with restarts", "cosine_with_hard_restarts": "cosine with restarts",
    "polynomial": "polynomial",
    "adafactor": "constant", "cosine_with_min_lr": "cosine",
}  # fmt: skip
SELF_TUNING = {"Prodigy", "DAdaptAdam", "DAdaptAdamW", "ProdigyPlusScheduleFree"}
AVERAGING = {"AdamWScheduleFree", "ProdigyPlusScheduleFree"}
"""Those that take no schedule."""


def optimizer_of(found: Collector, value: Any, setting: str) -> str | None:
    """Sets the optimizer; what is only near is said."""
    if value is None:
        return None
    word = str(value).rpartition(".")[2].lower().replace("-", "")
    name = OPTIMIZERS.get(word)
    if name is None:
        found.lose(setting, value, f"is not offered here; there are {', '.join(dict.fromkeys(OPTIMIZERS.values()))}")
        return None
    if word in NEAREST:
        found.lose(setting, value, f"became {name}, which is near to it")
    found.set("ConfigureLoRA", "optimizer", name)
    return name


def settle_schedule(found: Collector, optimizer: str | None) -> None:
    """A constant rate where the optimizer averages its weights, whatever the file says; other trainers take it as it is."""
    recipe = found.nodes.get("ConfigureLoRA", {})
    lowers = "use_schedulefree=false" in str(recipe.get("optimizer_args", "")).lower()
    if optimizer in AVERAGING and not lowers and recipe.get("schedule") != "constant":
        if recipe.get("schedule"):
            found.lose("schedule", recipe["schedule"], f"became constant, since {optimizer} averages the weights instead")
        found.set("ConfigureLoRA", "schedule", "constant")


def fitted(optimizer: str | None, given: Mapping[str, str]) -> dict[str, str]:
    """Arguments of an optimizer in the form that it takes here: Adafactor's two eps are one value, CAME's two are not; betas
    and eps of Muon are those of AdamW, which takes what is no matrix."""
    out = dict(given)

    def parts(key: str) -> list[str]:
        return [part.strip() for part in out.get(key, "").strip("()[] ").split(",") if part.strip()]

    if optimizer in ("Adafactor", "CAME") and ("eps" in out or "eps2" in out):
        first, second = ([*parts("eps")[:1], "1e-30"][0], [*parts("eps")[1:2], *parts("eps2"), ""][0])
        out = {key: value for key, value in out.items() if key not in ("eps", "eps2")}
        if optimizer == "Adafactor":
            out["eps"] = f"{first},{second or '0.001'}"
        else:
            out |= {"eps1": first, "eps2": second or "1e-16"}
    if optimizer == "Muon" and "betas" in out:
        out["adamw_betas"] = out.pop("betas")
    if optimizer == "Muon" and "eps" in out:
        out["adamw_eps"] = out.pop("eps")
    if optimizer == "CAME" and len(parts("betas")) == 2:
        out["betas"] = ",".join([*parts("betas"), "0.9999"])
    return out
