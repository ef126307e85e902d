"""A training step of this pack beside the stock ``TrainLoraNode`` in both of its modes and beside diffusers + PEFT, in one run.

    python3 studio.py bench step_time [--json] [--save] [--pixels 256 512] [--batch 1 4] [--dtype fp32] [--rounds 3]

Every side trains a LoRA of rank 16 with AdamW on the same model of the real size with random weights, in a process of its own.
The sides take turns, round after round, so that whatever else the machine does meets all alike; a figure is the median.

| figure | ours trains | compared with |
| --- | --- | --- |
| ``ratio_to_peft`` | attention + feed-forward | diffusers + PEFT on the same layers |
| ``ratio_to_peft_every_layer`` | every linear and convolution | diffusers + PEFT on the same layers |
| ``ratio_to_stock_bypass``, ``_default`` | every linear and convolution | the stock node; it also trains norms and biases |
| the same with ``_own_targets`` | attention + feed-forward, the default | the stock node as it is |
| ``share_of_floor`` | attention + feed-forward | twice the forward pass, the least a frozen base asks for |
| ``share_of_a_large_product`` | attention + feed-forward | on a GPU: the rate of a product of two matrices of 8,192 x 8,192 |
| ``share_of_nominal_peak`` | attention + feed-forward | the GPU's rate by its maker (MFU), if it is in ``_peaks.py`` |
| ``extra_base_copies`` | attention + feed-forward | the most a step of a 64-pixel picture holds, in times of the weights |

Below 1 is faster for the ratios; for the shares 1 is perfect. A step's operations are counted as twice those of the forward pass,
without what checkpointing repeats, and those of the adapter. Without a GPU only Stable Diffusion 1.5 is measured.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from typing import Any

import _common
import _models

TARGETS = ("attention + feed-forward", "every layer")
Side = tuple[str, str]
"""(whose step, which layers)."""
OURS, OURS_EVERY = ("ours", TARGETS[0]), ("ours", TARGETS[1])
PEFT, PEFT_EVERY = ("peft", TARGETS[0]), ("peft", TARGETS[1])
BYPASS, DEFAULT = ("stock_bypass", "all it can"), ("stock", "all it can")
SIDES: tuple[Side, ...] = (OURS, PEFT, OURS_EVERY, PEFT_EVERY, BYPASS, DEFAULT)
RATIOS = {
    "ratio_to_stock_bypass": (OURS_EVERY, BYPASS),
    "ratio_to_stock_default": (OURS_EVERY, DEFAULT),
    "ratio_to_peft": (OURS, PEFT),
    "ratio_to_peft_every_layer": (OURS_EVERY, PEFT_EVERY),
    "ratio_to_stock_bypass_own_targets": (OURS, BYPASS),
    "ratio_to_stock_default_own_targets": (OURS, DEFAULT),
}


def measure(side: Side, case: dict[str, Any]) -> dict[str, Any] | None:
    """One process; None where it failed, which is said."""
    result = _common.side_of({**case, "side": side[0], "targets": side[1]}, f"{side[0]} ({side[1]})")
    if result is not None:
        say(f"  {side[0]}, {side[1]}: {statistics.median(result['seconds']):.3f} s a step")
    return result


def say(text: str) -> None:
    """To the person; standard output is kept for the result."""
    print(text, file=sys.stderr, flush=True)


def rounds_of(sides: list[Side], case: dict[str, Any], rounds: int) -> dict[Side, list[dict[str, Any]]]:
    """What every side found in every round; each round begins with another side."""
    found: dict[Side, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}, load average {_common.load_average()}")
        start = number * len(sides) // rounds
        for side in sides[start:] + sides[:start]:
            result = measure(side, {**case, "copies": number == 0})
            if result is not None:
                found[side].append(result)
    return {side: results for side, results in found.items() if results}


def figures(found: dict[Side, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians, ratios and memory of one case."""
    adapted = {side: (results[0]["layers"], results[0]["parameters"]) for side, results in found.items()}
    for mine, theirs in ((OURS, PEFT), (OURS_EVERY, PEFT_EVERY)):
        if mine in adapted and theirs in adapted and adapted[mine] != adapted[theirs]:
            raise SystemExit(f"not the same layers: ours {adapted[mine]}, PEFT {adapted[theirs]}")

    def pooled(side: Side, key: str) -> list[float]:
        return [value for result in found.get(side, ()) for value in result.get(key, ())]

    seconds = {side: statistics.median(pooled(side, "seconds")) for side in found}
    out: dict[str, Any] = {
        name: round(seconds[a] / seconds[b], 3) for name, (a, b) in RATIOS.items() if a in seconds and b in seconds
    }
    floor = pooled(OURS, "forward_seconds")
    if OURS in seconds and floor:
        out["share_of_floor"] = round(2 * statistics.median(floor) / seconds[OURS], 3)
    out["sides"] = {f"{name}, {targets}": row(found[name, targets], seconds[name, targets]) for name, targets in found}
    if OURS in found:
        first = found[OURS][0]
        if "extra_base_copies" in first:
            out["extra_base_copies"] = first["extra_base_copies"]
        if "flops" in first:
            rate = first["flops"] / seconds[OURS]
            out["teraflops_per_second"] = round(rate / 1e12, 1)
            out["share_of_a_large_product"] = round(rate / first["product_flops_per_second"], 3)
            if "nominal_flops_per_second" in first:
                out["share_of_nominal_peak"] = round(rate / first["nominal_flops_per_second"], 3)
    return out


