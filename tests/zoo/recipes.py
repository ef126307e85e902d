"""How to make a tiny model of each family: the settings that the host's detection would read from such a file, and a text.

Settings are those of the published models with fewer and narrower layers. ``loads`` says whether the host's detection recognises
a file of this size; where it insists on the published width, the model is made from the host's own class instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TOKENS = 7
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Recipe:
    name: str
    """What people call the model."""
    family: str
    """What the host calls it."""
    config: Mapping[str, Any]
    """The network's settings."""
    text: Shapes
    """``cond`` and the extras of an encoded text, as long as the host would pad it.

    Names that begin with ``attention_mask`` are all ones, those that end in ``_ids`` whole numbers.
    """
    loads: bool = True
    cells: tuple[int, int] = (8, 8)
    """Height and width of the latents that are tried; where only one token is left of them, queries and keys learn nothing."""
    marks: tuple[str, ...] = ()
    """Names of empty tensors by which the host knows a variant."""
    constant: Mapping[str, float] = field(default_factory=dict)
    """Standard deviation of single tensors that the host's detection looks at."""
    ends: Mapping[str, int] = field(default_factory=dict)
    """The whole number at the end of such a part of the text."""
    centred: bool = False
    """Its norms multiply by one more than their weights."""
    large: bool = False
    """Too large or slow for every run."""


def unet(context: int, **settings: Any) -> dict[str, Any]:
    """An SD-type UNet; two levels with one block each if not said otherwise."""
    return {
        "image_size": 32, "use_checkpoint": False, "use_spatial_transformer": True, "legacy": False, "adm_in_channels": None,
        "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [1, 1], "channel_mult": [1, 1],
        "transformer_depth": [1, 1], "transformer_depth_output": [1, 0, 0, 1], "transformer_depth_middle": 1,
        "use_linear_in_transformer": False, "context_dim": context, "use_temporal_resblock": False,
        "use_temporal_attention": False, **settings,
    }  # fmt: skip


