"""Recorded passes: the same answers, from what the inputs hold at the time, and none where they could be others."""

from __future__ import annotations

import logging
import uuid

import pytest
import torch
from lora_atelier.training.performance.network_graph import FORMS, NetworkGraph
from lora_atelier.training.performance.recording import EagerRecorder

CPU = torch.device("cpu")
META = torch.device("meta")


class Network(torch.nn.Module):
    """Counts how often its own code runs."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        self.ran = 0

    def forward(self, x, t, context=None, options=None):
        self.ran += 1
        return self.layer(x) * t.view(-1, 1) + (0 if context is None else context[0])


class Held(EagerRecorder):
    """Keeps what it recorded."""

    def __init__(self):
        self.works = []

    def capture(self, work):
        self.works.append(work)
        return super().capture(work)


class Frozen(EagerRecorder):
    """A recording that gives what it gave, whatever its inputs hold now."""

    def capture(self, work):
        class Stuck:
            def replay(self):
                pass

            def reset(self):
                pass

        work()
        return Stuck()


def graph_of(network, recorder=None, state=lambda: (0, 0)) -> NetworkGraph:
    return NetworkGraph(network, recorder or EagerRecorder(), CPU, state)


def inputs(seed: int, rows: int = 2, **options):
    stream = torch.Generator().manual_seed(seed)
    x, t, c = (torch.randn(shape, generator=stream) for shape in ((rows, 4), (rows,), (4,)))
    return (x, t), {"context": [c], "options": {"uuids": [uuid.uuid4()], "cond_or_uncond": [0, 1], **options}}


@torch.no_grad()
def test_a_replay_gives_what_the_network_would_have_given():
    network, recorder = Network(), Held()
    graph = graph_of(network, recorder)
    for seed in range(8):
        args, kwargs = inputs(seed)
        expected = network(*args, **kwargs)
        before = [tensor.clone() for tensor in (*args, *kwargs["context"])]
        with graph.in_place():
            found = network(*args, **kwargs)
        assert torch.equal(found, expected)
        assert all(torch.equal(a, b) for a, b in zip(before, (*args, *kwargs["context"]), strict=True))
    assert len(recorder.works) == 1 and graph.replays == 7
    assert "forward" not in vars(network) and not graph.reason


@torch.no_grad()
def test_an_answer_stays_when_the_next_one_comes():
    network = Network()
    graph = graph_of(network)
    with graph.in_place():
        found = [(network(*args, **kwargs), network.layer(args[0])) for args, kwargs in map(inputs, range(6))]
    assert len({answer.data_ptr() for answer, _ in found}) == 6
    assert all(not torch.equal(found[4][0], answer) for answer, _ in found[:4])


@torch.no_grad()
def test_each_form_has_its_own_and_a_constant_is_part_of_the_form():
    network, recorder = Network(), Held()
    graph = graph_of(network, recorder)
    forms = [inputs(1), inputs(1, rows=3), inputs(1, sigma=torch.ones(1)), inputs(1, name="x"), inputs(1, number=1.0)]
    with graph.in_place():
        for args, kwargs in forms * 4:
            assert torch.equal(network(*args, **kwargs), network.layer(args[0]) * args[1].view(-1, 1) + kwargs["context"][0])
    assert len(recorder.works) == FORMS == 4 < len(forms), "what is more than there is room for runs as always"


@torch.no_grad()
def test_when_weights_move_or_the_adapter_changes_everything_is_recorded_anew():
    network, recorder, version = Network(), Held(), [0]
    graph = graph_of(network, recorder, lambda: (version[0], 0))

    def passes(count: int) -> None:
        with graph.in_place():
            for seed in range(count):
                args, kwargs = inputs(seed)
                expected = network.layer(args[0]) * args[1].view(-1, 1) + kwargs["context"][0]
                assert torch.equal(network(*args, **kwargs), expected)

    passes(5)
    network.layer.weight.data = network.layer.weight.data * 2  # elsewhere, as after the host has put it aside
    passes(5)
    assert len(recorder.works) == 2
    version[0] = 1
    passes(5)
    assert len(recorder.works) == 3
    network.layer.weight.data.mul_(3)  # in their place: what is recorded reads it
    passes(5)
    assert len(recorder.works) == 3


@pytest.mark.parametrize(
    ("recorder", "change", "words"),
    [
        (Frozen(), {}, "of the answer away"),
        (None, {"hook": len}, "it is given a builtin_function_or_method"),
        (None, {"hook": object()}, "it is given a object"),
    ],
    ids=["a constant", "a function", "an object"],
)
@torch.no_grad()
def test_what_cannot_be_recorded_rightly_runs_as_always_and_says_why_once(caplog, recorder, change, words):
    network = Network()
    graph = graph_of(network, recorder)
    with caplog.at_level(logging.INFO), graph.in_place():
        for seed in range(6):
            args, kwargs = inputs(seed, **change)
            expected = network.layer(args[0]) * args[1].view(-1, 1) + kwargs["context"][0]
            assert torch.equal(network(*args, **kwargs), expected)
    assert words in graph.reason
    assert len([line for line in caplog.messages if "not recorded" in line]) == 1


@torch.no_grad()
def test_a_capture_that_fails_costs_nothing_but_the_speed(caplog):
    class Refuses(EagerRecorder):
        def capture(self, work):
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

    network = Network()
    graph = graph_of(network, Refuses())
    with caplog.at_level(logging.INFO), graph.in_place():
        for seed in range(4):
            args, kwargs = inputs(seed)
            assert network(*args, **kwargs).shape == (2, 4)
    assert graph.reason == "RuntimeError: operation not permitted when stream is capturing" and network.ran == 5


@torch.no_grad()
def test_weights_that_are_elsewhere_are_not_recorded():
    network = Network()
    network.register_buffer("away", torch.empty(1, device=META))
    graph = graph_of(network)
    with graph.in_place():
        for seed in range(3):
            args, kwargs = inputs(seed)
            network(*args, **kwargs)
    assert graph.reason == "some of its weights are not on the device"


def test_a_pass_with_gradients_is_never_recorded():
    network, recorder = Network(), Held()
    with graph_of(network, recorder).in_place():
        for seed in range(4):
            args, kwargs = inputs(seed)
            assert network(*args, **kwargs).requires_grad
    assert not recorder.works
