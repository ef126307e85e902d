"""LoRA files as runs: files of one name with a number each are the epochs of one LoRA."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from ..errors import AtelierError
from ..runs.record import SavedLoRA
from ..runs.run import Epochs
from ..tensors.safetensors_header import read_header

# As this pack and kohya's tools number their files, six digits for an epoch; others count steps, nine digits.
EPOCH = re.compile(r"(?P<stem>.+?)-(?P<number>\d{6})")
STEP = re.compile(r"(?P<stem>.+?)(?:-step|_(?=\d{9}\Z))(?P<number>\d{2,10})")


def choose_files(text: str, known: Sequence[str]) -> list[str]:
    """The files that the lines of ``text`` name, each once: a file as the stock loaders list it, a folder, a pattern with ``*``.

    The ending may be left out. AtelierError when a line fits nothing.
    """
    out: dict[str, None] = {}
    plain = {name.replace("\\", "/"): name for name in known}
    for line in filter(None, (line.strip().replace("\\", "/") for line in text.splitlines())):
        wanted = line.removesuffix("/")
        fits = [
            name for name in plain
            if name == wanted or name.rpartition(".")[0] == wanted or name.startswith(wanted + "/")
            or ("*" in wanted and (fnmatchcase(name, wanted) or fnmatchcase(name.rpartition(".")[0], wanted)))
        ]  # fmt: skip
        if not fits:
            bare = {name.rpartition(".")[0]: name for name in plain}
            near = difflib.get_close_matches(wanted.removesuffix(".safetensors"), list(bare), 1)
            hint = f"; did you mean {bare[near[0]]}?" if near else "; put it into models/loras and refresh the page."
            raise AtelierError(f"lora_files: there is no LoRA called {line}{hint}")
        out |= dict.fromkeys(plain[name] for name in fits)
    return list(out)


def as_runs(names: Sequence[str], path_of: Callable[[str], Path], metadata: Callable[[Path], Mapping[str, str]]) -> list[Epochs]:
    """Runs in the order in which their first file is named, their files first to last.

    The unnumbered file beside numbered ones is the last epoch, as the usual trainers save it.
    """
    groups: dict[str, list[tuple[tuple[int, float], SavedLoRA]]] = {}
    base: dict[str, str] = {}
    numbered = {stem for name in names if (stem := _stem(name)) != _bare(name)}
    for name in names:
        path, bare, stem = path_of(name), _bare(name), _stem(name)
        facts = metadata(path)
        step = _whole(facts.get("ss_steps"))
        if match := STEP.fullmatch(bare):
            saved = SavedLoRA(path, _whole(facts.get("ss_epoch")), int(match["number"]), "step")
            place = (0, float(step or int(match["number"])))
        elif match := EPOCH.fullmatch(bare):
            saved = SavedLoRA(path, int(match["number"]), step, "epoch")
            place = (0, float(step or int(match["number"])))
        else:
            saved = SavedLoRA(path, _whole(facts.get("ss_epoch")), step, "last")
            place = (1, 0.0)
            stem = bare if bare in numbered else stem
        groups.setdefault(stem, []).append((place, saved))
        base.setdefault(stem, _family(facts))
    return [Epochs(PurePosixPath(stem).name, base[stem], _last_numbered(rows)) for stem, rows in groups.items()]


def read_metadata(path: Path) -> dict[str, str]:
    """What the file says about itself; nothing for one that says nothing or cannot be read, which a cell will tell."""
    try:
        return read_header(path).metadata
    except AtelierError:
        return {}


def _last_numbered(rows: list[tuple[tuple[int, float], SavedLoRA]]) -> tuple[SavedLoRA, ...]:
    files = [saved for _, saved in sorted(rows, key=lambda row: row[0])]
    last = files[-1]
    if last.kind == "last" and len(files) > 1:
        before = max(saved.epoch for saved in files[:-1])
        files[-1] = SavedLoRA(last.path, max(last.epoch, before + 1), last.step, "last")
    return tuple(files)


def _bare(name: str) -> str:
    """Path without the ending, with forward slashes."""
    return name.replace("\\", "/").rpartition(".")[0]


def _stem(name: str) -> str:
    bare = _bare(name)
    match = STEP.fullmatch(bare) or EPOCH.fullmatch(bare)
    return match["stem"] if match else bare


def _whole(text: str | None) -> int:
    return int(text) if text and re.fullmatch(r"\d{1,12}", text) else 0


def _family(facts: Mapping[str, str]) -> str:
    return facts.get("ss_base_model_version", "")
