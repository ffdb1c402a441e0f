"""Tests of the detector: its order of work, what it keeps out, what it takes in, its files."""

import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score
from torch import Tensor

from raremix.detection import (
    Detection,
    FixedThreshold,
    FlagRate,
    KNNDistance,
    MeanDistance,
    OODDetector,
    QuantileThreshold,
)
from raremix.errors import (
    EmbeddingShapeError,
    FileFormatError,
    NonFiniteError,
    NotEnoughReferenceError,
    OptionError,
    RaremixWarning,
    StateMismatchError,
)
from raremix.inputs import ArrayLike


def normal(n: int, dim: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def small(k: int = 2) -> OODDetector:
    return OODDetector(KNNDistance(k=k), FlagRate(0.2, window=50, warmup_scores=20))


def equal(first: object, second: object) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(equal(first[k], second[k]) for k in first)
    return first == second


def bank_of(detector: OODDetector) -> Tensor:
    assert isinstance(detector.scorer, KNNDistance)
    return detector.scorer.bank.rows


# --- fit, score, detect ---


def test_fit_flags_the_rate_and_the_rarest() -> None:
    rows = torch.cat([normal(95), normal(5) + 50 * torch.arange(1, 6)[:, None]])
    found = small().fit(rows)
    assert int(found.is_rare.sum()) == 20
    assert found.is_rare[95:].all()
    assert torch.equal(found.is_rare, found.scores > found.threshold)
    assert isinstance(found, Detection)


def test_fit_forgets_what_came_before() -> None:
    used, fresh = small(), small()
    used.fit(normal(40, 7))
    used.observe(normal(9, 7))
    used.fit(normal(30))
    fresh.fit(normal(30))
    assert equal(used.state_dict(), fresh.state_dict())


def test_detect_is_score_and_threshold_and_changes_nothing() -> None:
    detector, rows = small(), normal(12, seed=1)
    detector.fit(normal(40), range(40))
    before = detector.state_dict()
    found = detector.detect(rows, range(12))
    assert torch.equal(found.scores, detector.score(rows, range(12)))
    assert torch.equal(found.is_rare, found.scores > detector.threshold.value)
    assert equal(detector.state_dict(), before)


def test_ids_leave_out_the_own_row() -> None:
    detector = small(k=1)
    detector.fit(normal(40), np.arange(40))
    assert (detector.score(normal(40)) == 0).all()
    assert (detector.score(normal(40), torch.arange(40)) > 0).all()


def test_scoring_before_anything_was_seen_is_refused() -> None:
    for scorer in (KNNDistance(), MeanDistance(), KNNDistance(k=0.5)):
        with pytest.raises(NotEnoughReferenceError, match="has seen 0"):
            OODDetector(scorer).score(normal(3))


def test_another_width_names_both() -> None:
    detector = small()
    detector.fit(normal(40))
    with pytest.raises(EmbeddingShapeError, match=r"\(batch, 4\), got \(3, 5\)"):
        detector.score(normal(3, 5))
    before = detector.state_dict()
    with pytest.raises(EmbeddingShapeError, match=r"\(batch, 4\), got \(3, 5\)"):
        detector.observe(normal(3, 5))
    assert equal(detector.state_dict(), before)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (0, 4), (3, 0)])
def test_embeddings_of_no_such_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(EmbeddingShapeError, match=r"OODDetector\.fit"):
        small().fit(torch.zeros(shape))


def test_parts_that_are_none_are_refused() -> None:
    with pytest.raises(OptionError, match=r"a scorer such as KNNDistance\(k=10\), got 0\.95"):
        OODDetector(0.95)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(OptionError, match=r"a threshold such as FlagRate\(0\.05\), got 0\.95"):
        OODDetector(threshold=0.95)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(OptionError, match=r"a scorer such as .* got <class"):
        OODDetector(KNNDistance)  # type: ignore[arg-type]  # the brackets were forgotten


# --- observe ---


def test_a_batch_is_scored_before_it_is_learned() -> None:
    detector = small(k=1)
    detector.observe(normal(30))
    twins = normal(1, seed=5).repeat(2, 1)
    assert (detector.observe(twins).scores > 0).all()  # a twin in the same batch is not seen
    assert (detector.observe(twins).scores == 0).all()


