"""What the captions' dialog asks the server, with the answers that the page will get, and with whatever a page could send."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_atelier.tests.training.dataset.made_films import decoded, levels, write
from lora_atelier.training.errors import AtelierError
from PIL import Image

WIDGETS = {"folder": "input/shapes", "resolution": 128, "bucket_step": 64, "crop": "center", "caption_extension": ".txt"}
FIELDS = "settings folder extension encoding nested clip_frames edits utf8 captions operation text other".split()
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture
def routes(comfyui: Path) -> Any:
    from lora_atelier.nodes import caption_routes

    return caption_routes


@pytest.fixture
def folder(comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``input/shapes`` with a flat and a numbered picture; the host's folders lie in this test's own place."""
    import folder_paths

    for name in ("input", "temp", "output"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    folder = tmp_path / "input" / "shapes"
    (folder / "10_tall tower").mkdir(parents=True)
    Image.new("RGB", (300, 150), "red").save(folder / "wide.png")
    Image.new("RGB", (64, 128), "blue").save(folder / "10_tall tower" / "tall.png")
    (folder / "wide.txt").write_text("a wide thing, red", encoding="utf-8")
    return folder


def test_pictures_come_with_bucket_box_and_caption(routes: Any, folder: Path) -> None:
    wide, tall = routes.pictures({"settings": WIDGETS})["pictures"]
    assert (wide["picture"], wide["caption"], wide["size"], wide["repeats"]) == ("wide.png", "a wide thing, red", (300, 150), 1)
    assert wide["bucket"][0] > wide["bucket"][1] and wide["bucket"][0] * wide["bucket"][1] <= 128 * 128
    left, top, right, bottom = wide["box"]
    assert 0 <= left < right <= 300 and 0 <= top < bottom <= 150
    assert (tall["picture"], tall["caption"], tall["fallback"], tall["repeats"]) == (
        "10_tall tower/tall.png", None, "tall tower", 10,
    )  # fmt: skip
    assert tall["version"] == "" and len(wide["version"]) == 16
    assert wide["choices"] == tall["choices"] == 1
    (folder / "wide.txt").write_text("a {wide|flat} thing, {red|blue|}", encoding="utf-8")
    (folder / "wide.short.txt").write_text("wide", encoding="utf-8")
    chosen = {"wildcards": True, "further_captions": ".short.txt"}
    assert routes.pictures({"settings": {**WIDGETS, **chosen}})["pictures"][0]["choices"] == 7


def test_a_caption_goes_to_its_file_and_back(routes: Any, folder: Path) -> None:
    tall = routes.pictures({"settings": WIDGETS})["pictures"][1]
    edit = {"picture": tall["picture"], "caption": "a tower", "version": tall["version"]}
    place = {"folder": "input/shapes", "extension": ".txt", "nested": False}
    answer = routes.save({**place, "edits": [edit]})
    assert (folder / "10_tall tower" / "tall.txt").read_text() == "a tower\n"
    assert answer["now"][0]["caption"] == "a tower"
    routes.save({**place, "edits": answer["undo"]})
    assert not (folder / "10_tall tower" / "tall.txt").exists()


def test_thumbnails_are_small_and_only_of_the_folder(routes: Any, folder: Path) -> None:
    data = routes.thumbnail({"folder": "input/shapes", "picture": "wide.png"})
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "JPEG" and image.size == (224, 112)
    Image.new("RGB", (8, 8)).save(folder.parent / "other.png")
    for picture in ("../other.png", "other.png", str(folder / "wide.png"), "10_tall tower", ""):
        with pytest.raises(AtelierError, match="picture: "):
            routes.thumbnail({"folder": "input/shapes", "picture": picture})


def test_control_pictures_are_shown_with_their_picture(routes: Any, folder: Path) -> None:
    """From folders in and beside the chosen one, in their order; each can be asked for as it is named."""
    beside = folder.with_name("shapes_control")
    for place in (folder / "control" / "wide.png", beside / "wide_2.png"):
        place.parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64)).save(place)
    rows = {row["picture"]: row["controls"] for row in routes.pictures({"settings": WIDGETS})["pictures"]}
    assert rows["wide.png"] == [
        {"folder": "input/shapes", "picture": "control/wide.png"}, {"folder": "input/shapes_control", "picture": "wide_2.png"},
    ]  # fmt: skip
    assert rows["10_tall tower/tall.png"] == []
    for one in rows["wide.png"]:
        assert routes.thumbnail(one)


