"""Lets the torchvision and torchaudio of PyPI, which are CUDA builds on Linux, be imported beside a CPU build of torch.

A development aid for machines without a GPU, put on ``PYTHONPATH`` by ``studio.py`` and never part of the pack. Both packages
fail on import there: torchvision registers fake kernels for operators that its native library, which cannot be loaded, would
have defined; torchaudio lets the loader's error through. Two import hooks mend that, and only when ``torch.version.cuda`` is
None and the native library really cannot be loaded: torchvision gets the schemas of ``nms`` and its quantised twin ``qnms``,
torchaudio is told that it has no native library. Picture transforms, resampling and mel filters then work; ``nms``,
``deform_conv2d`` and torchvision's own codecs do not.

Nothing is imported at start-up: the hooks wait for the two modules by name.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

_keep_alive: list[object] = []  # a torch.library.Library takes its definitions away when it is collected


def _cpu_torch() -> bool:
    import torch

    return torch.version.cuda is None


def define_torchvision_ops(extension: ModuleType) -> None:
    """After ``torchvision.extension``: define the two operators whose fake kernels are registered at import."""
    if not _cpu_torch() or extension._has_ops():
        return
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _keep_alive.append(library)


def tolerate_torchaudio(utils: ModuleType) -> None:
    """After ``torchaudio._extension.utils``: a native library that cannot be loaded counts as absent."""
    load = utils._load_lib

    def load_or_go_without(name: str) -> bool:
        try:
            return bool(load(name))
        except OSError:
            if _cpu_torch():
                return False
            raise

    vars(utils)["_load_lib"] = load_or_go_without


AFTER: dict[str, Callable[[ModuleType], None]] = {
    "torchvision.extension": define_torchvision_ops,
    "torchaudio._extension.utils": tolerate_torchaudio,
}


class _Loader(importlib.abc.Loader):
    """The module's own loader, followed by the hook."""

    def __init__(self, inner: importlib.abc.Loader, after: Callable[[ModuleType], None]):
        self.inner, self.after = inner, after

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.inner.exec_module(module)
        self.after(module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in AFTER:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, AFTER[name])
        return spec


def install() -> None:
    """Add the hooks once."""
    if not any(type(finder).__name__ == _Finder.__name__ and hasattr(finder, "atelier") for finder in sys.meta_path):
        finder = _Finder()
        finder.atelier = True  # type: ignore[attr-defined]
        sys.meta_path.insert(0, finder)


def run_the_hidden_one() -> None:
    """Python runs only the first ``sitecustomize`` on the path; run the one that this file hides, if there is one."""
    here = os.path.dirname(os.path.abspath(__file__))
    others = [entry for entry in sys.path if os.path.abspath(entry or os.curdir) != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


install()
if __name__ == "sitecustomize":
    run_the_hidden_one()
