"""What a run will need, against what autograd, the optimizers and the file really take."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterable

import pytest
import torch
from lora_atelier.training import host, job, step, step_context
from lora_atelier.training.config import LengthConfig, LossConfig, NetworkConfig, OptimizerConfig, TextConfig, TrainingConfig
from lora_atelier.training.errors import AtelierError, is_out_of_memory
from lora_atelier.training.network import lora_file, size
from lora_atelier.training.optim import optimizers
from lora_atelier.training.performance import memory
from lora_atelier.training.performance.thrift import Thrift
from safetensors.torch import save_file
from torch import nn

from ..conftest import FAMILIES
from ..host.test_host import latents, levels, new_adapter, one_loss
from ..network import support
from ..test_job import NO_PREVIEW, dataset, fresh_folders, go, recipe  # noqa: F401
from .test_checkpointing import gradients

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PACKAGES = {"Lion": "pytorch_optimizer", "CAME": "pytorch_optimizer", "Prodigy": "prodigyopt", "DAdaptAdam": "dadaptation",
            "DAdaptAdamW": "dadaptation", "AdamWScheduleFree": "schedulefree",
            "ProdigyPlusScheduleFree": "prodigyplus", "Muon": "pytorch_optimizer", "AdamW": "torch", "SGD": "torch",
            "Adafactor": "transformers"}  # fmt: skip


# Activations -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_measured_is_what_autograd_keeps(tiny, name):
    t = tiny(name)
    adapter = new_adapter(t)
    blocks = t.model.blocks()
    with t.model.hold(), adapter.attached(t.model.layers()):
        weights = [*t.model.weights(), *adapter.parameters()]
        found = memory.measure(blocks, weights, lambda: one_loss(t, latents(t, 2), levels(t, 2), [1, 2]))
    assert not any("forward" in block.__dict__ for block in blocks) and all(p.grad is None for p in adapter.parameters())
    _, plain = gradients(t, adapter, [])
    _, twice = gradients(t, adapter, blocks)
    own = memory.bytes_of(adapter.parameters())  # the other count has the adapter's own weights in it
    assert found.inside + found.outside == pytest.approx(plain, abs=own)
    assert found.outside + found.inputs == pytest.approx(twice, rel=0.35, abs=own)
    assert 0 < found.largest < found.inside and found.small <= found.inside + found.outside


def test_a_measured_pass_keeps_nothing_and_has_no_gradient():
    layer = nn.Linear(8, 8)
    found: list[torch.Tensor] = []
    got = memory.measure([layer], layer.parameters(), lambda: found.append(layer(torch.ones(4, 8)).exp().sum()))
    rows = 4 * 8 * 4  # the layer's input and the exponential's answer, fp32
    product = 2 * 4 * 8 * 8
    assert got == memory.Activations((memory.Block(rows, rows, product),), outside=rows, small=2 * rows)
    with pytest.raises(RuntimeError, match="measured"):
        found[0].backward()


def thrift(blocks: int, recomputed: Iterable[int] = (), **more: object) -> Thrift:
    return Thrift(blocks, blocks, frozenset(recomputed), **more)


def test_what_a_setting_keeps_of_them():
    blocks = (memory.Block(300, 10), memory.Block(400, 20), memory.Block(300, 20))
    one, plain = memory.Activations(blocks, outside=100, small=7), TrainingConfig("a")
    assert one.needed(thrift(3), plain, 3) == 3 * 1100
    assert one.needed(thrift(3, range(3)), plain, 3) == 3 * (100 + 10 + 20 + 400), "the largest, and what comes before it"
    assert one.needed(thrift(3, [0]), plain, 1) == 100 + 10 + 400 + 300, "by then what later blocks kept is gone"
    assert one.needed(thrift(3, [2]), plain, 1) == 100 + 300 + 400 + 20 + 300, "the last one comes on top of all"
    assert one.needed(thrift(3, activations_away=True), plain, 3) == 3 * 407
    turned = memory.Activations(blocks, outside=100, small=7, order=(2, 1, 0))
    assert turned.needed(thrift(3, [2]), plain, 1) == 100 + 20 + 400 + 300
    asked_twice = LossConfig(preservation=1.0, preservation_prompt="a woman")
    assert one.needed(thrift(3), TrainingConfig("a", loss=asked_twice), 1) == 2 * 1100


# The adapter ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PACKAGES)
def test_the_optimizers_states_are_as_large_as_its_real_ones(name):
    if importlib.util.find_spec(PACKAGES[name]) is None:
        pytest.skip(f"{PACKAGES[name]} is not installed")
    adaptive = name in ("Prodigy", "DAdaptAdam", "DAdaptAdamW", "ProdigyPlusScheduleFree")
    config = OptimizerConfig(name, 1.0 if adaptive else 1e-3, schedule="constant")
    parameters = [nn.Parameter(torch.randn(shape)) for shape in ((16, 300), (300, 16), (8, 60, 3, 3))]
    optimizer = optimizers.build(config, [(parameters, config.peak)])
    for p in parameters:
        p.grad = torch.randn(p.shape)
    optimizer.step()
    real = sum(v.nbytes for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor))
    assert memory.state_bytes(config, [p.shape for p in parameters]) == pytest.approx(real, rel=0.02, abs=100)


@pytest.mark.parametrize("arguments", ["factored=false", "use_focus=true", "use_schedulefree=false", "use_speed=true"])
def test_the_states_of_prodigy_plus_are_counted_as_it_is_set(arguments):
    pytest.importorskip("prodigyplus")
    config = OptimizerConfig("ProdigyPlusScheduleFree", 1.0, schedule="constant", optimizer_args=arguments)
    parameters = [nn.Parameter(torch.randn(shape)) for shape in ((16, 300), (300, 16), (8, 60, 3, 3), (16, 16), (99,))]
    optimizer = optimizers.build(config, [(parameters, 1.0)])
    for p in parameters:
        p.grad = torch.randn(p.shape)
    optimizer.step()
    real = sum(v.nbytes for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor))
    assert memory.state_bytes(config, [p.shape for p in parameters]) == real


def test_muon_keeps_one_number_for_a_matrix_and_two_for_a_row():
    assert memory.state_bytes(OptimizerConfig("Muon"), [(4, 6), (3, 2, 3, 3), (1, 9), (9, 1), (7,)]) == 4 * (24 + 54) + 8 * 25


@pytest.mark.parametrize(("name", "small", "large"), [("AdamW8bit", 8, 2), ("Lion8bit", 4, 1)])
def test_eight_bit_optimizers_keep_small_tensors_as_they_are(name, small, large):
    assert memory.state_bytes(OptimizerConfig(name), [(64, 63), (64, 64)]) == small * 64 * 63 + large * 64 * 64


def test_sgd_without_momentum_keeps_nothing():
    assert memory.state_bytes(OptimizerConfig("SGD", optimizer_args="momentum=0"), [(4, 4)]) == 0
    assert memory.state_bytes(OptimizerConfig("SGD"), [(4, 4)]) == 64


def test_weights_gradients_and_averages_are_counted():
    parameters = [(10, 10)]
    plain, averaged = (TrainingConfig("a", ema_decay=decay) for decay in (0.0, 0.9))
    assert memory.adapter_needs(parameters, plain) == 100 * (4 + 4 + 4 + 8)
    assert memory.adapter_needs(parameters, averaged) == 100 * (4 + 4 + 4 + 4 + 8)


@pytest.mark.parametrize("kind", support.KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["fp16", "fp32"])
def test_the_files_size_is_known_before_anything_is_trained(tmp_path, kind, dtype):
    if kind.startswith(("LoHa", "LoKr")):
        pytest.importorskip("lycoris")
    where, config = support.layers(), support.KINDS[kind]
    path = tmp_path / "a.safetensors"
    save_file(lora_file.to_file(support.trained(where, config), support.names(), "SDXL", dtype, where), path)
    data = path.read_bytes()
    numbers = len(data) - 8 - int.from_bytes(data[:8], "little")
    shapes = {name: layer.to("meta") for name, layer in support.layers().items()}
    assert size.adapter_bytes(shapes, config, dtype) == numbers


@pytest.mark.parametrize("kind", support.KINDS)
def test_what_will_be_trained_is_known_before_there_is_an_adapter(kind):
    if kind.startswith(("LoHa", "LoKr")):
        pytest.importorskip("lycoris")
    where, config = support.layers(), support.KINDS[kind]
    real = [tuple(p.shape) for p in support.trained(where, config).parameters() if p.requires_grad]
    shapes = {name: layer.to("meta") for name, layer in support.layers().items()}
    planned = size.adapter_shapes(shapes, config)
    assert sum(map(math.prod, planned)) == sum(map(math.prod, real))
    training = TrainingConfig("a", network=config)
    assert memory.adapter_needs(planned, training) == memory.adapter_needs(real, training)


def test_rules_count(tmp_path):
    where = support.layers()
    plain = size.adapter_bytes(where, NetworkConfig(4), torch.float16)
    ruled = size.adapter_bytes(where, NetworkConfig(4, rules="mid.fc rank=5"), torch.float16)
    assert ruled - plain == 2 * (30 + 42)


# In words ---------------------------------------------------------------------------------------------------------------


def test_the_line():
    need = memory.Need(5_100_000_000, 200_000_000, 4_540_000_000)
    assert memory.line(need, 23_400_000_000) == (
        "needs about 9.8 GB: 5.1 model, 0.2 LoRA and optimizer, 4.5 activations; 23 GB free"
    )
    small = memory.Need(120_000_000, 3_000_000, 40_500_000)
    assert memory.line(small, 1_500_000_000) == (
        "needs about 163.5 MB: 120.0 model, 3.0 LoRA and optimizer, 40.5 activations; 1.5 GB free"
    )
    assert memory.fits(need, 11_000_000_000) and not memory.fits(need, 10_000_000_000)


def test_what_helps_names_only_what_is_not_done_yet():
    def helps(config: TrainingConfig, pictures: int, device: torch.device) -> str:
        return memory.what_helps(config, Thrift.asked(config, 4, 4, device), pictures, device)

    plain = helps(TrainingConfig("a", network=NetworkConfig(64)), 4, CUDA)
    order = [
        "gradient_checkpointing", "batch_size", "offload_activations", "offload_blocks", "base_weights", "resolution", "rank",
        "AdamW8bit",
    ]  # fmt: skip
    places = [plain.index(word) for word in order]
    assert places == sorted(places)
    done = TrainingConfig(
        "a", optimizer=OptimizerConfig("AdamW8bit"), gradient_checkpointing=True, offload_activations=True, offload_blocks=0.5,
        base_weights="int8",
    )  # fmt: skip
    assert helps(done, 1, CUDA) == "What helps, most first: lower resolution."
    assert "Lion8bit" in helps(TrainingConfig("a", optimizer=OptimizerConfig("Lion", 1e-5)), 1, CUDA)
    text = TrainingConfig("a", text=TextConfig("clip"), precision="fp32")
    assert "precision to bf16" in helps(text, 1, CUDA) and "text_encoder to none" in helps(text, 1, CPU)
    assert "offload" not in helps(TrainingConfig("a"), 1, CPU)


def test_a_real_lack_of_memory_is_known():
    with pytest.raises(RuntimeError) as found:
        torch.empty(2**58, dtype=torch.float64)
    assert is_out_of_memory(found.value)
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("a shape does not fit"))


# In a run ---------------------------------------------------------------------------------------------------------------


def told(t, data, config: TrainingConfig, preview: job.Preview = NO_PREVIEW) -> list[str]:
    said: list[str] = []
    with torch.inference_mode():
        job.run_training(
            t.model, t.text, t.codec, data, config, preview=preview, graph={}, show=said.append
        )  # fmt: skip
    return said


def test_a_run_says_what_it_needs_before_its_first_step(tiny, dataset):  # noqa: F811
    said = told(tiny("sd3"), dataset, recipe())
    place = next(i for i, line in enumerate(said) if line.startswith("needs about"))
    line = r"needs about [\d.]+ [GM]B: [\d.]+ model, [\d.]+ LoRA and optimizer, [\d.]+ activations; [\d.]+ [GM]B free"
    assert re.fullmatch(line, said[place])
    assert not any("step" in line for line in said[:place])


def test_checkpointing_and_a_text_encoder_are_seen(tiny, dataset):  # noqa: F811
    def activations(**changes: object) -> float:
        config = recipe(length=LengthConfig(max_steps=1), **changes)
        said = next(line for line in told(tiny("sd15"), dataset, config) if line.startswith("needs about"))
        value, unit = float(re.search(r"([\d.]+) activations", said)[1]), said.split()[3]
        return value * (1000 if unit == "GB:" else 1)

    plain = activations(name="plain")
    assert activations(name="twice", gradient_checkpointing=True) < 0.7 * plain
    if tiny("sd15").text.device == tiny("sd15").model.device:  # else they lie in another memory
        assert activations(name="text", text=TextConfig("clip", 1e-3)) > 1.1 * plain


def test_too_little_is_a_warning_only(tiny, dataset, monkeypatch):  # noqa: F811
    monkeypatch.setattr(host, "free_bytes", lambda device: 0)
    said = told(tiny("sd3"), dataset, recipe())
    (warning,) = [line for line in said if "will probably not fit" in line]
    assert "it would not fit as it is set. For this run gradient_checkpointing is on" in "".join(said)
    assert "gradient_checkpointing" not in warning and "lower batch_size" in warning
    assert any(line.startswith("epoch 3/3") for line in said)


def test_running_out_of_memory_keeps_what_was_learnt_and_says_what_helps(tiny, dataset, monkeypatch):  # noqa: F811
    real, count = step.prepare, iter(range(100))

    def hungry(*given: object) -> torch.Tensor:
        if next(count) >= 4:
            torch.empty(2**58, dtype=torch.float64)
        return real(*given)

    monkeypatch.setattr(step_context, "prepare", hungry)
    with pytest.raises(AtelierError, match=r"memory: the device ran out of memory after step.*most first: lower batch_size"):
        go(tiny("sd3"), dataset, recipe(gradient_checkpointing=True, offload_blocks=1.0))
    assert (host.loras_folder() / "tiny" / "tiny-step00000004.safetensors").is_file()
