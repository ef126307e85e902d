"""Caption files of a folder by the pictures whose names they have. No file is opened."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from . import names, unused
from .captions import caption_path
from .images import EXTENSIONS
from .names import key
from .samples import some
from .unused import Reason


def captions_by_picture(
    pictures: Sequence[Path], files: Sequence[Path], extension: str, passed: list[tuple[Reason, Path]],
    seconds: dict[Path, list[Path]], further: dict[Path, dict[str, Path]],
) -> dict[Path, Path]:  # fmt: skip
    """Caption files under other names, by picture; what is neither caption, picture nor table is passed over.

    ``further`` gets what may be further captions, by picture and by the ``key`` of the ending; that is passed over as well.
    """
    ending = extension.lower()
    texts = [file for file in files if file.name.lower().endswith(ending) and len(file.name) > len(ending)]
    exact = {caption_path(picture, extension) for picture in pictures}.intersection(texts)
    spare: dict[str, Path] = {}
    for file in texts:
        if file not in exact:
            spare.setdefault(key(file.name[: -len(ending)]), file)
    others = {}
    for picture in pictures:
        if found := spare.get(key(picture.stem)) or spare.get(key(picture.name)):
            others[picture] = found
    without = {picture for picture in pictures if caption_path(picture, extension) not in exact}
    used = set(pictures)
    taken = exact | {file for picture, file in others.items() if picture in without}
    complete = without <= others.keys()
    known = {key(part) for picture in pictures for part in (picture.stem, picture.name)}
    unread = {key(n) for f in files if f.suffix.lower() in names.PICTURE_LIKE for n in (f.stem, f.name)} - known
    more: dict[str, dict[str, Path]] = {}
    for file in files:
        suffix, stem = file.suffix.lower(), key(file.stem)
        owner, rest = _owner(file.name, known) if suffix in (*names.CAPTION_ENDINGS, ".json") else ("", "")
        if file in taken or file in used or suffix in EXTENSIONS or suffix == ".jsonl":
            continue
        owner = "" if stem in unread else owner  # cat.2.txt is of cat.2.heic, not of cat.png
        if file in texts:
            twice = key(file.name[: -len(ending)]) in known
            reason = (
                unused.CAPTION_TWICE if twice else unused.further_captions(rest) if owner
                else unused.CAPTION_OF_UNUSED if stem in unread else unused.CAPTION_ALONE
            )  # fmt: skip
            owner = "" if twice else owner
        elif suffix in names.CAPTION_ENDINGS and stem in known:
            reason = unused.other_captions(file.suffix, complete)
        elif owner:
            reason = unused.further_captions(rest, complete)
        elif suffix in names.TABLE_ENDINGS:
            reason = unused.tables(suffix, complete)
        else:
            reason = names.left_over(suffix)
        passed.append((reason, file))
        if owner:
            more.setdefault(owner, {}).setdefault(rest, file)
    for picture in pictures:
        if own := {**more.get(key(picture.name), {}), **more.get(key(picture.stem), {})}:
            further[picture] = own
    named: dict[str, list[Path]] = {}
    for file in texts:
        named.setdefault(key(file.name[: -len(ending)]), []).append(file)
    for picture in pictures:
        own_texts = [file for part in {key(picture.stem), key(picture.name)} for file in named.get(part, ())]
        if len(own_texts) > 1:
            seconds.setdefault(picture, []).extend(own_texts)
    apart = {key(picture.stem) for picture in without & others.keys() if has_whole_name(others[picture], picture)}
    for picture in without - others.keys():
        if key(picture.stem) in apart:
            others[picture] = picture.with_name(picture.name + extension)
    return others


def _owner(name: str, known: Collection[str]) -> tuple[str, str]:
    """(key of the picture after which a file is called, the key of the rest of its name), empty where there is none: a word
    may stand between both, as in ``cat.short.txt``."""
    stem, ending = os.path.splitext(name)
    inner, word = os.path.splitext(stem)
    if key(stem) in known:
        return key(stem), key(ending)
    return (key(inner), key(f"{word}{ending}")) if word and key(inner) in known else ("", "")


def has_whole_name(caption: Path, picture: Path) -> bool:
    """Whether the caption file is ``cat.jpg.txt`` rather than ``cat.TXT``."""
    return key(caption.name).startswith(f"{key(picture.name)}.")


def shared_stems(pictures: Sequence[Path]) -> list[str]:
    """The sentence that names pictures whose caption and mask are one file, here or on systems that ignore case."""
    groups: dict[str, list[str]] = {}
    for picture in pictures:
        groups.setdefault(key(picture.stem), []).append(picture.name)
    pairs = [" and ".join(group) for group in groups.values() if len(group) > 1]
    if not pairs:
        return []
    return [f"pictures with one name share one caption file and one mask: {some(pairs)}. Rename one of each to tell them apart."]
