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

from .made_films import levels, write


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
    """Brings ``files`` (contents by name, or by (choice, name)) from a place of their own."""
    staged = folder.parent / "staged"
    staged.mkdir(exist_ok=True)
    incoming = []
    for number, (named, data) in enumerate(files.items()):
        batch, name = named if isinstance(named, tuple) else (0, named)
        source = staged / f"{number}{name[-5:].replace('/', '_')}"
        source.write_bytes(data)
        incoming.append(Incoming(source, name, batch))
    return bring(incoming, folder, extension)


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def samples_of(folder):
    """Those that were renamed come last."""
    found = [sample for one in scan(folder, SubsetConfig("input/set", masks="files")) for sample in one.samples]
    return sorted(found, key=lambda sample: len(sample.path.name))


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


def test_captions_in_json_come_with_their_picture_and_no_other_json(folder):
    (folder / "old.png").write_bytes(GREEN)
    told = b'{"caption": "in red"}'
    names = ("a.json", "a.long.json", "old.json", "workflow.json", "sub/a.json")
    done = drop(folder, {"a.png": RED, **dict.fromkeys(names, told)})
    assert {name for name, _ in done.new} == {"a.png", "a.json", "a.long.json", "old.json"}
    assert dict(done.left).keys() == {"workflow.json", "sub/a.json"}
    assert captions(folder, further_captions=".json") == {"a.png": "in red", "old.png": "in red"}
    assert dict(drop(folder, {"a.png": BLUE, "a.json": told}).new) == {"a.png": "a (2).png", "a.json": "a (2).json"}


def test_two_choices_of_one_name_keep_their_own_captions_masks_and_tables(folder):
    done = drop(folder, {
        (1, "1.png"): RED, (2, "1.png"): BLUE, (2, "1.txt"): b"blue", (1, "1.txt"): b"red", (2, "1.mask.png"): png("white"),
        (1, "2.png"): png("pink"), (2, "2.png"): png("grey"), (2, "metadata.jsonl"): b'{"file_name": "2.png", "text": "grey"}',
        (1, "metadata.jsonl"): b'{"file_name": "2.png", "text": "pink"}', (3, "1.txt"): b"whose?",
    })  # fmt: skip
    found = {s.path.name: s for s in samples_of(folder)}
    assert {name: one.caption for name, one in found.items()} == {
        "1.png": "red", "1 (2).png": "blue", "2.png": "pink", "2 (2).png": "grey",
    }  # fmt: skip
    assert found["1.png"].mask is None and found["1 (2).png"].mask == folder / "1 (2).mask.png"
    assert [name for name, why in done.left] == ["1.txt"] and "several pictures" in done.left[0][1]


def test_a_caption_that_is_chosen_afterwards_belongs_to_the_picture_that_was_chosen_before(folder):
    drop(folder, {"1.png": RED})
    drop(folder, {(1, "1.png"): BLUE, (2, "1.txt"): b"blue"})
    assert captions(folder) == {"1.png": None, "1 (2).png": "blue"}


CONTROLS = [
    "cat_control.jpg",
    "cat.control.png",
    "control/cat.png",
    "control/cat_1.png",
    "control_2/cat.png",
    "control/cat.jpg.png",
]


@pytest.mark.parametrize("name", CONTROLS)
def test_control_pictures_follow_their_picture(folder, name):
    drop(folder, {"cat.jpg": RED, name: png("white")})
    old = {s.path.name: [c.path for c in s.controls] for s in samples_of(folder)}
    assert old == {"cat.jpg": [folder / name]}
    done = drop(folder, {"cat.jpg": BLUE, name: png("black")})
    samples = samples_of(folder)
    assert not done.left and [s.path.name for s in samples] == ["cat.jpg", "cat (2).jpg"]
    assert [[c.path.read_bytes() for c in s.controls] for s in samples] == [[png("white")], [png("black")]]
    again = drop(folder, {"cat.jpg": BLUE, name: png("black")})
    assert not again.new and not again.left


@pytest.mark.parametrize("name", ["8_cat_mask/1.png", "8_cat_control/1.png", "8_cat_controls/1.jpg.png", "8_cat/masks/1.jpg.png"])
def test_folders_beside_and_whole_names_follow_too(folder, name):
    for colour, own in ((RED, "white"), (BLUE, "black")):
        assert not drop(folder, {"8_cat/1.jpg": colour, name: png(own)}).left
    samples = samples_of(folder)
    belonging = [[s.mask] if s.mask else [c.path for c in s.controls] for s in samples]
    assert [[path.read_bytes() for path in paths] for paths in belonging] == [[png("white")], [png("black")]]
    assert [s.path.name for s in samples] == ["1.jpg", "1 (2).jpg"]


