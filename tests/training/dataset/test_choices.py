"""Captions with choices: what ComfyUI's page and kohya's trainer read in braces, and what every sighting takes of it."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset.augment import (
    CHOICES,
    FIXED,
    caption_variants,
    count_of,
    plain_caption,
    sighted_caption,
    spoken_triggers,
    variants_of,
)
from lora_atelier.training.dataset.choices import combinations, drawn, offers, parsed, period, taken
from lora_atelier.training.dataset.put_aside import remove
from lora_atelier.training.dataset.samples import Dataset
from lora_atelier.training.dataset.scan import folder_stamp, refresh_captions, scan
from lora_atelier.training.errors import AtelierError
from PIL import Image

KEY = "ab" * 32


def config(**values):
    return SubsetConfig("input/set", **values)


def picture(path, colour="red"):
    Image.new("RGB", (64, 48), colour).save(path)
    return path


def sights(caption, number, **values):
    return [sighted_caption(caption, config(**values), 3, KEY, i) for i in range(number)]


def of_comfyui(text: str, choose) -> str:
    """What ComfyUI's page makes of a prompt with ``dynamicPrompts`` (its ``processDynamicPrompt``, without comments)."""
    place, result = 0, ""
    while place < len(text):
        sign = text[place]
        place += 1
        if sign == "\\":
            result += "\\" + text[place : place + 1]
            place += 1
        elif sign == "{":
            options, option, depth = [], "", 0
            while place < len(text):
                sign = text[place]
                place += 1
                if sign == "\\":
                    option += "\\" + text[place : place + 1]
                    place += 1
                    continue
                if sign == "{":
                    depth += 1
                elif sign == "}":
                    if not depth:
                        break
                    depth -= 1
                elif sign == "|" and not depth:
                    options.append(option)
                    option = ""
                    continue
                option += sign
            result += of_comfyui(choose([*options, option]), choose)
        else:
            result += sign
    return re.sub(r"\\([{}|])", r"\1", result)


def every_text(text: str) -> dict[str, Fraction]:
    """Each text that ComfyUI's page can make, with its chance."""
    found: dict[str, Fraction] = {}
    waiting: list[tuple[int, ...]] = [()]
    while waiting:
        path = waiting.pop()
        sizes: list[int] = []

        def choose(options, path=path, sizes=sizes):
            sizes.append(len(options))
            return options[path[len(sizes) - 1]] if len(sizes) <= len(path) else options[0]

        said = of_comfyui(text, choose)
        if len(sizes) > len(path):
            waiting += [(*path, i) for i in range(sizes[len(path)])]
            continue
        chance = Fraction(1)
        for size in sizes:
            chance /= size
        found[said] = found.get(said, Fraction(0)) + chance
    return found


balanced = st.recursive(
    st.sampled_from(["a", "b ", ", c", "", "\\{", "\\}", "\\|", "d"]),
    lambda inner: st.lists(st.lists(inner, min_size=1, max_size=2).map("".join), min_size=2, max_size=3).map(
        lambda options: "x{" + "|".join(options) + "}y"
    ),
    max_leaves=6,
)


@settings(max_examples=80, deadline=None)
@given(st.lists(balanced, min_size=1, max_size=2).map("".join))
def test_a_round_of_turns_has_every_text_as_often_as_comfyui_would_draw_it(text):
    pieces, expected = parsed(text), every_text(text)
    turns = period(pieces)
    if turns > 5000:
        return
    counts = Counter(taken(pieces, turn) for turn in range(turns))
    assert {said: Fraction(count, turns) for said, count in counts.items()} == expected
    assert combinations(pieces) >= len(expected)
    assert drawn(pieces, random.Random(1)) in expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a {red|blue} hat", {"a red hat", "a blue hat"}),
        ("{a|{b|c} d}", {"a", "b d", "c d"}),
        ("a {|tiny }cat", {"a cat", "a tiny cat"}),
        ("{{a|b}} cat", {"{a|b} cat"}),  # kohya's escape
        ("{{a|b}|c}", {"a", "b", "c"}),
        (r"\{a\|b\} cat", {"{a|b} cat"}),
        ("a | b", {"a | b"}), ("a { b", {"a { b"}), ("a } b", {"a } b"}), ("{a|b", {"{a|b"}),
        ("{a|{b|c}", {"{a|b", "{a|c"}),
        ("{a}", {"a"}), ("", {""}), ("\\", {"\\"}),
    ],
)  # fmt: skip
def test_what_braces_mean(text, expected):
    pieces = parsed(text)
    assert {taken(pieces, turn) for turn in range(period(pieces))} == expected
    assert {drawn(pieces, random.Random(seed)) for seed in range(60)} == expected


