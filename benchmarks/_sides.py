"""One side of ``step_time`` in this process: its steps, its memory, and what it adapts, as one line of JSON.

    python benchmarks/_sides.py '{"model": "sd15", "side": "ours", ...}'

The end of a step is the end of the optimizer's, which torch tells; so all sides are timed alike, none is changed for it, and
the first step, which warms up, is left out.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import _common
import _memory
import _models
import _peaks
import low_memory
import torch
from _case import CLOCKS, DTYPES, Case, Forward, Found, Train, latents_of, load_into_host, seconds_of, text_of
from _rivals import peft, stock
from torch.optim.optimizer import register_optimizer_step_post_hook

SMALL = 64
"""Pixels of the picture with which copies of the base are looked for: what a step keeps of it is next to nothing."""
MOMENTS = 4
"""An adapter's number lies in memory as itself, its gradient and AdamW's two moments."""


@contextmanager
def watched(found: Found, peak: _memory.Peak, clock: str) -> Iterator[None]:
    """Notes the end of every step."""

    def ended(optimizer: Any, _args: Any, _kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.ends.append(CLOCKS[clock]())
        found.parameters = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
        peak.begin()

    handle = register_optimizer_step_post_hook(ended)
    try:
        yield
    finally:
        handle.remove()


def ours(case: Case) -> tuple[Train, Forward, Mapping[str, Any]]:
    """This pack: its whole loop with its defaults, on latents that other nodes made; the model's forward pass alone; and the
    layers beside which it trains."""
    from lora_atelier.training import host
    from lora_atelier.training.config import LengthConfig, NetworkConfig, SubsetConfig, TrainingConfig
    from lora_atelier.training.dataset import precomputed
    from lora_atelier.training.dataset.cache import TensorCache
    from lora_atelier.training.dataset.encoded import EncodedDataset
    from lora_atelier.training.dataset.plan import Plan
    from lora_atelier.training.dataset.samples import Dataset, Subset
    from lora_atelier.training.families import family_named
    from lora_atelier.training.loop import train
    from lora_atelier.training.network.adapter import Adapter
    from lora_atelier.training.network.targets import select
    from lora_atelier.training.objective.noise import NoiseLevelSampler
    from lora_atelier.training.recorder import Callbacks
    from lora_atelier.training.runs.run import Run
    from lora_atelier.training.session import Session
    from lora_atelier.training.tensors.precision import compute_dtype

    loaded = host.Model(load_into_host(case))
    loaded = loaded.for_training(compute_dtype(case.dtype, loaded.device))
    chosen = {"include": "*"} if case.targets == "every layer" else {"targets": case.targets}

    class Nobody:
        def identity(self) -> str:
            return ""

        def reading_of(self, _text: str) -> tuple[str, ...]:
            return ()

    def run(now: Case, found: Found) -> None:
        network = NetworkConfig(rank=case.rank, alpha=case.rank, **chosen)  # type: ignore[arg-type]
        config = TrainingConfig("bench", network=network, length=LengthConfig(max_steps=now.steps + 1))
        with tempfile.TemporaryDirectory() as place, torch.inference_mode(False):
            folder, cache = Path(place), TensorCache(Path(place) / "cache", 2**40)
            cond, extras = text_of(now)
            pictures = [{"samples": latents_of(now, now.batch * (now.steps + 1))}]
            samples = precomputed.store(pictures, [[[cond, extras]]], cache)
            dataset = Dataset((Subset(SubsetConfig("bench", batch_size=now.batch), samples, 1),))
            layers = select(loaded.layers(), network)
            found.layers = len(layers)
            adapter = Adapter.fresh(layers, network, 0).to(loaded.device)
            levels = NoiseLevelSampler.suited(loaded.prediction, config.noise, loaded.sigmas, family_named(loaded.family))
            encoded: Any = EncodedDataset(dataset, 0, Nobody(), Nobody(), cache)  # type: ignore[arg-type]
            files = Run.begin("bench", folder / "runs", folder / "loras")
            thrift = low_memory.WAYS[now.thrift](len(loaded.blocks()))
            session = Session(loaded, None, layers, adapter, levels, encoded, Plan(dataset, 0), config, thrift)
            train(session, files, Callbacks(warn=found.said.append))

    def forward(count: int) -> list[float]:
        x, sigma = latents_of(case, case.batch).to(loaded.device), torch.full((case.batch,), 0.5, device=loaded.device)
        text = {"cond": text_of(case)[0], **text_of(case)[1]}
        with loaded.hold(), torch.no_grad():
            conditions = [loaded.condition(text, x[i : i + 1], {}) for i in range(case.batch)]
            return seconds_of(lambda: loaded.predict(x, sigma, conditions), count, case.clock)

    return run, forward, select(loaded.layers(), NetworkConfig(rank=case.rank, **chosen))  # type: ignore[arg-type]


def copies(case: Case, run: Train, base: int) -> float:
    """How many more times than once the base's weights are held at most while a step runs.

    With so small a picture that what is kept of it hardly counts; what the adapter takes is subtracted.
    """
    _memory.settle()
    before, found, peak = _memory.held(), Found(), _memory.Peak()
    with watched(found, peak, case.clock):
        run(Case(**{**vars(case), "pixels": SMALL, "batch": 1, "steps": 2}), found)
    return round((peak.end() - before - MOMENTS * 4 * found.parameters) / base, 2)


def profiled(run: Train, case: Case) -> str:
    """The operations that take most of the time, by the time on the device where there is a GPU."""
    from torch.profiler import ProfilerActivity, profile

    gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as seen:
        run(Case(**{**vars(case), "steps": 2}), Found())
    table: str = seen.key_averages().table(sort_by="self_device_time_total" if gpu else "self_cpu_time_total", row_limit=30)
    return table


@contextmanager
def adapted(layers: Mapping[str, Any], rank: int) -> Iterator[list[float]]:
    """Operations that LoRAs beside ``layers`` add to a step for what passes through them meanwhile, as a list to be summed up.

    A product with each factor forward; back, one for the gradient of what came in and one for the factor's own.
    """
    counted: list[float] = []

    def passed(layer: Any, _given: Any, out: Any) -> None:
        width = layer.weight.shape[0]
        counted.append(3 * 2.0 * rank * out.numel() / width * (layer.weight[0].numel() + width))

    handles = [layer.register_forward_hook(passed) for layer in layers.values()]
    try:
        yield counted
    finally:
        for handle in handles:
            handle.remove()


def utilisation(forward: Forward, layers: Mapping[str, Any], case: Case) -> dict[str, float]:
    """``flops`` of a step without checkpointing, and what the GPU can do in a second: measured, and as its maker says.

    A frozen base asks for twice its forward pass, in which it has no gradients of its own, and the adapter for its own.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, adapted(layers, case.rank) as more:
        forward(0)
    side = 8192
    a = torch.randn(side, side, device="cuda", dtype=DTYPES[case.dtype])
    times = sorted(seconds_of(lambda: torch.mm(a, a), 10))
    out = {"flops": 2.0 * counter.get_total_flops() + sum(more)}
    out["product_flops_per_second"] = 2 * side**3 / times[len(times) // 2]
    nominal = _peaks.nominal(torch.cuda.get_device_name(), case.dtype)
    return out if nominal is None else {**out, "nominal_flops_per_second": nominal}


def main() -> None:
    case = Case(**json.loads(sys.argv[1]))
    # What the host chooses on a CPU instead keeps the stock trainer from larger batches: it has no backward pass.
    _common.use_host(torch_attention=True)
    run: Train
    forward: Forward | None
    layers: Mapping[str, Any] = {}
    if case.side == "ours":
        run, forward, layers = ours(case)
    else:
        run, forward = {"stock": stock, "stock_bypass": stock, "peft": peft}[case.side](case)
    base = _models.file_of(case.model, case.dtype).stat().st_size
    result: dict[str, Any] = {"base_bytes": base}
    if case.profile:
        result["profile"] = profiled(run, case)
    if case.copies:
        result["extra_base_copies"] = copies(case, run, base)
    _memory.settle()
    before, found, peak = _memory.held(), Found(), _memory.Peak()
    with watched(found, peak, case.clock):
        run(case, found)
    result["peak_bytes"] = peak.end()
    result |= {"before_bytes": before, "layers": found.layers, "parameters": found.parameters}
    result["said"] = found.said
    result["seconds"] = [b - a for a, b in pairwise(found.ends)]
    if forward is not None:
        result["forward_seconds"] = forward(case.steps)
        if torch.cuda.is_available() and case.side == "ours":
            result |= utilisation(forward, layers, case)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
