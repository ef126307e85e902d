"""Text encoders of the host, small: its own classes and tokenizers, narrow and shallow, with random weights.

What is read of a text is as it is published: which layers, which masks, which further tensors.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..tiny_models import randomise

CLIP = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 64}
T5 = {"d_model": 64, "d_kv": 32, "d_ff": 64, "num_heads": 2, "num_layers": 2}
LLAMA = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip
GPT_OSS = {
    "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
    "num_local_experts": 2, "num_experts_per_tok": 2, "sliding_window": 32,
}  # fmt: skip
"""All experts answer, so that there is a slope: where they are chosen, what is said jumps from one to another."""
Words = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Reader:
    """One kind of text encoder."""

    name: str
    """What it is, and in brackets whose."""
    module: str
    """Of the host."""
    tokenizer: str | Callable[[], Any]
    """There, or made."""
    model: Callable[[Any], Any]
    """The class of the encoder, given that module."""
    small: Mapping[str, Mapping[str, Any]]
    """What is changed of the published sizes, by the encoders' names."""
    words: Words = field(default=dict)
    """What the tokenizer finds in a published file."""
    large: bool = False
    """It has eyes, whose size cannot be changed."""
    dtype: torch.dtype | None = None
    """Of the weights, where the encoder computes in no other than they have; None leaves it to the host."""

    def home(self) -> Any:
        """The module; ModuleNotFoundError on a host that has none such."""
        module = importlib.import_module(f"comfy.{self.module}")
        if isinstance(self.tokenizer, str) and not hasattr(module, self.tokenizer):
            raise ModuleNotFoundError(f"no {self.tokenizer} in {self.module}")
        return module

    def kind(self) -> type:
        return self.model(self.home())

    def is_known(self) -> bool:
        with suppress(ModuleNotFoundError):
            self.home()
            return True
        return False


