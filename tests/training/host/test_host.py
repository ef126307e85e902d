"""The promise to the graph: training happens beside the loaded model, and afterwards the model is what it was."""

from __future__ import annotations

import pytest
import torch
from lora_atelier.training.config import NetworkConfig
from lora_atelier.training.config.sampling import SamplerSettings
from lora_atelier.training.host.holding import held
from lora_atelier.training.network import lora_file, targets
from lora_atelier.training.network.adapter import Adapter
from lora_atelier.training.objective import loss, noise

from ...conftest import GPU
from ..conftest import FAMILIES


@pytest.fixture(autouse=True, params=["stays"] if GPU else ["stays", "moves"])
def the_model_moves(request, comfyui, monkeypatch):
    """On a CPU as well, what the host loads or lays aside gets new memory, in the mode that the host was called in.

    It begins as after the server's route ``/free``: laid aside outside of inference mode.
    """
    import comfy.model_management
    from comfy.model_patcher import ModelPatcher

    moved: list[torch.nn.Module] = []

    def renew(model: torch.nn.Module) -> None:
        for module in model.modules():
            for parameter in (p for p in module._parameters.values() if p is not None):
                parameter.data = parameter.data.clone()
            module._buffers.update({name: b if b is None else b.clone() for name, b in module._buffers.items()})

    def moving(real):
        def move(patcher, *given, **named):
            loaded = patcher.model.model_loaded_weight_memory
            answer = real(patcher, *given, **named)
            if patcher.model.model_loaded_weight_memory != loaded:
                renew(patcher.model)
                moved.append(patcher.model)
            return answer

        return move

    if request.param == "moves":
        for name in ("load", "unpatch_model", "partially_unload"):
            monkeypatch.setattr(ModelPatcher, name, moving(getattr(ModelPatcher, name)))
        comfy.model_management.unload_all_models()
    yield
    with torch.inference_mode():  # as loaders leave them, for the next test may not move them
        for model in moved:
            renew(model)


def picture(tiny_model, seed: int = 5) -> torch.Tensor:
    """What a stock sampler draws now.

    In four steps: of three the second lies half-way between two of a model's timesteps, and which of them it is depends on where
    the host computed it.
    """
    text = tiny_model.conditioning(1)
    positive = [[text["cond"], {k: v for k, v in text.items() if k != "cond"}]]
    with torch.inference_mode():
        return tiny_model.model.sample(
            positive, positive, SamplerSettings("euler", "normal", 4, 2.0), latent_size=(8, 8), seed=seed
        ).clone()


def stored(tiny_model) -> dict[str, torch.Tensor]:
    """Copies of all that the model is made of, in its type and with its strides."""
    with torch.inference_mode():
        return {name: tensor.clone() for name, tensor in tiny_model.model.base.state_dict().items()}


def assert_stored(tiny_model, expected: dict[str, torch.Tensor]) -> None:
    """What a model draws follows from these, whatever kernels a device has for it."""
    found = tiny_model.model.base.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        other = expected[name]
        assert (tensor.dtype, tensor.device, tensor.stride()) == (other.dtype, other.device, other.stride()), name
        assert torch.equal(tensor, other), name


def new_adapter(tiny_model, preset: str = "all linear", seed: int = 3, up: float = 0.05) -> Adapter:
    """An adapter whose up-matrices are not zero, so that it changes the model and all its gradients are non-zero."""
    layers = targets.choose(tiny_model.model.layers(), preset)
    adapter = Adapter.fresh(layers, NetworkConfig(rank=2, alpha=1.0), seed)
    stream = torch.Generator().manual_seed(seed)
    for branch in adapter.branches.values():
        branch.up.data = torch.randn(branch.up.shape, generator=stream) * up
    return adapter.to(tiny_model.model.device)


def one_loss(tiny_model, x0: torch.Tensor, sigma: torch.Tensor, texts: list[int], seed: int = 9) -> torch.Tensor:
    model = tiny_model.model
    e = noise_of(x0, seed)
    x = noise.noisy(model.prediction, x0, e, sigma)
    conditions = [model.condition(tiny_model.conditioning(t), x[i : i + 1], {}) for i, t in enumerate(texts)]
    return loss.batch_loss(model.predict(x, sigma, conditions), noise.target(model.prediction, x0, e, sigma))


