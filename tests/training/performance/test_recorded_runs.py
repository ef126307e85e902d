"""Whole runs whose steps are recorded and replayed end in the LoRA of ordinary ones; those that cannot be say why, and go on."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from lora_atelier.training import host, loop, step, step_context
from lora_atelier.training.config import (
    LengthConfig,
    LossConfig,
    NetworkConfig,
    NoiseConfig,
    OptimizerConfig,
    SubsetConfig,
    TextConfig,
    TrainingConfig,
)
from lora_atelier.training.dataset import scan
from lora_atelier.training.dataset.plan import Plan
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.job import Preview
from lora_atelier.training.network import fused_linear
from lora_atelier.training.performance.recording import without_leftovers
from lora_atelier.training.performance.step_graphs import StepGraphs
from PIL import Image

from ...conftest import GPU
from ..test_job import NO_PREVIEW, Stop, dataset, fresh_folders, go, interrupt, only_training_checks, recipe  # noqa: F401
from ..test_mishaps import no_memory
from .graph_recorders import Recording, Refusing
from .test_memory import told


@pytest.fixture
def recorder(monkeypatch) -> Recording:
    return recording(monkeypatch, Recording())


def recording(monkeypatch, recorder: Recording) -> Recording:
    """Steps of every form are recorded by ``recorder``."""
    monkeypatch.setattr(step_context, "recorder_for", lambda *_: recorder)
    monkeypatch.setattr(step_context, "AT_LEAST", 1)
    return recorder


ATTENTION = {"targets": "attention"}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "averages": {"ema_decay": 0.9},
    "accumulation": {"optimizer": OptimizerConfig(learning_rate=1e-2, accumulate=4)},
    "dropout": {"network": NetworkConfig(rank=4, dropout=0.2, rank_dropout=0.3, module_dropout=0.3, **ATTENTION)},
    "DoRA": {"network": NetworkConfig(rank=4, weight_decompose=True, module_dropout=0.3, **ATTENTION)},
    "LoHa": {"network": NetworkConfig(rank=2, algorithm="LoHa", rank_dropout=0.3, module_dropout=0.3, **ATTENTION)},
    "LoKr": {"network": NetworkConfig(rank=2, algorithm="LoKr", rank_dropout=0.3, **ATTENTION)},
    "noise": {"noise": NoiseConfig(pyramid_iterations=4, perturbation=0.1)},
    "huber and preservation": {"loss": LossConfig("huber", preservation=0.7, preservation_prompt="a picture")},
    "checkpointing": {"gradient_checkpointing": True, "network": NetworkConfig(rank=4, dropout=0.2, **ATTENTION)},
    "SGD": {"optimizer": OptimizerConfig("SGD", 1e-2)},
}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_recorded_run_is_the_ordinary_one(tiny, dataset, recorder, setting):  # noqa: F811
    t, settings = tiny("sd3"), SETTINGS[setting]
    found = go(t, dataset, recipe("recorded", **settings))
    assert recorder.replays == 9 and recorder.captures == 2 and not recorder.alive
    wanted = go(t, dataset, recipe("ordinary", speed="eager", **settings))
    assert recorder.replays == 9
    assert same(found.tensors, wanted.tensors) and found.losses == wanted.losses


@pytest.fixture(scope="module")
def buckets(tmp_path_factory, comfyui) -> Dataset:
    """Pictures of three shapes, the commonest first."""
    folder = tmp_path_factory.mktemp("buckets")
    for i, size in enumerate([(64, 64)] * 3 + [(128, 64)] * 2 + [(64, 128)]):
        Image.new("RGB", size, (40 * i, 90, 200)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {i}", encoding="utf-8")
    return Dataset(scan.scan(folder, SubsetConfig("input/buckets", resolution=96, batch_size=1, bucket_step=32)))


def test_the_commonest_shapes_are_recorded_and_the_rest_is_not(tiny, buckets, recorder, monkeypatch):
    monkeypatch.setattr(step_context, "MOST", 2)
    t = tiny("sd3")
    found = go(t, buckets, recipe("recorded"))
    assert recorder.captures == 2 and recorder.replays == 3 * (3 + 2)
    assert same(found.tensors, go(t, buckets, recipe("ordinary", speed="eager")).tensors)


@pytest.mark.parametrize("weighting", ["none", "min-SNR", "debiased"])
def test_so_is_that_of_an_eps_model(tiny, dataset, recorder, weighting):  # noqa: F811
    t, loss = tiny("sd15"), LossConfig("smooth-l1", weighting=weighting)
    found = go(t, dataset, recipe("recorded", loss=loss))
    assert recorder.replays == 9
    assert same(found.tensors, go(t, dataset, recipe("ordinary", speed="eager", loss=loss)).tensors)


def test_fifty_steps_later_it_still_is(tiny, dataset, recorder):  # noqa: F811
    t, length = tiny("sd3"), LengthConfig(max_steps=50, save_every=0)
    found = go(t, dataset, recipe("recorded", length=length))
    assert recorder.replays == 50 and recorder.captures == 2
    wanted = go(t, dataset, recipe("ordinary", speed="eager", length=length))
    far = sum((found.tensors[name] - wanted.tensors[name]).square().sum() for name in wanted.tensors).sqrt()
    assert far <= 1e-5 * sum(tensor.square().sum() for tensor in wanted.tensors.values()).sqrt()


@pytest.fixture(scope="module")
def with_masks_and_prior(tmp_path_factory, comfyui) -> Dataset:
    """Pictures with masks beside pictures for regularisation, all of one size, with weights of their own."""
    stream, subsets = torch.Generator().manual_seed(0), []
    for name, role, weight in (("own", "training", 1.0), ("prior", "regularisation", 0.6)):
        folder = tmp_path_factory.mktemp(name)
        for i in range(3):
            shape = (8, 8, 4) if role == "training" else (8, 8, 3)
            noise = (torch.rand(*shape, generator=stream) * 255).to(torch.uint8).numpy()
            Image.fromarray(np.asarray(noise)).resize((64, 64), Image.Resampling.NEAREST).save(folder / f"{i}.png")
            (folder / f"{i}.txt").write_text(f"{name} {i}", encoding="utf-8")
        masks = "alpha" if role == "training" else "off"
        config = SubsetConfig(f"input/{name}", resolution=64, batch_size=1, bucket_step=32, role=role, loss_weight=weight,
                              masks=masks, mask_floor=0.1)  # fmt: skip
        subsets += scan.scan(folder, config)
    return Dataset(tuple(subsets))


@pytest.mark.parametrize(("preservation", "outside"), [(0.0, 0.0), (0.7, 0.0), (0.7, 0.5)])
def test_masks_and_regularisation_too(tiny, with_masks_and_prior, recorder, preservation, outside):
    t, loss = tiny("sd3"), LossConfig(preservation=preservation, mask_preservation=outside)
    found = go(t, with_masks_and_prior, recipe("recorded", loss=loss))
    assert recorder.captures == 2 and recorder.replays == 18
    wanted = go(t, with_masks_and_prior, recipe("ordinary", speed="eager", loss=loss))
    assert same(found.tensors, wanted.tensors)


def test_a_resumed_run_goes_the_same_way(tiny, dataset, recorder, monkeypatch, interrupt):  # noqa: F811
    t = tiny("sd3")
    settings = {"optimizer": OptimizerConfig(learning_rate=1e-2, accumulate=2), **SETTINGS["dropout"]}
    whole = go(t, dataset, recipe("whole", **settings))
    only_training_checks(monkeypatch)
    with monkeypatch.context() as patch:
        Stop(patch, 5, interrupt)
        with pytest.raises(type(interrupt)):
            go(t, dataset, recipe("pieces", **settings))
    assert not recorder.alive, "a cancel lets go of what was recorded"
    assert same(go(t, dataset, recipe("pieces", **settings)).tensors, whole.tensors)


def test_forms_are_chosen_by_the_whole_run_and_not_by_what_is_left(tiny, dataset, recorder, monkeypatch, interrupt):  # noqa: F811
    """Two batches of an epoch's three have one form, which comes eight times in four epochs and six times in three."""
    t, epochs = tiny("sd3"), LengthConfig(epochs=4)
    monkeypatch.setattr(step_context, "AT_LEAST", 7)
    whole = go(t, dataset, recipe("whole", length=epochs))
    assert (recorder.captures, recorder.replays) == (1, 8)
    only_training_checks(monkeypatch)
    with monkeypatch.context() as patch:
        Stop(patch, 10, interrupt)
        with pytest.raises(type(interrupt)):
            go(t, dataset, recipe("pieces", length=epochs))
    assert same(go(t, dataset, recipe("pieces", length=epochs)).tensors, whole.tensors)
    assert (recorder.captures, recorder.replays) == (3, 16), "also in the run that goes on for a few steps only"
    go(t, dataset, recipe("short"))
    assert recorder.captures == 3