@pytest.mark.parametrize("name", ["../shapes", "/etc", "input/../..", "models/loras", "input", "", "input/none", "input\\shapes"])
def test_only_allowed_folders_are_looked_at(routes: Any, folder: Path, name: str) -> None:
    for ask in (
        lambda: routes.pictures({"settings": {**WIDGETS, "folder": name}}),
        lambda: routes.thumbnail({"folder": name, "picture": "wide.png"}),
        lambda: routes.save({"folder": name, "edits": []}),
    ):
        with pytest.raises(AtelierError, match="folder: "):
            ask()


def test_captions_never_go_to_files_of_another_kind(routes: Any, folder: Path) -> None:
    edit = {"picture": "wide.png", "caption": "x", "version": ""}
    for extension in (
        ".png",
        ".safetensors",
        "",
        "/../x.txt",
        ".py",
        ".html",
        ".js",
        ".json",
        ".sh",
        ".PY",
        ".txt.py",
        ".txt ",
        ".",
    ):
        with pytest.raises(AtelierError, match="caption extension"):
            routes.save({"folder": "input/shapes", "extension": extension, "edits": [edit]})


def test_operations(routes: Any) -> None:
    captions = {"1": "cat, red hat", "2": "dog"}
    ask = lambda operation, text, other="": routes.change(  # noqa: E731
        {"captions": captions, "operation": operation, "text": text, "other": other}
    )["captions"]
    assert ask("filter", "cat") == {"1": "cat, red hat"}
    assert ask("add", "hat,red hat ,") == {"1": "cat, red hat, hat", "2": "dog, hat, red hat"}
    assert ask("addFirst", "dog") == {"1": "dog, cat, red hat", "2": "dog"}
    assert ask("remove", "red_hat") == {"1": "cat", "2": "dog"}
    assert ask("replace", "red", "blue") == {"1": "cat, blue hat", "2": "dog"}
    for wrong in ({"operation": "eval"}, {"text": " "}, {"text": 3}, {"captions": {"1": None}}, {"captions": []}):
        with pytest.raises(AtelierError):
            routes.change({"captions": captions, "operation": "add", "text": "x", **wrong})


@pytest.mark.parametrize("operation", ["filter", "add", "addFirst", "remove", "replace"])
@pytest.mark.parametrize("text", ["*a*a*a*a*a*a!", "*a" * 300 + "!", "a*" * 300 + "!", ", ".join(["*a*a*!"] * 60)])
def test_no_text_keeps_the_server_busy(routes: Any, operation: str, text: str) -> None:
    """Taken for an expression that tries every way, the first of these would not end in this century."""
    captions = {str(i): "a" * 1000 for i in range(100)}
    answer = routes.change({"captions": captions, "operation": operation, "text": text, "other": "x"})["captions"]
    assert answer == {} if operation == "filter" else len(answer) == 100


def test_what_is_too_much_is_refused(routes: Any) -> None:
    for captions, text in (({"1": "a" * 5_000_001}, "x"), ({"1": "a" * 1_000_000}, ", ".join(["*b"] * 101))):
        with pytest.raises(AtelierError, match="captions: this is too much text for one change"):
            routes.change({"captions": captions, "operation": "remove", "text": text})
    for text in ("a" * 1001, "two\nlines", "nul\0", "half \ud800"):
        with pytest.raises(AtelierError, match="text: expected one line of at most 1000 letters"):
            routes.change({"captions": {}, "operation": "add", "text": text})


@pytest.mark.parametrize(
    "name", ["x" * 300, "a/" * 400, "input/" + "y" * 255 + "z", "input/shapes/" + "y" * 300, "in\0put", "\ud800"]
)
def test_names_that_no_disk_has_are_refused_with_a_sentence(routes: Any, folder: Path, name: str) -> None:
    for ask in (
        lambda: routes.pictures({"settings": {**WIDGETS, "folder": name}}),
        lambda: routes.thumbnail({"folder": name, "picture": "wide.png"}),
        lambda: routes.thumbnail({"folder": "input/shapes", "picture": f"{name}.png"}),
        lambda: routes.save({"folder": name, "edits": []}),
        lambda: routes.save({"folder": "input/shapes", "edits": [{"picture": name, "caption": "x", "version": ""}]}),
    ):
        with pytest.raises(AtelierError):
            ask()


