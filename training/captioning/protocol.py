"""Protocol of a captioner: pictures to texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from PIL import Image

from ..dataset.clips import middle_of
from ..dataset.images import open_picture
from ..dataset.index import frames_now

Check = Callable[[], None]
"""Called after every token that a model writes; may raise to cancel."""


def go_on() -> None:
    """The check of a caller that never cancels."""


class CutShort(str):
    """A model's words that end where the limit of their length was, not where the model would have ended."""


@dataclass(frozen=True)
class Picture:
    """A picture to be described; its pixels are read when somebody looks."""

    path: Path
    class_caption: str = ""
    """Text after the first ``_`` of an ``N_name`` folder, if there is one."""
    caption: str | None = None
    """What its caption file, table or node says; None without any."""
    film: bool = False
    """Whether it is a film, of which the middle frame is looked at."""

    @cached_property
    def image(self) -> Image.Image:
        """The picture in RGB; AtelierError naming the file if it is broken. A film's middle is that of the file as it is now."""
        frames = frames_now(self.path) if self.film else 0
        return middle_of(self.path, frames) if frames else open_picture(self.path)


class Captioner(Protocol):
    """One way of describing pictures. It may have a ``silence``, the usual reason why it finds no words."""

    @property
    def looks(self) -> bool:
        """Whether it reads the pixels, so that they can be shown at no cost."""
        ...

    def caption(self, pictures: Sequence[Picture]) -> list[str]:
        """One text for each picture, in order."""
        ...
