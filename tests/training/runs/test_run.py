"""A LoRA file of a run: serialised once, with the hashes of what is in it."""

from __future__ import annotations

import hashlib

import pytest
import safetensors.torch
import torch
from lora_atelier.training.runs.run import Run
from safetensors import safe_open


@pytest.fixture
def serialised(monkeypatch) -> list[str]:
    """The library's functions that made bytes of tensors."""
    calls: list[str] = []
    for name in ("serialize", "serialize_file"):
        real = getattr(safetensors.torch, name)

        def counted(*given, name=name, real=real, **named):
            calls.append(name)
            return real(*given, **named)

        monkeypatch.setattr(safetensors.torch, name, counted)
    return calls


@pytest.mark.parametrize("numbers", [100, 400_000], ids=["below 1 MiB", "above 1 MiB"])
def test_a_lora_is_serialised_once_for_its_hashes_and_its_file(tmp_path, serialised, numbers):
    stream = torch.Generator().manual_seed(1)
    tensors = {"b": torch.randn(numbers, generator=stream), "a": torch.randn(3, generator=stream).bfloat16()}
    plain = safetensors.torch.save(tensors)
    serialised.clear()
    run = Run.begin("ink", tmp_path / "runs", tmp_path / "loras")
    saved = run.save_lora(tensors, {"ss_steps": "7", "workflow": '{"ä": 1}'}, epoch=1, step=7, kind="epoch")
    assert serialised == ["serialize"]
    with safe_open(saved.path, framework="pt") as file:
        stated = file.metadata()
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in tensors.items())
    assert stated == {
        "ss_steps": "7",
        "workflow": '{"ä": 1}',
        "sshs_model_hash": hashlib.sha256(plain[8 + int.from_bytes(plain[:8], "little") :]).hexdigest(),
        "modelspec.hash_sha256": f"0x{hashlib.sha256(plain[8 + int.from_bytes(plain[:8], 'little') :]).hexdigest()}",
        "sshs_legacy_hash": hashlib.sha256(plain[0x100000:0x110000]).hexdigest()[:8],
    }
