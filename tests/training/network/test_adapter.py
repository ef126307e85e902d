"""Dropout, norm limits, rates and states, for every kind of adapter."""

from __future__ import annotations

import sys

import pytest
import torch
from lora_atelier.training.config import NetworkConfig
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.network.adapter import Adapter
from lora_atelier.training.network.adapter_layer import AdapterLayer
from lora_atelier.training.network.dropout import Dropout
from torch import nn
from torch.utils.checkpoint import checkpoint

from .support import KINDS, close, inputs, layers, outputs, trained, with_weight


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_changes_nothing_and_can_learn(kind):
    where = layers()
    plain = outputs(where)
    adapter = Adapter.fresh(where, KINDS[kind], seed=5)
    fresh = outputs(where, adapter)
    assert all(close(fresh[n], plain[n], 1e-6) for n in where)
    sum(out.square().sum() for out in fresh.values()).backward()
    for name, branch in adapter.branches.items():
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in branch.parameters()), name
    assert all(p.dtype == torch.float32 for p in adapter.parameters())
    twin = Adapter.fresh(where, KINDS[kind], seed=5).state()
    assert all(torch.equal(tensor, twin[key]) for key, tensor in adapter.state().items())


@pytest.mark.parametrize("kind", KINDS)
def test_the_output_is_that_of_the_changed_weight(kind):
    """Beside the layer, without touching it, but equal to W + D, and for DoRA to m (W + D) / ||W + D||."""
    where = layers()
    adapter = trained(where, KINDS[kind])
    live = outputs(where, adapter)
    for name, layer in where.items():
        assert close(live[name], with_weight(layer, changed_weight(layer, adapter.branches[name]), inputs()[name])), name


