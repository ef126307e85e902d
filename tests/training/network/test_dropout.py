"""Elementwise dropout: chance by arithmetic, which no step, layer or place can tell from fair coins."""

from __future__ import annotations

import pytest
import torch
from lora_atelier.training.network.dropout import Dropout, kept_elements


def elements(
    seed: tuple[int, int], share: float = 0.25, count: int = 200_000, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    return kept_elements(torch.tensor(seed), share, torch.empty(count, dtype=dtype))


def seeds_of(count: int) -> list[tuple[int, int]]:
    """As steps draw them."""
    drops = Dropout(0.5).draw([1] * 10, 5, 0, torch.device("cpu")).seeds.tolist()
    drops += [Dropout(0.5).draw([1] * 10, 5, step, torch.device("cpu")).seeds[0].tolist() for step in range(1, count - 9)]
    return [(first, second) for first, second in drops]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_elements_are_dropped_in_the_share_asked_for_and_the_rest_makes_up_for_it(share):
    for seed in [(0, 0), (1, 0), (2**32 - 1, 2**30 - 1), *seeds_of(20)]:
        mask = elements(seed, share)
        assert set(mask.tolist()) == {0.0, torch.tensor(1.0).div(1 - share).item()}
        spread = (share * (1 - share) / len(mask)) ** 0.5
        assert abs((mask == 0).float().mean().item() - share) < 5 * spread


def test_masks_of_layers_steps_and_places_have_nothing_to_do_with_each_other():
    """Counts of both, one, the other and none against those of independent coins, by Pearson's chi-squared of one degree."""

    def apart(a: torch.Tensor, b: torch.Tensor) -> float:
        one, other = (a == 0).double(), (b == 0).double()
        return len(a) * torch.corrcoef(torch.stack([one, other]))[0, 1].item() ** 2

    masks = [elements(seed) for seed in seeds_of(21)]
    pairs = [apart(a, b) for i, a in enumerate(masks) for b in masks[:i]]
    shifted = [apart(mask[:-away], mask[away:]) for mask in masks for away in (1, 2, 3, 4, 8, 16, 64, 320, 4096)]
    # 399 such numbers: one above 20 comes once in 300 tests of fair coins.
    assert max(pairs) < 20 and max(shifted) < 20
    assert sum(pairs) / len(pairs) == pytest.approx(1, abs=0.5)  # its expectation


def test_no_mask_is_another_one_in_another_order():
    """A seed that only moved the elements about would show as equal counts of what is dropped."""
    counts = {int((elements(seed, 0.5, 2**16) == 0).sum()) for seed in seeds_of(30)}
    assert len(counts) > 20


def test_the_first_elements_of_a_mask_are_those_of_a_shorter_one_in_every_format():
    whole = elements((3, 4), 0.5, 1000)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(elements((3, 4), 0.5, 300, dtype).float(), whole[:300])
    folded = kept_elements(torch.tensor([3, 4]), 0.5, torch.empty(10, 5, 20).transpose(0, 1))
    assert torch.equal(folded.flatten(), whole)


def test_a_mask_is_what_its_formula_says():
    """The mixing of 32-bit words, in Python's whole numbers."""

    def word(place: int, first: int, second: int) -> int:
        h = place ^ first
        h = ((h ^ h >> 16) * 0x21F0AAAD % 2**32) ^ second
        h = (h ^ h >> 15) * 0x735A2D97 % 2**32
        h = (h ^ h >> 15) * 0x31848BAB % 2**32
        return h ^ h >> 15

    for first, second in [(0, 0), (2**32 - 1, 2**30 - 1), (123456789, 987654321)]:
        wanted = [0.0 if word(i, first, second) < 0.25 * 2**32 else 1 / 0.75 for i in range(500)]
        assert elements((first, second), 0.25, 500).tolist() == pytest.approx(wanted)