def test_recordings_end_with_the_model_being_let_go(tiny, dataset, recorder):  # noqa: F811
    t, preview = tiny("sd3"), dataclasses.replace(NO_PREVIEW, steps=2)
    found = go(t, dataset, recipe("recorded"), preview)
    assert recorder.captures == 6 and recorder.emptied_times == 3, "after every epoch a picture is drawn"
    assert same(found.tensors, go(t, dataset, recipe("ordinary", speed="eager"), preview).tensors)


@pytest.mark.parametrize("speed", ["auto", "eager"])
def test_speed_does_not_make_it_another_run(tiny, dataset, recorder, speed):  # noqa: F811
    t = tiny("sd3")
    first = go(t, dataset, recipe("one"))
    again = go(t, dataset, recipe("one", speed=speed))
    assert again.epochs.name == first.epochs.name == "one" and recorder.replays == 9


# Where it cannot be


def test_a_trained_text_encoder_is_said(tiny, dataset, recorder):  # noqa: F811
    t = tiny("sd15")
    said = told(t, dataset, recipe("text", text=TextConfig("clip")))
    (line,) = [line for line in said if line.startswith("speed:")]
    assert "the text encoder learns as well" in line and recorder.captures == 0
    assert same(go(t, dataset, recipe("text", text=TextConfig("clip"))).tensors,
                go(t, dataset, recipe("ordinary", speed="eager", text=TextConfig("clip"))).tensors)  # fmt: skip


