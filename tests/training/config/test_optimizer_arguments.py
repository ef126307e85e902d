"""Optimizer arguments as people paste them, and what is said about the ones that are wrong."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.config.optimizer_arguments import check, parse, write
from lora_atelier.training.errors import AtelierError

keys = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,12}", fullmatch=True)
numbers = st.integers(-(10**17), 10**17) | st.floats(allow_nan=False)
values = numbers | st.booleans() | st.none() | st.lists(numbers, min_size=2, max_size=4).map(tuple)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("  \n ", {}),
        (
            "weight_decay=0.01 decouple=True d0=0.0001 use_bias_correction=True",
            {"weight_decay": 0.01, "decouple": True, "d0": 0.0001, "use_bias_correction": True},
        ),
        ("decouple=True weight_decay=0.01 betas=0.9,0.999", {"decouple": True, "weight_decay": 0.01, "betas": (0.9, 0.999)}),
        ("scale_parameter=False\nrelative_step=False\n", {"scale_parameter": False, "relative_step": False}),
        ('"decouple=True" "betas=(0.9, 0.99)"', {"decouple": True, "betas": (0.9, 0.99)}),
        ("decouple = true, eps = 1e-8, betas=[0.9, 0.99],", {"decouple": True, "eps": 1e-8, "betas": (0.9, 0.99)}),
        ("a=1,b=2", {"a": 1, "b": 2}),
        ("beta3=None growth_rate=inf slice_p=11", {"beta3": None, "growth_rate": math.inf, "slice_p": 11}),
    ],
)
def test_what_people_paste(text, expected):
    read = parse(text)
    assert read == expected
    assert {k: type(v) for k, v in read.items()} == {k: type(v) for k, v in expected.items()}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("weight_decay", "'weight_decay' is not of the form key=value"),
        ("0.01 decouple=True", "'0.01' is not of the form"),
        ("decouple=yes", "decouple=yes: use a number, true, false"),
        ("lr=", "lr=: use a number"),
        ("betas=0.9,high", "betas=0.9,high"),
        ("eps=nan", "eps=nan"),
        ("a=1 a=2", "a is given twice"),
        ("a=__import__('os').getcwd()", "a=__import__"),
        ("a=1_000", "a=1_000"),
        ("a=٣", "a=٣"),
    ],
)
def test_what_is_no_pair_or_value(text, said):
    with pytest.raises(AtelierError) as caught:
        parse(text)
    assert said in str(caught.value)


@given(st.dictionaries(keys, values, max_size=6))
def test_what_is_written_is_read_again(pairs):
    assert parse(write(pairs)) == pairs
    assert [type(v) for v in parse(write(pairs)).values()] == [type(v) for v in pairs.values()]


@given(st.text())
def test_any_text_is_read_or_refused_with_a_sentence(text):
    try:
        read = parse(text)
    except AtelierError as error:
        assert str(error).startswith("optimizer arguments: ")
    else:
        assert read or not text.strip(" \t\r\n,;\"'\v\f\x1c\x1d\x1e\x1f\x85").strip()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("weight_dekay=0.1", "AdamW has no 'weight_dekay'; it takes lr, betas, eps, weight_decay, amsgrad"),
        ("maximize=true", "AdamW has no 'maximize'"),
        ("params=1", "AdamW has no 'params'"),
        ("betas=0.9", "betas of AdamW has to be 2 numbers with commas such as 0.9,0.999, not 0.9"),
        ("betas=0.9,0.99,0.999", "2 numbers"),
        ("eps=true", "eps of AdamW has to be a number such as 1e-08, not True"),
        ("eps=none", "eps of AdamW has to be a number"),
        ("amsgrad=1", "amsgrad of AdamW has to be true or false such as False, not 1"),
        ("fused=1", "fused of AdamW has to be true or false, not 1"),
        ("betas=0,9", "2 numbers with commas such as 0.9,0.999, not 0,9; decimals are written with a point"),
        ("betas=0,9,0,999", "not 0,9,0,999; decimals are written with a point"),
        ("weight_decay=0,01", "a number such as 0.01, not 0,1; decimals are written with a point"),
        ("eps=inf", "eps of AdamW has to be a number, not inf"),
    ],
)
def test_the_signature_decides(text, said):
    with pytest.raises(AtelierError) as caught:
        check("AdamW", torch.optim.AdamW, parse(text))
    assert said in str(caught.value)


def test_full_width_signs_are_what_they_look_like():
    assert parse("ｂｅｔａｓ＝０．９，０．９９９　eps＝1e−8") == {"betas": (0.9, 0.999), "eps": 1e-8}


def test_whole_numbers_become_what_the_library_counts_in():
    fitted = check("AdamW", torch.optim.AdamW, parse("eps=1 fused=none amsgrad=true betas=0.5,0.25"))
    assert fitted == {"eps": 1.0, "fused": None, "amsgrad": True, "betas": (0.5, 0.25)}
    assert isinstance(fitted["eps"], float)


def test_counts_stay_whole():
    prodigyopt = pytest.importorskip("prodigyopt")
    assert check("Prodigy", prodigyopt.Prodigy, parse("slice_p=11 beta3=none")) == {"slice_p": 11, "beta3": None}
    for wrong in ("slice_p=1.5", "slice_p=0", "slice_p=true"):
        with pytest.raises(AtelierError, match="slice_p of Prodigy has to be a whole number above 0"):
            check("Prodigy", prodigyopt.Prodigy, parse(wrong))
