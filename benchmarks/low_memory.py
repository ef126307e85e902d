"""What each way to less memory costs: seconds a step and the most that is held, with the model as it is and with less on the GPU.

    python3 studio.py bench low_memory [--json] [--save] [--models sdxl flux] [--batch 1] [--rounds 3]

The ways take turns, each in a process of its own; a figure is the median. ``time`` and ``memory`` are in times of the plain
step's.
Without a GPU it shows that everything runs, on a small model: there is no other memory, so nothing is moved, and the figures mean
nothing.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import _common
import _models


def _ways() -> dict[str, Callable[[int], Any]]:
    """What is done with so many blocks, by name."""

    def way(twice: float = 0.0, away: float = 0.0, activations: bool = False) -> Callable[[int], Any]:
        def of(blocks: int) -> Any:
            from lora_atelier.training.performance.block_offload import scattered
            from lora_atelier.training.performance.thrift import Thrift

            recomputed = frozenset(range(round(twice * blocks)))
            return Thrift(blocks, blocks, recomputed, tuple(scattered(blocks, away)), activations)

        return of

    return {
        "plain": way(),
        "half of the blocks computed twice": way(0.5),
        "all blocks computed twice": way(1.0),
        "activations away": way(activations=True),
        "half of the blocks away": way(1.0, 0.5),
        "all blocks away": way(1.0, 1.0),
    }


WAYS = _ways()


def figures(found: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """By way: the median, the most that was held, both beside the plain step's, and what was said of transfers."""
    rows: dict[str, dict[str, Any]] = {}
    for name, results in found.items():
        rows[name] = {
            "seconds_per_step": round(statistics.median(value for result in results for value in result["seconds"]), 4),
            "peak_gib": round(max(result["peak_bytes"] for result in results) / 2**30, 3),
            "said": sorted({line for result in results for line in result["said"]}),
        }
    plain = rows.get("plain", {})
    for row in rows.values() if plain else ():
        row["time"] = round(row["seconds_per_step"] / plain["seconds_per_step"], 3)
        row["memory"] = round(row["peak_gib"] / plain["peak_gib"], 3)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=[*_models.KINDS, *_models.SMALL], help="default: sdxl and flux on a GPU")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--pixels", type=int, help="default: 1024 on a GPU, else 64")
    parser.add_argument("--steps", type=int, default=6, help="timed steps of every way and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true", help="write the figures to benchmarks/results")
    options = parser.parse_args()
    _common.use_host()
    import torch

    gpu = torch.cuda.is_available()
    models = options.models or (["sdxl", "flux"] if gpu else list(_models.SMALL))
    dtype = "bf16" if _common.has_bf16_units() else "fp32"
    result: dict[str, Any] = {**_common.machine(), "dtype": dtype, "rounds": options.rounds, "cases": {}}
    for model in models:
        _models.file_of(model, dtype)
        case = {
            "model": model, "side": "ours", "targets": "attention + feed-forward", "batch": options.batch, "dtype": dtype,
            "pixels": options.pixels or (1024 if gpu else 64), "steps": options.steps, "copies": False,
        }  # fmt: skip
        found: dict[str, list[dict[str, Any]]] = {}
        for number in range(options.rounds):
            start = number * len(options.ways) // options.rounds
            for way in options.ways[start:] + options.ways[:start]:
                one = _common.side_of({**case, "thrift": way}, way)
                if one is not None:
                    found.setdefault(way, []).append(one)
        title = f"{_models.kind_of(model).title}, {case['pixels']} px, batch {options.batch}, {dtype}"
        rows = result["cases"][title] = figures({way: found[way] for way in options.ways if way in found})
        print(f"\n{title}\n{'':<36}{'s a step':>10}{'time':>8}{'peak GiB':>10}{'memory':>8}")
        for name, row in rows.items():
            shown = row["seconds_per_step"], row.get("time", ""), row["peak_gib"], row.get("memory", "")
            print(f"{name:<36}{shown[0]:>10}{shown[1]:>8}{shown[2]:>10}{shown[3]:>8}", *row["said"], sep="\n    ")
    _common.finish("low_memory", result, as_json=options.json, keep=options.save, case=f"batch{options.batch}")


if __name__ == "__main__":
    main()