@pytest.mark.skipif(not GPU, reason="a CPU has no other memory")
@pytest.mark.parametrize("way", [{"offload_activations": True}, {"offload_blocks": 0.5, "gradient_checkpointing": True}])
def test_moving_memory_is_said(tiny, dataset, recorder, way):  # noqa: F811
    said = told(tiny("sd3"), dataset, recipe(**way))
    assert len([line for line in said if line.startswith("speed:")]) == 1 and recorder.captures == 0


def test_copies_elsewhere_are_said(tiny, dataset, recorder, monkeypatch):  # noqa: F811
    monkeypatch.setattr(host.Model, "has_copies", True)
    said = told(tiny("sd3"), dataset, recipe())
    (line,) = [line for line in said if line.startswith("speed:")]
    assert "copies of the model on other GPUs" in line and recorder.captures == 0


def test_a_run_that_cannot_be_recorded_is_the_ordinary_one(tiny, dataset, monkeypatch):  # noqa: F811
    t, recorder = tiny("sd3"), recording(monkeypatch, Refusing(after=1))
    said = told(t, dataset, recipe("refused"))
    assert len([line for line in said if line.startswith("speed:")]) == 1 and recorder.captures == 2
    wanted = go(t, dataset, recipe("ordinary", speed="eager"))
    assert same(go(t, dataset, recipe("refused")).tensors, wanted.tensors)


def test_recorded_and_compiled_is_the_ordinary_run_as_well(tiny, dataset, recorder, monkeypatch):  # noqa: F811
    """Also where compiling turns out to be impossible, and puts the gradient back as it was before."""
    t = tiny("sd3")
    wanted = go(t, dataset, recipe("ordinary", speed="eager"))

    def fails(*_given: Any, **_named: Any) -> Any:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", fails)
    found = go(t, dataset, recipe("recorded", compile=True))
    # Nine steps, but for the first of each of the two sizes, in which blocks are only looked at.
    assert recorder.replays == 7 and same(found.tensors, wanted.tensors)


