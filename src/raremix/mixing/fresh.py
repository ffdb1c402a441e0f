"""Which rows of a batch give way to entries of a buffer, and what its rows are then.

Ids and entries only; where their pixels lie is in ``layouts``.
"""

import torch
from torch import Tensor

from raremix.errors import LoaderError
from raremix.memory.entries import BufferEntries
from raremix.mixing.batch import FILLER, Batch, fresh_batch

__all__ = ["described", "joined", "rows_that_give_way"]


def rows_that_give_way(ids: Tensor, keys: Tensor, shuffled: Tensor) -> Tensor:
    """A row for each key: that of the same id if there is one, so that no id comes twice.

    Args:
        ids: (batch,) int64.
        keys: (n,) int64, none twice, at most as many as ids.
        shuffled: (batch,) the rows in the order in which they give way otherwise.

    Returns:
        (n,) int64, none twice.
    """
    row_of = {id: row for row, id in enumerate(ids.tolist())}
    own = [row_of.get(key) for key in keys.tolist()]
    taken = set(own)
    free = iter([row for row in shuffled.tolist() if row not in taken])
    places = [next(free) if row is None else row for row in own]
    return torch.tensor(places, dtype=torch.int64, device="cpu")


def joined(first: BufferEntries, second: BufferEntries) -> BufferEntries:
    """Keys, scores and crops of both.

    Raises:
        LoaderError: If their crops differ in shape.
    """
    if not len(first) or not len(second):
        return first if len(first) else second
    assert first.crops is not None
    assert second.crops is not None
    if first.crops.shape[1:] != second.crops.shape[1:]:
        raise LoaderError(
            f"CropMixer got crops of shape {tuple(first.crops.shape[1:])} from the buffer and of "
            f"{tuple(second.crops.shape[1:])} from pixels=; add what pixels= returns to the buffer."
        )
    return BufferEntries(
        torch.cat([first.keys, second.keys]),
        torch.cat([first.scores, second.scores]),
        torch.cat([first.crops, second.crops]),
    )


def described(step: int, ids: Tensor, drawn: BufferEntries, written: Tensor) -> Batch:
    """Batch number ``step`` of these ids, after rows were written.

    Of the rows ``written`` the first are those of the entries drawn, the others are fillers.
    """
    places, fillers = written[: len(drawn)], written[len(drawn) :]
    batch = fresh_batch(step, ids.clone().numpy())
    batch.ids[places], batch.is_replay[places], batch.entry[fillers] = drawn.keys, True, FILLER
    # A source of the user's own may not know these.
    for column, known in (
        (batch.entry, drawn.entry),
        (batch.probability, drawn.probability),
        (batch.age, drawn.age),
    ):
        if known is not None:
            column[places] = known
    return batch
