from hypothesis import given, settings
from hypothesis import strategies as st

from raremix.seeds import derive_seed, seeded_generator

WHOLE = st.integers(-(2**63), 2**64 - 1)


@settings(deadline=None, max_examples=200)
@given(first=st.tuples(WHOLE, WHOLE, WHOLE), second=st.tuples(WHOLE, WHOLE, WHOLE))
def test_other_numbers_give_another_seed(
    first: tuple[int, int, int], second: tuple[int, int, int]
) -> None:
    modulo = 2**64
    same = all(a % modulo == b % modulo for a, b in zip(first, second, strict=True))
    assert (derive_seed(*first) == derive_seed(*second)) is same
    assert 0 <= derive_seed(*first) < 2**63


def test_the_mix_is_splitmix64() -> None:
    # The first output of SplitMix64 from state 0, as its reference implementation gives it; torch
    # takes 63 bits of it.
    assert derive_seed(0) == 0xE220A8397B1DCDAF >> 1


def test_neighbouring_ids_share_no_low_bits() -> None:
    # The CPU's generator takes 32 bits of a seed only.
    low = {derive_seed(0, draw, id) % 2**32 for draw in range(30) for id in range(1000)}
    assert len(low) > 29_990


def test_a_generator_is_seeded_by_all_its_parts() -> None:
    assert seeded_generator(1, 2).initial_seed() == derive_seed(1, 2)
