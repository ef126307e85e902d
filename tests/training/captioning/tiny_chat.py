"""Qwen2-VL and Qwen2.5-VL models so small that a test can build them; random weights, real files."""

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
    if kind == "qwen2_vl":
        vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "initializer_range": 0.5}
        config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, **tokens)
        model_class, processor_class = transformers.Qwen2VLForConditionalGeneration, transformers.Qwen2VLProcessor
    else:
        vision = {
            "depth": 2, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 64,
            "fullatt_block_indexes": [1], "initializer_range": 0.5,
        }  # fmt: skip
        config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens)
        model_class, processor_class = transformers.Qwen2_5_VLForConditionalGeneration, transformers.Qwen2_5_VLProcessor
    torch.manual_seed(seed)
    model_class(config).save_pretrained(folder)
    pictures = transformers.Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=8 * 28 * 28)
    films = transformers.Qwen2VLVideoProcessor()
    processor_class(pictures, tokenizer, films, chat_template=TEMPLATE).save_pretrained(folder)
    return folder
