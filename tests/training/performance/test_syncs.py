"""The loop waits for the device when it reports, and at no other time.

The proof needs no GPU: a copy of the model stands on the device ``meta``, whose tensors have no numbers. Whoever would make the
computer wait for a number - ``item``, ``tolist``, ``bool``, a copy back, a search whose result has no fixed size - gets an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from lora_atelier.training import host, loop
from lora_atelier.training.config import (
    LengthConfig,
    LossConfig,
    NetworkConfig,
    NoiseConfig,
    OptimizerConfig,
    SliderConfig,
    TrainingConfig,
)
from lora_atelier.training.dataset.cache import CACHE_LIMIT, TensorCache
from lora_atelier.training.dataset.encoded import EncodedDataset, work_of
from lora_atelier.training.dataset.plan import Plan
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.dataset.sliders import slider_of
from lora_atelier.training.loop import train
from lora_atelier.training.network.adapter import Adapter
from lora_atelier.training.network.scope import adaptable_layers, trained_layers
from lora_atelier.training.objective import noise
from lora_atelier.training.performance.device_work import DeviceWork
from lora_atelier.training.recorder import Callbacks
from lora_atelier.training.runs.run import Run
from lora_atelier.training.session import Session
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ...conftest import GPU, pretend_gpu
from ..test_job import dataset, recipe  # noqa: F401
from .on_meta import META, WithoutNumbers, memory_of_meta  # noqa: F401

STEPS = 6


def steps_begun(t, pictures: Dataset, folder, config: TrainingConfig, interval: float = 1e9) -> int:
    """How many steps begin before anything waits for the device; the report at the end of the run does, at the latest."""
    model, plan = WithoutNumbers(t.model), Plan(pictures, config.seed)
    layers, _ = adaptable_layers(model, None)
    layers = trained_layers(layers, config)
    adapter = Adapter.fresh(layers, config.network, config.seed).to(META)
    encoded = EncodedDataset(pictures, config.seed, t.codec, t.text, TensorCache(host.cache_folder(), CACHE_LIMIT))
    levels = noise.NoiseLevelSampler.suited(model.prediction, config.noise, t.model.sigmas)
    run = Run.begin("meta", folder / "runs", folder / "loras")
    begun: list[int] = []
    watcher = Callbacks(check=lambda: begun.append(1), interval=interval)
    with torch.inference_mode(False), pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        train(Session(model, None, layers, adapter, levels, encoded, plan, config), run, watcher)
    assert not (run.folder / "history.jsonl").exists()
    return len(begun)


@pytest.fixture(scope="module")
def one_epoch(dataset):  # noqa: F811
    """The pictures so often that no epoch ends within ``STEPS``."""
    (subset,) = dataset.subsets
    return Dataset((dataclasses.replace(subset, repeats=STEPS),))


PLAIN: dict[str, Any] = {"length": LengthConfig(max_steps=STEPS), "network": NetworkConfig(rank=4, targets="attention")}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "averages": {"ema_decay": 0.9},
    "accumulation": {"optimizer": OptimizerConfig(accumulate=2)},
    "dropout": {"network": NetworkConfig(4, targets="attention", dropout=0.2, rank_dropout=0.3, module_dropout=0.3)},
    "DoRA and norms": {"network": NetworkConfig(rank=4, targets="attention", weight_decompose=True, scale_weight_norms=0.1)},
    "noise": {"noise": NoiseConfig(pyramid_iterations=4, perturbation=0.1)},
    "loss": {"loss": LossConfig("huber", preservation=1.0, preservation_prompt="a picture")},
    "checkpointing": {"gradient_checkpointing": True},
    "SGD": {"optimizer": OptimizerConfig("SGD", 1e-2)},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_step_never_waits_for_the_device(tiny, one_epoch, tmp_path, setting):
    assert steps_begun(tiny("sd3"), one_epoch, tmp_path, recipe(**{**PLAIN, **SETTINGS[setting]})) == STEPS


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_its_loss_draws_nothing_and_takes_nothing_from_main_memory(tiny, one_epoch, tmp_path, monkeypatch, name, setting):
    """All that is random and all that comes from elsewhere is prepared before; else a recorded step would repeat it."""
    looked: list[int] = []

    def watched(*given: Any) -> Tensor:
        looked.append(1)
        with DeviceWork():
            return loss_of(*given)

    loss_of = loop.loss_of
    monkeypatch.setattr(loop, "loss_of", watched)
    assert steps_begun(tiny(name), one_epoch, tmp_path, recipe(**{**PLAIN, **SETTINGS[setting]})) == STEPS
    assert len(looked) == STEPS


@pytest.mark.parametrize("weighting", ["none", "min-SNR", "debiased"])
def test_nor_does_an_eps_model(tiny, one_epoch, tmp_path, weighting):
    config = recipe(**PLAIN, loss=LossConfig(weighting=weighting))
    assert steps_begun(tiny("sd15"), one_epoch, tmp_path, config) == STEPS


@pytest.mark.parametrize(("name", "package"), [("Lion", "pytorch_optimizer"), ("AdamWScheduleFree", "schedulefree"),
                                               ("Adafactor", "transformers"), ("CAME", "pytorch_optimizer"),
                                               ("Muon", "pytorch_optimizer")])  # fmt: skip
def test_nor_do_these_libraries(tiny, one_epoch, tmp_path, name, package):
    """Prodigy and D-adaptation, and Adafactor where it scales by the parameters, do: their authors' code reads its estimates."""
    pytest.importorskip(package)
    config = recipe(**PLAIN, optimizer=OptimizerConfig(name, 1e-3, schedule="constant"))
    assert steps_begun(tiny("sd3"), one_epoch, tmp_path, config) == STEPS