def noise_of(x0: torch.Tensor, seed: int = 9) -> torch.Tensor:
    return torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed)).to(x0.device)


def latents(tiny_model, count: int) -> torch.Tensor:
    drawn = torch.randn(count, tiny_model.channels, 8, 8, generator=torch.Generator().manual_seed(4))
    return drawn.to(tiny_model.model.device)


def levels(tiny_model, count: int) -> torch.Tensor:
    return torch.linspace(0.3, 0.8, count, device=tiny_model.model.device) * (
        1.0 if tiny_model.model.prediction == "flow" else 4.0
    )


def train_a_little(tiny_model, adapter: Adapter, steps: int = 2) -> None:
    layers = tiny_model.model.layers()
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    with tiny_model.model.hold(), adapter.attached(layers):
        for step in range(steps):
            one_loss(tiny_model, latents(tiny_model, 2), levels(tiny_model, 2), [1, 2], seed=step).backward()
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_model_draws_the_very_same_picture_after_training(tiny, name):
    t = tiny(name)
    before, weights = picture(t), stored(t)
    inference_tensors = [p.is_inference() for p in t.model.base.parameters()]
    assert any(inference_tensors)  # else this proves nothing about models that a graph has loaded
    train_a_little(t, new_adapter(t))
    assert_stored(t, weights)
    assert torch.equal(picture(t), before)
    assert [p.is_inference() for p in t.model.base.parameters()] == inference_tensors
    assert not any(m._forward_hooks for m in t.model.base.modules())


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_that_a_node_has_chosen_for_sampling_takes_no_gradient_away(tiny, name):
    t = tiny(name)
    adapter = new_adapter(t)

    def gradients() -> tuple[torch.Tensor, ...]:
        with t.model.hold(), adapter.attached(t.model.layers()):
            return torch.autograd.grad(one_loss(t, latents(t, 1), levels(t, 1), [1]), list(adapter.parameters()))

    wanted = gradients()
    options = t.model.patcher.model_options["transformer_options"]
    # As the kernels do that were made for sampling only.
    options["optimized_attention_override"] = lambda chosen, *args, **kwargs: chosen(*args, **kwargs).detach()
    try:
        found = gradients()
    finally:
        del options["optimized_attention_override"]
    assert all(torch.allclose(one, other, rtol=1e-4) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("how", ["cancel", "error"])
def test_also_after_a_cancel_or_an_error_in_mid_step(tiny, name, how):
    import comfy.model_management

    t = tiny(name)
    before, weights = picture(t), stored(t)
    stop = comfy.model_management.InterruptProcessingException if how == "cancel" else RuntimeError
    adapter = new_adapter(t)
    with pytest.raises(stop), t.model.hold(), adapter.attached(t.model.layers()):
        one_loss(t, latents(t, 1), levels(t, 1), [1]).backward()
        raise stop()
    assert_stored(t, weights)
    assert torch.equal(picture(t), before)
    assert not getattr(comfy.model_management, "in_training", False)


@pytest.mark.parametrize("where", ["pre_run", "cleanup"])
def test_also_after_an_error_of_another_nodes_callback(tiny, monkeypatch, where):
    """The host calls them as a model begins and ends to be used."""
    import comfy.model_management

    t = tiny("sd15")
    before, made = picture(t), [p.is_inference() for p in t.model.base.parameters()]

    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(t.model.patcher), where, fails)
        with pytest.raises(KeyboardInterrupt), t.model.hold():
            pass
    assert [p.is_inference() for p in t.model.base.parameters()] == made
    assert not getattr(comfy.model_management, "in_training", False) and not held
    assert torch.equal(picture(t), before)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_second_copy_of_the_weights(tiny, name):
    t = tiny(name)
    picture(t)
    outside = {n: p.data_ptr() for n, p in t.model.base.named_parameters()}
    with t.model.hold():
        inside = {n: p.data_ptr() for n, p in t.model.base.named_parameters()}
        assert not any(p.is_inference() for p in t.model.base.parameters())
        assert inside == outside


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_of_different_captions_has_the_gradients_of_its_pictures(tiny, name):
    t = tiny(name)
    adapter = new_adapter(t)
    x0, sigma = latents(t, 2), levels(t, 2)
    e = noise_of(x0)
    parameters = list(adapter.parameters())
    with t.model.hold(), adapter.attached(t.model.layers()):
        together = torch.autograd.grad(one_loss(t, x0, sigma, [1, 2]), parameters)
        alone = []
        for i, text in enumerate([1, 2]):
            x = noise.noisy(t.model.prediction, x0[i : i + 1], e[i : i + 1], sigma[i : i + 1])
            answer = t.model.predict(x, sigma[i : i + 1], [t.model.condition(t.conditioning(text), x, {})])
            wanted = noise.target(t.model.prediction, x0[i : i + 1], e[i : i + 1], sigma[i : i + 1])
            alone.append(torch.autograd.grad(loss.batch_loss(answer, wanted), parameters))
    for both, first, second in zip(together, *alone, strict=True):
        mean = (first + second) / 2
        assert (both - mean).norm() <= 1e-4 * mean.norm() + 1e-9


