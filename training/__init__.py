"""The trainer: importable and testable without a server. ``host.py`` is the only module here that knows ComfyUI."""
