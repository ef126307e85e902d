"""Headers of safetensors files, against the library that defines the format."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.tensors.safetensors_header import contents_digest, read_header
from safetensors.torch import save_file

TENSORS = {"a.weight": torch.zeros(3, 5, dtype=torch.bfloat16), "b": torch.ones(7), "c": torch.tensor(2.0, dtype=torch.float16)}


def test_names_types_shapes_and_metadata_are_those_that_were_written(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "x.safetensors")
    assert header.metadata == {"format": "pt"}
    found = header.tensors()
    assert {k: (v.dtype, v.shape) for k, v in found.items()} == {k: (v.dtype, v.shape) for k, v in TENSORS.items()}
    assert found["a.weight"].is_meta and found["b"].std().item() == 0, "a vector can be asked for its values"


def test_stand_ins_of_a_huge_model_need_no_memory(tmp_path):
    rows = {f"{i}.weight": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 0]} for i in range(3)}
    rows["bias"] = {"dtype": "NEW", "shape": [10**12], "data_offsets": [0, 0]}
    text = json.dumps(rows).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    found = read_header(tmp_path / "x.safetensors").tensors()
    assert found["2.weight"].shape == (10**6, 10**6) and found["bias"].shape == (10**12,)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    start=st.sampled_from([b"", b"\0" * 8, b"\xff" * 8, (5).to_bytes(8, "little"), (30).to_bytes(8, "little")]),
    rest=st.binary(max_size=30) | st.sampled_from([b"[1]", b"{}   ", b'{"a":1}', b'{"a":{"shape":[-1],"dtype":2}}']),
)
def test_damaged_files_are_named(tmp_path, start, rest):
    path = tmp_path / "x.safetensors"
    path.write_bytes(start + rest)
    try:
        assert read_header(path).entries == {}
    except AtelierError as error:
        assert "x.safetensors" in str(error)


def test_other_formats_are_not_opened(tmp_path):
    with pytest.raises(AtelierError, match=r"x\.ckpt: only safetensors"):
        read_header(tmp_path / "x.ckpt")


def test_what_a_file_says_of_itself_is_no_part_of_its_contents(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(1)}
    for name, values, said in (
        ("one", tensors, {"when": "now"}), ("same", dict(reversed(tensors.items())), {}),
        ("other", {**tensors, "b": -torch.ones(1)}, {}), ("renamed", {"a": tensors["a"], "c": tensors["b"]}, {}),
        ("turned", {**tensors, "a": tensors["a"].reshape(3, 2)}, {}),
    ):  # fmt: skip
        save_file(values, tmp_path / f"{name}.safetensors", said)
    one, same, *others = (contents_digest(tmp_path / f"{n}.safetensors") for n in ("one", "same", "other", "renamed", "turned"))
    assert one == same and len({one, *others}) == 4