def test_ordinary_speed_says_nothing(tiny, dataset, recorder):  # noqa: F811
    said = told(tiny("sd3"), dataset, recipe(speed="eager"))
    assert not [line for line in said if line.startswith("speed:")] and recorder.captures == 0


class Crowded:
    """A device that has no memory for a step of a second form while one is recorded."""

    def __init__(self, monkeypatch, recorder: Recording):
        self.recorder, self.failed, self.real = recorder, 0, step.loss_of
        monkeypatch.setattr(loop, "loss_of", self)

    def __call__(self, session, inputs: step.StepInputs):
        loss = self.real(session, inputs)
        if len(self.recorder.alive) > 1 or (self.recorder.alive and inputs.noised.x.shape != self.first):
            self.failed += 1
            loss.backward()  # half of it is done
            no_memory()
        self.first = inputs.noised.x.shape
        return loss


@pytest.mark.parametrize("accumulate", [1, 2])
def test_without_memory_beside_recordings_they_go_first(tiny, dataset, monkeypatch, accumulate):  # noqa: F811
    t, optimizer = tiny("sd3"), OptimizerConfig(learning_rate=1e-2, accumulate=accumulate)
    recorder = recording(monkeypatch, Recording())
    with monkeypatch.context() as patch:
        device = Crowded(patch, recorder)
        said = told(t, dataset, recipe("crowded", optimizer=optimizer))
    assert device.failed == 1 and not recorder.alive
    (line,) = [line for line in said if line.startswith("speed:")]
    assert "no memory" in line and not [line for line in said if line.startswith("memory:")]
    found = go(t, dataset, recipe("crowded", optimizer=optimizer))
    assert same(found.tensors, go(t, dataset, recipe("ordinary", speed="eager", optimizer=optimizer)).tensors)


class Cancelling(Recording):
    """A person cancels in the middle of a recording; looks at what is left as it ends."""

    def __init__(self, patch, within: str):
        super().__init__()
        self.patch, self.within, self.left = patch, within, list[object]()
        patch.setattr(loop, "loss_of", self.loss_of)

    def loss_of(self, session, inputs):
        self.adapter = session.adapter
        return step.loss_of(session, inputs)

    def capture(self, work):
        failed: list[BaseException] = []
        with self.patch.context() as patch:
            asked = 0

            def counted(usual):
                def run(*given, **named):
                    nonlocal asked
                    asked += 1
                    if asked == 3:
                        raise KeyboardInterrupt
                    return usual(*given, **named)

                return run

            name = "multiplied" if self.within == "forward" else "matrix"
            patch.setattr(fused_linear, name, counted(getattr(fused_linear, name)))
            without_leftovers(work, failed)
        flat, together = self.adapter.flat, self.adapter._together
        self.left += [leaf for leaf in (*flat._leaves.values(), *flat._shared.values()) if leaf.tensor.grad is not None]
        self.left += list(together._waiting) if together is not None else []
        raise failed.pop()


@pytest.mark.parametrize("within", ["forward", "backward"])
def test_a_cancel_in_a_recording_leaves_nothing_of_it_behind(tiny, dataset, monkeypatch, within):  # noqa: F811
    """What is left would be given back later, which ends the process where memory comes from ``cudaMallocAsync``."""
    recorder = Cancelling(monkeypatch, within)
    recording(monkeypatch, recorder)
    with pytest.raises(KeyboardInterrupt):
        go(tiny("sd3"), dataset, recipe("cancelled", network=NetworkConfig(rank=4, **ATTENTION)))
    assert recorder.left == []


def test_other_models_go_before_recordings_do(tiny, dataset, monkeypatch):  # noqa: F811
    t, recorder, asked = tiny("sd3"), recording(monkeypatch, Recording()), list[object]()
    room = type(t.model).leave_room
    with monkeypatch.context() as patch:
        patch.setattr(step_context, "can_offload", lambda _device: True)
        patch.setattr(type(t.model), "leave_room", lambda model, needed: asked.append(needed) or room(model, needed))
        device = Crowded(patch, recorder)
        enough = device.real

        def loss_of(session, inputs):
            return enough(session, inputs) if None in asked else device(session, inputs)

        patch.setattr(loop, "loss_of", loss_of)
        said = told(t, dataset, recipe("others first"))
    assert device.failed == 1 and recorder.captures == 3, "the first size twice, the second once"
    assert not [line for line in said if line.startswith("speed:")]
    (line,) = [line for line in said if line.startswith("memory:")]
    assert "All other models are put aside" in line


