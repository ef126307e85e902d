"""Whole jobs where the host spreads a model over devices: its arguments for little or much memory, a text encoder or VAE on the
CPU, number formats, models that are paged in, that do not fit, or that another LoRA has patched.

On a CPU there is only one device, so these run on a GPU: the real one, or the pretended one, whose numbers are exact.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lora_atelier.training import host
from lora_atelier.training.config import LengthConfig, NetworkConfig, TextConfig, TrainingConfig
from lora_atelier.training.config.sampling import SamplerSettings
from lora_atelier.training.host import sampling
from lora_atelier.training.performance.recording import EagerRecorder
from lora_atelier.training.runs.run import finite
from lora_atelier.training.tensors import transfer
from safetensors.torch import load_file

from ..conftest import load_model
from ..test_job import NO_PREVIEW, dataset, fresh_folders, go, grid_of, recipe  # noqa: F401
from .test_host import picture

pytestmark = pytest.mark.skipif("not __import__('torch').cuda.is_available()", reason="there is one device only")
CPU = torch.device("cpu")
Arrange = Callable[[pytest.MonkeyPatch, Any, Any], dict[str, Any]]
"""Takes the host's memory management and arguments; returns what the stock loader is told."""


def arguments(vram: str = "", **changes: bool) -> Arrange:
    """What ``main.py`` makes of its arguments."""

    def arrange(monkeypatch: pytest.MonkeyPatch, management: Any, args: Any) -> dict[str, Any]:
        for name, value in changes.items():
            monkeypatch.setattr(args, name, value)
        if vram:
            monkeypatch.setattr(management, "vram_state", getattr(management.VRAMState, vram))
        return {}

    return arrange


def half(monkeypatch: pytest.MonkeyPatch, management: Any, args: Any) -> dict[str, Any]:
    """Left to itself the host computes in half precisions."""
    monkeypatch.setattr(management, "FORCE_FP32", False)
    return arguments(force_fp32=False, fp32_text_enc=False, fp32_vae=False)(monkeypatch, management, args)


def text_encoder_on_the_cpu(_patch: pytest.MonkeyPatch, _management: Any, _args: Any) -> dict[str, Any]:
    return {"te_model_options": {"load_device": CPU, "offload_device": CPU}}


class HostBuffer:
    """Where ``comfy_aimdo`` would keep pinned weights, for which it needs its CUDA library."""

    def __init__(self, *_sizes: int):
        self.size = 0

    def truncate(self, *_where: Any, **_how: Any) -> None: ...


class Pages:
    """The part of the GPU's memory that ``comfy_aimdo`` pages weights into; here every page stays where it came."""

    def __init__(self, *_sizes: Any):
        self.pages: list[torch.Tensor] = []

    def alloc(self, size: int) -> torch.Tensor:
        self.pages.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        return self.pages[-1]

    def get(self, size: int, _offset: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, device="cuda")

    def loaded_size(self) -> int:
        return sum(page.nbytes for page in self.pages)

    def prioritize(self) -> None: ...

    def free_memory(self, _size: int) -> int:
        return 0


def dynamic(monkeypatch: pytest.MonkeyPatch, management: Any, args: Any) -> dict[str, Any]:
    """The patcher that pages weights in, the default on NVIDIA; what its CUDA library does stands above."""
    import comfy.model_patcher as patchers

    if not hasattr(patchers, "ModelPatcherDynamic"):
        pytest.skip("this ComfyUI has no dynamic VRAM")
    monkeypatch.setattr(patchers, "CoreModelPatcher", patchers.ModelPatcherDynamic)
    for name, stand_in in {
        "host_buffer.HostBuffer": HostBuffer, "model_vbar.ModelVBAR": Pages, "vram_buffer.VRAMBuffer": Pages,
        "model_vbar.vbar_fault": lambda page: 1, "model_vbar.vbar_unpin": lambda page: None,
        "model_vbar.vbar_signature_compare": lambda one, other: one == other,
        "torch.aimdo_to_tensor": lambda page, device: page,
    }.items():  # fmt: skip
        monkeypatch.setattr(f"comfy_aimdo.{name}", stand_in)
    monkeypatch.setattr(args, "disable_pinned_memory", True)
    monkeypatch.setattr(management, "NUM_STREAMS", 0)  # what stands above keeps nothing for a copy that is still under way
    return {}


