"""The trainer: importable and testable without a server. ``host`` is the only part that knows ComfyUI."""