def test_a_guessed_encoding_is_asked_about(routes: Any, folder: Path) -> None:
    data = "рыжая кошка сидит на красном диване".encode("cp1251")
    (folder / "wide.txt").write_bytes(data)
    wide = routes.pictures({"settings": WIDGETS})["pictures"][0]
    edit = {"picture": "wide.png", "caption": "кошка", "version": wide["version"]}
    answer = routes.save({"folder": "input/shapes", "edits": [edit]})
    assert "only a guess" in answer["unclear"] and not answer["undo"] and (folder / "wide.txt").read_bytes() == data
    answer = routes.save({"folder": "input/shapes", "edits": [edit], "utf8": True})
    assert (folder / "wide.txt").read_text(encoding="utf-8") == "кошка\n"
    routes.save({"folder": "input/shapes", "edits": answer["undo"]})
    assert (folder / "wide.txt").read_bytes() == data
    routes.save({"folder": "input/shapes", "encoding": "windows-1251", "edits": [edit]})
    assert (folder / "wide.txt").read_bytes() == "кошка\n".encode("cp1251")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(body=st.dictionaries(st.sampled_from(FIELDS), VALUES))
def test_whatever_is_sent_the_answer_is_a_sentence(routes: Any, folder: Path, body: dict[str, Any]) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    for act in (routes.pictures, routes.save, routes.change):
        try:
            act(body)
        except AtelierError as error:
            assert str(error)
    assert {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("margin", "fits"), [(1, True), (0.5, True), ("1", False), (True, False), (float("nan"), False), (9, False)]
)
def test_numbers_are_taken_as_a_page_sends_them(routes: Any, folder: Path, margin: Any, fits: bool) -> None:
    """It has no 1.0, only 1."""
    settings = {"settings": {**WIDGETS, "head_margin": margin}}
    if fits:
        assert len(routes.pictures(settings)["pictures"]) == 2
    else:
        with pytest.raises(AtelierError, match=r"head.margin: "):
            routes.pictures(settings)


def test_page_and_server_know_every_setting_that_decides_how_a_picture_is_cut(routes: Any, root: Path, tmp_path: Path) -> None:
    from lora_atelier.training.config import SubsetConfig
    from lora_atelier.training.dataset.plan import size_of
    from lora_atelier.training.dataset.samples import Sample
    from lora_atelier.training.dataset.views import view

    fields, read = {field.name for field in dataclasses.fields(SubsetConfig)}, set[str]()
    decides = set[str]()

    class Watched(SubsetConfig):
        def __getattribute__(self, name: str) -> Any:
            if name in fields:
                read.add(name)
            return super().__getattribute__(name)

    for crop in ("center", "random", "focus", "head"):
        for buckets in (True, False):
            config = Watched("input/set", crop=crop, buckets=buckets)
            sample = Sample(tmp_path / "a.png", 900, 600, None, "", focus=(0.2, 0.5), head=(0.1, 0.1, 0.3, 0.4))
            read.clear()  # the settings look at themselves when they are made
            view(sample, config, size_of(sample, config))
            decides |= read
    page = re.search(r"const SETTINGS = \[(.*?)\]", (root / "js" / "captions.js").read_text(), re.DOTALL)
    assert page and tuple(re.findall(r'"(\w+)"', page[1])) == routes.LOOKS
    assert {"resolution", "crop", "head_margin"} <= decides
    by_chance = {"flip", "variants"}  # what differs from sighting to sighting, of which the window shows one
    assert decides - by_chance <= set(routes.LOOKS)


def test_long_words_around_captions_are_no_mistake(routes):
    assert routes.config_of({"folder": "input/x", "caption_prefix": "a" * 9000}).caption_prefix == "a" * 9000
    with pytest.raises(AtelierError, match="caption_prefix: expected a text of at most 10000 letters"):
        routes.config_of({"folder": "input/x", "caption_prefix": "a" * 10_001})


@pytest.fixture
def films(folder: Path) -> Path:
    """``input/films``: a film of two clips with a caption, one that is too short, a moving picture and a still one."""
    place = folder.with_name("films")
    place.mkdir()
    write(place / "walk.mp4", levels(24), 12)
    write(place / "short.mkv", levels(3))
    first, *others = map(Image.fromarray, levels(10))
    first.save(place / "wave.webp", save_all=True, append_images=others, duration=125, lossless=True)
    Image.new("RGB", (64, 48), "red").save(place / "still.png")
    (place / "walk.txt").write_text("someone walks", encoding="utf-8")
    return place


OF_FILMS = {**WIDGETS, "folder": "input/films", "bucket_step": 16, "clip_frames": "1, 9", "clip_start": "chunks", "clip_rate": 0}


