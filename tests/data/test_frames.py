import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from raremix.data.boxes import ObjectBoxes, Skipped
from raremix.data.frames import Frame, Frames
from raremix.data.masks import CAMVID_SEGNET, IGNORED
from raremix.errors import (
    EmbeddingShapeError,
    FileFormatError,
    LabelError,
    OptionError,
    RaremixWarning,
)

NAMES = {0: "car", 1: "bus", 2: "tram"}


def frame(
    name: str = "a.png",
    *,
    root: Path = Path("nowhere"),
    clip: str = "clip",
    time: float | None = None,
    mask: Path | None = None,
    objects: ObjectBoxes | None = None,
) -> Frame:
    return Frame(name, root / name, clip, time, mask, objects)


def boxes(labels: Sequence[int], ignored: Sequence[bool] | None = None) -> ObjectBoxes:
    n = len(labels)
    return ObjectBoxes(
        np.tile(np.array([0, 0, 2, 2], dtype=np.float32), (n, 1)),
        np.array(labels, dtype=np.int64),
        np.zeros(n, dtype=bool),
        np.array(ignored if ignored is not None else [False] * n, dtype=bool),
    )


def save(path: Path, value: int, shape: tuple[int, ...] = (4, 6, 3)) -> Path:
    Image.fromarray(np.full(shape, value, dtype=np.uint8)).save(path)
    return path


def timed(*clips_and_times: tuple[str, float | None]) -> Frames:
    found = [
        frame(f"{id}.png", clip=clip, time=time) for id, (clip, time) in enumerate(clips_and_times)
    ]
    return Frames("nowhere", found, {})


def close(frames: Frames, within: float, **options: Any) -> list[list[bool]]:
    """Which frames show the same moment, by the numbers that ``moments`` gives."""
    moments, window = frames.moments(within, **options)
    assert moments.dtype == np.int64
    assert isinstance(window, int)
    near: list[list[bool]] = (np.abs(moments[:, None] - moments) <= window).tolist()
    return near


def test_an_item_is_the_pixels_and_the_id(tmp_path: Path) -> None:
    for value, name in enumerate(("a.png", "b.png")):
        save(tmp_path / name, value)
    frames = Frames(tmp_path, [frame("b.png", root=tmp_path), frame("a.png", root=tmp_path)], {})
    image, id = frames[-2]
    assert id == 0
    assert torch.equal(image, torch.full((3, 4, 6), 1, dtype=torch.uint8))
    assert image.stride() == (1, 18, 3)
    assert [id for _, ids in DataLoader(frames, batch_size=2) for id in ids.tolist()] == [0, 1]
    with pytest.raises(IndexError, match="id 2 is outside of a dataset of 2 images"):
        frames[2]


def test_frames_survive_pickling_for_spawned_workers(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 7)
    one = frame("a.png", root=tmp_path, objects=boxes([2]))
    again = pickle.loads(pickle.dumps(Frames(tmp_path, [one], NAMES)))
    assert again[0][0].unique().tolist() == [7]
    assert again.objects(0).labels.tolist() == [2]


def test_clips_and_times_are_those_of_the_frames() -> None:
    frames = timed(("a", 0.5), ("b", None))
    assert frames.clips == ["a", "b"]
    np.testing.assert_array_equal(frames.times, [0.5, np.nan])
    assert timed().times.shape == (0,)


def test_a_mask_is_read_by_the_convention(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 9)
    mask = save(tmp_path / "a_mask.png", 11, (4, 6))
    frames = Frames(
        tmp_path,
        [frame("a.png", root=tmp_path, mask=mask), frame("a.png", root=tmp_path)],
        CAMVID_SEGNET.names,
        CAMVID_SEGNET,
    )
    found = frames.mask(0)
    assert found is not None
    assert found.tolist() == [[IGNORED] * 6] * 4
    assert frames.mask(1) is None
    assert frames.objects(0) is None
    assert frames.unlabelled == 1


def test_a_mask_of_another_size_than_its_image_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 9)
    one = frame("a.png", root=tmp_path, mask=save(tmp_path / "m.png", 0, (6, 4)))
    frames = Frames(tmp_path, [one], CAMVID_SEGNET.names, CAMVID_SEGNET)
    with pytest.raises(LabelError, match=r"m\.png is 4 x 6 pixels, its frame 6 x 4"):
        frames.mask(0)
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(FileFormatError, match=r"The image .*a\.png cannot be read"):
        frames.mask(0)


