"""Small real models, loaded the way a graph loads them: inside inference mode."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from .. import tiny_models

PLENTY = 2**40
FAMILIES = ("sd15", "sdxl_unet", "sd3")


def conditioning(name: str, seed: int) -> dict[str, torch.Tensor]:
    """A random text encoding of the shape that the family's encoders give."""
    stream = torch.Generator().manual_seed(seed)
    if name.startswith("sdxl"):
        cond, extra = tiny_models.sdxl_conditioning(seed)[0]
        return {"cond": cond, **extra}
    width = tiny_models.SD3_CONTEXT if name == "sd3" else tiny_models.CLIP_CONTEXT
    out = {"cond": torch.randn(1, 77, width, generator=stream)}
    if name == "sd3":
        out["pooled_output"] = torch.randn(1, tiny_models.SD3_POOLED, generator=stream)
    return out


def load_model(name: str, **options: Any) -> SimpleNamespace:
    """``model``, ``clip`` and ``vae`` wrappers; the latter two are None for a diffusion model alone.

    ``options`` are the stock checkpoint loader's.
    """
    import comfy.sd
    from lora_atelier.training import host

    path = str(tiny_models.cached(name))
    with torch.inference_mode():
        if name.startswith("sdxl"):
            patcher, clip, vae = comfy.sd.load_diffusion_model(path), None, None
        else:
            patcher, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(path, output_vae=True, output_clip=True, **options)
    return SimpleNamespace(
        name=name,
        model=host.Model(patcher),
        text=clip and host.TextEncoder(clip),
        codec=vae and host.PictureCodec(vae),
        conditioning=lambda seed: conditioning(name, seed),
        channels=16 if name == "sd3" else 4,
    )


@pytest.fixture(scope="session")
def tiny(comfyui) -> Callable[[str], SimpleNamespace]:
    """``tiny("sd15")``: a loaded tiny model; each is loaded once for all tests, so tests must leave it as it was."""
    loaded: dict[str, SimpleNamespace] = {}

    def get(name: str) -> SimpleNamespace:
        from lora_atelier.training.host.weights import mended

        if name not in loaded:
            loaded[name] = load_model(name)
        found = loaded[name]
        for patcher in (found.model.patcher, found.text and found.text.clip.patcher, found.codec and found.codec.vae.patcher):
            mended(patcher)  # as the pack does with whatever a node is given: another test may have made the host move it
        return found

    return get


@pytest.fixture
def loaded(comfyui):
    """``loaded(kind, memory)``: a model as a graph has it, on a device that is pretended until the test ends.

    ``dynamic``: where the host pages weights in and out.
    """
    from lora_atelier.benchmarks import _counts

    with ExitStack() as stack:

        def load(kind: str = "plain", memory: int = PLENTY):
            import comfy.model_management
            import comfy.model_patcher

            with torch.inference_mode():
                comfy.model_management.unload_all_models()  # those of other tests
            if kind == "dynamic" and not hasattr(comfy.model_patcher, "ModelPatcherDynamic"):
                pytest.skip("this host pages nothing in")
            stack.enter_context(_counts.pretended(memory, dynamic=kind == "dynamic"))
            return load_model("sd3")

        yield load
