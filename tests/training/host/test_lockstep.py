"""Samplers in step: every picture gets what it would have alone, and the model is asked once for all that ask alike."""

from __future__ import annotations

import threading

import pytest
import torch
from lora_atelier.training.host.lockstep import LockstepSampler, OutOfStep

SHAPE = (1, 2, 4, 4)


class Network:
    """A model whose answer depends on its input and level alone, and which counts."""

    def __init__(self):
        self.batches: list[int] = []
        self.thread = threading.get_ident()

    def __call__(self, x, sigma, **options):
        assert threading.get_ident() == self.thread, "the model is asked where the host has called the sampler"
        self.batches.append(len(x))
        return torch.tanh(x * 1.5 + sigma.view(-1, 1, 1, 1))


def ancestral(model, x, sigmas, extra_args=None, callback=None, disable=None, strength=1.0):
    """Draws noise for the batch it sees, from its own generator and from the global one."""
    own = torch.Generator().manual_seed(extra_args["seed"] + 1)
    for i in range(len(sigmas) - 1):
        answer = model(x, sigmas[i] * x.new_ones(len(x)), **extra_args)
        x = x + (answer - x) * 0.5 + torch.randn(x.shape, generator=own) * strength * 0.3 + torch.randn_like(x) * 0.1
        if callback is not None:
            callback({"i": i})
    return x


def adaptive(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """As many steps as the batch it sees needs."""
    steps = 0
    while steps < 40:
        answer = model(x, sigmas[0] * x.new_ones(len(x)), **extra_args)
        steps += 1
        if (answer - x).abs().max() < 0.02:
            break
        x = x + (answer - x) * 0.3
    return x


def rebuilding(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Changes its options, as samplers that hook into the guidance do."""
    extra_args["mine"] = object()
    for sigma in sigmas[:-1]:
        x = x + 0.5 * model(x, sigma * x.new_ones(len(x)), **extra_args)
    return x


def start(count: int) -> torch.Tensor:
    noise = torch.randn((count, *SHAPE[1:]), generator=torch.Generator().manual_seed(5))
    return noise * torch.arange(1, count + 1).view(-1, 1, 1, 1)


def alone(sampler, x, **options):
    out = []
    for row in x.split(1):
        torch.manual_seed(11)
        out.append(sampler(Network(), row.clone(), torch.linspace(2, 0, 5), extra_args={"seed": 3}, **options))
    return torch.cat(out)


def together(sampler, x, network, rows=lambda _r: None, whole=False, **options):
    torch.manual_seed(11)
    return LockstepSampler(sampler, rows, whole=whole)(network, x, torch.linspace(2, 0, 5), extra_args={"seed": 3}, **options)


@pytest.mark.parametrize("sampler", [ancestral, adaptive, rebuilding])
def test_every_picture_is_the_one_it_would_be_alone(sampler):
    x = start(4)
    assert torch.equal(together(sampler, x, Network()), alone(sampler, x))


def test_what_is_asked_alike_is_one_batch():
    network = Network()
    together(ancestral, start(5), network)
    assert network.batches == [5] * 4


def test_pictures_that_need_more_steps_go_on_in_what_is_left():
    network = Network()
    together(adaptive, start(4), network)
    assert network.batches[0] == 4 and network.batches[-1] < 4 and network.batches == sorted(network.batches, reverse=True)


def test_options_of_ones_own_are_asked_alone():
    network = Network()
    together(rebuilding, start(3), network)
    assert network.batches == [1] * 12


@pytest.mark.parametrize("sampler", [adaptive, rebuilding])
def test_whole_batches_only_if_asked_so(sampler):
    with pytest.raises(OutOfStep):
        together(sampler, start(4), Network(), whole=True)
    assert torch.equal(together(ancestral, start(4), Network(), whole=True), alone(ancestral, start(4)))


def test_the_caller_knows_which_pictures_are_asked_for():
    told, asked = [], []

    class Watching(Network):
        def __call__(self, x, sigma, **options):
            asked.append((told[-1], len(x)))
            return super().__call__(x, sigma, **options)

    together(adaptive, start(4), Watching(), rows=lambda rows: told.append(list(rows)))
    assert all(len(rows) == count for rows, count in asked) and asked[0][0] == [0, 1, 2, 3]


def test_options_progress_and_attributes_reach_the_sampler():
    seen = []

    def sampler(model, x, sigmas, extra_args=None, callback=None, disable=None, strength=0.0):
        seen.append((strength, model.batches))
        return ancestral(model, x, sigmas, extra_args, callback, disable, strength)

    steps = []
    network = Network()
    together(sampler, start(3), network, callback=lambda at: steps.append(at["i"]), strength=0.25)
    assert steps == [0, 1, 2, 3] and seen == [(0.25, network.batches)] * 3


@pytest.mark.parametrize("where", ["model", "sampler"])
def test_an_error_ends_all_threads_and_is_raised(where):
    class Interrupted(BaseException):
        pass

    class Bad(Network):
        def __call__(self, x, sigma, **options):
            if where == "model" and len(self.batches) == 2:
                raise Interrupted
            return super().__call__(x, sigma, **options)

    def sampler(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for i in range(4):
            if where == "sampler" and i == 2:
                raise Interrupted
            x = model(x, sigmas[i] * x.new_ones(1), **extra_args)
        return x

    before = threading.active_count()
    with pytest.raises(Interrupted):
        together(sampler, start(4), Bad())
    assert threading.active_count() == before


@pytest.mark.parametrize("mode", [True, False])
def test_inference_mode_is_that_of_the_caller(mode):
    def sampler(model, x, sigmas, extra_args=None, callback=None, disable=None):
        assert torch.is_inference_mode_enabled() == mode
        return model(x, sigmas[:1], **extra_args)

    with torch.inference_mode(mode), torch.no_grad():
        assert together(sampler, start(2), Network()).is_inference() == mode
