"""Grids of a model whose weights the host pages in and out: its resident twin draws where it fits, and is gone afterwards."""

from __future__ import annotations

import gc
import logging
import weakref

import numpy as np
import pytest
import torch
from lora_atelier.benchmarks import _counts
from lora_atelier.training.host import sampling
from lora_atelier.training.performance.network_graph import NetworkGraph
from lora_atelier.training.performance.recording import EagerRecorder

from ..host.test_host import picture
from .test_render import drawn, grid_of, hooks, pixels, write_lora

HOW = {"how": {"steps": 4}, "together": 2, "strengths": (0.4, -0.7)}
ALWAYS = "its passes are not recorded"


@pytest.fixture
def paged(loaded, monkeypatch):
    """``paged()``: a model whose weights the host pages in and out, on a device that can record."""

    def load():
        t = loaded("dynamic")
        assert t.model.is_paged and not t.model.has_copies
        monkeypatch.setattr(sampling, "recorder_for", lambda *_: EagerRecorder())
        return t

    return load


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory):
    """Two LoRA files, one with a part in the text encoder, and what a grid of them shows where nothing is paged or recorded."""
    t, folder = tiny("sd3"), tmp_path_factory.mktemp("files")
    paths = [write_lora(t, folder / f"{seed}.safetensors", seed=seed, text=seed == 2) for seed in (1, 2)]
    return paths, drawn(grid_of(t, folder, *paths, **HOW))


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    """Networks whose passes were to be recorded. Tensors of the pretended device say that they are on the CPU."""
    found, real = [], NetworkGraph.__init__

    def begin(graph, network, recorder, device, state):
        found.append(weakref.ref(network))
        real(graph, network, recorder, torch.device(device.type), state)

    monkeypatch.setattr(NetworkGraph, "__init__", begin)
    return found


def same(found, expected) -> bool:
    """But for rounding, since what the host computes in one pass depends on how much memory is free."""
    differences = [np.abs(pixels(found, 0, place) - pixels(expected, 0, place)) for place in expected.book.cells[0]]
    return max(difference.max() for difference in differences) <= 1


def as_before(t) -> None:
    """Nothing of a twin is left, and nothing of a grid on the model."""
    import comfy.model_management as management
    from comfy.model_base import BaseModel

    gc.collect()
    networks = [one.model for one in management.current_loaded_models if isinstance(getattr(one.model, "model", None), BaseModel)]
    assert all(patcher.model is t.model.base for patcher in networks)
    assert _counts.strangers() == 0 and not hooks(t) and "forward" not in vars(t.model.base.diffusion_model)


def test_its_resident_twin_draws_the_same_pictures_recorded(paged, files, tmp_path, networks):
    t, (paths, expected) = paged(), files
    before = picture(t)
    there = []
    grid = grid_of(t, tmp_path, *paths, **HOW)
    with torch.inference_mode():
        grid.render(lambda done, page: there.append(_counts.loaded_bytes()))
    assert same(grid, expected) and grid.brush.network.replays > 5
    assert len(networks) == 1 and networks[0]() is None, "one twin, of which nothing is left"
    assert t.model.patcher.non_dynamic_delegate_model is None
    assert any(size >= t.model.patcher.model_size() for sizes in there for size in sizes.values()), "all of it lay on the device"
    as_before(t)
    assert torch.equal(picture(t), before)


def test_what_a_run_has_made_draws_too_and_stays(paged, files, tmp_path):
    """A grid behind a training takes the twin that was trained beside, and reads no file again."""
    t, (paths, expected) = paged(), files
    with torch.inference_mode():
        trained = t.model.for_training(None)
        with trained.hold():
            pass
        trained.retire()
    known = t.model.patcher.non_dynamic_delegate_model
    t.model.patcher.cached_patcher_init = None  # nothing to read it from
    grid = drawn(grid_of(t, tmp_path, *paths, **HOW))
    assert same(grid, expected) and grid.brush.network.replays > 5
    assert t.model.patcher.non_dynamic_delegate_model is known and known[0] is trained.base
    as_before(t)
    with t.model.for_training(None).hold():
        assert not any(p.is_inference() for p in trained.base.parameters()), "it can be trained again"


