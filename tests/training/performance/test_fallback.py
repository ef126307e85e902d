"""A run without enough memory goes on with less, says so, and ends with the LoRA that it would have made with more."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training import host, loop, step, step_context
from lora_atelier.training.config import LengthConfig, OptimizerConfig, TrainingConfig
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.estimate import preflight
from lora_atelier.training.performance import memory
from lora_atelier.training.performance.fallback import cheaper, steps_down
from lora_atelier.training.performance.thrift import Thrift, difference

from ..test_job import NO_PREVIEW, dataset, fresh_folders, go, recipe  # noqa: F401
from ..test_mishaps import no_memory, run_of
from .test_memory import told

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def asked(device: torch.device = CUDA, blocks: int = 6, movable: int = 4, **settings: object) -> Thrift:
    return Thrift.asked(TrainingConfig("a", **settings), blocks, movable, device)


def test_step_by_step_on_a_gpu():
    """Six blocks, of which four are the model's."""
    first = asked(compile=True)
    ways = list(steps_down(first, CUDA))
    assert [(sorted(w.recomputed), w.away, w.compiled) for w in ways] == [
        ([], (), True), ([0, 1, 2], (), True), ([0, 1, 2, 3, 4, 5], (), True),
        ([0, 1, 2, 3, 4, 5], (1, 3), False), ([0, 1, 2, 3, 4, 5], (0, 1, 2, 3), False),
    ]  # fmt: skip
    assert ways[0] is first and cheaper(ways[-1], CUDA) is None
    assert difference(ways[0], ways[1]) == "3 of 6 blocks are computed twice (gradient_checkpointing)"
    assert difference(ways[1], ways[2]) == "gradient_checkpointing is on"
    assert difference(ways[0], ways[3]) == (
        "gradient_checkpointing is on, 2 of 4 blocks of the model stay in main memory (offload_blocks), compile is off"
    )
    assert difference(first, first) == ""
    own = asked(gradient_checkpointing=True, offload_blocks=0.7)
    assert [len(w.away) for w in steps_down(own, CUDA)] == [3, 4]
    assert sorted(cheaper(asked(), CUDA, order=[5, 3, 1, 0, 2, 4]).recomputed) == [1, 3, 5], "those that cost least"


def test_where_there_is_only_main_memory_nothing_can_wait_in_it():
    settings = {"gradient_checkpointing": True, "offload_blocks": 0.5, "offload_activations": True}
    plain = asked(CPU, **settings)
    assert plain == asked(CPU, gradient_checkpointing=True) and plain.away == () and not plain.activations_away
    assert asked(CUDA, **settings).away == (1, 3) and asked(CUDA, **settings).activations_away
    assert list(steps_down(plain, CPU)) == [plain]


@given(st.integers(1, 12), st.integers(0, 12), st.booleans(), st.sampled_from(["cpu", "cuda"]))
def test_every_step_down_gives_up_more_and_keeps_what_may_stand_together(blocks, movable, compiled, kind):
    movable = min(blocks, movable)
    ways = list(steps_down(asked(torch.device(kind), blocks, movable, compile=compiled), torch.device(kind)))
    for before, after in pairwise(ways):
        assert before.recomputed <= after.recomputed and len(before.away) <= len(after.away) and difference(before, after)
    for way in ways:
        assert set(way.away) <= way.recomputed and not (way.away and way.compiled)
    assert ways[-1].recomputes_all and len(ways[-1].away) == (movable if kind == "cuda" else 0)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"offload_blocks": 0.5}, "offload blocks: without gradient_checkpointing"),
        ({"offload_blocks": 1.5, "gradient_checkpointing": True}, "outside 0 to 1"),
        ({"offload_blocks": 0.5, "gradient_checkpointing": True, "compile": True}, "compile: blocks whose weights come and go"),
    ],
)
def test_contradictions(settings, sentence):
    with pytest.raises(AtelierError, match=sentence):
        TrainingConfig("a", **settings)


