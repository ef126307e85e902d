"""Pictures as files, as the page asks for them: brought in from the host's folders, taken out, put back, turned."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from lora_atelier.tests.training.dataset.made_films import levels, write
from lora_atelier.training.errors import AtelierError
from PIL import Image

PLACE = {"folder": "input/shapes", "extension": ".txt", "nested": False}


@pytest.fixture
def routes(comfyui: Path) -> Any:
    from lora_atelier.nodes import picture_routes

    return picture_routes


@pytest.fixture
def base(comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's folders in this test's own place, with ``input/shapes`` and pictures drawn in ``output``."""
    import folder_paths

    for name in ("input", "temp", "output"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    for name in ("input/shapes/wide.png", "output/drawn_1.png", "output/sub/drawn_2.png", "output/lora-atelier/run/cell.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (300, 150), "red").save(tmp_path / name)
    os.utime(tmp_path / "output/drawn_1.png", (1, 1))
    return tmp_path


def staged(base: Path, names: list[str]) -> list[dict[str, str]]:
    """Files as the page has them after it has uploaded them through the host."""
    folder = base / "temp" / "lora-atelier-incoming" / "abc"
    folder.mkdir(parents=True)
    files = []
    for number, name in enumerate(names):
        ending = os.path.splitext(name)[1]
        where = folder / f"{number}{ending}"
        if ending == ".png":
            Image.new("RGB", (8, 8), (number, 0, 0)).save(where)
        elif name.startswith("real") and ending != ".txt":
            write(where, levels(5))
        else:
            where.write_text(name)
        files.append({"name": name, "filename": where.name, "subfolder": "lora-atelier-incoming/abc", "type": "temp"})
    return files


def test_uploaded_files_go_into_a_new_folder_and_nothing_stays_behind(routes: Any, base: Path) -> None:
    files = staged(base, ["a.png", "a.txt", "film.mp4"])
    answer = routes.add({"folder": "input/new/10_cat", "extension": ".txt", "files": files})
    assert answer["folder"] == "input/new/10_cat" and answer["new"] == [("a.png", "a.png"), ("a.txt", "a.txt")]
    ((name, why),) = answer["left"]
    assert name == "film.mp4" and why.startswith("this film cannot be read (") and answer["films"] == []
    assert sorted(path.name for path in (base / "input/new/10_cat").iterdir()) == ["a.png", "a.txt"]
    assert not (base / "temp/lora-atelier-incoming/abc").exists()


def test_a_refused_drop_leaves_nothing_staged(routes: Any, base: Path) -> None:
    files = staged(base, ["a.png"])
    with pytest.raises(AtelierError, match="folder: "):
        routes.add({"folder": "input/../../out", "extension": ".txt", "files": files})
    assert (base / "temp/lora-atelier-incoming/abc/0.png").exists(), "a wrong folder is said before anything is done"
    (base / "input/file").write_text("")
    with pytest.raises(AtelierError, match="goes through a file"):
        routes.add({"folder": "input/file/x", "extension": ".txt", "files": files})


def test_what_was_drawn_here_is_listed_the_newest_first_and_copied(routes: Any, base: Path) -> None:
    listed = routes.made()
    assert [one["filename"] for one in listed["pictures"]] == ["drawn_2.png", "drawn_1.png"] and listed["more"] == 0
    files = [{**one, "name": one["filename"]} for one in listed["pictures"]]
    assert len(routes.add({"folder": "input/shapes", "extension": ".txt", "files": files})["new"]) == 2
    assert (base / "output/drawn_1.png").exists() and (base / "input/shapes/drawn_2.png").exists()


@pytest.mark.parametrize(
    "file",
    [
        {"filename": "../secret.png", "subfolder": "", "type": "output"},
        {"filename": "secret.png", "subfolder": "..", "type": "output"},
        {"filename": "secret.png", "subfolder": "/", "type": "input"},
        {"filename": "secret.png", "subfolder": "link", "type": "output"},
        {"filename": "wide.png", "subfolder": "shapes", "type": "models"},
        {"filename": "none.png", "subfolder": "", "type": "temp"},
    ],
)
def test_only_files_in_the_hosts_folders_are_taken(routes: Any, base: Path, file: dict[str, str]) -> None:
    Image.new("RGB", (8, 8)).save(base / "secret.png")
    (base / "output" / "link").symlink_to(base)
    with pytest.raises(AtelierError, match="files: "):
        routes.add({"folder": "input/shapes", "extension": ".txt", "files": [{"name": "a.png", **file}]})
    assert sorted(path.name for path in (base / "input/shapes").iterdir()) == ["wide.png"]


def test_taking_out_and_putting_back(routes: Any, base: Path) -> None:
    entry = routes.remove({**PLACE, "pictures": ["wide.png"]})["entry"]
    assert not (base / "input/shapes/wide.png").exists()
    assert routes.restore({**PLACE, "entry": entry})["files"] == ["wide.png"]
    assert (base / "input/shapes/wide.png").exists()


def test_what_was_brought_is_put_aside_again(routes: Any, base: Path) -> None:
    """Also where the node does not read it, as below a folder, and with the caption that it got since."""
    Image.new("RGB", (8, 8)).save(base / "output" / "drawn.png")
    files = [
        {"name": name, "filename": "drawn.png", "subfolder": "", "type": "output"} for name in ("new.png", "deep/er/new.png")
    ]
    new = [path for _, path in routes.add({"folder": "input/shapes", "extension": ".txt", "files": files})["new"]]
    (base / "input/shapes/new.txt").write_text("written since")
    before = sorted(path.name for path in (base / "input/shapes").rglob("*") if path.is_file())
    entry = routes.take_back({**PLACE, "files": new})["entry"]
    plain = base / "input/shapes"
    assert [path.name for path in plain.iterdir() if path.is_file()] == ["wide.png"]
    assert sorted(path.name for path in plain.rglob("*") if path.is_file()) == before, "nothing is lost"
    routes.restore({**PLACE, "entry": entry})
    assert (plain / "deep/er/new.png").exists() and (plain / "new.txt").read_text() == "written since"


def test_nothing_else_is_put_aside_as_brought(routes: Any, base: Path) -> None:
    """Neither what nobody has brought, nor a caption that lay there before its picture came."""
    plain = base / "input/shapes"
    (plain / "late.txt").write_text("was there before")
    an_hour_ago = time.time() - 3600
    os.utime(plain / "late.txt", (an_hour_ago, an_hour_ago))
    with pytest.raises(AtelierError, match="not known any more"):
        routes.take_back({**PLACE, "files": ["wide.png", "late.txt"]})
    Image.new("RGB", (8, 8)).save(base / "output" / "late.png")
    file = {"name": "late.png", "filename": "late.png", "subfolder": "", "type": "output"}
    new = [path for _, path in routes.add({"folder": "input/shapes", "extension": ".txt", "files": [file]})["new"]]
    routes.take_back({**PLACE, "files": [*new, "wide.png"]})
    assert sorted(path.name for path in plain.iterdir() if path.is_file()) == ["late.txt", "wide.png"]


def test_turning_shows_in_the_thumbnail(routes: Any, base: Path) -> None:
    from lora_atelier.nodes import caption_routes

    def size() -> tuple[int, int]:
        import io

        data = caption_routes.thumbnail({"folder": "input/shapes", "picture": "wide.png"})
        return Image.open(io.BytesIO(data)).size

    assert size() == (224, 112)
    routes.turn({**PLACE, "pictures": ["wide.png"], "quarters": 3})
    assert size() == (112, 224)
    for quarters in (0, 4, True, "1", None):
        with pytest.raises(AtelierError, match="quarters"):
            routes.turn({**PLACE, "pictures": ["wide.png"], "quarters": quarters})


def test_thumbnails_of_what_was_drawn_are_of_the_output_folder_only(routes: Any, base: Path) -> None:
    from lora_atelier.nodes import caption_routes

    assert caption_routes.thumbnail({"made": "sub/drawn_2.png"})
    for name in ("../input/shapes/wide.png", "", "sub", "none.png", "/etc/passwd", "a" * 999 + ".png", "a\0.png"):
        with pytest.raises(AtelierError, match="made: "):
            caption_routes.thumbnail({"made": name})


def test_what_need_not_be_sent_is_said_before(routes: Any, base: Path) -> None:
    names = ["a.png", "a.txt", "b/metadata.jsonl", "film.wmv", ".hidden.png", "x.safetensors", "film.wmv", "a.CAPTION"]
    answer = routes.add({"folder": "input/shapes", "extension": ".txt", "files": [], "names": names})
    assert [name for name, _ in answer["left"]] == ["film.wmv", ".hidden.png", "x.safetensors"] and not answer["new"]
    with pytest.raises(AtelierError, match="too many"):
        routes.add({"folder": "input/shapes", "extension": ".txt", "files": [], "names": ["a.png"] * 20_001})


def test_what_was_sent_in_vain_is_taken_away_and_nothing_else(routes: Any, base: Path) -> None:
    mine = base / "temp/lora-atelier-incoming/0123456789abcdef"
    mine.mkdir(parents=True)
    (mine / "0.png").write_bytes(b"x")
    for place in ("..", "../..", "", None, "0123456789abcdeg", "0123456789ABCDEF"):
        with pytest.raises(AtelierError, match="place: "):
            routes.forget({"place": place})
    assert (mine / "0.png").exists()
    assert routes.forget({"place": mine.name}) == {} and not mine.exists() and mine.parent.exists()


def test_the_newest_are_offered_however_many_there_are(routes: Any, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "LISTED", 2)
    monkeypatch.setattr(routes, "LOOKED_AT", 3)
    for number in range(6):
        Image.new("RGB", (8, 8)).save(base / "output" / f"many_{number}.png")
        os.utime(base / "output" / f"many_{number}.png", (10 + number, 10 + number))
    listed = routes.made()
    assert [one["filename"] for one in listed["pictures"]] == ["many_5.png", "many_4.png"]
    assert listed["more"] == 5 and listed["unseen"], "the sub-folder was not looked into"


def test_a_film_is_put_aside_with_its_caption_and_never_turned(routes: Any, base: Path) -> None:
    write(base / "input/shapes/walk.mp4", levels(12))
    (base / "input/shapes/walk.txt").write_text("someone walks")
    place = {**PLACE, "clip_frames": "9"}
    before = (base / "input/shapes/walk.mp4").read_bytes()
    with pytest.raises(AtelierError, match=r"walk.mp4: films are not turned here, since every frame .* bring them again"):
        routes.turn({**place, "pictures": ["wide.png", "walk.mp4"], "quarters": 1})
    with Image.open(base / "input/shapes/wide.png") as image:
        assert image.size == (300, 150), "all or none"
    with pytest.raises(AtelierError, match=r"walk.mp4: not in shapes"):
        routes.remove({**PLACE, "pictures": ["walk.mp4"]})
    entry = routes.remove({**place, "pictures": ["walk.mp4"]})["entry"]
    assert sorted(path.name for path in (base / "input/shapes").iterdir()) == [".removed-pictures", "wide.png"]
    assert routes.restore({**place, "entry": entry})["files"] == ["walk.mp4", "walk.txt"]
    assert (base / "input/shapes/walk.mp4").read_bytes() == before


def test_films_are_brought_with_their_captions_and_told_apart(routes: Any, base: Path) -> None:
    files = staged(base, ["real.mp4", "real.txt", "a.png", "masks/real_2.mp4"])
    answer = routes.add({"folder": "input/new", "extension": ".txt", "files": files})
    assert sorted(path for _, path in answer["new"]) == ["a.png", "real.mp4", "real.txt"] and answer["films"] == ["real.mp4"]
    ((name, why),) = answer["left"]
    assert name == "masks/real_2.mp4" and "neither masks nor control pictures. Bring it into a folder of another name" in why


def test_what_need_not_be_sent_comes_with_the_most_that_the_host_takes(routes: Any, base: Path) -> None:
    from comfy.cli_args import args

    asked = {"folder": "input/new", "extension": ".txt", "files": [], "names": ["a.mp4", "b.wmv", "c.png"]}
    answer = routes.add(asked)
    assert [name for name, _ in answer["left"]] == ["b.wmv"] and answer["most"] == args.max_upload_size * 1024 * 1024


def test_films_that_were_drawn_here_are_offered_with_their_middle_frame(routes: Any, base: Path) -> None:
    from lora_atelier.nodes import caption_routes

    write(base / "output/sub/drawn.mp4", levels(8))
    listed = routes.made()["pictures"]
    assert [one["filename"] for one in listed if one["film"]] == ["drawn.mp4"] == [listed[0]["filename"]]
    assert caption_routes.thumbnail({"made": "sub/drawn.mp4"})
    (base / "output/sub/none.mp4").write_text("no film")
    with pytest.raises(AtelierError, match=r"none.mp4: this film cannot be read"):
        caption_routes.thumbnail({"made": "sub/none.mp4"})
