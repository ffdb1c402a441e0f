"""The whole way: frames are judged, rare regions fill a buffer, and come back as whole rows."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from feedback import through_a_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from raremix import BufferedMixSampler, CropMixer
from raremix.errors import RaremixWarning
from raremix.memory import RareMemoryBuffer
from raremix.mixing.batch import DrawnId
from raremix.regions.detector import FrameDetection, RegionDetector
from raremix.regions.encoders import CropEncoder
from raremix.regions.frame_views import FrameViews
from raremix.regions.keys import box_of, frame_of, is_region
from raremix.regions.replay import RegionReplay
from raremix.views import MultiCropTransform

COUNT, HEIGHT, WIDTH = 72, 48, 80
PLANTED = {
    9: (20, 8),
    30: (56, 24),
    51: (4, 30),
}  # frame to corner of a green square, 12 pixels long


class Drive:
    """Dull frames, of which few show something green."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randint(0, 40, (COUNT, 1, HEIGHT, WIDTH), generator=generator)
        self.pixels = (noise + 90).expand(-1, 3, -1, -1).to(torch.uint8).clone()
        for frame, (left, top) in PLANTED.items():
            square = self.pixels[frame, :, top : top + 12, left : left + 12]
            square[0], square[1], square[2] = 20, 230, 20

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, id: int) -> tuple[Tensor, int]:
        return self.pixels[id], id


class Shorter(Drive):
    """The same without the last frames."""

    def __len__(self) -> int:
        return 40


DRIVE = Drive()


