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
from .protocol import Check, CutShort, Picture
from .settings import GenerationSettings


def refuse_unreadable(folder: Path, kind: str) -> None:
    """AtelierError naming the folder if its weights are not safetensors, or if ``transformers`` doesn't know its kind."""
    if not any(folder.glob("*.safetensors")):
        raise AtelierError(
            f"captioner: {folder.name} has no safetensors weights. Files like pytorch_model.bin can run code when they are "
            f"loaded and are never read here; put the model's .safetensors file into {folder}."
        )
    import transformers

    if kind not in transformers.CONFIG_MAPPING:
        raise AtelierError(
            f"captioner: the installed transformers ({transformers.__version__}) does not know {kind!r} models, which "
            f"{folder.name} is. Update transformers, or choose another captioner."
        )


def load_pretrained(folder: Path, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """(processor, model) of a folder, the model ready to generate; AtelierError naming the folder if that fails."""
    from transformers import AutoModelForImageTextToText, AutoProcessor, PretrainedConfig

    # Newer versions warn of the argument's old name, older ones refuse the new one.
    precision = {"dtype" if hasattr(PretrainedConfig(), "dtype") else "torch_dtype": dtype}
    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
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
            f"captioner: {folder.name} cannot be loaded ({_reason(error)}). "
            "Download all files of the model again: config, tokenizer, preprocessor and safetensors weights."
        ) from error


def prepared(processor: Any, pictures: Sequence[Picture], device: torch.device, dtype: torch.dtype, **call: object) -> Any:
    """The processor's tensors for these pictures; AtelierError naming them if it refuses them."""
    try:
        return processor(return_tensors="pt", **call).to(device, dtype)
    except (ValueError, RuntimeError, TypeError) as error:
        names = ", ".join(picture.path.name for picture in pictures)
        raise AtelierError(
            f"{names}: the captioner cannot take this ({_reason(error)}). Check the prompt, or take the picture away."
        ) from error


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


def in_one_line(texts: Sequence[str]) -> list[str]:
    return [" ".join(text.split()) for text in texts]


def as_captions(processor: Any, tokens: Tensor) -> list[str]:
    """The text of every row of new tokens (B, T) in one line; CutShort where the last is a word: no model ends with one."""
    texts = in_one_line(processor.batch_decode(tokens, skip_special_tokens=True))
    ends = set(processor.tokenizer.all_special_ids)
    last = tokens[:, -1].tolist() if tokens.shape[1] else []
    cut = [token not in ends for token in last] or [False] * len(texts)
    return [CutShort(text) if short else text for text, short in zip(texts, cut, strict=True)]


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
