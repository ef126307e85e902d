"""Table of model families: what is known of each beyond what the host tells. Nothing here computes with tensors.

What the host tells is asked from the host: what the network predicts, its latents' channels and frames, which conditioning it
takes, the names of its layers. Here stands what it cannot know, since it never trains.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

FEW_STEPS = re.compile(
    r"(?<![a-z])(turbo|schnell|lightning|hyper(?![-_ ]?real)|lcm|dmd2?|distill?(?:ed)?|klein|flash(?![-_ ]?photo)|sprint|nitro"
    r"|rapid|caus ?vid|fusion ?x|lightx2v|tcd|self[-_ ]?forcing|(?<=i1[-_ ])fast)(?![a-z])"
    r"|(?<![a-z\d])([12468][-_ ]?steps?)(?![a-z])",
    re.IGNORECASE,
)
"""Words in a file's name that stand for a model that draws in few steps."""
UNDONE = re.compile(r"(?<![a-z])(?:de|un|not)[-_ ]?(?:distill?(?:ed)?|turbo)(?![a-z])", re.IGNORECASE)
"""Words that stand for one out of which that was taken again."""
OF_GUIDANCE = re.compile(
    r"(?<![a-z])(?:cfg|guidance)[-_ ]?distill?(?:ed)?(?![a-z])|klein[-_ ]?(?:\d+b[-_ ]?)?base|base[-_ ]?(?:\d+b[-_ ]?)?klein",
    re.IGNORECASE,
)
"""Words of models that draw in as many steps as others."""
ASSISTANT = re.compile(
    r"(?<![a-z])(training[-_ ]?adapter|(?:training[-_ ]?)?assistant|(?:de|un)[-_ ]?(?:distill?(?:ed|ation)?|turbo))"
    r"(?![a-z])",
    re.IGNORECASE,
)
"""Words in a LoRA's name that stand for one which takes the few steps out of a model while another LoRA is trained on it."""
NOT_SCHNELL = re.compile(r"(?<![a-z])(ovis|libre[-_ ]?flux|open[-_ ]?flux|flex)", re.IGNORECASE)
"""Words in the names of models that have Flux.1 schnell's layers and draw in as many steps as others."""
EDIT = re.compile(r"(?<![a-z])(kontext|edit(?:ing)?)(?![a-z])", re.IGNORECASE)
"""Words in a file's name that stand for a model that makes pictures out of others."""
HALF = re.compile(r"(?:(?<![A-Za-z])(?i:(high|low))|(High|Low))[-_. ]?(?i:noise)(?![a-z])")
"""Words in a file's name that stand for one of two models which share the levels of noise between them."""
WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
"""Where one word of a name like ``dreamXLTurbo`` ends."""


def few_steps_word(file_name: str) -> str:
    """What in a model's file name says, as far as names do, that it was distilled for few steps; empty if nothing does."""
    name = WORDS.sub(" ", file_name)
    found = None if UNDONE.search(file_name) or UNDONE.search(name) else FEW_STEPS.search(OF_GUIDANCE.sub(" ", name))
    return found[0].lower() if found else ""


def assistant_word(lora_name: str) -> str:
    """What in a LoRA's name says, as far as names do, that it is laid on a distilled model only for training; empty if nothing
    does."""
    found = ASSISTANT.search(WORDS.sub(" ", lora_name))
    return found[0].lower() if found else ""


def noise_half(file_name: str) -> str:
    """``high`` or ``low`` where a model's file name says that it draws only the noisy or only the clear steps, as the two halves
    of a Wan 2.2 14B do; empty if nothing does, or both."""
    found = {(one[1] or one[2]).lower() for one in HALF.finditer(file_name)}
    return found.pop() if len(found) == 1 else ""


def seems_schnell(family: str, file_name: str) -> bool:
    """Whether a model has Flux.1 schnell's layers, and no name of those others that have them."""
    name = WORDS.sub(" ", file_name)
    return family == "FluxSchnell" and not any(pattern.search(name) for pattern in (NOT_SCHNELL, UNDONE))


def edit_word(file_name: str) -> str:
    """What in a model's file name says, as far as names do, that it edits pictures; empty if nothing does."""
    found = EDIT.search(WORDS.sub(" ", file_name))
    return found[0].lower() if found else ""


