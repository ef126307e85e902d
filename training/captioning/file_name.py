"""Captioner by file names, for sets whose files are named after what they show."""

from __future__ import annotations

from collections.abc import Sequence

from ..dataset.captions import caption_from_file_name
from .protocol import Picture


class FileNameCaptioner:
    """``pattern`` with {name} (the file name in words) and {folder} (the class text of the folder, or its name)."""

    looks = False

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern

    def caption(self, pictures: Sequence[Picture]) -> list[str]:
        return [caption_from_file_name(picture.path, self.pattern, picture.class_caption) for picture in pictures]
