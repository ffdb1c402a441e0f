"""From judged frames into a buffer: what comes in, what is the same object, and what is kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from feedback import same, through_a_file
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import run_ranks
from torch import Tensor

from raremix.errors import (
    EmbeddingShapeError,
    ImageInputError,
    OptionError,
    StateMismatchError,
)
from raremix.memory import FIFO, BufferEntries, LeastRedundant, RareMemoryBuffer, RarestK
from raremix.regions.boxes import square_boxes
from raremix.regions.detector import FrameDetection
from raremix.regions.keys import box_of, frame_of, is_region, region_keys
from raremix.regions.regions import Regions
from raremix.regions.replay import RegionReplay

HEIGHT, WIDTH, DIM = 100, 160, 256
Box = tuple[int, int, int, int]
Seen = tuple[int, Box, float, Tensor]  # frame, box, score, embedding


def look(number: int) -> Tensor:
    """The embedding of an object; of different ones at right angles, as good as."""
    return torch.randn(DIM, generator=torch.Generator().manual_seed(number))


def judged(seen: Sequence[Seen], frames: Sequence[int] | None = None) -> FrameDetection:
    """A detection in which the regions named are rare, beside two of every frame that are not."""
    ids = sorted({frame for frame, *_ in seen}) if frames is None else list(frames)
    boxes, scores, embeddings, of = [], [], [], []
    for at, id in enumerate(ids):
        usual: list[Seen] = [
            (id, (0, 0, 9, 9), 0.1, look(1000 + id)),
            (id, (150, 90, 160, 100), 0.2, look(2000 + id)),
        ]
        for _, box, score, embedding in [*usual, *(one for one in seen if one[0] == id)]:
            boxes.append(box)
            scores.append(score)
            embeddings.append(embedding)
            of.append(at)
    region_scores = torch.tensor(scores)
    rarest = torch.stack([region_scores[torch.tensor(of) == at].max() for at in range(len(ids))])
    regions = Regions(
        torch.stack(embeddings),
        torch.tensor(boxes),
        torch.zeros(len(boxes), dtype=torch.int64),
        torch.tensor(of),
        torch.zeros(len(ids), 4),
        torch.tensor(ids),
        torch.tensor([[HEIGHT, WIDTH]] * len(ids)),
    )
    is_rare = rarest > 1
    return FrameDetection(
        regions, region_scores, rarest, torch.ones(len(ids)), is_rare, ~is_rare, 1.0, 0.5
    )


def passing(
    steps: Sequence[int], *, speed: int = 4, start: int = 10, object: int = 1
) -> list[Seen]:
    """An object that moves to the right, seen in these frames."""
    return [
        (
            step,
            (start + speed * step, 30, start + 20 + speed * step, 50),
            2.0 + step % 7,
            look(object),
        )
        for step in steps
    ]


def traced(buffer: RareMemoryBuffer) -> list[tuple[int, Box]]:
    size = (HEIGHT, WIDTH)
    return [(frame_of(key), box_of(key, size)) for key in buffer.keys.tolist()]


def test_the_rare_regions_of_object_rare_frames_come_in_with_their_scores() -> None:
    buffer = RareMemoryBuffer(16)
    replay = RegionReplay(buffer)
    seen: list[Seen] = [
        (3, (20, 30, 40, 50), 4.0, look(1)),
        (5, (60, 30, 90, 50), 3.0, look(2)),
        (5, (20, 60, 40, 80), 5.0, look(3)),
    ]
    assert replay.add(judged(seen, frames=[3, 4, 5, 6])) == 3
    # Of the frames 4 and 6, the scene is rare and no object.
    assert traced(buffer) == [(3, seen[0][1]), (5, seen[2][1]), (5, seen[1][1])]
    assert bool(is_region(buffer.keys).all())
    assert buffer.entries.scores.tolist() == [4.0, 5.0, 3.0]
    assert buffer.entries.crops is None
    assert buffer.entries.features is None
    assert replay.metrics() == {"admitted": 3, "merged": 0, "refused": 0, "remembered": 3}


def test_no_more_regions_of_a_frame_come_in_than_asked_for() -> None:
    seen: list[Seen] = [
        (3, (left, 30, left + 10, 40), float(left), look(left)) for left in (10, 90, 50, 70, 30)
    ]
    for most in (1, 2, 3):
        buffer = RareMemoryBuffer(16)
        RegionReplay(buffer, per_frame=most).add(judged(seen))
        assert [box[0] for _, box in traced(buffer)] == [90, 70, 50][:most]


def test_frames_without_a_rare_object_leave_the_buffer_as_it_is() -> None:
    buffer = RareMemoryBuffer(16)
    replay = RegionReplay(buffer)
    assert replay.add(judged([], frames=[1, 2])) == 0
    assert len(buffer) == 0
    replay.add(judged(passing([3])))
    before = buffer.state_dict()
    assert replay.add(judged([], frames=[7])) == 0
    assert same(buffer.state_dict(), before)


# ------------------------------------------------------------------ one object, one entry


@pytest.mark.parametrize("together", [True, False])
def test_an_object_that_passes_through_a_clip_is_counted_once(together: bool) -> None:
    buffer = RareMemoryBuffer(64)
    # Five frames a second, and all of them within five seconds.
    replay = RegionReplay(buffer, moments=[200 * id for id in range(30)], id_window=5000)
    seen = passing(range(20))
    if together:
        assert replay.add(judged(seen, frames=range(25))) == 1
    else:
        assert [replay.add(judged([one])) for one in seen] == [1] + [0] * 19
    assert traced(buffer) == [(0, seen[0][1])]
    assert buffer.entries.scores.tolist() == [max(score for _, _, score, _ in seen)]
    assert replay.metrics() == {"admitted": 1, "merged": 19, "refused": 0, "remembered": 1}
    # Another object, at the place where the first one was.
    assert replay.add(judged(passing([22], start=10 - 22 * 4, object=9))) == 1
    assert len(buffer) == 2


@settings(deadline=None, max_examples=50)
@given(order=st.permutations(range(12)), split=st.integers(0, 12))
def test_the_order_of_frames_does_not_matter_while_the_object_hardly_moves(
    order: list[int], split: int
) -> None:
    buffer = RareMemoryBuffer(64)
    replay = RegionReplay(buffer, id_window=12)
    by_frame = {frame: one for one in passing(range(12), speed=1) for frame in [one[0]]}
    for part in (order[:split], order[split:]):
        if part:
            replay.add(judged([by_frame[frame] for frame in part], frames=part))
    assert len(buffer) == 1
    assert buffer.entries.scores.tolist() == [8.0]


def test_an_object_in_view_for_longer_than_the_window_comes_in_anew() -> None:
    buffer = RareMemoryBuffer(64)
    replay = RegionReplay(buffer, moments=[200 * id for id in range(30)], id_window=1000)
    for one in passing(range(24)):
        replay.add(judged([one]))
    assert [frame for frame, _ in traced(buffer)] == [0, 6, 12, 18]


def test_without_a_window_only_a_frame_seen_again_is_the_same_moment() -> None:
    buffer = RareMemoryBuffer(64)
    replay = RegionReplay(buffer)
    assert replay.add(judged(passing([3, 4, 5], speed=0))) == 3
    shifted = [(frame, (11, 30, 31, 50), 9.0, row) for frame, _, _, row in passing([3, 4, 5])]
    assert replay.add(judged(shifted)) == 0
    assert buffer.entries.scores.tolist() == [9.0] * 3


def test_a_second_epoch_admits_nothing_and_keeps_the_highest_scores() -> None:
    buffer = RareMemoryBuffer(64)
    replay = RegionReplay(buffer, moments=[200 * id for id in range(30)], id_window=1000)
    epoch = [judged([one]) for one in passing(range(24))]
    for detection in epoch:
        replay.add(detection)
    keys, scores = buffer.keys, buffer.entries.scores
    for detection in epoch:
        assert replay.add(detection) == 0
    assert torch.equal(buffer.keys, keys)
    assert (buffer.entries.scores >= scores).all()


def test_alike_objects_of_other_clips_are_others() -> None:
    buffer = RareMemoryBuffer(64)
    replay = RegionReplay(buffer, moments=[0, 2**32, 2**33], id_window=5000)
    assert replay.add(judged(passing([0, 1, 2], speed=0))) == 3


def test_what_looks_alike_and_lies_near_is_the_same_and_only_that() -> None:
    first: Seen = (0, (40, 30, 60, 50), 5.0, look(1))

    def is_same(box: Box, embedding: Tensor, frame: int = 1, alike: float = 0.45) -> bool:
        replay = RegionReplay(RareMemoryBuffer(64), id_window=5, alike=alike)
        replay.add(judged([first]))
        return replay.add(judged([(frame, box, 4.0, embedding)])) == 0

    beside, far = (62, 30, 82, 50), (91, 30, 111, 50)
    between = look(1) + look(2)
    assert is_same(beside, look(1))
    assert is_same(beside, between)  # a cosine of some 0.7
    assert not is_same(beside, between, alike=0.9)
    assert not is_same(beside, look(2))
    assert not is_same(beside, -look(1))
    assert not is_same(far, look(1))
    # 37 pixels between the centres are near for a box of 30 pixels, and far for one of 20.
    assert is_same((72, 30, 102, 60), look(1))
    assert not is_same((77, 35, 97, 55), look(1))
    assert is_same((42, 30, 62, 50), look(2))  # in the same place, whatever it looks like
    assert is_same((42, 30, 62, 50), -look(1))
    assert not is_same((50, 30, 70, 50), look(2))  # the boxes share a third
    # In one frame, two that look alike are two.
    assert not is_same(beside, look(1), frame=0)
    assert is_same((42, 30, 62, 50), look(2), frame=0)


def test_two_alike_objects_side_by_side_stay_two_from_frame_to_frame() -> None:
    buffer = RareMemoryBuffer(64)
    replay = RegionReplay(buffer, id_window=20)
    for step in range(12):
        pair: list[Seen] = [
            (step, (30 + left, 30, 44 + left, 44), 3.0, look(1)) for left in (step, step + 30)
        ]
        replay.add(judged(pair))
    assert len(buffer) == 2
    assert replay.metrics()["merged"] == 22


def test_what_all_regions_have_in_common_makes_none_of_them_alike() -> None:
    common = 20 * look(77)
    for object, admitted in ((2, 2), (1, 1)):
        replay = RegionReplay(RareMemoryBuffer(64), id_window=20)
        seen = [
            (0, (30, 30, 50, 50), 3.0, look(1)),
            (1, (52, 30, 72, 50), 3.0, look(object)),
        ]
        detection = judged(seen, frames=range(12))
        regions = detection.regions
        moved = Regions(
            regions.embeddings + common,
            *(regions.boxes, regions.scale, regions.frame, regions.scenes),
            *(regions.ids, regions.sizes),
        )
        told = FrameDetection(
            moved,
            *(detection.region_scores, detection.object_scores, detection.scene_scores),
            *(detection.is_object_rare, detection.is_scene_rare),
            *(1.0, 0.5),
        )
        assert replay.add(told) == admitted


def test_regions_that_cannot_be_compared_leave_the_others_comparable() -> None:
    replay = RegionReplay(RareMemoryBuffer(64), id_window=20)
    detection = judged(passing([0, 1], speed=22))
    detection.regions.embeddings[0] = torch.nan
    detection.region_scores[0] = torch.nan
    assert replay.add(detection) == 1


# ------------------------------------------------------------------ what the buffer does


def test_an_object_whose_entry_has_left_comes_in_again() -> None:
    buffer = RareMemoryBuffer(2)
    replay = RegionReplay(buffer, id_window=100)
    replay.add(judged(passing([0], speed=0)))
    for step, start in ((1, 60), (2, 110)):
        replay.add(judged(passing([step], start=start, speed=0, object=step + 5)))
    assert [frame for frame, _ in traced(buffer)] == [1, 2]
    assert replay.add(judged(passing([3], speed=0))) == 1
    assert [frame for frame, _ in traced(buffer)] == [2, 3]


def test_what_the_policy_refuses_is_counted_and_not_remembered() -> None:
    buffer = RareMemoryBuffer(2, policy=RarestK())
    replay = RegionReplay(buffer, id_window=100)
    seen: list[Seen] = [
        (0, (10, 10, 30, 30), 8.0, look(1)),
        (1, (60, 10, 80, 30), 7.0, look(2)),
        (2, (110, 10, 130, 30), 3.0, look(3)),
    ]
    assert replay.add(judged(seen)) == 2
    assert replay.metrics() == {"admitted": 2, "merged": 0, "refused": 1, "remembered": 2}
    # The same object again, rarer: it is not taken for one that is held.
    assert replay.add(judged([(3, (110, 10, 130, 30), 9.0, look(3))])) == 1
    assert [frame for frame, _ in traced(buffer)] == [0, 3]


def test_no_more_is_remembered_than_the_buffer_holds() -> None:
    buffer = RareMemoryBuffer(8)
    replay = RegionReplay(buffer, id_window=3)
    for step in range(0, 400, 4):
        replay.add(judged(passing([step], start=10 - 4 * step, object=step)))
        assert replay.metrics()["remembered"] == len(buffer) <= 8
    assert replay.metrics()["admitted"] == 100
    entries = replay.state_dict()["entries"]
    assert {len(column) for column in entries.values()} == {8}


def test_entries_of_others_in_the_buffer_are_left_alone() -> None:
    buffer = RareMemoryBuffer(8)
    buffer.admit(BufferEntries(torch.tensor([4, 5]), torch.tensor([0.5, 0.6])))
    replay = RegionReplay(buffer)
    assert replay.add(judged(passing([4]))) == 1
    assert buffer.keys.tolist()[:2] == [4, 5]
    assert buffer.entries.scores.tolist()[:2] == [0.5, pytest.approx(0.6)]


@pytest.mark.parametrize("policy", [FIFO(), LeastRedundant()])
def test_the_embeddings_go_along_as_features_where_they_are_needed(policy: Any) -> None:
    buffer = RareMemoryBuffer(16, policy=policy)
    RegionReplay(buffer).add(judged(passing([0, 3], object=5)))
    features = buffer.entries.features
    if isinstance(policy, FIFO):
        assert features is None
    else:
        assert features is not None
        torch.testing.assert_close(features, F.normalize(look(5), dim=0).expand(2, -1))


# ------------------------------------------------------------------ pixels


def pictures(count: int) -> Tensor:
    """Smooth frames that differ from place to place and from one to the next."""
    coarse = torch.rand(count, 3, 10, 16, generator=torch.Generator().manual_seed(0))
    fine = F.interpolate(255 * coarse, (HEIGHT, WIDTH), mode="bilinear", align_corners=False)
    return fine.round().to(torch.uint8)


def cut(frame: Tensor, box: Box, size: int, context: float, least_side: int) -> Tensor:
    """What a crop should be, by torch."""
    square = square_boxes(
        torch.tensor([box]), (HEIGHT, WIDTH), context=context, least_side=least_side
    )
    left, top, right, bottom = square[0].tolist()
    part = frame[None, :, top:bottom, left:right].float()
    made = F.interpolate(part, (size, size), mode="bicubic", antialias=True, align_corners=False)
    return made[0].round().clamp(0, 255)


@pytest.mark.parametrize("form", ["tensor", "list", "read"])
def test_crops_show_the_regions_with_context(form: str) -> None:
    frames = pictures(8)
    asked: list[int] = []

    class Read:
        def __len__(self) -> int:
            return 8

        def __getitem__(self, id: int) -> tuple[Tensor, int]:
            asked.append(id)
            return frames[id], id

    buffer = RareMemoryBuffer(16)
    replay = RegionReplay(buffer, frames=Read(), crop_size=24, context=2.0, least_side=40)
    seen: list[Seen] = [
        (2, (20, 30, 50, 50), 4.0, look(1)),
        (5, (60, 30, 90, 50), 3.0, look(2)),
        (5, (0, 80, 10, 90), 5.0, look(3)),
    ]
    detection = judged(seen, frames=[1, 2, 4, 5])
    given = frames[[1, 2, 4, 5]]
    pixels: Any = {"tensor": given, "list": list(given), "read": None}[form]
    assert replay.add(detection, pixels) == 3
    assert asked == ([2, 5] if form == "read" else [])
    crops = buffer.entries.crops
    assert crops is not None
    assert crops.shape == (3, 3, 24, 24)
    for crop, (id, box) in zip(crops, traced(buffer), strict=True):
        expected = cut(frames[id], box, 24, 2.0, 40)
        assert (crop.float() - expected).abs().max() <= 1


def test_a_merged_region_leaves_the_crop_as_it_was() -> None:
    frames = pictures(8)
    buffer = RareMemoryBuffer(16)
    replay = RegionReplay(buffer, crop_size=24, id_window=9)
    seen: list[Seen] = [(id, (20, 30, 50, 50), 2.0 + id, look(1)) for id in (2, 5)]
    replay.add(judged(seen[:1]), frames[[2]])
    before = buffer.entries.crops
    assert replay.add(judged(seen[1:]), frames[[5]]) == 0
    after = buffer.entries
    assert before is not None
    assert after.crops is not None
    assert torch.equal(after.crops, before)
    assert after.scores.tolist() == [7.0]


def test_pixels_that_do_not_fit_are_refused_and_nothing_is_remembered_of_them() -> None:
    detection = judged(passing([2, 5]))
    buffer = RareMemoryBuffer(16)
    with pytest.raises(OptionError, match=r"needs the pixels of the frames for crop_size=24; pass"):
        RegionReplay(buffer, crop_size=24).add(detection)
    replay = RegionReplay(buffer, crop_size=24)
    with pytest.raises(ImageInputError, match="pixels of 3 frames for a detection of 2"):
        replay.add(detection, pictures(3))
    with pytest.raises(
        ImageInputError, match="frame 2 as 80 x 50 pixels, and regions of it in 160"
    ):
        replay.add(detection, pictures(2)[:, :, :50, :80])
    assert len(buffer) == 0
    assert replay.add(detection, pictures(2)) == 2


# ------------------------------------------------------------------ options, state, ranks


def test_what_cannot_be_is_refused_by_name() -> None:
    buffer = RareMemoryBuffer(4)
    anything: Any = "buffer"
    with pytest.raises(OptionError, match="RegionReplay expects a RareMemoryBuffer, got 'buffer'"):
        RegionReplay(anything)
    wrong: list[dict[str, Any]] = [
        {"id_window": -1},
        {"per_frame": 0},
        {"crop_size": 0},
        {"context": 0.5},
        {"least_side": 0},
        {"alike": 0.0},
        {"alike": 2.5},
    ]
    for options in wrong:
        with pytest.raises(OptionError, match=f"RegionReplay expects {next(iter(options))}"):
            RegionReplay(buffer, **options)
    replay = RegionReplay(buffer, moments=[0, 1])
    with pytest.raises(OptionError, match=r"RegionReplay.add expects what RegionDetector.fit"):
        replay.add(anything)
    with pytest.raises(OptionError, match="frame of id 2 and knows the moments of 2 frames"):
        replay.add(judged(passing([2])))
    with pytest.raises(OptionError, match=r"ids of frames in \[0, 2\*\*30\)"):
        RegionReplay(buffer).add(judged([(2**30, (0, 0, 9, 9), 3.0, look(1))]))
    replay.add(judged(passing([0])))
    narrow = judged([(1, (0, 0, 9, 9), 3.0, look(1))]).regions
    other = Regions(
        narrow.embeddings[:, :8],
        *(narrow.boxes, narrow.scale, narrow.frame, narrow.scenes, narrow.ids, narrow.sizes),
    )
    scores = torch.tensor([3.0, 0.0, 0.0])
    flags = torch.tensor([True])
    told = FrameDetection(other, scores, scores[:1], scores[:1], flags, flags, 1.0, 1.0)
    with pytest.raises(
        EmbeddingShapeError, match="embeddings of width 8, and those before were 256"
    ):
        replay.add(told)
    assert len(buffer) == 1


@pytest.mark.parametrize("stop", [0, 1, 9, 14])
def test_a_replay_that_was_saved_goes_on_as_if_never_stopped(stop: int) -> None:
    moments = [200 * id for id in range(30)]

    def made() -> tuple[RareMemoryBuffer, RegionReplay]:
        buffer = RareMemoryBuffer(4)
        return buffer, RegionReplay(buffer, moments=moments, id_window=1000)

    stream = [
        judged([one, other])
        for one, other in zip(
            passing(range(24)), passing(range(24), start=140, speed=-6, object=3), strict=True
        )
    ]
    buffer, replay = made()
    expected = [replay.add(detection) for detection in stream]
    assert sum(expected) == 8
    early, stopped = made()
    found = [stopped.add(detection) for detection in stream[:stop]]
    late, resumed = made()
    late.load_state_dict(through_a_file(early.state_dict()))
    resumed.load_state_dict(through_a_file(stopped.state_dict()))
    found += [resumed.add(detection) for detection in stream[stop:]]
    assert found == expected
    assert same(resumed.state_dict(), replay.state_dict())
    assert same(late.state_dict(), buffer.state_dict())
    assert resumed.metrics() == replay.metrics()


def test_a_state_is_a_copy_and_fits_only_the_same_settings() -> None:
    replay = RegionReplay(RareMemoryBuffer(4), id_window=5)
    replay.add(judged(passing([0])))
    state = replay.state_dict()
    kept = through_a_file(state)
    replay.add(judged(passing([1, 9], start=60)))
    assert same(state, kept)
    with pytest.raises(StateMismatchError, match="id_window was 5, is 6"):
        RegionReplay(RareMemoryBuffer(4), id_window=6).load_state_dict(state)
    with pytest.raises(StateMismatchError, match="RegionReplay"):
        replay.load_state_dict(RareMemoryBuffer(4).state_dict())


def test_two_ranks_count_an_object_once_between_them(tmp_path: Path) -> None:
    script = Path(__file__).with_name("one_of_two_replays.py")
    one, two = run_ranks(script, folder=tmp_path)
    for layout in ("replicated", "sharded"):
        assert one[layout]["added"] == two[layout]["added"]
        assert same(one[layout]["replay"], two[layout]["replay"])
        assert one[layout]["metrics"] == two[layout]["metrics"]
        assert one[layout]["metrics"]["admitted"] == 3
        assert one[layout]["metrics"]["merged"] == 20
    assert one["replicated"]["keys"] == two["replicated"]["keys"]
    assert len(one["replicated"]["keys"]) == 3
    shards = [set(rank["sharded"]["keys"]) for rank in (one, two)]
    assert not shards[0] & shards[1]
    assert shards[0] | shards[1] == set(one["replicated"]["keys"])
    for crops in (one["replicated"]["crops"], two["replicated"]["crops"]):
        assert torch.equal(crops, one["replicated"]["crops"])
        assert crops[:, 0, 0, 0].tolist() == [frame_of(key) for key in one["replicated"]["keys"]]
    # Alone, each counts the objects in its own frames.
    assert one["local"]["metrics"]["admitted"] + two["local"]["metrics"]["admitted"] == 6


# ------------------------------------------------------------------ real objects


def test_bicyclists_of_a_real_drive_come_in_far_fewer_times_than_they_are_seen(
    shared_data: Path,
) -> None:
    with np.load(shared_data / "camvid_crops.npz", allow_pickle=False) as data:
        labels = data["label"]
        embeddings = torch.from_numpy(data["embedding"].astype(np.float32))
        of = torch.from_numpy(data["frame"].astype(np.int64))
        boxes = torch.from_numpy(data["box"].astype(np.int64))[:, [1, 0, 3, 2]]
        names = data["frame_names"].astype(str).tolist()
        wanted = data["class_names"].astype(str).tolist().index("bicyclist")
    # Thirty frames a second; the letters before say which drive.
    drives = [name.split("_")[0] for name in names]
    moments = [
        sorted(set(drives)).index(drive) * 2**32
        + round(int("".join(filter(str.isdigit, name.split("_")[1].split(".")[0]))) * 1000 / 30)
        for drive, name in zip(drives, names, strict=True)
    ]
    is_wanted = torch.from_numpy(labels == wanted)
    scores = torch.where(is_wanted, 2.0, 0.0)
    n = len(names)
    rare = torch.zeros(n, dtype=torch.bool)
    rare[of[is_wanted]] = True
    detection = FrameDetection(
        Regions(
            embeddings,
            boxes,
            torch.zeros(len(of), dtype=torch.int64),
            of,
            torch.zeros(n, 4),
            torch.arange(n),
            torch.tensor([[360, 480]] * n),
        ),
        *(scores, rare.float(), torch.zeros(n)),
        *(rare, ~rare),
        *(1.0, 1.0),
    )
    offered = sum(len(detection.rare_rows(frame, most=9)) for frame in range(n))
    admitted = {}
    for window in (0, 1000, 3000):
        buffer = RareMemoryBuffer(1024)
        replay = RegionReplay(buffer, moments=moments, id_window=window, per_frame=9)
        admitted[window] = replay.add(detection)
        found = region_keys(of[is_wanted], boxes[is_wanted], (360, 480))
        assert set(buffer.keys.tolist()) <= set(found.tolist())
        assert replay.metrics()["merged"] == offered - admitted[window]
    assert admitted[0] == offered > 90
    assert admitted[3000] < admitted[1000] < 0.75 * admitted[0]
