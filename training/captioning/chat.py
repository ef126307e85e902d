"""Models that answer a question about a picture: the LLaVA class (JoyCaption is one), Qwen-VL, Gemma 3, SmolVLM and others.

How a question is put is not written here: the model's own chat template says it. Two facts are its authors': LLaVA 1.5 was
published without a template (Liu et al. 2023, arXiv 2310.03744; "USER: <image>\\n... ASSISTANT:" stands on its card), and
JoyCaption was taught beside one system prompt and with one form of question (fancyfeast/llama-joycaption-beta-one-hf-llava).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..errors import AtelierError
from .pretrained import as_captions, fill_up_in_front, generate, load_pretrained, prepared, reason, without_front
from .protocol import Check, Picture
from .settings import GenerationSettings
from .thoughts import THINKING, begins_a_thought, still_thinking, without_thoughts

QUESTION = "Describe this picture in one sentence for somebody who cannot see it. Answer with the description only."
"""What is asked when the prompt is empty."""
MAX_PIXELS = 1280 * 28 * 28
"""Of models that make one token of each 28 x 28 pixels (32 x 32 in Qwen3-VL) without an end; 1280 are their authors' advice."""
JOY_SYSTEM = "You are a helpful image captioner."
JOY_QUESTION = "Write a long descriptive caption for this image in a formal tone."
JOY_MARK = "<|reserved_special_token_69|>"
"""What stands for the picture in JoyCaption's questions."""
PLAIN_LLAVA = "USER: {picture}\n{question} ASSISTANT:"


class ChatCaptioner:
    """A loaded model that answers one question about each picture."""

    looks = True

    def __init__(self, folder: Path, kind: str, settings: GenerationSettings, device: torch.device, check: Check) -> None:
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.processor, self.model = load_pretrained(folder, device, self.dtype)
        self.name, self.settings, self.device, self.check = folder.name, settings, device, check
        self.silence = ""
        self.template = template_of(self.processor)
        if kind == "llava":
            _complete(self.processor, self.model.config)
        elif not self.template:
            raise AtelierError(
                f"captioner: {folder.name} has no chat template. Put the model's chat_template.jinja (or .json) into {folder}."
            )
        fill_up_in_front(self.processor)
        # Only where pictures become more tokens the larger they are, and nothing else ends it.
        self.shrinks = hasattr(self.processor.image_processor, "merge_size")

    def caption(self, pictures: Sequence[Picture]) -> list[str]:
        joy = _mark(self.processor) == JOY_MARK
        text = self._asked(self.settings.prompt.strip() or (JOY_QUESTION if joy else QUESTION), JOY_SYSTEM if joy else "")
        images = [within(picture.image, MAX_PIXELS) if self.shrinks else picture.image for picture in pictures]
        call: dict[str, Any] = {"images": [[image] for image in images], "text": [text] * len(images), "padding": True}
        start = getattr(self.processor.tokenizer, "bos_token", None)
        if start and text.startswith(start):
            call["add_special_tokens"] = False  # the template has said it already
        inputs = prepared(self.processor, pictures, self.device, self.dtype, **call)
        tokens = without_front(generate(self.model, inputs, self.settings, self.check), inputs)
        said = as_captions(self.processor, tokens, self.model, in_lines=True)
        if begins_a_thought(text):
            said = [type(one)(f"<think>{one}") for one in said]
        self.silence = THINKING if any(map(still_thinking, said)) else self.silence
        return [without_thoughts(one) for one in said]

    def _asked(self, question: str, system: str) -> str:
        """The question about one picture in the model's own form; AtelierError where its template shows no picture."""
        if not self.template:
            return PLAIN_LLAVA.format(picture=_mark(self.processor), question=question)
        parts = [{"type": "image"}, {"type": "text", "text": question}]
        why, quick = "it shows no picture", {"enable_thinking": False} if "enable_thinking" in self.template else {}
        for content, told in (
            (parts, [{"type": "text", "text": system}]),
            (question, system),  # a template for plain text that puts the picture in front by itself
            (f"{_mark(self.processor)}\n{question}", system),
        ):
            messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
            messages = [{"role": "system", "content": told}, *messages] if system else messages
            try:
                text = self.processor.apply_chat_template(
                    messages, chat_template=self.template, add_generation_prompt=True, tokenize=False, **quick
                )
            except Exception as error:  # a template may raise whatever it likes
                why = reason(error)
                continue
            # A template for plain text may also write the parts down as they are.
            if question in text and str(parts) not in text and any(mark in text for mark in _marks(self.processor)):
                return str(text)
        raise AtelierError(
            f"captioner: {self.name}'s chat template cannot ask about a picture ({why}). Take the template that was published "
            "with the model, or choose another captioner."
        )


def template_of(processor: Any) -> str:
    """The chat template, which some models keep with their tokenizer; empty without one."""
    for owner in (processor, getattr(processor, "tokenizer", None)):
        template = getattr(owner, "chat_template", None)
        if isinstance(template, dict):
            template = template.get("default")
        if template:
            return str(template)
    return ""


def within(image: Image.Image, pixels: int) -> Image.Image:
    """The picture, shrunk in proportion if it has more pixels."""
    scale = (pixels / (image.width * image.height)) ** 0.5
    if scale >= 1:
        return image
    return image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))), Image.Resampling.LANCZOS)


def _mark(processor: Any) -> str:
    """What stands for a picture in the text that the processor reads."""
    return str(getattr(processor, "boi_token", None) or getattr(processor, "image_token", None) or "<image>")


def _marks(processor: Any) -> set[str]:
    names = ("boi_token", "image_token", "start_image_token", "image_start_token", "fake_image_token")
    return {str(getattr(processor, name)) for name in names if getattr(processor, name, None)} or {"<image>"}


def _complete(processor: Any, config: Any) -> None:
    """What early LLaVA folders leave to the model's configuration: the mark, and how many tokens a picture has."""
    tokenizer, number = processor.tokenizer, getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
    if number is not None and processor.image_token not in tokenizer.get_vocab():
        processor.image_token, processor.image_token_id = tokenizer.convert_ids_to_tokens(number), number
    if processor.patch_size is None:
        processor.patch_size = config.vision_config.patch_size
        processor.num_additional_image_tokens = int(config.vision_config.model_type == "clip_vision_model")
    if processor.vision_feature_select_strategy is None:
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy
