"""Tests of seeds that depend on what is drawn."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raremix.seeds import derive_seed, seeded_generator

PARTS = st.lists(st.integers(-(2**63), 2**64 - 1), max_size=4)


@given(parts=PARTS)
@settings(deadline=None, max_examples=100)
def test_a_seed_fits_every_generator_and_repeats(parts: list[int]) -> None:
    seed = derive_seed(*parts)
    assert 0 <= seed < 2**63
    assert seed == derive_seed(*parts)


@given(first=PARTS, second=PARTS)
@settings(deadline=None, max_examples=200)
def test_other_parts_give_another_seed(first: list[int], second: list[int]) -> None:
    same = [part % 2**64 for part in first] == [part % 2**64 for part in second]
    assert (derive_seed(*first) == derive_seed(*second)) == same


def test_neighbouring_parts_give_seeds_without_a_pattern() -> None:
    seeds = [derive_seed(0, epoch, id_) for epoch in range(100) for id_ in range(100)]
    assert len(set(seeds)) == 10_000
    for bit in range(63):
        ones = sum(seed >> bit & 1 for seed in seeds)
        assert 4_700 < ones < 5_300  # six standard deviations


def test_neighbouring_ids_share_no_low_bits() -> None:
    # The CPU's generator takes 32 bits of a seed only.
    low = {derive_seed(0, draw, id_) % 2**32 for draw in range(30) for id_ in range(1000)}
    assert len(low) > 29_990


def test_one_part_gives_the_first_number_of_splitmix64_less_a_bit() -> None:
    # The first output for seed 0 in the public test vectors of SplitMix64.
    assert derive_seed(0) == 0xE220A8397B1DCDAF >> 1


def test_the_seeds_of_this_version_are_those_of_the_last() -> None:
    # A saved run goes on only if these never change.
    assert derive_seed() == 0
    assert derive_seed(1, 2, 3) == 3851293329796251419


def test_generators_of_equal_parts_draw_equally_and_leave_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    assert seeded_generator(1, 2).initial_seed() == derive_seed(1, 2)
    first, second, third = seeded_generator(3, 4), seeded_generator(3, 4), seeded_generator(4, 3)
    draws = [torch.rand(5, generator=generator) for generator in (first, second, third)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), before)