def test_masks_need_a_convention() -> None:
    with pytest.raises(OptionError, match="frames with masks and no convention"):
        Frames("nowhere", [frame(mask=Path("m.png"))], {})


def test_objects_of_nameless_classes_are_refused_unless_ignored() -> None:
    with pytest.raises(LabelError, match=r"class ids \[3, 7\], which have no name"):
        Frames("nowhere", [frame(objects=boxes([3, 0, 7]))], NAMES)
    frames = Frames("nowhere", [frame(objects=boxes([3, 0], [True, False]))], NAMES)
    assert frames.class_counts("objects") == {0: 1, 1: 0, 2: 0}
    ignored = Frames("nowhere", [frame(objects=boxes([3], [True]))], NAMES)
    assert ignored.class_counts("frames") == {0: 0, 1: 0, 2: 0}


def test_a_subset_keeps_its_order_and_what_was_skipped() -> None:
    skipped = [Skipped(Path("x.png"), "gone")]
    frames = Frames("nowhere", [frame(f"{id}.png") for id in range(4)], NAMES, skipped=skipped)
    for ids in ([3, 1], np.array([3, 1]), torch.tensor([3, -3])):
        part = frames.subset(ids)
        assert [one.name for one in part.frames] == ["3.png", "1.png"]
        assert part.skipped == skipped
        assert part.class_names == NAMES
    assert len(frames.subset([])) == 0
    with pytest.raises(IndexError, match="id 4 is outside"):
        frames.subset([4])
    with pytest.raises(EmbeddingShapeError, match=r"Frames\.subset expects ids as whole numbers"):
        frames.subset(np.array([True, False, True, True]))


def test_frames_that_cannot_be_decoded_are_left_out_and_listed(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        save(tmp_path / name, 1)
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:50])
    earlier = Skipped(tmp_path / "x.png", "gone")
    found = [frame(name, root=tmp_path) for name in ("a.png", "b.png", "c.png", "none.png")]
    kept = Frames(tmp_path, found, {}, skipped=[earlier]).without_unreadable(threads=2)
    assert [one.name for one in kept.frames] == ["a.png", "c.png"]
    assert kept.skipped[0] == earlier
    assert [one.path.name for one in kept.skipped[1:]] == ["b.png", "none.png"]
    assert kept.skipped[2].reason == "there is no such file"


def test_frames_close_in_time_are_of_one_moment_within_their_clip_only() -> None:
    frames = timed(("a", 3.0), ("b", 3.0), ("a", 4.0), ("a", 6.0), ("b", 3.5))
    near = close(frames, 1.0)
    assert [id for id in range(5) if near[0][id]] == [0, 2]
    assert [id for id in range(5) if near[1][id]] == [1, 4]
    assert [id for id in range(5) if near[3][id]] == [3]
    moments, window = frames.moments(1.0)
    assert window == 1000
    assert moments.tolist() == [0, 2**32, 1000, 3000, 2**32 + 500]


def test_a_frame_without_time_is_a_moment_of_its_own_where_others_have_one() -> None:
    frames = timed(("a", None), ("a", 0.0), ("a", None), ("a", 0.1), ("b", None), ("c", 0.0))
    near = close(frames, 5.0)
    assert [[id for id in range(6) if row[id]] for row in near] == [
        [0],
        [1, 3],
        [2],
        [1, 3],
        [4],
        [5],
    ]


def test_in_clips_without_times_the_order_of_frames_counts() -> None:
    frames = timed(("a", None), ("b", None), ("a", None), ("a", None), ("b", 1.0))
    near = close(frames, 0.5, seconds_per_frame=0.5)
    assert [id for id in range(5) if near[0][id]] == [0, 2]
    assert [id for id in range(5) if near[2][id]] == [0, 2, 3]
    assert [id for id in range(5) if near[1][id]] == [1]
    with pytest.raises(
        OptionError, match=r"the 3 frames of clip 'a' have no times.*pass seconds_per"
    ):
        frames.moments(0.5)


@settings(deadline=None, max_examples=200)
@given(
    frames=st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.integers(-(10**6), 10**6).map(lambda tick: tick / 32) | st.none(),
        ),
        max_size=12,
    ),
    ticks=st.integers(0, 200),
)
def test_numbers_differ_by_the_window_exactly_where_frames_are_near(
    frames: list[tuple[str, float | None]], ticks: int
) -> None:
    # Multiples of 1/32 s are exact as floats, and end in fractions of a millisecond.
    within = ticks / 8
    near = close(timed(*frames), within, seconds_per_frame=1e5)
    clips_with_times = {clip for clip, time in frames if time is not None}
    for one, (clip, time) in enumerate(frames):
        for other, (other_clip, other_time) in enumerate(frames):
            expected = one == other
            if clip == other_clip and clip in clips_with_times and None not in (time, other_time):
                assert time is not None
                assert other_time is not None
                expected = abs(time - other_time) <= within
            assert near[one][other] == expected


