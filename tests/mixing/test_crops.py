"""Rows of a batch are one image in every view and target, whatever the batch is made of."""

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import default_collate

from raremix import (
    Batch,
    BufferEntries,
    CropMixer,
    MultiCropTransform,
    RareMemoryBuffer,
    View,
)
from raremix.errors import LoaderError, OptionError

SIZES = (6, 6, 4, 4, 4)
# Nothing changes the colour, so that an image of one colour has views of that colour.
TRANSFORM = MultiCropTransform.from_views(
    [View(size, scale=(0.3, 1.0), jitter_p=0.0, grayscale_p=0.0) for size in SIZES],
    mean=(0, 0, 0),
    std=(1, 1, 1),
)
COLOURS = MultiCropTransform(
    global_crop_size=6, local_crop_size=4, n_global_views=2, n_local_views=1
)


def painted(ids: Tensor) -> Tensor:
    """Images of one colour, which is their id."""
    return ids.to(torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8).contiguous()


def read(view: Tensor) -> Tensor:
    """The id of each image or view."""
    flat = view.flatten(1).double() * (1 if view.dtype == torch.uint8 else 255)
    assert float((flat.amax(1) - flat.amin(1)).max()) < 0.01
    return flat.mean(1).round().long()


def buffer_of(keys: Tensor) -> RareMemoryBuffer:
    buffer = RareMemoryBuffer(64)
    buffer.admit(BufferEntries(keys, torch.ones(len(keys)), painted(keys)))
    return buffer


class Named(NamedTuple):
    views: list[Tensor]
    id: int


Sample = tuple[list[Tensor], Tensor, int]


@dataclass(frozen=True)
class Case:
    """How samples become a batch, and how each part of the batch says which ids it shows."""

    sample: Callable[[list[Tensor], Tensor, int], Any]
    collate: Callable[[list[Any]], Any]
    shown: Callable[[Any], list[Tensor]]
    order: Any = "view-major"


def of_views(views: Any) -> list[Tensor]:
    return [read(view) for view in views]


def view_major(rows: list[list[Tensor]]) -> Tensor:
    return torch.cat([torch.stack([row[place] for row in rows]) for place in range(len(rows[0]))])


def row_major(rows: list[list[Tensor]]) -> Tensor:
    return torch.stack([view for row in rows for view in row])


