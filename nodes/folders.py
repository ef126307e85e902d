"""The folders that widgets name, and their pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..training.config import SubsetConfig
from ..training.dataset.cache import cache_key
from ..training.dataset.folders import resolve_folder
from ..training.dataset.samples import Subset
from ..training.dataset.scan import scan
from ..training.dataset.workers import Advance


def named(name: str) -> tuple[Path, Path]:
    """(the folder that ``name`` stands for, its root); AtelierError for what is none."""
    from ..training import host

    return resolve_folder(name, host.dataset_roots()), host.dataset_root(name)


def index_of(folder: Path) -> Path:
    """The file that keeps what is known of a folder's pictures."""
    from ..training import host

    return host.cache_folder() / "pictures" / f"{cache_key(str(folder))[:32]}.json"


def subsets_of(
    folder: Path, config: SubsetConfig, root: Path, progress: Callable[[int], Advance] | None = None
) -> tuple[Subset, ...]:  # fmt: skip
    return scan(folder, config, root, index_of(folder), progress)
