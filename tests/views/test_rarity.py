"""Views that follow the rarity of their sample, and the control that does not."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from raremix import ImageArrays
from raremix.errors import OptionError, StateMismatchError
from raremix.views import MultiCropTransform, RarityViews, View, sample_seeds

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3), dtype=np.uint8)
BATCH = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
SMALL = MultiCropTransform.recipe("small", global_crop_size=8, local_crop_size=4)


def told(**options: Any) -> RarityViews:
    views = RarityViews(SMALL, 40, **options)
    views.update(range(40), torch.arange(40.0).flip(0))
    return views


def test_rarity_is_the_place_among_the_scores() -> None:
    views = RarityViews(SMALL, 5)
    assert views.rarity.tolist() == [0.5] * 5
    views.update([4, 0, 2], torch.tensor([9.0, -1.0, 3.0]))
    assert views.rarity.tolist() == [0.0, 0.5, 0.5, 0.5, 1.0]
    views.update([1, 3], torch.tensor([torch.nan, 100.0]))
    assert views.rarity.tolist() == pytest.approx([0.0, 0.5, 1 / 3, 1.0, 2 / 3])


def test_scores_may_be_of_any_kind() -> None:
    for scores in (
        np.array([2.0, 1.0]),
        [2, 1],
        torch.tensor([2, 1]),
        torch.tensor([2.0, 1.0]).half(),
    ):
        views = RarityViews(SMALL, 2)
        views.update([0, 1], scores)
        assert views.rarity.tolist() == [1.0, 0.0]


def test_equal_scores_share_their_place_and_the_mean_stays_in_the_middle() -> None:
    views = RarityViews(SMALL, 6)
    views.update(range(6), torch.tensor([1.0, 1.0, 1.0, 5.0, 5.0, 9.0]))
    assert views.rarity.tolist() == pytest.approx([0.2, 0.2, 0.2, 0.7, 0.7, 1.0])
    views.update(range(6), torch.ones(6))
    assert views.rarity.tolist() == pytest.approx([0.5] * 6)


def test_strength_and_number_follow_rarity_in_a_straight_line() -> None:
    views = told(strength=(0.5, 1.5), n_local_views=(1, 5))
    counts, same = np.zeros(40), 0
    for draw in range(200):
        seeds = sample_seeds(0, draw, range(40))
        made, active = views.batch(BATCH, ids=range(40), seeds=seeds)
        counts += active[:, 2:].sum(dim=1).numpy()
        assert bool(active[:, :2].all())
        assert bool((active[:, 2:].int().diff(dim=1) <= 0).all())
        same += len(made)
    rarity = np.arange(40)[::-1] / 39
    assert np.abs(counts / 200 - (1 + 4 * rarity)).max() < 4 * 0.5 / np.sqrt(200)
    weak = SMALL(IMAGES[39], seed=5, strength=0.5)
    strong = SMALL(IMAGES[0], seed=5, strength=1.5)
    assert all(map(torch.equal, views(IMAGES[39], id=39, seed=5)[0][:2], weak))
    assert all(map(torch.equal, views(IMAGES[0], id=0, seed=5)[0][:2], strong))


def test_the_control_has_the_same_mean_for_every_sample() -> None:
    views, control = (
        made(strength=(0.2, 1.0), n_local_views=(2, 5))
        for made in (told, lambda **options: RarityViews(SMALL, 40, **options))
    )
    active = {}
    for name, one in (("views", views), ("control", control)):
        seeds = [sample_seeds(1, draw, range(40)) for draw in range(150)]
        active[name] = torch.stack([one.batch(BATCH, ids=range(40), seeds=s)[1] for s in seeds])
    means = {name: float(found.sum(dim=2).double().mean()) for name, found in active.items()}
    assert means["views"] == pytest.approx(2 + 3.5, abs=0.05)
    assert means["control"] == pytest.approx(2 + 3.5, abs=0.05)
    assert all(
        map(
            torch.equal,
            control(IMAGES[3], id=3, seed=1)[0][:2],
            SMALL(IMAGES[3], seed=1, strength=0.6),
        )
    )


def test_all_ways_make_the_same_views() -> None:
    views = told(n_local_views=(0, 6))
    data = ImageArrays(IMAGES, transform=views.cut, seed=3)
    seeds = sample_seeds(3, 0, range(40))
    whole, active = views.batch(BATCH, ids=range(40), seeds=seeds)
    at = 0
    for batch, ids in DataLoader(data, batch_size=7, num_workers=1):
        made, given = views.finish(batch)
        for row, id in enumerate(ids.tolist()):
            alone, own = views(IMAGES[id], id=id, seed=int(seeds[id]))
            assert torch.equal(given[row], active[id])
            assert torch.equal(own, active[id])
            for one, two, three in zip(alone, made, whole, strict=True):
                assert torch.equal(one, two[row])
                assert torch.equal(one, three[id])
            for view, kept in zip(alone, own.tolist(), strict=True):
                assert bool(view.any()) or not kept
            at += 1
    assert at == 40


def test_workers_that_run_already_see_updates() -> None:
    views = RarityViews(SMALL, 40, strength=(0.0, 3.0), n_local_views=(0, 6))
    loader = DataLoader(
        ImageArrays(IMAGES, transform=views.cut, seed=0),
        batch_size=40,
        num_workers=1,
        persistent_workers=True,
    )

    def counts() -> Tensor:
        ((batch, _),) = list(loader)
        active: Tensor = batch["active"]
        return active.sum(dim=1)

    assert counts().tolist() == [5] * 40
    views.update(range(40), torch.arange(40.0))
    assert counts()[[0, 39]].tolist() == [2, 8]


def test_a_state_restores_the_rarity() -> None:
    views, other = told(), RarityViews(SMALL, 40)
    other.load_state_dict(views.state_dict())
    assert torch.equal(other.rarity, views.rarity)
    with pytest.raises(StateMismatchError, match="n was 40, is 3"):
        RarityViews(SMALL, 3).load_state_dict(views.state_dict())


def test_wrong_use_is_named() -> None:
    with pytest.raises(OptionError, match="expects a MultiCropTransform, got 3"):
        RarityViews(3, 3)  # type: ignore[arg-type]  # The mistake under test.
    with pytest.raises(OptionError, match=r"expects strength of the commonest .* got \(-1, 1\)"):
        RarityViews(SMALL, 3, strength=(-1, 1))
    with pytest.raises(OptionError, match=r"n_local_views .* from 0 to 6, got \(2, 7\)"):
        RarityViews(SMALL, 3, n_local_views=(2, 7))
    with pytest.raises(OptionError, match="cannot say what view 1 does"):
        RarityViews(MultiCropTransform.from_views([View(8, (0.5, 1.0)), torch.Tensor.float]), 3)
    views = RarityViews(SMALL, 3)
    with pytest.raises(
        OptionError, match=r"an id in \[0, 3\) for each of 2 scores, got 2 in \[1, 3\]"
    ):
        views.update([1, 3], torch.zeros(2))
    with pytest.raises(OptionError, match=r"ids in \[0, 3\), got \[3\]"):
        views(IMAGES[0], id=3, seed=0)
    with pytest.raises(OptionError, match='expects what its cut made, got no "active"'):
        views.finish(SMALL.cut(IMAGES[0], seed=0))
