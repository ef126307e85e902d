"""A grid's epochs before there are any: whether a run will save those that are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..dataset.samples import some
from ..errors import AtelierError
from .axes import Numbered, parse_epochs


def missing_epochs(choices: Iterable[str], files: Sequence[Numbered] | None) -> list[str]:
    """A sentence for each ``which_epochs`` that cannot be read, or of which ``files`` (None: nobody knows them yet) lack some."""
    out = []
    for text in dict.fromkeys(choices):
        try:
            choice = parse_epochs(text)
        except AtelierError as error:
            out.append(str(error))
            continue
        if files is None:
            continue
        there = some([str(file.counted) for file in files], 6) + (f" up to {files[-1].counted}" if len(files) > 6 else "")
        missing = choice.missing(files)
        if not choice.of(files):
            out.append(f"which_epochs: the run will save none of {choice.text!r}, but {there}. Write some of these, or all.")
        elif missing:
            names = some([str(number) for number in missing])
            out.append(
                f"which_epochs: the run will not save {names}, but {there}. Change which_epochs, or save_every of Configure LoRA."
            )
    return out
