"""Plain text for the host's tokenizers: every character is what it is, never a weight, an embedding or a control word.

The host reads ``(a cat:1.2)`` as a weight and ``embedding:name`` as a file, and a caption that begins like a chat as one. Which
of these a tokenizer does, and where it can be switched off, differs between encoders and versions. So nothing is switched off:
the characters that could mean something travel under other names, noncharacters of Unicode that no text has, through all that the
host does, and get their own back at the last door, in front of the vocabulary. The tokenizers that the graph holds stay as they
are.
"""

from __future__ import annotations

import copy
import re
from typing import Any
from weakref import WeakKeyDictionary

import torch

SPECIAL = "()\\:\0<["
"""Characters with which something begins that the host reads for something else."""
NAMES = {ord(character): 0xFDD0 + number for number, character in enumerate(SPECIAL)}
BACK = {name: character for character, name in NAMES.items()}
NOTHING = re.compile(r"[\ud800-\udfff\ufdd0-\ufdef]")
"""What is no text: halves of characters, and noncharacters. A vocabulary could not take the former."""
MARKED = re.compile(r"[<\[].+[>\]]", re.DOTALL)
OPENERS = {ord(character): chr(NAMES[ord(character)]) for character in "<["}

_patterns: WeakKeyDictionary[Any, re.Pattern[str] | None] = WeakKeyDictionary()


def unescaped(text: str) -> str:
    r"""The text of a caption: ``artist \(style\)``, as booru tags are written for the syntax, is ``artist (style)``."""
    return NOTHING.sub("�", text.replace("\\(", "(").replace("\\)", ")"))


def named(text: str) -> str:
    """``text`` with other names for its special characters, one for one."""
    return unescaped(text).translate(NAMES)


def plain(tokenizer: Any) -> Any:
    """A tokenizer like the host's ``tokenizer``, all of its parts included, for texts that ``named`` has been through."""
    if not hasattr(tokenizer, "__dict__"):
        return tokenizer
    twin = copy.copy(tokenizer)
    for name, value in vars(tokenizer).items():
        if isinstance(value, type) or torch.is_tensor(value):
            continue
        if hasattr(value, "tokenize_with_weights"):
            setattr(twin, name, plain(value))
        elif callable(value) and hasattr(value, "get_vocab"):
            setattr(twin, name, LastDoor(value))
    return twin


class LastDoor:
    """A vocabulary that gives ``named`` characters their own names back before it reads them.

    A control word of the vocabulary (``<|im_end|>``, ``</s>``, ``[MASK]``) that stands in the caption is parted by a blank behind
    its first character, so that it is read letter by letter; those that the host's template has put around it count.
    """

    def __init__(self, vocabulary: Any):
        self._vocabulary = vocabulary
        self._words = _pattern(vocabulary)

    def __call__(self, text: Any, *more: Any, **named: Any) -> Any:
        if isinstance(text, str):
            while (
                self._words is not None and (parted := self._words.sub(lambda word: f"{word[0][0]} {word[0][1:]}", text)) != text
            ):
                text = parted
            text = text.translate(BACK)
        return self._vocabulary(text, *more, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_vocabulary"], name)


def _pattern(vocabulary: Any) -> re.Pattern[str] | None:
    """Its control words with their ``named`` openers, the longest first; made once a vocabulary, since large ones take long."""
    if vocabulary not in _patterns:
        found = sorted((re.escape(word.translate(OPENERS)) for word in control_words(vocabulary)), key=len, reverse=True)
        _patterns[vocabulary] = re.compile("|".join(found), re.IGNORECASE) if found else None
    return _patterns[vocabulary]


def control_words(vocabulary: Any) -> set[str]:
    """The words in brackets that ``vocabulary`` reads as one, whatever stands around them."""
    inner = getattr(vocabulary, "tokenizer", None)
    words: set[str] = {str(word) for word in getattr(vocabulary, "special_tokens", None) or ()}
    if hasattr(vocabulary, "added_tokens_decoder"):
        words |= {str(token) for token in vocabulary.added_tokens_decoder.values()}
    elif inner is not None and hasattr(inner, "get_added_tokens_decoder"):
        words |= {token.content for token in inner.get_added_tokens_decoder().values()}
    else:  # pieces: what a person has defined is told from what was learnt by trying it
        words |= _read_as_one(vocabulary)
    return {word for word in words if MARKED.fullmatch(word)}


def _read_as_one(vocabulary: Any) -> set[str]:
    known = {word: number for word, number in vocabulary.get_vocab().items() if MARKED.fullmatch(word)}
    # What the vocabulary lacks is one number as well, which the bracket alone has already.
    return {w for w, n in known.items() if n in vocabulary(w)["input_ids"] and n not in vocabulary(w[0])["input_ids"]}
