"""Attention while a model is held: torch's own kernel also for networks that do not hand on their options."""

from __future__ import annotations

import pytest


def test_all_networks_have_torchs_kernel_meanwhile_and_the_hosts_choice_afterwards(comfyui, monkeypatch):
    import comfy.ldm.pixart.blocks as network
    from comfy.ldm.modules import attention as host
    from lora_atelier.training.host.attention import differentiable_attention

    def of_a_sampler(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("has no backward pass")

    for module in (network, host):
        monkeypatch.setattr(module, "optimized_attention", of_a_sampler)
    with differentiable_attention():
        assert network.optimized_attention is host.optimized_attention is host.attention_pytorch
    assert network.optimized_attention is host.optimized_attention is of_a_sampler
    with pytest.raises(KeyError), differentiable_attention():
        raise KeyError
    assert network.optimized_attention is of_a_sampler
