"""What a model says to itself before it answers, and where it declines to answer."""

from __future__ import annotations

import re

from .protocol import CutShort

THINKING = (
    "The model was still thinking when max_length was reached; raise max_length, or take a form of the model that does not think."
)
THOUGHT = re.compile(r"(<think(?:ing)?>|◁think▷).*?(</think(?:ing)?>|◁/think▷)", re.DOTALL)
OPEN = re.compile(r"<think(?:ing)?>|◁think▷")
FRAME = re.compile(r"</?answer>|<\|(?:begin|end)_of_box\|>")
"""Signs that some models put around what they have thought of."""
DECLINES = re.compile(
    r"(i['’]?m|i am|we['’]re) (very |really |truly )?sorry\b.{0,40}\b(can['’]?t|cannot|unable|not able|won['’]t)\b"
    r"|(sorry|i apologi[sz]e)\b.{0,30}\b(i|as an ai)\b.{0,30}\b(can['’]?t|cannot|unable|not able|won['’]t)\b"
    r"|i (can['’]?t|cannot|won['’]t|am unable to|['’]?m unable to|am not able to) "
    r"(help|assist|describe|provide|identify|comply|fulfil|do that|caption|generate|create|engage|continue)"
    r"|i['’]m (unable|not able) to (help|assist|describe|provide|identify|comply|fulfil|caption|generate|create|engage|continue)"
    r"|as an ai (language )?(model|assistant)\b",
    re.IGNORECASE | re.DOTALL,
)


def without_thoughts(text: str) -> str:
    """The answer alone, in one line; nothing where there is only a thought. It stays CutShort if it was."""
    kind = CutShort if isinstance(text, CutShort) else str
    plain = OPEN.split(THOUGHT.sub(" ", text))[0]
    return kind(" ".join(FRAME.sub(" ", plain).split()))


def still_thinking(text: str) -> bool:
    """Whether the text ends within a thought."""
    return bool(OPEN.search(THOUGHT.sub(" ", text)))


def begins_a_thought(question: str) -> bool:
    """Whether the question ends with the sign by which a thought begins, so that the answer doesn't."""
    return bool(re.search(rf"(?:{OPEN.pattern})\s*$", question))


def declines(text: str) -> bool:
    """Whether a model says that it will not describe the picture; only the first words count."""
    return bool(DECLINES.match(text.strip()))
