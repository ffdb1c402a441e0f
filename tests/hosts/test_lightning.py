"""Lightning's Trainer, in one process and in two: what it does to samplers loses nothing here."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from counting import (
    LAG,
    TOTAL,
    WIDTH,
    Fed,
    Numbers,
    assert_none_lost_none_doubled,
    base_order,
    mixed,
)
from launching import run_ranks
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from raremix import BufferedMixSampler, MixedLoader, RareMemoryBuffer
from raremix.errors import LoaderError

pytest.importorskip("lightning", reason="needs the extra frameworks")

if TYPE_CHECKING:
    from lightning_counted import Counted

EPOCHS = 2
BATCHES = -(-TOTAL // WIDTH)  # of an epoch

pytestmark = [
    # Advice on workers, logging and checkpoints, and calls of torch that are on their way out.
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning"),
]


@pytest.fixture
def fit(tmp_path: Path) -> Any:
    """Train a model that counts what it is fed; takes the options of the Trainer."""
    from lightning_counted import fitted

    return lambda *make, **options: fitted(tmp_path, *make, **options)


def test_every_row_is_fed_once_and_replays_come_of_what_training_found(fit: Any) -> None:
    module: Counted = fit()
    assert_none_lost_none_doubled([module.fed], EPOCHS)
    # Feedback from training_step acts LAG steps later, in about half of every batch.
    assert not any(map(any, module.fed.is_replay[:LAG]))
    assert module.fed.replays() >= WIDTH // 2 * (EPOCHS * BATCHES - LAG) * 0.9


def test_workers_change_nothing(fit: Any) -> None:
    alone, with_workers = fit(), fit(lambda buffer: mixed(buffer, workers=1))
    assert with_workers.fed == alone.fed


def test_accumulating_gradients_changes_nothing(fit: Any) -> None:
    module = fit(accumulate_grad_batches=2)
    assert module.fed == fit().fed
    assert module.optimizer_steps == EPOCHS * -(-BATCHES // 2)


def test_a_limit_of_batches_cuts_each_epoch_short_and_the_next_begins_anew(fit: Any) -> None:
    whole, cut = fit().fed, fit(limit_train_batches=5).fed
    assert cut.steps == list(range(10))
    assert cut.epochs == [0] * 5 + [1] * 5
    assert cut.ids[:5] == whole.ids[:5]
    own = whole_order(1)
    for number in range(5):
        assert fresh_of(cut, 1, number, batches=5) <= set(own[number])
        assert any(cut.is_replay[5 + number])


def test_overfitting_batches_is_refused_by_name(fit: Any) -> None:
    with pytest.raises(LoaderError, match="overfit_batches"):
        fit(overfit_batches=2)


def test_a_loader_made_anew_each_epoch_keeps_the_buffer(fit: Any) -> None:
    module = fit(reload_dataloaders_every_n_epochs=1)
    whole = fit()
    assert module.fed.epochs == whole.fed.epochs
    # A new loader counts its steps anew, yet it draws the order of its own epoch.
    assert module.fed.steps == [*range(BATCHES)] * 2
    for number, own in enumerate(whole_order(1)):
        assert fresh_of(module.fed, 1, number) <= set(own)
    # What the first loader filled, the second draws from its first batch on.
    assert all(map(any, module.fed.is_replay[BATCHES:]))
    assert module.buffer.metrics()["late"] == 0


def test_validation_and_its_sanity_check_do_not_touch_the_stream(fit: Any, tmp_path: Path) -> None:
    from lightning_counted import Counted, trainer

    class Validated(Counted):
        validated = 0

        def val_dataloader(self) -> DataLoader[Tensor]:
            return DataLoader(Numbers())

        def validation_step(self, data: Tensor, number: int) -> None:
            self.validated += 1

    module = Validated()
    trainer(tmp_path, num_sanity_val_steps=2, val_check_interval=3).fit(module)
    assert module.validated > 2
    assert module.fed == fit().fed


def test_a_schedule_over_all_steps_fits_the_length_of_the_loader(fit: Any, tmp_path: Path) -> None:
    from lightning_counted import Counted, trainer

    class Scheduled(Counted):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            total = EPOCHS * len(self.trainer.fit_loop._data_source.dataloader())
            assert total == self.trainer.estimated_stepping_batches
            self.schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=total)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": self.schedule, "interval": "step"},
            }

    module = Scheduled()
    trainer(tmp_path, enable_progress_bar=True).fit(module)
    assert module.schedule.last_epoch == EPOCHS * BATCHES
    assert module.fed == fit().fed


def test_a_run_resumed_at_any_checkpoint_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning_counted import Counted, fitted, trainer

    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fitted(tmp_path, callbacks=[keep], enable_checkpointing=True)
    for step in (1, 4, BATCHES - 1, BATCHES, BATCHES + 1, 2 * BATCHES - 1):
        module = Counted()
        trainer(tmp_path).fit(module, ckpt_path=tmp_path / f"step={step}.ckpt")
        assert module.fed.steps == whole.fed.steps[step:]
        assert module.fed.ids == whole.fed.ids[step:]
        assert module.fed.is_replay == whole.fed.is_replay[step:]
        assert module.fed.epochs == whole.fed.epochs[step:]
        assert module.buffer.keys.tolist() == whole.buffer.keys.tolist()


class Endless(Sampler[int]):
    """Without length, for which Lightning takes each batch one step before it gives it on."""

    def __iter__(self) -> Iterator[int]:
        return (11 * number % TOTAL for number in itertools.count())


def endless(buffer: RareMemoryBuffer) -> MixedLoader[Tensor]:
    base = DataLoader(Numbers(), batch_size=WIDTH, sampler=Endless())
    return BufferedMixSampler.wrap(base, buffer, replay=0.5, lag=LAG, prefetched=True)


def test_without_length_the_loader_knows_the_batch_in_hand_and_resumes(tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning_counted import Counted, fitted, trainer

    limits: dict[str, Any] = {"max_epochs": -1, "max_steps": 20}
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fitted(tmp_path, endless, callbacks=[keep], enable_checkpointing=True, **limits)
    assert whole.fed.steps == list(range(20))
    assert whole.fed.replays() > 20
    for step in (1, 7, 16):
        module = Counted(endless)
        trainer(tmp_path, **limits).fit(module, ckpt_path=tmp_path / f"step={step}.ckpt")
        assert module.fed.steps == whole.fed.steps[step:]
        assert module.fed.ids == whole.fed.ids[step:]
        assert module.fed.is_replay == whole.fed.is_replay[step:]


def test_predicting_with_the_mixed_loader_is_refused_by_name(fit: Any, tmp_path: Path) -> None:
    from lightning_counted import trainer

    module = fit()
    with pytest.raises(LoaderError, match="a loader that is not mixed for prediction"):
        trainer(tmp_path).predict(module, module.loader)


gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo"
)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def two(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes was fed."""
    folder = tmp_path_factory.mktemp("two")
    return run_ranks(
        Path(__file__).with_name("one_of_two_lightning.py"),
        "whole",
        str(checkpoints),
        folder=folder,
    )


