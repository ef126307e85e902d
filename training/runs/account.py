"""Account of a run: what it says of itself, kept in ``run.json``, so that a page that is opened later shows it too."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ..config import TrainingConfig, to_dict
from ..errors import AtelierError
from .inputs import WIDGETS, flattened
from .run import Run

PARTS = ("warnings", "counts", "notes", "settings")
"""What the person should look at; what there is and is done; what is worth knowing; how the run is set."""
ALWAYS = frozenset({
    "network.algorithm", "network.rank", "network.alpha", "optimizer.name", "optimizer.learning_rate", "optimizer.schedule",
    "length.epochs", "precision", "seed", "text.encoders",
})  # fmt: skip
LONGEST = 200
"""Characters of a setting."""
MOST = 100
"""Sentences of a part; later ones are only logged."""
log = logging.getLogger("lora-atelier")


class Account:
    """The sentences of a run since it was opened last, each once."""

    def __init__(self, run: Run, settings: Sequence[str] = ()):
        self._run = run
        self._parts: dict[str, list[str]] = {part: [] for part in PARTS}
        self._parts["settings"] = list(settings)
        self._write()

    def add(self, part: str, *sentences: str) -> None:
        """More sentences of one of ``PARTS``."""
        known = self._parts[part]
        new = [one for one in dict.fromkeys(sentences) if one not in known][: max(0, MOST - len(known))]
        if new:
            known += new
            self._write()

    def _write(self) -> None:
        try:
            self._run.write(account=self._parts)
        except (OSError, AtelierError) as error:  # a full disk and a damaged record are told where more depends on them
            log.warning("%s: what the run says of itself could not be written (%s)", self._run.name, error)


def settings_of(config: TrainingConfig) -> list[str]:
    """``rank: 16``: what is always worth knowing of a recipe, and all that is not as it comes, by the widgets' names."""
    own, usual = dict(flattened(to_dict(config))), dict(flattened(to_dict(TrainingConfig("default"))))
    told = {key: value for key, value in own.items() if key in ALWAYS or value != usual.get(key)}
    named = {key: value for key, value in told.items() if key not in ("name", "varied")}
    return [f"{WIDGETS.get(key, key.rpartition('.')[2])}: {_said(value)}" for key, value in named.items()]


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else " ".join(str(value).split())[:LONGEST]
