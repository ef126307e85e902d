"""Films of video models: as samples of a run and as cells of a grid, of a tiny Wan 2.1 with its own kind of VAE."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lora_atelier.training import host, job
from lora_atelier.training.config.sampling import Sampling
from lora_atelier.training.dataset import moving
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.families import FAMILIES
from lora_atelier.training.files import read_tensors
from lora_atelier.training.grid import cells, gallery, plan, render
from lora_atelier.training.grid.sheet import Failed
from lora_atelier.training.runs import catalogue, reader
from PIL import Image

from ..zoo.build import build, weights_of
from ..zoo.recipes import Recipe, cond, hunyuan, wan
from .grid.test_render import columns, write_lora
from .test_job import NO_PREVIEW, dataset, fresh_folders, go, recipe  # noqa: F401

WAN = Recipe("Wan 2.1, tiny", "WAN21_T2V", wan(), cond(4096))
HUNYUAN = Recipe(
    "HunyuanVideo, tiny", "HunyuanVideo",
    hunyuan(
        in_channels=16, out_channels=16, patch_size=[1, 2, 2], axes_dim=[16, 56, 56], vec_in_dim=2048, guidance_embed=True,
        context_in_dim=4096,
    ),
    cond(4096, pooled_output=(1, 2048)),
)  # fmt: skip
FRAMES = 9
FILM = job.Preview("a fox", "", 2, 2.0, "euler", "simple", 3, 64, 64, frames=FRAMES, rate=12.0)


def film_vae(dim: int = 8):
    """The host's VAE of Wan 2.1, tiny: eight cells wide, four frames in one."""
    import comfy.ldm.wan.vae
    import comfy.sd

    settings = {
        "dim": dim, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": [],
        "temperal_downsample": [False, True, True], "dropout": 0.0,
    }  # fmt: skip
    with torch.inference_mode():
        network = comfy.ldm.wan.vae.WanVAE(**settings)
        return comfy.sd.VAE(sd=weights_of(network, dataclasses.replace(WAN, centred=False)))


@pytest.fixture(scope="module")
def films(tiny):
    """Tiny video models between the tiny SD3's text encoders, whose texts are as wide as Wan's, and a tiny VAE of Wan's kind."""
    codec, made = host.PictureCodec(film_vae()), {}

    def get(kind: Recipe = WAN) -> SimpleNamespace:
        if kind.name not in made:
            made[kind.name] = SimpleNamespace(model=build(kind).model, text=tiny("sd3").text, codec=codec)
        return made[kind.name]

    return get


def stock(model, clip, vae, prompt: str, how: Sampling) -> list[Image.Image]:
    """Every frame, by the nodes that come with ComfyUI: an empty video latent, KSampler, VAE Decode."""
    from comfy_extras.nodes_hunyuan import EmptyHunyuanLatentVideo

    import nodes

    with torch.inference_mode():
        texts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (prompt, how.negative)]
        empty = EmptyHunyuanLatentVideo.execute(how.width, how.height, how.frames, 1).args[0]
        [latent] = nodes.common_ksampler(model, how.seed, how.steps, how.cfg, how.sampler, how.scheduler, *texts, empty)
        pixels = nodes.VAEDecode().decode(vae, latent)[0]
    assert len(pixels) == how.frames
    return [Image.fromarray(np.clip(255.0 * one.cpu().numpy(), 0, 255).astype(np.uint8)) for one in pixels]


def how(**changes) -> Sampling:
    return dataclasses.replace(Sampling("", "euler", "simple", 2, 2.0, 64, 64, 3, FRAMES, 5), **changes)


def grid_of(t, folder: Path, *paths: Path, settings: Sampling | None = None, **more) -> render.Grid:
    axes = plan.Axes(("a fox",), columns(*paths), (0.0, 1.0), (3,), None)
    return render.Grid(t.model, t.text, t.codec, axes, settings or how(), folder / "grids", {}, **more)


def drawn(grid: render.Grid) -> render.Grid:
    with torch.inference_mode():
        grid.render(lambda done, page: None)
    assert not [one for page in grid.book.cells for one in page.values() if isinstance(one, Failed)]
    return grid


def opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


