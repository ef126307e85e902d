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


def test_a_model_that_was_sampled_from_before_says_the_same_as_a_fresh_one(tiny):
    """Whoever draws a picture first, and trains then, goes on with the run that another session began."""
    from lora_atelier.training.config.sampling import SamplerSettings

    t = tiny("sd15")
    fresh, used = (host.Model(LEARNT["HyperTile"](LEARNT["FreeU_V2"](t.model.patcher, 0.1), 0.4)) for _ in range(2))
    text = [[t.conditioning(1)["cond"], {}]]
    used.sample(text, text, SamplerSettings("euler", "normal", 2, 4.0), latent_size=(32, 32), seed=1)
    assert (used.identity(), used.sampling_identity()) == (fresh.identity(), fresh.sampling_identity())


def test_what_a_function_counts_while_it_works_is_no_setting(tiny):
    def patched(scale: float, times: int) -> str:
        calls = 0

        def guided(args: dict[str, Any]) -> Any:
            nonlocal calls
            calls += 1
            return args["cond"] * scale if args else None

        for _ in range(times):
            guided({})
        laid = t.model.patcher.clone()
        laid.set_model_sampler_cfg_function(guided)
        return host.Model(laid).sampling_identity()

    t = tiny("sd15")
    assert patched(0.5, 0) == patched(0.5, 3) != patched(0.25, 3)


def test_an_enclosed_text_encoder_says_the_same_whatever_is_loaded_into_it(tiny):
    import comfy.model_management

    t = tiny("sd3")
    clip = t.text.clip
    before = host.Model(_guided_by(t.model.patcher, clip)).sampling_identity()
    laid = clip.patcher.clone()
    key = next(k for k, v in laid.model.state_dict().items() if k.endswith("weight") and v.ndim == 2)
    assert laid.add_patches({key: (torch.ones_like(laid.model.state_dict()[key]),)}, 5.0)
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([laid])
        try:
            assert laid.backup
            assert host.Model(_guided_by(t.model.patcher, clip)).sampling_identity() == before
        finally:
            comfy.model_management.free_memory(1e30, t.model.device)
            laid.unpatch_model()


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


def _with_lora(patcher: Any, strength: float = 1.0, alpha: float = 4.0) -> Any:
    """The MODEL as Load LoRA makes it."""
    import comfy.lora
    import comfy.sd

    keys = comfy.lora.model_lora_keys_unet(patcher.model, {})
    name, key = next((n, k) for n, k in keys.items() if (isinstance(k, str) and "proj_in" in k) or "qkv" in k)
    weight = patcher.model.state_dict()[key]
    stream = torch.Generator().manual_seed(3)
    file = {
        f"{name}.lora_up.weight": torch.randn(weight.shape[0], 2, generator=stream),
        f"{name}.lora_down.weight": torch.randn(2, weight[0].numel(), generator=stream),
        f"{name}.alpha": torch.tensor(alpha),
    }
    laid, _ = comfy.sd.load_lora_for_models(patcher, None, file, strength, 0.0)
    assert laid.patches, "the LoRA is laid on"
    return laid


def test_everything_in_a_lora_beneath_counts(tiny):
    t = tiny("sd3")
    plain = t.model.patcher
    said = [
        host.Model(p).identity()
        for p in (
            plain, _with_lora(plain), _with_lora(plain, 0.5), _with_lora(plain, alpha=1.0), _with_lora(_with_lora(plain))
        )
    ]  # fmt: skip
    assert len(set(said)) == len(said), "alpha, which is no tensor of its own in the host, is as much of it as the factors"
    assert host.Model(_with_lora(plain)).identity() == said[1]


def test_a_lora_in_a_model_that_is_merged_in_counts(tiny):
    t = tiny("sd3")
    plain = t.model.patcher

    def merged(other: Any, share: float = 0.5) -> str:
        return host.Model(stock("nodes_model_merging", "ModelMergeSimple", "merge", plain, other, share)).identity()

    said = [merged(plain), merged(_with_lora(plain)), merged(_with_lora(plain, 0.5)), merged(_with_lora(plain, alpha=1.0))]
    assert len({*said, merged(plain, 0.25)}) == len(said) + 1
    assert merged(_with_lora(plain, 0.5)) == said[2]


def _guided_by(patcher: Any, other: Any) -> Any:
    """A node whose function encloses ``other``."""
    laid = patcher.clone()
    laid.set_model_sampler_cfg_function(lambda args: args["cond"] if other else None)
    return laid


def test_an_enclosed_model_counts_with_all_that_is_laid_on_it(tiny):
    t = tiny("sd15")
    plain = t.model.patcher
    others = [plain, ONLY_DRAWN["RescaleCFG"](plain, 0.4), ONLY_DRAWN["RescaleCFG"](plain, 0.9), LEARNT["FreeU_V2"](plain, 0.1)]
    said = [host.Model(_guided_by(plain, other)).sampling_identity() for other in others]
    assert len(set(said)) == len(said)
    assert host.Model(_guided_by(plain, ONLY_DRAWN["RescaleCFG"](plain, 0.9))).sampling_identity() == said[2]


def test_an_enclosed_network_says_the_same_whatever_is_loaded_into_it(tiny):
    """Many nodes' functions enclose the host's model, in which the LoRA of another copy may be at that moment."""
    import comfy.model_management

    t = tiny("sd3")
    plain = t.model.patcher
    enclosed = {"model": plain.model, "network": plain.model.diffusion_model, "layer": next(iter(t.model.layers().values()))}
    before = {name: host.Model(_guided_by(plain, value)).sampling_identity() for name, value in enclosed.items()}
    assert t.model.sampling_identity() not in before.values()
    laid = _with_lora(plain, 5.0)
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([laid])
        try:
            assert laid.backup, "the LoRA is in the weights now"
            assert before == {n: host.Model(_guided_by(plain, value)).sampling_identity() for n, value in enclosed.items()}
        finally:
            comfy.model_management.free_memory(1e30, t.model.device)
            laid.unpatch_model()


def test_plain_numbers_deep_in_an_object_count(tiny):
    t = tiny("sd3")

    def patched(scale: float) -> str:
        inner = torch.nn.Identity()
        inner.scale = scale
        laid = t.model.patcher.clone()
        laid.add_object_patch("diffusion_model.extra", torch.nn.Sequential(torch.nn.Sequential(inner)))
        return host.Model(laid).identity()

    assert patched(0.5) == patched(0.5) != patched(0.25)


def test_that_a_network_is_compiled_does_not_count(tiny):
    t = tiny("sd3")
    compiled = host.Model(stock("nodes_torch_compile", "TorchCompileModel", "execute", t.model.patcher, "inductor"))
    assert compiled.patcher.wrappers
    assert (compiled.identity(), compiled.sampling_identity()) == (t.model.identity(), t.model.sampling_identity())