def sdxl(depth: list[int], vector: int = 2816, context: int = 2048, **settings: Any) -> dict[str, Any]:
    """A UNet of the SDXL kind with these depths going down and as few transformers as possible going up."""
    levels, each = (3, len(depth) // 3) if len(depth) % 3 == 0 else (4, len(depth) // 4)
    up = [0] * (levels * (each + 1))
    up[each + 1] = 1
    return unet(
        context, channel_mult=[1] * levels, num_res_blocks=[each] * levels, transformer_depth=depth, transformer_depth_output=up,
        use_linear_in_transformer=True, num_classes="sequential", adm_in_channels=vector, **settings,
    )  # fmt: skip


def narrow(context: int, vector: int | None = None, **settings: Any) -> dict[str, Any]:
    """A UNet as of SD 2.x and SDXL, a fifth as wide."""
    classes = {} if vector is None else {"num_classes": "sequential", "adm_in_channels": vector}
    return unet(context, model_channels=64, use_linear_in_transformer=True, **classes, **settings)


def flux(**settings: Any) -> dict[str, Any]:
    return {
        "image_model": "flux", "axes_dim": [16, 56, 56], "num_heads": 1, "mlp_ratio": 4.0, "theta": 10000, "out_channels": 16,
        "qkv_bias": True, "txt_ids_dims": [], "in_channels": 16, "hidden_size": 128, "context_in_dim": 64, "patch_size": 2,
        "vec_in_dim": 32, "depth": 2, "depth_single_blocks": 2, "guidance_embed": True, "yak_mlp": False, "txt_norm": False,
        **settings,
    }  # fmt: skip


def flux2(**settings: Any) -> dict[str, Any]:
    return flux(
        image_model="flux2", axes_dim=[32] * 4, mlp_ratio=3.0, theta=2000, out_channels=128, in_channels=128, patch_size=1,
        global_modulation=True, mlp_silu_act=True, qkv_bias=False, ops_bias=False, default_ref_method="index",
        ref_index_scale=10.0, txt_ids_dims=[3], vec_in_dim=None, **settings,
    )  # fmt: skip


def chroma(**settings: Any) -> dict[str, Any]:
    given = flux(
        image_model="chroma", in_channels=64, out_channels=64, in_dim=64, out_dim=128, hidden_dim=64, n_layers=2, vec_in_dim=None,
    )  # fmt: skip
    return {name: value for name, value in given.items() if name not in ("guidance_embed", "yak_mlp", "txt_norm")} | settings


def hunyuan(**settings: Any) -> dict[str, Any]:
    return {
        "image_model": "hunyuan_video", "in_channels": 64, "patch_size": [1, 1], "out_channels": 64, "vec_in_dim": None,
        "axes_dim": [64, 64], "meanflow": False, "context_in_dim": 64, "hidden_size": 128, "mlp_ratio": 4.0, "num_heads": 1,
        "depth": 2, "depth_single_blocks": 2, "theta": 256, "qkv_bias": True, "byt5": False, "guidance_embed": False,
        "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False, **settings,
    }  # fmt: skip


def mmdit(**settings: Any) -> dict[str, Any]:
    depth = 2
    return {
        "in_channels": 16, "patch_size": 2, "out_channels": 16, "depth": depth, "input_size": None, "adm_in_channels": 2048,
        "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 64 * depth}},
        "num_patches": 256, "pos_embed_max_size": 16, "qk_norm": "rms", "pos_embed_scaling_factor": None,
        "x_block_self_attn_layers": [], **settings,
    }  # fmt: skip


def pixart(**settings: Any) -> dict[str, Any]:
    return {
        "image_model": "pixart_sigma", "num_heads": 4, "patch_size": 2, "hidden_size": 96, "in_channels": 4, "depth": 2,
        "model_max_length": 120, "input_size": 64, "pe_interpolation": 1, "micro_condition": False, "caption_channels": 64,
        **settings,
    }  # fmt: skip


def wan(**settings: Any) -> dict[str, Any]:
    return {
        "image_model": "wan2.1", "model_type": "t2v", "dim": 128, "out_dim": 16, "num_heads": 1, "ffn_dim": 256, "num_layers": 2,
        "patch_size": (1, 2, 2), "freq_dim": 256, "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6,
        "in_dim": 16, **settings,
    }  # fmt: skip


def predict2(**settings: Any) -> dict[str, Any]:
    """Cosmos-Predict2; where the width is not one of the published ones, the host makes 10 blocks of 16 heads."""
    return {
        "image_model": "cosmos_predict2", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16,
        "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 128, "num_blocks": 2, "num_heads": 2,
        "concat_padding_mask": True, "crossattn_emb_channels": 1024, "pos_emb_cls": "rope3d", "pos_emb_learnable": True,
        "pos_emb_interpolation": "crop", "min_fps": 1, "max_fps": 30, "use_adaln_lora": True, "adaln_lora_dim": 32,
        "extra_per_block_abs_pos_emb": False, "rope_h_extrapolation_ratio": 4.0, "rope_w_extrapolation_ratio": 4.0,
        "rope_t_extrapolation_ratio": 1.0, "extra_h_extrapolation_ratio": 1.0, "extra_w_extrapolation_ratio": 1.0,
        "extra_t_extrapolation_ratio": 1.0, "rope_enable_fps_modulation": False, **settings,
    }  # fmt: skip


def lumina(**settings: Any) -> dict[str, Any]:
    return {
        "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 96, "cap_feat_dim": 64, "n_layers": 2,
        "n_refiner_layers": 1, "qk_norm": True, "n_heads": 4, "n_kv_heads": 2, "axes_dims": [8, 8, 8],
        "axes_lens": [300, 512, 512], "rope_theta": 10000.0, "ffn_dim_multiplier": 1.0, "multiple_of": 32, **settings,
    }  # fmt: skip


def kandinsky(**settings: Any) -> dict[str, Any]:
    return {
        "image_model": "kandinsky5", "model_dim": 128, "axes_dims": (16, 24, 24), "time_dim": 32, "ff_dim": 128,
        "visual_embed_dim": 64, "num_text_blocks": 1, "num_visual_blocks": 2, "in_text_dim": 64, "in_text_dim2": 32, **settings,
    }  # fmt: skip


def cond(width: int, tokens: int = TOKENS, **extras: tuple[int, ...]) -> Shapes:
    return {"cond": (1, tokens, width), **extras}


SDXL_TEXT = cond(2048, 77, pooled_output=(1, 1280))
RECIPES = (
    Recipe("SD 1.5", "SD15", unet(768), cond(768, 77)),
    Recipe("SD 2.x", "SD20", narrow(1024), cond(1024, 77), loads=False),
    Recipe("SD 2.x, from a file", "SD20", unet(1024, use_linear_in_transformer=True), cond(1024, 77), large=True),
    Recipe(
        "SD 2.x, v-prediction, from a file", "SD20",
        unet(
            1024, use_linear_in_transformer=True, channel_mult=[1] * 4, num_res_blocks=[2] * 4,
            transformer_depth=[1] + [0] * 7, transformer_depth_output=[1] + [0] * 11,
        ),
        cond(1024, 77), cells=(16, 16), constant={"output_blocks.11.1.transformer_blocks.0.norm1.bias": 0.2}, large=True,
    ),
    Recipe("SD 2.1 unCLIP L", "SD21UnclipL", narrow(1024, 1536), cond(1024, 77), loads=False),
    Recipe("SD 2.1 unCLIP H", "SD21UnclipH", narrow(1024, 2048), cond(1024, 77), loads=False),
    Recipe("SDXL", "SDXL", narrow(2048, 2816), SDXL_TEXT, loads=False),
    Recipe("SDXL, v-prediction", "SDXL", narrow(2048, 2816), SDXL_TEXT, loads=False, marks=("v_pred",)),
    Recipe("SDXL, from a file", "SDXL", sdxl([0, 0, 2, 2, 10, 10]), SDXL_TEXT, large=True),
    Recipe("SDXL refiner", "SDXLRefiner", narrow(1280, 2560), cond(1280, 77, pooled_output=(1, 1280)), loads=False),
    Recipe(
        "SDXL refiner, from a file", "SDXLRefiner", sdxl([0, 0, 4, 4, 4, 4, 0, 0], 2560, 1280, model_channels=384),
        cond(1280, 77, pooled_output=(1, 1280)), cells=(16, 16), large=True,
    ),
    Recipe("SSD-1B", "SSD1B", sdxl([0, 0, 2, 2, 4, 4]), SDXL_TEXT, large=True),
    Recipe("Segmind Vega", "Segmind_Vega", sdxl([0, 0, 1, 1, 2, 2]), SDXL_TEXT, large=True),
    Recipe("KOALA 700M", "KOALA_700M", sdxl([0, 2, 5]), SDXL_TEXT, large=True),
    Recipe("KOALA 1B", "KOALA_1B", sdxl([0, 2, 6]), SDXL_TEXT, large=True),
    Recipe("SD 3", "SD3", mmdit(), cond(4096, pooled_output=(1, 2048))),
    Recipe("SD 3.5 medium", "SD3", mmdit(x_block_self_attn_layers=[0]), cond(4096, pooled_output=(1, 2048))),
    Recipe(
        "AuraFlow", "AuraFlow",
        {"max_seq": 64, "cond_seq_dim": 2048, "n_double_layers": 1, "n_layers": 2, "dim": 96, "n_heads": 4, "global_conddim": 96},
        cond(2048), loads=False,
    ),
    Recipe(
        "PixArt alpha", "PixArtAlpha", pixart(image_model="pixart_alpha", micro_condition=True), cond(64), loads=False,
        cells=(34, 34),
    ),
    Recipe("PixArt sigma", "PixArtSigma", pixart(), cond(64), loads=False, cells=(34, 34)),
    Recipe(
        "PixArt sigma, full width", "PixArtSigma",
        pixart(num_heads=16, hidden_size=1152, depth=1, caption_channels=4096), cond(4096), cells=(34, 34), large=True,
    ),
    Recipe(
        "HunyuanDiT 1.2", "HunyuanDiT", {"image_model": "hydit", "depth": 4, "hidden_size": 128},
        cond(1024, 77, attention_mask=(1, 77), conditioning_mt5xl=(1, 256, 2048), attention_mask_mt5xl=(1, 256)),
    ),
    Recipe(
        "HunyuanDiT 1.0", "HunyuanDiT1",
        {"image_model": "hydit1", "depth": 4, "hidden_size": 128, "size_cond": True, "use_style_cond": True},
        cond(1024, 77, attention_mask=(1, 77), conditioning_mt5xl=(1, 256, 2048), attention_mask_mt5xl=(1, 256)), loads=False,
    ),
    Recipe("Flux dev", "Flux", flux(), cond(64, pooled_output=(1, 32))),
    Recipe("Flux schnell", "FluxSchnell", flux(guidance_embed=False), cond(64, pooled_output=(1, 32))),
    Recipe(
        "Ovis-Image", "FluxSchnell",
        flux(guidance_embed=False, yak_mlp=True, txt_norm=True, vec_in_dim=None, txt_ids_dims=[1, 2]), cond(64),
    ),
    Recipe(
        "LongCat-Image", "LongCatImage",
        flux(guidance_embed=False, vec_in_dim=None, context_in_dim=3584, txt_ids_dims=[1, 2]), cond(3584),
    ),
    Recipe("Flux.2 dev", "Flux2", flux2(), cond(64, 512)),
    Recipe("Flux.2 klein", "Flux2", flux2(guidance_embed=False), cond(64, 512)),
    Recipe("Chroma", "Chroma", chroma(), cond(64), loads=False),
    Recipe(
        "Chroma Radiance", "ChromaRadiance",
        {
            **chroma(), "image_model": "chroma_radiance", "in_channels": 3, "out_channels": 3, "patch_size": 8,
            "nerf_hidden_size": 16, "nerf_mlp_ratio": 2, "nerf_depth": 2, "nerf_max_freqs": 4, "nerf_tile_size": 512,
            "nerf_final_head_type": "conv", "nerf_embedder_dtype": None, "use_x0": False, "use_sequential_txt_ids": False,
        },
        cond(64), loads=False, cells=(32, 32),
    ),
    Recipe("HunyuanImage 2.1", "HunyuanImage21", hunyuan(), cond(64)),
    Recipe(
        "HunyuanImage 2.1 with ByT5", "HunyuanImage21", hunyuan(byt5=True),
        cond(64, conditioning_byt5small=(1, 5, 1472)), large=True,
    ),
    Recipe("HunyuanImage 2.1 distilled", "HunyuanImage21", hunyuan(guidance_embed=True, meanflow=True), cond(64)),
    Recipe(
        "HunyuanVideo, one frame", "HunyuanVideo",
        hunyuan(
            in_channels=16, out_channels=16, patch_size=[1, 2, 2], axes_dim=[16, 56, 56], vec_in_dim=768, guidance_embed=True
        ),
        cond(64, pooled_output=(1, 768)),
    ),
    Recipe(
        "HunyuanVideo 1.5, one frame", "HunyuanVideo15",
        hunyuan(
            in_channels=65, out_channels=32, patch_size=[1, 1, 1], axes_dim=[16, 56, 56], vision_in_dim=1152, meanflow_sum=True,
            use_cond_type_embedding=True,
        ),
        cond(64),
    ),
    Recipe("Wan 2.1, one frame", "WAN21_T2V", wan(), cond(4096)),
    Recipe("Wan 2.2 5B, one frame", "WAN22_T2V", wan(in_dim=48, out_dim=48), cond(4096)),
    Recipe(
        "Qwen-Image", "QwenImage",
        {
            "image_model": "qwen_image", "in_channels": 64, "num_layers": 2, "num_attention_heads": 1, "joint_attention_dim": 64,
        },
        cond(64), loads=False,
    ),
    Recipe(
        "Mage-Flow", "MageFlow",
        {
            "image_model": "mage_flow", "in_channels": 128, "num_layers": 2, "num_attention_heads": 1, "joint_attention_dim": 64,
        },
        cond(64), loads=False,
    ),
    Recipe(
        "Cosmos-Predict2", "CosmosT2IPredict2", predict2(), cond(1024), loads=False,
    ),
    Recipe(
        "Cosmos-Predict2, from a file", "CosmosT2IPredict2",
        predict2(model_channels=256, num_blocks=10, num_heads=16, adaln_lora_dim=256), cond(1024), large=True,
    ),
    Recipe(
        "Anima", "Anima", predict2(image_model="anima"), cond(1024, t5xxl_ids=(9,), t5xxl_weights=(9,)), loads=False, large=True,
    ),
    Recipe(
        "JoyImage", "JoyImage",
        {
            "image_model": "joyimage", "in_channels": 16, "hidden_size": 128, "patch_size": [1, 2, 2], "num_layers": 2,
            "num_attention_heads": 1, "text_dim": 4096,
        },
        cond(4096),
    ),
    Recipe("Lumina 2", "Lumina2", lumina(), cond(64), loads=False),
    Recipe(
        "Z-Image", "ZImage",
        lumina(
            dim=256, n_heads=8, n_kv_heads=8, axes_dims=[8, 12, 12], z_image_modulation=True, time_scale=1000.0,
            pad_tokens_multiple=32,
        ),
        cond(64), loads=False,
    ),
    Recipe(
        "Z-Image, pixel space", "ZImagePixelSpace",
        lumina(
            image_model="zimage_pixel", dim=256, n_heads=8, n_kv_heads=8, axes_dims=[8, 12, 12], z_image_modulation=True,
            time_scale=1000.0, pad_tokens_multiple=32, patch_size=8, in_channels=3, decoder_in_channels=192,
            decoder_hidden_size=32, decoder_num_res_blocks=1, decoder_max_freqs=4,
        ),
        cond(64), loads=False, cells=(32, 32),
    ),
    Recipe("Kandinsky 5 image", "Kandinsky5Image", kandinsky(), cond(64, pooled_output=(1, 32)), loads=False),
    Recipe(
        "Kandinsky 5 video, one frame", "Kandinsky5", kandinsky(visual_embed_dim=132), cond(64, pooled_output=(1, 32)),
        loads=False,
    ),
    Recipe(
        "Krea 2", "Krea2",
        {
            "image_model": "krea2", "features": 256, "channels": 16, "patch": 2, "layers": 2, "heads": 2, "kvheads": 1,
            "txtlayers": 2, "txtdim": 64, "txtheads": 2, "txtkvheads": 2,
        },
        cond(128), loads=False, centred=True,
    ),
    Recipe(
        "Lens", "Lens",
        {
            "image_model": "lens", "in_channels": 128, "out_channels": 32, "num_layers": 2, "num_attention_heads": 2,
            "enc_hidden_dim": 64, "multi_layer_encoder_feature": True, "selected_layer_index": (0, 1),
        },
        cond(128),
    ),
    Recipe(
        "OmniGen 2", "Omnigen2",
        {
            "image_model": "omnigen2", "axes_dim_rope": [16, 16, 16], "axes_lens": [64, 64, 64], "ffn_dim_multiplier": None,
            "hidden_size": 96, "in_channels": 16, "multiple_of": 32, "norm_eps": 1e-5, "num_attention_heads": 2,
            "num_kv_heads": 1, "num_layers": 2, "num_refiner_layers": 1, "out_channels": None, "patch_size": 2,
            "text_feat_dim": 64, "timestep_scale": 1000.0,
        },
        cond(64, attention_mask=(1, TOKENS)), loads=False,
    ),
    Recipe(
        "Boogu", "Boogu",
        {
            "image_model": "boogu", "hidden_size": 96, "num_layers": 1, "num_double_stream_layers": 1, "num_refiner_layers": 1,
            "instruction_feat_dim": 64, "num_attention_heads": 2, "num_kv_heads": 1, "axes_dim_rope": (16, 16, 16),
            "axes_lens": (64, 64, 64), "multiple_of": 32,
        },
        cond(64, attention_mask=(1, TOKENS)), loads=False,
    ),
    Recipe(
        "ERNIE-Image", "ErnieImage",
        {
            "image_model": "ernie", "hidden_size": 128, "num_attention_heads": 1, "num_layers": 2, "ffn_hidden_size": 128,
            "text_in_dim": 64,
        },
        cond(64), loads=False,
    ),
    Recipe(
        "Ideogram 4", "Ideogram4",
        {
            "image_model": "ideogram4", "in_channels": 128, "num_layers": 2, "num_attention_heads": 1, "attention_head_dim": 128,
            "intermediate_size": 128, "adaln_dim": 32, "llm_features_dim": 64,
        },
        cond(64), loads=False,
    ),
    Recipe(
        "HiDream I1", "HiDream",
        {  # all experts: which of several a token goes to changes in leaps, of which there is no slope
            "image_model": "hidream", "attention_head_dim": 128, "axes_dims_rope": [64, 32, 32], "caption_channels": [64, 64],
            "max_resolution": [32, 32], "in_channels": 16, "llama_layers": [0, 1, 1], "num_attention_heads": 1,
            "num_routed_experts": 2, "num_activated_experts": 2, "num_layers": 1, "num_single_layers": 1, "out_channels": 16,
            "patch_size": 2, "text_emb_dim": 32,
        },
        cond(64, pooled_output=(1, 32), conditioning_llama3=(1, 2, TOKENS, 64)), loads=False,
    ),
    Recipe(
        "PixelDiT", "PixelDiTT2I",
        {
            "image_model": "pixeldit_t2i", "num_groups": 2, "hidden_size": 64, "pixel_hidden_size": 8,
            "pixel_attn_hidden_size": 32, "pixel_num_groups": 2, "patch_depth": 2, "pixel_depth": 1, "patch_size": 8,
            "txt_embed_dim": 64, "txt_max_length": 16,
        },
        cond(64), loads=False, cells=(32, 32),
    ),
    Recipe(
        "HiDream O1", "HiDreamO1",
        {
            "image_model": "hidream_o1",
            "text_config_overrides": {
                "vocab_size": 151680, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
                "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "rope_dims": [6, 5, 5],
            },
            "vision_config_overrides": {
                "hidden_size": 32, "num_heads": 1, "intermediate_size": 32, "depth": 1, "num_position_embeddings": 16,
                "deepstack_visual_indexes": (),
            },
        },
        {"cond": (1, TOKENS, 1), "text_input_ids": (1, TOKENS)}, loads=False, cells=(64, 96),
        ends={"text_input_ids": 151673},  # where it reads the level of noise
    ),
    Recipe(
        "LTX-Video, one frame", "LTXV",
        {
            "image_model": "ltxv", "num_layers": 2, "attention_head_dim": 4, "num_attention_heads": 32,
            "cross_attention_dim": 128,
        },
        cond(4096, attention_mask=(1, TOKENS)),
    ),
    Recipe(
        "Mochi, one frame", "GenmoMochi",
        {  # the network insists on 12288 numbers within each block
            "image_model": "mochi_preview", "depth": 2, "patch_size": 2, "num_heads": 2, "hidden_size_x": 96,
            "hidden_size_y": 64, "mlp_ratio_x": 128.0, "mlp_ratio_y": 4.0, "learn_sigma": False, "in_channels": 12,
            "qk_norm": True, "qkv_bias": False, "out_bias": True, "attn_drop": 0.0, "patch_embed_bias": True,
            "posenc_preserve_area": True, "timestep_mlp_bias": True, "attend_to_padding": False, "timestep_scale": 1000.0,
            "use_t5": True, "t5_feat_dim": 64, "t5_token_length": 256, "rope_theta": 10000.0,
        },
        cond(64, attention_mask=(1, TOKENS)), loads=False,
    ),
    # Those that have to be refused.
    Recipe("SD 1.5 inpainting", "SD15", unet(768, model_channels=64, in_channels=9), cond(768, 77), loads=False),
    Recipe(
        "SD 1.5 InstructPix2Pix", "SD15_instructpix2pix", unet(768, model_channels=64, in_channels=8), cond(768, 77), loads=False,
    ),
    Recipe("SDXL inpainting", "SDXL", narrow(2048, 2816, in_channels=9), SDXL_TEXT, loads=False),
    Recipe("SDXL InstructPix2Pix", "SDXL_instructpix2pix", narrow(2048, 2816, in_channels=8), SDXL_TEXT, loads=False),
    Recipe("Flux Fill", "FluxInpaint", flux(in_channels=96), cond(64, pooled_output=(1, 32))),
    Recipe("Flux Canny and Depth", "Flux", flux(in_channels=32), cond(64, pooled_output=(1, 32))),
    Recipe("Wan 2.1, from a picture", "WAN21_I2V", wan(model_type="i2v", in_dim=36), cond(4096)),
    Recipe(
        "HunyuanVideo, from a picture", "HunyuanVideoSkyreelsI2V",
        hunyuan(
            in_channels=32, out_channels=16, patch_size=[1, 2, 2], axes_dim=[16, 56, 56], vec_in_dim=768, guidance_embed=True
        ),
        cond(64, pooled_output=(1, 768)),
    ),
    Recipe("LOTUS", "LotusD", narrow(1024, 4, num_head_channels=64), cond(1024, 77), loads=False),
)  # fmt: skip
