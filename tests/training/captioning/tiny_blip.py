"""BLIP and BLIP-2 models so small that a test can build them; random weights, real files."""

from __future__ import annotations

import json
from pathlib import Path

import torch

WORDS = "a cat dog red blue photo of the on mat with hat . , ##s ##ing emoji face tree".split()


def _image_processor():
    from transformers import BlipImageProcessor

    return BlipImageProcessor(size={"height": 32, "width": 32})


def build_blip(folder: Path, seed: int = 0) -> Path:
    """A BLIP captioner with 2 + 2 layers of width 32 and a vocabulary of some twenty words."""
    from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration, BlipProcessor

    folder.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), bos_token="[DEC]")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BlipConfig(
        text_config={
            **small, "encoder_hidden_size": 32, "vocab_size": len(vocabulary), "max_position_embeddings": 64,
            "pad_token_id": 0, "bos_token_id": 5, "eos_token_id": 2, "sep_token_id": 3, "initializer_range": 0.5,
        },
        vision_config={**small, "image_size": 32, "patch_size": 8, "initializer_range": 0.5},
        projection_dim=16,
    )  # fmt: skip
    torch.manual_seed(seed)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    BlipProcessor(_image_processor(), tokenizer).save_pretrained(folder)
    return folder


def build_blip2(folder: Path, seed: int = 0) -> Path:
    """A BLIP-2 captioner: vision tower, query transformer and an OPT decoder of width 32."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, PreTrainedTokenizerFast

    folder.mkdir(parents=True)
    vocabulary = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<image>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Blip2Config(
        vision_config={**small, "image_size": 32, "patch_size": 8, "initializer_range": 0.5},
        qformer_config={
            **small, "encoder_hidden_size": 32, "vocab_size": 32, "max_position_embeddings": 32, "initializer_range": 0.5,
        },
        text_config={
            "model_type": "opt", "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "vocab_size": len(vocabulary), "max_position_embeddings": 128, "word_embed_proj_dim": 32,
            "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "init_std": 0.5,
        },
        initializer_range=0.5,
        num_query_tokens=4,
        image_token_index=vocabulary["<image>"],
    )  # fmt: skip
    torch.manual_seed(seed)
    Blip2ForConditionalGeneration(config).save_pretrained(folder)
    Blip2Processor(_image_processor(), tokenizer, num_query_tokens=4).save_pretrained(folder)
    return folder


def with_pickled_weights_only(folder: Path) -> Path:
    """Exchange the safetensors weights for a pickle, as old downloads have them."""
    from safetensors.torch import load_file

    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    return folder


def of_another_kind(folder: Path) -> Path:
    """A folder whose configuration names a model that is no captioner."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return folder
