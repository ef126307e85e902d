"""Compiled blocks: the numbers of the plain ones, nothing left behind, and a run that goes on where nothing can be compiled."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from lora_atelier.training import job
from lora_atelier.training.config import NetworkConfig
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.network.adapter import Adapter
from lora_atelier.training.performance import compiling
from lora_atelier.training.performance.checkpointing import checkpointed
from lora_atelier.training.performance.compiling import Compiled
from lora_atelier.training.performance.out_of_place import OutOfPlace
from torch import nn

from ..host.test_host import latents, levels, new_adapter, one_loss, picture
from ..test_job import NO_PREVIEW, dataset, fresh_folders, go, recipe  # noqa: F401

ROOT = Path(__file__).resolve().parents[3]


class Block(nn.Module):
    """Changes its input in place, as the blocks of several large models do, and a table that all blocks share."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor, shift: torch.Tensor, options: dict | None = None) -> torch.Tensor:
        if options is not None:
            options["shape"] = list(x.shape)
        x += shift * self.first(x).tanh()
        x *= 1.1
        x += self.second(x).sin()
        return x


def blocks(count: int = 3) -> nn.ModuleList:
    torch.manual_seed(1)
    return nn.ModuleList(Block() for _ in range(count))


def adapter_on(network: nn.ModuleList, skipped: int = -1) -> tuple[Adapter, dict[str, nn.Module]]:
    """An adapter beside all layers but those of one block."""
    layers = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear) and not n.startswith(f"{skipped}.")}
    adapter = Adapter.fresh(layers, NetworkConfig(2, 2.0), 5)
    for branch in adapter.branches.values():
        branch.up.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(2))
    return adapter, layers


KINDS = [
    {"dropout": 0.3}, {"rank_dropout": 0.3, "module_dropout": 0.5}, {"weight_decompose": True},
    {"weight_decompose": True, "dropout": 0.3, "rank_dropout": 0.3, "module_dropout": 0.5},
    {"algorithm": "LoHa"}, {"algorithm": "LoHa", "rank_dropout": 0.3, "module_dropout": 0.5},
    {"algorithm": "LoKr"}, {"algorithm": "LoKr", "rank_dropout": 0.3, "module_dropout": 0.5},
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_every_adapter_compiles_once_whatever_is_dropped(kind):
    """What is dropped enters as numbers: other drops, the same code."""
    network = blocks()
    layers = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear)}
    adapter = Adapter.fresh(layers, NetworkConfig(4, 4.0, **kind), 5)
    for parameter in adapter.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    said: list[str] = []
    compiled, plain = Compiled(list(network), said.append, backend="aot_eager"), Compiled([], said.append)
    counts, seen = [], []
    for step in range(4):
        expected = gradients(network, adapter, layers, plain, step=step)
        assert close(gradients(network, adapter, layers, compiled, step=step), expected)
        counts.append(compiled.graphs)
        seen.append(torch.cat([part.flatten() for part in expected]))
    assert counts[1] == counts[-1] <= 2 and not said and compiled.active
    if any("dropout" in name for name in kind):
        assert not any(torch.equal(one, seen[0]) for one in seen[1:]), "each step drops others"