@pytest.fixture(scope="module")
def two_resumed(
    two: object, checkpoints: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[int, Any]]:
    """The same after resuming, at several steps, in processes of their own."""
    folder = tmp_path_factory.mktemp("resumed")
    return run_ranks(
        Path(__file__).with_name("one_of_two_lightning.py"),
        "resumed",
        str(checkpoints),
        folder=folder,
    )


@gloo
def test_two_processes_share_every_epoch(two: list[dict[str, Any]]) -> None:
    fed = [Fed(**rank["fed"]) for rank in two]
    assert_none_lost_none_doubled(fed, EPOCHS)
    assert all(rank.replays() > 10 for rank in fed)
    assert two[0]["held"] == two[1]["held"]


@gloo
def test_two_processes_resume_as_if_never_stopped(
    two: list[dict[str, Any]], two_resumed: list[dict[int, Any]]
) -> None:
    for whole, resumed in zip(two, two_resumed, strict=True):
        assert len(resumed) == 4
        for step, rest in resumed.items():
            assert rest["held"] == whole["held"]
            for name, rows in rest["fed"].items():
                assert rows == whole["fed"][name][step:]


@gloo
def test_a_batch_sampler_of_the_users_is_kept_or_refused_with_the_way_out(
    two: list[dict[str, Any]],
) -> None:
    # Lightning would exchange it. It cannot, and says which switch of the Trainer keeps it.
    for rank in two:
        assert "use_distributed_sampler=False" in rank["own refused"]
    fed = [Fed(**rank["own"]) for rank in two]
    for epoch in range(EPOCHS):
        ids = [
            key
            for rank in fed
            for number in range(6)
            for key in fresh_of(rank, epoch, number, batches=6)
        ]
        assert len(ids) == len(set(ids))
        replays = sum(map(sum, [row for rank in fed for row in rank.is_replay[epoch * 6 :][:6]]))
        assert len(ids) + replays == TOTAL
        assert replays > 0


@gloo
def test_overfitting_batches_is_refused_by_name_in_two_processes(
    two: list[dict[str, Any]],
) -> None:
    assert all("overfit_batches" in rank["overfit"] for rank in two)


def fresh_of(fed: Fed, epoch: int, number: int, batches: int = BATCHES) -> set[int]:
    """The rows of a batch that are no replays."""
    place = epoch * batches + number
    rows = zip(fed.ids[place], fed.is_replay[place], strict=True)
    return {key for key, is_replay in rows if not is_replay}


def whole_order(epoch: int) -> list[list[int]]:
    """The batches of an epoch on a rank that is alone, if nothing was mixed in."""
    return base_order(epoch + 1, 0, 1)[epoch * BATCHES :]