def test_a_film_is_one_row_with_its_length_and_clips(routes: Any, films: Path) -> None:
    answer = routes.pictures({"settings": OF_FILMS})
    rows = {row["picture"]: row for row in answer["pictures"]}
    assert [*rows] == ["short.mkv", "still.png", "walk.mp4", "wave.webp"] and len(answer["pictures"]) == 4
    assert rows["walk.mp4"]["film"] == {"frames": 24, "seconds": 2.0, "clips": 2, "each": 9}
    assert rows["wave.webp"]["film"] == {"frames": 10, "seconds": 1.25, "clips": 1, "each": 9}
    assert rows["short.mkv"]["film"] == {"frames": 3, "seconds": 0.12, "clips": 3, "each": 1}
    assert "film" not in rows["still.png"] and rows["walk.mp4"]["caption"] == "someone walks"
    bare = next(note for note in answer["notes"] if note.startswith("no caption"))
    assert bare.count("short.mkv") == 1 and "walk.mp4" not in bare
    without = routes.pictures({"settings": {**OF_FILMS, "clip_frames": ""}})
    assert [row["picture"] for row in without["pictures"]] == ["still.png", "wave.webp"]
    assert any("films are not trained on (2)" in note for note in without["notes"])


def test_a_film_shows_its_middle_frame(routes: Any, films: Path) -> None:
    routes.pictures({"settings": OF_FILMS})
    for name, films_too, wanted in (
        ("walk.mp4", "1", decoded(films / "walk.mp4")[12]), ("wave.webp", "1", levels(10)[5]), ("wave.webp", "", levels(10)[0]),
    ):  # fmt: skip
        data = routes.thumbnail({"folder": "input/films", "picture": name, "films": films_too})
        shown = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
        assert shown.shape == wanted.shape and np.abs(shown - wanted).mean() < 6, (name, films_too)
    with pytest.raises(AtelierError, match="picture: "):
        routes.thumbnail({"folder": "input/films", "picture": "../shapes/none.mp4"})


def test_films_are_shown_that_nobody_has_looked_into_yet(routes: Any, films: Path) -> None:
    assert routes.thumbnail({"folder": "input/films", "picture": "walk.mp4"})


@pytest.mark.parametrize(
    ("name", "options", "nearest"),
    [
        ("long.mp4", {"g": "30", "bf": "2"}, 300), ("long.mp4", {"g": "250", "sc_threshold": "0"}, 298),
        ("long.webm", {"g": "30"}, 300), ("long.avi", {"g": "12"}, 300), ("long.mkv", {}, 300),
    ],
)  # fmt: skip
def test_a_film_that_nobody_has_counted_is_not_decoded_from_its_beginning(
    routes: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, str], nearest: int
) -> None:
    """600 frames: half of them, or as far as 48 frames from the last key frame lead."""
    from lora_atelier.training.dataset import clips
    from lora_atelier.training.dataset import films as reader

    path = write(folder / name, levels(600), **options)
    looked: list[Any] = []
    real = reader._picture
    monkeypatch.setattr(reader, "_picture", lambda frame: looked.append(frame.time) or real(frame))
    assert routes.thumbnail({"folder": "input/shapes", "picture": name})
    (moment,) = looked
    assert abs(round(moment * 24) - nearest) <= 1
    assert np.abs(np.asarray(clips.about_middle(path)).astype(int) - decoded(path)[round(moment * 24)]).max() == 0


def test_a_films_small_picture_is_kept_until_the_film_changes(routes: Any, films: Path) -> None:
    asked = {"folder": "input/films", "picture": "walk.mp4", "films": "1"}
    routes.pictures({"settings": OF_FILMS})
    before = routes.thumbnail(asked)
    (kept,) = (films.parents[1] / "temp" / routes.FILMS).iterdir()
    assert kept.read_bytes() == before == routes.thumbnail(asked)
    kept.write_bytes(b"kept")
    assert routes.thumbnail(asked) == b"kept", "or it was looked for anew"
    write(films / "walk.mp4", levels(30, seed=5))
    assert routes.thumbnail(asked) not in (b"kept", before)


def test_a_films_caption_is_saved_beside_it_and_taken_back(routes: Any, films: Path) -> None:
    place = {"folder": "input/films", "extension": ".txt", "nested": False, "clip_frames": "9"}
    walk = next(r for r in routes.pictures({"settings": OF_FILMS})["pictures"] if r["picture"] == "walk.mp4")
    answer = routes.save({**place, "edits": [{"picture": "walk.mp4", "caption": "someone runs", "version": walk["version"]}]})
    assert (films / "walk.txt").read_text() == "someone runs\n" and answer["now"][0]["picture"] == "walk.mp4"
    routes.save({**place, "edits": answer["undo"]})
    assert (films / "walk.txt").read_text() == "someone walks"
    with pytest.raises(AtelierError, match=r"walk.mp4' is not a picture of films"):
        routes.save({**place, "clip_frames": "", "edits": [{"picture": "walk.mp4", "caption": "x", "version": walk["version"]}]})
    for wrong in (9, None, ["9"], "nine"):
        with pytest.raises(AtelierError, match=r"clip.frames: "):
            routes.save({**place, "clip_frames": wrong, "edits": []})
