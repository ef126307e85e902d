"""Models whose blocks are divided among several processes: what is learnt is what is learnt with the whole model in each.

The processes are real ones, and talk by gloo.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lora_atelier.demo.train import Machines
from lora_atelier.demo.workflow import WorkflowError
from lora_atelier.training.config import (
    LengthConfig,
    LossConfig,
    NetworkConfig,
    TextConfig,
    TrainingConfig,
    to_dict,
)
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.job.checks import check_sharding
from lora_atelier.training.network.adapter import Adapter
from lora_atelier.training.performance import memory, sharding
from lora_atelier.training.performance.fallback import cheaper
from lora_atelier.training.performance.filling import filled
from lora_atelier.training.performance.team import ALONE, Team
from lora_atelier.training.performance.thrift import Thrift
from lora_atelier.training.step import Passes, SliderInputs, StepInputs, directions, loss_of, noised, passes_of
from torch import Tensor, nn

from .test_team import PICTURES, begin, ended, files, history, named, pictures, recipe

__all__ = ["pictures"]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"model": "sd15", "recipe": recipe("plain"), "preview": 1, "subset": {"validation_share": 0.2}},
    "dora": {
        "model": "sd15", "recipe": recipe("dora", network=NetworkConfig(rank=2, weight_decompose=True, dropout=0.2)),
    },
    "again": {"model": "sd3", "recipe": recipe("again", gradient_checkpointing=True, text=TextConfig("clip", 5e-3))},
    "held": {
        "model": "sd15", "recipe": recipe("held", loss=LossConfig(preservation=1.0), length=LengthConfig(epochs=1)),
        "regularised": True, "subset": {"batch_size": 2},
    },
}  # fmt: skip
"""``held``: processes whose steps ask the model differently often. An update of seven pictures ends with less than one each."""


def runs(size: int) -> list[dict[str, Any]]:
    return [{**kind, "name": name, "recipe": to_dict(named(size, kind["recipe"]))} for name, kind in KINDS.items()]


ON_CPU = pytest.mark.cpu_only("on a GPU it takes one for each process")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, pictures: Path, comfyui: object) -> dict[str, Path]:
    """Folders of what one process, four with the whole model each, and two and four with parts of it have made."""
    folders = {}
    for name, size, shard in (("one", 1, False), ("whole", 4, False), ("two", 2, True), ("four", 4, True)):
        base = folders[name] = tmp_path_factory.mktemp(name)
        for code, said in ended(begin(size, base, pictures, runs(size), shard=shard)):
            assert code == 0, said
    return folders


def far(one: Path, other: Path, name: str) -> dict[str, float]:
    """Relative distances of all that is in the files of both."""
    mine, its = files(one, name), files(other, name)
    assert mine.keys() == its.keys() and mine
    out = {}
    for file, tensors in mine.items():
        assert tensors.keys() == its[file].keys()
        for key, expected in tensors.items():
            if expected.is_floating_point():
                out[f"{file} {key}"] = ((its[file][key] - expected).norm() / expected.norm().clamp_min(1e-6)).item()
    return out


@ON_CPU
@pytest.mark.parametrize("name", KINDS)
def test_parts_learn_what_whole_models_learn(found: dict[str, Path], name: str) -> None:
    distances = far(found["whole"], found["four"], name)
    # AdamW makes of a rounding of a UNet's gradient a step of the full rate where the gradient is next to nothing.
    assert max(distances.values()) <= (0.0 if KINDS[name]["model"] == "sd3" else 1e-3), distances
    for row, other in zip(history(found["whole"], name), history(found["four"], name), strict=True):
        assert other["loss"] == pytest.approx(row["loss"], rel=1e-5)


@ON_CPU
@pytest.mark.parametrize("size", ["two", "four"])
@pytest.mark.parametrize("name", KINDS)
def test_parts_learn_what_one_process_learns(found: dict[str, Path], name: str, size: str) -> None:
    assert max(far(found["one"], found[size], name).values()) <= 2e-3
    alone, together = history(found["one"], name), history(found[size], name)
    assert [row["step"] for row in together] == [row["step"] for row in alone] and together
    for row, other in zip(alone, together, strict=True):
        assert other["loss"] == pytest.approx(row["loss"], rel=1e-3)


@ON_CPU
def test_the_model_is_what_it_was_and_one_draws(found: dict[str, Path]) -> None:
    assert not any((base / "changed").exists() for base in found.values())
    drawn = [sorted(path.name for path in (base / "runs" / "plain").rglob("*.png")) for base in found.values()]
    assert drawn[0] and all(one == drawn[0] for one in drawn)


@ON_CPU
@pytest.mark.parametrize(("size", "how"), [(2, "killed"), (2, "fails"), (4, "within")])
def test_where_one_is_gone_all_end_and_what_was_learnt_is_kept(
    pictures: Path, tmp_path: Path, comfyui: object, size: int, how: str
) -> None:
    """``within``: others wait for its part of the weights."""
    one = {**runs(size)[0], "stop": 3 if how == "within" else 6, "how": how, "preview": 0}
    first, *_, last = ended(begin(size, tmp_path, pictures, [one], shard=True))
    assert last[0] == (9 if how == "killed" else 1) and first[0] == 1
    told = (
        "Process 1 of this training has failed: RuntimeError" if how == "fails" else "Another process of this training has ended"
    )
    assert told in first[1]
    assert 0 < len(history(tmp_path, "plain")) < 2 * PICTURES and files(tmp_path, "plain")
    assert not (tmp_path / "changed").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"offload_blocks": 0.5, "gradient_checkpointing": True}, "ConfigureLoRA.offload_blocks=0"),
        ({"compile": True}, "ConfigureLoRA.compile=false"),
        ({"offload_activations": True}, "ConfigureLoRA.offload_activations=false"),
    ],
)
def test_what_does_not_go_together_is_refused(
    changes: dict[str, Any], said: str, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parted = replace(ALONE, size=2, blocks=object())
    monkeypatch.setattr(Team, "way", "gloo")
    t = tiny("sd15")
    if t.model.device.type == "cpu":
        check_sharding(t.model, recipe("any"), parted)
    with pytest.raises(AtelierError, match=said):
        check_sharding(t.model, recipe("any", **changes), parted)
    check_sharding(t.model, recipe("any", **changes), ALONE)


def test_one_process_has_nobody_to_share_with() -> None:
    with pytest.raises(WorkflowError, match=r"--shard: one process.*--processes 2.*offload_blocks"):
        Machines(shard=True)
    assert Machines(2, shard=True).shard and Machines(1, 2, "a:1", shard=True).shard


def test_idle_passes_change_no_number(tiny: Any) -> None:
    t = tiny("sd15")
    model = t.model
    layers = {name: layer for name, layer in model.layers().items() if name.endswith(("to_q", "to_v"))}
    adapter = Adapter.fresh(layers, NetworkConfig(rank=2, alpha=1.0), 3).to(model.device)
    for branch in adapter.branches.values():
        nn.init.ones_(branch.up)
    x, e = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(1)).to(model.device)
    texts = [{name: value.to(model.device) for name, value in t.conditioning(i).items()} for i in range(2)]
    session: Any = SimpleNamespace(model=model, adapter=adapter, config=SimpleNamespace(loss=LossConfig()))
    found, passes = [], 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    handle = model.base.diffusion_model.register_forward_hook(count)
    try:
        with model.hold(), adapter.attached(layers):
            asked = noised(model, x, torch.tensor([1.0, 2.0], device=model.device), e, texts, [{}, {}])
            numbers = torch.tensor([0.0, 1.0, 1.0], device=model.device)
            inputs = StepInputs(asked, None, numbers, None, False, None, None)
            assert passes_of(session, inputs) == Passes(0, len(asked.given), 0, 0)
            for most in (None, Passes(0, len(asked.given) + 2, 1, 2)):
                loss = loss_of(session, replace(inputs, passes=most))
                found.append([loss.detach(), *torch.autograd.grad(loss, [*adapter.parameters()])])
            # Of a slider from pairs, both of whose directions are learnt; another process's may be one from prompts.
            pairs = replace(inputs, slider=SliderInputs(None, None, asked, 1.0))
            before = passes
            for most in (None, Passes(3, len(asked.given), 0, 0)):
                told = replace(pairs, passes=most)
                losses = [loss_of(session, one).detach() for one in directions(session, told)]
                found.append(losses)
            assert passes - before == 4 * len(asked.given) + 3 and torch.equal(torch.stack(found[2]), torch.stack(found[3]))
            passes = before
    finally:
        handle.remove()
    assert passes == 2 * len(asked.given) + 5 and found[0][-1].abs().max() > 0
    assert all(torch.equal(one, other) for one, other in zip(*found[:2], strict=True))


@pytest.fixture
def alone_in_a_group() -> Iterator[Any]:
    """torch's group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield dist.new_group(backend="gloo")
    finally:
        dist.destroy_process_group()


