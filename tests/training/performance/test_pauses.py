"""What a pause costs, counted on a pretended device: nothing is moved, looked through or read twice that did not change."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch
from lora_atelier.benchmarks import _counts
from lora_atelier.training import host, job
from lora_atelier.training.config import LengthConfig, SubsetConfig, TextConfig
from lora_atelier.training.dataset import scan
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.runs.run import finite
from lora_atelier.training.tensors import transfer

from ..test_job import NO_PREVIEW, dataset, fresh_folders, recipe  # noqa: F401

DRAWN = dataclasses.replace(NO_PREVIEW, steps=1, prompt="picture 0\npicture 1", negative="blurry", width=32, height=32)
MOVED = ("bytes brought", "bytes put aside", "models gone through for loading")


@pytest.fixture(autouse=True)
def nothing_is_encoded_yet(monkeypatch, tmp_path):
    """Else what other tests have encoded would decide which models are loaded."""
    monkeypatch.setattr(host, "cache_folder", lambda: tmp_path / "cache")


@pytest.fixture(scope="module")
def held_out(dataset):  # noqa: F811
    """Two steps an epoch, and pictures whose loss is measured at its end."""
    folder = dataset.subsets[0].samples[0].path.parent
    return Dataset(scan.scan(folder, SubsetConfig("input/x", resolution=64, batch_size=2, bucket_step=32, validation_share=0.2)))


def counted(t, pictures: Dataset, preview: job.Preview, **settings) -> _counts.Counts:
    found = _counts.Counts()
    with found.watching(), torch.inference_mode():
        job.run_training(
            t.model, t.text, t.codec, pictures, recipe(**settings), preview=preview, when="start over", graph={}
        )  # fmt: skip
    return found


@pytest.mark.parametrize("kind", ["plain", "dynamic"])
def test_a_pause_without_a_sample_moves_and_looks_through_nothing(loaded, held_out, kind):
    found = counted(loaded(kind), held_out, NO_PREVIEW, length=LengthConfig(epochs=4))
    assert found.found["before"]["walks over a model"] and found.found["before"]["bytes brought"], "or nothing was counted"
    assert found.times["pause"] == 3
    pause = found.per("pause")
    assert set(pause) == {
        "LoRAs and states as bytes", "asks how much memory is free", "bytes hashed", "files flushed", "files put in place",
        "numbers and tensors read", "snapshots",
    }  # fmt: skip
    assert pause["LoRAs and states as bytes"] == 2, "once for a file and both its hashes, and once for the state"
    assert pause["numbers and tensors read"] <= 8, "one each to see whether a file's numbers are sound, however many layers"


@pytest.mark.parametrize("kind", ["plain", "dynamic"])
def test_a_second_sample_loads_nothing_that_is_still_there(loaded, held_out, kind):
    found = counted(loaded(kind), held_out, DRAWN, length=LengthConfig(epochs=6, sample_every=2))
    assert found.times["first sample"] == found.times["sample"] == 1
    again = found.found["sample"]
    assert again["holds"] == 1 and not again["bytes brought"] and not again["bytes put aside"]
    if kind == "plain":
        assert not again["walks over a model"] and not again["models gone through for loading"]


@pytest.mark.cpu_only("a real GPU's memory is not the pretended one's, and the host begins where there is more of it")
def test_where_there_is_little_memory_only_what_must_move_moves(loaded, held_out):
    """The text encoder leaves for the run and is not asked for again; what is small stays beside the model."""
    t = loaded()
    model, text = t.model.patcher.model_size(), t.text.clip.patcher.model_size()
    t = loaded(memory=text + model // 2 + 2**21)
    found = counted(t, held_out, DRAWN, length=LengthConfig(epochs=6, sample_every=2))
    assert found.found["before"]["bytes put aside"] >= text
    assert not any(found.found["sample"][name] for name in MOVED)


def test_prompts_are_encoded_once_and_everything_is_identified_once(loaded, held_out, monkeypatch):
    t, told, roots = loaded(), Counter(), Counter()
    real = host.TextEncoder.for_sampling
    monkeypatch.setattr(
        host.TextEncoder, "for_sampling", lambda self, text, seen=(): told.update([text]) or real(self, text, seen)
    )
    for part in ("model_facts", "text", "pictures"):
        module = getattr(host, part)
        real_identity = module.identity_of

        def identity(root, *given, real_identity=real_identity):
            roots.update([id(root)])
            return real_identity(root, *given)

        monkeypatch.setattr(module, "identity_of", identity)
    counted(t, held_out, DRAWN, length=LengthConfig(epochs=3))
    assert told == {"picture 0": 1, "picture 1": 1, "blurry": 1}
    assert sorted(roots.values()) == [1, 1, 1]


def test_a_text_encoder_that_learns_asks_for_no_memory_in_a_step(loaded, dataset):  # noqa: F811
    settings = {"text": TextConfig("clip", 5e-3), "length": LengthConfig(epochs=2)}
    found = counted(loaded(), dataset, DRAWN, **settings)
    step = found.found["step"]
    assert found.times["step"] == 6 and not step["loads asked of the host"] and not step["walks over a model"]


def test_what_is_loaded_besides_stays_as_long_as_there_is_room(loaded):
    t = loaded()
    with torch.inference_mode():
        t.text.for_sampling("picture 0")
    text = id(t.text.clip.patcher.model)
    t.model.leave_room(2**20)
    with t.model.hold():
        assert _counts.loaded_bytes()[text], "there is room for both"
    t.model.leave_room(None)
    with t.model.hold():
        assert text not in _counts.loaded_bytes(), "all there is was asked for"


def test_the_twin_of_a_run_leaves_the_device_with_it(loaded, held_out):
    t = loaded("dynamic")
    counted(t, held_out, NO_PREVIEW, length=LengthConfig(epochs=1))
    twin, _ = t.model.patcher.non_dynamic_delegate_model
    assert twin is not t.model.base and twin.model_loaded_weight_memory == 0
    assert _counts.strangers() == 0


def test_a_graphs_own_model_stays_where_it_is(loaded, held_out):
    t = loaded()
    counted(t, held_out, NO_PREVIEW, length=LengthConfig(epochs=1))
    assert _counts.loaded_bytes()[id(t.model.base)]


def test_copies_in_main_memory_are_equal_and_share_nothing(monkeypatch):
    monkeypatch.setattr(transfer, "AT_ONCE", 64)
    stream = torch.Generator().manual_seed(1)
    given = [torch.randn(shape, generator=stream) for shape in ((3, 4), (), (0, 2), (40,), (2, 2), (5,))]
    given += [torch.arange(7), given[0].t(), given[0], torch.ones(3, dtype=torch.bfloat16), torch.zeros(0, dtype=torch.uint8)]
    found = transfer.to_cpu(given)
    assert len({one.untyped_storage().data_ptr() for one in found if one.numel()}) == sum(one.numel() > 0 for one in given)
    for one, other in zip(given, found, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other) and other.is_contiguous()
        assert other.untyped_storage().nbytes() == other.nbytes, "no more than its own"
    assert transfer.to_cpu([]) == []


@pytest.mark.parametrize(("number", "whole"), [(3e38, True), (-3e38, True), (float("inf"), False), (float("nan"), False)])
def test_one_number_that_is_none_is_noticed_and_large_ones_are_not_taken_for_it(number, whole):
    tensors = {"a": torch.ones(5, 7), "b": torch.ones(9)}
    tensors["a"][3, 2] = number
    tensors["b"][4] = 3e38
    assert finite(tensors) is whole
