"""Text of other languages on a grid's page."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from lora_atelier.training.grid import lettering, sheet
from lora_atelier.training.grid.lettering import Lettering
from PIL import Image, ImageChops, ImageDraw, ImageFont

DEJAVU = next((path for path in lettering.files() if path.stem == "DejaVuSans"), None)
needs_dejavu = pytest.mark.skipif(DEJAVU is None, reason="DejaVu Sans is not installed")
LANGUAGES = {"German": "Füße, über", "French": "déjà vu, garçon", "Russian": "лиса в лесу", "Greek": "αλεπού", "Polish": "żółw"}


def only(monkeypatch: pytest.MonkeyPatch, *paths: Path) -> None:
    monkeypatch.setattr(lettering, "files", lambda: paths)
    lettering._file_with.cache_clear()
    monkeypatch.setattr(lettering, "_file_with", lettering._file_with.__wrapped__)


def picture(text: str, size: int = 24) -> Image.Image:
    page = Image.new("RGB", (900, 40), "white")
    lettering.lettering(size).draw(ImageDraw.Draw(page), (4, 4), text, (0, 0, 0))
    return page


def differ(one: Image.Image, other: Image.Image) -> bool:
    return ImageChops.difference(one, other).getbbox() is not None


def test_english_is_drawn_as_pillow_draws_it() -> None:
    """So pages do not depend on what a computer has."""
    page = Image.new("RGB", (900, 40), "white")
    ImageDraw.Draw(page).text((4, 4), "a fox, 0.85 (step 12)", (0, 0, 0), ImageFont.load_default(24))
    assert not differ(page, picture("a fox, 0.85 (step 12)"))


@needs_dejavu
@pytest.mark.parametrize("text", LANGUAGES.values(), ids=LANGUAGES)
def test_every_letter_has_its_own_shape(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No empty box: what another font draws for a letter is what stands on the page."""
    assert DEJAVU is not None
    only(monkeypatch, DEJAVU)
    assert lettering.missing([text]) == [] == lettering.remark([text])
    other = ImageFont.truetype(str(DEJAVU), 24)
    for letter in set(text):
        if not letter.isascii():
            page = Image.new("RGB", (900, 40), "white")
            ImageDraw.Draw(page).text((4, 4 + Lettering(24).own.getmetrics()[0]), letter, (0, 0, 0), other, anchor="ls")
            assert not differ(page, picture(letter)), letter


def test_a_letter_that_no_font_has_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch)
    assert lettering.missing(["a 狐 in 森", "狐"]) == ["狐", "森"]
    (said,) = lettering.remark(["a 狐 in 森"])
    assert "no font on this computer has 狐 森;" in said and lettering.PACKAGE in said
    assert not differ(picture("a 狐"), picture("a ?"))


@needs_dejavu
def test_a_letter_in_parts_is_the_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    """File names on a Mac hold e and its accent apart."""
    assert DEJAVU is not None
    only(monkeypatch, DEJAVU)
    assert not differ(picture("e\u0301t\u00e9"), picture("été"))


@needs_dejavu
def test_anchors_place_mixed_text_as_its_width_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert DEJAVU is not None
    only(monkeypatch, DEJAVU)
    one, text = lettering.lettering(20), "fox лиса"
    for anchor, left in (("ls", 300.0), ("ms", 300 - one.length(text) / 2), ("rs", 300 - one.length(text))):
        page = Image.new("RGB", (600, 60), "white")
        one.draw(ImageDraw.Draw(page), (300, 40), text, (0, 0, 0), anchor)
        box = ImageChops.invert(page).getbbox()
        assert box is not None and abs(box[0] - left) <= 3 and abs(box[2] - left - one.length(text)) <= 3


def test_a_line_may_end_behind_any_chinese_or_japanese_letter() -> None:
    text = "森の中で眠る一匹の赤い狐"
    font = sheet._font(20)
    lines = sheet._wrap(font, text, 6 * sheet._width(font, "森"))
    assert "".join(lines) == text and len(lines) >= 2


def test_the_package_is_found_without_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / lettering.MODULE
    folder.mkdir()
    (folder / "__init__.py").write_text("raise SystemExit('ran')")
    (folder / "NotoSansCJKtc-Regular.otf").write_bytes(b"")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert lettering._packaged() == [folder / "NotoSansCJKtc-Regular.otf"]


def test_fonts_are_found_however_a_system_writes_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Mac's disk gives the accents of kana apart, and nobody's case is sure."""
    monkeypatch.setattr(lettering, "folders", lambda: [tmp_path])
    monkeypatch.setattr(lettering, "_packaged", lambda: [])
    names = ["ARIAL.TTF", unicodedata.normalize("NFD", "ヒラギノ角ゴシック W3.ttc"), "NotoSansCJK-VF.ttc", "other.ttf"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert {path.name for path in lettering.files.__wrapped__()} == set(names[:3])


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_without_a_home_the_systems_fonts_are_left(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(lettering.sys, "platform", system)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    own = lettering.folders()
    monkeypatch.setattr(Path, "home", nobody)
    assert lettering.folders() == [folder for folder in own if "me" not in folder.parts] != []