def test_a_batch_is_judged_before_the_threshold_moves() -> None:
    wide = FlagRate(0.2, window=50, warmup_scores=20, slack=100)
    detector = OODDetector(KNNDistance(k=2), wide)
    detector.fit(normal(40))
    before = detector.threshold.value
    found = detector.observe(10 * normal(40, seed=1))
    assert found.threshold == before
    assert torch.equal(found.is_rare, found.scores > before)
    assert detector.threshold.value > before


def test_observing_equals_detecting_then_learning() -> None:
    detector = small()
    detector.fit(normal(40), range(40))
    rows = normal(9, seed=1)
    expected = detector.detect(rows, range(30, 39))
    found = detector.observe(rows, range(30, 39))
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.is_rare, expected.is_rare)


def test_a_visit_is_judged_by_the_mean_of_all_visits() -> None:
    smooth, plain = (
        small(),
        OODDetector(KNNDistance(k=2), FlagRate(0.2, window=50, warmup_scores=20), smoothing=0.0),
    )
    scores = []
    for detector in (smooth, plain):
        detector.fit(normal(40), range(100, 140))
    for visit in range(4):
        rows = normal(9, seed=visit + 1)
        scores.append(plain.observe(rows, range(9)).scores)
        found = smooth.observe(rows, range(9))
        torch.testing.assert_close(found.scores, torch.stack(scores).mean(dim=0))
        assert torch.equal(found.is_rare, found.scores > found.threshold)
        # Only what observe says is a mean: the reference holds the same rows.
        assert torch.equal(smooth.score(rows), plain.score(rows))


def test_without_ids_every_visit_is_judged_alone() -> None:
    smooth, plain = (
        small(),
        OODDetector(KNNDistance(k=2), FlagRate(0.2, window=50, warmup_scores=20), smoothing=0.0),
    )
    for detector in (smooth, plain):
        detector.fit(normal(40))
    for visit in range(3):
        rows = normal(9, seed=visit + 1)
        assert torch.equal(smooth.observe(rows).scores, plain.observe(rows).scores)


def test_fit_forgets_the_earlier_visits() -> None:
    detector = small()
    for visit in range(3):
        detector.observe(normal(30, seed=visit), range(30))
    detector.fit(normal(40), range(40))
    rows = normal(9, seed=8)
    expected = detector.score(rows, range(9))
    assert torch.equal(detector.observe(rows, range(9)).scores, expected)


def test_nothing_is_rare_before_the_warmup_ends() -> None:
    detector = OODDetector(KNNDistance(k=9), FlagRate(0.2, window=50, warmup_scores=20))
    first, second, third, fourth = (detector.observe(normal(10, seed=s)) for s in range(4))
    assert first.scores.isnan().all()  # no reference yet
    assert first.threshold == second.threshold == third.threshold == math.inf
    assert torch.isfinite(second.scores).all()
    assert not torch.cat([first.is_rare, second.is_rare, third.is_rare]).any()
    assert math.isfinite(fourth.threshold)


def test_a_reference_of_siblings_alone_gives_no_score_and_no_error() -> None:
    detector = small(k=1)
    detector.observe(normal(5), [7] * 5)
    found = detector.observe(normal(5, seed=1), [7] * 5)
    assert found.scores.isnan().all()
    assert not found.is_rare.any()
    assert torch.equal(bank_of(detector).sort(dim=0)[0], normal(5, seed=1).sort(dim=0)[0])


def test_replayed_rows_are_scored_but_do_not_move_the_threshold() -> None:
    first, second = small(), small()
    fresh, replayed = normal(6, seed=1), 9 * normal(3, seed=2)
    for detector in (first, second):
        detector.fit(normal(40), range(40))
    mask = torch.tensor([False] * 6 + [True] * 3)
    found = first.observe(torch.cat([fresh, replayed]), range(9), is_replay=mask)
    second.observe(fresh, range(6))
    assert found.is_rare[6:].all()
    assert equal(first.threshold.state_dict(), second.threshold.state_dict())


def test_replayed_rows_are_refreshed_where_ids_are_known() -> None:
    detector = small()
    detector.fit(normal(40), range(40))
    detector.observe(torch.full((1, 4), 77.0), [3], is_replay=[True])
    assert (bank_of(detector) == 77).all(dim=1).sum() == 1
    assert len(bank_of(detector)) == 40


def test_replayed_rows_are_not_learned_without_ids() -> None:
    detector = small()
    detector.fit(normal(40))
    detector.observe(torch.full((2, 4), 77.0), is_replay=np.array([True, False]))
    assert (bank_of(detector) == 77).all(dim=1).sum() == 1


@pytest.mark.parametrize("bad", [[True], [0, 1], torch.tensor([0.0, 1.0]), [[True, False]]])
def test_a_replay_mask_of_another_kind_is_refused(bad: Any) -> None:
    detector = small()
    with pytest.raises(OptionError, match="is_replay as 2 booleans, got"):
        detector.observe(normal(2), is_replay=bad)


def test_ids_given_late_are_refused_and_move_nothing() -> None:
    detector = small()
    detector.fit(normal(40))
    before = detector.state_dict()
    with pytest.raises(OptionError, match="pass ids always or never"):
        detector.observe(normal(30, seed=1), range(30))
    assert equal(detector.state_dict(), before)


def test_ids_left_away_later_are_refused_by_the_name_of_the_call() -> None:
    detector = small()
    detector.observe(normal(40), range(40))
    message = r"OODDetector\.observe got rows without ids, but the 40 rows .* with ids; pass ids"
    with pytest.raises(OptionError, match=message):
        detector.observe(normal(30, seed=1))


# --- NaN and infinity ---

BAD = pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])


def spoiled(rows: Tensor, bad: float) -> Tensor:
    rows = rows.clone()
    rows[1, 2] = bad
    rows[4, 0] = bad
    return rows


@BAD
@pytest.mark.parametrize("with_ids", [False, True])
def test_spoiled_rows_reach_neither_reference_nor_threshold(bad: float, with_ids: bool) -> None:
    keep = [0, 2, 3, *range(5, 40)]
    spoilt, clean = small(), small()
    ids = torch.arange(40)
    with pytest.warns(RaremixWarning):
        found = spoilt.fit(spoiled(normal(40), bad), ids if with_ids else None)
    expected = clean.fit(normal(40)[keep], ids[keep] if with_ids else None)
    assert torch.equal(found.scores[keep], expected.scores)
    assert found.scores[[1, 4]].isnan().all()
    assert not found.is_rare[[1, 4]].any()

    with pytest.warns(RaremixWarning):
        found = spoilt.observe(spoiled(normal(40, seed=1), bad), ids if with_ids else None)
    expected = clean.observe(normal(40, seed=1)[keep], ids[keep] if with_ids else None)
    assert torch.equal(found.scores[keep], expected.scores)
    assert found.scores[[1, 4]].isnan().all()
    assert not found.is_rare[[1, 4]].any()
    assert equal(spoilt.state_dict(), clean.state_dict())


def test_the_warning_counts_the_rows_and_points_to_the_caller() -> None:
    detector = small()
    message = r"OODDetector\.fit left out 2 of 9 rows that hold NaN or infinity"
    with pytest.warns(RaremixWarning, match=message) as caught:
        detector.fit(spoiled(normal(9), math.nan))
    assert caught[0].filename == __file__


@BAD
def test_a_batch_without_one_finite_row_changes_nothing(bad: float) -> None:
    detector = small()
    detector.fit(normal(40), range(40))
    before = detector.state_dict()
    with pytest.warns(RaremixWarning, match="3 of 3 rows"):
        found = detector.observe(torch.full((3, 4), bad), range(3))
    assert found.scores.isnan().all()
    assert not found.is_rare.any()
    with pytest.warns(RaremixWarning):
        assert detector.score(torch.full((3, 4), bad)).isnan().all()
    assert equal(detector.state_dict(), before)


def test_fitting_without_one_finite_row_is_refused() -> None:
    with pytest.warns(RaremixWarning), pytest.raises(NonFiniteError, match="got 3 rows and every"):
        small().fit(torch.full((3, 4), math.nan))


def test_numbers_too_large_for_float32_are_not_finite() -> None:
    rows = normal(40).double()
    rows[0, 0] = 1e300
    with pytest.warns(RaremixWarning, match="1 of 40 rows that hold numbers too large for float32"):
        assert small().fit(rows).scores[0].isnan()
    with (
        pytest.warns(RaremixWarning),
        pytest.raises(NonFiniteError, match=r"every one holds numbers too large .*\(divide all"),
    ):
        small().fit(1e200 * normal(40).double())


# --- what comes in ---


def _read_only(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    rows = rows.copy()
    rows.flags.writeable = False
    return rows


EXACT = (normal(40) * 8).round() / 8  # exact in every dtype below
FORMS: dict[str, ArrayLike] = {
    "float16": EXACT.numpy().astype(np.float16),
    "float64": EXACT.numpy().astype(np.float64),
    "big-endian": EXACT.numpy().astype(">f4"),
    "transposed": np.asfortranarray(EXACT.numpy()),
    "backwards": EXACT.flip(0).numpy()[::-1],
    "every other": np.repeat(EXACT.numpy(), 2, axis=0)[::2],
    "read-only": _read_only(EXACT.numpy()),
    "bfloat16": EXACT.bfloat16(),
    "half": EXACT.half(),
    "with gradient": EXACT.clone().requires_grad_(),
    "computed with gradient": EXACT.clone().requires_grad_() * 1,
    "parameter": torch.nn.Parameter(EXACT.clone()),
    "strided": EXACT.T.contiguous().T,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_numbers_scores_the_same(form: str) -> None:
    given, plain = small(), small()
    expected, found = plain.fit(EXACT), given.fit(FORMS[form])
    assert torch.equal(found.scores, expected.scores)
    assert found.scores.dtype == torch.float32
    assert not found.scores.requires_grad
    given.observe(FORMS[form])
    plain.observe(EXACT)
    assert equal(given.state_dict(), plain.state_dict())


def test_integers_are_embeddings_too() -> None:
    whole = (normal(40) * 9).round()
    expected = small().fit(whole).scores
    for rows in (whole.to(torch.int64), whole.numpy().astype(np.int8)):
        assert torch.equal(small().fit(rows).scores, expected)


def test_a_memory_mapped_file_is_read_and_left_as_it_is(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", normal(40).numpy())
    content = (tmp_path / "rows.npy").read_bytes()
    for mode in ("r", "r+"):
        detector = small()
        rows = np.load(tmp_path / "rows.npy", mmap_mode=mode)
        assert torch.equal(detector.fit(rows).scores, small().fit(normal(40)).scores)
        detector.observe(rows)
    assert (tmp_path / "rows.npy").read_bytes() == content


def test_what_was_given_is_not_changed_and_may_change() -> None:
    detector, rows, ids = small(), normal(40), torch.arange(40)
    copy = rows.clone()
    detector.fit(rows, ids)
    detector.observe(rows, ids)
    assert torch.equal(rows, copy)
    before = detector.state_dict()
    rows.zero_()
    ids.zero_()
    assert equal(detector.state_dict(), before)


@pytest.mark.parametrize(
    "ids", [[1, 2], np.arange(3.0), ["a", "b", "c"], [True, False, True], [[1], [2], [3]]]
)
def test_ids_of_another_kind_are_refused(ids: Any) -> None:
    with pytest.raises(EmbeddingShapeError, match=r"OODDetector\.observe .* ids"):
        small().observe(normal(3), ids)


class Length:
    """A user's own scorer, inheriting from nothing: the length of an embedding."""

    ready = True

    def fit(self, embeddings: Tensor, ids: Tensor | None = None) -> Tensor:
        return self.score(embeddings)

    def score(self, embeddings: Tensor, ids: Tensor | None = None) -> Tensor:
        lengths: Tensor = embeddings.double().norm(dim=1)
        return lengths

    def update(self, embeddings: Tensor, ids: Tensor | None = None) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


def test_a_scorer_of_the_users_own_takes_part() -> None:
    detector = OODDetector(Length(), QuantileThreshold(0.9))
    rows = normal(50)
    found = detector.fit(rows)
    assert found.scores.dtype == torch.float32
    assert int(found.is_rare.sum()) == 5
    assert torch.equal(detector.observe(rows).is_rare, found.is_rare)


def test_its_repr_names_both_parts() -> None:
    assert repr(OODDetector(KNNDistance(k=3), FixedThreshold(2))) == (
        "OODDetector(KNNDistance(k=3, metric='euclidean', capacity=65536, engine='auto'), "
        "FixedThreshold(2.0), smoothing=0.9)"
    )


# --- state and files ---


@pytest.mark.parametrize("with_ids", [False, True])
def test_saved_and_resumed_equals_never_stopped(tmp_path: Path, with_ids: bool) -> None:
    def ids(step: int) -> Tensor | None:
        if not with_ids:
            return None
        return torch.randint(0, 60, (9,), generator=torch.Generator().manual_seed(step))

    straight, stopped = small(), small()
    for step in range(14):
        rows = normal(9, seed=step) * (1 + step / 5)
        first, second = straight.observe(rows, ids(step)), stopped.observe(rows, ids(step))
        assert torch.equal(first.scores.nan_to_num(-1), second.scores.nan_to_num(-1))
        assert torch.equal(first.is_rare, second.is_rare)
        assert first.threshold == second.threshold
        if step in (0, 3, 8):
            stopped.save(tmp_path / "detector.pt")
            stopped = small().load(tmp_path / "detector.pt")
    assert equal(straight.state_dict(), stopped.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["detector.pt"]


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = small()
    detector.fit(normal(40))
    detector.save(tmp_path / "detector.pt")

    def dying(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", dying)
    with pytest.raises(OSError, match="No space left"):
        detector.save(tmp_path / "detector.pt")
    assert equal(small().load(tmp_path / "detector.pt").state_dict(), detector.state_dict())


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path: Path, kept: float) -> None:
    path, detector = tmp_path / "detector.pt", small()
    detector.fit(normal(40))
    detector.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else int(kept)])
    with pytest.raises(FileFormatError, match=r"OODDetector\.load.* .*detector\.pt"):
        small().load(path)


class Foreign:
    pass


def test_a_foreign_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"object": Foreign()}, tmp_path / "torch.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Foreign()))
    (tmp_path / "text.txt").write_text("not a state", encoding="utf-8")
    for path in tmp_path.iterdir():
        with pytest.raises(FileFormatError, match=rf"OODDetector\.load.* .*{path.name}"):
            small().load(path)


def test_another_state_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    detector = small()
    detector.fit(normal(40))
    before = detector.state_dict()
    others = {
        "k was 3, is 2": small(k=3),
        "rate was 0.05, is 0.2": OODDetector(KNNDistance(k=2)),
        "state of a MeanDistance": OODDetector(
            MeanDistance(), FlagRate(0.2, window=50, warmup_scores=20)
        ),
        "smoothing was 0.5, is 0.9": OODDetector(
            KNNDistance(k=2), FlagRate(0.2, window=50, warmup_scores=20), smoothing=0.5
        ),
        "state of a FixedThreshold": OODDetector(KNNDistance(k=2), FixedThreshold(1.0)),
    }
    for message, other in others.items():
        other.fit(normal(30))
        other.save(tmp_path / "other.pt")
        with pytest.raises(StateMismatchError, match=message):
            detector.load(tmp_path / "other.pt")
        assert equal(detector.state_dict(), before)
    for state in (torch.zeros(3), {"weights": torch.zeros(3)}):
        torch.save(state, tmp_path / "other.pt")
        with pytest.raises(
            StateMismatchError, match=r"expects what OODDetector\.state_dict returned"
        ):
            detector.load(tmp_path / "other.pt")


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"OODDetector\.load finds no file .*nowhere\.pt"):
        small().load(tmp_path / "nowhere.pt")
    with pytest.raises(FileFormatError, match="is a folder; name a file in it"):
        small().load(tmp_path)


