"""What a name says of a file or folder: picture, mask, control picture, caption, or what other programs leave behind.

The names are those that sd-scripts and its GUI (``meta_cap.json``, ``.npz``, ``img``/``reg``/``log``/``model``, ``10_cat_mask``),
OneTrainer (``-masklabel``, ``-condlabel``), ai-toolkit (``_latent_cache``, ``_controls``), musubi-tuner (caches in
``.safetensors``), SimpleTuner (``aspect_ratio_bucket_*.json``), file managers and network drives give.
"""

from __future__ import annotations

import re
from typing import Literal

from ..config import CAPTION_ENDINGS as CAPTION_ENDINGS
from . import unused
from .films import ENDINGS as FILMS
from .images import EXTENSIONS, HEIF
from .unused import Reason
from .words import composed

NUMBERED = re.compile(r"(\d+)_(.*)", re.DOTALL)
"""``N_name``: a folder whose pictures are shown N times an epoch."""
MASK_FOLDERS = frozenset({"mask", "masks"})
MASKS_OF = re.compile(r"(.+)[-_]masks?", re.DOTALL)
"""A folder with the masks of the folder beside it that has the first part as its name."""
CONTROL_FOLDER = re.compile(r"_?(?:control|conditioning)s?(?:_images|_data)?(?:[-_ ]?(\d{1,2}))?")
"""A folder with control pictures, of which there may be several: ``control``, ``control_2``."""
CONTROLS_OF = re.compile(r"(.+)[-_](?:control|conditioning)s?(?:[-_]?(\d{1,2}))?", re.DOTALL)
"""A folder with the control pictures of the folder beside it that has the first part as its name."""
ANOTHER = re.compile(r"(.+)[-_](\d{1,2})", re.DOTALL)
"""One of several control pictures of a picture, in a folder of them: ``cat_1``, ``cat_2``."""
REGULARISATION_FOLDERS = frozenset({
    "reg", "regs", "reg_images", "reg_img", "regularisation", "regularization", "regularisation_images", "regularization_images",
})  # fmt: skip
CAPTION_FOLDERS = frozenset({"caption", "captions", "text", "texts", "txt", "labels", "tags"})
TABLE_ENDINGS = frozenset({".json", ".csv", ".tsv", ".parquet", ".yaml", ".yml", ".toml", ".xml"})

SURE = re.compile(r"(.+)(?:(\.mask|-masklabel)|(\.control|-condlabel)(?:[-_.]?(\d{1,2}))?)", re.DOTALL | re.IGNORECASE)
LIKELY = re.compile(r"(.+)[-_](?:(mask)|(control|cond|conditioning)(?:[-_]?(\d{1,2}))?)", re.DOTALL | re.IGNORECASE)
IN_FRONT = re.compile(r"mask[-_](.+)", re.DOTALL | re.IGNORECASE)

Mark = Literal["mask", "control"]

