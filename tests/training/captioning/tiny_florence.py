"""A Florence-2 model so small that a test can build it; random weights, real files."""

from __future__ import annotations

from pathlib import Path

import torch

from .tiny_blip import WORDS

QUESTION_WORDS = "What does the image describe ? Describe in detail what is shown with a paragraph text".split()


def build_florence(folder: Path, seed: int = 0) -> Path:
    """Four vision stages of width 8 to 64 on 64 pixels, a BART of width 32, and a vocabulary of some forty words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
        PreTrainedTokenizerFast,
    )

    folder.mkdir(parents=True)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<image>"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*special, *WORDS, *QUESTION_WORDS]))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    config = Florence2Config(
        vision_config={
            "depths": (1, 1, 1, 1), "embed_dim": (8, 16, 32, 64), "num_heads": (1, 2, 2, 2), "num_groups": (1, 2, 2, 2),
            "window_size": 4, "projection_dim": 32, "max_position_embeddings": 8, "initializer_range": 0.5, "drop_path_rate": 0.0,
        },
        text_config={
            "model_type": "bart", "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
            "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": len(vocabulary),
            "max_position_embeddings": 64, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
            "forced_eos_token_id": None, "init_std": 0.5,
        },
        image_token_id=vocabulary["<image>"],
        bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Florence2ForConditionalGeneration(config)
    model.generation_config.forced_eos_token_id = None
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False)
    # 64 pixels are 2 x 2 cells after four stages; their mean over the cells is one token more.
    images.image_seq_length = 5
    Florence2Processor(images, tokenizer).save_pretrained(folder)
    return folder