def test_weights_by_blocks_are_all_weights(tiny):
    for name in ("sd15", "sd3"):
        model = tiny(name).model
        weights = preflight.weights_of(model, None)
        everything = memory.bytes_of(model.weights())
        assert weights.outside + sum(weights.blocks) == everything and 0 < weights.outside < everything
        count = len(weights.blocks)
        assert weights.needed(Thrift(count, count)) == everything
        every_one = Thrift(count, count).keeping_away(tuple(range(count)))
        assert weights.needed(every_one) == weights.outside + sum(sorted(weights.blocks)[-2:])


# Before the first step


@pytest.mark.parametrize("part", [0.5, 0.0], ids=["some", "all"])
def test_a_run_that_would_not_fit_begins_with_what_fits(tiny, dataset, monkeypatch, part):  # noqa: F811
    """So much is free that all blocks that free any memory have to be computed twice, or that fewer will do."""
    t = tiny("sd15")
    count, real, found = len(t.model.blocks()), preflight.measured, []

    def between(*given):
        found.append(real(*given))
        plain, twice = (found[-1].need(thrift, recipe(), 2) for thrift in (Thrift(count, count), every(count)))
        free = math.ceil(memory.MARGIN * (twice.total + part * (plain.total - twice.total)))
        monkeypatch.setattr(host, "free_bytes", lambda _device: free - plain.model)
        return found[-1]

    whole = go(t, dataset, recipe("whole"))
    with monkeypatch.context() as patch:
        patch.setattr(preflight, "measured", between)
        said = told(t, dataset, recipe("less"))
    (line,) = [line for line in said if line.startswith("memory:")]
    some = re.search(rf"For this run (\d+) of {count} blocks are computed twice", line)
    assert some is not None or "For this run gradient_checkpointing is on; that is slower, to the same LoRA." in line
    chosen = int(some[1]) if some is not None else count
    assert 0 < chosen <= count and (part == 0.0 or chosen < count)
    assert any(line.startswith("needs about") for line in said)
    assert run_of("less").finished()
    assert_close(whole.tensors, go(t, dataset, recipe("less")).tensors)


def every(count: int) -> Thrift:
    """A model's blocks all computed twice."""
    return Thrift(count, count, frozenset(range(count)))


# On the way


