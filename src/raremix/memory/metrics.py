"""Numbers that tell how a buffer is doing."""

import numpy as np

from raremix.memory.held import Held
from raremix.memory.replays import Replays
from raremix.memory.store import Store

__all__ = ["described"]

_LOOKED_AT = 512


def described(store: Store, replays: Replays, step: int) -> dict[str, float]:
    """See ``RareMemoryBuffer.metrics``."""
    held, last = store.held, store.replayed_last
    rows, count = held.rows, max(len(held), 1)
    ages = np.maximum(step - rows["born"], 0) if len(held) else np.zeros(1)
    return {
        "size": float(len(held)),
        "bytes": float(store.pixels.nbytes),
        **{name: float(value) for name, value in store.counts.items()},
        "uses_mean": float(rows["uses"].sum()) / count,
        "uses_max": float(rows["uses"].max(initial=0)),
        "age_p50": float(np.quantile(ages, 0.5)),
        "age_p95": float(np.quantile(ages, 0.95)),
        "score_mean": float(rows["score"].sum()) / count,
        "unique_key_ratio": len(set(last)) / len(last) if last else float("nan"),
        "neighbour_similarity": _similarity(held),
        "lag": float(replays.timeline.lag),
        "draw_ahead_max": float(replays.ahead_most),
        "outside": float(replays.outside),
    }


def _similarity(held: Held) -> float:
    features = held.features
    if features is None or len(held) < 2:
        return float("nan")
    some = features[:: max(1, len(features) // _LOOKED_AT)]
    if len(some) < 2:
        some = features
    cosines = some @ some.T
    np.fill_diagonal(cosines, -2.0)
    return float(cosines.max(axis=1).mean())
