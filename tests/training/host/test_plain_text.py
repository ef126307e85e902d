"""Captions as plain text in the tiny encoders: what is encoded, what the syntax still does, and what is found again on disk."""

from __future__ import annotations

import pytest
import torch
from lora_atelier.training import host
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset.cache import TensorCache
from lora_atelier.training.dataset.encoded import EncodedDataset, Reading, Work
from lora_atelier.training.dataset.samples import Dataset, Subset
from lora_atelier.training.errors import AtelierError

TOWER = "a tower, vertical format (16:9)"


@pytest.fixture(scope="module", params=["sd15", "sd3"])
def text(request, tiny) -> host.TextEncoder:
    """CLIP-L; and all that SD 3 reads with."""
    return tiny(request.param).text


def by_stock(clip, prompt: str) -> torch.Tensor:
    """What CLIPTextEncode gives."""
    with torch.inference_mode():
        return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0][0].cpu()


def weights(tokens) -> set[float]:
    return {token[1] for sections in tokens.values() for row in sections for token in row}


def test_words_without_signs_are_what_comfyui_makes_of_them(text):
    for caption in ("", "a cat", "a red house, under old trees", "猫 é 100%"):
        assert text.tokenize(caption) == text.clip.tokenize(caption)
        assert torch.equal(text.for_sampling(caption)[0][0].cpu(), by_stock(text.clip, caption))
        assert text.reading_of(caption) == (), "what was encoded before is found again"


def test_brackets_are_characters_and_not_weights(text):
    """The host's own tokens of the bare text, its brackets escaped, are the reference."""
    assert weights(text.clip.tokenize(TOWER)) == {1.0, 9.0}, "the syntax would make it nine times as strong"
    escaped = TOWER.replace("(", "\\(").replace(")", "\\)")
    for caption in (TOWER, escaped):
        assert text.tokenize(caption) == text.clip.tokenize(escaped)
        assert torch.equal(text.encode(caption)["cond"], text.encode(escaped)["cond"])
    ratio = text.encode(TOWER)["cond"].norm() / text.encode(TOWER.replace("(", "").replace(")", ""))["cond"].norm()
    assert 0.5 < ratio < 2


def test_tags_with_escaped_brackets_are_right_in_both(text):
    plain, syntax = text.tokenize("saber \\(fate\\), 1girl"), text.reading("ComfyUI").tokenize("saber \\(fate\\), 1girl")
    assert plain == syntax == text.tokenize("saber (fate), 1girl") and weights(plain) == {1.0}


def test_the_syntax_is_there_for_those_who_mean_it(text):
    meant = text.reading("ComfyUI")
    assert meant.reading("ComfyUI") is meant and meant.reading_of(TOWER) == ()
    assert meant.tokenize("a (red:1.3) cat") == text.clip.tokenize("a (red:1.3) cat")
    assert torch.equal(meant.for_sampling("a (red:1.3) cat")[0][0].cpu(), by_stock(text.clip, "a (red:1.3) cat"))
    assert meant.identity() == text.identity()


def test_all_ways_of_encoding_read_alike(text, tiny):
    alone = text.encode(TOWER)
    together = list(text.encode_all([TOWER, "a cat", TOWER + " at night"]))
    assert torch.allclose(together[0]["cond"], alone["cond"], rtol=1e-4, atol=1e-4)
    assert torch.equal(text.for_sampling(TOWER)[0][0].cpu(), alone["cond"])
    learning = text.for_training()
    try:
        assert learning.syntax == "plain" and learning.tokenize(TOWER) == text.tokenize(TOWER)
        with torch.no_grad(), tiny("sd15").model.hold(learning):
            assert torch.allclose(learning.encode_live(TOWER)["cond"].cpu(), alone["cond"], rtol=1e-4, atol=1e-4)
    finally:
        learning.retire()


def test_embeddings_are_not_looked_for(text, tmp_path, monkeypatch):
    from safetensors.torch import save_file

    width = {"l": 768, "g": 1280}
    save_file({f"clip_{kind}": torch.ones(1, size) for kind, size in width.items()}, tmp_path / "mine.safetensors")
    inner = [v for v in vars(text.clip.tokenizer).values() if hasattr(v, "embedding_directory")]
    for one in inner:
        monkeypatch.setattr(one, "embedding_directory", str(tmp_path))
    own = host.TextEncoder(text.clip)
    caption = "a cat embedding:mine"
    assert all(isinstance(token[0], int) for rows in own.tokenize(caption).values() for row in rows for token in row)
    found = own.reading("ComfyUI").tokenize(caption)
    assert any(isinstance(token[0], torch.Tensor) for rows in found.values() for row in rows for token in row)


def test_the_graphs_tokenizers_stay_as_they_are(text):
    before = {name: (id(value), dict(getattr(value, "__dict__", {}))) for name, value in vars(text.clip.tokenizer).items()}
    host.TextEncoder(text.clip).encode(TOWER)
    after = {name: (id(value), dict(getattr(value, "__dict__", {}))) for name, value in vars(text.clip.tokenizer).items()}
    assert before == after


def test_what_was_encoded_in_another_syntax_is_not_taken(tiny, tmp_path):
    t, cache = tiny("sd15"), TensorCache(tmp_path, 2**30)
    nothing = Dataset((Subset(SubsetConfig("none"), (), 1),))

    def encoded(syntax) -> EncodedDataset:
        made = EncodedDataset(nothing, 0, t.codec, t.text.reading(syntax), cache)
        made.prepare(Work((), (Reading(TOWER), Reading("a cat"))), lambda done: None)
        return made

    strong, even = encoded("ComfyUI"), encoded("plain")
    assert not torch.allclose(strong.text(TOWER)["cond"], even.text(TOWER)["cond"])
    assert torch.equal(strong.text("a cat")["cond"], even.text("a cat")["cond"])
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 3, "what means the same is there once"
    assert torch.equal(encoded("ComfyUI").text(TOWER)["cond"], strong.text(TOWER)["cond"])


@pytest.mark.parametrize("odd", [None, 3, ["a cat"], b"a cat"])
@pytest.mark.parametrize("syntax", ["plain", "ComfyUI"])
def test_what_is_no_text_is_told(text, odd, syntax):
    for ask in (text.reading(syntax).encode, text.reading(syntax).for_sampling):
        with pytest.raises(AtelierError, match=f"clip: a text was {type(odd).__name__} and no text"):
            ask(odd)
