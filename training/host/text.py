"""CLIP of the host: captions to conditioning, or (a vision-language model) pictures to captions."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from comfy import lora as comfy_lora
from torch import Tensor, nn

from ..config import Syntax
from ..errors import AtelierError, NotFinite
from ..network.base_layer import is_linear, refusal
from ..performance.checkpointing import blocks_of
from ..performance.out_of_place import OutOfPlace
from ..protocols import Answers, CanvasText
from ..tensors.finite import first_lost
from . import alterations
from .batched_text import BatchedEncoders, Versions, captions_of_a_pass, one_version
from .plain_text import named, plain
from .seeing import eyes_of
from .towers import FrozenTowers, outside, weights_outside
from .twins import put_twin_aside, resident
from .weights import identity_of, mended, names_of_layers

Conditioning = dict[str, Tensor]
"""One encoded text: ``cond`` (1, tokens, width), usually ``pooled_output`` (1, width), and whatever else the encoder gives."""


class TextEncoder:
    """A loaded CLIP (or T5, or language model) that turns captions into conditioning.

    ``syntax``: whether they are plain text, or written in ComfyUI's prompt syntax (weights in brackets, embeddings).
    """

    def __init__(self, clip: Any, syntax: Syntax = "plain"):
        self.clip, self.syntax = clip, syntax
        self._origin = mended(getattr(clip, "patcher", None))
        self._frozen: FrozenTowers | None = None

    @property
    def device(self) -> torch.device:
        device: torch.device = self.clip.patcher.load_device
        return device

    @property
    def size(self) -> int:
        """Bytes of its weights."""
        return int(self.clip.patcher.model_size())

    def identity(self) -> str:
        extras = f"{self.clip.layer_idx} {sorted(getattr(self.clip, 'tokenizer_options', {}).items())}"
        altered = alterations.of_sampling(self.clip.patcher)
        return (
            identity_of(self.clip.cond_stage_model, self.clip.patcher) + hashlib.sha256(extras.encode()).hexdigest()[:8] + altered
        )

    def reading(self, syntax: Syntax) -> TextEncoder:
        """This encoder, with texts in that syntax."""
        if syntax == self.syntax:
            return self
        encoder = TextEncoder(self.clip, syntax)
        encoder._origin = self._origin
        return encoder

    def reading_of(self, text: str) -> tuple[str, ...]:
        """What, beside the encoder's identity, decides what ``text`` means: its syntax, where it makes a difference."""
        return ("plain",) if self.syntax == "plain" and named(text) != text else ()

    @property
    def sees(self) -> bool:
        """Whether it sees the control pictures of an edit model beside the text."""
        return eyes_of(self.clip) is not None

    @property
    def eyes(self) -> str:
        """How it sees them; equal for what gives the same tokens."""
        return repr(eyes_of(self.clip))

    def tokenize(self, text: str, pictures: Sequence[Tensor] = ()) -> Any:
        """The tokens as the host's encoders take them; AtelierError for what is no text.

        ``pictures``: (1, H, W, 3) in 0..1 each, for encoders that see.
        """
        if not isinstance(text, str):
            raise AtelierError(f"clip: a text was {type(text).__name__} and no text. Connect what a text node gives.")
        clip, said = (self.clip, text) if self.syntax == "ComfyUI" else (self._plain, named(text))
        eyes = eyes_of(self.clip)
        return eyes.tokens(clip, said, pictures) if pictures and eyes is not None else clip.tokenize(said)

    @cached_property
    def _plain(self) -> Any:
        """The CLIP with tokenizers of its own, which take every character for what it is."""
        clip = copy.copy(self.clip)
        clip.tokenizer = plain(self.clip.tokenizer)
        return clip

    def encode(self, text: str, pictures: Sequence[Tensor] = ()) -> Conditioning:
        """Tensors on the CPU, ordinary ones (not inference tensors)."""
        return self._encode(self.tokenize(text, pictures))

    def encode_all(self, texts: Sequence[str]) -> Iterator[Conditioning]:
        """The same as ``encode`` for each text, batched; equal up to rounding."""
        start = 0
        while start < len(texts):
            tokens = [self.tokenize(texts[start])]
            after = start + captions_of_a_pass(tokens[0], self.device)
            tokens += [self.tokenize(text) for text in texts[start + 1 : after]]
            start = after
            ahead = BatchedEncoders(self.clip, tokens)
            for number, one in enumerate(tokens):
                with ahead.in_place(number):
                    found = self._encode(one)
                yield found

    def _kept(self) -> AbstractContextManager[None]:
        """While it lasts, towers that don't learn read nothing twice."""
        return self._frozen.in_place() if self._frozen is not None else nullcontext()

    def _encode(self, tokens: Any) -> Conditioning:
        with torch.inference_mode(), self._kept():
            out = self.clip.encode_from_tokens(tokens, return_pooled=True, return_dict=True)
        with torch.inference_mode(False), torch.no_grad():
            return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in out.items() if isinstance(v, Tensor)}

    def for_training(self) -> TextEncoder:
        """This encoder as the loop can hold it: see ``Model.for_training``."""
        patcher, clip = resident(self.clip.patcher, "clip"), self.clip
        if patcher is not clip.patcher:
            clip = clip.clone()
            clip.patcher, clip.cond_stage_model = patcher, patcher.model
        encoder = TextEncoder(clip, self.syntax)
        encoder._origin = self.clip.patcher
        return encoder

    def learns(self, layers: Collection[str], answers: Answers) -> tuple[str, ...]:
        """From now on these of its ``layers`` learn: what towers without any have said is kept in ``answers``. Their names."""
        self._frozen = FrozenTowers(self.clip, layers, answers)
        return tuple(self._frozen.towers)

    @property
    def resting(self) -> FrozenTowers | None:
        """Towers whose weights need not be on the device while others learn; None where there are none.

        What other nodes have laid on the weights only counts where the host itself has brought them.
        """
        patcher = self.clip.patcher
        laid_on = patcher.patches or patcher.object_patches or alterations.of_both(patcher)
        plain = not laid_on and patcher.load_device.type != "cpu"
        return self._frozen if self._frozen and plain else None

    def read_ahead(self, text: str, pictures: Sequence[Tensor] = ()) -> None:
        """Has towers that don't learn read a text, so that they need not in a step."""
        self.encode(text, pictures)
        if self._frozen is not None:
            self._frozen.took()

    def read_all_ahead(self, texts: Sequence[str]) -> Iterator[None]:
        """The same for each text, batched; what was read in an earlier run is not read again."""
        marks = {text: self._mark(text) for text in texts}
        unread = [text for text in texts if self._frozen is not None and not self._frozen.known(marks[text])]
        yield from (None for _ in range(len(texts) - len(unread)))
        for text, _ in zip(unread, self.encode_all(unread), strict=True):
            if self._frozen is not None:
                self._frozen.note(marks[text])
            yield

    def settle(self) -> tuple[str, ...]:
        """After reading ahead: the towers that cannot rest, since not all is kept that they said."""
        return self._frozen.settle() if self._frozen is not None else ()

    def _mark(self, text: str) -> str:
        return repr((text, *self.reading_of(text)))

    def retire(self) -> None:
        """After a run: see ``Model.retire``."""
        put_twin_aside(self.clip.patcher, self._origin)

    def check(self) -> None:
        """AtelierError, with the reason, if it cannot learn rightly."""
        why = next(filter(None, map(refusal, self.clip.cond_stage_model.modules())), None)
        if why is not None:
            raise AtelierError(f"clip: {why}")

    def layers(self) -> dict[str, nn.Module]:
        """Linear layers by dotted name, the first part being the encoder's: ``clip_l``, ``clip_g``, ``t5xxl`` and so on."""
        return {name: m for name, m in self.clip.cond_stage_model.named_modules() if is_linear(m)}

    def lora_names(self) -> dict[str, list[str]]:
        """For every layer the names under which the host finds it in a LoRA file."""
        return names_of_layers(comfy_lora.model_lora_keys_clip(self.clip.cond_stage_model, {}), "")

    def blocks(self) -> list[nn.Module]:
        """What gradient checkpointing may compute twice."""
        found = blocks_of(self.clip.cond_stage_model)
        return outside(found, self._frozen) if self._frozen else found

    def weights(self) -> list[Tensor]:
        """Everything that is stored of the encoder, but for towers that rest while others learn."""
        if self.resting is not None:
            return weights_outside(self.clip.cond_stage_model, self.resting)
        return [*self.clip.cond_stage_model.parameters(), *self.clip.cond_stage_model.buffers()]

    def encode_live(self, text: str, pictures: Sequence[Tensor] = ()) -> Conditioning:
        """Like ``encode``, but on the device and connected with whatever learns in the encoder; only while it is held."""
        # The host would look for room first, at every caption, and might make it of the very models that are held.
        held = copy.copy(self.clip)
        held.load_model = lambda *_: held.patcher
        with OutOfPlace(), self._kept():
            out = held.encode_from_tokens(self.tokenize(text, pictures), return_pooled=True, return_dict=True)
        return {k: v for k, v in out.items() if isinstance(v, Tensor)}

    def for_sampling(self, text: str, pictures: Sequence[Tensor] = ()) -> CanvasText:
        """CONDITIONING as CLIPTextEncode, or the node of an edit model, makes it of ``text``, in its syntax."""
        hooked = getattr(self.clip, "use_clip_schedule", False) or getattr(self.clip.patcher, "forced_hooks", None) is not None
        with torch.inference_mode(), nullcontext() if hooked else self._kept():
            return self._checked(text, self.clip.encode_from_tokens_scheduled(self.tokenize(text, pictures)))

    def for_sampling_all(
        self,
        texts: Sequence[str],
        versions: Sequence[int] | None = None,
        tell: Versions = one_version,
        seen: Sequence[Sequence[Tensor]] | None = None,
    ) -> list[CanvasText | NotFinite]:
        """The same for each text, batched, equal up to rounding; and what ``for_sampling`` would raise for one that is lost.

        A text is read in its version, if ``versions`` names one for each: ``tell`` is told before every pass of an encoder that
        of each row, and of the text that the host works on otherwise. ``seen`` are the pictures beside each text.
        """
        versions = [0] * len(texts) if versions is None else versions
        scheduled = bool(getattr(self.clip, "use_clip_schedule", False))  # it reads a text several times, in the host's own way
        out: list[CanvasText | NotFinite] = []
        rest = list(zip(texts, versions, [()] * len(texts) if seen is None else seen, strict=True))
        while rest:
            tokens = [self.tokenize(rest[0][0], rest[0][2])]
            count = captions_of_a_pass(tokens[0], self.device)
            part, rest = rest[:count], rest[count:]
            tokens += [self.tokenize(text, pictures) for text, _, pictures in part[1:]]
            ahead = BatchedEncoders(self.clip, tokens, [version for _, version, _ in part], tell)
            for number, (text, version, _) in enumerate(part):
                tell([version])
                with torch.inference_mode(), nullcontext() if scheduled else ahead.in_place(number):
                    found: CanvasText = self.clip.encode_from_tokens_scheduled(tokens[number])
                try:
                    out.append(self._checked(text, found))
                except NotFinite as lost:
                    out.append(lost)
        return out

    def _checked(self, text: str, encoded: CanvasText) -> CanvasText:
        """NotFinite where a prompt was lost."""
        if any(first_lost({"cond": cond, **extras}) is not None for cond, extras in encoded):
            raise NotFinite(
                f"clip: it gives NaN or infinite numbers for the prompt {text[:80]!r}. Start ComfyUI with --fp32-text-enc or "
                "--bf16-text-enc, or connect another CLIP."
            )
        return encoded


