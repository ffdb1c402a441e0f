from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raremix.data.seeding import SeededTransform
from raremix.errors import OptionError


class Drawn(int):
    draw: int


def drawn(id: int, draw: int) -> Drawn:
    value = Drawn(id)
    value.draw = draw
    return value


def noise(image: Any, *, generator: torch.Generator | None = None) -> Tensor:
    return torch.rand(4, generator=generator)


class NoiseModule(nn.Module):
    def forward(self, image: Any, generator: torch.Generator | None = None) -> Tensor:
        return noise(image, generator=generator)


@pytest.mark.parametrize("transform", [noise, NoiseModule()])
def test_views_depend_on_seed_draw_and_id_alone(transform: Any) -> None:
    apply = SeededTransform(transform, seed=3, caller="f")
    again = SeededTransform(transform, seed=3, caller="f")
    assert torch.equal(apply(None, drawn(5, 2)), again(None, drawn(5, 2)))
    others = [
        apply(None, drawn(5, 1)),
        apply(None, drawn(4, 2)),
        SeededTransform(transform, seed=4, caller="f")(None, drawn(5, 2)),
    ]
    for other in others:
        assert not torch.equal(apply(None, drawn(5, 2)), other)


def test_a_plain_id_counts_as_the_draw_zero() -> None:
    apply = SeededTransform(noise, seed=3, caller="f")
    assert torch.equal(apply(None, 5), apply(None, drawn(5, 0)))


def test_a_seeded_transform_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    SeededTransform(noise, seed=3, caller="f")(None, 1)
    assert torch.equal(before, torch.get_rng_state())


def test_without_a_seed_the_transform_is_called_plainly() -> None:
    assert SeededTransform(str.upper, seed=None, caller="f")("a", 1) == "A"
    assert SeededTransform(None, seed=3, caller="f")("a", 1) == "a"


@pytest.mark.parametrize("transform", [str.upper, nn.Identity(), len])
def test_a_seed_that_could_not_be_followed_is_refused(transform: Any) -> None:
    with pytest.raises(OptionError, match=r"ImageFiles got seed=3 and a transform .* generator="):
        SeededTransform(transform, seed=3, caller="ImageFiles")