ARRANGEMENTS: dict[str, Arrange] = {
    "--cpu-vae": arguments(cpu_vae=True),
    "--lowvram": arguments("LOW_VRAM", lowvram=True),
    "--novram": arguments("NO_VRAM", novram=True),
    "--highvram": arguments("HIGH_VRAM", highvram=True),
    "--gpu-only": arguments("HIGH_VRAM", gpu_only=True),
    "text encoder on the CPU": text_encoder_on_the_cpu,
    "dynamic VRAM": dynamic,
}
FORMATS: dict[str, Arrange] = {
    "as the host chooses": half,
    "fp16 VAE": arguments(fp32_vae=False, fp16_vae=True),
    "bf16 VAE": arguments(fp32_vae=False, bf16_vae=True),
    "fp16 text encoder": arguments(fp32_text_enc=False, fp16_text_enc=True),
}
RECIPES: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "DoRA, checkpointed": {"network": NetworkConfig(2, 1.0, weight_decompose=True), "gradient_checkpointing": True},
    "LoKr": {"network": NetworkConfig(2, 1.0, algorithm="LoKr")},
    "text encoder": {"text": TextConfig("all")},
    "blocks and activations away": {"gradient_checkpointing": True, "offload_blocks": 0.5, "offload_activations": True},
}


@pytest.fixture(autouse=True)
def nothing_stays_loaded(comfyui) -> Iterator[None]:
    import comfy.model_management as management

    yield
    with torch.inference_mode():
        management.unload_all_models()
    gc.collect()


def loaded(monkeypatch: pytest.MonkeyPatch, arrange: Arrange, name: str = "sd15") -> SimpleNamespace:
    import comfy.model_management as management
    from comfy.cli_args import args

    with torch.inference_mode():
        management.unload_all_models()
    monkeypatch.setattr(management, "LORA_COMPUTE_DTYPES", {})
    return load_model(name, **arrange(monkeypatch, management, args))


def trained(t: SimpleNamespace, pictures: Any, name: str, **changes: Any) -> SimpleNamespace:
    """LoRA and losses of two steps with a sample; the model must draw the same picture before and after."""
    before, kinds = picture(t), made_as(t)
    config: TrainingConfig = recipe(name, length=LengthConfig(max_steps=2), **changes)
    done = go(t, pictures, config, replace(NO_PREVIEW, steps=1, width=64, height=64))
    assert all(np.isfinite(done.losses)) and len(done.losses) == 2
    assert torch.equal(picture(t), before)
    assert made_as(t) == kinds
    return SimpleNamespace(lora=load_file(done.epochs.files[-1].path), losses=done.losses)


def made_as(t: SimpleNamespace) -> list[bool]:
    """Which tensors of model, text encoder and VAE are inference tensors."""
    roots = (t.model.base, t.text.clip.cond_stage_model, t.codec.vae.first_stage_model)
    return [tensor.is_inference() for root in roots for tensor in (*root.parameters(), *root.buffers())]


def apart(first: SimpleNamespace, second: SimpleNamespace) -> float:
    """Relative distance of two LoRAs."""
    one, other = first.lora, second.lora
    assert one.keys() == other.keys()
    difference = sum((one[name].float() - other[name].float()).square().sum() for name in one)
    return (difference / sum(t.float().square().sum() for t in one.values())).sqrt().item()