def changed_weight(layer: nn.Module, branch: AdapterLayer) -> torch.Tensor:
    """By the definitions, from the parameters as they are now."""
    weight = layer.weight + branch.delta_weight()
    if branch.magnitude is not None:
        rows = weight.flatten(1)
        weight = (branch.magnitude[:, None] * rows / rows.norm(dim=1, keepdim=True)).view(layer.weight.shape)
    return weight


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree_with_finite_differences(kind):
    """For DoRA the norm is a constant by definition, so it is held while the parameters are moved."""
    where, given = layers(), inputs()
    adapter = trained(where, KINDS[kind])
    parameters = list(adapter.parameters())
    wanted = {name: torch.randn(out.shape, generator=torch.Generator().manual_seed(2)) for name, out in outputs(where).items()}

    def loss() -> torch.Tensor:
        return sum(((where[n](given[n]) - wanted[n]).double() ** 2).mean() for n in where)

    with adapter.attached(where):
        loss().backward()
        direction = [p.grad / p.grad.norm() for p in parameters]
        slope = sum((p.grad * d).sum() for p, d in zip(parameters, direction, strict=True)).item()
        norms = {n: b.current_norm(where[n]) for n, b in adapter.branches.items() if b.magnitude is not None}
        ends = []
        with torch.no_grad():
            for sign in (1, -1):
                for p, d in zip(parameters, direction, strict=True):
                    p += sign * 1e-3 * d
                for name, norm in norms.items():
                    branch = adapter.branches[name]
                    branch._norm = tuple(p._version for p in branch.factors()), norm
                ends.append(loss().item())
                for p, d in zip(parameters, direction, strict=True):
                    p -= sign * 1e-3 * d
    assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(slope, rel=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_strength_is_a_number_or_one_number_a_picture(kind):
    where = layers()
    adapter = trained(where, KINDS[kind])
    plain = outputs(where)
    singles = []
    for adapter.strength in (0, 0.5, 1.0):
        singles.append(outputs(where, adapter))
    adapter.strength = torch.tensor([0.0, 0.5, 1.0])
    rows = outputs(where, adapter)
    for name in where:
        assert torch.equal(singles[0][name], plain[name])
        # Linear in the strength, also with weight decomposition, as ComfyUI has it.
        assert close(singles[1][name], (plain[name] + singles[2][name]) / 2)
        for i, single in enumerate(singles):
            assert close(rows[name][i], single[name][i])


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_layers_and_inference_mode(kind):
    """A model in bf16, sampled in inference mode between two steps: the adapter must be trainable afterwards."""
    where = {n: layer.to(torch.bfloat16) for n, layer in layers().items()}
    given = {n: x.to(torch.bfloat16) for n, x in inputs().items()}
    adapter = trained(where, KINDS[kind])
    with adapter.attached(where):
        with torch.inference_mode():
            assert all(where[n](given[n]).dtype == torch.bfloat16 for n in where)
        sum(where[n](given[n]).float().square().mean() for n in where).backward()
    exact = {n: layer.float() for n, layer in where.items()}
    expected = outputs(exact, adapter, {n: x.float() for n, x in given.items()})
    rough = {n: layer.to(torch.bfloat16) for n, layer in exact.items()}
    out = outputs(rough, adapter, given)
    assert all(close(out[n].float(), expected[n], 2e-2) for n in where)


@pytest.mark.parametrize("kind", KINDS)
def test_norms_are_limited_as_computed_directly(kind):
    where = layers()
    adapter = trained(where, KINDS[kind])
    before = {n: b.delta_weight().detach() for n, b in adapter.branches.items()}
    norms = {n: torch.linalg.vector_norm(d.double()).item() for n, d in before.items()}
    assert all(b.delta_norm().item() == pytest.approx(norms[n], rel=1e-5) for n, b in adapter.branches.items())
    limit = sorted(norms.values())[1] * 1.01  # two layers stay as they are, two shrink
    magnitudes = {n: b.magnitude.clone() for n, b in adapter.branches.items() if b.magnitude is not None}
    adapter.limit_norms(limit)
    for name, branch in adapter.branches.items():
        assert close(branch.delta_weight(), before[name] * min(1.0, limit / norms[name])), name
    assert sum(n > limit for n in norms.values()) == 2
    assert all(torch.equal(adapter.branches[n].magnitude, m) for n, m in magnitudes.items())


def test_limiting_a_new_adapter_makes_no_nan():
    adapter = Adapter.fresh(layers(), NetworkConfig(4), seed=1)
    before = {k: t.clone() for k, t in adapter.state().items()}
    adapter.limit_norms(1.0)
    assert all(torch.equal(t, before[k]) for k, t in adapter.state().items())


@pytest.mark.parametrize("kind", ["LoRA", "DoRA", "LoHa", "LoKr"])
def test_a_resumed_training_with_dropout_is_bit_equal(kind):
    where, given = layers(), inputs()
    elements = 0.2 if KINDS[kind].algorithm == "LoRA" else 0.0

    def train(adapter: Adapter, optimizer: torch.optim.Optimizer, steps: range) -> None:
        adapter.dropout = Dropout(elements, 0.3, 0.3)
        for step in steps:
            with adapter.attached(where):
                adapter.begin_step(7, step)
                sum(where[n](given[n]).square().mean() for n in where).backward()
            optimizer.step()
            adapter.limit_norms(0.9)
            optimizer.zero_grad(set_to_none=True)

    def new() -> tuple[Adapter, torch.optim.Optimizer]:
        adapter = Adapter.fresh(where, KINDS[kind], seed=1)
        return adapter, torch.optim.AdamW(adapter.parameters(), lr=1e-2)

    whole, optimizer = new()
    train(whole, optimizer, range(8))
    first, optimizer = new()
    train(first, optimizer, range(5))
    saved = {k: t.clone() for k, t in first.state().items()}
    second, again = new()
    second.load_state(saved)
    again.load_state_dict(optimizer.state_dict())
    torch.rand(11)  # nothing may depend on the global generator
    train(second, again, range(5, 8))
    assert all(torch.equal(t, whole.state()[k]) for k, t in second.state().items())
    with pytest.raises(ValueError, match="another model, rank"):
        second.load_state({k: t[:1] for k, t in saved.items()})


@pytest.mark.parametrize("kind", ["DoRA", "LoHa with DoRA", "LoKr with DoRA"])
def test_the_norm_follows_fused_optimizers(kind):
    """They leave no trace in the parameters' version, and pictures may be sampled between two steps."""
    where, given = layers(), inputs()
    adapter = trained(where, KINDS[kind])
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=5e-2, fused=True)
    with adapter.attached(where):
        for _ in range(3):
            with torch.inference_mode():
                before = {n: where[n](given[n]).clone() for n in where}
            sum(where[n](given[n]).square().mean() for n in where).backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                after = {n: where[n](given[n]) for n in where}
            assert not any(close(after[n], before[n], 1e-3) for n in where)
            for name, layer in where.items():
                assert close(after[name], with_weight(layer, changed_weight(layer, adapter.branches[name]), given[name]))


