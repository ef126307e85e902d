"""Common ground of all tests: the pack as the package ``lora_atelier``, and ComfyUI importable in this process.

ComfyUI has top-level modules called ``nodes``, ``utils``, ``app`` and ``server``, and so has this repository a folder
``nodes``. Therefore the repository's root is never on ``sys.path``: tests write ``from lora_atelier.training.config import ...``,
and plain ``import nodes`` means ComfyUI's.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent
HOSTS = ROOT / ".studio" / "hosts"
COMFYUI = Path(os.environ.get("ATELIER_COMFYUI", HOSTS / "comfyui-0.30.0"))
COMFYUI_OLD = Path(os.environ.get("ATELIER_COMFYUI_OLD", HOSTS / "comfyui-0.3.75"))
GPU = os.environ.get("ATELIER_TEST_GPU", "").replace("0", "")
"""``1``: the tests run on the GPU that is there; ``pretend``: on the one of ``pretend_gpu``; else on the CPU."""
KERNELS_DIFFER = GPU not in ("", "pretend")
"""On a real GPU one product may be computed by several kernels, and some passes back round otherwise each time."""
MISSING_HOST = "no ComfyUI at {}: run the tests with `python3 studio.py test`, which fetches it"

# A busy machine is no reason to fail.
hypothesis.settings.register_profile(
    "atelier", deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("atelier")


def register_pack() -> None:
    """Make ``lora_atelier`` a package whose folder is the repository's root, without running the root ``__init__``."""
    spec = importlib.machinery.ModuleSpec("lora_atelier", None, is_package=True)
    spec.submodule_search_locations = [str(ROOT)]
    package = ModuleType("lora_atelier")
    package.__spec__ = spec
    package.__path__ = [str(ROOT)]
    sys.modules["lora_atelier"] = package


def install_cpu_torch_aid() -> None:
    """What ``studio.py`` does through ``PYTHONPATH``, also for a pytest that was started by hand."""
    path = ROOT / "demo" / "cpu_torch_aid" / "sitecustomize.py"
    spec = importlib.util.spec_from_file_location("cpu_torch_aid", path)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def pretend_gpu() -> ModuleType:
    """The package of that name beside this file, which no test folder on ``sys.path`` could give."""
    name = "lora_atelier.tests.pretend_gpu"
    if name not in sys.modules:
        path = Path(__file__).parent / "pretend_gpu" / "__init__.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def prepare_host(base: Path) -> None:
    """Put ComfyUI on ``sys.path`` with the arguments of a CPU server whose folders are under ``base``.

    ComfyUI parses ``sys.argv`` only when its ``main.py`` asks for it; here its defaults are taken and then changed, so that
    pytest's own arguments are never seen. ``ATELIER_TEST_GPU`` leaves the choice of the device to ComfyUI.
    """
    sys.path[:] = [entry for entry in sys.path if Path(entry or os.curdir).resolve() != ROOT]
    sys.path.insert(0, str(COMFYUI))
    from comfy.cli_args import args

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    args.cpu = not GPU
    if GPU:  # left to itself the host takes half precision there, in which little of what is tested could be told apart
        args.force_fp32 = args.fp32_text_enc = args.fp32_vae = True
        import torch

        # The same question gets the same answer twice, for what is asked is whether a model is what it was, or a run went on as
        # it would have. Left to themselves cuDNN, cuBLAS and the backward pass of attention may round otherwise each time.
        torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    args.base_directory = str(base)
    for name in ("models", "input", "output", "temp", "user", "custom_nodes"):
        (base / name).mkdir()


register_pack()
install_cpu_torch_aid()
if GPU == "pretend":
    pretend_gpu().install()
BASE = Path(tempfile.mkdtemp(prefix="atelier-tests-"))
if (COMFYUI / "main.py").is_file():
    prepare_host(BASE)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-models", action="store_true", help="also the models of tests/zoo that are too large for every run")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "all_models: tried with --all-models only")
    config.addinivalue_line("markers", "cpu_only(reason): can hold on a CPU only, and why")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--all-models"):
        for item in items:
            if item.get_closest_marker("all_models"):
                item.add_marker(pytest.mark.skip(reason="large: tried with --all-models"))
    for item in items if GPU else ():
        mark = item.get_closest_marker("cpu_only")
        if mark:
            item.add_marker(pytest.mark.skip(reason=f"on a CPU only: {mark.args[0]}"))


def pytest_unconfigure() -> None:
    shutil.rmtree(BASE, ignore_errors=True)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The folder of the main host, already importable: ``import comfy.sd`` works in a test that asks for this."""
    if not (COMFYUI / "main.py").is_file():
        pytest.fail(MISSING_HOST.format(COMFYUI))
    return COMFYUI


@pytest.fixture(scope="session")
def comfyui_old() -> Path:
    """The folder of the oldest supported host; for servers only, since this process imports the main one."""
    if not (COMFYUI_OLD / "main.py").is_file():
        pytest.fail(MISSING_HOST.format(COMFYUI_OLD))
    return COMFYUI_OLD


@pytest.fixture(scope="session")
def base_directory() -> Iterator[Path]:
    """The folder under which the in-process ComfyUI looks for ``models``, ``input`` and ``output``; gone afterwards."""
    yield BASE
