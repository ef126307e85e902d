"""Whether numbers are all there, in every number format."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.errors import NotFinite
from lora_atelier.training.runs.state import State, write_state
from lora_atelier.training.tensors.finite import first_lost, is_finite
from safetensors.torch import load_file

ROOMY = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@given(st.lists(st.floats(width=32), max_size=20), st.sampled_from([torch.float64, torch.float32]))
def test_it_is_pythons_answer(values, dtype):
    assert is_finite(torch.tensor(values, dtype=dtype)) == all(map(math.isfinite, values))


@pytest.mark.parametrize("dtype", [*ROOMY, torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_format(dtype):
    assert is_finite(torch.tensor([0.0, -448.0]).to(dtype)) and is_finite(torch.zeros(0, dtype=dtype))
    assert not is_finite(torch.tensor([0.0, float("nan")]).to(dtype))


def test_whole_numbers_and_names():
    assert is_finite(torch.tensor([1, 2])) and is_finite(torch.tensor([True]))
    assert first_lost({"a": torch.ones(1), "b": 3, "c": "x", "d": math.inf}) == "d"
    assert first_lost({"a": torch.ones(1), "b": None, "c": 1.5}) is None
    mask = torch.tensor([0.0, -math.inf])
    assert first_lost({"attention_mask": mask}) is None and first_lost({"attention_mask": -mask}) == "attention_mask"


@pytest.mark.parametrize("dtype", ROOMY)
def test_a_state_stays_what_it_was(tmp_path, dtype):
    path, older = tmp_path / "state.safetensors", tmp_path / "before.safetensors"
    write_state(path, State(1, {}, {"exp_avg": torch.ones(2, dtype=dtype)}, {}), older)
    bad = State(2, {"a": torch.ones(1)}, {"exp_avg": torch.tensor([1.0, math.inf], dtype=dtype)}, {})
    with pytest.raises(NotFinite, match=r"state\.safetensors: optimizer\.exp_avg holds NaN or infinite"):
        write_state(path, bad, older)
    assert load_file(path).keys() == {"optimizer.exp_avg"} and [p.name for p in tmp_path.iterdir()] == [path.name]