def dinov2(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """As its collate function does; its masks do not depend on the image."""
    return {
        "global": view_major([row["global"] for row in rows]),
        "local": view_major([row["local"] for row in rows]),
        "masks": torch.zeros(2 * len(rows), 4, dtype=torch.bool),
        "upper": 7,
    }


def ragged(rows: list[Any]) -> list[Any]:
    return [torch.stack([row[0] for row in rows]), [row[1] for row in rows]]


CASES = {
    "list": Case(lambda views, pixels, id: views, default_collate, of_views),
    "tuple with targets": Case(
        lambda views, pixels, id: (views, pixels, id, id / 4, f"name {id}"),
        default_collate,
        lambda batch: [
            *of_views(batch[0]),
            read(batch[1]),
            batch[2],
            (batch[3] * 4).long(),
            torch.tensor([int(name.split()[1]) for name in batch[4]]),
        ],
    ),
    "dict": Case(
        lambda views, pixels, id: {"views": views, "id": torch.tensor(id), "odd": id % 2 == 1},
        default_collate,
        lambda batch: [
            *of_views(batch["views"]),
            batch["id"],
            batch["id"] // 2 * 2 + batch["odd"].long(),
        ],
    ),
    "nested": Case(
        lambda views, pixels, id: {
            "large": {"views": tuple(views[:2])},
            "rest": [views[2:], {"mask": np.full((2, 3), id), "none": {}}],
        },
        default_collate,
        lambda batch: [
            *of_views(batch["large"]["views"]),
            *of_views(batch["rest"][0]),
            batch["rest"][1]["mask"][:, 1, 2],
        ],
    ),
    "named tuple": Case(
        lambda views, pixels, id: Named(views, id),
        default_collate,
        lambda batch: [*of_views(batch.views), batch.id],
    ),
    "view-major": Case(
        lambda views, pixels, id: views[2:],
        view_major,
        lambda batch: of_views(batch.chunk(3)),
    ),
    "row-major": Case(
        lambda views, pixels, id: views[2:],
        row_major,
        lambda batch: of_views(batch.unflatten(0, (-1, 3)).unbind(1)),
        "row-major",
    ),
    "all views of an image in one tensor": Case(
        lambda views, pixels, id: torch.stack(views[2:]),
        default_collate,
        lambda batch: of_views(batch.unbind(1)),
    ),
    "dinov2": Case(
        lambda views, pixels, id: {
            "global": views[:2],
            "local": views[2:],
            "masks": ...,
            "upper": ...,
        },
        dinov2,
        lambda batch: [*of_views(batch["global"].chunk(2)), *of_views(batch["local"].chunk(3))],
    ),
    "objects": Case(
        lambda views, pixels, id: (views[0], {"boxes": torch.full((id % 3, 4), id), "id": id}),
        ragged,
        lambda batch: [read(batch[0]), torch.tensor([each["id"] for each in batch[1]])],
    ),
}


def batch_of(case: Case, ids: Tensor) -> Any:
    rows = []
    for pixels, id in zip(painted(ids), ids.tolist(), strict=True):
        views = TRANSFORM(pixels, generator=torch.Generator().manual_seed(id))
        rows.append(case.sample(views, pixels, id))
    return case.collate(rows)


def mixer_of(case: Case, buffer: RareMemoryBuffer, ids: Tensor, **options: Any) -> CropMixer:
    return CropMixer(
        buffer,
        TRANSFORM,
        sample=case.sample,
        order=case.order,
        ids=lambda batch: ids,
        pixels=lambda batch: painted(ids),
        **options,
    )


@pytest.mark.parametrize("mode", ["replace", "extend"])
@pytest.mark.parametrize("name", CASES)
def test_a_row_is_one_image_in_every_part_of_a_batch(name: str, mode: Any) -> None:
    case, ids = CASES[name], torch.arange(7)
    buffer = buffer_of(torch.arange(100, 120))
    batch = batch_of(case, ids)
    batch, rows = mixer_of(case, buffer, ids, replay=0.4, mode=mode)(batch)
    if mode == "replace":
        assert int(rows.is_replay.sum()) == 3
        assert torch.equal(rows.ids[~rows.is_replay], ids[~rows.is_replay])
    else:
        assert rows.is_replay.tolist() == [False] * 7 + [True] * 3
        assert torch.equal(rows.ids[:7], ids)
    assert bool((rows.ids[rows.is_replay] >= 100).all())
    shown = case.shown(batch)
    assert len(shown) >= 2
    for part in shown:
        assert torch.equal(part, rows.ids)


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(CASES)),
    width=st.integers(1, 9),
    replay=st.floats(0.0, 0.95),
    held=st.integers(0, 12),
    overlap=st.booleans(),
    mode=st.sampled_from(["replace", "extend"]),
    seed=st.integers(-5, 5),
)
def test_width_and_rows_are_as_promised_for_every_shape(
    name: str, width: int, replay: float, held: int, overlap: bool, mode: Any, seed: int
) -> None:
    case = CASES[name]
    buffer = buffer_of(torch.arange(0 if overlap else 100, held if overlap else 100 + held))
    mixer = CropMixer(
        buffer,
        TRANSFORM,
        sample=case.sample,
        order=case.order,
        mode=mode,
        replay=replay,
        seed=seed,
        ids=lambda batch: case.shown(batch)[0],
        pixels=lambda batch: painted(case.shown(batch)[0]),
    )
    for number in range(2):
        ids = torch.arange(10 * number, 10 * number + width)
        batch, rows = mixer(batch_of(case, ids))
        for part in case.shown(batch):
            assert torch.equal(part, rows.ids)
        replays = int(rows.is_replay.sum())
        assert rows.step == number
        if mode == "replace":
            assert len(rows) == width
            most = min(max(1, round(replay * width)), width - 1) if replay else 0
            assert replays == min(most, held)
            assert len(set(rows.ids.tolist())) == width
            assert torch.equal(rows.ids[~rows.is_replay], ids[~rows.is_replay])
        else:
            added = max(1, round(width * replay)) if replay else 0
            assert len(rows) == width + added
            assert replays <= min(added, held)
            assert not rows.is_replay[:width].any()
            assert set(rows.ids[~rows.is_replay].tolist()) == set(ids.tolist())
        drawn = rows.is_replay
        assert torch.equal(drawn, rows.entry >= 0)
        assert bool((rows.entry[:width][~drawn[:width]] == -1).all())
        assert bool((rows.entry[width:][~drawn[width:]] == -2).all())
        assert bool((rows.probability[~drawn] == 1).all())
        assert bool((rows.age[~drawn] == 0).all())


