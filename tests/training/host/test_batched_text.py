"""Captions that an encoder reads in one pass: what it says of each is what it says of that one alone."""

from __future__ import annotations

import pytest
import torch

from ... import tiny_large

CAPTIONS = [
    "ohwx, a red house",
    "a dog",
    "",
    "ohwx, a (green:1.4) house under (old, crooked trees:0.7)",
    "a cat",
    ", ".join(f"thing number {i}" for i in range(60)),
    *(f"a drawing of {i} boats" for i in range(8)),
]


def language_model():
    """Qwen 3 with Z-Image's template: rows as long as their texts, with masks."""
    from comfy.text_encoders import z_image

    small = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    small["num_key_value_heads"] = 1
    return tiny_large.text_encoder(z_image.ZImageTokenizer, z_image.te(), 3, qwen3_4b=small)


@pytest.fixture(scope="module")
def encoders(comfyui, tiny):
    from lora_atelier.training import host

    with torch.inference_mode():
        large = (tiny_large.sdxl_text_encoder(), tiny_large.flux_text_encoder(), language_model())
    names = ("sdxl", "flux", "qwen")
    return {"sd15": tiny("sd15").text, **{n: host.TextEncoder(clip) for n, clip in zip(names, large, strict=True)}}


def readers(text):
    from comfy.sd1_clip import SDClipModel

    return [module for module in text.clip.cond_stage_model.modules() if isinstance(module, SDClipModel)]


@pytest.fixture
def passes():
    """Counts how many rows go through every encoder at a time."""
    hooks, rows = [], []

    def watch(text):
        for reader in readers(text):
            hooks.append(reader.register_forward_hook(lambda _module, given, _out: rows.append(len(given[0]))))
        return rows

    yield watch
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux", "qwen"])
def test_every_caption_gets_what_it_would_have_alone(encoders, passes, name):
    text = encoders[name]
    alone = [text.encode(caption) for caption in CAPTIONS]
    rows = passes(text)
    for single, caption, found in zip(alone, CAPTIONS, text.encode_all(CAPTIONS), strict=True):
        assert single.keys() == found.keys()
        for part, values in single.items():
            assert (values.shape, values.dtype) == (found[part].shape, found[part].dtype), (caption, part)
            assert torch.allclose(values, found[part], rtol=1e-4, atol=1e-4), (caption, part)
    assert len(rows) < 0.7 * len(CAPTIONS) * len(readers(text)) and max(rows) > 1
    assert all("encode" not in vars(reader) for reader in readers(text))