def judged() -> FrameDetection:
    """What a detector says of all frames; the embedding of a region is its mean colours."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    encoder = CropEncoder(model, crop_size=8, scene_size=8, shares=(0.35, 0.5))
    return RegionDetector(top=1).fit(encoder(DRIVE.pixels, ids=torch.arange(COUNT)))


@pytest.fixture(scope="module")
def found() -> FrameDetection:
    return judged()


def transform() -> MultiCropTransform:
    return MultiCropTransform.recipe("small", global_crop_size=16, local_crop_size=8)


def greenness(views: Tensor) -> Tensor:
    """How far green lies above red and blue, before the colours were normalised."""
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    red, green, blue = (views * std + mean).mean(dim=(2, 3)).unbind(1)
    return green - (red + blue) / 2


def test_the_detector_finds_the_planted_objects_and_the_keys_lead_to_them(
    found: FrameDetection,
) -> None:
    buffer = RareMemoryBuffer(16)
    assert RegionReplay(buffer, per_frame=1).add(found) >= len(PLANTED)
    traced = {frame_of(key): box_of(key, (HEIGHT, WIDTH)) for key in buffer.keys.tolist()}
    for frame, (left, top) in PLANTED.items():
        box = traced[frame]
        common = [
            min(box[axis + 2], corner + 12) - max(box[axis], corner)
            for axis, corner in enumerate((left, top))
        ]
        assert min(common) > 6
    assert set(traced) - set(PLANTED) == set(
        found.is_object_rare.nonzero().flatten().tolist()
    ) - set(PLANTED)


@dataclass(frozen=True)
class Stream:
    """What one training saw, batch by batch."""

    ids: list[list[int]]
    is_replay: list[list[bool]]
    views: list[list[Tensor]]


class Run:
    """A training that replays regions by their keys."""

    def __init__(self, workers: int = 0, *, mode: Any = "replace", lag: int = 5) -> None:
        self.buffer = RareMemoryBuffer(16)
        self.replay = RegionReplay(self.buffer, per_frame=1)
        self.dataset = FrameViews(DRIVE, transform(), least_side=12, seed=4)
        base: DataLoader[Any] = DataLoader(
            self.dataset, batch_size=8, shuffle=True, num_workers=workers
        )
        self.loader = BufferedMixSampler.wrap(
            base, self.buffer, replay=0.25, mode=mode, lag=lag, seed=1
        )

    def train(self, found: FrameDetection, batches: int, *, judge_at: int = 3) -> Stream:
        """Go on until so many batches; frames are judged after batch ``judge_at``."""
        stream = Stream([], [], [])
        while len(stream.ids) < batches:
            for views, ids in self.loader:
                batch = self.loader.batch
                assert torch.equal(ids, batch.ids)
                stream.ids.append(ids.tolist())
                stream.is_replay.append(batch.is_replay.tolist())
                stream.views.append(views)
                if batch.step == judge_at:
                    self.replay.add(found)
                if len(stream.ids) == batches:
                    break
        return stream


@pytest.mark.parametrize("mode", ["replace", "stretch", "extend"])
def test_replayed_rows_are_regions_of_rare_frames_and_as_many_as_asked_for(
    found: FrameDetection, mode: Any
) -> None:
    run = Run(mode=mode)
    stream = run.train(found, 40)
    rare = set(found.is_object_rare.nonzero().flatten().tolist())
    assert rare >= set(PLANTED)
    times = dict.fromkeys(run.buffer.keys.tolist(), 0)
    for step, (ids, is_replay) in enumerate(zip(stream.ids, stream.is_replay, strict=True)):
        assert len(ids) == (10 if mode == "extend" else 8)
        # Judged after batch 3, and heard of five batches later.
        assert sum(is_replay) == (2 if step >= 8 else 0)
        for id, replayed in zip(ids, is_replay, strict=True):
            assert is_region(id) == replayed
            if replayed:
                assert frame_of(id) in rare
                times[id] += 1
    assert min(times.values()) > 5
    assert run.buffer.metrics()["outside"] == 0


def test_a_replayed_row_is_the_object_cut_afresh_in_all_its_views(found: FrameDetection) -> None:
    run = Run()
    stream = run.train(found, 40)
    fresh: list[Tensor] = []
    planted: list[Tensor] = []
    seen: dict[int, list[Tensor]] = {}
    for step, (ids, views) in enumerate(zip(stream.ids, stream.views, strict=True)):
        for row, id in enumerate(ids):
            if not is_region(id):
                fresh.append(greenness(views[0][row][None]))
            elif frame_of(id) in PLANTED:
                planted.append(greenness(views[0][row][None]))
                for view in views:
                    seen.setdefault(id, []).append(view[row])
                again, _ = run.dataset[DrawnId(id, 2**32 + step)]
                assert all(map(torch.equal, again, [view[row] for view in views]))
    # A square of 12 pixels in a frame of 48 x 80 is hardly seen; cut out, it fills a row.
    assert torch.cat(planted).mean() > 10 * torch.cat(fresh).mean()
    for rows in seen.values():
        large = [row for row in rows if row.shape[-1] == 16]
        assert len({row.numpy().tobytes() for row in large}) == len(large)


@pytest.mark.parametrize("judge_at", [3, 11])
def test_any_number_of_workers_gives_the_same_stream(found: FrameDetection, judge_at: int) -> None:
    alone, helped = (Run(workers).train(found, 24, judge_at=judge_at) for workers in (0, 2))
    assert sum(map(sum, alone.is_replay)) > 10
    assert alone.ids == helped.ids
    assert alone.is_replay == helped.is_replay
    for one, two in zip(alone.views, helped.views, strict=True):
        assert all(map(torch.equal, one, two))


@pytest.mark.parametrize("stop", [2, 6, 13])
def test_resumed_in_the_middle_of_an_epoch_the_stream_goes_on_the_same(
    found: FrameDetection, stop: int
) -> None:
    expected = Run().train(found, 30)
    assert sum(map(sum, expected.is_replay)) == 2 * 22
    stopped, resumed = Run(), Run()
    before = stopped.train(found, stop)
    resumed.loader.load_state_dict(through_a_file(stopped.loader.state_dict()))
    resumed.replay.load_state_dict(through_a_file(stopped.replay.state_dict()))
    after = resumed.train(found, 30 - stop)
    assert before.ids + after.ids == expected.ids
    for one, two in zip(before.views + after.views, expected.views, strict=True):
        assert all(map(torch.equal, one, two))
    # Judged once more, nothing comes in that is held.
    assert resumed.replay.add(found) == 0


def test_regions_of_frames_that_are_gone_are_passed_over_and_counted(
    found: FrameDetection,
) -> None:
    buffer = RareMemoryBuffer(16)
    RegionReplay(buffer, per_frame=1).add(found)
    dataset = FrameViews(Shorter(), transform(), seed=0)
    base: DataLoader[Any] = DataLoader(dataset, batch_size=8)
    loader = BufferedMixSampler.wrap(base, buffer, replay=0.25, lag=1)
    drawn = {int(frame_of(id)) for _, ids in loader for id in ids[loader.batch.is_replay].tolist()}
    assert {9, 30} <= drawn
    assert 51 not in drawn
    assert buffer.metrics()["outside"] > 0


def test_a_dataset_that_knows_no_regions_is_asked_for_none(found: FrameDetection) -> None:
    buffer = RareMemoryBuffer(16)
    RegionReplay(buffer, per_frame=1).add(found)
    part = Subset(FrameViews(DRIVE, transform(), seed=0), range(20))
    base: DataLoader[Any] = DataLoader(part, batch_size=8)
    loader = BufferedMixSampler.wrap(base, buffer, replay=0.25, lag=1)
    with pytest.warns(RaremixWarning, match="regions of frames need a FrameViews"):
        delivered = [(ids, loader.batch.is_replay) for _, ids in loader]
    for ids, is_replay in delivered:
        assert not is_region(ids).any()
        assert not is_replay.any()
    assert buffer.metrics()["outside"] > 0


@pytest.mark.parametrize("mode", ["replace", "extend"])
def test_crops_of_regions_are_mixed_into_batches_of_frames(
    found: FrameDetection, mode: Any
) -> None:
    buffer = RareMemoryBuffer(16)
    replay = RegionReplay(buffer, frames=DRIVE, crop_size=24, least_side=12, per_frame=1)
    made = transform()
    frames = FrameViews(DRIVE, lambda image, *, seed: (made(image, seed=seed), image), seed=0)
    loader = CropMixer.wrap(
        DataLoader(frames, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(0)),
        buffer,
        made,
        sample=lambda views, pixels, id: ((views, ...), id),
        replay=0.25,
        mode=mode,
        ids=lambda batch: batch[1],
        pixels=lambda batch: batch[0][1],
    )
    times: dict[int, int] = {}
    green: dict[bool, list[Tensor]] = {True: [], False: []}
    for _ in range(4):
        for (views, _), ids in loader:
            batch = loader.batch
            assert torch.equal(ids, batch.ids)
            assert torch.equal(is_region(ids), batch.is_replay)
            if batch.step > 3:
                assert int(batch.is_replay.sum()) == 2
            for row, id in enumerate(ids.tolist()):
                planted = is_region(id) and frame_of(id) in PLANTED
                times[id] = times.get(id, 0) + 1
                green[planted].append(greenness(views[0][row][None]))
            if batch.step == 3:
                assert replay.add(found) == len(buffer)
    rare = set(found.is_object_rare.nonzero().flatten().tolist())
    assert {frame_of(id) for id in times if is_region(id)} == rare
    means = {planted: torch.cat(rows).mean() for planted, rows in green.items()}
    assert means[True] > 10 * means[False]
