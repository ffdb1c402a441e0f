"""The detector: scores embeddings, judges the scores, then learns from both.

It knows neither how a score is made nor where rarity begins; those are its two parts.
"""

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from raremix import distributed
from raremix.data.arrays import read_torch
from raremix.data.kinds import file_kind
from raremix.data.writing import replacing
from raremix.detection.bank import ReferenceBank
from raremix.detection.batch import as_mask, enter, select, spread
from raremix.detection.health import bank_health
from raremix.detection.history import ScoreHistory
from raremix.detection.scorers import FusedDistance
from raremix.detection.thresholds import FlagRate
from raremix.detection.watch import ReferenceWatch
from raremix.errors import (
    FileFormatError,
    NonFiniteError,
    NotEnoughReferenceError,
    OptionError,
    RaremixWarning,
)
from raremix.inputs import ArrayLike, what_is_not_finite
from raremix.protocols import Scorer, State, StreamThreshold, Threshold
from raremix.state import open_state, sealed_state

__all__ = ["Detection", "OODDetector"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Detection:
    """What a detector says of a batch of embeddings.

    Attributes:
        scores: (batch,) float32, larger is rarer, on the device of the embeddings. NaN where there
            is no score: for a row that held NaN or infinity, and before enough has been seen.
        is_rare: (batch,) bool, whether the score lies above the threshold. Never true for NaN.
        threshold: The score above which a row was called rare; infinity during warm-up, and while
            the embeddings are collapsed.
    """

    scores: Tensor
    is_rare: Tensor
    threshold: float


class OODDetector:
    """Finds rare samples from embeddings: one scorer and one threshold rule, acting together.

    Offline, ``fit`` takes a whole set and says which of its rows are rare. In a training loop,
    ``observe`` scores and judges each batch against what came before, and only then learns it.

    Rows that hold NaN or infinity get the score NaN, are never rare, never reach the reference or
    the threshold, and are reported by a ``RaremixWarning``.

    Where the scorer keeps a bank, as most do, it is watched. While the embeddings are
    collapsed, spanning hardly any directions or far fewer than before, nothing is called rare. When
    samples seen again are no nearer to their own earlier embedding than to others, the encoder is
    another one: bank, threshold and histories begin anew. Each is reported by a ``RaremixWarning``,
    once, and by ``health``.

    Under torch.distributed, ``observe`` is a collective call: it gathers the batches of all ranks,
    so that every rank holds the same reference and the same threshold.

    Args:
        scorer: Says how rare; ``FusedDistance()`` if not given.
        threshold: Says from where on it counts as rare; ``FlagRate(0.05)`` if not given.
        smoothing: Weight in [0, 1) of a sample's earlier scores in what ``observe`` says of it,
            where ids are given; 0 judges every visit alone. In training, a visit shows one random
            crop, and a single crop says little of the image. A history takes some 200 bytes an id.

    Example:
        >>> embeddings = torch.cat([torch.zeros(30, 2), torch.ones(1, 2)])
        >>> detector = OODDetector(raremix.KNNDistance(k=3), FlagRate(0.05))
        >>> detector.fit(embeddings).is_rare.nonzero().squeeze(1)
        tensor([30])
    """

    def __init__(
        self,
        scorer: Scorer | None = None,
        threshold: Threshold | None = None,
        *,
        smoothing: float = 0.9,
    ) -> None:
        self.scorer: Scorer = FusedDistance() if scorer is None else scorer
        self.threshold: Threshold = FlagRate() if threshold is None else threshold
        for part, seam, made in (
            (self.scorer, Scorer, "a scorer such as KNNDistance(k=10)"),
            (self.threshold, Threshold, "a threshold such as FlagRate(0.05)"),
        ):
            if not isinstance(part, seam) or isinstance(part, type):
                raise OptionError(f"OODDetector expects {made}, got {part!r}.")
        self._history = ScoreHistory(smoothing)
        self._watch = ReferenceWatch()
        self._first_threshold = self.threshold.state_dict()  # to begin anew with

    def __repr__(self) -> str:
        smoothing = self._history.smoothing
        return f"OODDetector({self.scorer!r}, {self.threshold!r}, smoothing={smoothing})"

    def fit(self, embeddings: ArrayLike, ids: ArrayLike | Sequence[int] | None = None) -> Detection:
        """Forget everything, learn a whole set, and say which of its rows are rare.

        Every row is scored against the others and never against itself, nor against rows with the
        same id. The threshold is calibrated on those scores.

        Args:
            embeddings: Floats of shape (n, dim), torch or numpy, one row per image.
            ids: (n,) integers. Give the same id to sibling crops of one image. Later calls that
                pass ids leave out the row of the same id.

        Returns:
            Scores and flags of the n rows, in their order.

        Raises:
            EmbeddingShapeError: If ``embeddings`` is not (n, dim), or ids do not match it.
            NonFiniteError: If every row holds NaN or infinity.
            NotEnoughReferenceError: If there are too few rows for the scorer.
        """
        rows, own_ids, valid = enter(embeddings, ids, "OODDetector.fit")
        if not bool(valid.any()):
            raise NonFiniteError(
                f"OODDetector.fit got {len(rows)} rows and every one holds "
                f"{what_is_not_finite(embeddings, rows)}; check the encoder that made them."
            )
        kept, kept_ids = select(rows, own_ids, valid)
        kept_scores = self.scorer.fit(kept, kept_ids).float()
        self.threshold.fit(kept_scores)
        self._history.clear()
        self._watch.clear()
        self._look(now=True)
        return self._said(spread(kept_scores, valid), self.threshold.value)

    def score(self, embeddings: ArrayLike, ids: ArrayLike | Sequence[int] | None = None) -> Tensor:
        """Measure how rare each row is against what has been seen; changes nothing.

        Args:
            embeddings: Floats of shape (batch, dim), torch or numpy.
            ids: (batch,) integers; a reference row of the same id is left out.

        Returns:
            Float32 of shape (batch,), larger is rarer, NaN for rows with NaN or infinity.

        Raises:
            EmbeddingShapeError: If ``embeddings`` is not (batch, dim) of the reference's width.
            NotEnoughReferenceError: If too few reference embeddings have been seen.
        """
        rows, own_ids, valid = enter(embeddings, ids, "OODDetector.score")
        return self._score(rows, own_ids, valid)

    def detect(
        self, embeddings: ArrayLike, ids: ArrayLike | Sequence[int] | None = None
    ) -> Detection:
        """Score and judge each row; changes nothing. Arguments and errors as for ``score``.

        Each row is judged alone, by ``threshold.value``. In ``observe`` a budget may also depend on
        what else is in the batch.
        """
        rows, own_ids, valid = enter(embeddings, ids, "OODDetector.detect")
        return self._said(self._score(rows, own_ids, valid), self.threshold.value)

    def observe(
        self,
        embeddings: ArrayLike,
        ids: ArrayLike | Sequence[int] | None = None,
        *,
        is_replay: ArrayLike | Sequence[bool] | None = None,
    ) -> Detection:
        """Score and judge a batch against what came before, then learn it.

        Args:
            embeddings: Floats of shape (batch, dim), torch or numpy.
            ids: (batch,) integers, each row's place in the dataset. A sample is then never
                compared with its own earlier embedding, and a revisit replaces it.
            is_replay: (batch,) bool, true where the row was mixed in from a buffer. Such rows are
                scored and refreshed, but do not move the threshold: they are rare because they
                were chosen, and would use up the budget of the rate. Without ids they are not
                learned at all, since mere repetition would make them look common.

        Returns:
            Scores and flags of the batch; with ids, a score is the mean over the sample's visits
            that ``smoothing`` describes. While too little has been seen, scores are NaN, the
            threshold is infinity, and nothing is rare.

        Raises:
            EmbeddingShapeError: If shapes do not fit each other or what was seen before.
            OptionError: If ids are given and were not before, or the other way round.
        """
        rows, own_ids, valid = enter(embeddings, ids, "OODDetector.observe")
        bank = self._bank()
        if bank is not None:
            bank.check_consistent(own_ids, caller="OODDetector.observe")
        replayed = as_mask(is_replay, len(rows), "OODDetector.observe")
        if own_ids is not None:
            self._begin_anew_if_restarted(rows, own_ids, valid)
        if self.scorer.ready and bool(valid.any()):
            try:
                scores = self._score(rows, own_ids, valid)
            except NotEnoughReferenceError:  # all that was seen are siblings of these rows
                scores = rows.new_full((len(rows),), torch.nan)
        else:
            scores = rows.new_full((len(rows),), torch.nan)
        blended = scores if own_ids is None else self._history.blend(scores, own_ids)
        # The ranks share one budget, and replays are no part of it.
        replayed = distributed.gather_rows(replayed).to(rows.device)
        judged = distributed.gather_rows(blended)
        judged = judged[torch.isfinite(judged) & ~replayed]
        value = (
            self.threshold.value_for(judged)
            if isinstance(self.threshold, StreamThreshold)
            else self.threshold.value
        )
        # Score before update: against itself, every distance is zero.
        if self._learn(rows, own_ids, valid, replayed, scores, _judge(judged, value)):
            self._look()
        return self._said(blended, value)

    def health(self) -> dict[str, float]:
        """Numbers to log: how well what was seen serves as a reference.

        Returns:
            ``threshold``, ``histories`` (ids with earlier scores), ``is_collapsed`` and
            ``restarts``, ``revisit_agreement`` (the share of other rows that lie farther from a
            sample seen again than its own earlier row; NaN before any was); and of a bank
            ``bank_rows``, ``bank_capacity``, ``age_p50`` and ``age_p95`` in rows added since,
            ``effective_rank``, and ``duplicate_share``, the share of rows that repeat another.
            Takes some 50 ms; call it when you log, not at every step.
        """
        health = {"threshold": self.threshold.value, "histories": float(len(self._history))}
        health |= self._watch.health()
        bank = self._bank()
        return health if bank is None else health | bank_health(bank)

    def _bank(self) -> ReferenceBank | None:
        bank = getattr(self.scorer, "bank", None)
        return bank if isinstance(bank, ReferenceBank) else None

    def _said(self, scores: Tensor, value: float) -> Detection:
        """Judge, and call nothing rare where distances mean nothing."""
        return _judge(scores, math.inf if self._watch.is_collapsed else value)

    def _look(self, *, now: bool = False) -> None:
        bank = self._bank()
        if bank is None:
            return
        _warn(self._watch.look(bank, now=now))
        neighbors, rate = (
            getattr(part, name, None)
            for part, name in ((self.scorer, "neighbors"), (self.threshold, "rate"))
        )
        # A bank that is still filling says nothing of how large the reference will be.
        is_settled = now or len(bank) >= bank.capacity
        if is_settled and isinstance(neighbors, int) and isinstance(rate, float):
            _warn(self._watch.fits(neighbors, rate, len(bank)))

    def _begin_anew_if_restarted(self, rows: Tensor, ids: Tensor, valid: Tensor) -> None:
        bank = self._bank()
        if bank is None:
            return
        agreement = self._watch.compare(rows, ids, bank).where(valid, torch.nan)
        if not self._watch.seems_restarted(distributed.gather_rows(agreement)):
            return
        # All ranks come here or none, since all were told the same.
        everyone, usable = distributed.gather_rows(rows), distributed.gather_rows(valid)
        message = self._watch.restarted(everyone[usable])
        if message is not None:
            bank.clear()
            self._history.clear()
            self.threshold.load_state_dict(self._first_threshold)
            _warn(message)

    def _learn(
        self,
        rows: Tensor,
        ids: Tensor | None,
        valid: Tensor,
        replayed: Tensor,
        raw: Tensor,
        judged: Detection,
    ) -> bool:
        """Learn what all ranks have seen; ``replayed`` and ``judged`` are of all ranks already.

        Returns whether the scorer learned anything.
        """
        rows, valid = distributed.gather_rows(rows), distributed.gather_rows(valid)
        if ids is not None:
            ids, raw = distributed.gather_rows(ids), distributed.gather_rows(raw)

        # The scorer first: should it refuse the rows, nothing else has moved either.
        learned = valid if ids is not None else valid & ~replayed
        has_learned = bool(learned.any())
        if has_learned:
            self.scorer.update(*select(rows, ids, learned))
        if len(judged.scores):
            self.threshold.update(judged.scores, judged.is_rare)
        if ids is not None:
            earlier = self._history.means(ids).to(raw.device)
            self._history.update(raw, ids)
            again = torch.isfinite(earlier) & torch.isfinite(raw) & ~replayed
            if isinstance(self.threshold, StreamThreshold) and bool(again.any()):
                self.threshold.update_revisits(earlier[again], raw[again])
        return has_learned

    def _score(self, rows: Tensor, ids: Tensor | None, valid: Tensor) -> Tensor:
        if not bool(valid.any()):
            return rows.new_full((len(rows),), torch.nan)
        return spread(self.scorer.score(*select(rows, ids, valid)).float(), valid)

    def state_dict(self) -> State:
        """Everything needed to go on as if never stopped; loads with ``weights_only=True``."""
        content: State = {
            "scorer": self.scorer.state_dict(),
            "threshold": self.threshold.state_dict(),
            "history": self._history.state_dict(),
            "watch": self._watch.state_dict(),
        }
        return sealed_state("OODDetector", 1, content)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state; scorer and threshold must be of the saved class and settings.

        Raises:
            StateMismatchError: Naming what differs.
        """
        keys = ("scorer", "threshold", "history", "watch")
        content = open_state(state, kind="OODDetector", version=1, keys=keys)
        threshold, history = self.threshold.state_dict(), self._history.state_dict()
        watch = self._watch.state_dict()
        try:
            self.threshold.load_state_dict(content["threshold"])
            self._history.load_state_dict(content["history"])
            self._watch.load_state_dict(content["watch"])
            self.scorer.load_state_dict(content["scorer"])
        except Exception:
            # All or nothing; the scorer, last and largest, keeps to that by itself.
            self.threshold.load_state_dict(threshold)
            self._history.load_state_dict(history)
            self._watch.load_state_dict(watch)
            raise

    def save(self, path: str | Path) -> None:
        """Write the state to a file, whole or not at all.

        Raises:
            OptionError: If nothing can be written there.
        """
        with replacing(path, caller="OODDetector.save") as part:
            torch.save(self.state_dict(), part)

    def load(self, path: str | Path) -> Self:
        """Take over the state in a file that ``save`` wrote, and return the detector.

        Raises:
            FileFormatError: If the file is missing, damaged, or not one that torch can load safely.
            StateMismatchError: If it holds another state.
        """
        caller = "OODDetector.load"
        kind = file_kind(path, caller=caller)
        if kind != "torch":
            raise FileFormatError(
                f"{caller} expects a file that OODDetector.save wrote, and {path} is a {kind} file."
            )
        # Not mapped, since the file may be saved anew while the detector lives.
        self.load_state_dict(read_torch(Path(path), caller=caller, mmap=False))
        return self


def _warn(message: str | None) -> None:
    if message is not None:
        # About the user's call, some frames up: fit or observe, and the methods under it.
        warnings.warn(message, RaremixWarning, stacklevel=4)


def _judge(scores: Tensor, value: float) -> Detection:
    return Detection(scores=scores, is_rare=scores > value, threshold=value)
