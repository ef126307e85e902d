"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL models so small that a test can build them; random weights, real files."""

from __future__ import annotations

from pathlib import Path

import torch

from .tiny_blip import WORDS

QUESTION_WORDS = "What is this ? user assistant Describe picture in one sentence".split()
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|> {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
    "<unk>",
)  # fmt: skip

SMALL = {"depth": 2, "hidden_size": 32, "num_heads": 2, "initializer_range": 0.5}
KINDS = {
    "qwen2_vl": ("Qwen2VL", {**SMALL, "embed_dim": 32, "mlp_ratio": 2}, 28, "Qwen2VLVideoProcessor"),
    "qwen2_5_vl": (
        "Qwen2_5_VL", {**SMALL, "out_hidden_size": 32, "intermediate_size": 64, "fullatt_block_indexes": [1]}, 28,
        "Qwen2VLVideoProcessor",
    ),
    "qwen3_vl": (
        "Qwen3VL",
        {
            **SMALL, "out_hidden_size": 32, "intermediate_size": 64, "patch_size": 16, "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        32, "Qwen3VLVideoProcessor",
    ),
}  # fmt: skip
"""Kind as in ``config.json`` -> prefix of its classes, vision tower, pixels that one token covers, class for films."""


def build_chat(folder: Path, kind: str = "qwen2_vl", seed: int = 0) -> Path:
    """Two vision and two text layers of width 32, and a vocabulary of some forty words; ``kind`` as in ``config.json``."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder.mkdir(parents=True)
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*SPECIAL, *WORDS, *QUESTION_WORDS]))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<unk>",
        additional_special_tokens=list(SPECIAL[1:-1]),
    )  # fmt: skip
    text = {
        "vocab_size": len(vocabulary), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 2048, "initializer_range": 0.5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
    }  # fmt: skip
    tokens = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 3, "vision_end_token_id": 4}
    prefix, vision, side, film = KINDS[kind]
    if kind == "qwen3_vl":
        text["head_dim"] = 16
    of = {
        part: getattr(transformers, prefix + part)
        for part in ("Config", "ForConditionalGeneration", "Processor")
    }  # fmt: skip
    torch.manual_seed(seed)
    of["ForConditionalGeneration"](of["Config"](text_config=text, vision_config=vision, **tokens)).save_pretrained(folder)
    patch = {"patch_size": side // 2, "min_pixels": side * side, "max_pixels": 8 * side * side}
    pictures, films = transformers.Qwen2VLImageProcessor(**patch), getattr(transformers, film)()
    of["Processor"](pictures, tokenizer, films, chat_template=TEMPLATE).save_pretrained(folder)
    return folder
