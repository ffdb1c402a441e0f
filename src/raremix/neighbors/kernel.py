"""The compiled kernel of ``int16.c``: found at first use, called with tensors, split over threads.

It is built when the package is installed, if a C compiler is at hand. It knows no ids and proves
nothing; the lists it returns carry bounds, not distances.
"""

import ctypes
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from raremix.compiled import compiled
from raremix.errors import EngineUnavailableError

__all__ = ["Lists", "Panels", "join_self", "kernel_path", "load_kernel", "measure", "search"]

NARROW, WIDE = 6, 16
"""Rows in a panel of queries and of the bank, as in ``int16.c``."""

# What stays in the second and third cache of the processors of today, with room for the rest.
_TILE_BYTES = 256 * 2**10
_CHUNK_BYTES = 2 * 2**20
# Smaller tasks than these would cost more than they balance.
_QUERIES_PER_TASK, _ROWS_PER_TASK = 120, 4096
_TASKS_PER_THREAD = 4


def kernel_path() -> Path:
    """Where the installation puts the compiled kernel; no suffix of a Python module, as it is none."""
    return Path(__file__).with_name("int16.kernel")


class _Packed(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p) for name in ("panels", "scale", "length", "error", "square")
    ]


class _Lists(ctypes.Structure):
    _fields_ = [
        ("candidates", ctypes.c_void_p),
        ("count", ctypes.c_void_p),
        ("limit", ctypes.c_void_p),
        ("keep", ctypes.c_int32),
        ("room", ctypes.c_int32),
    ]


def _loaded() -> ctypes.CDLL | str:
    return compiled(kernel_path())


def load_kernel(caller: str) -> ctypes.CDLL:
    """Return the compiled kernel.

    Args:
        caller: The call to name in an error.

    Raises:
        EngineUnavailableError: If it was not built, or the processor cannot run it.
    """
    found = _loaded()
    if isinstance(found, str):
        raise EngineUnavailableError(
            f'{caller} cannot use engine="int16": {found}. Install raremix from source with a C '
            'compiler on the path, or name engine="torch" or "auto".'
        )
    return found


def _in_threads(tasks: Sequence[Callable[[], object]]) -> None:
    """Run the tasks on as many threads as torch would use; the kernel leaves Python's lock."""
    threads = min(torch.get_num_threads(), len(tasks))
    if threads <= 1:
        for task in tasks:
            task()
        return
    # Made anew each time: threads do not survive a fork, and starting them costs microseconds.
    with ThreadPoolExecutor(threads) as pool:
        for running in [pool.submit(task) for task in tasks]:
            running.result()


def _pairs(dim: int) -> int:
    """Pairs of dimensions in a panel, an even number."""
    return -(-dim // 4) * 2


def _address(tensor: Tensor, offset: int = 0) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr() + offset * tensor.element_size())