@pytest.mark.parametrize(
    ("width", "replay", "replays"),
    [(1, 0.5, 0), (8, 0.0, 0), (8, 0.99, 7), (2, 0.01, 1), (8, 0.001, 1)],
)
def test_the_share_is_at_least_one_row_and_at_most_all_but_one(
    width: int, replay: float, replays: int
) -> None:
    case, ids = CASES["list"], torch.arange(width)
    mixer = mixer_of(case, buffer_of(torch.arange(100, 120)), ids, replay=replay)
    assert int(mixer(batch_of(case, ids))[1].is_replay.sum()) == replays


def test_a_cold_buffer_leaves_a_batch_as_it_is() -> None:
    case, ids = CASES["tuple with targets"], torch.arange(5)
    batch = batch_of(case, ids)
    before = copy.deepcopy(batch)
    mixed, rows = mixer_of(case, RareMemoryBuffer(4), ids)(batch)
    assert mixed is batch
    assert all(torch.equal(a, b) for a, b in zip(mixed[0], before[0], strict=True))
    assert torch.equal(rows.ids, ids)
    assert not rows.is_replay.any()


def test_extending_with_a_cold_buffer_shows_rows_of_the_batch_in_new_views() -> None:
    ids = torch.arange(6)
    noise = torch.randint(
        256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    views = default_collate([COLOURS(pixels) for pixels in noise])
    mixer = CropMixer(
        RareMemoryBuffer(4),
        COLOURS,
        mode="extend",
        replay=0.25,
        ids=lambda _: ids,
        pixels=lambda _: noise,
    )
    longer, rows = mixer(views)
    assert [view.shape for view in longer] == [(8, 3, 6, 6), (8, 3, 6, 6), (8, 3, 4, 4)]
    assert not rows.is_replay.any()
    assert rows.entry.tolist() == [-1] * 6 + [-2] * 2
    first, second = rows.ids[6:].tolist()
    assert first != second
    for old, new in zip(views, longer, strict=True):
        assert torch.equal(old, new[:6])
        assert not torch.equal(new[6], old[first])
        assert not torch.equal(new[7], old[second])


def test_rows_are_written_in_place() -> None:
    case, ids = CASES["tuple with targets"], torch.arange(5)
    batch = batch_of(case, ids)
    parts = [*batch[0], *batch[1:4]]
    places = [part.data_ptr() for part in parts]
    mixed, rows = mixer_of(case, buffer_of(torch.arange(100, 110)), ids)(batch)
    assert rows.is_replay.any()
    assert all(a is b for a, b in zip([*mixed[0], *mixed[1:4]], parts, strict=True))
    assert [part.data_ptr() for part in parts] == places


def test_a_row_whose_own_id_is_drawn_is_the_one_that_gives_way() -> None:
    case, ids = CASES["list"], torch.arange(6)
    buffer = buffer_of(torch.tensor([4]))
    mixed, rows = mixer_of(case, buffer, ids, replay=0.4)(batch_of(case, ids))
    assert rows.ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert rows.is_replay.tolist() == [False, False, False, False, True, False]
    assert torch.equal(read(mixed[0]), ids)


def test_the_rows_that_give_way_are_spread_over_the_batch() -> None:
    case, ids = CASES["list"], torch.arange(6)
    mixer = mixer_of(case, buffer_of(torch.arange(100, 110)), ids, replay=1 / 6)
    given_way = torch.stack([mixer(batch_of(case, ids))[1].is_replay for _ in range(120)])
    assert bool((given_way.sum(0) > 8).all())  # 20 each on the average
    assert bool((given_way.sum(0) < 40).all())


def test_rows_tell_the_entry_its_chance_and_its_age() -> None:
    case, ids = CASES["list"], torch.arange(4)
    buffer = buffer_of(torch.arange(100, 108))
    mixer = mixer_of(case, buffer, ids, replay=0.5)
    for step in range(3):
        _, rows = mixer(batch_of(case, ids))
        drawn = rows.is_replay
        assert torch.equal(rows.entry[drawn], rows.ids[drawn] - 100)
        assert rows.probability[drawn].tolist() == [0.25, 0.25]
        assert rows.age[drawn].tolist() == [step, step]


def run(seed: int, steps: int = 9) -> list[tuple[list[Tensor], Batch]]:
    noise = torch.randint(
        256, (3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    buffer = RareMemoryBuffer(3)
    buffer.admit(BufferEntries(torch.arange(50, 53), torch.ones(3), noise))
    mixer = CropMixer(buffer, COLOURS, replay=0.5, seed=seed)
    return [mixer([torch.zeros(4, 3, size, size) for size in (6, 6, 4)]) for _ in range(steps)]


def test_a_run_repeats_and_a_replay_never_looks_the_same() -> None:
    first, again, other = run(3), run(3), run(4)
    for (views, rows), (same, same_rows), _ in zip(first, again, other, strict=True):
        assert torch.equal(rows.ids, same_rows.ids)
        assert all(torch.equal(a, b) for a, b in zip(views, same, strict=True))
    assert any(not torch.equal(a[0][0], b[0][0]) for a, b in zip(first, other, strict=True))
    seen = [
        view
        for views, rows in first
        for view, id in zip(views[0], rows.ids.tolist(), strict=True)
        if id == 51
    ]
    assert len(seen) >= 3
    assert all(not torch.equal(a, b) for n, a in enumerate(seen) for b in seen[:n])


def test_no_global_generator_is_touched_or_asked() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()
    first = run(0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (repr(np.random.get_state()), random.getstate())
    torch.manual_seed(1)
    assert torch.equal(first[1][0][0], run(0)[1][0][0])


def test_rows_without_ids_get_running_numbers() -> None:
    mixer = CropMixer(RareMemoryBuffer(3), COLOURS)
    ids = [mixer([torch.zeros(width, 3, 6, 6)])[1].ids.tolist() for width in (3, 2, 3)]
    assert ids == [[0, 1, 2], [3, 4], [5, 6, 7]]


def ok(views: list[Tensor], pixels: Tensor, id: int) -> Any:
    return views, pixels, id


PLAIN_BATCH = (
    [torch.zeros(4, 3, size, size) for size in SIZES],
    torch.zeros(4, 3, 8, 8, dtype=torch.uint8),
    torch.zeros(4, dtype=torch.int64),
)


@pytest.mark.parametrize(
    ("batch", "sample", "message"),
    [
        (PLAIN_BATCH, lambda v, p, i: v, r"into batch, which has 3 parts, .* sample has 5"),
        (PLAIN_BATCH, lambda v, p, i: (v, p), r"into batch, which has 3 parts, .* sample has 2"),
        (PLAIN_BATCH, lambda v, p, i: (v[:4], p, i), r"batch\[0\], which has 5 parts, .* has 4"),
        (
            PLAIN_BATCH,
            lambda v, p, i: ([*v[:4], v[0]], p, i),
            r"batch\[0\]\[4\], which has shape \(4, 3, 4, 4\) for 4 rows, .* shape \(3, 6, 6\)",
        ),
        (
            PLAIN_BATCH,
            lambda v, p, i: (v, p / 255, i),
            r"batch\[1\], which holds torch.uint8, .* holds torch.float32",
        ),
        (PLAIN_BATCH, lambda v, p, i: (v, p, i / 2), r"batch\[2\], which holds torch.int64"),
        (PLAIN_BATCH, lambda v, p, i: (v, p, "a"), r"batch\[2\], which is a tensor, .* is a str"),
        (PLAIN_BATCH, lambda v, p, i: (v, p, None), r"batch\[2\], .* is a NoneType"),
        (PLAIN_BATCH, lambda v, p, i: (v, p, [1, 2]), r"batch\[2\], .* 4 rows of 2 views"),
        (
            {"views": PLAIN_BATCH[0], "mask": PLAIN_BATCH[2]},
            lambda v, p, i: {"views": v},
            r"keys \['mask', 'views'\], .* has \['views'\]",
        ),
        (
            {"a": {"b": PLAIN_BATCH[2]}},
            lambda v, p, i: {"a": {"b": p}},
            r"batch\['a'\]\['b'\], which has shape \(4,\)",
        ),
        ({"a": PLAIN_BATCH[2]}, lambda v, p, i: v, r"has the keys \['a'\], .* has a list"),
        (
            [PLAIN_BATCH[2], ["a", "b", "c"]],
            lambda v, p, i: (i, "d"),
            r"batch\[1\], which is a list of 3 for 4 rows",
        ),
        (
            [PLAIN_BATCH[2], ["a", "b", "c", "d"]],
            lambda v, p, i: (i, i),
            r"batch\[1\], which is a list of 4 for 4 rows, .* is an int",
        ),
        ([PLAIN_BATCH[2], "name"], lambda v, p, i: (i, "x"), r"batch\[1\], which is a str"),
        (
            [PLAIN_BATCH[2], torch.zeros(1).expand(4)],
            lambda v, p, i: (i, 0.5),
            r"batch\[1\], which shows the same memory in several rows",
        ),
        (
            torch.zeros(8, 3, 6, 6),
            lambda v, p, i: v[:2],
            r"into batch, which has shape \(8, 3, 6, 6\) for 8 rows of 2 views.* pass rows=",
        ),
        (
            torch.zeros(8, 3, 6, 6),
            lambda v, p, i: v,
            r"which is one tensor, .* has views of shapes \[\(3, 6, 6\), ",
        ),
    ],
)
def test_a_part_that_a_fresh_row_does_not_fit_is_named_and_nothing_is_changed(
    batch: Any, sample: Any, message: str
) -> None:
    buffer = buffer_of(torch.arange(100, 110))
    mixer = CropMixer(buffer, TRANSFORM, sample=sample, replay=0.25)
    before = copy.deepcopy(batch)
    with pytest.raises(LoaderError, match=message):
        mixer(batch)
    assert repr(before) == repr(batch)


def test_samples_that_differ_in_what_they_leave_are_refused() -> None:
    mixer = CropMixer(
        buffer_of(torch.arange(104, 107)),
        TRANSFORM,
        sample=lambda views, pixels, id: (views, ... if id == 105 else pixels, id),
        replay=0.75,
    )
    with pytest.raises(LoaderError, match="differ in which parts they leave"):
        mixer(PLAIN_BATCH)


def test_entries_without_pixels_are_refused() -> None:
    buffer = RareMemoryBuffer(4)
    buffer.admit(BufferEntries(torch.arange(4), torch.ones(4)))
    with pytest.raises(
        OptionError, match=r"entries without pixels; .* crops=.* BufferedMixSampler"
    ):
        CropMixer(buffer, TRANSFORM)(list(PLAIN_BATCH[0]))


def test_ids_and_pixels_that_do_not_fit_the_rows_are_refused() -> None:
    views = list(PLAIN_BATCH[0])
    buffer = RareMemoryBuffer(4)
    odd = CropMixer(buffer, TRANSFORM, ids=lambda _: torch.arange(3), rows=len_of_first)
    with pytest.raises(LoaderError, match="got 3 ids for 4 rows"):
        odd(views)
    floats = CropMixer(buffer, TRANSFORM, mode="extend", pixels=lambda _: torch.zeros(4, 3, 8, 8))
    with pytest.raises(LoaderError, match=r"uint8 of shape \(4, channels, .* got torch.float32"):
        floats(views)
    buffer.admit(BufferEntries(torch.tensor([9]), torch.ones(1), torch.zeros(1, 3, 5, 5).byte()))
    sizes = CropMixer(
        buffer, TRANSFORM, mode="extend", replay=0.5, pixels=lambda _: painted(torch.arange(4))
    )
    with pytest.raises(LoaderError, match=r"\(3, 5, 5\) from the buffer and of \(3, 8, 8\)"):
        sizes(views)
    with pytest.raises(LoaderError, match="no tensor with rows in a batch of type dict"):
        CropMixer(buffer, TRANSFORM)({"temperature": torch.tensor(0.1)})


def len_of_first(views: list[Tensor]) -> int:
    return len(views[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buffer": {}}, "expects a buffer such as RareMemoryBuffer"),
        ({"transform": None}, "expects transform as a function, got None"),
        ({"ids": "id"}, "expects ids as a function, got 'id'"),
        ({"replay": 1.0}, r"expects replay as a number in \[0, 1\)"),
        ({"mode": "stretch"}, "expects mode 'replace' or 'extend', got 'stretch'"),
        ({"order": "c"}, "expects order 'view-major' or 'row-major', got 'c'"),
        ({"mode": "extend"}, 'with mode="extend" expects pixels='),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    given = {"buffer": RareMemoryBuffer(4), "transform": TRANSFORM, **options}
    with pytest.raises(OptionError, match=message):
        CropMixer(**given)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", ["replace", "extend"])
def test_pinned_memory_stays_pinned(mode: Any) -> None:
    case, ids = CASES["tuple with targets"], torch.arange(6)
    batch = batch_of(case, ids)
    batch = [
        [view.pin_memory() for view in batch[0]],
        *(p.pin_memory() for p in batch[1:4]),
        batch[4],
    ]
    mixed, rows = mixer_of(case, buffer_of(torch.arange(100, 110)), ids, replay=0.5, mode=mode)(
        batch
    )
    assert rows.is_replay.any()
    for part in (*mixed[0], *mixed[1:4]):
        assert part.is_pinned()
    for part in case.shown(mixed):
        assert torch.equal(part, rows.ids)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_on_a_device_are_mixed_there() -> None:
    case, ids = CASES["view-major"], torch.arange(6)
    batch = batch_of(case, ids).cuda()
    mixed, rows = mixer_of(case, buffer_of(torch.arange(100, 110)), ids, replay=0.5)(batch)
    assert mixed.is_cuda
    for part in case.shown(mixed.cpu()):
        assert torch.equal(part, rows.ids)