def test_an_array_is_no_saved_detector_and_no_advice_to_run_its_code_is_passed_on(
    tmp_path: Path,
) -> None:
    np.save(tmp_path / "rows.npy", np.eye(3))
    with pytest.raises(FileFormatError, match=r"wrote, and .*rows\.npy is a npy file\.$"):
        small().load(tmp_path / "rows.npy")


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a file system without files")
def test_a_place_that_takes_no_files_is_named() -> None:
    detector = small()
    detector.fit(normal(40))
    with pytest.raises(OptionError, match=r"OODDetector\.save cannot write to /sys/x\.pt: "):
        detector.save("/sys/x.pt")


def test_another_smoothing_names_the_part_that_has_it(tmp_path: Path) -> None:
    OODDetector().save(tmp_path / "detector.pt")
    message = r"smoothing was 0\.9, is 0\.5\. Build the OODDetector with the saved settings"
    with pytest.raises(StateMismatchError, match=message):
        OODDetector(smoothing=0.5).load(tmp_path / "detector.pt")


@pytest.mark.parametrize("with_ids", [False, True])
def test_inference_mode_and_the_default_device_leave_no_trace(with_ids: bool) -> None:
    inside, plain = small(), small()
    ids = list(range(30)) if with_ids else None
    rows = normal(30)
    with torch.inference_mode(), torch.device("meta"):
        inside.fit(rows, ids)
        inside.observe(rows, ids)
    plain.fit(rows, ids)
    plain.observe(rows, ids)
    for detector in (inside, plain):
        detector.observe(normal(30, seed=3), ids)
    assert equal(inside.state_dict(), plain.state_dict())