@pytest.mark.parametrize("name", ["cat.jpg.mask.png", "masks/cat.jpg.png", "mask_cat.png"])
def test_masks_of_whole_names_and_marks_in_front_follow(folder, name):
    drop(folder, {"cat.jpg": RED})
    assert not drop(folder, {"cat.jpg": BLUE, name: png("white")}).left
    masks = {s.path.name: s.mask for s in samples_of(folder)}
    assert masks["cat.jpg"] is None and masks["cat (2).jpg"] is not None and len(masks) == 2


def test_a_new_picture_does_not_get_what_was_somebody_elses(folder):
    drop(folder, {"cat.png": RED, "cat.mask.png": png("black")})
    (folder / "cat.png").unlink()
    drop(folder, {"cat.png": BLUE, "cat.mask.png": png("white")})
    (sample,) = samples_of(folder)
    assert sample.path.name == "cat (2).png" and sample.mask.read_bytes() == png("white")


def test_a_control_folder_that_belongs_to_nothing_is_pictures(folder):
    assert sorted(drop(folder, {"control/a.png": RED, "b.png": BLUE}).new) == [("b.png", "b.png"), ("control/a.png",) * 2]


def test_tables_name_pictures_as_they_are_called_here(folder):
    line = '{"file_name": "sub/1.png", "text": "%s"}\n{"file_name": "other.png", "text": "x"}\n'
    drop(folder, {"sub/1.png": RED, "metadata.jsonl": (line % "red").encode()})
    files = {"sub/1.png": BLUE, "metadata.jsonl": (line % "blue ü").encode()}
    assert dict(drop(folder, files).new) == {"sub/1.png": "sub/1 (2).png", "metadata.jsonl": "metadata (2).jsonl"}
    assert captions(folder, nested=True) == {"1.png": "red", "1 (2).png": "blue ü"}
    assert not drop(folder, files).new, "the changed table is known again"
    done = drop(folder, {"sub/1.png": GREEN, "metadata.jsonl": b'{"file_name": "sub/1.png", "text": "gr\xfcn"}'})
    assert "cannot be changed: this is no UTF-8" in dict(done.left)["metadata.jsonl"]


def test_what_belongs_to_a_broken_picture_goes_to_no_other(folder):
    drop(folder, {"a.png": RED})
    done = drop(folder, {"a.png": RED[:45], "a.txt": b"of the broken one"})
    assert captions(folder) == {"a.png": None} and {name for name, _ in done.left} == {"a.png", "a.txt"}


def test_what_is_no_picture_is_named_with_its_reason(folder):
    done = drop(folder, {
        "a.png": RED[:45], "b.png": b"no picture", "c.mp4": b"film", "d": b"", "e.zip": b"x", ".DS_Store": b"x", "f.exe": b"MZ",
        "../out.png": RED, "g.png": b"",
    })  # fmt: skip
    assert tree(folder) == {} and not (folder.parent / "out.png").exists()
    why = dict(done.left)
    assert (
        len(why) == 9
        and "this film cannot be read" in why["c.mp4"]
        and "cannot be read" in why["a.png"]
        and "0 bytes" in why["g.png"]
    )
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
    "a_control.png", "a.control.png", "control/a.png", "control/a_1.png", "control_2/a.png", "control/a.png.png",
    "sub_control/a.png", "sub_mask/a.png", "a.png.mask.png", "masks/a.png.png",
])  # fmt: skip


@given(
    st.lists(st.dictionaries(st.tuples(st.integers(0, 1), NAMES), st.sampled_from([RED, BLUE, GREEN])), min_size=1, max_size=3)
)
def test_whatever_comes_nothing_that_was_there_changes_and_each_file_is_accounted_for(tmp_path_factory, drops):
    folder = tmp_path_factory.mktemp("any") / "set"
    folder.mkdir()
    for files in drops:
        before = tree(folder)
        done = drop(folder, files)
        after = tree(folder)
        assert before.items() <= after.items()
        named = {name for name, _ in done.new} | set(done.there) | {name for name, _ in done.left}
        assert named == {name for _, name in files}
        assert {path for _, path in done.new} == after.keys() - before.keys()
        for name, path in done.new:
            assert after[path] in [data for (_, one), data in files.items() if one == name]


BESIDE = st.sampled_from([
    "cat.txt", "cat.jpg.txt", "cat.TXT", "cat.mask.png", "cat_mask.png", "mask_cat.png", "masks/cat.png", "masks/cat.jpg.png",
    *CONTROLS,
])  # fmt: skip