def _ranges(start: int, stop: int, parts: int, multiple: int) -> list[tuple[int, int]]:
    """Cut [start, stop) into at most ``parts`` ranges that begin at multiples."""
    step = -(-(stop - start) // max(parts, 1))
    step = max(-(-step // multiple) * multiple, multiple)
    return [(at, min(at + step, stop)) for at in range(start, stop, step)]


class Panels:
    """Rows as 16-bit integers in panels, with their scales, lengths and errors.

    Args:
        centre: (dim,) float32 that is taken from every row first.
        capacity: How many rows there is room for.
        width: ``NARROW`` for queries, ``WIDE`` for a bank.
    """

    # Made in inference mode, the panels could not be changed outside it.
    @torch.inference_mode(False)
    def __init__(self, centre: Tensor, capacity: int, width: int) -> None:
        self.centre = centre
        self.width = width
        self.count = 0
        self.capacity = -(-capacity // width) * width
        pairs = _pairs(len(centre))
        # Zeros lie at no distance from anything: a panel's unused rows are kept out by their square.
        self._panels = torch.zeros((self.capacity, 2 * pairs), dtype=torch.int16, device="cpu")
        numbers = torch.zeros((4, self.capacity), dtype=torch.float32, device="cpu")
        self._scale, self.length, self._error, self._square = numbers
        self._square.fill_(torch.inf)

    @property
    def dim(self) -> int:
        """Width of a row."""
        return len(self.centre)

    @staticmethod
    def bytes_per_row(dim: int) -> int:
        """Bytes a packed row takes."""
        return 4 * _pairs(dim) + 16

    def append(self, rows: Tensor) -> None:
        """Pack (n, dim) float32 rows behind those there are; their last dimension is dense."""
        first = self.count
        tasks = [
            functools.partial(self._pack, rows[start:stop], first + start, None)
            for start, stop in _ranges(0, len(rows), 2 * torch.get_num_threads(), 256)
        ]
        _in_threads(tasks)
        self.count += len(rows)

    def resize(self, count: int) -> None:
        """Use the first ``count`` rows, at most ``capacity``; new ones must be replaced next."""
        self._square[count:] = torch.inf
        self.count = count

    def replace(self, rows: Tensor, places: Tensor) -> None:
        """Pack (n, dim) float32 rows at (n,) int64 places that are in use already."""
        self._pack(rows, 0, places.contiguous())

    def _pack(self, rows: Tensor, first: int, places: Tensor | None) -> None:
        kernel = load_kernel("Panels")
        work = torch.empty(2 * _pairs(self.dim) + 16, dtype=torch.float32, device="cpu")
        kernel.pack(
            _address(rows),
            ctypes.c_int64(rows.stride(0)),
            ctypes.c_int64(len(rows)),
            ctypes.c_int64(self.dim),
            _address(self.centre),
            ctypes.c_int64(self.width),
            ctypes.c_int64(first),
            None if places is None else _address(places),
            _address(self._panels),
            _address(self._scale),
            _address(self.length),
            _address(self._error),
            _address(self._square),
            _address(work),
        )

    def least_squares(self) -> Tensor:
        """(count,) float64, no larger than the squared lengths of the rows."""
        # The length is rounded up by 2^-20 of itself, and the kernel's limits by some more.
        length = self.length[: self.count].double()
        least: Tensor = length.square() * (1 - 2.0**-18)
        return least

    def structure(self) -> _Packed:
        """What the kernel is shown; valid while this object lives."""
        return _Packed(
            *(
                part.data_ptr()
                for part in (self._panels, self._scale, self.length, self._error, self._square)
            )
        )


class Lists:
    """Room for the ``keep`` best candidates of ``count`` queries."""

    def __init__(self, count: int, keep: int) -> None:
        self.keep = keep
        room = self.room(keep)
        self._candidates = torch.empty((count, room), dtype=torch.int64, device="cpu")
        self._count = torch.zeros(count, dtype=torch.int32, device="cpu")
        # Vectors of limits are read to the end of the last panel; nothing lies under these.
        self._limit = torch.full((count + WIDE,), -torch.inf, dtype=torch.float32, device="cpu")
        self._limit[:count] = torch.inf
        self.structure = _Lists(
            self._candidates.data_ptr(), self._count.data_ptr(), self._limit.data_ptr(), keep, room
        )

    def __len__(self) -> int:
        return len(self._count)

    @staticmethod
    def room(keep: int) -> int:
        """How many candidates a list of ``keep`` takes, eight bytes each."""
        return int(load_kernel("Lists").room_for(ctypes.c_int32(keep)))

    def finish(self) -> tuple[Tensor, Tensor]:
        """Keys (count, keep) float32, least first, and rows (count, keep) int32, -1 for none."""
        kernel = load_kernel("Lists")
        keys = torch.empty((len(self), self.keep), dtype=torch.float32, device="cpu")
        rows = torch.empty((len(self), self.keep), dtype=torch.int32, device="cpu")

        def some(start: int, stop: int) -> None:
            kernel.finish(
                ctypes.byref(self.structure),
                ctypes.c_int64(start),
                ctypes.c_int64(stop),
                _address(keys, start * self.keep),
                _address(rows, start * self.keep),
            )

        ranges = _ranges(0, len(self), torch.get_num_threads(), 64)
        _in_threads([functools.partial(some, start, stop) for start, stop in ranges])
        return keys, rows


def search(queries: Panels, bank: Panels, keep: int) -> tuple[Tensor, Tensor]:
    """The ``keep`` bank rows of least key for each query, as ``Lists.finish`` returns them.

    A key is no larger than |q - b|^2 - |q|^2, so a row left out is no nearer than the square root
    of |q|^2 plus the largest key kept.
    """
    kernel = load_kernel("search")
    row_bytes = max(2 * bank.dim, 1)
    tile = max(_TILE_BYTES // row_bytes // NARROW, 1) * NARROW
    chunk = max(_CHUNK_BYTES // row_bytes // WIDE, 1) * WIDE
    shown, held = queries.structure(), bank.structure()
    # Several tasks for each thread, since other processes may slow one down: by queries where they
    # are many, and else by parts of the bank, whose lists are put together at the end.
    threads = torch.get_num_threads()
    tasks = 1 if threads == 1 else _TASKS_PER_THREAD * threads
    groups = min(tasks, max(queries.count // _QUERIES_PER_TASK, 1))
    parts = _ranges(0, bank.count, min(tasks // groups, bank.count // _ROWS_PER_TASK), WIDE)
    found: dict[tuple[int, int], Lists] = {}

    def some(start: int, stop: int, first: int, last: int) -> None:
        lists = found[start, first] = Lists(stop - start, keep)
        kernel.search(
            ctypes.byref(shown),
            ctypes.c_int64(start),
            ctypes.c_int64(stop),
            ctypes.byref(held),
            ctypes.c_int64(first),
            ctypes.c_int64(last),
            ctypes.c_int64(bank.dim),
            ctypes.c_int64(tile),
            ctypes.c_int64(chunk),
            ctypes.byref(lists.structure),
        )

    ranges = _ranges(0, queries.count, groups, NARROW)
    _in_threads([functools.partial(some, *own, *part) for own in ranges for part in parts])
    keys, rows = [], []
    for start, _ in ranges:
        of_parts = [found[start, first].finish() for first, _ in parts]
        key, row = (torch.cat(column, dim=1) for column in zip(*of_parts, strict=True))
        if len(parts) > 1:
            key, order = key.sort(dim=1, stable=True)
            key, row = key[:, :keep].contiguous(), row.gather(1, order[:, :keep])
        keys.append(key)
        rows.append(row)
    return torch.cat(keys), torch.cat(rows)


def join_self(narrow: Panels, wide: Panels, keep: int) -> tuple[Tensor, Tensor]:
    """``search`` of rows among themselves, each left out for itself, at half the products.

    Args:
        narrow: The rows, packed as queries.
        wide: The same rows, packed as a bank, with the same centre.
        keep: How many rows for each.
    """
    kernel = load_kernel("join_self")
    both = NARROW * WIDE // 2  # the least common multiple of six and sixteen
    block = max(_TILE_BYTES // max(2 * wide.dim, 1) // both, 1) * both
    lists = Lists(wide.count, keep)
    locks = torch.zeros(wide.count + WIDE, dtype=torch.uint8, device="cpu")
    next_block = torch.zeros(1, dtype=torch.int64, device="cpu")
    one, many = narrow.structure(), wide.structure()

    def some() -> None:
        kernel.join_self(
            ctypes.byref(one),
            ctypes.byref(many),
            ctypes.c_int64(wide.count),
            ctypes.c_int64(wide.dim),
            ctypes.c_int64(block),
            ctypes.byref(lists.structure),
            _address(locks),
            _address(next_block),
        )

    _in_threads([some] * torch.get_num_threads())
    return lists.finish()


def measure(queries: Tensor, bank: Tensor, candidates: Tensor) -> Tensor:
    """Squared distances (n, m) float32 of (n, dim) queries to the (n, m) int64 bank rows."""
    kernel = load_kernel("measure")
    candidates = candidates.contiguous()
    squared = torch.empty(candidates.shape, dtype=torch.float32, device="cpu")

    def some(start: int, stop: int) -> None:
        kernel.measure(
            _address(queries, start * queries.stride(0)),
            ctypes.c_int64(queries.stride(0)),
            _address(bank),
            ctypes.c_int64(bank.stride(0)),
            ctypes.c_int64(bank.shape[1]),
            ctypes.c_int64(stop - start),
            ctypes.c_int64(candidates.shape[1]),
            _address(candidates, start * candidates.shape[1]),
            _address(squared, start * candidates.shape[1]),
        )

    ranges = _ranges(0, len(queries), torch.get_num_threads(), 16)
    _in_threads([functools.partial(some, start, stop) for start, stop in ranges])
    return squared
