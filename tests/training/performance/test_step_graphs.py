"""Recorded steps: the numbers of the ordinary ones, replayed from fixed places, and a run that goes on where that fails."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.performance.device_work import DeviceWork, NotDeviceWork
from lora_atelier.training.performance.recording import NotTried, recorder_for
from lora_atelier.training.performance.step_graphs import OF_A_FORM, StepGraphs
from lora_atelier.training.tensors.tree import Opaque, put_together, taken_apart
from torch import Tensor, nn

from ...conftest import GPU
from .graph_recorders import Recording, Refusing, Wrong


@dataclasses.dataclass(frozen=True)
class Given:
    x: Tensor
    beside: list[dict[str, Any]]
    parts: Tensor
    flag: bool = False


class Bench:
    """A small network whose gradient lies in one tensor, and its recorded steps."""

    def __init__(self, recorder: Any, computes_in: torch.dtype = torch.float32, wanted: Callable[[], Any] | None = None):
        torch.manual_seed(3)
        self.network = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 6))
        numbers = [p.numel() for p in self.network.parameters()]
        self.gradient = torch.zeros(sum(numbers))
        for p, place in zip(self.network.parameters(), self.gradient.split(numbers), strict=True):
            p.grad = place.view_as(p)
        if isinstance(recorder, Wrong):
            recorder.gradient = self.gradient
        self.said: list[str] = []
        self.passes = 0
        self.asked: list[int] = []

        def forms() -> Any:
            self.asked.append(1)
            return (3, 4) if wanted is None else wanted()

        self.graphs = StepGraphs(recorder, self.learn, [self.gradient], forms, computes_in, self.said.append)

    def learn(self, given: Given) -> Tensor:
        self.passes += 1
        out = self.network(given.x) * given.beside[0]["gain"]
        loss = (out - given.beside[0]["wanted"]).square().mean()
        (-loss if given.flag else loss).div(given.parts).backward()
        return loss.detach()

    def given(self, seed: int, rows: int = 3, flag: bool = False, parts: float = 1.0) -> Given:
        stream = torch.Generator().manual_seed(seed)
        beside = {"gain": torch.rand(rows, 1, generator=stream), "wanted": torch.randn(rows, 6, generator=stream), "name": "a"}
        return Given(torch.randn(rows, 6, generator=stream), [beside], torch.tensor(parts), flag)

    def step(self, seed: int, rows: int = 3, **more: Any) -> Tensor:
        given = self.given(seed, rows, **more)
        return self.graphs.run(given, lambda: rows, self.learn)

    def plain(self, seed: int, rows: int = 3, **more: Any) -> tuple[Tensor, Tensor]:
        """(loss, gradient that it adds) of the ordinary step."""
        before, passes = self.gradient.clone(), self.passes
        self.gradient.zero_()
        loss, added = self.learn(self.given(seed, rows, **more)), self.gradient.clone()
        self.gradient.copy_(before)
        self.passes = passes
        return loss, added


@pytest.mark.parametrize("eager", [False, True])
def test_replays_are_the_ordinary_steps_with_their_own_inputs(eager):
    recorder = Recording(eager)
    bench = Bench(recorder)
    for number, (seed, rows) in enumerate([(1, 3), (2, 3), (3, 4), (4, 3), (5, 4), (6, 4)]):
        bench.gradient.fill_(0.5)  # as after batches before
        loss, added = bench.plain(seed, rows, parts=1.0 + number)
        assert torch.equal(bench.step(seed, rows, parts=1.0 + number), loss)
        assert torch.allclose(bench.gradient, 0.5 + added, atol=1e-7)
    assert recorder.captures == 2 and recorder.replays == 6, "the first step of a shape is a replay too"
    assert len(bench.graphs) == 2 and bench.said == [] and bench.asked == [1]
    if not eager:  # the proof, an ordinary pass and the recording of each shape: no Python runs in a replay
        assert bench.passes == 6


def test_weights_may_change_between_replays():
    bench, bare = Bench(Recording()), Bench(Recording())
    for step in range(6):
        for each in (bench, bare):
            each.gradient.zero_()
            each.step(step) if each is bench else each.learn(each.given(step))
            with torch.no_grad():
                for p in each.network.parameters():
                    p -= 0.1 * p.grad
    assert all(torch.equal(a, b) for a, b in zip(bench.network.parameters(), bare.network.parameters(), strict=True))


def test_what_is_not_a_tensor_makes_another_recording_and_what_was_lent_is_not_kept():
    recorder = Recording()
    bench = Bench(recorder)
    first = bench.given(1)
    bench.graphs.run(first, lambda: 3, bench.learn)
    (before,) = (t.clone() for t in taken_apart(first)[0][:1])
    bench.step(2)
    assert torch.equal(first.x, before), "inputs are copied, not taken"
    bench.gradient.zero_()
    _, added = bench.plain(3, flag=True)
    bench.step(3, flag=True)
    assert recorder.captures == 2 and torch.equal(bench.gradient, added)


def test_losses_of_earlier_replays_stay():
    bench = Bench(Recording())
    wanted = [bench.plain(seed)[0] for seed in range(4)]
    assert torch.equal(torch.stack([bench.step(seed) for seed in range(4)]), torch.stack(wanted))


def test_only_wanted_forms_are_recorded():
    recorder = Recording()
    bench = Bench(recorder, wanted=lambda: [4])
    for seed in range(4):
        loss, added = bench.plain(seed, 3)
        bench.gradient.zero_()
        assert torch.equal(bench.step(seed, 3), loss) and torch.equal(bench.gradient, added)
    assert recorder.captures == 0 and bench.passes == 4
    bench.step(1, 4)
    assert recorder.captures == 1 and bench.said == []


def test_dropped_recordings_give_their_memory_back_and_are_made_anew():
    recorder = Recording()
    bench = Bench(recorder)
    bench.step(1)
    bench.graphs.drop()
    bench.graphs.drop()
    assert recorder.emptied_times == 1 and not recorder.alive
    bench.gradient.zero_()
    loss, added = bench.plain(2)
    assert torch.equal(bench.step(2), loss) and torch.equal(bench.gradient, added)
    assert recorder.captures == 2


def after(bench: Bench, seed: int = 1) -> None:
    """An ordinary step, and once what was said."""
    bench.gradient.fill_(0.25)
    loss, added = bench.plain(seed)
    assert torch.equal(bench.step(seed), loss)
    assert torch.allclose(bench.gradient, 0.25 + added, atol=1e-7)


def test_a_capture_that_fails_costs_speed_only_and_is_told_once():
    recorder = Refusing()
    bench = Bench(recorder)
    for seed in range(3):
        after(bench, seed)
    (line,) = bench.said
    assert line == (
        "speed: training steps cannot be recorded as CUDA graphs (RuntimeError: operation not permitted when stream is "
        "capturing); the run goes on one operation at a time, slower, to the same LoRA."
    )
    assert recorder.captures == 1 and not bench.graphs.active


def test_earlier_recordings_go_with_a_capture_that_fails():
    recorder = Refusing(after=1)
    bench = Bench(recorder)
    bench.step(1, 3)
    after(bench)
    bench.step(2, 4)
    after(bench)
    assert not recorder.alive and len(bench.said) == 1


@pytest.mark.parametrize(
    ("share", "computes_in", "right"),
    [
        (2e-6, torch.float32, True), (5e-5, torch.float32, False), (5e-3, torch.bfloat16, True), (5e-2, torch.bfloat16, False),
        (5e-2, torch.float16, False), (-1.0, torch.bfloat16, False), (float("nan"), torch.bfloat16, False),
    ],
)  # fmt: skip
def test_a_replay_with_another_gradient_is_found_out(share, computes_in, right):
    recorder = Wrong(share=share)
    bench = Bench(recorder, computes_in)
    if right:
        bench.step(1)
        assert bench.graphs.active and bench.said == [] and recorder.replays == 1
        return
    after(bench)
    (line,) = bench.said
    assert "gave another gradient" in line and not recorder.alive and not bench.graphs.active


def test_without_memory_for_one_more_the_others_stay():
    recorder = Refusing(error=RuntimeError("CUDA out of memory. Tried to allocate"), after=1)
    bench = Bench(recorder)
    bench.step(1, 3)
    for seed in range(3):
        loss, added = bench.plain(seed, 4)
        bench.gradient.zero_()
        assert torch.equal(bench.step(seed, 4), loss) and torch.equal(bench.gradient, added)
    (line,) = bench.said
    assert line.startswith("speed: there is no memory to record more") and "1 of the picture sizes" in line
    replays = recorder.replays
    bench.step(5, 3)
    assert recorder.replays == replays + 1 and recorder.captures == 2


def test_once_the_others_are_gone_there_may_be_memory_again():
    recorder = Refusing(error=RuntimeError("CUDA out of memory. Tried to allocate"), after=1)
    bench = Bench(recorder)
    bench.step(1, 3)
    bench.step(1, 4)
    bench.graphs.drop()  # as for a sample
    recorder.after = 9
    bench.step(2, 4)
    bench.step(2, 3)
    assert len(bench.graphs) == 2 and len(bench.said) == 1


def test_a_lack_of_memory_that_is_told_again_and_again_is_said_once():
    bench = Bench(Refusing(error=torch.OutOfMemoryError("CUDA out of memory")))
    for seed in range(3):
        bench.step(seed)
        bench.graphs.drop()
    assert len(bench.said) == 1 and bench.graphs.active


def test_one_recording_that_fails_in_its_first_replay_takes_no_memory_from_the_others():
    """The recorder is told that all are gone when all are; it says so itself otherwise."""

    class Late(Recording):
        def capture(self, work: Callable[[], None]) -> Any:
            made = super().capture(work)
            if self.captures == 2:
                made.replay = lambda: (_ for _ in ()).throw(RuntimeError("CUDA out of memory"))
            return made

    recorder = Late()
    bench = Bench(recorder)
    bench.step(1, 3)
    with pytest.raises(RuntimeError, match="out of memory"):
        bench.step(1, 4)
    assert recorder.emptied_times == 0 and len(recorder.alive) == len(bench.graphs) == 1


def test_what_was_proved_is_not_looked_through_again(monkeypatch):
    looked: list[int] = []
    monkeypatch.setattr(DeviceWork, "__enter__", lambda self, enter=DeviceWork.__enter__: looked.append(1) or enter(self))
    bench = Bench(Recording())
    for _ in range(3):
        bench.gradient.zero_()
        loss, added = bench.plain(1)
        assert torch.equal(bench.step(1), loss) and torch.equal(bench.gradient, added)
        bench.graphs.drop()
    assert len(looked) == 1


def test_a_constant_that_is_another_in_every_step_is_not_recorded_for_ever():
    recorder = Recording()
    bench = Bench(recorder)
    for number in range(12):
        given = bench.given(number)
        given = dataclasses.replace(given, beside=[{**given.beside[0], "tokens": number}])
        bench.gradient.zero_()
        wanted = bench.learn(given)
        assert torch.equal(bench.graphs.run(given, lambda: 3, bench.learn), wanted)
    assert recorder.captures == OF_A_FORM and bench.graphs.active
    (line,) = bench.said
    assert "new constant" in line


def test_an_input_in_another_memory_is_found_out():
    """Its number would be a constant of the recording, and no proof with the same inputs would tell."""
    bench = Bench(Recording())
    given = bench.given(1)
    strayed = dataclasses.replace(given, beside=[{**given.beside[0], "level": torch.empty((), device="meta")}])
    wanted = bench.learn(given)
    assert torch.equal(bench.graphs.run(strayed, lambda: 3, bench.learn), wanted)
    (line,) = bench.said
    assert "one of its inputs lies on meta" in line and not bench.graphs.active


def test_a_warning_of_the_recorder_is_told_whole():
    bench = Bench(Refusing(error=NotTried("a long " + "x" * 300)))
    bench.graphs._recorder.capture = lambda _work: (_ for _ in ()).throw(NotTried("a long " + "x" * 300))
    bench.step(1)
    assert "a long " + "x" * 300 in bench.said[0]


def test_no_memory_for_the_ordinary_step_is_not_for_here():
    bench = Bench(Recording())
    bench.learn = None

    def none(_given: Given) -> Tensor:
        raise RuntimeError("CUDA out of memory")

    bench.graphs = StepGraphs(Recording(), none, [bench.gradient], lambda: [3], torch.float32, bench.said.append)
    with pytest.raises(RuntimeError, match="out of memory"):
        bench.graphs.run(bench.given(1), lambda: 3, none)
    assert bench.graphs.active and bench.said == []


def test_a_cancel_is_a_cancel_and_a_message_a_message():
    for error in (KeyError("cancel"), AtelierError("a sentence")):
        recorder = Refusing(error=error)
        recorder.capture = lambda work, error=error: (_ for _ in ()).throw(error)
        bench = Bench(recorder)
        bench.graphs = StepGraphs(
            recorder,
            bench.learn,
            [bench.gradient],
            lambda: [3],
            torch.float32,
            bench.said.append,
            lambda e: isinstance(e, KeyError),
        )  # fmt: skip
        with pytest.raises(type(error)):
            bench.step(1)
        assert bench.said == []


def test_a_gradient_that_overflows_proves_nothing_and_the_next_one_does():
    """As in the first steps of fp16, before the loss scale has come down."""
    recorder = Recording()
    bench = Bench(recorder, torch.float16)
    for parts in (1e-39, 1e-39):
        bench.gradient.zero_()
        bench.step(1, parts=parts)
        assert not bench.gradient.isfinite().all() and bench.graphs.active
    passes = bench.passes
    bench.gradient.zero_()
    loss, added = bench.plain(2)
    assert torch.equal(bench.step(2), loss) and torch.equal(bench.gradient, added)
    assert bench.passes == passes + 1, "compared with an ordinary pass"
    bench.step(3)
    assert bench.passes == passes + 1 and recorder.captures == 1


def test_a_gradient_of_zero_proves_nothing_either():
    """As in a first step that only holds the model to what it was."""
    bench = Bench(Recording())
    bench.step(1, parts=float("inf"))
    passes = bench.passes
    bench.step(2)
    assert bench.passes == passes + 1
    bench.step(3)
    assert bench.passes == passes + 1


def test_inputs_that_nobody_can_look_into_are_not_recorded():
    bench = Bench(Recording())
    given = dataclasses.replace(bench.given(1), beside=[{**bench.given(1).beside[0], "control": object()}])
    wanted = bench.learn(given)
    assert torch.equal(bench.graphs.run(given, lambda: 3, bench.learn), wanted)
    (line,) = bench.said
    assert "object" in line


# What a recording would not repeat


def reads(x: Tensor) -> Tensor:
    return x * x.sum().item()


def searches(x: Tensor) -> Tensor:
    return x[x > 0].sum() + x


def finds(x: Tensor) -> Tensor:
    return x + len(x.nonzero())


def draws(x: Tensor) -> Tensor:
    return x + torch.randn_like(x)


def drops(x: Tensor) -> Tensor:
    return nn.functional.dropout(x, 0.5)


def attends(x: Tensor, dropout: float = 0.0) -> Tensor:
    heads = x.view(1, 1, 3, -1)
    return nn.functional.scaled_dot_product_attention(heads, heads, heads, dropout_p=dropout).view_as(x)


def forgets(x: Tensor) -> Tensor:
    return attends(x, 0.5)


class DrawsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.rand(())


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (reads, "waits for a number"), (searches, "waits for a number"), (finds, "waits for a number"),
        (draws, "random"), (drops, "random"), (forgets, "random"), (DrawsBackward.apply, "random"),
    ],
)  # fmt: skip
def test_a_step_that_is_more_than_the_devices_work_is_not_recorded(wrong, why):
    recorder = Recording()
    bench = Bench(recorder)
    real = bench.network.forward
    bench.network.forward = lambda x: wrong(real(x))
    bench.step(1)
    (line,) = bench.said
    assert why in line and recorder.captures == 0 and not bench.graphs.active


@pytest.mark.parametrize(
    ("work", "why"),
    [
        (lambda x: nn.functional.dropout(x, 0.5, training=False), ""),
        (lambda x: nn.functional.dropout(x, 0.5, training=True), "draws random numbers"),
        (lambda x: nn.functional.linear(x, x[0]), ""),
        (lambda x: nn.functional.scaled_dot_product_attention(x, x, x), ""),
        (lambda x: x.to("meta"), "copies between cpu and meta"),
        (lambda x: x.sum().item(), "waits for a number"),
    ],
)
def test_in_inference_mode_the_same_is_seen(work, why):
    """There operations that are made of others are not taken apart by themselves."""
    x = torch.randn(2, 8, 8)
    with torch.inference_mode():
        if not why:
            with DeviceWork():
                work(x)
            return
        with pytest.raises(NotDeviceWork, match=why), DeviceWork():
            work(x)


def test_attention_that_drops_nothing_is_recorded():
    recorder = Recording()
    bench = Bench(recorder)
    real = bench.network.forward
    bench.network.forward = lambda x: attends(real(x))
    after(bench)
    assert bench.said == [] and recorder.captures == 1


def test_what_crosses_from_main_memory_is_found():
    device = "cuda" if GPU else "meta"  # where there are no numbers, constants are made without any copy
    x = torch.ones(3, device=device)
    ways: list[Callable[[], Tensor]] = [lambda: x + torch.ones(3).to(x.device), lambda: x.new_zeros(3).copy_(torch.ones(3))]
    if GPU:
        ways += [lambda: torch.tensor([1.0, 2.0], device=device), lambda: x.new_tensor([1.0, 2.0]), lambda: x.cpu()]
    with DeviceWork():
        assert (x * 2 + torch.zeros(3, device=device)[torch.arange(3, device=device)]).shape == (3,)
        for crosses in ways:
            with pytest.raises(NotDeviceWork):
                crosses()


def test_values_come_apart_and_together():
    value = Given(torch.ones(2), [{"a": torch.zeros(1), "b": (1, "x", None)}, {}], torch.tensor(3.0), True)
    tensors, form = taken_apart(value)
    assert [t.shape for t in tensors] == [(2,), (1,), ()]
    again = put_together([t + 1 for t in tensors], form)
    assert torch.equal(again.x, torch.full((2,), 2.0)) and again.beside[0]["b"] == (1, "x", None) and again.flag is True
    assert taken_apart(again)[1] == form and hash(taken_apart(again)[1]) == hash(form)
    assert taken_apart(dataclasses.replace(value, flag=False))[1] != form
    assert taken_apart([1])[1] != taken_apart([1.0])[1] and taken_apart([True])[1] != taken_apart([1])[1]
    for strange in (object(), {1, 2}, [lambda: None], {object(): 1}):
        with pytest.raises(Opaque):
            taken_apart(strange)


def test_a_cpu_records_nothing():
    assert recorder_for(torch.device("cpu")) is None
