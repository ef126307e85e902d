"""LoRA Atelier: train a LoRA and test it on the same canvas. This file is only the door that ComfyUI opens."""

from __future__ import annotations

WEB_DIRECTORY = "./js"


async def comfy_entrypoint() -> object:
    """Called by ComfyUI once its own modules are ready."""
    from .nodes import Atelier

    return Atelier()
