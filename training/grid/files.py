"""LoRA files as runs: which files are those of one training, what each is called, and in which order they stand."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from ..errors import AtelierError
from ..runs.record import SavedLoRA, SaveKind
from ..runs.run import Epochs
from ..tensors.safetensors_header import read_header
from .file_names import Told, natural, tell

KINDS: Mapping[str, SaveKind] = {"epoch": "epoch", "step": "step", "folder": "step", "number": "step", "nothing": "last"}
"""What a file counts as, by what the number in its name counts."""


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
        out |= dict.fromkeys(plain[name] for name in sorted(fits, key=lambda name: natural(name.rpartition(".")[0])))
    return list(out)


@dataclass(frozen=True)
class FoundLoRA(SavedLoRA):
    """A file of any origin; its epoch and step are 0 where nothing tells them."""

    title: str = ""
    """What stands above its column beside other files of its series; empty for one that stands alone."""
    counted: int = -1
    """The number in it; -1 without one."""

    @property
    def label(self) -> str:
        return self.title


def as_runs(names: Sequence[str], path_of: Callable[[str], Path], metadata: Callable[[Path], Mapping[str, str]]) -> list[Epochs]:
    """Runs in the order in which their first file is named, their files first to last.

    Names and order come from what the files say of themselves (``file_names``). A file without a number whose metadata tell
    nothing stands last among the others of its name, as all trainers save it, and is called ``unnumbered``.
    """
    read = {name: (path_of(name), metadata(path_of(name))) for name in names}
    told = _in_series({name: tell(name, facts) for name, (_, facts) in read.items()})
    groups: dict[str, list[str]] = {}
    for name, one in told.items():
        groups.setdefault(one.series, []).append(name)
    titles = _titles(list(groups))
    runs = []
    for series, members in groups.items():
        ordered = _ordered(members, told)
        found = [
            FoundLoRA(
                read[name][0], told[name].epoch, told[name].step, KINDS[told[name].counts],
                "" if len(members) == 1 and told[name].counts == "nothing" else told[name].label or "unnumbered",
                told[name].shown,
            )
            for name in ordered
        ]  # fmt: skip
        base = next((family for name in ordered if (family := read[name][1].get("ss_base_model_version", ""))), "")
        runs.append(Epochs(titles[series], base, tuple(found)))
    return runs


def _in_series(told: dict[str, Told]) -> dict[str, Told]:
    """A number that says nothing belongs to the name, unless it is what tells several files of one name apart."""
    count = Counter(one.series for one in told.values())
    out = {}
    for name, one in told.items():
        if one.counts == "number" and count[one.series] == 1:
            path = PurePosixPath(name.replace("\\", "/"))
            bare = str(path.with_name(path.name.rpartition(".")[0] or path.name))
            one = replace(one, series=bare, part="", counts="nothing")
        out[name] = one
    return out


def _ordered(members: Sequence[str], told: Mapping[str, Told]) -> list[str]:
    """First to last: by steps if all tell them, else by epochs, else by the numbers in their names."""
    numbered = [told[name] for name in members if told[name].counts != "nothing"] or [told[name] for name in members]
    if all(one.step for one in numbered):
        place = {name: told[name].step for name in members}
    elif all(one.epoch for one in numbered):
        place = {name: told[name].epoch for name in members}
    else:
        place = {name: told[name].number for name in members}
    # One without a number is the last of its training, unless it says when it was saved.
    late = {name for name in members if told[name].counts == "nothing"}
    return sorted(members, key=lambda name: (name in late and not place[name], place[name], name in late, natural(name)))


def _titles(series: Sequence[str]) -> dict[str, str]:
    """The last part of every path, with as much before it as tells it from the others."""
    out = {}
    for one in series:
        parts = PurePosixPath(one).parts
        for length in range(1, len(parts) + 1):
            tail = parts[-length:]
            if sum(PurePosixPath(other).parts[-length:] == tail for other in series) == 1:
                break
        out[one] = tail[-1] if length == 1 else f"{tail[-1]} ({' '.join(tail[:-1])})"
    return out


def read_metadata(path: Path) -> dict[str, str]:
    """What the file says about itself; nothing for one that says nothing or cannot be read, which a cell will tell."""
    try:
        return read_header(path).metadata
    except AtelierError:
        return {}
