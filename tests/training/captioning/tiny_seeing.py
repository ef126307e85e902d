"""Picture-to-text models of many kinds, so small that a test can build them; random weights, real files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from .tiny_blip import WORDS

QUESTION_WORDS = "What is this ? user assistant USER ASSISTANT system Describe caption en An image".split()
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<image>", "<end>")
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
PARTS = (
    "{% for message in messages %}{{ message['role'] }} : {% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "MARK{% else %}{{ part['text'] }}{% endif %}{% endfor %}<end> {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
"""A chat template as most kinds have it."""
JOY = (
    "<s>{% set ns = namespace(first=true) %}{% for message in messages %}{{ message['role'] }} : "
    "{% if ns.first and message['role'] == 'user' %}{% set ns.first = false %}MARK{{ message['content'].replace('MARK', '') }}"
    "{% else %}{{ message['content'] }}{% endif %}<end> {% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
)
"""One for plain text that puts the picture in front by itself, as JoyCaption's."""


def vocabulary(*more: str) -> dict[str, int]:
    return {word: i for i, word in enumerate(dict.fromkeys([*SPECIAL, *more, *WORDS, *QUESTION_WORDS, ":"]))}


def tokenizer(*more: str, **names: Any) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel(vocabulary(*more), unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        additional_special_tokens=["<image>", "<end>", *more], **names,
    )  # fmt: skip


def llama(kind: str = "llama", *more: str, **settings: Any) -> dict[str, Any]:
    return {
        "model_type": kind, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "vocab_size": len(vocabulary(*more)), "max_position_embeddings": 4096,
        "initializer_range": 0.5, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
        **settings,
    }  # fmt: skip


def clip(size: int = 32) -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def vision(kind: str, **settings: Any) -> dict[str, Any]:
    return {"model_type": kind, **VISION, "initializer_range": 0.5, "projection_dim": 32, **settings}


def llava(template: str | None = None, mark: str = "<image>") -> tuple[Any, Any]:
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    more = () if mark == "<image>" else (mark,)
    config = LlavaConfig(
        vision_config=vision("clip_vision_model"), text_config=llama("llama", *more), image_token_id=vocabulary(*more)[mark],
        image_seq_length=16,
    )  # fmt: skip
    template = template.replace("MARK", mark) if template else None
    processor = LlavaProcessor(
        clip(), tokenizer(*more), patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        image_token=mark, chat_template=template,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config), processor


def llava_next() -> tuple[Any, Any]:
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextImageProcessor, LlavaNextProcessor

    tiles = [[32, 64], [64, 32], [64, 64]]
    config = LlavaNextConfig(
        vision_config=vision("clip_vision_model"), text_config=llama(), image_token_id=4, image_grid_pinpoints=tiles,
        image_seq_length=16,
    )  # fmt: skip
    pictures = LlavaNextImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=tiles
    )
    processor = LlavaNextProcessor(
        pictures, tokenizer(), patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=PARTS.replace("MARK", "<image>"),
    )  # fmt: skip
    return LlavaNextForConditionalGeneration(config), processor


def llava_onevision() -> tuple[Any, Any]:
    import transformers

    tiles = [[32, 64], [64, 32], [64, 64]]
    config = transformers.LlavaOnevisionConfig(
        vision_config=vision("siglip_vision_model", vision_use_head=False), text_config=llama("qwen2", "<video>"),
        image_token_id=4, video_token_id=6, image_grid_pinpoints=tiles, vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip
    pictures = transformers.LlavaOnevisionImageProcessor(size={"height": 32, "width": 32}, image_grid_pinpoints=tiles)
    processor = transformers.LlavaOnevisionProcessor(
        pictures, tokenizer("<video>"), transformers.LlavaOnevisionVideoProcessor(), num_image_tokens=16,
        vision_feature_select_strategy="full", chat_template=PARTS.replace("MARK", "<image>"),
    )  # fmt: skip
    return transformers.LlavaOnevisionForConditionalGeneration(config), processor


def idefics3() -> tuple[Any, Any]:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessor, Idefics3Processor

    more = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *(
        f"<row_{r}_col_{c}>" for r in range(1, 4) for c in range(1, 4)
    ))  # fmt: skip
    config = Idefics3Config(
        vision_config=vision("idefics3_vision"), text_config=llama("llama", *more), image_token_id=4, scale_factor=2,
        pad_token_id=1,
    )  # fmt: skip
    pictures = Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    return Idefics3ForConditionalGeneration(config), Idefics3Processor(
        pictures, tokenizer(*more), image_seq_len=4, chat_template=PARTS.replace("MARK", "<image>")
    )