@ON_CPU
def test_a_part_that_is_everything_computes_the_same_and_leaves_nothing(tiny: Any, alone_in_a_group: Any) -> None:
    t = tiny("sd3")
    network = t.model.base.diffusion_model
    layers = {name: layer for name, layer in t.model.layers().items() if name.endswith("qkv")}
    adapter = Adapter.fresh(layers, NetworkConfig(rank=2, alpha=1.0), 3)
    x, e = torch.randn(2, 1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    shards, found, held = sharding.Shards(alone_in_a_group), [], []
    kinds = []  # as the host leaves them, which notes what it has loaded
    for way in (0.0, shards):
        with t.model.hold(offload=way), adapter.attached(layers):
            asked = noised(t.model, x, torch.tensor([0.5]), e, [t.conditioning(0)], [{}])
            answer = t.model.answer(asked.x, asked.sigma, asked.given)
            found.append([answer.detach(), *torch.autograd.grad(answer.square().mean(), [*adapter.parameters()])])
            held.append(shards.held)
            del answer
        kinds.append([(type(module), sorted(vars(module))) for module in network.modules()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert held == [0, sum(memory.Weights.of(t.model.blocks(), ()).blocks)]
    assert shards.held == 0 and shards.asked() != 0 and shards.asked() == 0
    assert kinds[0] == kinds[1]


class Packed(Tensor):
    """As packs for quantised files have it: numbers in a form of their own."""


def test_packed_weights_and_other_ways_are_refused() -> None:
    block = nn.Sequential(nn.Linear(4, 4))
    block[0]._parameters["weight"] = torch.zeros(4, 4).as_subclass(Packed)  # type: ignore[assignment]
    with pytest.raises(AtelierError, match=r"\(Packed\).*Load it in bf16"):
        sharding.check([block], torch.device("cpu"), "gloo")
    plain = nn.Sequential(nn.Linear(4, 4))
    sharding.check([plain], torch.device("cpu"), "gloo")
    sharding.check([plain], torch.device("cuda"), "nccl")
    with pytest.raises(AtelierError, match="NCCL"):
        sharding.check([plain], torch.device("cuda"), "gloo")
    with pytest.raises(AtelierError, match="no blocks"):
        sharding.check([], torch.device("cpu"), "gloo")


def test_the_forecast_counts_a_part_and_what_is_gathered() -> None:
    weights = memory.Weights((100, 200, 300, 400), 50)
    asked = Thrift(4, 4, compiled=True).sharing(4)
    assert weights.needed(asked) == 50 + 250 + 2 * 700
    assert asked.away == () and not asked.compiled
    device = torch.device("cuda")
    least = asked.recomputing(frozenset(range(4)))
    assert cheaper(asked.recomputing(frozenset(range(3))), device) == least
    assert cheaper(least, device) is None, "no block goes to main memory"
    blocks = tuple(memory.Block(100, 10, 1) for _ in range(4))
    known = memory.Measured(weights, memory.Activations(blocks, 0, 0), ((2, 2),))
    assert filled(known, TrainingConfig("any"), 1, asked, device, lambda need: False) == least
    assert "of the 4 processes holds 2.5 GB of the 10 GB" in memory.shared(memory.Weights((10**10,), 0), asked)
    assert "offload_blocks" not in memory.what_helps(TrainingConfig("any"), asked, 1, device)
    assert "more processes" in memory.what_helps(TrainingConfig("any"), asked, 1, device)