LARGEST_MU = 30.0
"""Here all levels are the highest already; beyond, the numbers of very long films would be too large to be reckoned with."""


@dataclass(frozen=True)
class BySize:
    """A shift that grows with the picture or the film: k = e^mu with mu linear in the number of tokens, of all frames."""

    patch: int = 2
    """Latent cells of a token in each direction."""
    low: float = 0.5
    """mu at 256 tokens."""
    high: float = 1.15
    """mu at ``most`` tokens."""
    most: int = 4096

    def factor(self, latent_size: tuple[int, ...]) -> float:
        """k for a latent of ([frames,] height, width) cells."""
        tokens = math.prod(latent_size) / self.patch**2
        mu = self.low + (self.high - self.low) * (tokens - 256) / (self.most - 256)
        return math.exp(min(mu, LARGEST_MU))


@dataclass(frozen=True)
class Text:
    """What a family's text encoders give for a caption, for reckoning memory."""

    tokens: int
    """As many as the host pads to, or a caption's usual length."""
    width: int
    """Of published models; the network's own settings are asked first."""
    pooled: int = 0
    """Width of the pooled vector; 0 where there is none."""
    seen: int = 0
    """Tokens of a control picture; 0 where the encoders see none."""


Shift = float | BySize
Levels = Literal["logit-normal", "shifted", "uniform"]

# Beginnings of a layer's name in files, in order of preference.
DIFFUSERS_UNET = ("lora_unet_down_blocks_", "lora_unet_mid_block_", "lora_unet_up_blocks_", "lora_unet_")
KOHYA = ("lora_unet_",)
PEFT = ("diffusion_model.",)

BESIDE = (
    "is an inpainting, edit, control or upscaling model: besides the noise it reads a picture or a mask, which training does not "
    "give it. Load the text-to-image model of its kind; the LoRA works in this one too."
)
MOTION = "is a video model that begins with a picture, so that a picture is no training for it. Load the text-to-video model."
NO_PICTURE = "makes no pictures."


@dataclass(frozen=True)
class Family:
    """How one family is trained."""

    levels: Levels = "logit-normal"
    """The noise levels that ``auto`` takes of a flow model; eps and v models take all their timesteps alike."""
    shift: Shift = 3.0
    """Shift of the levels where they are ``shifted`` and no number is given."""
    guidance: float | None = None
    """Guidance value that guidance-distilled networks are usually given in training; None leaves it to the host."""
    key_format: tuple[str, ...] = PEFT
    """How the layers are called in the file."""
    untrainable: str = ""
    """Layers that no gradient can reach, as a pattern in which ``LAST`` stands for the number of the last block."""
    edits: bool = False
    """Its networks read control pictures beside the noise, or do in models of the same shape that were trained for it."""
    always_edits: bool = False
    """All its models read control pictures, whatever they are called."""
    controls_as_large: bool = False
    """Control pictures are brought to the size of the picture that they are shown beside."""
    controls_in_shapes: bool = False
    """Control pictures are cut to the nearest of fixed shapes."""
    edit_method: str = ""
    """How a network tells control pictures from its own, where the host leaves that to a node."""
    of_controls: str = ""
    """Layers that only control pictures reach, as a pattern."""
    refused: str = ""
    """Why it cannot be trained, as the end of a sentence that begins with the family's name; empty where it can."""
    blank_beside: bool = False
    """Its network reads a second picture as a matter of course, and an empty one is right for making pictures from text."""
    square: int = 1
    """Pixels of which a picture's sides have to be multiples for the network, beside those that a cell of the latent covers."""
    films: bool = False
    """Its networks draw films; others whose latents have frames draw pictures of one frame."""
    told_rate: bool = False
    """Its network is told a clip's frames a second."""
    text: Text | None = None
    """None where its kinds differ too much."""
    reads_tokens: str = ""
    """The part of a text that holds its words as numbers, where the network reads them itself."""
    known: bool = True
    """False for a family that this table does not have."""

    def without_untrainable(self, names: Iterable[str], controls: bool = False) -> list[str]:
        """Those of a network's layers that can learn something, in their order; ``controls``: it is shown control pictures."""
        every = list(names)
        if self.of_controls and not controls:
            unseen = re.compile(self.of_controls)
            every = [name for name in every if not unseen.search(name)]
        if not self.untrainable:
            return every
        numbers = [int(found[1]) for name in every for found in re.finditer(r"^\w*blocks\.(\d+)\.", name)]
        pattern = re.compile(self.untrainable.replace("LAST", str(max(numbers, default=0))))
        return [name for name in every if not pattern.search(name)]