@pytest.fixture(scope="module")
def usual(tiny, dataset, tmp_path_factory) -> dict[str, SimpleNamespace]:  # noqa: F811
    """What each recipe gives where the host puts everything on the GPU."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("usual")
        patch.setattr(host, "runs_folder", lambda: folder / "runs")
        patch.setattr(host, "loras_folder", lambda: folder / "loras")
        t = loaded(patch, arguments())
        return {what: trained(t, dataset, f"usual {i}", **changes) for i, (what, changes) in enumerate(RECIPES.items())}


@pytest.mark.parametrize("what", RECIPES)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_wherever_the_host_puts_a_model_it_learns_the_same(usual, dataset, monkeypatch, arrangement, what):  # noqa: F811
    t = loaded(monkeypatch, ARRANGEMENTS[arrangement])
    assert apart(usual[what], trained(t, dataset, "elsewhere", **RECIPES[what])) < 1e-3


@pytest.mark.parametrize("what", ["LoRA", "text encoder"])
@pytest.mark.parametrize("form", FORMATS)
def test_in_half_precisions_it_learns_nearly_the_same(usual, dataset, monkeypatch, form, what):  # noqa: F811
    t = loaded(monkeypatch, FORMATS[form])
    assert apart(usual[what], trained(t, dataset, "half", **RECIPES[what])) < 0.2


@pytest.mark.parametrize("what", RECIPES)
def test_a_model_that_fits_only_in_part_learns_the_same(usual, dataset, monkeypatch, what):  # noqa: F811
    """The host leaves half of its weights in main memory; they come for each operation."""
    monkeypatch.setattr("comfy.model_management.unet_inital_load_device", lambda _size, _type: CPU)  # else where more is free
    t = loaded(monkeypatch, arguments())
    real = type(t.model.patcher).load

    def in_part(self: Any, device_to: Any = None, lowvram_model_memory: float = 0, **how: Any) -> Any:
        if self.model is t.model.base:
            how["full_load"], lowvram_model_memory = False, self.model_size() // 2
        return real(self, device_to, lowvram_model_memory, **how)

    monkeypatch.setattr(type(t.model.patcher), "load", in_part)
    assert apart(usual[what], trained(t, dataset, "in part", **RECIPES[what])) < 1e-3
    picture(t)
    there = {p.device.type for p in t.model.base.parameters()}
    assert there == {"cpu", "cuda"}


@pytest.mark.parametrize("arrangement", ["--novram", "--gpu-only", "text encoder on the CPU", "dynamic VRAM"])
def test_a_model_that_another_lora_has_patched(usual, dataset, monkeypatch, arrangement):  # noqa: F811
    """As it is wired: MODEL and CLIP of a LoRA loader. Unlike the plain model's, and the same wherever it lies."""
    found = []
    for arrange in (arguments(), ARRANGEMENTS[arrangement]):
        with monkeypatch.context() as patch:
            t = loaded(patch, arrange)
            with torch.inference_mode():
                model, clip = t.model.with_lora(t.text.clip, {n: w * 30 for n, w in usual["text encoder"].lora.items()}, 1.0)
            wired = SimpleNamespace(**{**vars(t), "model": host.Model(model), "text": host.TextEncoder(clip)})
            found.append(trained(wired, dataset, f"patched {len(found)}", text=TextConfig("all")))
    assert found[0].losses == pytest.approx(found[1].losses, rel=2e-3)
    assert found[0].losses != pytest.approx(usual["text encoder"].losses, rel=2e-3)


@pytest.mark.parametrize("arrangement", ["", *ARRANGEMENTS])
def test_cells_of_a_grid_are_the_stock_nodes_wherever_a_model_lies(usual, dataset, tmp_path, monkeypatch, arrangement):  # noqa: F811
    t = loaded(monkeypatch, ARRANGEMENTS.get(arrangement, arguments()))
    epochs = go(t, dataset, recipe(length=LengthConfig(epochs=1), text=TextConfig("all"))).epochs
    with torch.inference_mode():
        grid = grid_of(t, epochs, tmp_path / "grids")
        grid.render(lambda done, page: None)
        model, clip = t.model.with_lora(t.text.clip, load_file(epochs.files[0].path), 1.0)
        text = host.TextEncoder(clip)
        latent = host.Model(model).sample(
            text.for_sampling("picture 0"),
            text.for_sampling(""),
            SamplerSettings("euler", "normal", 2, 2.0),
            latent_size=(8, 8),
            seed=3,
        )
        pixels = t.codec.decode(latent)[0]
    from PIL import Image

    drawn = np.asarray(Image.open(grid.book.cells[0][1, 1]).convert("RGB"), dtype=int)
    assert np.abs(drawn - (pixels.numpy() * 255).round()).max() <= 2


def test_what_a_run_takes_on_the_device_it_gives_back(dataset, monkeypatch):  # noqa: F811
    t = loaded(monkeypatch, arguments())
    trained(t, dataset, "first")
    gc.collect()
    before = torch.cuda.memory_allocated()
    trained(t, dataset, "second")
    gc.collect()
    assert torch.cuda.memory_allocated() <= before


# Too little memory


@pytest.fixture
def pretended() -> Any:
    """The pretended GPU, whose memory can be limited."""
    from ...conftest import GPU, pretend_gpu

    if GPU != "pretend":
        pytest.skip("no other GPU's memory can be limited")
    return pretend_gpu().install()


WAYS: dict[str, dict[str, Any]] = {
    "as asked": {},
    "checkpointed": {"gradient_checkpointing": True},
    "half of the blocks away": {"gradient_checkpointing": True, "offload_blocks": 0.5},
    "all blocks away": {"gradient_checkpointing": True, "offload_blocks": 1.0},
}


@pytest.mark.parametrize("arrangement", ["text encoder on the CPU", "--gpu-only"])
def test_what_a_text_encoder_takes_is_forecast_where_it_is(dataset, monkeypatch, pretended, arrangement):  # noqa: F811
    t, said = loaded(monkeypatch, ARRANGEMENTS[arrangement]), list[str]()
    weights = [w for w in (*t.model.weights(), *t.text.weights()) if w.device.type == "cuda"]  # they lie there already
    before = pretended.in_use - sum(w.nbytes for w in weights)
    pretended.forget_most()
    go(t, dataset, recipe("text", length=LengthConfig(max_steps=2), text=TextConfig("all")), show=said.append)
    (line,) = [line for line in said if line.startswith("needs about")]
    assert 1e6 * float(line.split()[2]) == pytest.approx(pretended.most - before, rel=0.1)