def test_no_call_touches_the_global_generators() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    detector = OODDetector(KNNDistance(k=2), FlagRate(0.2, window=20, warmup_scores=5))
    detector.fit(normal(600), range(600))
    detector.observe(normal(9), range(9))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # type: ignore[index]


# --- real data ---


def _crops(shared_data: Path) -> tuple[Tensor, NDArray[np.bool_]]:
    with np.load(shared_data / "camvid_crops.npz", allow_pickle=False) as file:
        return torch.from_numpy(file["embedding"]).float(), file["is_rare"]


def test_on_driving_crops_it_finds_rare_objects_better_than_the_mean(shared_data: Path) -> None:
    rows, is_rare = _crops(shared_data)
    found = OODDetector().fit(rows)
    baseline = OODDetector(MeanDistance()).fit(rows)
    precision = average_precision_score(is_rare, found.scores)
    assert precision >= 1.15 * average_precision_score(is_rare, baseline.scores)
    assert int(found.is_rare.sum()) == int(0.05 * len(rows))
    lift = is_rare[found.is_rare.numpy()].mean() / is_rare.mean()
    assert lift > 1.5


def test_on_driving_crops_the_stream_holds_its_rate(shared_data: Path) -> None:
    rows, _ = _crops(shared_data)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:4000]
    detector = OODDetector(KNNDistance(k=10, capacity=1024), FlagRate(0.05, warmup_scores=512))
    flags = [
        detector.observe(part, ids).is_rare
        for part, ids in zip(torch.split(rows[order], 128), torch.split(order, 128), strict=True)
    ]
    rate = float(torch.cat(flags)[1024:].float().mean())
    assert rate == pytest.approx(0.05, abs=0.015)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_detection_where_the_rows_are() -> None:
    on_cpu, on_gpu = small(), small()
    for step in range(8):
        rows, ids = normal(20, seed=step), torch.arange(20) + step
        mask = torch.arange(20) < 3
        first = on_cpu.observe(rows, ids, is_replay=mask)
        second = on_gpu.observe(rows.cuda(), ids, is_replay=mask)
        assert second.scores.is_cuda
        assert second.is_rare.is_cuda
        torch.testing.assert_close(second.scores.cpu(), first.scores, equal_nan=True)
        assert second.threshold == pytest.approx(first.threshold)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_state_loaded_onto_the_gpu_goes_on_there(tmp_path: Path) -> None:
    straight = small()
    for step in range(8):
        last = straight.observe(normal(20, seed=step), torch.arange(20) + step)
    stopped = small()
    for step in range(4):
        stopped.observe(normal(20, seed=step), torch.arange(20) + step)
    torch.save(stopped.state_dict(), tmp_path / "state.pt")
    resumed = small()
    resumed.load_state_dict(
        torch.load(tmp_path / "state.pt", map_location="cuda", weights_only=True)
    )
    for step in range(4, 8):
        found = resumed.observe(normal(20, seed=step).cuda(), torch.arange(20) + step)
    torch.testing.assert_close(found.scores.cpu(), last.scores)
    assert found.threshold == pytest.approx(last.threshold)
