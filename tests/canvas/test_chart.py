"""Arithmetic of the chart, in the JavaScript that draws it: round values on the axes, running means, times."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def asked(root: Path) -> Any:
    """``asked(expression)``: its value, with what ``plot.js`` exports at hand."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")

    def ask(expression: str) -> Any:
        script = f"""import * as plot from {json.dumps((root / "js" / "lib" / "plot.js").as_uri())};
        import {{ strips, sampleKey }} from {json.dumps((root / "js" / "lib" / "strips.js").as_uri())};
        const {{ ticks, smoothed, timeText, heightOf }} = plot; console.log(JSON.stringify({expression}));"""
        done = subprocess.run([node, "--input-type=module", "-e", script], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return ask


def test_values_on_an_axis_are_round_and_within(asked) -> None:
    cases = [
        (0, 1, 4),
        (0, 0.00105, 3),
        (5.9, 14.2, 5),
        (0, 211, 3),
        (0.2, 0.21, 4),
        (-1, 1, 5),
        (0, 12345678, 6),
        (0.91, 1.12, 2),
        (0.6, 1.9, 1),
    ]
    for (low, high, count), found in zip(cases, asked(f"{json.dumps(cases)}.map((one) => ticks(...one))"), strict=True):
        assert all(low - 1e-9 <= value <= high + 1e-9 for value in found) and found == sorted(found)
        assert 2 <= len(found) <= 2 * count + 2, (low, high, found)
        step = found[1] - found[0]
        digit = step / 10 ** math.floor(math.log10(step) + 1e-9)
        assert min(abs(digit - nice) for nice in (1, 2, 5, 10)) < 1e-6, "a step of 1, 2 or 5 times a power of ten"
        assert all(abs(value / step - round(value / step)) < 1e-6 for value in found)


def test_values_on_a_log_scale_are_ones_twos_and_fives_or_powers_of_ten(asked) -> None:
    assert asked("ticks(0.4, 14, 4, true)") == [0.5, 1, 2, 5, 10]
    assert asked("ticks(1e-6, 10, 3, true)") == [1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 1, 10]
    assert asked("ticks(6, 9, 3, true)") == asked("ticks(6, 9, 3)"), "within less than a digit they are those of a plain axis"
    assert asked("ticks(1, 1, 3, true)") == asked("ticks(2, 1, 3)") == []


def test_a_running_mean_is_that_of_the_formula(asked) -> None:
    """m_k = m_(k-1) + max(1 - s, 1 / k) (loss_k - m_(k-1)), as the server takes it with s = 0.98."""
    losses = [1 + math.sin(k) for k in range(1, 300)]
    rows = [{"step": k, "loss": loss} for k, loss in enumerate(losses, start=1)]
    for share in (0, 0.5, 0.98):
        mean, expected = 0.0, []
        for k, loss in enumerate(losses, start=1):
            mean += max(1 - share, 1 / k) * (loss - mean)
            expected.append(mean)
        found = asked(f"smoothed({json.dumps(rows)}, {share})")
        assert [step for step, _ in found] == list(range(1, 300))
        assert [value for _, value in found] == pytest.approx(expected)


def test_a_loss_that_was_no_number_has_no_mean_and_spoils_none(asked) -> None:
    rows = [{"step": 1, "loss": 2}, {"step": 2, "loss": None}, {"step": 3, "loss": 2}]
    assert asked(f"smoothed({json.dumps(rows)}, 0.9)") == [[1, 2], [2, None], [3, 2]]


def test_no_time_that_is_left_is_none(asked) -> None:
    assert asked("[0.2, 0.6, 59.4, 61, 3600].map(timeText)") == ["0:01", "0:01", "0:59", "1:01", "1:00:00"]


def test_lines_of_the_same_words_have_strips_of_their_own(asked) -> None:
    """Models that edit: one instruction, beside several pictures."""
    drawn = [
        {"number": n, "prompt": p, "at": at} for at in (0, 1) for n, p in ((1, "make it blue"), (2, "make it blue"), (3, ""))
    ]
    found = asked(f"strips({json.dumps([*drawn, {'number': 1, 'prompt': 'mended'}, {'number': 4}])})")
    assert [(one["number"], one["prompt"], len(one["samples"])) for one in found] == [
        (1, "make it blue", 2), (2, "make it blue", 2), (3, "", 2), (1, "mended", 1), (4, None, 1)
    ]  # fmt: skip
    assert [sample["at"] for sample in found[1]["samples"]] == [0, 1]


def test_a_sample_that_was_drawn_anew_is_another(asked) -> None:
    one, again = ({"filename": "ink-000001.png", "stamp": stamp} for stamp in (5, 6))
    assert asked(f"sampleKey({json.dumps(one)}) !== sampleKey({json.dumps(again)})") is True
    assert asked(f"sampleKey({json.dumps(one)}) === sampleKey({json.dumps(one)})") is True