class Sum:
    """The gradient of a few parameters as the loop's ``FlatParameters`` keeps it."""

    def __init__(self, *parameters: nn.Parameter):
        self.gradient = torch.zeros(sum(p.numel() for p in parameters))
        for parameter, part in zip(parameters, self.gradient.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view(parameter.shape)

    def kept(self) -> torch.Tensor:
        return self.gradient.clone()

    def restore(self, kept: torch.Tensor | None) -> None:
        self.gradient.copy_(torch.zeros_like(self.gradient) if kept is None else kept)


def gradients(
    network, adapter, layers, compiled: Compiled, twice: bool = False, width: int = 4, anew: bool = True, step: int = 0
) -> list[torch.Tensor]:
    """Of one pass, computed in the way that a held model computes."""
    start = torch.linspace(-1, 1, width * 6).view(width, 6)
    shift = torch.ones(width, 6)
    flat = adapter.flat or adapter.flatten(torch.float32)

    def once() -> torch.Tensor:
        adapter.begin_step(3, step)
        flat.begin()
        x = start.clone()
        with OutOfPlace():
            for block in network:
                x = block(x, shift, options={})
        loss = x.square().sum()
        loss.backward()
        flat.collect()
        return loss

    if anew:
        flat.zero()
    with adapter.attached(layers), compiled.on(), checkpointed(list(network) if twice else []):
        before = flat.kept()
        compiled.run(once, flat)
        if compiled.active and not compiled.graphs:  # in the first step it only looks
            flat.restore(before)
            compiled.run(once, flat)
    return [part.clone() for part in flat.named(flat.gradient).values()]


def close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all((a - b).norm() <= 1e-4 * b.norm() for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("twice", [False, True], ids=["kept", "checkpointed"])
def test_one_graph_serves_all_blocks_that_are_alike_and_holds_of_every_size(twice):
    network = blocks()
    adapter, layers = adapter_on(network)
    said: list[str] = []
    compiled = Compiled(list(network), said.append, backend="aot_eager")
    # The second size makes a graph for every size, also for the first block, whose input carries no gradient.
    for width, graphs, settled in ((4, 1, False), (4, 1, True), (5, 2, False), (7, 2, True), (4, 2, True), (9, 2, True)):
        expected = gradients(network, adapter, layers, Compiled([], said.append), twice, width)
        assert close(gradients(network, adapter, layers, compiled, twice, width), expected)
        assert (compiled.graphs, compiled.settled) == (graphs, settled)
    assert said == [] and compiled.active


def test_a_block_without_an_adapter_does_not_take_it_from_the_others():
    """The graph of a block without hooks would fit one with hooks, if torch did not look at them."""
    network = blocks()
    adapter, layers = adapter_on(network, skipped=1)
    compiled = Compiled(list(network), pytest.fail, backend="eager")
    expected = gradients(network, adapter, layers, Compiled([], pytest.fail))
    assert all(g.abs().max() > 0 for g in expected)
    assert close(gradients(network, adapter, layers, compiled), expected)
    assert compiled.graphs == 2


def test_a_block_that_no_gradient_reaches_is_not_compiled():
    network = blocks(2)
    adapter, layers = adapter_on(network, skipped=0)
    compiled = Compiled(list(network), pytest.fail, backend="eager")
    expected = gradients(network, adapter, layers, Compiled([], pytest.fail))
    assert close(gradients(network, adapter, layers, compiled), expected)
    assert compiled.graphs == 1


class Placed(Block):
    """Asks where it stands, as a UNet's blocks do for patches."""

    def forward(self, x: torch.Tensor, shift: torch.Tensor, options: dict | None = None) -> torch.Tensor:
        assert options is not None
        if (options["block"][0], options["block_index"]) in options.get("patches_replace", {}):
            x = x * 3
        options["activations_shape"] = [2, *x.shape]
        return super().forward(x, shift)


@pytest.mark.parametrize(("more", "graphs"), [({}, 1), ({"patches_replace": {("input", 2): 1}}, 3), ({"of_a_node": 1}, 3)])
def test_where_a_block_stands_makes_no_other_graph_unless_somebody_may_ask(more, graphs):
    torch.manual_seed(1)
    network = nn.ModuleList(Placed() for _ in range(4))
    adapter, layers = adapter_on(network)
    compiled = Compiled(list(network), pytest.fail, backend="eager")

    def once(compiled: Compiled) -> list[torch.Tensor]:
        flat = adapter.flat or adapter.flatten(torch.float32)

        def step() -> torch.Tensor:
            flat.begin()
            x = torch.linspace(-1, 1, 24).view(4, 6)
            with OutOfPlace():
                for number, block in enumerate(network):
                    options = {"block": ("input", number), "block_index": number, **more}
                    x = block(x, torch.ones(4, 6), options=options)
                    assert options["activations_shape"] == [2, 4, 6] and options["block_index"] == number
            loss = x.square().sum()
            loss.backward()
            flat.collect()
            return loss

        flat.zero()
        with adapter.attached(layers), compiled.on():
            compiled.run(step, flat)
        return [part.clone() for part in flat.named(flat.gradient).values()]

    expected = once(Compiled([], pytest.fail))
    for _ in range(3):
        assert close(once(compiled), expected)
    assert compiled.graphs == graphs if graphs == 1 else compiled.graphs >= graphs


class Branching(Block):
    """Asks a tensor for a number, which no graph can hold."""

    def forward(self, x: torch.Tensor, shift: torch.Tensor, options: dict | None = None) -> torch.Tensor:
        return super().forward(x, shift) if x.sum() > -1e9 else x


def test_a_block_that_torch_cannot_trace_runs_plain_and_is_named_once():
    torch.manual_seed(1)
    network, said = nn.ModuleList([Block(), Branching(), Block(), Branching()]), []
    adapter, layers = adapter_on(network)
    compiled = Compiled(list(network), said.append, backend="eager")
    expected = gradients(network, adapter, layers, Compiled([], pytest.fail))
    for _ in range(2):
        assert close(gradients(network, adapter, layers, compiled), expected)
    assert compiled.graphs == 1 and compiled.active
    assert len(said) == 1 and "run as plain code" in said[0] and ": Branching (" in said[0]


def test_forms_beyond_the_limit_run_plain_and_are_named_once(monkeypatch):
    monkeypatch.setattr(compiling, "GRAPHS", 1)
    network, said = blocks(), []
    adapter, layers = adapter_on(network)
    compiled = Compiled(list(network), said.append, backend="eager")
    for width in (4, 5, 6, 7):
        expected = gradients(network, adapter, layers, Compiled([], pytest.fail), width=width)
        assert close(gradients(network, adapter, layers, compiled, width=width), expected)
    assert len(said) == 1 and "Block (they come in more than 1 forms)" in said[0] and compiled.graphs == 1


def test_the_settings_hold_in_the_thread_in_which_a_gpu_computes_blocks_again():
    import threading

    import torch._dynamo.config as settings

    network, seen = blocks(1), []
    adapter, layers = adapter_on(network)

    def backend(module: torch.fx.GraphModule, _inputs: object):
        seen.append(settings.skip_nnmodule_hook_guards)
        return module

    compiled = Compiled(list(network), pytest.fail, backend=backend)
    given = torch.ones(2, 6), torch.ones(2, 6)
    with adapter.attached(layers), compiled.on():
        compiled.run(lambda: network[0](*given), Sum())
        thread = threading.Thread(target=lambda: network[0](*given))
        thread.start()
        thread.join()
    assert seen == [False]


def test_gradients_stay_in_their_places():
    """Where all lie in one buffer, or in a captured graph, another tensor in a parameter's ``grad`` would be lost."""
    network = blocks()
    adapter, layers = adapter_on(network)
    flat = adapter.flatten(torch.float32)
    places = [flat.gradient.data_ptr(), *(p.grad.data_ptr() for p in flat.parameters)]
    compiled = Compiled(list(network), pytest.fail, backend="eager")
    x, shift = torch.linspace(-1, 1, 24).view(4, 6), torch.ones(4, 6)

    def step() -> torch.Tensor:
        flat.begin()
        out = x.clone()
        with OutOfPlace():
            for block in network:
                out = block(out, shift)
        loss = out.sum()
        loss.backward()
        flat.collect()
        return loss

    with adapter.attached(layers), compiled.on():
        for _ in range(2):
            compiled.run(step, flat)
    assert compiled.graphs == 1
    assert [flat.gradient.data_ptr(), *(p.grad.data_ptr() for p in flat.parameters)] == places


def test_real_machine_code_gives_the_same_gradient_and_leaves_no_trace(monkeypatch):
    import torch._dynamo.config as settings

    network = blocks(2)
    adapter, layers = adapter_on(network)
    expected = gradients(network, adapter, layers, Compiled([], pytest.fail))
    before = {name: (sorted(m.__dict__), type(m)) for name, m in network.named_modules()}
    asked = settings.skip_nnmodule_hook_guards
    compiled = Compiled(list(network), pytest.fail)
    assert close(gradients(network, adapter, layers, compiled), expected)
    assert compiled.graphs > 0
    assert {name: (sorted(m.__dict__), type(m)) for name, m in network.named_modules()} == before
    assert not any(vars(p) for p in network.parameters()), "the compiler's notes on the weights are gone"
    assert settings.skip_nnmodule_hook_guards == asked


def three_steps(t, compiled: Compiled, twice: bool) -> tuple[list[float], dict[str, torch.Tensor]]:
    adapter, layers = new_adapter(t, "attention + feed-forward"), t.model.layers()
    flat = adapter.flatten(t.model.compute_dtype)
    optimizer = torch.optim.AdamW(flat.parameters, lr=1e-3)
    losses = []
    with t.model.hold(), adapter.attached(layers), compiled.on(), checkpointed(t.model.blocks() if twice else []):
        for number in range(3):

            def step(number: int = number) -> torch.Tensor:
                flat.begin()
                loss = one_loss(t, latents(t, 2), levels(t, 2), [1, 2], seed=number)
                loss.backward()
                flat.collect()
                return loss

            losses.append(compiled.run(step, flat).item())
            optimizer.step()
            flat.zero()
    return losses, adapter.state()


@pytest.mark.parametrize(("name", "twice"), [("sd15", True), ("sd3", False)])
def test_a_models_steps_are_those_of_the_plain_blocks_and_it_is_untouched(tiny, name, twice):
    t = tiny(name)
    before = picture(t)
    tree = [(n, type(m), sorted(m.__dict__)) for n, m in t.model.base.named_modules()]
    weights = [(n, id(p), p.data_ptr(), sorted(vars(p))) for n, p in t.model.base.named_parameters()]
    said: list[str] = []
    compiled = Compiled(t.model.blocks(), said.append, backend="aot_eager")
    found, state = three_steps(t, compiled, twice)
    assert compiled.graphs > 0 and said == []
    expected, plain = three_steps(t, Compiled([], said.append), twice)
    assert found == pytest.approx(expected, rel=1e-4)
    assert all((state[k] - plain[k]).norm() <= 1e-3 * plain[k].norm() for k in plain)
    assert [(n, type(m), sorted(m.__dict__)) for n, m in t.model.base.named_modules()] == tree
    assert [(n, id(p), p.data_ptr(), sorted(vars(p))) for n, p in t.model.base.named_parameters()] == weights
    assert torch.equal(picture(t), before)


WITHOUT_A_COMPILER = """
import importlib.machinery, sys, types
spec = importlib.machinery.ModuleSpec("lora_atelier", None, is_package=True)
package = types.ModuleType("lora_atelier")
package.__spec__, package.__path__ = spec, [{root!r}]
sys.modules["lora_atelier"] = package
import torch
from lora_atelier.training.performance.compiling import Compiled

layer = torch.nn.Linear(5, 5)
compiled = Compiled([layer], lambda line: print("said:", line))

def step():
    loss = layer(torch.ones(3, 5)).exp().sum()
    loss.backward()
    return loss

class Sum:
    gradient = torch.zeros(30)

    def kept(self):
        return self.gradient.clone()

    def restore(self, kept):
        self.gradient.copy_(kept)

layer.weight.grad, layer.bias.grad = Sum.gradient[:25].view(5, 5), Sum.gradient[25:]
with compiled.on():
    first = compiled.run(step, Sum())
    second = compiled.run(step, Sum())
plain = torch.autograd.grad(layer(torch.ones(3, 5)).exp().sum(), layer.weight)[0]
assert torch.equal(first, second) and torch.allclose(layer.weight.grad, 2 * plain)
assert not compiled.active and "forward" not in layer.__dict__
print("finished")
"""


def test_without_a_compiler_it_goes_on_with_one_sentence(tmp_path):
    script = textwrap.dedent(WITHOUT_A_COMPILER).format(root=str(ROOT))
    nowhere = {"CXX": str(tmp_path / "no-such-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **nowhere}, capture_output=True, text=True, timeout=300, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("said:")]
    assert len(said) == 1 and "compile: the model's blocks could not be compiled" in said[0]
    assert "compiler" in said[0].lower() and done.stdout.rstrip().endswith("finished")


def test_a_run_whose_blocks_cannot_be_compiled_ends_at_the_plain_runs_lora(tiny, dataset, monkeypatch):  # noqa: F811
    t = tiny("sd3")
    plain = go(t, dataset, recipe("plain"))
    monkeypatch.setattr(compiling, "BACKEND", "a-backend-that-torch-does-not-have")
    said: list[str] = []
    with torch.inference_mode():
        other = job.run_training(
            t.model, t.text, t.codec, dataset, recipe("other", compile=True), preview=NO_PREVIEW, graph={},
            show=said.append,
        )  # fmt: skip
    assert len([line for line in said if line.startswith("compile: the model's blocks could not be compiled")]) == 1
    assert other.losses == plain.losses
    assert all(torch.equal(plain.tensors[k], other.tensors[k]) for k in plain.tensors)


def deaf(module: torch.fx.GraphModule, _inputs: object):
    """A backend whose graphs give the right numbers and no gradient, as torch 2.11 made of an in-place product."""
    return lambda *given: tuple(found.detach() + 0 * found for found in module(*given))


def test_graphs_with_another_gradient_are_found_out_before_anything_is_learnt_from_them():
    network, said = blocks(), []
    adapter, layers = adapter_on(network)
    compiled = Compiled(list(network), said.append, backend=deaf)
    expected = gradients(network, adapter, layers, Compiled([], said.append))
    assert close(gradients(network, adapter, layers, compiled), expected)
    assert len(said) == 1 and "their gradient is not that of the plain ones" in said[0] and not compiled.active


def test_the_comparison_leaves_the_gradient_of_the_batches_before():
    network = blocks()
    adapter, layers = adapter_on(network)
    compiled, plain = Compiled(list(network), pytest.fail, backend="eager"), Compiled([], pytest.fail)
    found = []
    for one in (compiled, plain):
        flat = adapter.flat or adapter.flatten(torch.float32)
        flat.gradient.fill_(1.0)
        flat.is_empty = False
        found.append(gradients(network, adapter, layers, one, anew=False))
    assert compiled.active and close(*found)


def test_a_cancel_and_a_persons_mistake_are_not_taken_for_the_compilers():
    class Cancel(Exception):
        pass

    for error in (Cancel(), AtelierError("a picture is gone"), torch.cuda.OutOfMemoryError("out of memory")):
        calls: list[int] = []
        compiled = Compiled(list(blocks()), pytest.fail, lambda found: isinstance(found, Cancel))

        def step(error: Exception = error, calls: list[int] = calls) -> torch.Tensor:
            calls.append(1)
            raise error

        with pytest.raises(type(error)):
            compiled.run(step, Sum())
        assert len(calls) == 1 and compiled.active


def test_an_error_that_is_not_the_compilers_comes_through():
    compiled = Compiled(list(blocks()), pytest.fail)

    def step() -> torch.Tensor:
        raise ValueError("nothing to do with it")

    with pytest.raises(ValueError, match="nothing to do"):
        compiled.run(step, Sum())


def test_a_failed_attempt_leaves_no_gradient_behind():
    weight = nn.Parameter(torch.ones(2))
    total = Sum(weight)
    total.gradient.fill_(5.0)  # of the batch before
    compiled = Compiled(list(blocks()), lambda _: None)
    tries: list[int] = []

    def step() -> torch.Tensor:
        loss = (weight * 3).sum()
        loss.backward()
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("the backward graph could not be compiled")
        return loss

    compiled.run(step, total)
    assert torch.equal(weight.grad, torch.full((2,), 8.0)) and not compiled.active


def test_blocks_of_which_none_can_be_traced_end_compiling_with_the_reason():
    torch.manual_seed(1)
    network, said = nn.ModuleList([Branching(), Branching()]), []
    adapter, layers = adapter_on(network)
    compiled = Compiled(list(network), said.append, backend="eager")
    expected = gradients(network, adapter, layers, Compiled([], pytest.fail))
    assert close(gradients(network, adapter, layers, compiled), expected)
    assert len(said) == 1 and "could not be compiled (" in said[0] and not compiled.active


@pytest.mark.parametrize("alpha", [4.0, 8.0])
def test_blocks_whose_layers_share_an_input_compile_once_in_half_precision(alpha):
    """With copies of the parameters for the step, which a compiler must meet as they are: made before, named alike."""

    class Shares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_q, self.to_k, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.out(torch.tanh(self.to_q(x) * self.to_k(x)))

    torch.manual_seed(3)
    network = nn.ModuleList(Shares() for _ in range(3)).to(torch.bfloat16).requires_grad_(False)
    layers = {name: m for name, m in network.named_modules() if isinstance(m, nn.Linear)}
    x = torch.linspace(-1, 1, 32).view(4, 8).to(torch.bfloat16)

    def gradient(compiled: Compiled) -> torch.Tensor:
        adapter = Adapter.fresh(layers, NetworkConfig(rank=8, alpha=alpha, include="*"), 1)
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter += 0.1
        with adapter.attached(layers), adapter.listening():
            for block in network:
                block(x)
        flat = adapter.flatten(torch.bfloat16)

        def step() -> torch.Tensor:
            flat.begin()
            out = x
            for block in network:
                out = block(out)
            loss = out.float().square().sum()
            loss.backward()
            flat.collect()
            return loss

        with adapter.attached(layers), compiled.on():
            for _ in range(3):
                flat.zero()
                compiled.run(step, flat)
        return flat.gradient.clone()

    compiled = Compiled(list(network), pytest.fail, backend="aot_eager")
    found, wanted = gradient(compiled), gradient(Compiled([], pytest.fail))
    assert compiled.active and compiled.graphs == 1
    assert (found - wanted).norm() <= 0.03 * wanted.norm()
