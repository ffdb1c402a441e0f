"""Keys of regions: what goes in comes out, as nearly as a key can tell, and nothing minds them."""

import numpy as np
import pytest
import torch
from feedback import Flags, Rows, through_a_file
from hypothesis import given, settings
from hypothesis import strategies as st

from raremix.detection import FlagRate, KNNDistance, OODDetector
from raremix.errors import EmbeddingShapeError, OptionError
from raremix.inputs import as_ids
from raremix.memory import BufferEntries, RareMemoryBuffer
from raremix.memory.offers import owner
from raremix.regions.keys import (
    MOST_FRAMES,
    box_of,
    first_key,
    frame_of,
    is_region,
    region_keys,
)

Box = tuple[int, int, int, int]


@st.composite
def boxes(draw: st.DrawFn, most: int = 5000) -> tuple[Box, tuple[int, int]]:
    """A box in whole pixels, and height and width of the frame it lies in."""
    height, width = draw(st.integers(1, most)), draw(st.integers(1, most))
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
    return (left, top, right, bottom), (height, width)


def key_of(frame: int, box: Box, size: tuple[int, int]) -> int:
    return int(region_keys([frame], [box], size))


@settings(deadline=None, max_examples=500)
@given(given=boxes(), frame=st.integers(0, MOST_FRAMES - 1))
def test_a_key_gives_the_frame_back_and_a_box_around_the_box(
    given: tuple[Box, tuple[int, int]], frame: int
) -> None:
    box, size = given
    key = key_of(frame, box, size)
    assert is_region(key)
    assert 2**62 <= key < 2**63
    assert frame_of(key) == frame
    found = box_of(key, size)
    height, width = size
    for axis, whole in enumerate((width, height)):
        assert 0 <= found[axis] <= box[axis]
        assert box[axis + 2] <= found[axis + 2] <= whole
        assert box[axis] - found[axis] < whole / 255
        assert found[axis + 2] - box[axis + 2] < whole / 255
    if max(size) <= 255:
        assert found == box
    assert key_of(frame, found, size) == key


@settings(deadline=None, max_examples=300)
@given(given=boxes(), other=st.tuples(st.integers(1, 3000), st.integers(1, 3000)))
def test_in_a_frame_of_another_size_the_box_is_that_part_of_it(
    given: tuple[Box, tuple[int, int]], other: tuple[int, int]
) -> None:
    box, (height, width) = given
    left, top, right, bottom = box_of(key_of(0, box, (height, width)), other)
    assert 0 <= left < right <= other[1]
    assert 0 <= top < bottom <= other[0]
    for edge, scaled, whole, own in (
        *((left, box[0], width, other[1]), (right, box[2], width, other[1])),
        *((top, box[1], height, other[0]), (bottom, box[3], height, other[0])),
    ):
        assert abs(edge / own - scaled / whole) < 1 / 255 + 1 / own


def test_ids_of_frames_are_no_regions_and_their_own_frames() -> None:
    ids = torch.tensor([0, 7, MOST_FRAMES - 1, -3])
    assert not is_region(ids).any()
    assert torch.equal(frame_of(ids), ids)
    assert not is_region(MOST_FRAMES)
    assert frame_of(-3) == -3
    with pytest.raises(OptionError, match=r"box_of expects the key of a region, .* got 7"):
        box_of(7, (10, 10))


def test_keys_are_made_row_by_row_also_of_frames_of_several_sizes() -> None:
    sizes = [(720, 1280), (60, 80), (720, 1280)]
    given = [(300, 100, 350, 160), (0, 0, 80, 60), (0, 0, 1, 1)]
    keys = region_keys([7, 8, 9], given, sizes)
    assert keys.dtype == torch.int64
    assert keys.tolist() == [
        key_of(id, box, size) for id, box, size in zip((7, 8, 9), given, sizes, strict=True)
    ]
    assert torch.equal(frame_of(keys), torch.tensor([7, 8, 9]))
    assert region_keys([], torch.empty(0, 4), torch.empty(0, 2)).shape == (0,)
    assert region_keys([], [], (60, 80)).shape == (0,)


def test_boxes_between_pixels_are_taken_with_all_pixels_they_touch() -> None:
    read_only = np.array([[3.2, 4.0, 9.1, 9.9]], dtype=np.float32)
    read_only.flags.writeable = False
    keys = region_keys([5], read_only, (60, 80))
    assert box_of(int(keys), (60, 80)) == (3, 4, 10, 10)


