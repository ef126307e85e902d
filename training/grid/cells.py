"""Cell store: each cell is saved as soon as it is drawn, with its own metadata, and found again by what it was drawn from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..config.sampling import Sampling
from ..dataset import moving
from ..dataset.cache import cache_key
from ..dataset.index import file_digest
from ..errors import AtelierError
from ..files import open_plain, replacing
from ..runs.layout import FILM
from ..tensors.safetensors_header import contents_digest

COMPRESSION = 4
"""As ComfyUI saves pictures: as small as zlib's usual level makes a drawn picture, in less than half the time."""
WRITERS, MOST_WAITING = 2, 16
KEY = "lora_atelier.cell"
"""Name of the PNG text that holds a cell's facts as JSON."""


@dataclass(frozen=True)
class CellFacts:
    """What decides a cell's picture, but for the models."""

    prompt_text: str
    lora: str | None
    """As the stock loaders list the file (of a mean all of them); its name does not count."""
    lora_content: str | None
    """SHA-256 of the file's tensors, or of what those of a mean's files are."""
    epoch: int | None
    """None for a mean of several."""
    strength: float
    text_strength: float
    sampling: Sampling
    reading: tuple[str, ...] = ()
    """How the text encoder reads the prompts, where that is more than their words."""

    def key(self, base: str) -> str:
        """The same for the same picture, on models with the fingerprint ``base``."""
        sampling = self.sampling.as_dict()
        counts = (self.prompt_text, self.lora_content, self.strength, self.text_strength, sampling, *self.reading)
        return cache_key("cell", base, *counts)[:24]

    def as_dict(self) -> dict[str, Any]:
        values = asdict(self)
        return {**{k: v for k, v in values.items() if k != "sampling"}, **self.sampling.as_dict()}

    def of_film(self) -> CellFacts:
        """What decides the film of which the cell is a frame, whichever of its frames that is."""
        return replace(self, sampling=replace(self.sampling, shown_frame=1))


class CellStore:
    """The cells of one grid node, in ``folder``."""

    def __init__(self, folder: Path, base: str, graph: Mapping[str, str]):
        self.folder, self.base, self.graph = folder, base, graph

    def path(self, facts: CellFacts) -> Path:
        return self.folder / f"{facts.key(self.base)}.png"

    def film_path(self, facts: CellFacts) -> Path:
        """Where the whole film is kept of which the cell is a frame; it does not depend on which one."""
        return self.folder / f"{facts.of_film().key(self.base)}{FILM}"

    def film(self, facts: CellFacts) -> moving.Film | None:
        """The film of which the cell is a frame, if it is there and whole."""
        frames = moving.read(self.film_path(facts), facts.sampling.frames)
        return moving.Film(frames, facts.sampling.shown_frame - 1) if frames else None

    def known(self, facts: CellFacts) -> Path | None:
        """The cell's file if it is there and whole. Another frame of a film that was drawn before is taken out of that."""
        if facts.sampling.frames > 1:
            film = self.film(facts)
            return None if film is None else self._picture(facts) or self._save_picture(facts, film.still)
        return self._picture(facts)

    def _picture(self, facts: CellFacts) -> Path | None:
        path = self.path(facts)
        try:
            with open_plain(path) as file, Image.open(file, formats=["PNG"]) as picture:
                picture.verify()
        except Exception:  # of many kinds, whatever in the file is damaged; it is drawn again
            return None
        return path

    def save(self, facts: CellFacts, drawn: Image.Image | moving.Film) -> Path:
        """Writes the cell; workflow and prompt are in it, so that dropping it on the canvas brings them back. Of a film, all its
        frames without loss, and the one that is shown as the cell."""
        if isinstance(drawn, Image.Image):
            return self._save_picture(facts, drawn)
        moving.save(self.film_path(facts), drawn.frames, moving.RATE, lossless=True)
        return self._save_picture(facts, drawn.still)

    def _save_picture(self, facts: CellFacts, picture: Image.Image) -> Path:
        path = self.path(facts)
        info = png_info({**self.graph, KEY: json.dumps(facts.as_dict())})
        with replacing(path) as temporary:
            picture.save(temporary, format="PNG", pnginfo=info, compress_level=COMPRESSION)
        return path


class SavedBehind:
    """A cell store that writes while the next cells are drawn: packing a picture of 1024 px takes a tenth of a second or more.

    What was given to it is on the disk when its context ends, also by a cancel; an error of writing is raised then at the latest.
    """

    def __init__(self, store: CellStore):
        self.store = store
        self._writing: dict[Path, Future[Path]] = {}

    def __enter__(self) -> SavedBehind:
        self._threads = ThreadPoolExecutor(WRITERS, thread_name_prefix="grid cells")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._threads.shutdown()
        if kind is None:
            self.finish()
        self._writing = {}

    def known(self, facts: CellFacts) -> Path | None:
        """The cell's file if it is there and whole."""
        writing = self._writing.get(self.store.path(facts))
        return writing.result() if writing is not None else self.store.known(facts)

    def save(self, facts: CellFacts, drawn: Image.Image | moving.Film) -> Path:
        """Where the cell will be."""
        path = self.store.path(facts)
        if path in self._writing:
            return path
        if len(self._writing) >= (MOST_WAITING if isinstance(drawn, Image.Image) else WRITERS):  # films hold much memory
            self.finish()
        self._writing[path] = self._threads.submit(self.store.save, facts, drawn)
        return path

    def finish(self) -> None:
        """Waits until all is written."""
        writing, self._writing = self._writing, {}
        for one in writing.values():
            one.result()


class Contents:
    """SHA-256 of what LoRA files hold, each read once while it stays the same."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, int], str]] = {}

    def of(self, path: Path) -> str:
        stat = path.stat()
        stamp = (stat.st_size, stat.st_mtime_ns)
        if path not in self._known or self._known[path][0] != stamp:
            try:
                self._known[path] = (stamp, contents_digest(path))
            except AtelierError:  # which is told where the file is read
                self._known[path] = (stamp, file_digest(path))
        return self._known[path][1]

    def of_all(self, paths: Sequence[Path]) -> str:
        """Of one file that of its tensors; of several, of which the mean is meant, that of all, in whichever order."""
        found = sorted(map(self.of, paths))
        return found[0] if len(found) == 1 else cache_key("mean", *found)


contents = Contents()


def png_info(texts: Mapping[str, str]) -> PngInfo:
    """PNG metadata; ``texts`` by name."""
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    return info
