"""How many rows of a batch are replays, and what that makes of widths and lengths.

Arithmetic only; it knows no ids.
"""

from typing import Literal

from raremix.errors import OptionError

__all__ = ["Mode", "Plan"]

Mode = Literal["replace", "stretch", "extend"]


class Plan:
    """What a mode does to batches of ``batch_size`` rows.

    Args:
        mode: See ``BufferedMixSampler``.
        batch_size: Rows of a full batch of the base; None if the base yields batches.
        replay: Share of replays, in [0, 1).

    Attributes:
        base_rows: How many rows of the base a full batch takes; None like ``batch_size``.
        width: How many rows a full batch has; None like ``batch_size``.
    """

    def __init__(self, mode: Mode, batch_size: int | None, replay: float) -> None:
        self.mode, self.replay, self._full = mode, replay, batch_size
        self.base_rows = self.width = batch_size
        if batch_size is not None and batch_size >= 1 and mode != "replace":
            count = self._of_a_full_batch(batch_size)
            if mode == "stretch":
                self.base_rows = batch_size - count
            else:
                self.width = batch_size + count

    def check_base(self, known_batch_size: int | None) -> None:
        """Refuse what the mode cannot do with a base that yields batches.

        Raises:
            OptionError: Saying what to do.
        """
        if self._full is None and self.mode == "stretch":
            raise OptionError(
                "BufferedMixSampler cannot stretch a base that yields batches, which would have to "
                'be cut anew; pass mode="extend", or a sampler of single ids and a batch_size.'
            )
        if self._full is None and known_batch_size is not None:
            more = self._of_a_full_batch(known_batch_size) if self.mode == "extend" else 0
            self.width = known_batch_size + more

    def _of_a_full_batch(self, width: int) -> int:
        if self.replay == 0:
            return 0
        count = max(round(self.replay * width), 1)
        return count if self.mode == "extend" else min(count, width - 1)

    def replays(self, fresh: int) -> int:
        """How many replays go with ``fresh`` rows of the base."""
        if self.replay == 0:
            return 0
        if self.mode == "replace":
            count = round(self.replay * fresh)
            # A full batch always has room for one; a short last one may be too short for its share.
            if fresh == self._full or self._full is None:
                count = max(count, 1)
            return min(count, fresh - 1)
        if self._full is None:
            return self._of_a_full_batch(fresh)
        full = self._of_a_full_batch(self._full)
        assert self.base_rows is not None
        return full if fresh == self.base_rows else round(full * fresh / self.base_rows)

    def rows(self, base: int) -> int:
        """How many rows an epoch has whose base has ``base``, an incomplete batch included."""
        if self.mode == "replace" or self.replay == 0:
            return base
        if self.base_rows is None or self.width is None:
            raise TypeError(
                "BufferedMixSampler cannot count the rows of batches whose number it does not know; "
                "count its batches instead."
            )
        batches, rest = divmod(base, self.base_rows)
        return batches * self.width + (rest + self.replays(rest) if rest else 0)
