"""A grid before its run: whether its axes can be read, and whether the run will save the epochs that are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from ..dataset.samples import some
from ..errors import AtelierError
from .axes import Numbered, parse_epochs, parse_seeds, parse_strengths, prompt_lines

AXES: Mapping[str, Callable[[str], object]] = {
    "prompts": prompt_lines, "strengths": parse_strengths, "more_seeds": lambda text: parse_seeds(0, text),
}  # fmt: skip
"""The widgets of a grid that are text, but for its epochs, and what reads them."""


def grid_cautions(widgets: Mapping[str, str], files: Sequence[Numbered] | None) -> list[str]:
    """One sentence for each of a grid's widgets that cannot be read, or asks for what will not be there (``missing_epochs``)."""
    out = missing_epochs([widgets["which_epochs"]], files) if "which_epochs" in widgets else []
    for name, read in AXES.items():
        try:
            read(widgets[name]) if name in widgets else None
        except AtelierError as error:
            out.append(str(error))
    return out


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
        for mean in choice.means:
            if lacking := mean.missing(files):
                names = some([str(number) for number in lacking])
                out.append(
                    f"which_epochs: {mean.label} needs {names}, but {there}. Change which_epochs, or save_every of Configure "
                    "LoRA."
                )
            elif len(mean.of(files)) < 2:
                out.append(f"which_epochs: {mean.label} would be one of a single file; write two or more that will be saved.")
        if choice.means_alone:
            continue
        if not choice.of(files):
            out.append(f"which_epochs: the run will save none of {choice.text!r}, but {there}. Write some of these, or all.")
        elif missing:
            names = some([str(number) for number in missing])
            out.append(
                f"which_epochs: the run will not save {names}, but {there}. Change which_epochs, or save_every of Configure LoRA."
            )
    return out