@cache
def _pieces() -> bytes:
    import sentencepiece

    found = io.BytesIO()
    lines = [f"a drawing of {i} boats and a red house, ohwx style, under old crooked trees" for i in range(50)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=found, vocab_size=80, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    return found.getvalue()


def pieces() -> dict[str, Any]:
    """A small vocabulary in sentencepiece's format, as Gemma's and UMT5's files bring theirs."""
    return {"spiece_model": torch.frombuffer(bytearray(_pieces()), dtype=torch.uint8)}


def pieces_of_mt5() -> dict[str, Any]:
    return {"mt5xl.spiece_model": pieces()["spiece_model"]}


def pieces_of_both() -> dict[str, Any]:
    return {f"{name}_spiece_model": pieces()["spiece_model"] for name in ("gemma", "jina")}


def tokens_of_t5() -> dict[str, Any]:
    """A tokenizer as a file of Lens's encoder brings it along; the host has T5's."""
    from comfy import text_encoders

    found = (Path(next(iter(text_encoders.__path__))) / "t5_tokenizer" / "tokenizer.json").read_bytes()
    return {"tokenizer_json": torch.frombuffer(bytearray(found), dtype=torch.uint8)}


def in_qwens_words(name: str) -> Callable[[], Any]:
    """A tokenizer for the encoder ``name`` with Qwen's vocabulary: ComfyUI reads Mistral's with older transformers only."""

    def made() -> Any:
        from comfy import sd1_clip
        from comfy.text_encoders import z_image

        class Words(sd1_clip.SD1Tokenizer):
            def __init__(self, **given: Any):
                super().__init__(name=name, tokenizer=z_image.Qwen3Tokenizer, **given)

        return Words

    return made


def llama(**changes: Any) -> dict[str, Any]:
    return {**LLAMA, **changes}


READERS = (
    Reader("CLIP-L (SD 1.5)", "sd1_clip", "SD1Tokenizer", lambda m: m.SD1ClipModel, {"clip_l": CLIP}),
    Reader("CLIP-H (SD 2.x)", "text_encoders.sd2_clip", "SD2Tokenizer", lambda m: m.SD2ClipModel, {"clip_h": CLIP}),
    Reader("CLIP-L and CLIP-G (SDXL)", "sdxl_clip", "SDXLTokenizer", lambda m: m.SDXLClipModel, {"clip_l": CLIP, "clip_g": CLIP}),
    Reader("CLIP-G (SDXL refiner)", "sdxl_clip", "SDXLTokenizer", lambda m: m.SDXLRefinerClipModel, {"clip_g": CLIP}),
    Reader(
        "CLIP-L and CLIP-G (SD 3)", "text_encoders.sd3_clip", "SD3Tokenizer", lambda m: m.sd3_clip(t5=False),
        {"clip_l": CLIP, "clip_g": CLIP},
    ),
    Reader("CLIP-L and T5 (Flux)", "text_encoders.flux", "FluxTokenizer", lambda m: m.flux_clip(), {"clip_l": CLIP, "t5xxl": T5}),
    Reader("T5 (PixArt, Chroma)", "text_encoders.pixart_t5", "PixArtTokenizer", lambda m: m.pixart_te(), {"t5xxl": T5}),
    Reader("T5 (Cosmos)", "text_encoders.cosmos", "CosmosT5Tokenizer", lambda m: m.te(), {"t5xxl": T5}),
    Reader("T5 (LTX-Video)", "text_encoders.lt", "LTXVT5Tokenizer", lambda m: m.ltxv_te(), {"t5xxl": T5}),
    Reader("T5 (Mochi)", "text_encoders.genmo", "MochiT5Tokenizer", lambda m: m.mochi_te(), {"t5xxl": T5}),
    Reader("Pile-T5 (AuraFlow)", "text_encoders.aura_t5", "AuraT5Tokenizer", lambda m: m.AuraT5Model, {"pile_t5xl": T5}),
    Reader("UMT5 (Wan)", "text_encoders.wan", "WanT5Tokenizer", lambda m: m.te(), {"umt5xxl": T5}, pieces),
    Reader(
        "BERT and mT5 (Hunyuan DiT)", "text_encoders.hydit", "HyditTokenizer", lambda m: m.HyditModel,
        {"hydit_clip": CLIP, "mt5xl": T5}, pieces_of_mt5,
    ),
    Reader("Qwen 3 (Z-Image)", "text_encoders.z_image", "ZImageTokenizer", lambda m: m.te(), {"qwen3_4b": llama()}),
    Reader(
        "Qwen 3 (Flux.2 klein)", "text_encoders.flux", "KleinTokenizer", lambda m: m.klein_te(),
        {"qwen3_4b": llama(num_hidden_layers=28)},
    ),
    Reader("Qwen 3 (Ovis)", "text_encoders.ovis", "OvisTokenizer", lambda m: m.te(), {"qwen3_2b": llama()}),
    Reader("Qwen 3 (Anima)", "text_encoders.anima", "AnimaTokenizer", lambda m: m.te(), {"qwen3_06b": llama()}),
    Reader("Gemma 2 (Lumina 2)", "text_encoders.lumina2", "LuminaTokenizer", lambda m: m.te(), {"gemma2_2b": llama()}, pieces),
    Reader(
        "Gemma 2 (PixelDiT)", "text_encoders.pixeldit", "PixelDiTGemma2Tokenizer", lambda m: m.PixelDiTGemma2TE,
        {"gemma2_2b": llama()}, pieces,
    ),
    Reader(
        "Gemma 3 (NetaYume)", "text_encoders.lumina2", "NTokenizer", lambda m: m.te(model_type="gemma3_4b"),
        {"gemma3_4b": llama()}, pieces,
    ),
    # NewBie's two, like ByT5 below, have no name.
    Reader(
        "Gemma 3 and Jina CLIP 2 (NewBie)", "text_encoders.newbie", "NewBieTokenizer", lambda m: m.te(),
        {"": {**CLIP, "num_attention_heads": 4}}, pieces_of_both,
    ),
    Reader(
        "Qwen 2.5 VL (Qwen-Image)", "text_encoders.qwen_image", "QwenImageTokenizer", lambda m: m.te(),
        {"qwen25_7b": llama()}, large=True,
    ),
    Reader("Qwen 2.5 VL (OmniGen 2)", "text_encoders.omnigen2", "Omnigen2Tokenizer", lambda m: m.te(), {"qwen25_3b": llama()}),
    Reader(
        "Qwen 2.5 VL (LongCat)", "text_encoders.longcat_image", "LongCatImageTokenizer", lambda m: m.te(),
        {"qwen25_7b": llama()}, large=True,
    ),
    Reader(
        "Qwen 2.5 VL and ByT5 (HunyuanImage)", "text_encoders.hunyuan_image", "HunyuanImageTokenizer", lambda m: m.te(),
        {"qwen25_7b": llama(num_hidden_layers=4), "": T5}, large=True,
    ),
    Reader(
        "Qwen 2.5 VL and CLIP-L (Kandinsky 5)", "text_encoders.kandinsky5", "Kandinsky5TokenizerImage", lambda m: m.te(),
        {"qwen25_7b": llama(), "clip_l": CLIP}, large=True,
    ),
    Reader(
        "Qwen 3 VL (Ideogram 4)", "text_encoders.ideogram4", "Ideogram4Tokenizer", lambda m: m.te(),
        {"qwen3vl_8b": llama(num_hidden_layers=36)},
    ),
    Reader(
        "Mistral 3 (Flux.2)", "text_encoders.flux", in_qwens_words("mistral3_24b"), lambda m: m.flux2_te(),
        {"mistral3_24b": llama(num_hidden_layers=31)},
    ),
    Reader(
        "Ministral 3 (Ernie)", "text_encoders.ernie", in_qwens_words("ministral3_3b"), lambda m: m.te(),
        {"ministral3_3b": llama()},
    ),
    Reader(
        "CLIP-L, CLIP-G, T5 and Llama 3 (HiDream)", "text_encoders.hidream", "HiDreamTokenizer", lambda m: m.hidream_clip(),
        {"clip_l": CLIP, "clip_g": CLIP, "t5xxl": T5, "llama": llama()},
    ),
    Reader(
        "CLIP-L and Llama 3 (Hunyuan Video)", "text_encoders.hunyuan_video", "HunyuanVideoTokenizer",
        lambda m: m.hunyuan_video_clip(), {"clip_l": CLIP, "llama": llama(num_hidden_layers=4)},
    ),
    Reader(
        "GPT-OSS (Lens)", "text_encoders.gpt_oss", "LensTokenizer", lambda m: m.lens_te(), {"gpt_oss": GPT_OSS}, tokens_of_t5,
        dtype=torch.float32,
    ),
    Reader(
        "Qwen 3 VL (Mage-Flow)", "text_encoders.mage_flow", "MageFlowTokenizer", lambda m: m.te(), {"qwen3vl_4b": llama()},
        large=True,
    ),
    Reader(
        "Qwen 3 VL (JoyImage)", "text_encoders.joyimage", "JoyImageTokenizer", lambda m: m.te(), {"qwen3vl_8b": llama()},
        large=True,
    ),
    Reader("Qwen 3 VL (Boogu)", "text_encoders.boogu", "BooguTokenizer", lambda m: m.te(), {"qwen3vl_8b": llama()}, large=True),
    Reader(
        "Qwen 3 VL (Krea 2)", "text_encoders.krea2", "Krea2Tokenizer", lambda m: m.te(),
        {"qwen3vl_4b": llama(num_hidden_layers=36)}, large=True,
    ),
)  # fmt: skip


def build(reader: Reader) -> Any:
    """The CLIP; in inference mode, as a graph makes it. ModuleNotFoundError on a host that has none such."""
    import comfy.sd
    from comfy.supported_models_base import ClipTarget

    tokenizer = getattr(reader.home(), reader.tokenizer) if isinstance(reader.tokenizer, str) else reader.tokenizer()

    class Filled(reader.kind()):  # type: ignore[misc]
        def __init__(self, **given: Any):
            super().__init__(**given)
            self.load_state_dict(weights(self))

    options: dict[str, Any] = {"dtype": reader.dtype} if reader.dtype else {}
    options |= {f"{name}{end}": dict(values) for name, values in reader.small.items() for end in ("_model_config", "_config")}
    with torch.inference_mode():
        return comfy.sd.CLIP(ClipTarget(tokenizer, Filled), tokenizer_data=reader.words(), model_options=options)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    for layer in model.modules():
        if hasattr(layer, "_orig_shape") and getattr(layer, "weight", None) is None:  # the host makes it when a file is read
            layer.weight = nn.Parameter(torch.empty(layer._orig_shape), requires_grad=False)
    return randomise(model, 1)