@pytest.mark.parametrize("text", ["{" * 5000, "{a|" * 3000 + "}" * 3000, "{a|b}" * 20_000])
def test_no_caption_is_too_much(text):
    values = config(wildcards=True)
    assert len(caption_variants(text, values, 0, KEY, 3)) <= 3 and offers(text) is ("}" in text)


def test_the_choices_of_a_caption_come_in_turn_and_differ_between_pictures():
    caption = "ohwx, {red|blue|green} hat, {day|night}"
    seen = sights(caption, 12, wildcards=True)
    assert Counter(seen[:6]) == Counter(seen[6:]) and len(set(seen[:6])) == 6
    others = [sighted_caption(caption, config(wildcards=True), 3, "cd" * 32, i) for i in range(6)]
    assert sorted(others) == sorted(seen[:6]) and others != seen[:6]
    assert plain_caption(caption, config(wildcards=True)) == "ohwx, red hat, day"
    assert sighted_caption(caption, config(wildcards=True), 3, KEY, FIXED) == "ohwx, red hat, day"
    assert set(sights(caption, 9)) == {caption}, "off, braces are text"
    assert count_of(caption, config(wildcards=True)) == 6 and count_of(caption, config()) == 1


def test_lines_take_turns_whatever_their_choices():
    caption = "a cat\na {red|blue|green} dog\na {x|y} bird"
    seen = sights(caption, 36, wildcards=True, caption_lines="alternatives")
    for start in range(0, 36, 3):
        assert sorted(text.split()[-1] for text in seen[start : start + 3]) == ["bird", "cat", "dog"]
    assert set(Counter(text for text in seen[:18]).values()) == {6, 2, 3}


def test_prefix_and_suffix_have_choices_too():
    seen = sights("a cat", 4, wildcards=True, caption_prefix="{photo|picture} of ")
    assert set(seen) == {"photo of a cat", "picture of a cat"}


def test_many_combinations_are_drawn_and_bounded():
    caption = " ".join(f"{{a{i}|b{i}|c{i}}}" for i in range(6)) + "\nplain"
    values = config(wildcards=True, caption_lines="alternatives")
    ahead = caption_variants(caption, values, 5, KEY, 10_000)
    assert variants_of(caption, values) == CHOICES and CHOICES // 2 < len(ahead) <= CHOICES
    seen = [sighted_caption(caption, values, 5, KEY, i) for i in range(200)]
    assert set(seen) == set(ahead) and seen[:CHOICES].count("plain") == CHOICES // 2
    many = config(caption_lines="alternatives")
    assert variants_of("\n".join(map(str, range(100))), many) == 100, "lines that somebody wrote are all read"


@settings(max_examples=60, deadline=None)
@given(
    st.text("ab{}|,\n\\ ", max_size=40), st.booleans(), st.sampled_from([0.0, 0.4]), st.sampled_from([0.0, 0.3]),
    st.sampled_from(["", "a", "a, b"]), st.sampled_from(["empty", "trigger words"]), st.sampled_from(["", "||"]),
    st.integers(1, 90),
)  # fmt: skip
def test_what_is_encoded_ahead_is_all_that_is_ever_seen(caption, shuffle, tags, whole, triggers, left, separator, number):
    values = config(
        wildcards=True, caption_lines="alternatives", shuffle_captions=shuffle, tag_dropout=tags, caption_dropout=whole,
        trigger_words=triggers, dropped_caption=left if triggers else "empty", keep_separator=separator,
    )  # fmt: skip
    ahead = caption_variants(caption, values, 1, KEY, number)
    seen = [sighted_caption(caption, values, 1, KEY, i) for i in range(number)]
    assert set(seen) <= set(ahead) and len(ahead) == len(set(ahead))
    assert not separator or not any(separator in text for text in seen)