def dropping(dropout: Dropout, rank: int = 64) -> tuple[dict, Adapter]:
    where = {"fc": nn.Linear(16, 24).requires_grad_(False), "other": nn.Linear(16, 24).requires_grad_(False)}
    adapter = trained(where, NetworkConfig(rank, 1.0))
    adapter.dropout = dropout
    return where, adapter


def test_nothing_is_dropped_outside_a_step():
    where, adapter = dropping(Dropout(0.5, 0.5, 0.9))
    given = {n: torch.randn(2, 3, 16) for n in where}
    calm = outputs(where, Adapter(adapter.branches), given)
    with adapter.attached(where):
        adapter.begin_step(1, 1)
        assert any(not torch.equal(where[n](given[n]), calm[n]) for n in where)
        adapter.end_step()
        assert all(torch.equal(where[n](given[n]), calm[n]) for n in where)
        adapter.begin_step(1, 1)
    later = outputs(where, adapter, given)
    assert all(torch.equal(later[n], calm[n]) for n in where)


@pytest.mark.parametrize("dropout", [Dropout(elements=0.25), Dropout(ranks=0.25)])
def test_the_mean_over_many_steps_is_the_undropped_output(dropout):
    where, adapter = dropping(dropout)
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), adapter.attached(where):
        calm = where["fc"](x)
        seen = []
        for step in range(800):
            adapter.begin_step(3, step)
            seen.append(where["fc"](x))
    mean, spread = torch.stack(seen).mean(0), torch.stack(seen).std(0)
    assert (spread > 0).all()
    # 144 values whose means scatter by spread / sqrt(800); 4.5 standard deviations are exceeded once in 1000 such tests.
    assert ((mean - calm).abs() <= 4.5 * spread / 800**0.5).all()


def test_the_shares_are_those_asked_for():
    sizes, gone, ranks = [200] * 50, 0, 0
    for step in range(20):
        lots = Dropout(0.1, 0.3, 0.2).draw(sizes, 1, step, torch.device("cpu")).masks(sizes)
        there = [lot for lot in lots if lot.stays]
        gone += 50 - len(there)
        ranks += sum(int((lot.kept == 0).sum()) / len(there) for lot in there)
        assert all(set(lot.kept.tolist()) <= {0.0, torch.tensor(1 / 0.7).item()} for lot in lots)
        assert not any(lot.kept.any() for lot in lots if not lot.stays)
        assert len({tuple(lot.seed.tolist()) for lot in lots}) == 50
    assert gone / 1000 == pytest.approx(0.2, abs=0.05)
    assert ranks / 4000 == pytest.approx(0.3, abs=0.005)


def test_a_step_never_goes_without_any_branch():
    for step in range(200):
        lots = Dropout(modules=0.99).draw([2, 2, 2], 1, step, torch.device("cpu")).masks([2, 2, 2])
        assert any(lot.stays for lot in lots)


@pytest.mark.parametrize("kind", KINDS)
def test_a_skipped_layer_answers_as_the_model_alone_and_has_no_gradient(kind):
    where, given = layers(), inputs()
    adapter = trained(where, KINDS[kind])
    bare = {n: where[n](given[n]) for n in where}
    adapter.dropout, seen = Dropout(modules=0.5), set()
    for step in range(6):
        adapter.zero_grad()
        with adapter.attached(where):
            adapter.begin_step(3, step)
            stays = {name: bool(branch.mask.stays) for name, branch in adapter.branches.items()}
            found = {n: where[n](given[n]) for n in where}
            sum(out.square().sum() for out in found.values()).backward()
        for name, branch in adapter.branches.items():
            assert torch.equal(found[name], bare[name]) != stays[name]
            assert any(p.grad is not None and p.grad.any() for p in branch.parameters()) == stays[name]
        seen.add(tuple(stays.values()))
    assert len(seen) > 1


