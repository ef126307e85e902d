"""Existing captions as a captioner, for work on their text alone."""

from __future__ import annotations

from collections.abc import Sequence

from .protocol import Picture


class ExistingCaptioner:
    """What a picture's caption file says; no words where there is no file."""

    looks = False

    def caption(self, pictures: Sequence[Picture]) -> list[str]:
        return [picture.caption or "" for picture in pictures]