class TextWriter:
    """A loaded CLIP that is a language model with eyes, for writing about pictures."""

    def __init__(self, clip: Any):
        if not hasattr(clip, "generate"):
            raise AtelierError("clip: this ComfyUI cannot let a text encoder write. Update ComfyUI, or choose another captioner.")
        if not _writes(clip.cond_stage_model):
            raise AtelierError(
                f"clip: {type(clip.cond_stage_model).__name__} only reads text. Connect a language model that sees pictures, "
                "such as Qwen3-VL or Gemma 3, or choose another captioner."
            )
        self.clip = clip
        self._plain = copy.copy(clip)
        self._plain.tokenizer = plain(clip.tokenizer)

    def write(self, pixels: Tensor, question: str, max_length: int) -> str:
        """The most probable answer to ``question``, plain text, of at most ``max_length`` tokens; ``pixels`` (1, H, W, 3) in
        0..1 are what it is about."""
        with torch.inference_mode():
            tokens = self._plain.tokenize(named(question), image=pixels, skip_template=False, min_length=1, thinking=False)
            if not any(isinstance(token[0], dict) for rows in tokens.values() for row in rows for token in row):
                raise AtelierError(
                    f"clip: {type(self.clip.tokenizer).__name__} takes no pictures. Connect a language model that sees pictures, "
                    "such as Qwen3-VL or Gemma 3, or choose another captioner."
                )
            answer: str = self.clip.decode(self.clip.generate(tokens, do_sample=False, max_length=max_length))
        return answer


def _writes(model: nn.Module) -> bool:
    """Whether a text encoder can generate: the host's wrapper has the method for all, the model in it only if it can."""
    inner = getattr(model, str(getattr(model, "clip", "")), None)
    transformer = getattr(inner, "transformer", None)
    return hasattr(model, "generate") and (transformer is None or hasattr(transformer, "generate"))