def test_keys_of_a_frame_lie_between_its_first_and_that_of_the_next() -> None:
    for frame in (0, 1, MOST_FRAMES - 1):
        for box in ((0, 0, 1, 1), (0, 0, 80, 60), (79, 59, 80, 60)):
            assert first_key(frame) <= key_of(frame, box, (60, 80)) < first_key(frame + 1)
    assert first_key(MOST_FRAMES) <= 2**63


@pytest.mark.parametrize("frame", [-1, MOST_FRAMES])
def test_a_frame_that_no_key_has_room_for_is_refused(frame: int) -> None:
    least, most = sorted((3, frame))
    said = rf"ids of frames in \[0, 2\*\*30\), .* got {least} to {most}"
    with pytest.raises(OptionError, match=said):
        region_keys([3, frame], [(0, 0, 1, 1)] * 2, (60, 80))


def test_what_is_no_box_in_its_frame_is_refused_by_name() -> None:
    with pytest.raises(OptionError, match=r"reaches outside in a frame of 80 x 60 pixels"):
        region_keys([3], [(0, 0, 81, 60)], (60, 80))
    with pytest.raises(OptionError, match="is empty in a frame of 80 x 60"):
        region_keys([3], [(4, 4, 4, 9)], (60, 80))
    with pytest.raises(OptionError, match="a box and a size for each of 2 ids, got boxes of shape"):
        region_keys([3, 4], [(0, 0, 1, 1)], (60, 80))
    with pytest.raises(EmbeddingShapeError, match="expects ids as whole numbers"):
        region_keys(torch.tensor([0.5]), [(0, 0, 1, 1)], (60, 80))


def test_a_buffer_holds_refreshes_and_saves_keys_like_ids() -> None:
    keys = torch.cat(
        [region_keys([3, MOST_FRAMES - 1], [(1, 2, 80, 60)] * 2, (60, 80)), torch.tensor([3])]
    )
    assert as_ids(keys.tolist(), caller="here").equal(keys)
    buffer = RareMemoryBuffer(4)
    assert buffer.admit(BufferEntries(keys, torch.ones(3))) == 3
    assert buffer.admit(BufferEntries(keys, torch.full((3,), 2.0))) == 0
    assert buffer.entries.scores.tolist() == [2.0] * 3
    again = RareMemoryBuffer(4)
    again.load_state_dict(through_a_file(buffer.state_dict()))
    assert torch.equal(again.keys, keys)
    assert all(int(key) in again for key in keys)
    batch = Rows(0, keys, torch.ones(3, dtype=torch.bool))
    again.add(batch, Flags(torch.full((3,), 5.0), torch.ones(3, dtype=torch.bool)))
    assert again.entries.scores.tolist() == [5.0] * 3
    drawn = again.draw(3, generator=torch.Generator().manual_seed(0)).keys
    assert sorted(drawn.tolist()) == sorted(keys.tolist())
    assert again.draw(3, taken={int(keys[1])}).keys.tolist().count(int(keys[1])) == 0


def test_shards_share_out_the_keys_of_one_frame() -> None:
    boxes = [(left, 0, left + 8, 8) for left in range(0, 240, 4)]
    owners = [owner(int(key), 2) for key in region_keys([5] * len(boxes), boxes, (255, 255))]
    assert 20 < sum(owners) < 40


@pytest.mark.filterwarnings("ignore::raremix.errors.RaremixWarning")
def test_a_detector_tells_regions_apart_by_their_keys(generator: torch.Generator) -> None:
    keys = region_keys(
        torch.arange(60) % 20, [(left, 0, left + 8, 8) for left in range(60)], (255, 255)
    )
    rows = torch.randn(60, 8, generator=generator)
    detector = OODDetector(KNNDistance(k=1), FlagRate(0.1, warmup_scores=10))
    detector.observe(rows, ids=keys)
    detector.observe(rows, ids=keys)
    again = OODDetector(KNNDistance(k=1), FlagRate(0.1, warmup_scores=10))
    again.load_state_dict(through_a_file(detector.state_dict()))
    # Compared with itself, every region would have the distance 0.
    assert (again.score(rows, ids=keys) > 0).all()
    assert torch.equal(again.score(rows, ids=keys), detector.score(rows, ids=keys))
    assert torch.allclose(again.score(rows), torch.zeros(60), atol=1e-3)