def test_a_branch_with_a_share_of_its_own_drops_what_an_adapter_with_that_share_would():
    """In the same places as ever, and one without any is what it is with no dropout at all."""
    x = torch.randn(2, 3, 16)

    def answers(dropout: Dropout, **own: float) -> list[torch.Tensor]:
        where, adapter = dropping(dropout)
        for name, share in own.items():
            adapter.branches[name].dropout = share
        with adapter.attached(where):
            adapter.begin_step(1, 4)
            return [where[name](x) for name in ("fc", "other")]

    torch.manual_seed(0)
    state = torch.get_rng_state()

    def again(*args, **own):
        torch.set_rng_state(state)  # equal layers
        return answers(*args, **own)

    calm, low, high = again(Dropout()), again(Dropout(0.2)), again(Dropout(0.6))
    for dropout, own, wanted in (
        (Dropout(0.2), {"other": 0.6}, (low[0], high[1])),
        (Dropout(0.2), {"other": 0.0}, (low[0], calm[1])),
        (Dropout(), {"other": 0.6}, (calm[0], high[1])),
        (Dropout(0.2), {"fc": 0.2, "other": 0.2}, low),
    ):
        assert all(torch.equal(a, b) for a, b in zip(again(dropout, **own), wanted, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(low, high, strict=True))
    ranks, apart = again(Dropout(0.2, 0.3, 0.3)), again(Dropout(0.2, 0.3, 0.3), other=0.0)
    assert torch.equal(ranks[0], apart[0]) and not torch.equal(ranks[1], apart[1])


def test_a_recomputed_forward_pass_drops_the_same():
    where, adapter = dropping(Dropout(0.4, 0.4, 0.0))
    x = torch.randn(2, 3, 16, requires_grad=True)
    for reentrant in (False, True):
        gradients = []
        for recompute in (False, True):
            adapter.zero_grad()
            with adapter.attached(where):
                adapter.begin_step(1, 4)
                out = checkpoint(where["fc"], x, use_reentrant=reentrant) if recompute else where["fc"](x)
                out.square().sum().backward()
            gradients.append([p.grad.clone() for p in adapter.branches["fc"].parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_rates_of_blocks_and_of_lora_plus():
    where = layers()
    config = NetworkConfig(4, lora_plus_ratio=16, weight_decompose=True, rules="mid.* rate=0.5\nmid.plain rank=2 alpha=1")
    adapter = Adapter.fresh(where, config, seed=1)
    groups = adapter.parameter_groups()
    rates = {id(p): group["rate"] for group in groups for p in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in groups) == len(list(adapter.parameters()))
    for name, branch in adapter.branches.items():
        block = 0.5 if name.startswith("mid.") else 1.0
        assert rates[id(branch.up)] == 16 * block
        assert rates[id(branch.down)] == rates[id(branch.magnitude)] == block
    assert adapter.branches["mid.plain"].rank == 2 and adapter.branches["mid.plain"].scale == 0.5
    torch.optim.AdamW([{"params": g["params"], "lr": 1e-4 * g["rate"]} for g in groups])


def test_an_fp8_layer_with_a_scale():
    """The weight is only unpacked for DoRA's norm; the layer itself computes as the host makes it compute."""

    class Scaled(nn.Linear):
        def __init__(self, weight: torch.Tensor):
            super().__init__(weight.shape[1], weight.shape[0])
            self.scale_weight = weight.abs().max() / 448
            self.weight = nn.Parameter((weight / self.scale_weight).to(torch.float8_e4m3fn), requires_grad=False)

        def forward(self, x):
            return torch.nn.functional.linear(x, self.weight.float() * self.scale_weight, self.bias)

    packed = {"fc": Scaled(torch.randn(24, 16)).requires_grad_(False)}
    plain = {"fc": nn.Linear(16, 24).requires_grad_(False)}
    plain["fc"].weight.data = packed["fc"].weight.float() * packed["fc"].scale_weight
    plain["fc"].bias = packed["fc"].bias
    given = {"fc": torch.randn(2, 3, 16)}
    config = NetworkConfig(4, weight_decompose=True)
    expected = outputs(plain, trained(plain, config), given)["fc"]
    assert close(outputs(packed, trained(packed, config), given)["fc"], expected)


def test_without_lycoris_one_sentence_says_what_to_do(monkeypatch):
    for module in [m for m in sys.modules if m == "lycoris" or m.startswith("lycoris.")] or ["lycoris"]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(AtelierError, match=r"^algorithm: .* lycoris-lora.*pip install lycoris-lora', or choose LoRA\.$"):
        Adapter.fresh(layers(), NetworkConfig(4, algorithm="LoKr"), seed=1)
    outputs(layers(), Adapter.fresh(layers(), NetworkConfig(4), seed=1))
