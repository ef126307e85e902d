"""The one error that is meant for the person at the canvas."""

from __future__ import annotations


class AtelierError(ValueError):
    """Something the person can mend. The message names the file or the widget and says what to do."""
