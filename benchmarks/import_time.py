"""How long the pack's import takes inside a ComfyUI that has loaded everything of its own.

python3 studio.py bench import_time [--json]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

import _common

CODE = """
import sys, time, asyncio, importlib.util
sys.path.insert(0, {comfyui!r})
from comfy.cli_args import args
args.cpu = True
import torch, numpy, PIL.Image, comfy.sd, comfy.samplers, folder_paths, server
from comfy_api.latest import io
start = time.perf_counter()
spec = importlib.util.spec_from_file_location("a_made_up_name", {root!r} + "/__init__.py", submodule_search_locations=[{root!r}])
pack = importlib.util.module_from_spec(spec)
sys.modules["a_made_up_name"] = pack
spec.loader.exec_module(pack)
for node in asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list()):
    node.GET_SCHEMA()
print(time.perf_counter() - start)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true", help="write the figure to benchmarks/results")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    code = CODE.format(comfyui=os.environ["ATELIER_COMFYUI"], root=str(_common.ROOT))
    result = _common.machine()
    seconds = []
    for _ in range(options.runs):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds.append(float(done.stdout.strip().splitlines()[-1]))
    result |= {"seconds": round(statistics.median(seconds), 3), "runs": options.runs}
    print(f"the pack's import and its schemas take {result['seconds']} s (median of {options.runs})")
    _common.finish("import_time", result, as_json=options.json, keep=options.save)


if __name__ == "__main__":
    main()
