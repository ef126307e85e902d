"""A model on the device ``meta``, whose tensors have no numbers: whoever would read one there gets an error."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from lora_atelier.training import host

META = torch.device("meta")


class WithoutNumbers(host.Model):
    """A model on a device that cannot be read."""

    def __init__(self, model: host.Model):
        super().__init__(model.patcher)
        with model.hold():
            self.base = copy.copy(model.base)
            self.base.__dict__["_modules"] = dict(model.base._modules)
            for name in ("diffusion_model", "model_sampling"):
                setattr(self.base, name, copy.deepcopy(getattr(model.base, name)).to(META))

    @property
    def device(self) -> torch.device:
        return META

    @contextmanager
    def hold(self, text: Any = None, offload: float = 0.0) -> Iterator[None]:
        with torch.inference_mode(False), torch.enable_grad():
            yield


@pytest.fixture(autouse=True)
def memory_of_meta(comfyui, monkeypatch):
    """The host asks how much memory a device has before it chooses how to compute attention; it does not know this one."""
    import comfy.model_management as management

    real = management.get_free_memory

    def free(device=None, torch_free_too=False):
        if device is None or device.type != "meta":
            return real(device, torch_free_too)
        return (2**40, 2**40) if torch_free_too else 2**40

    monkeypatch.setattr(management, "get_free_memory", free)