@given(st.lists(BESIDE, min_size=1, max_size=4, unique=True))
def test_a_renamed_picture_is_read_as_it_would_be_read_alone(tmp_path_factory, names):
    """The reference is the scan itself, of a folder that was empty before."""
    files = {
        "cat.jpg": BLUE,
        **{
            name: png((200, 200, 10 * i)) if name[-3:] != "txt" and name[-3:] != "TXT" else name.encode()
            for i, name in enumerate(names)
        },
    }
    top = tmp_path_factory.mktemp("any")
    read = []
    for place, there in (
        ("alone", {}),
        ("filled", {"cat.jpg": RED, "cat.txt": b"red", "cat.mask.png": png("red"), "cat.control.png": RED}),
    ):
        folder = top / place
        folder.mkdir()
        drop(folder, there)
        drop(folder, files)
        (new,) = [s for s in samples_of(folder) if s.path.read_bytes() == BLUE]
        read.append((new.caption, new.mask_key, [c.key for c in new.controls]))
    assert read[0] == read[1]


@pytest.fixture
def film(tmp_path):
    def made(seed=0):
        return write(tmp_path / f"{seed}.mkv", levels(6, seed=seed)).read_bytes()

    return made


def test_a_film_comes_with_its_caption_and_mask_and_takes_no_others_name(folder, film):
    files = {"walk.mkv": film(), "walk.txt": b"someone walks", "walk.mask.png": png("white"), "walk_mask.mkv": film(3)}
    done = drop(folder, files)
    assert tree(folder) == files and not done.left
    other = film(1)
    done = drop(folder, {"walk.mkv": other, "walk.txt": b"someone runs"})
    assert dict(done.new) == {"walk.mkv": "walk (2).mkv", "walk.txt": "walk (2).txt"} and not done.left
    found = captions(folder, clip_frames="5")
    assert (found["walk.mkv"], found["walk (2).mkv"]) == ("someone walks", "someone runs")
    done = drop(folder, {"walk.mkv": other, "walk.txt": b"someone runs", "walk.png": RED})
    assert dict(done.new) == {"walk.png": "walk (3).png", "walk.txt": "walk (3).txt"} and "walk.mkv" in done.there


def test_a_caption_finds_the_film_that_lies_there(folder, film):
    drop(folder, {"walk.mkv": film()})
    done = drop(folder, {"walk.txt": b"someone walks"})
    assert dict(done.new) == {"walk.txt": "walk.txt"} and captions(folder, clip_frames="5") == {"walk.mkv": "someone walks"}


def test_what_is_no_film_or_would_be_a_mask_is_left_out_with_its_reason(folder, film):
    files = {
        "a.mkv": b"no film" * 99,
        "a.txt": b"its caption",
        "b.mp4": RED,
        "control/c.mkv": film(),
        "c.png": RED,
        "d.wmv": b"x",
    }
    done = drop(folder, files)
    why = dict(done.left)
    assert "this film cannot be read" in why["a.mkv"] and "this film cannot be read" in why["b.mp4"]
    assert "neither masks nor control pictures" in why["control/c.mkv"] and "Save them as MP4" in why["d.wmv"]
    assert why["a.txt"] == "captions of pictures that are not used" and tree(folder) == {"c.png": RED}


def test_a_film_has_no_control_pictures(folder, film):
    """A scan with clip_frames refuses them, so none is laid beside a film."""
    done = drop(folder, {"cat.png": RED, "cat.mkv": film(), "cat.txt": b"a cat", "control/cat.png": BLUE})
    assert dict(done.new) == {
        "cat.png": "cat.png", "cat.mkv": "cat (2).mkv", "cat.txt": "cat (2).txt", "control/cat.png": "control/cat.png",
    }  # fmt: skip
    assert not done.left and captions(folder, clip_frames="1, 5") == {"cat.png": "a cat", "cat (2).mkv": "a cat"}


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("control", ["control/cat.png", "cat.control.png", "cat_control.png", "control/cat.mkv.png"])
def test_a_control_picture_of_a_film_alone_is_left_out_and_told(folder, film, there, control):
    if there:
        drop(folder, {"cat.mkv": film()})
    done = drop(folder, {**({} if there else {"cat.mkv": film()}), control: BLUE})
    ((name, why),) = done.left
    assert name == control and why.startswith("films have no control pictures")
    assert [*tree(folder)] == ["cat.mkv"] and [*captions(folder, clip_frames="5")] == ["cat.mkv"]
