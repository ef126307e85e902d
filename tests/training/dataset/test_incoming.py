"""Files that are brought into a folder: none takes another's place, each is accounted for, and what belongs together stays so."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset.incoming import MOST, Incoming, bring
from lora_atelier.training.dataset.scan import scan
from lora_atelier.training.errors import AtelierError
from PIL import Image


def png(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


RED, BLUE, GREEN = png("red"), png("blue"), png("green")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    return folder


def drop(folder, files, extension=".txt"):
    """Brings ``files`` (contents by name) from a place of their own."""
    staged = folder.parent / "staged"
    staged.mkdir(exist_ok=True)
    incoming = []
    for number, (name, data) in enumerate(files.items()):
        source = staged / f"{number}{name[-5:].replace('/', '_')}"
        source.write_bytes(data)
        incoming.append(Incoming(source, name))
    return bring(incoming, folder, extension)


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def captions(folder, **settings):
    found = scan(folder, SubsetConfig("input/set", **settings))
    return {sample.path.name: sample.caption for one in found for sample in one.samples}


def test_pictures_come_with_captions_masks_and_folders(folder):
    files = {"a.png": RED, "a.txt": b"a cat", "a.mask.png": png("white"), "10_dog/b.png": BLUE, "10_dog/b.txt": b"a dog"}
    done = drop(folder, files)
    assert tree(folder) == files and sorted(done.new) == sorted((name, name) for name in files)
    assert not done.there and not done.left


def test_the_same_file_again_is_there_already(folder):
    files = {"a.png": RED, "a.txt": b"a cat"}
    drop(folder, files)
    done = drop(folder, files)
    assert (done.new, sorted(done.there), done.left) == ([], ["a.png", "a.txt"], []) and tree(folder) == files


def test_another_picture_of_the_name_gets_a_number_and_its_caption_with_it(folder):
    drop(folder, {"a.png": RED, "a.txt": b"red"})
    done = drop(folder, {"a.png": BLUE, "a.txt": b"blue", "masks/a.png": png("white")})
    assert dict(done.new) == {"a.png": "a (2).png", "a.txt": "a (2).txt", "masks/a.png": "masks/a (2).png"}
    assert captions(folder, masks="files") == {"a.png": "red", "a (2).png": "blue"}
    done = drop(folder, {"a.png": BLUE, "a.txt": b"blue"})
    assert not done.new and sorted(done.there) == ["a.png", "a.txt"]


def test_one_stem_is_one_caption_so_pictures_of_other_endings_get_numbers_too(folder):
    drop(folder, {"a.png": RED, "a.txt": b"red"})
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 8), "blue").save(jpeg, "JPEG")
    done = drop(folder, {"a.jpg": jpeg.getvalue(), "a.txt": b"blue"})
    assert dict(done.new) == {"a.jpg": "a (2).jpg", "a.txt": "a (2).txt"}
    assert captions(folder) == {"a.png": "red", "a (2).jpg": "blue"}


def test_each_of_two_pictures_of_one_stem_gets_its_own_caption(folder):
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 8), "blue").save(jpeg, "JPEG")
    drop(folder, {"a.jpg": jpeg.getvalue(), "a.png": RED, "a.jpg.txt": b"blue", "a.png.txt": b"red"})
    assert sorted(captions(folder).values()) == ["blue", "red"]
    by_picture = captions(folder)
    assert by_picture[next(name for name in by_picture if name.endswith(".jpg"))] == "blue"


def test_a_caption_that_the_person_wrote_is_kept(folder):
    drop(folder, {"a.png": RED})
    (folder / "a.txt").write_text("by hand")
    done = drop(folder, {"a.png": RED, "a.txt": b"from elsewhere"})
    assert (folder / "a.txt").read_text() == "by hand" and done.there == ["a.png"]
    assert done.left == [("a.txt", "a.txt is there with other contents, and was kept")]


def test_a_caption_without_its_picture_finds_the_one_that_is_there(folder):
    drop(folder, {"a.png": RED})
    done = drop(folder, {"A.TXT": b"a cat", "none.txt": b"of nothing"})
    assert captions(folder) == {"a.png": "a cat"}
    assert [name for name, _ in done.left] == ["none.txt"]


def test_what_is_no_picture_is_named_with_its_reason(folder):
    done = drop(folder, {
        "a.png": RED[:45], "b.png": b"no picture", "c.mp4": b"film", "d": b"", "e.zip": b"x", ".DS_Store": b"x", "f.exe": b"MZ",
        "../out.png": RED, "g.png": b"",
    })  # fmt: skip
    assert tree(folder) == {} and not (folder.parent / "out.png").exists()
    why = dict(done.left)
    assert len(why) == 9 and "films" in why["c.mp4"] and "cannot be read" in why["a.png"] and "0 bytes" in why["g.png"]
    assert not any(str(folder.parent) in reason for reason in why.values())


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a:b?.png", "a_b_.png"), ("con.png", "con_.png"), (" a .png", "a.png"), ("sub:dir/a.png", "sub_dir/a.png"),
        ("x" * 400 + ".png", "x" * 180 + ".png"), ("é 猫.png", "é 猫.png"), ("a\udcff.png", "a_.png"), ("a\nb.png", "a_b.png"),
        ("C:\\photos\\a.png", "C_/photos/a.png"), ("/etc/a.png", "etc/a.png"), ("dir./a.png", "dir/a.png"),
    ],
)  # fmt: skip
def test_names_are_made_such_that_every_system_has_them(folder, name, safe):
    done = drop(folder, {name: RED, f"{name.rpartition('.')[0]}.txt": b"a cat"})
    assert list(tree(folder)) and safe in tree(folder) and not done.left
    assert captions(folder, nested=True) == {safe.rpartition("/")[2]: "a cat"}


def test_nothing_is_brought_through_a_link_out(folder):
    (folder.parent / "elsewhere").mkdir()
    (folder / "sub").symlink_to(folder.parent / "elsewhere")
    done = drop(folder, {"sub/a.png": RED, "b.png": BLUE})
    assert not list((folder.parent / "elsewhere").iterdir()) and [name for name, _ in done.left] == ["sub/a.png"]


def test_too_many_at_once_are_refused(folder):
    with pytest.raises(AtelierError, match="too many"):
        bring([Incoming(folder / "x", "x.png")] * (MOST + 1), folder)


NAMES = st.sampled_from([
    "a.png", "A.png", "a.jpg", "a.txt", "a.caption", "a.png.txt", "a.mask.png", "mask_a.png", "masks/a.png", "sub/a.png",
    "sub/a.txt", "m.jsonl", "b{}.png", "b{}.mask.png", "masks/masks/a.png", "a (2).png",
])  # fmt: skip


@given(st.lists(st.dictionaries(NAMES, st.sampled_from([RED, BLUE, GREEN])), min_size=1, max_size=3))
def test_whatever_comes_nothing_that_was_there_changes_and_each_file_is_accounted_for(tmp_path_factory, drops):
    folder = tmp_path_factory.mktemp("any") / "set"
    folder.mkdir()
    for files in drops:
        before = tree(folder)
        done = drop(folder, files)
        after = tree(folder)
        assert before.items() <= after.items()
        named = {name for name, _ in done.new} | set(done.there) | {name for name, _ in done.left}
        assert named == set(files)
        assert {path for _, path in done.new} == after.keys() - before.keys()
        for name, path in done.new:
            assert after[path] == files[name]