def test_trigger_words_are_neither_moved_nor_dropped_wherever_they_stand():
    tags = "red hair, Photo of OHWX woman, smile, hat"
    for text in sights(tags, 60, shuffle_captions=True, trigger_words="ohwx"):
        assert text.split(", ")[1] == "Photo of OHWX woman" and len(text.split(", ")) == 4
    seen = sights(tags, 60, tag_dropout=0.9, trigger_words="ohwx")
    assert all("OHWX" in text for text in seen) and len(set(seen)) > 1
    assert any("ohwxy" not in text for text in sights("ohwxy, b, c", 60, tag_dropout=0.9, trigger_words="ohwx"))
    assert len(set(sights(tags, 60, shuffle_captions=True, trigger_words="hat, ohwx"))) == 2


@pytest.mark.parametrize("word", ["Name (series)", r"name \(series\)"])
@pytest.mark.parametrize("tag", ["name (series)", r"name \(series\)"])
def test_a_trigger_word_with_brackets_is_found_however_they_are_escaped(word, tag):
    caption = f"red hair, {tag}, smile, hat"
    for text in sights(caption, 60, shuffle_captions=True, tag_dropout=0.5, trigger_words=word):
        assert tag in text.split(", ")
    left = {
        text.casefold() for text in sights(caption, 60, caption_dropout=0.5, trigger_words=word, dropped_caption="trigger words")
    }
    assert left == {caption, tag}
    assert "" in sights("named (series), hat", 60, caption_dropout=0.5, trigger_words=word, dropped_caption="trigger words")


def test_what_a_separator_holds_is_as_kohya_holds_it():
    caption = "ohwx woman ||| red hair, smile, hat ||| photo, 4k"
    for text in sights(caption, 60, shuffle_captions=True, tag_dropout=0.5, keep_separator="|||"):
        found = text.split(", ")
        assert found[0] == "ohwx woman" and found[-2:] == ["photo", "4k"] and set(found[1:-2]) <= {"red hair", "smile", "hat"}
    assert sights(caption, 1, keep_separator="|||") == ["ohwx woman, red hair, smile, hat, photo, 4k"]
    assert plain_caption(caption, config(keep_separator="|||")) == "ohwx woman, red hair, smile, hat, photo, 4k"


def test_a_dropped_caption_leaves_nothing_or_the_trigger_words():
    caption = "photo of ohwx woman, red hair"
    assert set(sights(caption, 60, caption_dropout=0.5, trigger_words="ohwx, zkz")) == {caption, ""}
    kept = {"caption_dropout": 0.5, "trigger_words": "ohwx, zkz", "dropped_caption": "trigger words"}
    assert set(sights(caption, 60, **kept)) == {caption, "ohwx"}
    assert set(sights("a dog", 60, **kept)) == {"a dog", ""}


def test_long_and_short_captions_side_by_side(tmp_path):
    for name in ("1", "2", "3", "4.x"):
        picture(tmp_path / f"{name}.png", (len(name), 9, int(name[0])))
    for name, text in {
        "1.txt": "long", "1.short.txt": "short", "2.SHORT.txt": "just short", "4.x.txt": "dots", "4.x.short.txt": "fewer dots",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)
    (tmp_path / "1.json").write_text(json.dumps({"caption": "of json", "caption_short": "js", "score": "no caption", "tags": 3}))
    (tmp_path / "3.json").write_text(json.dumps({"caption": ["one", "two\nlines"]}))
    (off,) = scan(tmp_path, config())
    assert [s.caption for s in off.samples] == ["long", None, None, "dots"]
    assert ".short.txt files look like further captions and are not read (3)" in "".join(off.warnings)
    assert "Name .json in further_captions to use them." in "".join(off.warnings)
    (subset,) = scan(tmp_path, config(further_captions=".short.txt, .json"))
    expected = ["long\nshort\nof json\njs", "just short", "one\ntwo lines", "dots\nfewer dots"]
    assert [s.caption for s in subset.samples] == expected and "further" not in "".join(subset.warnings)
    assert {sighted_caption(subset.samples[0].caption, subset.config, 0, KEY, i) for i in range(4)} == {
        "long", "short", "of json", "js",
    }  # fmt: skip
    before = folder_stamp(tmp_path)
    (tmp_path / "1.short.txt").write_text("shorter still")
    assert folder_stamp(tmp_path) != before
    now = refresh_captions(Dataset((subset,)))
    assert next(iter(now.samples)).caption == "long\nshorter still\nof json\njs"
    (tmp_path / "3.json").write_text('{"score": 1}')
    with pytest.raises(AtelierError, match=r"3\.json: no caption was found in this file"):
        scan(tmp_path, config(further_captions=".json"))
    assert scan(tmp_path, config())[0].samples[2].caption is None


