"""The project's own checks, tests and benchmarks, started in the environment of ``.studio``."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .setting_up import Studio, say
from .stages import SetupError

CHECKS = (("ruff", "check"), ("ruff", "format", "--check"), ("mypy",), ("mypy", "benchmarks"))
TEST_WORKERS = 3
GPU_TESTS = ("tests/training", "tests/nodes", "tests/zoo")  # where a device matters at all
PRETENDED_TESTS = (  # of these, where it matters most: what the whole suite runs on a pretended GPU as well; --gpu runs them all
    "tests/training/network", "tests/training/tensors",
    *(f"tests/nodes/test_{name}.py" for name in ("auto_caption", "configure_lora", "epoch_weight_grid", "render_regularisation")),
    *(f"tests/zoo/test_{name}" for name in (
        "zoo.py::test_the_gradient", "zoo.py::test_the_file_draws_what_the_live_adapter_draws", "quantised.py", "precisions.py",
        "recording.py", "edits.py", "eight_bits.py", "vaes.py", "texts.py::test_a_text_encoder_learns",
    )),
    *(f"tests/training/{name}.py" for name in (
        "test_job", "test_edit_runs", "test_regularisation", "test_whole_runs", "runs/test_resume",
        "grid/test_render", "grid/test_network", "grid/test_side_by_side", "grid/test_score",
        "host/test_devices", "host/test_host", "host/test_lockstep", "host/test_pictures", "host/test_towers", "host/test_twins",
        "dataset/test_encoded", "evaluation/test_validation", "performance/test_block_offload", "performance/test_fallback",
        "performance/test_checkpointing", "performance/test_syncs",
    )),
)  # fmt: skip


def on_workers(environment: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """pytest's arguments and variables for many tests: the small models keep one core busy each, and no more.

    On few cores there is one worker more than these, since servers and pages are waited for.
    """
    cores = os.cpu_count() or 1
    workers = min(TEST_WORKERS, cores + 1)
    threads = {"OMP_NUM_THREADS": str(max(1, cores // workers))}
    return ["--numprocesses", str(workers), "--dist", "loadfile"], {**environment, **threads}


def cannot_pretend(studio: Studio, python: Path) -> str:
    """Why no GPU can be pretended on this machine; empty where one can, which is then built."""
    built = subprocess.run(
        [str(python), str(studio.root / "tests" / "pretend_gpu" / "__init__.py")], capture_output=True, text=True
    )
    return "" if built.returncode == 0 else built.stderr.strip() or "its program fails without a word"


class Checks:
    """Programs that are run one after the other, whatever those before them have found."""

    def __init__(self, root: Path, python: Path):
        self.root, self.python = root, python
        self.failed: list[str] = []

    def run(self, line: Sequence[str], environment: dict[str, str], name: str = "") -> None:
        say(f"$ {' '.join(line)}")
        if subprocess.run([str(self.python), "-m", *line], cwd=self.root, env=environment).returncode != 0:
            self.failed.append(name or " ".join(line))

    def result(self) -> int:
        say(f"Failed: {', '.join(self.failed)}" if self.failed else "All passed.")
        return 1 if self.failed else 0


def run_checks(studio: Studio, comfyui: str | None) -> int:
    """Lint, format and types; 0 if all passed."""
    place, environment = studio.test_environment(comfyui, browser=False)
    checks = Checks(studio.root, place.python)
    for line in CHECKS:
        checks.run(line, environment)
    return checks.result()


def run_tests(studio: Studio, comfyui: str | None, arguments: list[str]) -> int:
    """The checks, then pytest, all of them, and of the whole suite a part on a pretended GPU; 0 if all passed.

    What of the pack's code ran is counted where the whole suite runs; pyproject.toml says how much it has to be.
    """
    place, environment = studio.test_environment(comfyui, browser=True)
    checks = Checks(studio.root, place.python)
    for line in CHECKS:
        checks.run(line, environment)
    if {*arguments} - {"--all-models"}:
        checks.run(["pytest", *arguments], environment, "pytest")
    else:
        how, environment = on_workers(environment)
        checks.run(["pytest", *arguments, *how, "--cov"], environment, "pytest")
        name, problem = "pytest on a pretended GPU", cannot_pretend(studio, place.python)
        if problem:
            say(f"The tests on a pretended GPU are left out: {problem}")
            checks.failed += [name] if os.environ.get("CI") == "true" else []
        else:
            say("Now on a pretended GPU:")
            checks.run(["pytest", *PRETENDED_TESTS, *how], {**environment, "ATELIER_TEST_GPU": "pretend"}, name)
    return checks.result()


def run_gpu_tests(studio: Studio, comfyui: str | None, arguments: list[str]) -> int:
    """pytest alone, on the GPU that is there or on a pretended one."""
    place, environment = studio.test_environment(comfyui, browser=False)
    kind = "1" if studio.gpu else "pretend"
    if not studio.gpu:
        problem = cannot_pretend(studio, place.python)
        if problem:
            raise SetupError(f"there is no NVIDIA GPU here, and none can be pretended: {problem}")
        say("There is no NVIDIA GPU here: the tests run on a pretended one, whose memory is main memory.")
    if not {*arguments} - {"--all-models"}:
        how, environment = on_workers(environment)
        arguments = [*GPU_TESTS, *arguments, *how]
    line = [str(place.python), "-m", "pytest", *arguments]
    return subprocess.run(line, cwd=studio.root, env={**environment, "ATELIER_TEST_GPU": kind}).returncode


def run_bench(studio: Studio, comfyui: str | None, name: str, arguments: list[str]) -> int:
    known = sorted(file.stem for file in (studio.root / "benchmarks").glob("[a-z]*.py"))
    if name not in known:
        raise SetupError(f"there is no benchmark {name}; there are: {', '.join(known) or 'none'}")
    place, environment = studio.test_environment(comfyui, browser=False)
    script = studio.root / "benchmarks" / f"{name}.py"
    return subprocess.run([str(place.python), str(script), *arguments], cwd=studio.root, env=environment).returncode