def test_where_there_is_no_twin_all_is_drawn_as_ever_and_the_reason_is_said_once(paged, files, tmp_path, caplog, networks):
    t, (paths, expected) = paged(), files
    t.model.patcher.cached_patcher_init = None
    with caplog.at_level(logging.INFO, "lora-atelier"):
        grid = drawn(grid_of(t, tmp_path, *paths, **HOW))
    (said,) = [line for line in caplog.messages if ALWAYS in line]
    assert "the host cannot load it a second time: Cannot create non-dynamic delegate" in said
    assert not networks and not grid.brush.network.replays and same(grid, expected)
    as_before(t)


def test_a_model_that_nothing_could_record_has_no_twin(paged, files, tmp_path, monkeypatch, caplog):
    t, (paths, expected) = paged(), files
    monkeypatch.setattr(sampling, "recorder_for", lambda *_: None)
    monkeypatch.setattr(t.model.patcher, "get_non_dynamic_delegate", lambda: pytest.fail("nobody can use it"))
    with caplog.at_level(logging.INFO, "lora-atelier"):
        assert same(drawn(grid_of(t, tmp_path, *paths, **HOW)), expected)
    assert not [line for line in caplog.messages if ALWAYS in line]


class Cancelled(BaseException):
    """As the host's own, which is no Exception."""


@pytest.mark.parametrize("error", [Cancelled, RuntimeError])
def test_after_a_cancel_or_an_error_the_model_is_as_before(paged, files, tmp_path, networks, error):
    t, (paths, _) = paged(), files
    before = picture(t)

    def advance(done, page):
        if done == 3:  # the first batch is drawn
            assert networks[0]() is not None
            raise error

    with torch.inference_mode(), pytest.raises(error):
        grid_of(t, tmp_path, *paths, **HOW).render(advance)
    assert networks[0]() is None and t.model.patcher.non_dynamic_delegate_model is None
    as_before(t)
    assert torch.equal(picture(t), before)


@pytest.mark.parametrize("together", [1, 2])
def test_where_memory_runs_out_the_twin_is_the_first_to_go(paged, files, tmp_path, monkeypatch, caplog, networks, together):
    t, (paths, expected) = paged(), files

    def refusing(real):
        def sample(model, *given, **named):
            if not model.is_paged:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(model, *given, **named)

        return sample

    for name in ("sample", "sample_together"):
        monkeypatch.setattr(sampling.SampledModel, name, refusing(getattr(sampling.SampledModel, name)))
    with caplog.at_level(logging.INFO, "lora-atelier"):
        grid = drawn(grid_of(t, tmp_path, *paths, **HOW | {"together": together}))
    assert len(networks) == 1 and not grid.brush.network.replays and grid.together == together
    assert len([line for line in caplog.messages if "too little memory beside a resident copy" in line]) == 1
    assert same(grid, expected)
    as_before(t)


def test_a_file_that_the_host_merges_is_merged_into_the_model_itself(paged, files, tmp_path, monkeypatch, networks):
    """Where it lies with other patches on it, as Load LoRA would leave it; the files beside are drawn by the twin meanwhile."""
    t, (paths, _) = paged(), files
    merged = write_lora(t, tmp_path / "merged.safetensors", seed=5, weight_decompose=True)
    grid = drawn(grid_of(t, tmp_path, paths[0], merged, paths[1], **HOW))
    as_before(t)
    alone = drawn(grid_of(paged(), tmp_path / "alone", merged, how=HOW["how"], strengths=HOW["strengths"]))
    assert len(networks) == 1 and grid.brush.network.replays
    for row in range(2):
        assert np.array_equal(pixels(grid, 0, (2, row)), pixels(alone, 0, (1, row)))
