"""What stock nodes lay on a model counts where it decides something, alike in every session, and nothing else does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_atelier.training import host


def stock(module: str, name: str, method: str, patcher: Any, *args: Any) -> Any:
    """The MODEL that a stock node makes of another."""
    import importlib

    kind = getattr(importlib.import_module(f"comfy_extras.{module}"), name)
    with torch.inference_mode():
        answer = getattr(kind if hasattr(kind, "define_schema") else kind(), method)(patcher, *args)
    return (answer if isinstance(answer, tuple) else answer.result)[0]


ONLY_DRAWN = {
    "RescaleCFG": lambda p, x: stock("nodes_model_advanced", "RescaleCFG", "patch", p, x),
    "PerturbedAttentionGuidance": lambda p, x: _guided("nodes_pag", "PerturbedAttentionGuidance", p, x),
    "Mahiro": lambda p, _: _guided("nodes_mahiro", "Mahiro", p),
}
LEARNT = {
    "FreeU_V2": lambda p, x: _guided("nodes_freelunch", "FreeU_V2", p, 1.0 + x, 1.2, 0.9, 0.2),
    "ModelSamplingDiscrete": lambda p, x: stock(
        "nodes_model_advanced", "ModelSamplingDiscrete", "patch", p, "v_prediction", x > 0.5
    ),
    "HyperTile": lambda p, x: _guided("nodes_hypertile", "HyperTile", p, 256, int(10 * x), 0, False),
}


def _guided(module: str, name: str, patcher: Any, *args: Any) -> Any:
    """A node that newer hosts write with ``execute`` and older ones with ``patch``."""
    import importlib

    kind = getattr(importlib.import_module(f"comfy_extras.{module}"), name)
    return stock(module, name, "execute" if hasattr(kind, "execute") else "patch", patcher, *args)


@pytest.mark.parametrize("name", [*ONLY_DRAWN, *LEARNT])
def test_what_a_node_does_counts_where_it_decides_something(tiny, name):
    t = tiny("sd15")
    node = {**ONLY_DRAWN, **LEARNT}[name]
    plain = t.model
    one, same, other = (host.Model(node(plain.patcher, x)) for x in (0.4, 0.4, 0.9))
    assert plain.sampling_identity() != one.sampling_identity() == same.sampling_identity()
    assert (plain.identity() == one.identity()) == (name in ONLY_DRAWN), "whether training sees it"
    if name != "Mahiro":  # it has no setting
        assert one.sampling_identity() != other.sampling_identity()
        assert (one.identity() == other.identity()) == (name in ONLY_DRAWN)
    assert one.identity() == host.Model(one.patcher.clone()).identity()


def test_a_models_fingerprint_is_that_of_an_earlier_version_where_nothing_is_laid_on_it(tiny):
    t = tiny("sd15")
    assert len(t.model.identity()) == len(t.model.sampling_identity()) == 32, "the weights' digest alone"


def test_sampling_changes_no_fingerprint(tiny):
    """FreeU and HyperTile keep notes in their own closures while they work."""
    from lora_atelier.training.config.sampling import SamplerSettings

    t = tiny("sd15")
    altered = host.Model(LEARNT["HyperTile"](LEARNT["FreeU_V2"](t.model.patcher, 0.1), 0.4))
    before = altered.identity(), altered.sampling_identity()
    text = [[t.conditioning(1)["cond"], {}]]
    altered.sample(text, text, SamplerSettings("euler", "normal", 2, 4.0), latent_size=(32, 32), seed=1)
    assert (altered.identity(), altered.sampling_identity()) == before


def test_what_is_loaded_of_another_copy_does_not_count(tiny):
    """All copies share one network; an object that another copy has put in it is not this one's."""
    import comfy.model_management

    t = tiny("sd15")
    before, layers = t.model.identity(), t.model.layers()
    other = t.model.patcher.clone()
    block = other.model.diffusion_model.out[2]
    other.add_object_patch("diffusion_model.out.2", torch.nn.Sequential(block, torch.nn.Identity()))
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([other])
        try:
            assert other.model.diffusion_model.out[2] is not block
            assert t.model.identity() == before and t.model.layers() == layers
            assert host.Model(other).identity() != before
        finally:
            comfy.model_management.free_memory(1e30, t.model.device)
            other.unpatch_model()
    assert other.model.diffusion_model.out[2] is block


SESSION = """
import sys
from types import ModuleType, SimpleNamespace
import torch
sys.modules["lora_atelier"] = pack = ModuleType("lora_atelier")
pack.__path__ = [{pack!r}]
sys.path.insert(0, {host!r})
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
from lora_atelier.training.host import alterations

class Settings:
    __slots__ = ("scale",)
    def __init__(self, scale): self.scale = scale

def guidance(scale, table):
    return lambda args: args["cond"] * scale + table

settings = Settings(2.0)
patcher = SimpleNamespace(
    object_patches={{"diffusion_model.extra": settings}},
    model_options={{
        "sampler_cfg_function": guidance(0.5, torch.arange(3.0)), "transformer_options": {{"patches": {{"b", "a", "c"}}}},
    }},
)
print(alterations.of_training(patcher), alterations.of_sampling(patcher))
"""


def test_another_session_says_the_same(comfyui, tmp_path):
    """Neither addresses nor the order of sets, which Python mixes in every process, are part of it."""
    root = Path(__file__).parents[3]
    aid = str(root / "demo" / "cpu_torch_aid")
    script = tmp_path / "session.py"
    script.write_text(SESSION.format(pack=str(root), host=str(comfyui)))
    said = {
        subprocess.run(
            [sys.executable, str(script)],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": aid, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1 and len(said.pop().split()) == 2