_LEAVINGS = frozenset({
    "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini", "icon\r", ".ds_store", ".localized",
    ".picasa.ini", ".thumbnails", ".directory", ".nomedia", ".git", ".cache", ".ipynb_checkpoints", ".fseventsd", ".trashes",
    ".spotlight-v100", ".temporaryitems", "temporary items", "network trash folder", "@eadir", "@tmp", "#recycle", "#snapshot",
    "__macosx", "$recycle.bin", "system volume information", "lost+found", "lost.dir", "sync.ffs_db", "__pycache__",
    "_latent_cache", "_t_e_cache", "_clip_vision_cache",
})  # fmt: skip
_LEFT_ENDINGS = frozenset({
    ".npz", ".npy", ".pt", ".pth", ".safetensors", ".ckpt", ".arrow", ".lmdb", ".lnk", ".url", ".aae", ".xmp", ".thm", ".bak",
    ".log",
})  # fmt: skip
_LEFT_DATA = re.compile(r"\.aitk_size\.json|meta_lat.*\.json|aspect_ratio_bucket_.*\.json|image_metadata.*\.json", re.IGNORECASE)
_RAW = frozenset({
    ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".sr2", ".dng", ".raf", ".orf", ".rw2", ".pef", ".srw", ".x3f", ".3fr", ".raw",
})  # fmt: skip
_FILMS = frozenset({
    ".wmv", ".mpg", ".mpeg", ".flv", ".3gp", ".mts", ".m2ts", ".ogv",
})  # fmt: skip
_FORMATS = frozenset({
    ".psd", ".psb", ".jxl", ".svg", ".xcf", ".kra", ".clip", ".sai", ".sai2", ".exr", ".hdr", ".ico", ".eps", ".ai", ".pdf",
    ".dds", ".jxr",
    ".jp2", ".j2k", ".jpx", ".jpf", ".avifs", ".qoi", ".pcx", ".sgi", ".xbm", ".xpm", ".pfm", ".mdp", ".afphoto",
    ".procreate",
})  # fmt: skip
_ARCHIVES = frozenset({".zip", ".rar", ".7z", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst"})
_UNFINISHED = frozenset({".part", ".partial", ".crdownload", ".download", ".tmp", ".!ut", ".opdownload"})
_BY_ENDING = (
    (FILMS, unused.FILMS), (_FILMS, unused.OTHER_FILMS),
    (HEIF, unused.HEIC), (frozenset({".avif"}), unused.AVIF), (_RAW, unused.RAW),
    (_FORMATS, unused.FORMAT), (_ARCHIVES, unused.ARCHIVES),
    (_UNFINISHED, unused.UNFINISHED), (_LEFT_ENDINGS, unused.LEAVINGS), (frozenset({""}), unused.BARE),
)  # fmt: skip
PICTURE_LIKE = EXTENSIONS | FILMS | _FILMS | HEIF | {".avif"} | _RAW | _FORMATS
"""Endings of what a caption file may belong to although it is not read."""


def natural_key(name: str) -> tuple[object, ...]:
    """Sort key by which "2.png" comes before "10.png", the same on every system."""
    parts = re.split(r"(\d+)", name.casefold())
    return (*((0, int(part)) if part.isdecimal() else (1, part) for part in parts if part), (-1, name))


def key(name: str) -> str:
    """The form in which two names are the same to a person, and on some systems: whatever the case, and however accents are
    stored, which copying between systems changes."""
    return composed(composed(name).casefold())


def is_companion(name: str) -> bool:
    """Whether a folder of this name among pictures holds their masks or control pictures."""
    return name.casefold() in MASK_FOLDERS or control_folder(name) is not None


def is_text(name: str) -> bool:
    """Whether the name is valid text; Python carries bytes that are none as lone surrogates, which nothing can store or show."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def passed_over(name: str) -> Reason | None:
    """Why a file or folder of this name is not even looked at; None if it is."""
    if not is_text(name):
        return unused.NOT_UTF8
    if name.casefold() in _LEAVINGS or name.startswith("._") or _LEFT_DATA.fullmatch(name):
        return unused.LEAVINGS
    return unused.HIDDEN if name.startswith(".") else None


def left_over(ending: str) -> Reason:
    """Why a file with this ending (lower case), which is neither picture, caption nor table, is not used."""
    return next((reason for endings, reason in _BY_ENDING if ending in endings), unused.OTHER)


def mark(stem: str) -> tuple[Mark | None, str, bool]:
    """(what the stem says that the picture is, the stem of the picture that it belongs to, whether that is sure)."""
    for pattern, sure in ((SURE, True), (LIKELY, False)):
        if match := pattern.fullmatch(stem):
            return ("mask" if match[2] else "control"), match[1], sure
    match = IN_FRONT.fullmatch(stem)
    return ("mask", match[1], False) if match else (None, stem, True)


def is_marked_in_front(stem: str) -> bool:
    """Whether a stem's mark stands in front of that of its picture: ``mask_cat``."""
    return bool(IN_FRONT.fullmatch(stem)) and not (SURE.fullmatch(stem) or LIKELY.fullmatch(stem))


def control_number(stem: str) -> int:
    """Which of a picture's control pictures one is whose name says that it is one; 0 where it has no number."""
    match = SURE.fullmatch(stem) or LIKELY.fullmatch(stem)
    return int(match[4] or 0) if match else 0


def control_folder(name: str) -> int | None:
    """The number of a folder of control pictures, 0 where it has none; None for any other folder."""
    match = CONTROL_FOLDER.fullmatch(name.casefold())
    return int(match[1] or 0) if match else None
