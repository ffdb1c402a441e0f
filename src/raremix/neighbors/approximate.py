"""Rarity in banks too large to search exactly: an inverted index first, the rarest checked exactly.

It knows FAISS's inverted lists. What is exact, it leaves to ``nearest``.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from raremix.errors import NotEnoughReferenceError, OptionError
from raremix.inputs import (
    ArrayLike,
    as_embeddings,
    as_ids,
    check_embeddings,
    finite_rows,
    not_finite,
)
from raremix.neighbors.blocks import row_blocks
from raremix.neighbors.faiss_door import load_faiss
from raremix.neighbors.index import (
    Metric,
    check_id_window,
    check_window_has_ids,
    most_siblings,
    unit_rows,
)
from raremix.neighbors.proof import are_siblings
from raremix.neighbors.search import nearest
from raremix.options import check_choice, check_count, check_number
from raremix.seeds import seeded_generator

__all__ = ["Agreement", "ApproximateIndex", "ApproximateScores", "IndexKind"]

IndexKind = Literal["ivf", "ivfpq"]

_PROBES = 8
_CODEWORDS = 256  # of one byte of a product quantiser
_CODE_ROUNDS = 10  # of k-means for each byte, as for the lists; FAISS's 25 take minutes
# Codes confuse near rows, so that many more than k are measured again: see ApproximateIndex.
_SPREAD = 4
_CACHED = 2**23  # bytes of rows that are measured at once; more only leaves the cache


@dataclass(frozen=True)
class Agreement:
    """How far approximate scores may be trusted, measured on the queries at hand.

    Attributes:
        kept: The share of the approximate top list that stays in the exact one.
        proven: The share of the exact top list that no query searched only approximately can
            displace, whatever its exact score.
        recall: The share of the k nearest that the index finds, over a random sample.
        recall_interval: Its 95 % interval.
        sampled: How many queries that sample holds.
        short: How many queries the index gave fewer than k neighbours.
    """

    kept: float
    proven: float
    recall: float
    recall_interval: tuple[float, float]
    sampled: int
    short: int


@dataclass(frozen=True)
class ApproximateScores:
    """The distance of each query to its k-th neighbour, exact where it matters.

    Attributes:
        scores: (n,) float32, larger is rarer. Where not exact, the true distance is smaller or the
            same, never larger.
        is_exact: (n,) bool, whether the score is the exact one.
        agreement: How far the others may be trusted.
    """

    scores: Tensor
    is_exact: Tensor
    agreement: Agreement


class ApproximateIndex:
    """An inverted index over a bank, for finding the rarest of very many queries.

    The bank is cut into lists around k-means centres, and a query looks into the few lists nearest
    to it. The distances to what it finds there are measured from the rows themselves. So, but for
    rounding, a score can only come out too large, and a query whose score is small is certainly not
    rare. The rarest are searched once more, exactly.

    There is no graph index (HNSW) here. It leaves out the points that its walk never reaches, and
    those look rare without being so: in our test, 95 % of what FAISS's default one called rarest.

    Args:
        bank: Finite floats of shape (m, dim), torch or numpy; a memory-mapped array is read in
            parts. It is kept, not copied, and must not change.
        ids: (m,) integers, so that queries can leave out their own row and its siblings.
        id_window: Rows whose ids differ from the query's by at most so much are siblings too, as in
            ``nearest``. It needs ids.
        kind: ``"ivf"`` keeps a float32 copy of the bank inside the index; ``"ivfpq"`` keeps
            ``codes`` bytes a row, measures four times as many rows, and finds fewer of the nearest.
        lists: Into how many lists the bank is cut; the square root of m if not given.
        probes: How many lists a query looks into; 8 if not given.
        codes: Bytes a row for ``"ivfpq"``, a divisor of dim; about dim / 8 if not given.
        metric: ``"euclidean"`` or ``"cosine"``, as in ``nearest``.
        training_rows: The centres are made from all rows of a bank of up to this size, so that the
            whole tail takes part, and from a random sample of so many rows of a larger one. Training
            holds a copy of them in memory. Codes are made from at most 65,536 of them.
        seed: Of the sample and of k-means.
        max_memory: Bytes of working memory to aim for, beside the index and the training.

    Raises:
        EmbeddingShapeError: If the bank is not (m, dim), is not finite, or ids do not fit it.
        EngineUnavailableError: If FAISS cannot run here.
        OptionError: If an option is out of range.

    Source:
        Jégou et al., Product Quantization for Nearest Neighbor Search, TPAMI 2011, in the form of
        FAISS. Ranking by a distance that can only be too large, and searching on only where it is
        large: Bay and Schwabacher, Mining Distance-Based Outliers in Near Linear Time, KDD 2003.

    Example:
        >>> bank = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
        >>> bank[7] += 9.0
        >>> found = ApproximateIndex(bank, ids=range(2000)).score(bank, k=5, query_ids=range(2000))
        >>> int(found.scores.argmax()), bool(found.is_exact[7]), found.agreement.proven
        (7, True, 1.0)
    """

    def __init__(
        self,
        bank: ArrayLike,
        ids: ArrayLike | Sequence[int] | None = None,
        *,
        id_window: int = 0,
        kind: IndexKind = "ivf",
        lists: int | None = None,
        probes: int | None = None,
        codes: int | None = None,
        metric: Metric = "euclidean",
        training_rows: int = 2**18,
        seed: int = 0,
        max_memory: int = 2**29,
    ) -> None:
        caller = "ApproximateIndex"
        self.id_window = check_id_window(caller, id_window)
        check_window_has_ids(caller, self.id_window, ids)
        check_choice(caller, "kind", kind, get_args(IndexKind))
        check_choice(caller, "metric", metric, get_args(Metric))
        self.kind, self.metric = kind, metric
        self.max_memory = check_count(caller, "max_memory", max_memory, least=2**20)
        self.training_rows = check_count(caller, "training_rows", training_rows, least=1)
        self.seed = check_count(caller, "seed", seed, least=0)
        check_embeddings(bank, caller=caller)
        self.dim = bank.shape[1]
        self._bank = bank
        self._ids = None if ids is None else as_ids(ids, caller=caller, length=len(bank))
        self._siblings = 0
        if self._ids is not None:
            self._siblings = most_siblings(self._ids, self.id_window)
        size = max(1, round(math.sqrt(len(bank)))) if lists is None else lists
        self.lists = check_count(caller, "lists", size, least=1)
        wanted = min(self.lists, _PROBES) if probes is None else probes
        self.probes = check_count(caller, "probes", wanted, least=1)
        if self.lists > min(len(bank), self.training_rows):
            raise OptionError(
                f"{caller} expects at most as many lists as rows to make them from, got "
                f"lists={self.lists} for {len(bank)} rows and training_rows={training_rows}."
            )
        if self.probes > self.lists:
            raise OptionError(
                f"{caller} expects at most as many probes as lists, got probes={self.probes} for "
                f"lists={self.lists}."
            )
        if codes is not None and kind != "ivfpq":
            raise OptionError(
                f'{caller} of kind "{kind}" keeps whole rows and no codes, got codes={codes}; leave '
                'it out, or pass kind="ivfpq".'
            )
        self.codes = self._codes(codes) if kind == "ivfpq" else None
        self._centre, self._scale = self._measures()
        self._index = self._build()

    def __repr__(self) -> str:
        return (
            f"ApproximateIndex({len(self._bank)} rows of {self.dim}, kind={self.kind!r}, "
            f"lists={self.lists}, probes={self.probes}, metric={self.metric!r})"
        )

    def score(
        self,
        queries: ArrayLike,
        k: int,
        *,
        query_ids: ArrayLike | Sequence[int] | None = None,
        top: float = 0.01,
        rescore: float = 0.05,
        sample: int = 200,
    ) -> ApproximateScores:
        """Measure how rare each query is; larger is rarer.

        Args:
            queries: Finite floats of shape (n, dim).
            k: Which neighbour's distance is the score, at least 1.
            query_ids: (n,) integers. Rows of the bank that are siblings of the query are left out.
            top: The share of the queries, in (0, 1], that is the top list of the agreement.
            rescore: The share of the queries to search exactly, the rarest first; ``top`` or more.
                Raise it if ``agreement.proven`` is below 1. A query for which the index finds fewer
                than k neighbours has no approximate score and is always searched exactly.
            sample: How many random queries to search exactly for the recall.

        Returns:
            The scores, which of them are exact, and the agreement, on the device of ``queries``.

        Raises:
            EmbeddingShapeError: If ``queries`` is not (n, dim), is not finite, or ids do not fit.
            NotEnoughReferenceError: If a query has fewer than k rows that are not its own.
            EngineUnavailableError: If FAISS cannot run here.
            OptionError: If an option is out of range, or query ids meet a bank without ids.
        """
        caller = "ApproximateIndex.score"
        load_faiss(caller)  # refuses a worker or a forked process
        check_count(caller, "k", k, least=1)
        check_number(caller, "top", top, above=0.0, most=1.0)
        check_number(caller, "rescore", rescore, least=top, most=1.0)
        check_count(caller, "sample", sample, least=1)
        check_embeddings(queries, caller=caller, dim=self.dim)
        if k > len(self._bank):
            raise NotEnoughReferenceError(
                f"{caller} was asked for k={k} neighbours in a bank of {len(self._bank)} rows; "
                "add rows or lower k."
            )
        ids = None
        if query_ids is not None:
            if self._ids is None:
                raise OptionError(
                    f"{caller} got query_ids, but the index was made without ids, so a row could "
                    "not be told from itself; pass ids to ApproximateIndex as well."
                )
            ids = as_ids(query_ids, caller=caller, length=len(queries))
        n = len(queries)
        step = max(1, self.max_memory // (16 * (self.dim + self._count(k))))
        starts = range(0, n, step)
        parts = [torch.arange(start, min(start + step, n)) for start in starts]
        bounds = torch.cat([self._search(queries, rows, k, ids)[:, -1] for rows in parts])
        is_short = torch.isinf(bounds)
        # Without an approximate score a query is not in the approximate top list.
        ranked = bounds.masked_fill(is_short, -1.0).argsort(descending=True, stable=True)
        drawn = torch.randperm(n, generator=seeded_generator(self.seed, n))[:sample]
        first = ranked[: math.ceil(rescore * n)]
        chosen = torch.unique(torch.cat([is_short.nonzero()[:, 0], first, drawn]))
        distances = self._search_exactly(queries, chosen, k, ids)

        scores = bounds.clone()
        scores[chosen] = distances[:, -1]
        is_exact = torch.zeros(n, dtype=torch.bool).index_fill_(0, chosen, True)
        length = math.ceil(top * n)
        exact_top = chosen[scores[chosen].argsort(descending=True, stable=True)[:length]]
        others = bounds[~is_exact]
        ceiling = others.amax() if len(others) else torch.tensor(0.0)
        found = torch.cat(
            [self._search(queries, part, k, ids) for part in torch.split(drawn, step)]
        )
        reach = distances[torch.searchsorted(chosen, drawn), -1:]
        # The index's distances are those of real rows too, but rounded differently.
        recall = float((found <= reach * (1 + 1e-5) + 1e-6 * self._scale).float().mean())
        agreement = Agreement(
            kept=float(torch.isin(ranked[:length], exact_top).float().mean()),
            proven=float((scores[exact_top] >= ceiling).float().mean()),
            recall=recall,
            recall_interval=_wilson(recall, len(drawn)),
            sampled=len(drawn),
            short=int(is_short.sum()),
        )
        home = queries.device if isinstance(queries, Tensor) else torch.device("cpu")
        return ApproximateScores(scores.to(home), is_exact.to(home), agreement)

    def _codes(self, codes: int | None) -> int:
        if codes is None:
            codes = max(c for c in range(1, max(1, self.dim // 8) + 1) if self.dim % c == 0)
        check_count("ApproximateIndex", "codes", codes, least=1)
        if self.dim % codes:
            raise OptionError(
                f"ApproximateIndex expects codes to divide the width {self.dim}, got {codes}."
            )
        if min(len(self._bank), self.training_rows) < _CODEWORDS:
            raise OptionError(
                f'ApproximateIndex of kind "ivfpq" expects at least {_CODEWORDS} rows to make its '
                f'codes from, got {min(len(self._bank), self.training_rows)}; use kind="ivf".'
            )
        return codes

    def _raw(self, source: ArrayLike, rows: Tensor) -> Tensor:
        """Rows of the bank or of the queries, (len(rows), dim) float32, where they are."""
        picked = (
            source.index_select(0, rows.to(source.device))
            if isinstance(source, Tensor)
            else source[rows.numpy()]
        )
        return as_embeddings(picked, caller="ApproximateIndex", dim=self.dim)

    def _rows(self, source: ArrayLike, rows: Tensor) -> Tensor:
        """The same on the CPU, of unit length if the metric asks for it."""
        part = self._raw(source, rows).cpu()
        return unit_rows(part) if self.metric == "cosine" else part

    def _blocks(self) -> Iterator[Tensor]:
        """The bank from its first row to its last, a part at a time."""
        caller = "ApproximateIndex"
        for block in row_blocks(self._bank, self.max_memory // 4, caller=caller, dim=self.dim):
            yield unit_rows(block.cpu()) if self.metric == "cosine" else block.cpu()

    def _measures(self) -> tuple[Tensor, float]:
        """The mean row of the bank, and the largest entry of any row beside it."""
        total = torch.zeros(self.dim, dtype=torch.float64)
        low, high = torch.full((2, self.dim), torch.inf) * torch.tensor([[1.0], [-1.0]])
        for block in self._blocks():
            _check_finite(block)
            total += block.sum(dim=0, dtype=torch.float64)
            low, high = low.minimum(block.amin(dim=0)), high.maximum(block.amax(dim=0))
        centre = (total / len(self._bank)).float()
        scale = float(torch.maximum(high - centre, centre - low).amax())
        return centre, scale if scale > 0 else 1.0

    def _shown(self, rows: Tensor) -> Any:
        """What FAISS is shown: centred, since far from the origin its distances have no digits."""
        return ((rows - self._centre) / self._scale).contiguous().numpy()

    def _build(self) -> Any:
        faiss = load_faiss("ApproximateIndex")
        quantizer = faiss.IndexFlatL2(self.dim)
        if self.codes is None:
            index = faiss.IndexIVFFlat(quantizer, self.dim, self.lists)
            clusterings = [index.cp]
        else:
            index = faiss.IndexIVFPQ(quantizer, self.dim, self.lists, self.codes, 8)
            clusterings = [index.cp, index.pq.cp]
            index.pq.cp.niter = _CODE_ROUNDS
        for clustering in clusterings:
            clustering.seed = self.seed % 2**31
            clustering.min_points_per_centroid = 1  # FAISS would print a warning below 39
        # Of more than 256 rows a centre FAISS would take a sample, without the tail perhaps.
        index.cp.max_points_per_centroid = self.training_rows
        shown = torch.arange(len(self._bank))
        if len(shown) > self.training_rows:
            generator = seeded_generator(self.seed, len(shown))
            shown = torch.randperm(len(shown), generator=generator)[: self.training_rows]
            shown = shown.sort().values  # a memory-mapped bank is read in order
        index.train(self._shown(self._rows(self._bank, shown)))
        for block in self._blocks():
            index.add(self._shown(block))
        index.nprobe = self.probes
        return index

    def _search(self, queries: ArrayLike, rows: Tensor, k: int, ids: Tensor | None) -> Tensor:
        """Distances (len(rows), k) to rows that are really there, infinite where too few are."""
        own = self._rows(queries, rows)
        _check_finite(own)
        squared, candidates = map(
            torch.from_numpy, self._index.search(self._shown(own), self._count(k))
        )
        if self.codes is not None:
            squared = self._measure(own, candidates)
        is_none = candidates < 0
        if ids is not None and self._ids is not None:
            known = self._ids[candidates.clamp_min(0)]
            is_none |= are_siblings(known, ids[rows, None], self.id_window)
        ascending = squared.masked_fill(is_none, torch.inf).sort(dim=1).values
        return ascending[:, :k].sqrt() * self._scale

    def _count(self, k: int) -> int:
        """How many candidates to ask for."""
        spread = 1 if self.codes is None else _SPREAD
        return min(len(self._bank), k * spread + self._siblings)

    def _measure(self, own: Tensor, candidates: Tensor) -> Tensor:
        """Squared distances (n, count) in units of the scale, which codes give only roughly."""
        step = max(1, _CACHED // (4 * candidates.shape[1] * self.dim))
        squared = torch.empty(candidates.shape)
        for start in range(0, len(own), step):
            part = candidates[start : start + step].clamp_min(0)
            near = self._rows(self._bank, part.flatten()).view(*part.shape, self.dim)
            difference = near.sub_(own[start : start + step, None]).div_(self._scale)
            squared[start : start + step] = difference.square_().sum(dim=2)
        return squared

    def _search_exactly(
        self, queries: ArrayLike, rows: Tensor, k: int, ids: Tensor | None
    ) -> Tensor:
        """The true distances, (len(rows), k)."""
        own = self._raw(queries, rows)
        own = own.to(self._bank.device if isinstance(self._bank, Tensor) else "cpu")
        found = nearest(
            own,
            self._bank,
            k,
            query_ids=None if ids is None else ids[rows],
            bank_ids=None if ids is None else self._ids,
            id_window=0 if ids is None else self.id_window,
            metric=self.metric,
            max_memory=self.max_memory,
        )
        return found.distances.cpu()


def _check_finite(rows: Tensor) -> None:
    if not bool(finite_rows(rows).all()):
        raise not_finite("ApproximateIndex")


def _wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a mean of n values in [0, 1], wide enough for any such values.

    Source:
        Wilson, Probable Inference, JASA 1927: it is that of n values that are 0 or 1, which vary
        the most.
    """
    z = 1.959964
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