@pytest.mark.parametrize("kind", [WAN, HUNYUAN], ids=lambda kind: kind.family)
def test_a_cell_is_a_frame_of_the_film_that_the_stock_nodes_draw(films, tmp_path, kind):
    t = films(kind)
    path = write_lora(t, tmp_path / "one.safetensors")
    before = t.model.identity()
    grid = drawn(grid_of(t, tmp_path, path, together=1))
    plain = stock(t.model.patcher, t.text.clip, t.codec.vae, "a fox", how())
    assert opened(grid.book.cells[0][0, 0]).tobytes() == plain[4].tobytes()
    whole = moving.read(tmp_path / "grids" / "cells" / grid.book.films[0][0, 0], FRAMES)
    assert [one.tobytes() for one in whole] == [one.tobytes() for one in plain]
    patched, clip = t.model.with_lora(t.text.clip, read_tensors(path, "look"), 1.0)
    merged = stock(patched, clip, t.codec.vae, "a fox", how())
    found = np.asarray(opened(grid.book.cells[0][1, 1]), dtype=int)
    assert np.abs(found - np.asarray(merged[4], dtype=int)).max() <= 4
    assert plain[4].tobytes() != plain[0].tobytes() and not np.array_equal(found, np.asarray(plain[4]))
    assert opened(grid.book.cells[0][1, 0]).tobytes() == plain[4].tobytes()  # at strength 0
    assert t.model.identity() == before


def test_films_of_several_files_are_drawn_in_one_batch(films, tmp_path):
    t = films()
    paths = [write_lora(t, tmp_path / f"{seed}.safetensors", seed=seed) for seed in (3, 4)]
    alone = drawn(grid_of(t, tmp_path / "alone", *paths, together=1))
    both = drawn(grid_of(t, tmp_path / "both", *paths, together=2))
    for place in ((1, 1), (2, 1)):
        films_of = [moving.read(tmp_path / which / "grids" / "cells" / grid.book.films[0][place], FRAMES)
                    for which, grid in (("alone", alone), ("both", both))]  # fmt: skip
        one, other = ([np.asarray(frame, dtype=int) for frame in film] for film in films_of)
        assert max(np.abs(a - b).max() for a, b in zip(one, other, strict=True)) <= 4


def test_another_frame_is_shown_without_drawing_again(films, tmp_path, monkeypatch):
    t = films()
    path = write_lora(t, tmp_path / "one.safetensors")
    first = drawn(grid_of(t, tmp_path, path))
    monkeypatch.setattr(render.CellRenderer, "_pictures", None)  # whoever draws fails
    last = drawn(grid_of(t, tmp_path, path, settings=how(shown_frame=FRAMES)))
    again = drawn(grid_of(t, tmp_path, path))
    for place, cell in last.book.cells[0].items():
        film = moving.read(tmp_path / "grids" / "cells" / last.book.films[0][place], FRAMES)
        assert opened(cell).tobytes() == film[-1].tobytes()
        assert opened(first.book.cells[0][place]).tobytes() == film[4].tobytes()
        assert again.book.cells[0][place] == first.book.cells[0][place] != cell
    assert first.book.films == last.book.films


