"""What to look at of a judged collection: the rarest frames, each moment once, and lookalikes.

It ranks and measures what is given, for pictures and lists. Which frame is rare has been decided.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raremix.errors import NonFiniteError, OptionError
from raremix.inputs import ArrayLike, as_ids, as_scores, finite_rows
from raremix.options import check_count
from raremix.regions.regions import Regions

__all__ = ["RegionNeighbour", "nearest_regions", "rarest_moments"]

_BLOCK = 2**14
"""Regions compared with the asked ones at once, widened to float32 for it."""


@dataclass(frozen=True)
class RegionNeighbour:
    """A region of another frame, and how far away it is.

    Attributes:
        row: Of the regions.
        frame: Row of their ``ids``.
        distance: Euclidean, between the two embeddings.
    """

    row: int
    frame: int
    distance: float


def rarest_moments(
    scores: ArrayLike | Sequence[float],
    moments: ArrayLike | Sequence[int],
    *,
    among: ArrayLike | None = None,
    most: int = 24,
    id_window: int = 0,
) -> list[int]:
    """The frames with the highest scores, and of near-duplicates only the highest.

    Args:
        scores: (b,) floats, one per frame; NaN is passed over.
        moments: (b,) integers, as for ``RegionDetector.fit``.
        among: (b,) bool, such as ``is_object_rare``: only these; all if not given.
        most: How many frames at most.
        id_window: Moments that differ by at most so much are near-duplicates.

    Returns:
        Rows of the frames, the highest score first.

    Raises:
        EmbeddingShapeError: If the lengths do not fit.
        OptionError: If an option is out of its range.

    Example:
        >>> rarest_moments([0.1, 3.0, 4.0, 2.0], [0, 10, 11, 20], most=2, id_window=5)
        [2, 3]
    """
    caller = "rarest_moments"
    most = check_count(caller, "most", most, least=0)
    id_window = check_count(caller, "id_window", id_window, least=0)
    values = as_scores(scores, caller=caller).double().cpu()
    own = as_ids(moments, caller=caller, length=len(values))
    wanted = ~torch.isnan(values)
    if among is not None:
        wanted &= torch.as_tensor(among, device="cpu").bool()
    order = values.argsort(descending=True, stable=True)
    return _apart(order[wanted[order]], own, most, id_window)


def nearest_regions(
    regions: Regions,
    rows: ArrayLike | Sequence[int],
    moments: ArrayLike | Sequence[int] | None = None,
    *,
    count: int = 4,
    id_window: int = 0,
) -> list[list[RegionNeighbour]]:
    """The regions of other moments that look most like some regions, by brute force.

    Regions are compared with those of their scale. Of each moment only the nearest counts, since
    the next one shows the same thing once more.

    Args:
        regions: A whole collection.
        rows: (q,) rows of ``regions``, those to find neighbours for.
        moments: (b,) integers, one per frame; ``regions.ids`` if not given.
        count: How many neighbours each, if there are so many moments.
        id_window: Moments that differ by at most so much are near-duplicates.

    Returns:
        For each row its neighbours, nearest first. They are ranked by float32 products and measured
        in float64, so of almost equal ones another may come last.

    Raises:
        EmbeddingShapeError: If moments do not fit the frames.
        NonFiniteError: If a row asked about holds NaN or infinity; others that do are passed over.
        OptionError: If there is no such row, or an option is out of its range.

    Example:
        >>> frames = torch.arange(3)
        >>> regions = Regions(
        ...     embeddings=torch.tensor([[0.0], [5.0], [1.0], [4.0], [3.0]]),
        ...     boxes=torch.tensor([[0, 0, 4, 4]]).expand(5, -1),
        ...     scale=torch.zeros(5, dtype=torch.int64),
        ...     frame=torch.tensor([0, 0, 1, 1, 2]),
        ...     scenes=torch.zeros(3, 1),
        ...     ids=frames,
        ...     sizes=torch.tensor([[4, 4]]).expand(3, -1),
        ... )
        >>> [(near.row, near.distance) for near in nearest_regions(regions, [0])[0]]
        [(2, 1.0), (4, 3.0)]
    """
    caller = "nearest_regions"
    count = check_count(caller, "count", count, least=1)
    id_window = check_count(caller, "id_window", id_window, least=0)
    asked = as_ids(rows, caller=f"{caller} with rows=")
    if len(asked) and not 0 <= int(asked.min()) <= int(asked.max()) < len(regions):
        raise OptionError(
            f"{caller} expects rows of {len(regions)} regions, got {int(asked.min())} to "
            f"{int(asked.max())}."
        )
    own = regions.ids
    if moments is not None:
        own = as_ids(moments, caller=f"{caller} with moments=", length=len(regions.ids))
    found: list[list[RegionNeighbour]] = [[] for _ in asked.tolist()]
    for scale in sorted(set(regions.scale[asked].tolist())):
        places = (regions.scale[asked] == scale).nonzero().flatten()
        queries = regions.embeddings[asked[places].to(regions.embeddings.device)].float()
        if not bool(finite_rows(queries).all()):
            raise NonFiniteError(
                f"{caller} got rows that hold NaN or infinity, which are near nothing; leave out "
                "regions whose score is NaN."
            )
        near = _nearest_of_frames(regions, queries, scale)
        for place, query, apart in zip(places.tolist(), queries, near, strict=True):
            moment = own[regions.frame[asked[place]]]
            order = apart.argsort(stable=True)
            order = order[apart[order].isfinite() & ((own[order] - moment).abs() > id_window)]
            chosen = _apart(order, own, count, id_window)
            measured = [_nearest_in(regions, query, frame, scale) for frame in chosen]
            found[place] = sorted(measured, key=lambda neighbour: neighbour.distance)
    return found


def _apart(order: Tensor, moments: Tensor, most: int, id_window: int) -> list[int]:
    """The first frames of an order of which no two are of one moment."""
    chosen: list[int] = []
    taken = torch.empty(0, dtype=torch.int64)
    for frame in order.tolist():
        if len(chosen) == most:
            break
        if not bool(((taken - moments[frame]).abs() <= id_window).any()):
            chosen.append(frame)
            taken = moments[chosen]
    return chosen


def _nearest_of_frames(regions: Regions, queries: Tensor, scale: int) -> Tensor:
    """(q, b) how near each frame's nearest region of a scale is, infinite where it has none.

    Squared distances, each less by what is the same for all frames: good for ranking.
    """
    rows = (regions.scale == scale).nonzero().flatten()
    near = torch.full((len(queries), len(regions.ids)), torch.inf)
    # Products of rows near zero lose fewer digits than those of rows far out.
    centre = queries.mean(dim=0)
    for start in range(0, len(rows), _BLOCK):
        some = rows[start : start + _BLOCK]
        block = regions.embeddings[some.to(regions.embeddings.device)].float()
        good = finite_rows(block)
        block = block[good] - centre
        key = (block.square().sum(dim=1) - 2 * (queries - centre) @ block.T).cpu()
        frame = regions.frame[some[good.cpu()]].expand(len(queries), -1)
        near.scatter_reduce_(1, frame, key, reduce="amin")
    return near


def _nearest_in(regions: Regions, query: Tensor, frame: int, scale: int) -> RegionNeighbour:
    """A frame's nearest region of a scale, measured in float64."""
    ends = torch.searchsorted(regions.frame, torch.tensor([frame, frame + 1], device="cpu"))
    rows = torch.arange(int(ends[0]), int(ends[1]), device="cpu")
    rows = rows[regions.scale[rows] == scale]
    inside = regions.embeddings[rows.to(regions.embeddings.device)].double()
    apart = (inside - query.double()).square().sum(dim=1).sqrt().nan_to_num(nan=torch.inf).cpu()
    best = int(apart.argmin())
    return RegionNeighbour(int(rows[best]), frame, float(apart[best]))
