"""Cell renderer: samples cells alone, in batches of several files and strengths, or with the host's merged weights."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import partial

from PIL import Image
from torch import Tensor

from .. import compatibility, host
from ..config.sampling import Sampling
from ..dataset.images import to_picture
from ..dataset.moving import Film
from ..errors import NotFinite, is_out_of_memory
from ..network.scope import Layers
from ..prompting import ControlPictures
from ..protocols import CanvasText
from .lora import Lora, join
from .network import BatchNetwork
from .plan import Page
from .sheet import Failed
from .side_by_side import Beside, SideBySide
from .waiting import CellOrder

log = logging.getLogger("lora-atelier")
Drawn = Image.Image | Film | Failed
"""A cell's picture or film, or why it is none while others of its batch may be."""
Reading = tuple[Lora | None, float, str, int]
"""A text as it is read with a LoRA at some strength (None: without any), and which control pictures are seen beside it."""
Text = tuple[str, int]
"""A text, and which control pictures it is beside."""


class CellRenderer:
    """Model, text encoder and VAE with one person's sampler settings; ``layers`` are those that a LoRA may stand beside."""

    def __init__(
        self,
        model: host.Model,
        text: host.TextEncoder,
        codec: host.PictureCodec,
        sampling: Sampling,
        layers: Layers | None = None,
        seats: int = 1,
        controls: ControlPictures | None = None,
        wired: host.Wired = host.NOTHING_WIRED,
    ):
        """``seats``: of how many files there will be pictures in one batch at most; ``controls``: what the prompts are beside;
        ``wired``: what takes the place of settings."""
        self.wired = wired
        self.controls = controls or ControlPictures(codec)
        self.model, self.text, self.codec, self.sampling, self.seats = model, text, codec, sampling, seats
        self._encoded: dict[Reading, CanvasText | NotFinite] = {}
        self.network = BatchNetwork(model, layers or {})
        self._of_text = SideBySide(layers or {}, text.device)
        self._frames = compatibility.latent_frames("frames", sampling.frames, model, codec)

    @property
    def latent_size(self) -> tuple[int, ...]:
        """(height, width) in cells, or (frames, height, width) of a film."""
        sides = compatibility.cells_of(self.sampling.width, self.sampling.height, self.model, self.codec)
        return (*([self._frames] if self._frames else []), *sides)

    def remarks(self) -> list[str]:
        """Where a cell is not of the size that was asked for."""
        asked, cell = (self.sampling.width, self.sampling.height), compatibility.square_of(self.model, self.codec)
        drawn = tuple(side // cell * cell for side in asked)
        if drawn == asked:
            return []
        return [
            f"width, height: {asked[0]} x {asked[1]} is drawn at {drawn[0]} x {drawn[1]}, since this model's pictures consist of "
            f"squares of {cell} pixels."
        ]

    def check(self) -> None:
        """AtelierError if the model cannot read what the text encoder gives."""
        compatibility.check_conditioning(self.model, self._read(None, (self.sampling.negative, -1)))

    def plain(self, page: Page) -> Drawn:
        """A cell without any LoRA."""
        texts = self.texts(page)
        self.read([(None, text) for text in texts])
        positive, negative = (self.controls.beside(self._read(None, text), page.control) for text in texts)
        return self._pictures(self._alone(self.model, positive, negative, page.seed), 1)[0]

    def merged(self, model: host.Model, text: host.TextEncoder, page: Page) -> Drawn:
        """A cell with what the host made of model and text encoder."""
        seen = self.controls.seen(page.control)
        read = (text.for_sampling(said, seen) for said, _ in self.texts(page))
        positive, negative = (self.controls.beside(one, page.control) for one in read)
        return self._pictures(self._alone(model, positive, negative, page.seed), 1)[0]

    def beside(self, orders: Sequence[CellOrder], page: Page) -> list[Drawn]:
        """Cells of one page with their LoRAs beside the model, in one batch if their conditionings can share one.

        UnusedLayers, with the files that are concerned, if some layer of a file was never asked.
        """
        texts = self.texts(page)
        self.read([(order, text) for order in orders for text in texts])
        read = [[self._encoded[self._reading(order, text)] for text in texts] for order in orders]
        lost = {i: one for i, pair in enumerate(read) for one in pair if isinstance(one, NotFinite)}
        whole = [i for i in range(len(orders)) if i not in lost]
        conditions = {i: [one for one in read[i] if not isinstance(one, NotFinite)] for i in whole}
        drawn = dict(zip(whole, self._beside([orders[i] for i in whole], [conditions[i] for i in whole], page), strict=True))
        return [Failed(str(lost[i])) if i in lost else drawn[i] for i in range(len(orders))]

    def _beside(self, orders: Sequence[CellOrder], conditions: Sequence[Sequence[CanvasText]], page: Page) -> list[Drawn]:
        if not orders:
            return []
        positive, negative = join([c[0] for c in conditions]), join([c[1] for c in conditions])
        if positive is None or negative is None:
            return [one for order, read in zip(orders, conditions, strict=True) for one in self._beside([order], [read], page)]
        if not self.network.is_settled:
            self.network.settle(len(orders), self.latent_size, self._needed_beside(orders))
        shared = positive is conditions[0][0] and negative is conditions[0][1]
        positive, negative = (self.controls.beside(one, page.control) for one in (positive, negative))
        sample = partial(self._sampled, orders, positive, negative, shared, page.seed)
        latents = sample()
        if latents is None:  # here nothing of the attempt is held any more
            self.network.release()
            latents = sample()
        assert latents is not None
        return self._pictures(latents, len(orders))

    def _sampled(
        self, orders: Sequence[CellOrder], positive: CanvasText, negative: CanvasText, shared: bool, seed: int
    ) -> Tensor | None:
        """The latents of cells in one batch; None if there was no memory for it beside a resident twin."""
        model = self.network.model
        beside = [Beside(order.lora.of_model, order.strength) for order in orders]
        try:
            with self.network.attached(beside, self.seats) as rows:
                if len(orders) == 1:
                    return self._alone(model, positive, negative, seed)
                return model.sample_together(
                    positive, negative, self.sampling.settings, len(orders), rows.choose, latent_size=self.latent_size,
                    seed=seed, whole=not shared, wired=self.wired,
                )  # fmt: skip
        except Exception as error:
            if model is self.model or not is_out_of_memory(error):
                raise
            log.info("grid: there is too little memory beside a resident copy of the model; the host pages it in and out again")
            return None

    def texts(self, page: Page) -> tuple[Text, Text]:
        """Prompt and negative prompt of a page."""
        return (page.prompt, page.control), (self.sampling.negative, page.control)

    def read(self, wanted: Iterable[tuple[CellOrder | None, Text]]) -> None:
        """Encodes what of ``wanted`` (a cell's text, None for one without a LoRA) was not yet, in as few passes as there can be.

        A text is encoded once, and once more for every file with a part in the text encoder at every strength.
        """
        asked = dict.fromkeys(self._reading(order, text) for order, text in wanted)
        missing = [reading for reading in asked if reading not in self._encoded]
        if not missing:
            return
        kinds = list(dict.fromkeys((lora, strength) for lora, strength, *_ in missing))
        beside = [Beside(None if lora is None else lora.of_text, strength) for lora, strength in kinds]
        versions = [kinds.index((lora, strength)) for lora, strength, *_ in missing]
        seen = [self.controls.seen(place) for *_, place in missing]
        with self._of_text.attached(beside) as rows:
            found = self.text.for_sampling_all([text for *_, text, _ in missing], versions, rows.exactly, seen)
        self._encoded |= zip(missing, found, strict=True)

    def forget(self, lora: Lora) -> None:
        """Lets go of what was read with a file that is no longer needed."""
        self._encoded = {reading: found for reading, found in self._encoded.items() if reading[0] is not lora}

    def release(self) -> None:
        """Lets go of all files and recordings, and of a twin that drew."""
        self.network.release()
        self._of_text.release()

    def shrink(self) -> None:
        """The same, and from here on one file at a time: for when there was no memory for more."""
        self.seats = 1
        self.release()

    def count_that_fits(self, orders: Sequence[CellOrder]) -> int:
        """How many of the first ``orders`` can be drawn in one batch by the host's own measure, with their files."""
        count = len(orders)
        while count > 1:
            fitting = self.network.model.pictures_that_fit(
                count, self.latent_size, self._missing(orders[:count]), self.controls.cells()
            )
            if fitting == count:
                break
            files = len({id(order.lora) for order in orders[:count]})
            if self.seats > files:  # room for files that come later is the first to go
                self.seats = files
                self.network.let_go()
            else:
                count = fitting
        return count

    def _missing(self, orders: Sequence[CellOrder]) -> int:
        """Bytes that the stacks of these files will take beside what they take already."""
        files, stacks = list({id(order.lora): order.lora.of_model for order in orders}.values()), self.network.beside
        return max(0, stacks.numbers(files, self.seats) * self.model.compute_dtype.itemsize - stacks.bytes)

    def _needed_beside(self, orders: Sequence[CellOrder]) -> int:
        """Bytes on the network's device that a grid needs beside its weights and passes: files, VAE, and the text encoder if
        it reads between batches."""
        needed = self._missing(orders)
        if self.codec.device == self.model.device:
            needed += self.codec.needed_to_decode(self.latent_size)
        if self.text.device == self.model.device and any(order.lora.of_text for order in orders):
            needed += self.text.size
        return needed

    def _read(self, order: CellOrder | None, text: Text) -> CanvasText:
        self.read([(order, text)])
        found = self._encoded[self._reading(order, text)]
        if isinstance(found, NotFinite):
            raise found
        return found

    def _alone(self, model: host.Model, positive: CanvasText, negative: CanvasText, seed: int) -> Tensor:
        return model.sample(positive, negative, self.sampling.settings, latent_size=self.latent_size, seed=seed, wired=self.wired)

    def _pictures(self, latents: Tensor, count: int) -> list[Drawn]:
        """Failed in place of one of which the model or the VAE gives something that is no picture."""
        pixels = self.codec.decode(latents)
        frames = max(1, len(pixels) // count)
        out: list[Drawn] = []
        for i in range(count):
            own = pixels[i * frames : (i + 1) * frames]
            try:
                compatibility.check_picture(self.model, latents[i : i + 1], own)
            except NotFinite as lost:
                out.append(Failed(str(lost)))
            else:
                out.append(self._film(own) if self._frames else to_picture(own[0]))
        return out

    def _film(self, pixels: Tensor) -> Film:
        return Film(tuple(map(to_picture, pixels)), self.sampling.shown_frame - 1)

    def _reading(self, order: CellOrder | None, text: Text) -> Reading:
        said, place = text[0], text[1] if self.controls.seen(text[1]) else -1
        if order is None or not order.lora.of_text or not order.text_strength:
            return None, 0.0, said, place
        return order.lora, order.text_strength, said, place
