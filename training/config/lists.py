"""Lists that are written into one line."""

from __future__ import annotations

import re


def listed(text: str) -> tuple[str, ...]:
    """What stands between the commas, each once."""
    return tuple(dict.fromkeys(part for part in (piece.strip() for piece in re.split("[,，、､،]", text)) if part))
