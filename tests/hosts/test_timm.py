"""timm's own loader and transforms: create_loader takes no sampler, so its loader is wrapped after."""

from typing import Any

import numpy as np
import pytest
import torch
from counting import LAG, TOTAL, WIDTH, Fed, Flags, assert_none_lost_none_doubled
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from raremix import BufferedMixSampler, MixedLoader, RareMemoryBuffer
from raremix.errors import LagError, LoaderError

pytest.importorskip("timm", reason="needs the extra frameworks")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:timm")

EPOCHS = 2


class Pictures(Dataset[tuple[Any, int]]):
    """Picture number i is labelled i; timm sets the transform."""

    transform: Any = None

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        pixels = np.full((12, 10, 3), 5 * index, dtype=np.uint8)
        return self.transform(Image.fromarray(pixels)), int(index)

    def __len__(self) -> int:
        return TOTAL


def made_by_timm(**options: Any) -> Any:
    import timm.data.loader

    # It asks for a dataset of its own, and yet takes any whose transform it can set.
    create_loader: Any = timm.data.loader.create_loader
    settings: dict[str, Any] = {
        "input_size": (3, 8, 8),
        "batch_size": WIDTH,
        "is_training": True,
        "num_workers": 0,
        "persistent_workers": False,
        "device": torch.device("cpu"),
        "color_jitter": 0.0,
    }
    return create_loader(Pictures(), **{**settings, **options})


class Run:
    """A loop over timm's loader: plain, or with its prefetcher around the mixed one."""

    def __init__(self, *, use_prefetcher: bool, workers: int = 0) -> None:
        self.buffer = RareMemoryBuffer(6)
        options: dict[str, Any] = {"num_workers": workers}
        made = made_by_timm(use_prefetcher=use_prefetcher, **options)
        plain = made.loader if use_prefetcher else made
        # timm leaves out a last batch that is not full; here every row is to be counted.
        plain = DataLoader(
            plain.dataset,
            batch_size=WIDTH,
            shuffle=True,
            collate_fn=plain.collate_fn,
            num_workers=workers,
            worker_init_fn=plain.worker_init_fn,
            multiprocessing_context="fork" if workers else None,
        )
        self.mixed: MixedLoader[Any] = BufferedMixSampler.wrap(
            plain, self.buffer, replay=0.5, lag=LAG, prefetched=use_prefetcher
        )
        self.loader: Any = self.mixed
        if use_prefetcher:
            made.loader = self.mixed
            self.loader = made
        self.fed = Fed()

    def train(self, batches: int) -> Fed:
        while len(self.fed.ids) < batches:
            for images, labels in self.loader:
                assert images.shape == (len(labels), 3, 8, 8)
                batch = self.mixed.batch
                self.fed.note(self.mixed.mixer.epoch, labels, batch)
                self.buffer.add(batch, Flags.of(labels))
                if len(self.fed.ids) == batches:
                    break
        return self.fed


WHOLE = EPOCHS * -(-TOTAL // WIDTH)
BOTH = pytest.mark.parametrize("use_prefetcher", [False, True], ids=["plain", "prefetcher"])


@BOTH
def test_every_row_is_given_once_and_named_rightly(use_prefetcher: bool) -> None:
    run = Run(use_prefetcher=use_prefetcher)
    fed = run.train(WHOLE)
    assert_none_lost_none_doubled([fed], EPOCHS)
    assert fed.replays() > 20
    assert run.buffer.metrics()["late"] == 0
    assert len(run.loader) == WHOLE // EPOCHS


def test_the_prefetcher_changes_nothing() -> None:
    assert Run(use_prefetcher=True).train(WHOLE) == Run(use_prefetcher=False).train(WHOLE)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # from Python 3.12 on
def test_the_prefetcher_with_workers_changes_nothing() -> None:
    # One worker that prefetches two batches is as far ahead as this lag allows without prefetcher.
    with pytest.raises(LagError, match=r"and one more for the prefetcher; pass lag=4"):
        Run(use_prefetcher=True, workers=1)
    assert Run(use_prefetcher=False, workers=1).train(WHOLE) == Run(use_prefetcher=True).train(
        WHOLE
    )


@BOTH
@pytest.mark.parametrize("stop", [1, 4, WHOLE // 2 - 1, WHOLE // 2 + 2])
def test_resuming_goes_on_after_the_batch_in_hand(use_prefetcher: bool, stop: int) -> None:
    whole = Run(use_prefetcher=use_prefetcher).train(WHOLE)
    stopped, resumed = Run(use_prefetcher=use_prefetcher), Run(use_prefetcher=use_prefetcher)
    stopped.train(stop)
    resumed.buffer.load_state_dict(stopped.buffer.state_dict())
    resumed.mixed.load_state_dict(stopped.mixed.state_dict())
    rest = resumed.train(WHOLE - stop)
    assert rest.steps == whole.steps[stop:]
    assert rest.ids == whole.ids[stop:]
    assert rest.is_replay == whole.is_replay[stop:]


def test_what_timm_collates_keeps_its_type() -> None:
    images, labels = next(iter(Run(use_prefetcher=False).loader))
    assert images.dtype == torch.float32
    images, labels = next(iter(Run(use_prefetcher=True).mixed))
    assert images.dtype == torch.uint8
    assert isinstance(labels, Tensor)


def test_the_prefetcher_itself_cannot_be_wrapped() -> None:
    made = made_by_timm(use_prefetcher=True)
    with pytest.raises(LoaderError, match="expects a torch DataLoader, got PrefetchLoader"):
        BufferedMixSampler.wrap(made, RareMemoryBuffer(6))


def test_the_loader_of_many_epochs_is_refused_by_name() -> None:
    made = made_by_timm(use_prefetcher=False, use_multi_epochs_loader=True)
    with pytest.raises(LoaderError, match="would lose what MultiEpochsDataLoader adds"):
        BufferedMixSampler.wrap(made, RareMemoryBuffer(6))


def test_the_loader_that_timm_made_is_wrapped_with_all_it_has() -> None:
    made = made_by_timm(use_prefetcher=False)
    mixed: MixedLoader[Any] = BufferedMixSampler.wrap(made, RareMemoryBuffer(6))
    assert len(mixed) == len(made) == TOTAL // WIDTH
    assert mixed.worker_init_fn is made.worker_init_fn
    assert mixed.collate_fn is made.collate_fn
    assert sum(len(labels) for _, labels in mixed) == TOTAL // WIDTH * WIDTH