def row(results: list[dict[str, Any]], median: float) -> dict[str, Any]:
    """What is said of one side."""
    every = [value for result in results for value in result["seconds"]]
    forwards = [value for result in results for value in result.get("forward_seconds", ())]
    return {
        "seconds_per_step": round(median, 4),
        "fastest": round(min(every), 4),
        "slowest": round(max(every), 4),
        "peak_gib": round(max(result["peak_bytes"] for result in results) / 2**30, 2),
        "extra_base_copies": results[0].get("extra_base_copies"),
        "layers": results[0]["layers"],
        "trained_numbers": results[0]["parameters"],
        **({"forward_seconds": round(statistics.median(forwards), 4)} if forwards else {}),
    }


def table(title: str, result: dict[str, Any]) -> str:
    lines = [f"\n{title}", f"{'side':<36}{'s a step':>10}{'peak GiB':>10}{'copies':>8}{'layers':>8}{'forward':>9}"]
    for name, side in result["sides"].items():
        shown = (side["seconds_per_step"], side["peak_gib"], side["extra_base_copies"], side["layers"])
        lines.append(f"{name:<36}{shown[0]:>10}{shown[1]:>10}{shown[2]!s:>8}{shown[3]:>8}{side.get('forward_seconds', ''):>9}")
    return "\n".join([*lines, *(f"{key}: {value}" for key, value in result.items() if key != "sides")])


def cases_of(options: argparse.Namespace, gpu: bool) -> list[dict[str, Any]]:
    out = []
    for model, pixels, batch in itertools.product(options.models, options.pixels, options.batch):
        if model != "sd15" and not gpu:
            say(f"{_models.KINDS[model].title} is left out: at its size a step needs a GPU, and there is none.")
            continue
        size = pixels if model == "sd15" else 1024
        case = {"model": model, "pixels": size, "batch": batch, "dtype": options.dtype, "steps": options.steps}
        case["clock"] = options.clock
        out += [case] if case not in out else []
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(_models.KINDS), help="default: all on a GPU, else sd15")
    parser.add_argument("--pixels", type=int, nargs="+", help="sides of SD1.5's pictures; the others have 1024")
    parser.add_argument("--batch", type=int, nargs="+")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], help="default: bf16 where the machine computes in it")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of every side and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=["ours", "peft", "stock_bypass", "stock"])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS, help="layers of ours and of PEFT")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: processor time, on a machine that is busy")
    parser.add_argument("--device-profile", action="store_true", help="print where our step spends its time, and stop")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true", help="write the figures to benchmarks/results")
    options = parser.parse_args()
    _common.use_host()
    import torch

    gpu = torch.cuda.is_available()
    options.models = options.models or (list(_models.KINDS) if gpu else ["sd15"])
    options.pixels, options.batch = options.pixels or ([256, 512] if gpu else [256]), options.batch or ([1, 4] if gpu else [1])
    if options.dtype is None:
        options.dtype = "bf16" if _common.has_bf16_units() else "fp32"
        say(f"computing in {options.dtype}, which suits this machine")
    result = {**_common.machine(), "dtype": options.dtype, "rounds": options.rounds, "clock": options.clock, "cases": {}}
    for case in cases_of(options, gpu):
        _models.file_of(case["model"], case["dtype"])
        title = f"{_models.KINDS[case['model']].title}, {case['pixels']} px, batch {case['batch']}, {case['dtype']}"
        say(title)
        if options.device_profile:
            print((measure(OURS, {**case, "profile": True}) or {}).get("profile", ""))
            continue
        # diffusers' Flux has other fused layers, so nothing there is the same work.
        sides = [
            side
            for side in SIDES
            if side[0] in (options.sides or [side[0]])
            and (side[1] in options.targets or side[0].startswith("stock"))
            and (case["model"] != "flux" or side[0] != "peft")
        ]
        result["cases"][title] = figures(rounds_of(sides, case, options.rounds))
        print(table(title, result["cases"][title]))
    if options.device_profile:
        return
    rows = list(result["cases"].values())
    for name in (*RATIOS, "share_of_floor"):
        values = [found[name] for found in rows if name in found]
        if values:
            result[name] = round(statistics.geometric_mean(values), 3)
    copies = [found["extra_base_copies"] for found in rows if "extra_base_copies" in found]
    if copies:
        result["extra_base_copies"] = max(copies)
    sizes = "-".join(f"{p}px" for p in options.pixels) + "-batch" + "-".join(map(str, options.batch))
    sizes += "" if options.dtype == "fp32" else f"-{options.dtype}"
    sizes += "-processor-time" if options.clock == "cpu" else ""
    _common.finish("step_time", result, as_json=options.json, keep=options.save, case=sizes)


if __name__ == "__main__":
    main()