def test_the_last_layer_but_one_is_read_where_the_graph_asks_for_it(encoders):
    from lora_atelier.training import host

    clip = encoders["sd15"].clip.clone()
    clip.clip_layer(-2)
    text = host.TextEncoder(clip)
    for caption, found in zip(CAPTIONS, text.encode_all(CAPTIONS), strict=True):
        assert torch.allclose(text.encode(caption)["cond"], found["cond"], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(encoders["sd15"].encode(caption)["cond"], found["cond"], atol=1e-3)


def test_between_two_captions_and_after_a_cancel_the_encoder_is_as_it_was(encoders):
    text = encoders["sdxl"]
    coming = text.encode_all(CAPTIONS)
    next(coming)
    assert all("encode" not in vars(reader) for reader in readers(text)), "somebody else may encode now"
    coming.close()
    assert torch.equal(text.encode("a dog")["cond"], text.encode("a dog")["cond"])


def test_an_encoder_that_another_pack_has_changed_is_asked_the_other_pack_s_way(encoders, monkeypatch):
    text, asked = encoders["sd15"], []
    (reader,) = readers(text)
    real = reader.encode
    theirs = lambda rows: asked.append(len(rows)) or real(rows)  # noqa: E731
    monkeypatch.setitem(vars(reader), "encode", theirs)
    assert len(list(text.encode_all(CAPTIONS[:4]))) == 4
    assert asked and reader.encode is theirs


def test_without_memory_for_several_each_is_read_alone(encoders, monkeypatch):
    text, asked = encoders["sd15"], []
    (reader,) = readers(text)
    real = reader.encode

    def narrow(rows):
        asked.append(len(rows))
        if len(rows) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return real(rows)

    expected = [text.encode(caption)["cond"] for caption in CAPTIONS[:3]]
    monkeypatch.setitem(vars(reader), "encode", narrow)
    found = [one["cond"] for one in text.encode_all(CAPTIONS[:3])]
    assert max(asked) > 1 and all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_an_error_that_is_no_lack_of_memory_is_not_swallowed(encoders, monkeypatch):
    text = encoders["sd15"]
    (reader,) = readers(text)

    def broken(rows):
        raise RuntimeError("broken")

    monkeypatch.setitem(vars(reader), "encode", broken)
    with pytest.raises(RuntimeError, match="broken"):
        list(text.encode_all(CAPTIONS[:3]))


@pytest.mark.parametrize(("rows", "kind", "captions"), [(77, "cuda", 53), (77, "cpu", 16), (512, "cuda", 16), (9, "cuda", 64)])
def test_a_gpu_is_told_of_as_many_captions_as_fill_a_pass(comfyui, rows, kind, captions):
    from lora_atelier.training.host.batched_text import captions_of_a_pass

    row = [(7, 1.0)] * rows
    assert captions_of_a_pass({"l": [row], "g": [row[:5]]}, torch.device(kind)) == captions


def test_what_the_host_tokenizes_in_a_way_of_its_own_is_read_as_before(comfyui):
    from lora_atelier.training.host.batched_text import captions_of_a_pass

    for tokens in ({}, ["a"], {"l": []}, {"l": [[]]}):
        assert captions_of_a_pass(tokens, torch.device("cuda")) == 16


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux", "qwen"])
def test_prompts_in_several_versions_are_read_in_few_passes_each_in_its_own(encoders, passes, name):
    """A version is a factor on what each layer of one kind answers, as a LoRA's strength would be."""
    text, factors, now = encoders[name], (1.0, 1.5, -0.5), []
    layers = [layer for layer_name, layer in text.layers().items() if layer_name.endswith(("fc1", "wi_0", "gate_proj"))]

    def weigh(_layer, _given, output):
        rows = torch.tensor([factors[version] for version in now[-1]])
        assert len(rows) in (1, len(output)), "each row of the pass was told"
        return output * rows.view(-1, *[1] * (output.ndim - 1))

    handles = [layer.register_forward_hook(weigh) for layer in layers]
    try:
        wanted = [(caption, version) for caption in CAPTIONS[:5] for version in range(3)]
        alone = []
        for caption, version in wanted:
            now.append([version])
            alone.append(text.for_sampling(caption))
        rows = passes(text)
        together = text.for_sampling_all([c for c, _ in wanted], [v for _, v in wanted], lambda versions: now.append([*versions]))
    finally:
        for handle in handles:
            handle.remove()
    assert layers and len(rows) < 0.7 * len(wanted) * len(readers(text))
    for single, found in zip(alone, together, strict=True):
        assert torch.allclose(single[0][0], found[0][0], rtol=1e-4, atol=1e-4)
        assert single[0][1].keys() == found[0][1].keys()
    assert not torch.allclose(together[0][0][0], together[1][0][0], atol=1e-3), "the versions differ"


def test_a_prompt_that_is_lost_is_lost_alone(encoders):
    from lora_atelier.training.errors import NotFinite

    text, now = encoders["sd15"], []
    (layer, *_) = (layer for name, layer in text.layers().items() if name.endswith("fc1"))

    def spoil(_layer, _given, output):
        rows = torch.tensor([float("nan") if version else 1.0 for version in now[-1]])
        return output * rows.view(-1, 1, 1)

    handle = layer.register_forward_hook(spoil)
    try:
        found = text.for_sampling_all(["a dog", "a dog", "a cat"], [0, 1, 0], lambda versions: now.append([*versions]))
    finally:
        handle.remove()
    assert isinstance(found[1], NotFinite) and "for the prompt 'a dog'" in str(found[1])
    assert all(torch.isfinite(found[i][0][0]).all() for i in (0, 2))