def test_neighbours_of_a_video_are_found_at_any_rate() -> None:
    for fps in (5, 16, 17, 25, 29.97, 30, 60):
        frames = timed(*(("a", number / fps) for number in range(200)))
        moments, window = frames.moments(10 / fps)
        assert window == round(10_000 / fps)
        far = np.abs(moments[:, None] - moments)
        apart = np.abs(np.arange(200)[:, None] - np.arange(200))
        # The rates have no whole milliseconds, so that the tenth neighbour may be one too far.
        assert (far[apart < 10] <= window).all()
        assert (far[apart > 10] > window).all()


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        ([("a", 0.0)], {"within": -1.0}, "within as a number in"),
        ([("a", 0.0)], {"within": float("nan")}, "within as a number in"),
        ([("a", 0.0)], {"within": 5e6}, "within as a number in"),
        ([("a", None)], {"within": 1, "seconds_per_frame": 0}, "seconds_per_frame as a number"),
        ([("a", 0.0), ("a", 4e6)], {"within": 3e5}, "clip 'a' is 4,000,000 s long"),
        ([("a", 0.0), ("a", 1e300)], {"within": 0}, "more than 49 days"),
    ],
)
def test_times_that_cannot_be_numbered_are_refused(
    frames: list[tuple[str, float | None]], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        timed(*frames).moments(**options)


def test_boxes_are_counted_by_object_and_by_frame_and_the_ignored_are_not() -> None:
    frames = Frames(
        "nowhere",
        [
            frame(objects=boxes([0, 0, 1, 2], [False, False, False, True])),
            frame(objects=boxes([0])),
            frame(objects=boxes([])),
            frame(),
        ],
        NAMES,
    )
    assert frames.class_counts("objects") == {0: 3, 1: 1, 2: 0}
    assert frames.class_counts() == {0: 2, 1: 1, 2: 0}
    assert frames.unlabelled == 1


def test_masks_are_counted_by_pixel_and_by_frame(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 0, (2, 3, 3))
    found = []
    for number, values in enumerate(([[0, 0, 8], [8, 8, 11]], [[0, 11, 11], [11, 11, 11]])):
        mask = tmp_path / f"m{number}.png"
        Image.fromarray(np.array(values, dtype=np.uint8)).save(mask)
        found.append(frame("a.png", root=tmp_path, mask=mask))
    frames = Frames(tmp_path, [*found, frame()], CAMVID_SEGNET.names, CAMVID_SEGNET)
    assert frames.class_counts("pixels") == {**dict.fromkeys(range(11), 0), 0: 3, 8: 3}
    assert frames.class_counts("frames", threads=1) == {**dict.fromkeys(range(11), 0), 0: 2, 8: 1}
    save(tmp_path / "m1.png", 60, (2, 3))
    with pytest.warns(RaremixWarning, match=r"passed over 1 of 2 masks.*m1\.png holds numbers"):
        assert frames.class_counts("pixels") == {**dict.fromkeys(range(11), 0), 0: 2, 8: 3}
    (tmp_path / "m0.png").write_bytes(b"no image")
    with pytest.raises(LabelError, match=r"could use none of 2 masks.*m0\.png"):
        frames.class_counts("pixels")


def test_what_is_not_labelled_cannot_be_counted() -> None:
    plain = Frames("nowhere", [frame()], NAMES)
    boxed = Frames("nowhere", [frame(objects=boxes([]))], NAMES)
    masked = Frames("nowhere", [frame(mask=Path("m.png"))], NAMES, CAMVID_SEGNET)
    with pytest.raises(LabelError, match=r"cannot count frames: of 1 frames.*no labels at all"):
        plain.class_counts()
    with pytest.raises(LabelError, match=r"cannot count pixels.*there are boxes"):
        boxed.class_counts("pixels")
    with pytest.raises(LabelError, match=r"cannot count objects.*there are masks"):
        masked.class_counts("objects")
    with pytest.raises(OptionError, match="by 'objects', 'pixels' or 'frames', got 'boxes'"):
        boxed.class_counts("boxes")  # type: ignore[arg-type]  # on purpose
