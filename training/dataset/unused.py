"""What a scan passes over, and the sentences that say so: one a reason, with the number and the first few names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..config.subset import FURTHER_ENDING
from .samples import printable, some


@dataclass(frozen=True)
class Reason:
    """Why files are not used."""

    what: str
    """In front of the names: "films are not used"."""
    remedy: str = ""
    """A sentence that says what to do, where something can be done."""
    quiet: bool = False
    """Whether nothing is lost, so that it need only be mentioned."""


Unused = tuple[tuple[Reason, Path], ...]

FILMS = Reason(
    "films are not trained on",
    "Set clip_frames of Load Dataset to train a model of films on their frames, or save the frames that you want as pictures.",
)
OTHER_FILMS = Reason("films in a format that is not read are not used", "Save them as MP4, MOV, MKV, WebM or AVI.")
FILM_BESIDE = Reason("films are neither masks nor control pictures", "Bring it into a folder of another name to train on it.")
SHORT = Reason(
    "films with fewer frames than the smallest number in clip_frames are not used",
    "Write a smaller number there as well, or take them out.",
)
HEIC = Reason(
    "HEIC pictures are not used, since reading them needs the Python package pillow-heif",
    "Install it in ComfyUI's environment and restart, or save them as PNG or JPEG.",
)
AVIF = Reason(
    "AVIF pictures are not used, since reading them needs Pillow 11.3 or newer",
    "Update it in ComfyUI's environment and restart, or save them as PNG or JPEG.",
)
RAW = Reason("raw photos are not used, since they have to be developed first", "Export them as PNG or JPEG.")
FORMAT = Reason("pictures in a format that is not read are not used", "Save them as PNG or JPEG.")
ARCHIVES = Reason("archives are not used", "Unpack them if pictures are inside.")
UNFINISHED = Reason("unfinished downloads are not used", "Wait until they are complete, or remove them.")
BARE = Reason("files without an ending are not used", "Give them one, such as .png, if they are pictures.")
NOT_UTF8 = Reason("names that are not UTF-8 are not used", "Rename them.")
SPECIAL = Reason("no regular files, so they are not opened", "Remove them.")
HIDDEN = Reason("hidden files and folders are not looked at", quiet=True)
LEAVINGS = Reason("left by other programs and not used", quiet=True)
OTHER = Reason("neither pictures nor captions, and not used", quiet=True)

CAPTION_ALONE = Reason("caption files without a picture are not used", "A caption has its picture's name and another ending.")
CAPTION_OF_UNUSED = Reason("captions of pictures that are not used", quiet=True)
CAPTION_TWICE = Reason("second caption files of a picture are not used", "Remove one of the two.")
CAPTIONS_OFF = Reason("caption files are not read, since captions is off", quiet=True)
CAPTION_FOLDER = Reason("folders with captions are not read", "Put every caption file beside its picture.")

MASK_ALONE = Reason("masks without a picture are not used", "A mask has its picture's name: cat.mask.png belongs to cat.jpg.")
MASK_TWICE = Reason("second masks of a picture are not used", "Remove one of the two.")
MASKS_OFF = Reason("mask files are there and not used", "Set masks to files to use them.")
MASK_OF_UNUSED = Reason("masks of pictures that are not used", quiet=True)
CONTROL_ALONE = Reason(
    "control pictures without a picture are not used",
    "A control picture has its picture's name: control/cat.png belongs to cat.jpg.",
)
CONTROL_TWICE = Reason("second control pictures of one place are not used", "Number them (cat_1.png, cat_2.png), or remove one.")
CONTROL_OF_FILM = Reason("films have no control pictures", "Rename it, or bring it beside a picture of its name.")
CONTROL_OF_UNUSED = Reason("control pictures of pictures that are not used", quiet=True)

UNNUMBERED = Reason("sub-folders without a number in front are not used", "Switch nested on to take them.")
DEEPER = Reason("sub-folders of a numbered folder are not used", "Switch nested on to take them.")
NO_PICTURES = Reason("sub-folders without pictures", quiet=True)
REGULARISATION = Reason(
    "regularisation pictures are not trained on with the others",
    "Choose their folder in another Load Dataset whose role is regularisation, or rename it.",
)
LINK_OUT = Reason("linked folders outside the allowed ones are not read", "Copy the pictures into the folder instead.")
LINK_AGAIN = Reason("linked folders that are read already, or lie around this one, are not read again", quiet=True)


def other_captions(ending: str, needless: bool) -> Reason:
    """Texts beside pictures with ``ending``; ``needless``: every picture has a caption as it is."""
    return Reason(
        f"{ending} files look like captions and are not read", f"Set caption_extension to {ending} to use them.", quiet=needless
    )


def further_captions(ending: str, needless: bool = False) -> Reason:
    """Files that are called after a picture, such as ``cat.short.txt``; JSON may hold other things as well, so that ``needless``
    matters: every picture has a caption as it is."""
    is_data = ending.endswith(".json")
    look = "may hold" if is_data else "look like further"
    remedy = (
        f"Name {ending} in further_captions to use them." if FURTHER_ENDING.fullmatch(ending)
        else "Rename them without signs such as commas in the ending to use them."
    )  # fmt: skip
    return Reason(f"{ending} files {look} captions and are not read", remedy, quiet=is_data and needless)


def tables(ending: str, needless: bool) -> Reason:
    """Data files that may hold captions; ``needless``: every picture has a caption as it is."""
    return Reason(
        f"{ending} files may hold captions and are not read", "Write them into .txt files, or into a .jsonl file.", quiet=needless
    )


def sentences(unused: Iterable[tuple[Reason, Path]], base: Path, quiet: bool) -> list[str]:
    """One sentence a reason; names count from the folder ``base``."""
    groups: dict[Reason, list[str]] = {}
    for reason, path in unused:
        if reason.quiet == quiet:
            groups.setdefault(reason, []).append(_name(path, base))
    return [
        f"{reason.what} ({len(names)}): {some(names)}.{f' {reason.remedy}' if reason.remedy else ''}"
        for reason, names in groups.items()
    ]


def each(unused: Iterable[tuple[Reason, Path]], base: Path) -> tuple[tuple[str, str], ...]:
    """(name, why it is not used) of every one; what matters comes first."""
    ordered = sorted(unused, key=lambda one: one[0].quiet)
    return tuple((name_of(path, base), f"{reason.what}. {reason.remedy}".strip()) for reason, path in ordered)


def name_of(path: Path, base: Path) -> str:
    """As it is shown, counted from the folder ``base``."""
    return printable(_name(path, base))


def _name(path: Path, base: Path) -> str:
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.name