def test_further_captions_leave_with_their_picture(tmp_path):
    picture(tmp_path / "1.png")
    picture(tmp_path / "2.png", "blue")
    for name in ("1.txt", "1.short.txt", "1.json", "2.short.txt"):
        (tmp_path / name).write_text("{}")
    remove(tmp_path, ["1.png"], config(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["2.png", "2.short.txt"]


def test_only_the_first_line_is_read_where_that_is_meant(tmp_path):
    picture(tmp_path / "1.png")
    picture(tmp_path / "2.png", "blue")
    (tmp_path / "1.txt").write_text("a cat\nby me, 2020\n")
    (tmp_path / "m.jsonl").write_text(json.dumps({"file_name": "2.png", "text": ["a dog", "a hound"]}))
    assert [s.caption for s in scan(tmp_path, config(caption_lines="first line"))[0].samples] == ["a cat", "a dog"]
    assert [s.caption for s in scan(tmp_path, config())[0].samples] == ["a cat by me, 2020", "a dog\na hound"]


def test_a_list_of_captions_stays_one_beside_further_files(tmp_path):
    picture(tmp_path / "1.png")
    (tmp_path / "m.jsonl").write_text(json.dumps({"file_name": "1.png", "text": ["a dog", "a hound"]}))
    (tmp_path / "1.short.txt").write_text("dog\nof mine")
    for lines, expected in (("one text", "a dog\na hound\ndog of mine"), ("alternatives", "a dog\na hound\ndog\nof mine")):
        (subset,) = scan(tmp_path, config(further_captions=".short.txt", caption_lines=lines))
        assert subset.samples[0].caption == expected


def test_the_first_line_of_every_file_is_read_where_that_is_meant(tmp_path):
    picture(tmp_path / "1.png")
    (tmp_path / "1.txt").write_text("a long text\nby me")
    (tmp_path / "1.short.txt").write_text("a short one\nby me")
    (tmp_path / "1.json").write_text(json.dumps({"caption": "of json\nby me", "caption_2": "another"}))
    (subset,) = scan(tmp_path, config(further_captions=".short.txt, .json", caption_lines="first line"))
    assert subset.samples[0].caption == "a long text\na short one\nof json"


CAPTIONS_OF_JSON = (
    "caption", "captions", "Caption", "caption_long", "long_caption", "short caption", "caption2", "prompt", "text-3", "brief",
    "detailed_description",
)  # fmt: skip
OTHERS_OF_JSON = (
    "negative_prompt", "negative_caption", "caption_model", "prompt_id", "text_encoder", "caption_source", "title", "texture",
    "7",
)  # fmt: skip


def test_what_stands_under_a_name_of_captions_is_read_and_the_rest_named(tmp_path):
    picture(tmp_path / "1.png")
    values = {name: f"under {name}" for name in (*CAPTIONS_OF_JSON, *OTHERS_OF_JSON)}
    (tmp_path / "1.json").write_text(json.dumps({**values, "score": 3}))
    (subset,) = scan(tmp_path, config(further_captions=".json"))
    assert subset.samples[0].caption == "\n".join(f"under {name}" for name in CAPTIONS_OF_JSON)
    read, passed = (", ".join(map(repr, names)) for names in (CAPTIONS_OF_JSON, OTHERS_OF_JSON))
    assert f"captions in JSON stand under {read}; passed over: {passed}." in subset.warnings


def test_further_files_are_listed_where_captions_are_off(tmp_path):
    picture(tmp_path / "1.png")
    (tmp_path / "1.short.txt").write_text("short")
    (subset,) = scan(tmp_path, config(further_captions=".short.txt", captions=False))
    assert subset.samples[0].caption == "" and not any("Name .short.txt" in said for said in subset.warnings)
    assert [one for one in subset.passed_over if "captions is off" in one[1]] == [("1.short.txt", subset.passed_over[0][1])]


@pytest.mark.parametrize(
    "ending", [".短.txt", ".my notes.txt", ".supplemental-metadata.json", ".Short.TXT", ".de\u0301j\u00e0.txt"]
)
def test_what_the_node_advises_can_be_done(tmp_path, ending):
    picture(tmp_path / "1.png")
    (tmp_path / f"1{ending}").write_text('{"caption": "of it"}' if ending.endswith("json") else "of it")
    (advised,) = re.findall(r"Name (.*) in further_captions to use them\.", "\n".join(scan(tmp_path, config())[0].warnings))
    (subset,) = scan(tmp_path, config(further_captions=advised))
    assert subset.samples[0].caption == "of it" and not any("further_captions" in one for one in subset.warnings)


def test_an_ending_that_cannot_be_named_is_not_advised(tmp_path):
    picture(tmp_path / "1.png")
    (tmp_path / "1.a, b.txt").write_text("of it")
    assert "Rename them without signs such as commas" in "".join(scan(tmp_path, config())[0].warnings)


def test_the_caption_of_a_picture_that_is_not_read_is_no_further_one(tmp_path):
    picture(tmp_path / "cat.png")
    (tmp_path / "cat.2.avi").write_bytes(b"film")
    (tmp_path / "cat.2.txt").write_text("of the film")
    (subset,) = scan(tmp_path, config(further_captions=".2.txt"))
    assert subset.samples[0].caption is None
    assert ("cat.2.txt", "captions of pictures that are not used.") in subset.passed_over


def test_what_is_named_and_stands_nowhere_is_said(tmp_path):
    for number in (1, 2, 3):
        picture(tmp_path / f"{number}.png", (number, 9, 9))
        (tmp_path / f"{number}.txt").write_text("ohwx, {zkz|cat}" if number == 1 else "OHWX, dog")
    (tmp_path / "2.short.txt").write_text("ohwx")
    named = {"trigger_words": "ohwx, zkz, sks", "keep_separator": "|||", "further_captions": ".short.txt, .long.txt"}
    (subset,) = scan(tmp_path, config(wildcards=True, **named))
    said = [one for one in subset.warnings if one.startswith(tuple(named))]
    assert said == [
        "trigger_words: 'zkz' is not in 2 of 3 captions: 2.png, 3.png.",
        "trigger_words: 'sks' stands in no caption. Correct it, or write it into the captions.",
        "keep_separator: '|||' stands in no caption, so it holds nothing. Correct it, or leave it empty.",
        "further_captions: no picture has a file with .long.txt, as 1.long.txt would be of 1.png.",
    ]
    assert spoken_triggers(Dataset((subset,))) == ("ohwx", "zkz")


def test_pictures_of_one_name_in_two_folders_are_told_apart(tmp_path):
    for folder, text in (("a", "a {red|blue} hat"), ("b", "a hat")):
        (tmp_path / folder).mkdir()
        picture(tmp_path / folder / "1.png", "red" if folder == "a" else "blue")
        (tmp_path / folder / "1.txt").write_text(text)
    assert "is read as it stands (1): 1.png." in "".join(scan(tmp_path, config(nested=True))[0].warnings)


@pytest.mark.parametrize(
    ("caption", "values", "said"),
    [
        ("a {red|blue} hat", {}, "{a|b} stands in captions and is read as it stands (1): 1.png. Switch wildcards on"),
        ("a {red hat", {"wildcards": True}, "a brace without its partner is read as it stands (1): 1.png."),
        ("{0.5::a|b}", {"wildcards": True}, "a weight or a number of picks within braces is read as words (1): 1.png."),
        ("{2$$a|b}", {"wildcards": True}, "a weight or a number of picks"),
        ("{a|b}" * 7, {"wildcards": True}, f"more combinations of choices than {CHOICES} (1): 1.png."),
    ],
)
def test_what_is_said_of_braces(tmp_path, caption, values, said):
    picture(tmp_path / "1.png")
    picture(tmp_path / "2.png", "blue")
    (tmp_path / "1.txt").write_text(caption)
    (tmp_path / "2.txt").write_text("{{plain}}, {x}" if values else "a {curly} cat | dog")
    (subset,) = scan(tmp_path, config(**values))
    assert said in "\n".join(subset.warnings)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"further_captions": ".short.txt, .png"}, "further captions: '.png' is no ending"),
        ({"further_captions": ".TXT"}, "further captions: .TXT is caption_extension already"),
        ({"keep_separator": ","}, "keep separator: ',' would part every caption"),
        ({"keep_separator": " "}, "keep separator: ' ' would part"),
        ({"dropped_caption": "trigger words", "caption_dropout": 0.1}, "dropped caption: trigger words are to stay"),
        ({"dropped_caption": "all"}, "dropped caption: 'all' is not one of"),
    ],
)
def test_contradictions_are_refused(values, match):
    with pytest.raises(AtelierError, match=re.escape(match)):
        config(**values)