@pytest.mark.parametrize("name", FAMILIES)
def test_every_target_gets_a_gradient_that_agrees_with_a_finite_difference(tiny, name):
    t = tiny(name)
    adapter = new_adapter(t)
    x0, sigma = latents(t, 1), levels(t, 1)
    with t.model.hold(), adapter.attached(t.model.layers()):
        one_loss(t, x0, sigma, [1]).backward()
        silent = [n for n, b in adapter.branches.items() if not b.down.grad.abs().sum() > 0 or not b.up.grad.isfinite().all()]
        assert silent == []
        direction = [p.grad / p.grad.norm() for p in adapter.parameters()]
        slope = sum((p.grad * d).sum() for p, d in zip(adapter.parameters(), direction, strict=True)).item()
        ends = []
        with torch.no_grad():
            for sign in (1, -1):
                for p, d in zip(adapter.parameters(), direction, strict=True):
                    p += sign * 5e-4 * d
                ends.append(one_loss(t, x0, sigma, [1]).double().item())
                for p, d in zip(adapter.parameters(), direction, strict=True):
                    p -= sign * 5e-4 * d
    assert (ends[0] - ends[1]) / 1e-3 == pytest.approx(slope, rel=5e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_raw_answer_is_what_the_host_denoises_with(tiny, name):
    """The host's ``apply_model`` gives x0; from our target its formula must lead back to the clean latent."""
    t = tiny(name)
    x0, sigma = latents(t, 2), levels(t, 2)
    e = torch.randn_like(x0)
    x = noise.noisy(t.model.prediction, x0, e, sigma)
    wanted = noise.target(t.model.prediction, x0, e, sigma)
    assert torch.allclose(t.model.sampling.calculate_denoised(sigma, wanted, x), x0, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_file_in_the_stock_loader_draws_what_the_live_adapter_draws(tiny, name, caplog):
    t = tiny(name)
    adapter = new_adapter(t, "all")
    with adapter.attached(t.model.layers()):
        live = picture(t)
    plain = picture(t)
    tensors = lora_file.to_file(adapter, t.model.lora_names(), t.model.family, torch.float32)
    with caplog.at_level("WARNING"), torch.inference_mode():
        patched, _ = t.model.with_lora(None, tensors, 1.0)
    assert "not loaded" not in caplog.text.lower()
    loaded = type(t)(**{**vars(t), "model": type(t.model)(patched)})
    stock = picture(loaded)
    assert (live - plain).abs().max() > 0.05
    assert (stock - live).abs().max() < 2e-3 * live.abs().max()
    again = Adapter(lora_file.read(tensors, t.model.layers(), t.model.lora_names())[0]).to(t.model.device)
    with again.attached(t.model.layers()):
        assert (picture(t) - live).abs().max() < 1e-4 * live.abs().max()
    assert torch.equal(picture(t), plain)


def test_file_names_are_those_that_other_tools_read(tiny):
    def names(name: str) -> set[str]:
        t = tiny(name)
        adapter = new_adapter(t)
        tensors = lora_file.to_file(adapter, t.model.lora_names(), t.model.family, torch.float16)
        assert all(v.dtype == torch.float16 for v in tensors.values())
        return {k.rsplit(".", 2)[0] if "weight" in k else k.rsplit(".", 1)[0] for k in tensors}

    # Spelt out from kohya's files: SD1.5 in diffusers names, SDXL and SD3 in the checkpoint's own.
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q" in names("sd15")
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_out_0" in {*names("sdxl_unet")} | {
        n.replace("input_blocks_5_1", "input_blocks_4_1") for n in names("sdxl_unet")
    }
    assert "lora_unet_joint_blocks_0_x_block_attn_qkv" in names("sd3")


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_are_those_of_peft_in_the_same_network(tiny, name):
    """An independent path: PEFT inside a copy of the network, called with the numbers the host's formulas ask for."""
    import copy

    import comfy.samplers
    from peft import LoraConfig, inject_adapter_in_model

    t = tiny(name)
    adapter = new_adapter(t, "attention + feed-forward")
    x0, sigma = latents(t, 2), levels(t, 2)
    e = noise_of(x0)
    with t.model.hold():
        network = copy.deepcopy(t.model.base.diffusion_model)
        x = noise.noisy(t.model.prediction, x0, e, sigma)
        conditions = [t.model.condition(t.conditioning(s), x[i : i + 1], {}) for i, s in enumerate([1, 2])]
        with adapter.attached(t.model.layers()):
            one_loss(t, x0, sigma, [1, 2]).backward()
            ours = loss.batch_loss(t.model.predict(x, sigma, conditions), noise.target(t.model.prediction, x0, e, sigma)).item()

        inject_adapter_in_model(LoraConfig(r=2, lora_alpha=1.0, target_modules=list(adapter.branches)), network)
        network.to(x.device)
        for layer, branch in adapter.branches.items():
            peft = network.get_submodule(layer)
            peft.lora_A["default"].weight.data = branch.down.data.clone()
            peft.lora_B["default"].weight.data = branch.up.data.clone()
        merged = {k: v.to(x.device) for k, v in comfy.samplers.cond_cat(conditions).items()}
        context = merged.pop("c_crossattn")
        inputs, times = t.model.sampling.calculate_input(sigma, x), t.model.sampling.timestep(sigma).float()
        answer = network(inputs, times, context=context, **merged)
        wanted = e if t.model.prediction == "eps" else e - x0
        expected = (answer - wanted).square().mean()
        expected.backward()
    assert ours == pytest.approx(expected.item(), rel=1e-5)
    for layer, branch in adapter.branches.items():
        peft = network.get_submodule(layer)
        for mine, theirs in ((branch.down, peft.lora_A["default"].weight), (branch.up, peft.lora_B["default"].weight)):
            assert (mine.grad - theirs.grad).norm() <= 1e-5 * theirs.grad.norm() + 1e-10, layer


def test_sdxl_is_told_the_real_sizes(tiny):
    """Original size, crop and target size as sinusoids, each (height, width), behind the pooled text, as in diffusers."""
    from diffusers.models.embeddings import get_timestep_embedding
    from lora_atelier.training.dataset.encoded import size_conditioning
    from lora_atelier.training.dataset.views import View

    t = tiny("sdxl_unet")
    shown = View("0" * 64, size=(832, 1216), original=(2000, 3100), crop=(12, 34), scaled=(856, 1284))
    text = t.conditioning(1)
    with t.model.hold():
        y = t.model.condition(text, torch.zeros(1, 4, 152, 104), size_conditioning(shown))["y"].cond
    numbers = torch.tensor([3100.0, 2000.0, 34.0, 12.0, 1216.0, 832.0])
    expected = get_timestep_embedding(numbers, 256, flip_sin_to_cos=True, downscale_freq_shift=0).flatten()
    assert torch.allclose(y[0, :1280], text["pooled_output"][0])
    assert torch.allclose(y[0, 1280:].float(), expected, atol=1e-4)