def test_what_was_learnt_can_be_saved_where_no_memory_is_left(pretended):
    state = [torch.full((1000,), float(i), device="cuda") for i in range(5)]
    lost = torch.full((3,), float("nan"), device="cuda")
    with pretended.limited(0):
        found = transfer.to_cpu(state)
        assert finite({"state": state[0]}) and not finite({"state": state[0], "lost": lost})
    assert all(torch.equal(one, other.cpu()) for one, other in zip(found, state, strict=True))


@pytest.mark.parametrize("foreseen", [True, False], ids=["before the first step", "on the way"])
def test_what_does_not_fit_is_done_with_less(dataset, monkeypatch, pretended, foreseen):  # noqa: F811
    """Each limit is between what one way needs and the next cheaper one; errors come from the device itself."""
    import comfy.model_management as management

    t = loaded(monkeypatch, arguments())
    monkeypatch.setattr(management, "minimum_inference_memory", lambda: 0)  # it would keep more free than the device has
    larger = {"length": LengthConfig(max_steps=2)}

    def peak(name: str, **changes: Any) -> tuple[int, dict[str, torch.Tensor], list[str]]:
        with torch.inference_mode():
            management.unload_all_models()
        gc.collect()
        pretended.forget_most()
        before, said = pretended.in_use, list[str]()
        done = go(t, dataset, recipe(name, **larger, **changes), show=said.append)
        return pretended.most - before, done.tensors, said

    tried = [peak(f"{way} {foreseen}", **changes) for way, changes in WAYS.items()]
    needs, usual = [need for need, *_ in tried], tried[0][1]
    assert needs == sorted(needs, reverse=True)
    (line,) = [line for line in tried[0][2] if line.startswith("needs about")]
    assert 1e6 * float(line.split()[2]) == pytest.approx(needs[0], rel=0.05), "what was forecast is what it takes"
    if not foreseen:
        monkeypatch.setattr("lora_atelier.training.performance.memory.fits", lambda need, free: True)
    for i, (more, less) in enumerate(pairwise(needs), start=1):
        with torch.inference_mode():
            management.unload_all_models()
        gc.collect()
        with pretended.limited((more + less) // 2):
            _, lora, said = peak(f"limit {i} {foreseen}")
        assert apart(SimpleNamespace(lora=usual), SimpleNamespace(lora=lora)) < 1e-3
        told = [line for line in said if line.startswith("memory: ")]
        if i == 1 and not foreseen:
            assert "All other models are put aside" in told[0]
            assert re.search(r"The run goes on, slower: .*\(?gradient_checkpointing", told[1]), (
                "of the blocks as many as it takes, or all"
            )
        else:
            assert len(told) == 1 and "that is slower" in told[0]


@pytest.mark.parametrize("arrangement", ["", "--lowvram", "dynamic VRAM"])
def test_recorded_passes_draw_the_same_cells_wherever_a_model_lies(usual, dataset, tmp_path, monkeypatch, arrangement):  # noqa: F811
    """Where its weights are paged in and out, its resident twin draws them; they come and go as before, afterwards."""
    t = loaded(monkeypatch, ARRANGEMENTS.get(arrangement, arguments()))
    epochs = go(t, dataset, recipe(length=LengthConfig(epochs=1), text=TextConfig("all"))).epochs
    before = picture(t)
    grids = []
    with torch.inference_mode():
        for recorder in (None, EagerRecorder()):
            monkeypatch.setattr(sampling, "recorder_for", lambda *_, recorder=recorder: recorder)
            grids.append(grid_of(t, epochs, tmp_path / f"{len(grids)}"))
            grids[-1].render(lambda done, page: None)
    assert [grid.brush.network.replays > 0 for grid in grids] == [False, True]
    for page in (0, 1):
        first, second = (cells_of(grid, page) for grid in grids)
        assert np.abs(first - second).max() <= 1
    assert torch.equal(picture(t), before)
    assert t.model.is_paged == (arrangement == "dynamic VRAM")


def cells_of(grid: Any, page: int) -> np.ndarray:
    from PIL import Image

    cells = grid.book.cells[page]
    return np.stack([np.asarray(Image.open(cells[place]).convert("RGB"), dtype=int) for place in sorted(cells)])