UNKNOWN = Family(known=False)
SD = Family(key_format=DIFFUSERS_UNET, text=Text(77, 768))
SDXL = Family(key_format=KOHYA, text=Text(77, 2048, 1280))
FLUX = Family("shifted", BySize(), guidance=1.0, key_format=KOHYA, edits=True, text=Text(256, 4096, 768))
T5 = Text(256, 4096)
# The text's stream ends with the last block: there only its keys and values are heard by the picture.
TEXT_ENDS = (
    r"^(transformer|double)_blocks\.LAST\.(txt_mlp\.|attn\.(to_add_out|add_q_proj|txt_attn_proj)$)"
    r"|^patch_blocks\.LAST\.(mlp_y\.|attn\.proj_y$)"
)
VISION = r"^vision_in\."  # reads what a vision model sees in the picture to begin with
REFERENCE = r"^ref_image_"  # read a picture to be edited
REFUSED_BESIDE, REFUSED_MOTION, REFUSED_OTHER = (Family(refused=why) for why in (BESIDE, MOTION, NO_PICTURE))


def _table() -> dict[str, Family]:
    """By the host's name of the family. Levels and shifts are those of the established trainers (kohya's sd-scripts and
    musubi-tuner), or of the model's authors where those name none."""
    return {
        **dict.fromkeys(("SD15", "SD20", "SD21UnclipL", "SD21UnclipH"), SD),
        **dict.fromkeys(("SDXL", "SDXLRefiner", "SSD1B", "Segmind_Vega", "KOALA_700M", "KOALA_1B"), SDXL),
        "SD3": Family(key_format=KOHYA, text=Text(154, 4096, 2048)),
        "AuraFlow": Family(text=Text(256, 2048)),
        **dict.fromkeys(("PixArtAlpha", "PixArtSigma"), Family(text=T5)),
        **dict.fromkeys(("HunyuanDiT", "HunyuanDiT1"), Family()),
        "Flux": FLUX,
        "FluxSchnell": FLUX,
        "LongCatImage": Family("shifted", BySize(), edits=True),
        "Flux2": Family("shifted", BySize(patch=1), guidance=1.0, edits=True, always_edits=True, text=Text(512, 15360)),
        # Its own guidance, 0, is the host's too.
        "Chroma": Family(text=T5),
        "ChromaRadiance": Family(text=T5),
        "HunyuanImage21": Family("shifted", 5.0, guidance=1.0, text=Text(128, 3584)),
        "HunyuanVideo": Family("shifted", 7.0, guidance=1.0, films=True),
        # Its text-to-video form reads a picture to begin with as well, empty where there is none.
        "HunyuanVideo15": Family("shifted", 2.0, guidance=1.0, untrainable=VISION, blank_beside=True, films=True),
        "QwenImage": Family(
            "shifted", BySize(high=0.9, most=8192), untrainable=TEXT_ENDS, edits=True,
            text=Text(128, 3584, seen=196),
        ),
        "MageFlow": Family("shifted", 6.0, untrainable=TEXT_ENDS, edits=True, controls_as_large=True),
        "JoyImage": Family("shifted", 1.5, untrainable=TEXT_ENDS, edits=True, controls_in_shapes=True),
        "Lens": Family("shifted", BySize(patch=1), untrainable=TEXT_ENDS),
        "Krea2": Family("shifted", BySize(most=6400), edits=True, edit_method="index", text=Text(128, 30720)),
        "Lumina2": Family("shifted", BySize(), text=Text(128, 2304)),
        "ZImage": Family("shifted", 2.0, text=Text(128, 2560)),
        "ZImagePixelSpace": Family("shifted", 2.0),
        "Kandinsky5": Family("shifted", 5.0, blank_beside=True, films=True),
        "Kandinsky5Image": Family("shifted", 5.0),
        **dict.fromkeys(("WAN21_T2V", "WAN22_T2V"), Family("shifted", 3.0, films=True, text=Text(512, 4096))),
        "Anima": Family(text=Text(512, 1024)),
        "CosmosT2IPredict2": Family(text=Text(512, 1024)),
        "HiDream": Family("shifted", 3.0),
        **dict.fromkeys(("Omnigen2", "Boogu"), Family(of_controls=REFERENCE, edits=True, always_edits=True)),
        "ErnieImage": Family("shifted", 3.0),
        "Ideogram4": Family(),
        # The host's own shift in sampling.
        "PixelDiTT2I": Family("shifted", 4.0, untrainable=TEXT_ENDS, text=Text(300, 2304)),
        # The host's own shift in sampling.
        "HiDreamO1": Family("shifted", 3.0, of_controls=r"^visual\.", square=32, reads_tokens="text_input_ids"),
        # mu of Lightricks' own trainer: 0.95 at 1024 tokens, 2.05 at 4096, of all frames together and without an end.
        "LTXV": Family("shifted", BySize(patch=1, low=0.675, high=2.05), square=32, films=True, told_rate=True, text=T5),
        "GenmoMochi": Family("uniform", films=True, text=T5),
        **dict.fromkeys(
            (
                "FluxInpaint", "SD15_instructpix2pix", "SDXL_instructpix2pix", "SD_X4Upscaler", "LotusD", "Stable_Zero123",
                "HunyuanImage21Refiner", "HunyuanVideo15_SR_Distilled", "SeedVR2", "PiD",
            ),
            REFUSED_BESIDE,
        ),
        **dict.fromkeys(
            (
                "HunyuanVideoI2V", "HunyuanVideoSkyreelsI2V", "CosmosI2V", "CosmosI2VPredict2", "WAN21_I2V", "WAN21_FunControl2V",
                "WAN21_Vace", "WAN21_Camera", "WAN22_Camera", "WAN22_S2V", "WAN21_HuMo", "WAN22_Animate", "WAN21_FlowRVS",
                "WAN21_SCAIL", "WAN21_SCAIL2", "WAN22_WanDancer", "CogVideoX_I2V", "CogVideoX_Inpaint", "SVD_img2vid", "SV3D_u",
                "SV3D_p",
            ),
            REFUSED_MOTION,
        ),
        **dict.fromkeys(
            (
                "StableAudio", "StableAudio3", "ACEStep", "ACEStep15", "Hunyuan3Dv2mini", "Hunyuan3Dv2", "Hunyuan3Dv2_1",
                "TripoSplat", "RT_DETR_v4", "SAM3", "SAM31", "DepthAnything3",
            ),
            REFUSED_OTHER,
        ),
        **dict.fromkeys(
            ("Stable_Cascade_C", "Stable_Cascade_B"),
            Family(refused="predicts on a noise scale of its own (that of Würstchen), which is not trained here."),
        ),
        "CosmosT2V": Family(refused="predicts on a noise scale of its own (EDM's), which is not trained here."),
        "CogVideoX_T2V": Family(
            refused="is drawn with by a sampler of its own alone (VOID's): the others give it noise of another strength than it "
            "knows, so that no sample could be drawn while it is trained."
        ),
        "WAN21_CausalAR_T2V": Family(
            refused="is a video model that draws frame after frame, each beside those before, which is not trained here. Load "
            "Wan 2.1."
        ),
        **dict.fromkeys(
            ("LTXAV", "MiniMaxH3"),
            Family(refused="is a video model that makes the sound together with the picture, which is not trained here."),
        ),
    }  # fmt: skip


FAMILIES: Mapping[str, Family] = _table()


def family_named(name: str) -> Family:
    """What is known of the family that the host calls ``name``; sound defaults for an unknown one."""
    return FAMILIES.get(name, UNKNOWN)


def remark(name: str) -> str:
    """One sentence for the person about a family that this table does not have; else nothing."""
    if family_named(name).known:
        return ""
    return (
        f"{name} is a model family that LoRA Atelier has no notes on: its noise levels are the usual ones and its file is in "
        "PEFT's format; look at the samples early."
    )
