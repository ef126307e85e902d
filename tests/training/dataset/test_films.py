"""Films: frames are those that PyAV decodes from the beginning, wherever one starts, and no file brings in others."""

from __future__ import annotations

import sys
from fractions import Fraction

import numpy as np
import pytest
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset import films
from lora_atelier.training.dataset.images import frames_of_picture, open_picture, timing_of
from lora_atelier.training.dataset.scan import scan
from lora_atelier.training.errors import AtelierError
from PIL import Image

from .made_films import CODECS, decoded, levels, write


@pytest.mark.parametrize("ending", sorted(CODECS))
def test_a_film_of_each_kind_is_read_as_it_is_decoded(tmp_path, ending):
    path = write(tmp_path / f"film{ending}", levels(11), 12)
    film, middle = films.look_at(path)
    own = decoded(path)
    assert film == films.FilmFacts(64, 48, 11, Fraction(12)) and len(own) == 11
    assert np.array_equal(np.asarray(middle), own[5])
    found = list(films.frames_of(path, [0, 3, 3, 10], 11))
    assert all(np.array_equal(np.asarray(one), own[i]) for one, i in zip(found, (0, 3, 3, 10), strict=True))
    about = films.header(path)
    assert (about.width, about.height) == (64, 48) and abs(about.frames - 11) <= 1


@pytest.mark.parametrize("options", [{}, {"bf": "3"}, {"x264-params": "open-gop=1:bframes=3:keyint=20"}, {"bf": "0", "g": "300"}])
def test_what_is_jumped_to_is_what_is_decoded_from_the_beginning(tmp_path, options, monkeypatch):
    path = write(tmp_path / "film.mp4", levels(160), 24, g=options.get("g", "30"), **{k: options[k] for k in options if k != "g"})
    own, count = decoded(path), 160
    asked, real = [], films._from_start
    monkeypatch.setattr(films, "_from_start", lambda *given: asked.append(1) or real(*given))
    for first in (49, 60, 61, 79, 80, 81, 100, 119, 150):
        places = list(range(first, min(first + 7, 160)))
        found = list(films.frames_of(path, places, count))
        assert len(found) == len(places)
        assert all(np.array_equal(np.asarray(one), own[i]) for one, i in zip(found, places, strict=True)), first
    assert len(asked) < 9, "or nothing was jumped over"


def test_lossless_frames_come_back_level_by_level(tmp_path):
    wanted = levels(6)
    path = write(tmp_path / "film.mkv", wanted)
    assert np.array_equal(np.stack([np.asarray(one) for one in films.frames_of(path, range(6), 6)]), wanted)


def test_an_animated_picture_is_a_film_of_its_frames(tmp_path):
    wanted = levels(7)
    for name, more in (("film.gif", {}), ("film.png", {}), ("film.webp", {"lossless": True})):
        path = tmp_path / name
        first, *others = map(Image.fromarray, wanted)
        first.save(path, save_all=True, append_images=others, duration=80, loop=0, **more)
        assert timing_of(path) == (7, Fraction(25, 2))
        found = [np.asarray(one) for one in frames_of_picture(path, [1, 1, 4])]
        if name != "film.gif":
            assert np.array_equal(np.stack(found), wanted[[1, 1, 4]])
        with Image.open(path) as image:
            image.seek(4)
            assert np.array_equal(found[2], np.asarray(image.convert("RGB")))
    Image.new("RGB", (8, 8)).save(tmp_path / "still.png")
    assert timing_of(tmp_path / "still.png")[0] == 1


def test_where_a_picture_is_asked_for_a_film_shows_its_middle(tmp_path):
    path = write(tmp_path / "film.mp4", levels(9))
    assert np.array_equal(np.asarray(open_picture(path)), decoded(path)[4])


def test_what_is_no_film_is_told_by_its_name(tmp_path):
    for name, data in (("a.mp4", b""), ("b.mkv", b"no film" * 99), ("c.mp4", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(AtelierError, match=rf"{name}: this film cannot be read \(.+\). Repair it, or take it out"):
            films.look_at(tmp_path / name)
    whole = write(tmp_path / "whole.mp4", levels(60)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(AtelierError, match=r"cut.mp4: this film cannot be read"):
        films.look_at(tmp_path / "cut.mp4")
    with pytest.raises(AtelierError, match=r"whole.mp4: the film has changed since the folder was read"):
        list(films.frames_of(tmp_path / "whole.mp4", [70], 80))


def test_a_film_without_a_decoder_is_named(tmp_path):
    """Its kind of coding is known by four letters in the file."""
    path = write(tmp_path / "walk.avi", levels(4))
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"ZZZZ"))
    with pytest.raises(AtelierError, match=r"walk\.avi: this film cannot be read"):
        films.header(path)
    Image.new("RGB", (64, 64)).save(tmp_path / "still.png")
    config = SubsetConfig("input/set", resolution=64, clip_frames="3", broken="leave out")
    (subset,) = scan(tmp_path, config)
    assert [sample.path.name for sample in subset.samples] == ["still.png"]
    assert any("walk.avi" in sentence for sentence in subset.warnings)


def test_another_file_is_never_opened_through_a_film(tmp_path):
    write(tmp_path / "own.mp4", levels(5))
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile own.mp4\n")
    (tmp_path / "hls.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nown.mp4\n#EXT-X-ENDLIST\n")
    for name in ("list.mp4", "hls.mp4"):
        with pytest.raises(AtelierError, match="cannot be read"):
            films.look_at(tmp_path / name)


def test_a_film_that_lies_on_its_side_is_turned(tmp_path):
    import av

    plain = write(tmp_path / "plain.mp4", levels(3))
    turned = tmp_path / "turned.mp4"
    with av.open(str(plain)) as source, av.open(str(turned), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    data = bytearray(turned.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 16  # version and flags, times and numbers, layer and volume: then the matrix
    one = (1 << 16).to_bytes(4, "big")
    matrix = [b"\0" * 4, one, b"\0" * 4, ((1 << 32) - (1 << 16)).to_bytes(4, "big"), b"\0" * 4, b"\0" * 4]
    data[at : at + 24] = b"".join(matrix)
    turned.write_bytes(data)
    film, middle = films.look_at(turned)
    assert (film.width, film.height) == (48, 64) == middle.size
    # A quarter with the clock, as players show this matrix.
    assert np.array_equal(np.asarray(middle), np.rot90(decoded(plain)[1], -1))


def test_without_the_package_a_sentence_says_so(tmp_path, monkeypatch):
    path = write(tmp_path / "film.mp4", levels(3))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AtelierError, match=r"film.mp4: films are read by the Python package av, which is missing here"):
        films.look_at(path)
