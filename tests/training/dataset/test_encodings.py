"""Encodings of caption files: what is certain is right, what is guessed says so, and what nobody can tell is asked about."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.config import CAPTION_ENDINGS, ENCODINGS, SubsetConfig
from lora_atelier.training.dataset import caption_reader
from lora_atelier.training.dataset.caption_reader import CaptionReader
from lora_atelier.training.dataset.captions import clean
from lora_atelier.training.dataset.encodings import codec, decoded, encoded, guess, writable
from lora_atelier.training.errors import AtelierError

SENTENCES = {
    ("gb18030",): (
        "一只猫坐在红色的沙发上|一个女孩站在海边，穿着白色连衣裙|夜晚的城市街道，下着雨|红色头发，微笑，户外，阳光|两个孩子在公园里玩足球|"
        "老人在树下看报纸|雪山前的小木屋|水墨画风格，山水，松树"
    ),
    ("big5",): "一隻貓坐在紅色的沙發上|一個女孩站在海邊，穿著白色連衣裙|夜晚的城市街道，下著雨|兩個孩子在公園裡玩足球",
    ("shift-jis", "euc-jp"): (
        "赤いソファに座っている猫|海辺に立つ白いワンピースの少女|夜の街、雨、ネオン|赤い髪、笑顔、屋外|"
        "公園でサッカーをする二人の子供|木の下で新聞を読む老人|机の上のコーヒーと本|眼鏡をかけた男性がギターを弾いている"
    ),
    ("euc-kr",): (
        "빨간 소파에 앉아 있는 고양이|바닷가에 서 있는 소녀|비 오는 밤의 도시 거리|빨간 머리, 미소, 야외"
    ),
    ("windows-1251", "koi8-r"): (
        "рыжая кошка сидит на красном диване|девушка стоит у моря в белом платье|ночная улица города, дождь|"
        "рыжие волосы, улыбка, лето|Двое детей играют в футбол|ёлка|кот"
    ),
    ("windows-1252",): (
        "une fille sourit à la caméra|un café près de la fenêtre, l'été|naïve, déjà vu|eine süße Katze|über die Straße"
    ),
    ("windows-1250",): "zażółć gęślą jaźń|kot na łóżku|dwoje dzieci gra w piłkę nożną|mężczyzna w okularach",
    ("windows-1253",): "μια κόκκινη γάτα στον καναπέ|ένα κορίτσι στη θάλασσα|δύο παιδιά παίζουν ποδόσφαιρο στο πάρκο",
    ("windows-1254",): "kırmızı koltukta oturan kedi, güneşli gün|deniz kenarında duran kız|parkta futbol oynayan iki çocuk",
}  # fmt: skip
CASES = [(name, text.split("|")) for names, text in SENTENCES.items() for name in names]


def reader(**settings: object) -> CaptionReader:
    return CaptionReader(SubsetConfig("input/set", **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(("encoding", "sentences"), CASES)
def test_what_is_guessed_is_right_or_nothing_is_guessed(encoding: str, sentences: list[str]) -> None:
    """Every sentence alone, and by chance two to all of them together."""
    draw = random.Random(encoding)
    samples = [[one] for one in sentences] + [draw.sample(sentences, 2 + i % (len(sentences) - 1)) for i in range(20)]
    for sample in samples:
        data = encoded("\n".join(sample), encoding)
        assert data is not None
        found = guess(data)
        assert found is None or data.decode(codec(found)) == data.decode(codec(encoding)), (found, sample)


@pytest.mark.parametrize("encoding", ["gb18030", "big5", "windows-1251", "koi8-r", "windows-1250"])
def test_a_folder_of_captions_tells_its_encoding(tmp_path: Path, encoding: str) -> None:
    sentences = dict(CASES)[encoding]
    for i, text in enumerate(sentences):
        (tmp_path / f"{i}.txt").write_bytes(text.encode(codec(encoding)))
    (tmp_path / "9.txt").write_text("plain", encoding="utf-8")
    one = reader()
    assert [one.caption(tmp_path / f"{i}.png") for i in range(len(sentences))] == sentences
    assert one.caption(tmp_path / "9.png") == "plain" and len(one.notes()) == 1
    assert f"read as {encoding.upper()}, a guess by their letters" in one.notes()[0]


def test_a_file_that_is_not_like_the_others_is_asked_about(tmp_path: Path) -> None:
    for i, text in enumerate(dict(CASES)["gb18030"]):
        (tmp_path / f"{i}.txt").write_bytes(text.encode("gb18030"))
    (tmp_path / "odd.txt").write_bytes("море, лето, дома".encode("cp1251"))
    assert decoded((tmp_path / "odd.txt").read_bytes(), "gb18030"), "it could be read as the others are"
    with pytest.raises(AtelierError, match=r"odd\.txt: this file is not UTF-8"):
        reader().caption(tmp_path / "odd.png")


@pytest.mark.parametrize("data", ["café".encode("cp1252"), "女孩".encode("gb18030"), "кот".encode("cp1251"), b"caf\xe9 \x81"])
def test_what_nobody_can_tell_is_asked_about(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(AtelierError, match=r"a\.txt: this file is not UTF-8.*Set caption_encoding on Load Dataset"):
        reader().caption(tmp_path / "a.png")


def test_a_word_that_is_utf8_by_chance_is_asked_about(tmp_path: Path) -> None:
    """The two bytes of the Chinese cat are an accented letter in UTF-8."""
    assert "猫".encode("gb18030") == "è".encode()
    for name, text in (("a", "猫"), ("b", "猫, cat")):
        (tmp_path / f"{name}.txt").write_bytes(text.encode("gb18030"))
    with pytest.raises(AtelierError, match=r"a\.txt: this file can be read as UTF-8 \(è\) and in other encodings"):
        reader().caption(tmp_path / "a.png")
    assert reader().caption(tmp_path / "b.png") == "è, cat", "alone it could be anything"
    for i, text in enumerate(dict(CASES)["gb18030"]):
        (tmp_path / f"{i}.txt").write_bytes(text.encode("gb18030"))
    with pytest.raises(AtelierError, match=r"b\.txt: this file can be read as UTF-8"):
        reader().caption(tmp_path / "b.png")
    told = reader(caption_encoding="gb18030")
    assert (told.caption(tmp_path / "a.png"), told.caption(tmp_path / "b.png")) == ("猫", "猫, cat")


@pytest.mark.parametrize("text", ["кот", "café", "süß, cat", "γάτα", "ё, cat"])
def test_short_words_that_are_utf8_stay_utf8(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert reader().caption(tmp_path / "a.png") == text


@given(st.text("caféКот猫è ,", min_size=1, max_size=12), st.sampled_from(ENCODINGS), st.sampled_from(["detect", *ENCODINGS]))
def test_what_is_written_is_read_again(text: str, encoding: str, declared: str) -> None:
    data, _ = writable(text, encoding, declared)
    again = decoded(data, declared)
    assert again is not None and again.text == text


def test_without_the_package_everything_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    data = "рыжая кошка сидит на красном диване".encode("cp1251")
    assert guess(data) == "windows-1251"
    monkeypatch.setitem(sys.modules, "charset_normalizer", None)
    assert guess(data) is None


@pytest.mark.parametrize(("encoding", "sentences"), CASES)
def test_the_persons_word_is_taken_and_utf8_stays_utf8(tmp_path: Path, encoding: str, sentences: list[str]) -> None:
    one = reader(caption_encoding=encoding)
    for text in sentences:
        (tmp_path / "a.txt").write_bytes(text.encode(codec(encoding)))
        (tmp_path / "b.txt").write_text(text, encoding="utf-8")
        assert one.caption(tmp_path / "a.png") == text == one.caption(tmp_path / "b.png")
    assert "guess" not in " ".join(one.notes())


def test_the_persons_word_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    for wrong in ("utf-8", "shift-jis", "euc-jp"):
        with pytest.raises(AtelierError, match=rf"a\.txt: this file is not {wrong.upper()}\. Set caption_encoding"):
            reader(caption_encoding=wrong).caption(tmp_path / "a.png")
    with pytest.raises(AtelierError, match="caption encoding: 'cp437' is not one of detect, utf-8"):
        reader(caption_encoding="cp437")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("text", ["a cat", "猫 cat", "zażółć, 猫\n"])
def test_unicode_is_certain_with_and_without_its_mark(encoding: str, text: str) -> None:
    found = decoded(text.encode(encoding))
    assert found is not None and found.text == text and encoded(text, found.encoding) == text.encode(encoding)


def test_japanese_of_mails_is_not_taken_for_the_ascii_that_its_bytes_are(tmp_path: Path) -> None:
    text = "1人の女の子、長い髪"
    (tmp_path / "1.txt").write_bytes(text.encode("iso2022-jp"))
    found = reader().file(tmp_path / "1.txt")
    assert found is not None and (found.text, found.encoding, found.guessed) == (text, "iso2022-jp", False)
    data, name = writable(f"{text}, café\n", found.encoding, "detect")
    assert (name, data.decode("utf-8")) == ("utf-8", f"{text}, café\n")
    assert writable(text, found.encoding, "detect") == (text.encode("iso2022-jp"), "iso2022-jp")
    (tmp_path / "2.txt").write_bytes(b"a \x1b$B cat \xff")
    with pytest.raises(AtelierError, match=r"2\.txt"):
        reader().file(tmp_path / "2.txt")


@pytest.mark.parametrize("text", ["빨간 드레스를 입은 소녀", "소녀, 긴 머리, 미소", "벚꽃 나무 아래에 서 있다, 봄날 오후의 햇살"])
def test_korean_is_not_taken_for_chinese(text: str) -> None:
    assert guess(text.encode("cp949")) in (None, "euc-kr")


@pytest.mark.parametrize("data", [b"\x00\x01\x02\x00", b"a\0b", "a cat".encode("utf-16-le") + b"\x00", b"\0" * 8])
def test_what_is_no_text_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(AtelierError, match=r"a\.txt: this is no text file"):
        reader().caption(tmp_path / "a.png")


@given(st.binary(max_size=200), st.sampled_from(["detect", *ENCODINGS]))
def test_any_bytes_are_read_without_a_loss_or_not_at_all(data: bytes, declared: str) -> None:
    found = decoded(data, declared)
    assert found is None or found.encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", declared)
    if found is not None and found.encoding == "utf-8":
        assert encoded(found.text, "utf-8") == data


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" one,\r\n\r\n two \n", "one,\ntwo"),
        ("a\tcat", "a cat"),
        ("\ufeffa\ufeff cat\u200b", "a cat"),
        ("a\x07cat", "a cat"),
        ("\u0645\u06cc\u200c\u062e\u0648", "\u0645\u06cc\u200c\u062e\u0648"),
        ("👩‍🎨", "👩‍🎨"),
        ("", ""),
        ("\u200b \n\t", ""),
    ],
)
def test_what_nobody_sees_is_not_learnt(text: str, expected: str) -> None:
    assert clean(text) == expected == clean(clean(text))


def test_lines_are_one_text_or_alternatives_and_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a cat \n\n on a mat\n")
    one, several = reader(), reader(caption_lines="alternatives")
    assert (one.caption(tmp_path / "a.png"), several.caption(tmp_path / "a.png")) == ("a cat on a mat", "a cat\non a mat")
    assert "read as one text: a.txt. Set caption_lines to alternatives" in one.notes()[0]
    assert "of which every sighting takes one: a.txt" in several.notes()[0]
    assert reader().caption(tmp_path / "gone.png") is None


def test_what_cannot_be_a_caption_is_named(tmp_path: Path) -> None:
    (tmp_path / "big.txt").write_bytes(b"x" * (1 << 21))
    with pytest.raises(AtelierError, match=r"big\.txt: this is too large"):
        reader().caption(tmp_path / "big.png")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(AtelierError, match=r"folder\.txt: the caption cannot be read"):
        reader().caption(tmp_path / "folder.png")


def test_captions_under_other_names_are_found_by_their_picture(tmp_path: Path) -> None:
    names = ["a.TXT", "a.caption", "a.jpg.txt", "A.Cap", "a.json", "ab.txt", "a.txt"]
    for name in names:
        (tmp_path / name).write_text("x")
    assert {path.name for path in reader().others(tmp_path / "a.jpg")} == {"a.TXT", "a.caption", "a.jpg.txt", "A.Cap"}
    assert all(ending.startswith(".") and ending == ending.lower() for ending in CAPTION_ENDINGS)


def test_a_guess_costs_one_look_at_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is read once for itself and once for the guess, whatever their number."""
    for i in range(30):
        (tmp_path / f"{i}.txt").write_bytes(f"рыжая кошка сидит на красном диване {i}".encode("cp1251"))
    reads: list[Path] = []
    real = caption_reader.read_limited
    monkeypatch.setattr(caption_reader, "read_limited", lambda path, most: reads.append(path) or real(path, most))
    one = reader()
    assert all(one.caption(tmp_path / f"{i}.png") for i in range(30))
    assert len(reads) == 60


@pytest.mark.parametrize(
    ("encoding", "codec", "text"),
    [("windows-874", "cp874", "แมวส้ม"), ("windows-1255", "cp1255", "חתול כתום"), ("windows-1256", "cp1256", "قطة برتقالية"),
     ("windows-1258", "cp1258", "con mèo màu cam")],
)  # fmt: skip
def test_encodings_that_are_never_guessed_can_be_said(tmp_path: Path, encoding: str, codec: str, text: str) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode(codec))
    said = CaptionReader(SubsetConfig("input/x", caption_encoding=encoding)).caption(tmp_path / "a.png")
    assert said == text