def test_how_many_steps_are_recorded_is_said_where_they_are_few(tiny, dataset, recorder, monkeypatch):  # noqa: F811
    said = told(tiny("sd3"), dataset, recipe("all"))
    assert not [line for line in said if "are recorded as CUDA graphs" in line]
    monkeypatch.setattr(step_context, "MOST", 1)
    (line,) = [line for line in told(tiny("sd3"), dataset, recipe("few")) if "are recorded as CUDA graphs" in line]
    assert "about 67% of the steps" in line


@pytest.mark.parametrize(
    ("length", "steps"),
    [
        ({"epochs": 3}, 3), ({"epochs": 3, "save_every": 2}, 6), ({"epochs": 3, "save_every": 0, "save_every_steps": 4}, 4),
        ({"epochs": 3, "save_every": 0}, 9), ({"epochs": 9, "sample_every": 2}, 6), ({"epochs": 9, "sample_every_steps": 5}, 5),
        ({"epochs": 9, "sample_every": 1, "sample_every_steps": 2}, 2), ({"max_steps": 2}, 2),
    ],
)  # fmt: skip
def test_a_form_is_recorded_that_comes_often_between_two_samples(dataset, length, steps):  # noqa: F811
    config = recipe(length=LengthConfig(**length))
    plan = Plan(dataset, config.seed)
    assert plan.steps_per_epoch == 3
    total = config.length.max_steps or config.length.epochs * plan.steps_per_epoch
    assert loop.between_samples(config, plan, total) == steps


def test_samples_in_every_epoch_leave_too_few_steps_to_record(tiny, dataset, recorder, monkeypatch):  # noqa: F811
    monkeypatch.setattr(step_context, "AT_LEAST", 2)
    t, sampled = tiny("sd3"), Preview("a picture", "", 1, 1.0, "euler", "normal", 0, 32, 32)
    assert not [line for line in told(t, dataset, recipe("none")) if line.startswith("speed:")]
    captured = recorder.captures
    (line,) = [line for line in told(t, dataset, recipe("samples"), sampled) if line.startswith("speed:")]
    assert "about 67% of the steps" in line and "too seldom between two samples" in line
    assert recorder.captures == captured + 3, "one size, after each sample"


def test_without_memory_for_proving_the_step_is_done_by_itself(tiny, dataset, monkeypatch):  # noqa: F811
    """There is memory for a step, and none for one that is to be compared with another."""
    t, recorder = tiny("sd3"), recording(monkeypatch, Recording())
    with monkeypatch.context() as patch:
        patch.setattr(StepGraphs, "_distance", lambda *_: no_memory())
        said = told(t, dataset, recipe("unproved"))
    (line,) = [line for line in said if line.startswith("speed:")]
    assert "no memory for making one" in line and not [line for line in said if line.startswith("memory:")]
    assert not recorder.alive and recorder.captures == 1
    found = go(t, dataset, recipe("unproved"))
    assert same(found.tensors, go(t, dataset, recipe("ordinary", speed="eager")).tensors)


def test_steps_are_recorded_anew_with_settings_that_need_less(tiny, dataset, monkeypatch):  # noqa: F811
    t, recorder = tiny("sd3"), recording(monkeypatch, Recording())
    blocks, real = t.model.blocks(), step.loss_of

    def small(session, inputs):
        if not all("forward" in block.__dict__ for block in blocks):
            no_memory()
        return real(session, inputs)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "loss_of", small)
        said = told(t, dataset, recipe("less"))
    assert any("gradient_checkpointing is on" in line for line in said)
    assert recorder.captures == 2 and recorder.replays == 9
    checked: TrainingConfig = recipe("ordinary", speed="eager", gradient_checkpointing=True)
    assert same(go(t, dataset, recipe("less")).tensors, go(t, dataset, checked).tensors)