def paligemma() -> tuple[Any, Any]:
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration, PaliGemmaProcessor, SiglipImageProcessor

    marks = tuple(f"<loc{i:04}>" for i in range(1024)) + tuple(f"<seg{i:03}>" for i in range(128))
    words = tokenizer()
    words.add_tokens(list(marks))
    config = PaliGemmaConfig(
        vision_config=vision("siglip_vision_model", vision_use_head=False),
        text_config=llama("gemma", vocab_size=len(words) + 8), image_token_id=4, projection_dim=32, hidden_size=32,
        bos_token_id=0, pad_token_id=1, eos_token_id=2,
    )  # fmt: skip
    pictures = SiglipImageProcessor(size={"height": 32, "width": 32})
    pictures.image_seq_length = 16
    return PaliGemmaForConditionalGeneration(config), PaliGemmaProcessor(pictures, words)


def gemma3() -> tuple[Any, Any]:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3ImageProcessor, Gemma3Processor

    more = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")
    names = {"boi_token": more[0], "eoi_token": more[1], "image_token": more[2]}
    numbers = vocabulary(*more)
    config = Gemma3Config(
        vision_config=vision("siglip_vision_model", vision_use_head=False),
        text_config=llama("gemma3_text", *more, sliding_window=16, query_pre_attn_scalar=16),
        image_token_id=numbers[more[2]], boi_token_id=numbers[more[0]], eoi_token_id=numbers[more[1]], mm_tokens_per_image=4,
        initializer_range=0.5,
    )  # fmt: skip
    pictures = Gemma3ImageProcessor(size={"height": 32, "width": 32})
    words = tokenizer(*more, extra_special_tokens=names)
    model = Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.get_parameter("model.multi_modal_projector.mm_input_projection_weight"))  # zero when it is new
    model.get_input_embeddings().weight.data *= 0.02  # else it says its last word again
    return model, Gemma3Processor(pictures, words, image_seq_length=4, chat_template="<s>" + PARTS.replace("MARK", more[0]))


def git() -> tuple[Any, Any]:
    from transformers import BertTokenizerFast, GitConfig, GitForCausalLM, GitProcessor

    words = BertTokenizerFast(vocab={w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])})
    config = GitConfig(
        vision_config=vision("git_vision_model"), vocab_size=len(words), hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64, initializer_range=0.5, bos_token_id=2,
        eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    return GitForCausalLM(config), GitProcessor(clip(), words)


def vit_gpt2() -> tuple[Any, Any]:
    from transformers import GPT2Config, GPT2LMHeadModel, VisionEncoderDecoderModel, ViTConfig, ViTImageProcessor, ViTModel

    encoder = ViTModel(ViTConfig(**VISION, initializer_range=0.5))
    decoder = GPT2LMHeadModel(GPT2Config(
        vocab_size=len(vocabulary()), n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.5, is_decoder=True,
        add_cross_attention=True, bos_token_id=0, eos_token_id=2,
    ))  # fmt: skip
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 0, 1, 2
    return model, (ViTImageProcessor(size={"height": 32, "width": 32}), tokenizer())


KINDS: Mapping[str, Callable[[], tuple[Any, Any]]] = {
    "llava": llava,
    "joy": lambda: llava(JOY, "<|reserved_special_token_69|>"),
    "llava-next": llava_next,
    "llava-onevision": llava_onevision,
    "idefics3": idefics3,
    "paligemma": paligemma,
    "gemma3": gemma3,
    "git": git,
    "vit-gpt2": vit_gpt2,
}


def build(folder: Path, kind: str, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    model, processor = KINDS[kind]()
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    for part in processor if isinstance(processor, tuple) else (processor,):
        part.save_pretrained(folder)
    return folder
