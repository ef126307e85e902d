"""Which blocks are computed twice and which stay away, against every choice there is, on small cases."""

from __future__ import annotations

from itertools import chain, combinations, pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.config import TrainingConfig
from lora_atelier.training.performance import filling
from lora_atelier.training.performance.block_offload import TransferPace, on_device
from lora_atelier.training.performance.memory import Activations, Block, Measured, Weights
from lora_atelier.training.performance.thrift import Thrift

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PLAIN = TrainingConfig("a")
SIZES = st.integers(1, 1000)
BLOCKS = st.lists(st.builds(lambda inner, share, cost: Block(inner, inner * share // 10, cost), SIZES, st.integers(0, 9), SIZES),
                  min_size=1, max_size=7)  # fmt: skip


def subsets(count: int) -> list[frozenset[int]]:
    return [frozenset(some) for some in chain.from_iterable(combinations(range(count), n) for n in range(count + 1))]


@given(BLOCKS, SIZES, st.floats(0, 1))
def test_what_is_computed_twice_fits_wherever_anything_does_and_none_of_it_is_needless(blocks, outside, where):
    found = Activations(tuple(blocks), outside, 0)
    every = [found.most(some) for some in subsets(len(blocks))]
    budget = min(every) + where * (max(every) - min(every))
    chosen = filling.recomputed(found, lambda some: found.most(some) <= budget, frozenset())
    whole = frozenset(range(len(blocks)))
    if found.most(chosen) > budget:
        assert chosen == whole, "the most that can be done on the way to it"
        return
    assert all(found.most(chosen - {i}) > budget for i in chosen)


def test_blocks_that_are_alike_are_computed_twice_from_the_first_on_and_only_so_many():
    found = Activations((Block(100, 10, 50),) * 10, outside=0, small=0)
    for count in range(10):
        budget = found.most(frozenset(range(count)))
        assert filling.recomputed(found, lambda some, budget=budget: found.most(some) <= budget, frozenset()) == set(range(count))


def test_it_is_the_cheapest_bytes_that_go():
    dear, cheap = Block(100, 0, 1000), Block(100, 0, 10)
    found = Activations((dear, cheap, dear, cheap, dear), outside=0, small=0)
    assert filling.order_of(found)[:2] == [1, 3]
    assert filling.recomputed(found, lambda some: found.most(some) <= 400, frozenset()) == {1}
    useless = Activations((Block(10, 10, 1), cheap), outside=0, small=0)
    assert filling.order_of(useless) == [1, 0], "what would save nothing comes last"


@given(st.lists(SIZES, min_size=1, max_size=8), st.lists(SIZES, min_size=8, max_size=8), st.floats(0, 1))
def test_only_so_many_blocks_stay_away_as_have_to(sizes, flops, where):
    def there(gone):
        return on_device(0, sizes, gone)

    least, most = there(range(len(sizes))), there(())
    budget = least + where * (most - least)
    chosen = filling.away(sizes, flops[: len(sizes)], lambda gone: there(gone) <= budget)
    assert there(chosen) <= budget, "with all away it always fits here"
    assert all(there(set(chosen) - {i}) > budget for i in chosen)


def test_blocks_that_are_alike_stay_away_evenly():
    sizes, flops = [100] * 30, [10**6] * 30
    chosen = filling.away(sizes, flops, lambda gone: on_device(0, sizes, gone) <= 2400)
    assert len(chosen) == 8, "two of them are there at any time"
    gaps = [b - a for a, b in pairwise(chosen)]
    assert min(gaps) >= 2


def test_waiting_by_hand():
    """Blocks 0 and 2 of three are away; each takes 5 to come, and computing a block takes 1, and 2 on the way back."""
    waits, _ = filling.waiting([0, 2], [5, 5, 5], [1, 1, 1])
    assert waits == (5 - 2) + (5 - 4)


def test_a_measured_pace_decides_which_blocks_come():
    """The first blocks compute much and the last little: on a slow bus it is between the first that there is time."""
    sizes, flops = [100] * 8, [1000] * 4 + [1] * 4
    slow = TransferPace(transfer=8.0, computing=8.0, waiting=4.0, carried=1600)
    chosen = filling.away(sizes, flops, lambda gone: on_device(0, sizes, gone) <= 600, slow)
    others = filling.waiting([4, 5, 6, 7], sizes, flops)
    assert filling.waiting(chosen, sizes, flops) < others and len(chosen) == 4


def measured(count: int = 10) -> Measured:
    weights = Weights((1000,) * count, 500)
    return Measured(weights, Activations((Block(300, 30, 100),) * count, 200, 0), ())


def thrift_for(budget: float, asked: Thrift, device: torch.device = CUDA) -> Thrift:
    return filling.filled(measured(), PLAIN, 1, asked, device, lambda need: need.total <= budget)


def test_less_and_less_memory_gives_up_more_and_more():
    asked = Thrift(10, 10, compiled=True)
    whole = measured().need(asked, PLAIN, 1).total
    ways = [thrift_for(budget, asked) for budget in range(whole, 2000, -100)]
    assert ways[0] == asked
    for before, after in pairwise(ways):
        assert len(before.recomputed) <= len(after.recomputed) and len(before.away) <= len(after.away)
        assert not after.away or (after.recomputes_all and not after.compiled)
    assert {len(way.recomputed) for way in ways} == set(range(11)), "the card is filled: every number comes up"
    assert len({len(way.away) for way in ways}) > 5
    assert thrift_for(0, asked).away == tuple(range(10)), "the cheapest there is"


def test_what_the_person_asks_for_stays():
    everything = Thrift(10, 10, frozenset(range(10)))
    assert thrift_for(10**9, everything) == everything
    away = everything.keeping_away((2, 7))
    assert len(thrift_for(8000, away).away) >= 2
    assert thrift_for(0, Thrift(10, 10), CPU).away == () and thrift_for(0, Thrift(10, 10), CPU).recomputes_all


def test_only_where_a_step_waits_do_others_stay_away():
    found, thrift = measured(), Thrift(10, 10, frozenset(range(10))).keeping_away((0, 1, 2, 3))
    assert filling.paced(found, thrift, TransferPace(1.0, 10.0, 0.0, 4000)) == thrift
    other = filling.paced(found, thrift, TransferPace(10.0, 10.0, 5.0, 4000))
    assert found.weights.needed(other) <= found.weights.needed(thrift) and other.away != thrift.away
