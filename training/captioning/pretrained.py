"""``transformers`` models from a folder: loading and generating.

Everything comes from this computer: nothing is downloaded, no code from the folder is run, and only safetensors weights are
read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import AtelierError
from .config_file import config_of
from .protocol import Check, CutShort, Picture
from .settings import GenerationSettings


def refuse_unreadable(folder: Path, kind: str) -> None:
    """AtelierError naming the folder if ``transformers`` makes no text of pictures with its kind, or if its weights are no
    safetensors."""
    import transformers
    from transformers.models.auto import modeling_auto

    if kind not in transformers.CONFIG_MAPPING:
        if "auto_map" in config_of(folder):
            raise AtelierError(
                f"captioner: {folder.name} brings its own program code, which is never run here. Take a form of the model for "
                "transformers (often with -hf in its name), or choose another captioner."
            )
        raise AtelierError(
            f"captioner: the installed transformers ({transformers.__version__}) does not know {kind!r} models, which "
            f"{folder.name} is. Update transformers, or choose another captioner."
        )
    if kind not in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise AtelierError(
            f"captioner: {folder.name} is a {kind!r} model, which writes no text about pictures. Take one such as JoyCaption, "
            "Qwen-VL, Florence-2 or BLIP, or a tagger in ONNX form."
        )
    if not any(folder.glob("*.safetensors")):
        raise AtelierError(
            f"captioner: {folder.name} has no safetensors weights. Files like pytorch_model.bin can run code when they are "
            f"loaded and are never read here; put the model's .safetensors file into {folder}."
        )


class PictureAndText:
    """A processor of pictures and a tokenizer that lie in a folder without a common one."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer

        self.image_processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)

    def batch_decode(self, tokens: Tensor, **how: bool) -> list[str]:
        return list(self.tokenizer.batch_decode(tokens, **how))


def load_pretrained(folder: Path, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """(processor, model) of a folder, the model ready to generate; AtelierError naming the folder if that fails."""
    from transformers import AutoModelForImageTextToText, AutoProcessor, PretrainedConfig

    # Newer versions warn of the argument's old name, older ones refuse the new one.
    precision = {"dtype" if hasattr(PretrainedConfig(), "dtype") else "torch_dtype": dtype}
    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if not (hasattr(processor, "image_processor") and hasattr(processor, "tokenizer")):
            processor = PictureAndText(folder)
        model = AutoModelForImageTextToText.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, **precision
        )
        return processor, model.to(device=device, dtype=dtype).eval()
    except torch.cuda.OutOfMemoryError as error:
        raise AtelierError(
            f"captioner: {folder.name} does not fit into memory. Set device to cpu, or take a smaller one."
        ) from error
    except Exception as error:
        # transformers raises many kinds of error for a folder that is incomplete or damaged.
        raise AtelierError(
            f"captioner: {folder.name} cannot be loaded ({reason(error)}). "
            "Download all files of the model again: config, tokenizer, preprocessor and safetensors weights."
        ) from error


def prepared(processor: Any, pictures: Sequence[Picture], device: torch.device, dtype: torch.dtype, **call: object) -> Any:
    """The processor's tensors for these pictures; AtelierError naming them if it refuses them."""
    try:
        return processor(return_tensors="pt", **call).to(device, dtype)
    except (ValueError, RuntimeError, TypeError) as error:
        names = ", ".join(picture.path.name for picture in pictures)
        raise AtelierError(
            f"{names}: the captioner cannot take this ({reason(error)}). Check the prompt, or take the picture away."
        ) from error


def fill_up_in_front(processor: Any) -> None:
    """An answer begins where the question ends, so shorter questions are filled up in front."""
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token


def without_front(tokens: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """New tokens alone: models that only decode repeat what they were given in front of their answer, others do not."""
    given = inputs["input_ids"]
    long = given.shape[1]
    return tokens[:, long:] if tokens.shape[1] >= long and torch.equal(tokens[:, :long], given) else tokens


def generate(model: Any, inputs: Mapping[str, object], settings: GenerationSettings, check: Check) -> Tensor:
    """Tokens (B, T) by beam search; AtelierError naming the widget if the memory is too small.

    ``check`` is called after every token, so that what it raises ends the caption within one.
    """
    from transformers import StoppingCriteriaList

    def goes_on(tokens: Tensor, _scores: object, **_more: object) -> Tensor:
        check()
        return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)

    try:
        with torch.no_grad():
            tokens: Tensor = model.generate(
                **inputs,
                num_beams=settings.beams,
                min_new_tokens=settings.min_length,
                max_new_tokens=settings.max_length,
                do_sample=False,
                stopping_criteria=StoppingCriteriaList([goes_on]),
            )
            return tokens
    except torch.cuda.OutOfMemoryError as error:
        raise AtelierError(
            "batch_size: the memory is too small for so many pictures at a time. Lower it, or the beams."
        ) from error
    except (ValueError, RuntimeError, TypeError, LookupError, AttributeError) as error:
        if isinstance(error, AtelierError):
            raise
        raise AtelierError(
            f"captioner: it cannot answer ({reason(error)}). Set beams to 1, check the prompt, or choose another captioner."
        ) from error


def in_one_line(texts: Sequence[str]) -> list[str]:
    return [" ".join(text.split()) for text in texts]


def as_captions(processor: Any, tokens: Tensor, model: Any = None, in_lines: bool = False) -> list[str]:
    """The text of every row of new tokens (B, T); CutShort where the last is a word: no model ends with one.

    In one line, or with ``in_lines`` as it was written. ``model``: what it says of its own ends counts, too.
    """
    texts = processor.batch_decode(tokens, skip_special_tokens=True)
    ends = set(processor.tokenizer.all_special_ids) | _ends(model)
    last = tokens[:, -1].tolist() if tokens.shape[1] else []
    cut = [token not in ends for token in last] or [False] * len(texts)
    texts = texts if in_lines else in_one_line(texts)
    return [CutShort(text) if short else text for text, short in zip(texts, cut, strict=True)]


def _ends(model: Any) -> set[int]:
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return set(found) if isinstance(found, list) else set() if found is None else {found}


def reason(error: Exception) -> str:
    """Its first line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