class Small:
    """A device on which a step fits only under checkpointing; what does not fit fails half-way, its gradients half added."""

    def __init__(self, monkeypatch, t, from_step: int):
        self.real, self.blocks, self.failed = step.loss_of, t.model.blocks(), 0
        self.from_step, self.step = from_step, 0
        monkeypatch.setattr(loop, "loss_of", self)
        monkeypatch.setattr(step_context, "prepare", self.prepare)

    def prepare(self, *given):
        self.step = given[-1]
        return step.prepare(*given)

    def __call__(self, *given):
        found = self.real(*given)
        if self.step >= self.from_step and not all("forward" in block.__dict__ for block in self.blocks):
            self.failed += 1
            found.backward()
            no_memory()
        return found


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("step", [0, 3, 5])
def test_a_step_that_does_not_fit_is_done_again_with_less(tiny, dataset, monkeypatch, step, accumulate):  # noqa: F811
    t = tiny("sd3")
    settings = {"optimizer": OptimizerConfig(learning_rate=1e-3, accumulate=accumulate), "length": LengthConfig(max_steps=7)}
    whole = go(t, dataset, recipe("whole", **settings))
    with monkeypatch.context() as patch:
        device = Small(patch, t, step)
        said = told(t, dataset, recipe("less", **settings))
    half, count = -(-len(t.model.blocks()) // 2), len(t.model.blocks())
    are = "is" if half == 1 else "are"
    lines = [
        f"The run goes on, slower: {half} of {count} blocks {are} computed twice (gradient_checkpointing).",
        "The run goes on, slower: gradient_checkpointing is on.",
    ]
    if t.model.device.type == "cuda":  # only there can anything be put aside
        lines.insert(0, "All other models are put aside.")
    assert [line for line in said if line.startswith("memory:")] == [f"memory: the device has no more of it. {x}" for x in lines]
    assert device.failed == len(lines), "what was found out once stays"
    assert len(run_of("less").cut_history(7)) == 7
    assert_close(whole.tensors, go(t, dataset, recipe("less", **settings)).tensors)
    assert not any("forward" in block.__dict__ for block in t.model.blocks())


def test_other_models_are_put_aside_before_anything_is_given_up(tiny, dataset, monkeypatch):  # noqa: F811
    """As on a GPU, where models that were left beside this one take memory; then the step is the same one."""
    t = tiny("sd3")
    whole = go(t, dataset, recipe("whole"))
    rooms: list[int | None] = []
    real, real_room, failed = step.prepare, host.Model.leave_room, []

    def crowded(*given):
        if given[-1] == 4 and not failed:
            failed.append(given[-1])
            no_memory()
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(step_context, "can_offload", lambda _device: True)
        patch.setattr(step_context, "prepare", crowded)
        patch.setattr(host.Model, "leave_room", lambda self, needed: rooms.append(needed) or real_room(self, needed))
        said = told(t, dataset, recipe("crowded"))
    need = 1.1 * preflight_need(said)
    assert len(rooms) == 2 and 0 < rooms[0] < need and rooms[1] is None, "so much as the run needs, and then all there is"
    (line,) = [line for line in said if line.startswith("memory:")]
    assert line == "memory: the device has no more of it. All other models are put aside."
    crowded_run = go(t, dataset, recipe("crowded")).tensors
    assert all(torch.equal(tensor, crowded_run[name]) for name, tensor in whole.tensors.items())


def preflight_need(said: list[str]) -> float:
    """Bytes, from what a run says of its need."""
    line = next(line for line in said if line.startswith("needs about"))
    _, _, number, unit, *_ = line.split()
    return float(number) * {"GB:": memory.GB, "MB:": memory.MB}[unit]


def test_when_nothing_is_left_to_give_up_it_says_what_helps(tiny, dataset, monkeypatch):  # noqa: F811
    t = tiny("sd3")
    calls = []

    def never(*given):
        calls.append(given[-1])
        no_memory()

    monkeypatch.setattr(step_context, "prepare", never)
    with pytest.raises(AtelierError, match=r"out of memory after step 0.*most first: lower batch_size"):
        go(t, dataset, recipe())
    # On a GPU also without other models, with a half of the blocks away, and with all of them.
    assert calls == [0] * (6 if t.model.device.type == "cuda" else 3)


def test_another_error_is_not_taken_for_it(tiny, dataset, monkeypatch):  # noqa: F811
    calls = []

    def broken(*given):
        calls.append(given[-1])
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(step_context, "prepare", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        go(tiny("sd3"), dataset, recipe())
    assert calls == [0]


def test_a_run_goes_on_where_blocks_were_moved_but_not_with_another_gradient(tiny, dataset):  # noqa: F811
    """Where weights lie changes no number, so such a run is the same one."""
    t = tiny("sd3")
    first = go(t, dataset, recipe("moved", gradient_checkpointing=True))
    again = go(t, dataset, recipe("moved", gradient_checkpointing=True, offload_blocks=1.0))
    assert again.epochs.name == first.epochs.name == "moved"
    assert go(t, dataset, recipe("moved")).epochs.name == "moved", "nor does computing a second time what was not kept"
    assert go(t, dataset, recipe("moved", precision="bf16")).epochs.name == "moved-2"


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """All weights together: a number whose gradient is nothing but rounding moves by AdamW's full step all the same."""
    assert one.keys() == other.keys()
    far = torch.cat([(one[name].float() - other[name].float()).flatten() for name in one]).norm()
    assert far < 1e-3 * torch.cat([tensor.float().flatten() for tensor in one.values()]).norm()