def test_a_report_does(tiny, one_epoch, tmp_path):
    """Else the tests above could not fail."""
    assert steps_begun(tiny("sd3"), one_epoch, tmp_path, recipe(**PLAIN), interval=0.0) == 1


class Reads(TorchDispatchMode):
    """Counts numbers that are read one by one."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def run_through(t, pictures: Dataset, folder, config: TrainingConfig, watcher: Callbacks) -> list[Any]:
    """A whole run with real numbers; its history."""
    plan = Plan(pictures, config.seed)
    layers, _ = adaptable_layers(t.model, None)
    layers = trained_layers(layers, config)
    adapter = Adapter.fresh(layers, config.network, config.seed).to(t.model.device)
    encoded = EncodedDataset(pictures, config.seed, t.codec, t.text, TensorCache(host.cache_folder(), CACHE_LIMIT))
    encoded.prepare(work_of(plan, 1), lambda done: None)
    levels = noise.NoiseLevelSampler.suited(t.model.prediction, config.noise, t.model.sigmas)
    steps = config.length.max_steps
    run = Run.begin(f"steps {steps}", folder / "runs", folder / "loras")
    with torch.inference_mode(False):
        train(Session(t.model, None, layers, adapter, levels, encoded, plan, config), run, watcher)
    return run.cut_history(steps)


def test_longer_runs_read_no_more_numbers(tiny, one_epoch, tmp_path):
    """The same with real numbers, from one report to the next, loss and all."""

    def reads(steps: int) -> int:
        config = recipe(**{**PLAIN, "length": LengthConfig(max_steps=steps)})
        with Reads() as mode:
            assert len(run_through(tiny("sd3"), one_epoch, tmp_path, config, Callbacks(interval=1e9))) == steps
        return mode.count

    reads(3)  # pictures and captions are looked at as they are encoded, which is done then
    assert reads(12) == reads(3)


@pytest.mark.skipif(GPU != "pretend", reason="counted by the pretended GPU")
@pytest.mark.parametrize("name", ["sd15", "sd3"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_gpu_is_never_waited_for_between_two_reports(tiny, one_epoch, tmp_path, name, setting):
    gpu, waits = pretend_gpu().install(), list[int]()
    config = recipe(**{**PLAIN, **SETTINGS[setting]})
    # Before the second step comes what the first one asks for besides: that the host lays all other models aside. The last
    # reading is that before the last step, which ends in a report.
    run_through(tiny(name), one_epoch, tmp_path, config, Callbacks(check=lambda: waits.append(gpu.waits), interval=1e9))
    assert len(waits) == STEPS and waits[1:] == [waits[1]] * (STEPS - 1)
    assert gpu.waits > waits[1]


def test_answers_of_several_shapes_of_text_come_back_in_order(tiny):
    """Pictures whose texts have several shapes go through the model in groups."""
    t = tiny("sd15")
    x = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1)).to(t.model.device)
    sigma = torch.tensor([0.5, 1.0, 2.0, 4.0], device=x.device)
    texts: list[dict[str, Tensor]] = [t.conditioning(seed) for seed in range(4)]
    for i in (0, 2):
        texts[i]["cond"] = texts[i]["cond"].repeat(1, 5, 1)
    with t.model.hold(), torch.no_grad():
        conditions = [t.model.condition(text, x[i : i + 1], {}) for i, text in enumerate(texts)]
        together = t.model.predict(x, sigma, conditions)
        alone = [t.model.predict(x[i : i + 1], sigma[i : i + 1], conditions[i : i + 1]) for i in range(4)]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_nor_does_a_slider(tiny, one_epoch, tmp_path):
    slider = SliderConfig(target="a person", positive="an old person", negative="a young person")
    config = recipe(**PLAIN, noise=NoiseConfig(level_draw="stratified"))
    assert steps_begun(tiny("sd3"), slider_of(one_epoch, slider), tmp_path, config) == STEPS
