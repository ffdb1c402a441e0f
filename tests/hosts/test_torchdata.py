"""torchdata's StatefulDataLoader: wrapped, it stays one, and its own state pair resumes the stream."""

import io
from typing import Any

import pytest
import torch
from counting import TOTAL, WIDTH, Fed, Flags, Numbers, assert_none_lost_none_doubled

from raremix import BufferedMixSampler, RareMemoryBuffer

pytest.importorskip("torchdata", reason="needs the extra frameworks")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # from Python 3.12 on
    # torchdata 0.11 calls what torch 2.14 is about to drop.
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
]

EPOCHS = 2
BATCHES = -(-TOTAL // WIDTH)


class Run:
    """A loop in which nothing is saved but the loader, as torchdata's users do."""

    def __init__(self, workers: int = 0) -> None:
        from torchdata.stateful_dataloader import StatefulDataLoader

        base: Any = StatefulDataLoader(
            Numbers(),
            batch_size=WIDTH,
            shuffle=True,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
        )
        self.buffer = RareMemoryBuffer(6)
        self.loader = BufferedMixSampler.wrap(base, self.buffer, replay=0.5, lag=5)
        assert isinstance(self.loader, StatefulDataLoader)
        self.fed = Fed()

    def train(self, batches: int) -> Fed:
        while len(self.fed.ids) < batches:
            for data in self.loader:
                batch = self.loader.batch
                self.fed.note(self.loader.mixer.epoch, data, batch)
                self.buffer.add(batch, Flags.of(data))
                if len(self.fed.ids) == batches:
                    break
        return self.fed

    def save(self) -> bytes:
        file = io.BytesIO()
        torch.save(self.loader.state_dict(), file)
        return file.getvalue()

    def load(self, saved: bytes) -> "Run":
        self.loader.load_state_dict(torch.load(io.BytesIO(saved), weights_only=True))
        return self


@pytest.fixture(scope="module")
def whole() -> Fed:
    return Run().train(EPOCHS * BATCHES)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_row_is_given_once_whatever_the_workers(whole: Fed, workers: int) -> None:
    fed = Run(workers).train(EPOCHS * BATCHES)
    assert_none_lost_none_doubled([fed], EPOCHS)
    assert fed == whole
    assert fed.replays() > 20


@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 2), (2, 0), (0, 2)])
@pytest.mark.parametrize("stop", [1, 4, BATCHES - 1, BATCHES, BATCHES + 3])
def test_resuming_gives_the_rest_bit_for_bit(
    whole: Fed, before: int, after: int, stop: int
) -> None:
    run = Run(before)
    run.train(stop)
    rest = Run(after).load(run.save()).train(EPOCHS * BATCHES - stop)
    assert rest.steps == whole.steps[stop:]
    assert rest.epochs == whole.epochs[stop:]
    assert rest.ids == whole.ids[stop:]
    assert rest.is_replay == whole.is_replay[stop:]


def test_resuming_twice_in_one_epoch_gives_the_rest(whole: Fed) -> None:
    first = Run(2)
    first.train(3)
    second = Run(2).load(first.save())
    second.train(2)
    rest = Run(2).load(second.save()).train(EPOCHS * BATCHES - 5)
    assert rest.ids == whole.ids[5:]
    assert rest.is_replay == whole.is_replay[5:]