def test_a_damaged_film_is_drawn_again(films, tmp_path):
    t = films()
    path = write_lora(t, tmp_path / "one.safetensors")
    grid = drawn(grid_of(t, tmp_path, path))
    film = tmp_path / "grids" / "cells" / grid.book.films[0][0, 0]
    whole = film.read_bytes()
    film.write_bytes(whole[: len(whole) // 2])
    drawn(grid_of(t, tmp_path, path))
    assert film.read_bytes() == whole


def test_the_gallery_finds_the_films(films, tmp_path):
    t, runs = films(), tmp_path / "every"
    path = write_lora(t, tmp_path / "one.safetensors")
    grid = drawn(grid_of(t, runs / "ink", path))
    [page] = grid.save_pages()
    folder, facts = gallery.page(runs, "ink", page.stem)
    assert facts["frames"] == FRAMES and facts["shown_frame"] == 5
    assert all((folder / "cells" / cell["film"]).is_file() for cell in facts["cells"].values())
    film = folder / "cells" / facts["cells"]["0,0"]["film"]
    film.unlink()
    assert "film" not in gallery.page(runs, "ink", page.stem)[1]["cells"]["0,0"]


def test_what_was_named_before_there_were_films_is_named_so_still():
    still = Sampling("", "euler", "simple", 2, 2.0, 64, 64, 3)
    assert "frames" not in still.as_dict() and list(still.as_dict())[-1] == "seed"
    facts = cells.CellFacts("a fox", None, None, None, 0, 0, still)
    assert facts.key("base") == "98c131e42d719fa41980854e"
    assert not {"frames", "shown_frame"} & facts.as_dict().keys()


def test_samples_are_films_with_their_middle_frame_beside_the_file(films, dataset, tmp_path):  # noqa: F811
    t = films()
    trained = go(t, dataset, recipe("moves"), FILM)
    folder = tmp_path / "runs" / "moves"
    shown = reader.samples(folder)
    assert [one["file"] for one in shown] == [f"moves-{epoch:06d}.png" for epoch in range(4)]
    for one in shown:
        with Image.open(folder / "samples" / one["film"]) as film:
            assert film.format == "WEBP" and film.is_animated and film.size == (64, 64)
            lasts = 0
            for number in range(film.n_frames):
                film.seek(number)
                film.load()
                lasts += film.info["duration"]
        assert lasts == round(1000 * FRAMES / 12)
        with Image.open(folder / "samples" / one["file"]) as still:
            assert json.loads(still.text["parameters"])["frames"] == FRAMES
    plain = stock(t.model.patcher, t.text.clip, t.codec.vae, "a fox", how())
    assert opened(folder / "samples" / "moves-000000.png").tobytes() == plain[4].tobytes()
    saved = trained.epochs.files[-1].path
    assert saved.with_suffix(".png").read_bytes() == (folder / "samples" / "moves-000003.png").read_bytes()
    alike = go(t, dataset, recipe("stands"), NO_PREVIEW)
    assert all(torch.equal(alike.tensors[name], trained.tensors[name]) for name in trained.tensors)
    catalogue.delete("moves", tmp_path / "runs", tmp_path / "loras", "records")
    assert not list((tmp_path / "runs").rglob("*.webp"))


def test_a_length_that_the_model_cannot_draw_is_refused_before_anything_is_encoded(films, tiny, dataset, tmp_path):  # noqa: F811
    with pytest.raises(AtelierError, match=r"^preview_frames: 10 frames is no length .* nearest are 9 and 13\.$"):
        go(films(), dataset, recipe("ten"), dataclasses.replace(FILM, frames=10))
    with pytest.raises(AtelierError, match=r"^preview_frames: this SD3 model draws pictures"):
        go(tiny("sd3"), dataset, recipe("sd3"), FILM)
    with pytest.raises(AtelierError, match=r"^frames: 12 frames"):
        grid_of(films(), tmp_path, settings=how(frames=12))
    with pytest.raises(AtelierError, match=r"^preview_rate: 0 is"):
        dataclasses.replace(FILM, rate=0.0)
    assert not FAMILIES["QwenImage"].films


@pytest.mark.parametrize(
    ("said", "frame"), [("first", 0), ("middle", 4), ("", 4), (" Last ", 8), ("1", 0), ("9", 8)]
)  # fmt: skip
def test_a_frame_is_named_by_a_word_or_a_number(said, frame):
    assert moving.frame_named("shown_frame", said, 9) == frame


@pytest.mark.parametrize("said", ["0", "10", "-1", "half", "²", "1.5"])
def test_no_frame_is_refused(said):
    with pytest.raises(AtelierError, match=r"^shown_frame: "):
        moving.frame_named("shown_frame", said, 9)


@pytest.mark.parametrize("rate", [7.5, 16.0, 24.0])
def test_a_film_without_loss_gives_back_every_frame(tmp_path, rate):
    """Also such as are alike, which the format keeps as one."""
    stream = np.random.default_rng(0)
    frames = [Image.fromarray(stream.integers(0, 256, (24, 32, 3), dtype=np.uint8)) for _ in range(6)]
    for order in ([0, 1, 2, 3, 4, 5], [0, 0, 1, 2, 2, 2, 3, 3], [4, 4, 4]):
        film = [frames[i] for i in order]
        moving.save(tmp_path / "film.webp", film, rate, lossless=True)
        found = moving.read(tmp_path / "film.webp", len(film), rate)
        assert [one.tobytes() for one in found] == [one.tobytes() for one in film]
    assert moving.read(tmp_path / "none.webp", 3) is None
