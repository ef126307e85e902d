"""What the benchmarks share: the host on the path, the machine's name, and where figures are kept."""

from __future__ import annotations

import datetime
import importlib
import importlib.machinery
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(os.environ.get("ATELIER_RESULTS") or ROOT / "benchmarks" / "results")
BUILT = ROOT / ".studio" / "bench"
"""Models that are put together once; not part of the repository."""


def ask_for_memory_as_the_host_does() -> None:
    """ComfyUI decides where a GPU's memory comes from before torch is there (``cudaMallocAsync`` on most); so here as well."""
    comfyui = os.environ.get("ATELIER_COMFYUI")
    if comfyui is None or "torch" in sys.modules:
        return
    sys.path.insert(0, comfyui)
    try:
        importlib.import_module("cuda_malloc")
    finally:
        sys.path.remove(comfyui)


ask_for_memory_as_the_host_does()  # each benchmark imports this module first


def use_host(torch_attention: bool = False) -> None:
    """ComfyUI on the path, on the CPU where there is no GPU, and this pack under a name of its own.

    ``torch_attention`` is the host's --use-pytorch-cross-attention, which NVIDIA GPUs have without asking.
    """
    sys.path[:] = [p for p in sys.path if Path(p or os.curdir).resolve() not in (ROOT, ROOT / "benchmarks")]
    sys.path.insert(0, os.environ["ATELIER_COMFYUI"])
    import torch
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    args.use_pytorch_cross_attention = args.use_pytorch_cross_attention or torch_attention
    package = ModuleType("lora_atelier")
    package.__path__ = [str(ROOT)]
    package.__spec__ = importlib.machinery.ModuleSpec("lora_atelier", None, is_package=True)
    sys.modules["lora_atelier"] = package


def demo_checkpoint() -> str:
    """The demo model as one checkpoint; ``use_host`` comes first."""
    from lora_atelier.demo.weights import assemble

    return str(assemble(ROOT / "demo" / "weights.safetensors", BUILT / "demo.safetensors"))


def processor() -> str:
    """The CPU's name as it calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def has_bf16_units() -> bool:
    """Whether bf16 is more than a slow detour here; ``use_host`` comes first."""
    import torch
    from lora_atelier.training.tensors.precision import has_native_support

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return has_native_support(torch.bfloat16, torch.device("cpu"))


def machine() -> dict[str, Any]:
    """What a figure was measured on, and how busy it was just before."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "device": gpu or f"CPU, {torch.get_num_threads()} threads",
        **({"allocator": torch.cuda.get_allocator_backend()} if gpu else {}),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "load_average_before": load_average(),
    }


def side_of(case: dict[str, Any], title: str) -> dict[str, Any] | None:
    """What ``_sides.py`` measures of a case, in a process of its own; None where it failed, which is said with its ``title``."""
    line = [sys.executable, str(Path(__file__).with_name("_sides.py")), json.dumps(case)]
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        print(f"{title} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
        return None
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def load_average() -> float | None:
    """Processes that wanted to run, averaged over the last minute; None where the system doesn't count them."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def result_path(benchmark: str, result: dict[str, Any], folder: Path = RESULTS, case: str = "") -> Path:
    """``step_time-256px-batch1-intel-xeon-2.80ghz-2-cores-2026-11-21.json``: benchmark, case, machine, date."""
    device = result["device"]
    name = f"{result['cpu']} {result['cores']} cores" if device.startswith("CPU") else device
    name = re.sub(r"\((r|tm)\)|\b(cpu|processor|nvidia|geforce)\b|@", " ", name.lower())
    slug = re.sub(r"[^a-z0-9.]+", "-", name).strip("-")
    return folder / ("-".join(part for part in (benchmark, case, slug, result["date"]) if part) + ".json")


def finish(benchmark: str, result: dict[str, Any], *, as_json: bool, keep: bool, case: str = "") -> None:
    """Writes the result down where ``--save`` asks for it, and prints it as the last line where ``--json`` does."""
    result["load_average_after"] = load_average()
    if keep:
        path = result_path(benchmark, result, case=case)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"saved: {path}", file=sys.stderr)
    if as_json:
        print(json.dumps(result))
