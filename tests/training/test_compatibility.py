"""A VAE, CLIP, latent or conditioning of another model: told by its wire's name, before anything is encoded or written."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lora_atelier.tests.noise_pictures import noise_picture
from lora_atelier.training import compatibility, host, job, regularisation
from lora_atelier.training.config import LengthConfig, NetworkConfig, SubsetConfig, TrainingConfig
from lora_atelier.training.dataset import precomputed, scan
from lora_atelier.training.dataset.cache import TensorCache
from lora_atelier.training.dataset.samples import Dataset, Subset
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.estimate import preflight
from lora_atelier.training.grid import plan, render
from lora_atelier.training.runs import reader
from lora_atelier.training.runs.record import SavedLoRA

NO_PREVIEW = job.Preview("", "", 0, 1.0, "euler", "normal", 0)
CLIPS = [
    ("sd15", "sd3", "^clip: the text is encoded in vectors of 4096 numbers, and this SD15 model reads vectors of 768. Connect"),
    ("sd3", "sd15", "^clip: the text is encoded in vectors of 768 numbers, and this SD3 model reads vectors of 4096. Connect"),
    (
        "sdxl_unet",
        "sd15",
        "^clip: the text is encoded in vectors of 768 numbers, and this .* model reads vectors of 2048. Connect",
    ),
    (
        "sdxl_unet",
        "sd3",
        "^clip: the text is encoded in vectors of 4096 numbers, and this .* model reads vectors of 2048. Connect",
    ),
]
VAES = [
    ("sd15", "sd3", "^vae: its latent has 16 channels, and this SD15 model works on one with 4. Connect the VAE"),
    ("sd3", "sd15", "^vae: its latent has 4 channels, and this SD3 model works on one with 16. Connect the VAE"),
    ("sdxl_unet", "sd3", "^vae: its latent has 16 channels, and this .* model works on one with 4. Connect the VAE"),
]


@pytest.fixture(autouse=True)
def fresh_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "runs_folder", lambda: tmp_path / "runs")
    monkeypatch.setattr(host, "loras_folder", lambda: tmp_path / "loras")
    monkeypatch.setattr(host, "cache_folder", lambda: tmp_path / "cache")


@pytest.fixture
def dataset(tmp_path, comfyui) -> Dataset:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(2):
        noise_picture((64, 64), 40, seed=i).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {i}", encoding="utf-8")
    return Dataset(scan.scan(folder, SubsetConfig("input/pictures", resolution=64)))


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """What is encoded, drawn or decoded, as it happens."""
    seen: list[str] = []
    for kind, names in ((host.PictureCodec, ("encode", "decode")), (host.Model, ("sample", "sample_together", "predict"))):
        for name in names:
            real = getattr(kind, name)

            def spied(self, *given, _real=real, _name=name, **named):
                if not isinstance(self, host.Outline):
                    seen.append(_name)
                return _real(self, *given, **named)

            monkeypatch.setattr(kind, name, spied)
    real_text = host.TextEncoder._encode
    monkeypatch.setattr(host.TextEncoder, "_encode", lambda self, tokens: (seen.append("text"), real_text(self, tokens))[1])
    return seen


def go(model, text, codec, dataset, preview=NO_PREVIEW, preview_model=None) -> job.Trained:
    config = TrainingConfig("wrong", network=NetworkConfig(2, 1.0, "attention"), length=LengthConfig(epochs=1))
    with torch.inference_mode():  # as the graph runs its nodes
        return job.run_training(model, text, codec, dataset, config, preview=preview, graph={}, preview_model=preview_model)


def partners_of(tiny, name: str, other: str, what: str):
    """The model ``name`` with its own partners, but for the one of ``other``."""
    own = tiny("sd15" if name.startswith("sdxl") else name)
    mixed = {"text": own.text, "codec": own.codec, what: getattr(tiny(other), what)}
    return tiny(name).model, mixed["text"], mixed["codec"]


def grid(model, text, codec, folder) -> render.Grid:
    column = plan.Column(SavedLoRA(folder / "none.safetensors", 1, 1), "wrong", "epoch 1")
    axes = plan.Axes(("a",), (column,), (1.0,), (0,))
    return render.Grid(model, text, codec, axes, render.Sampling("", "euler", "normal", 1, 1.0, 64, 64, 0), folder, {})


def regular(model, text, codec, folder) -> None:
    order = regularisation.Order(("a man",), 1, render.Sampling("", "euler", "normal", 1, 1.0, 64, 64, 0))
    regularisation.RegularisationSet(model, text, codec, order, folder, {}).render(1, lambda *_: None)


@pytest.mark.parametrize(("name", "other", "sentence"), VAES)
def test_a_vae_of_another_model(tiny, dataset, tmp_path, counted, name, other, sentence):
    wired = partners_of(tiny, name, other, "codec")
    for attempt in (
        lambda: go(*wired, dataset),
        lambda: grid(*wired, tmp_path / "grids"),
        lambda: regular(*wired, tmp_path / "set"),
    ):
        with pytest.raises(AtelierError, match=sentence):
            attempt()
    assert not counted
    assert not [path.name for path in tmp_path.iterdir() if path.name != "pictures"]


@pytest.mark.parametrize(("name", "other", "sentence"), CLIPS)
def test_a_clip_of_another_model(tiny, dataset, tmp_path, counted, name, other, sentence):
    """Only one caption is read, so as to know."""
    wired = partners_of(tiny, name, other, "text")
    for attempt in (
        lambda: go(*wired, dataset),
        lambda: grid(*wired, tmp_path / "grids").check(),
        lambda: regular(*wired, tmp_path / "set"),
    ):
        with pytest.raises(AtelierError, match=sentence):
            attempt()
    assert counted == ["text"]
    assert {path.name for path in tmp_path.iterdir()} <= {"pictures", "cache", "grids"}
    assert not [path for path in tmp_path.glob("grids/**/*") if path.is_file()]


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_the_model_s_own_partners_are_taken(tiny, name):
    t = tiny(name)
    compatibility.check(t.model, t.text, t.codec)
    compatibility.check_text(t.model, t.text.encode("a picture"))
    with torch.inference_mode():
        compatibility.check_conditioning(t.model, t.text.for_sampling("a picture"))


def test_what_a_loader_gives_where_the_file_holds_none(tiny, comfyui):
    import comfy.sd

    t = tiny("sd15")
    with pytest.raises(AtelierError, match=r"^vae: the file that was loaded holds no VAE"):
        compatibility.check(t.model, t.text, host.PictureCodec(comfy.sd.VAE(sd={})))
    with pytest.raises(AtelierError, match=r"^clip: the file that was loaded holds no text encoder"):
        compatibility.check(t.model, host.TextEncoder(None), t.codec)


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"latent_dim": 3, "downscale_ratio": (len, 8, 8)}, "that of a film, and this SD15 model works on that of a picture"),
        ({"latent_dim": 1}, "that of sound, and this"),
        ({"latent_dim": 2, "extra_1d_channel": 16}, "that of sound, and this"),
        ({"latent_dim": 2, "downscale_ratio": 16}, "a cell for 16 pixels, and this SD15 model works on one with a cell for 8"),
    ],
)
def test_vaes_with_the_right_channels_only(tiny, facts, sentence):
    t = tiny("sd15")
    vae = SimpleNamespace(first_stage_model=object(), **{"latent_channels": 4, "downscale_ratio": 8, **facts})
    if "cell" in sentence and t.model.cell is None:
        pytest.skip("this ComfyUI doesn't say how many pixels a cell covers")
    with pytest.raises(AtelierError, match=rf"^vae: .*{sentence}"):
        compatibility.check(t.model, t.text, host.PictureCodec(vae))


def test_a_vae_that_says_nothing_is_taken(tiny):
    t = tiny("sd15")
    compatibility.check(t.model, t.text, host.PictureCodec(SimpleNamespace(first_stage_model=object(), downscale_ratio=8)))


def test_a_model_that_other_nodes_have_changed_is_not_judged(tiny):
    t = tiny("sd15")
    patcher = t.model.patcher.clone()
    patcher.set_model_unet_function_wrapper(lambda apply, given: apply(given["input"], given["timestep"], **given["c"]))
    text = {"cond": torch.zeros(1, 77, 1024)}
    assert compatibility.misread(t.model, text) == compatibility.Misreading("cond", 1024, 768)
    assert compatibility.misread(host.Model(patcher), text) is None


def ready(tmp_path, latent: torch.Tensor, *widths: int) -> Dataset:
    conditioning = [[[torch.zeros(1, 77, width), {}]] for width in widths]
    samples = precomputed.store([{"samples": latent}], conditioning, TensorCache(tmp_path / "cache", 10**9))
    return Dataset((Subset(SubsetConfig("nodes/latents", 64), samples, 1),))


def test_conditionings_and_latents_from_nodes(tiny, tmp_path, counted):
    t = tiny("sd15")
    with pytest.raises(
        AtelierError, match=r"^conditioning: it is encoded in vectors of 1024 numbers, and this SD15 .* 768. Encode"
    ):
        go(t.model, t.text, t.codec, ready(tmp_path, torch.zeros(1, 4, 8, 8), 1024))
    with pytest.raises(AtelierError, match=r"^latents: they have frames"):
        go(t.model, t.text, t.codec, ready(tmp_path, torch.zeros(1, 4, 1, 8, 8), 768))
    with pytest.raises(
        AtelierError, match=r"^conditioning: number 2 is encoded in vectors of 768 numbers and number 1 in .* 1024"
    ):
        ready(tmp_path, torch.zeros(2, 4, 8, 8), 1024, 768)
    assert not counted and not (tmp_path / "runs").exists() and not (tmp_path / "loras").exists()


def test_beside_conditionings_a_clip_counts_where_samples_are_drawn(tiny, tmp_path):
    t, made = tiny("sd15"), ready(tmp_path, torch.zeros(1, 4, 8, 8), 768)
    drawn = job.Preview("a", "", 1, 1.0, "euler", "normal", 0)
    shifted = t.model.patcher.clone()
    shifted.model_options["another"] = 1
    with pytest.raises(AtelierError, match=r"^clip: the text is encoded in vectors of 4096 numbers, and this SD15 model reads"):
        go(t.model, tiny("sd3").text, t.codec, made, drawn)
    with pytest.raises(
        AtelierError, match=r"^preview_model: the text that the connected clip gives .* 4096 numbers, and it reads"
    ):
        go(t.model, tiny("sd3").text, t.codec, made, drawn, host.Model(shifted))
    assert not (tmp_path / "runs").exists()
    assert go(t.model, tiny("sd3").text, t.codec, made).epochs.files, "nothing reads a text"


def test_what_only_the_first_pass_shows_names_the_wires_and_stays_with_the_run(tiny, dataset, monkeypatch):
    """The run is there by then; a page that is opened later must not say that queueing again is enough."""
    t = tiny("sd15")

    def fail(*_given):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (77x4096 and 768x320)")

    monkeypatch.setattr(preflight, "measured", fail)
    with pytest.raises(
        AtelierError, match=r"^model, clip, vae: this SD15 model .* \(mat1 and mat2 .*\)\. Connect the CLIP and the"
    ):
        go(t.model, t.text, t.codec, dataset)
    assert reader.state("wrong", host.runs_folder())["failed"].startswith("model, clip, vae: this SD15 model")


@pytest.mark.parametrize(
    ("error", "is_told"),
    [
        (RuntimeError("The size of tensor a (4) must match the size of tensor b (16) at non-singleton dimension 1"), True),
        (RuntimeError("tensor.size[1] == 4"), True),
        (TypeError("linear(): argument 'input' (position 1) must be Tensor, not NoneType"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate tensors of sizes"), False),
        (RuntimeError("no kernel image is available"), False),
        (OSError("No space left on device"), False),
        (AtelierError("rank: 0 is below 1."), False),
    ],
)
def test_which_errors_speak_of_partners(tiny, error, is_told):
    assert (compatibility.told(error, tiny("sd15").model) is not None) == is_told
