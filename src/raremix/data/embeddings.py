"""Reads a matrix of embeddings from the files that other tools leave behind.

It checks that there is one row of numbers per image; what made the rows it does not know.
"""

from raremix.data.arrays import Array, Member, pick_array
from raremix.data.kinds import PathLike
from raremix.errors import FileFormatError

__all__ = ["pick_embeddings", "read_embeddings"]

_NAMES = ("embedding", "embeddings", "features", "x")


def read_embeddings(path: PathLike, *, member: str | None = None, mmap: bool = True) -> Array:
    """Read embeddings from a .npy, .npz or .pt file, without loading more than is asked for.

    What the file is, its content says, not its name. Of several arrays the one named
    ``embedding``, ``embeddings``, ``features`` or ``x`` is taken, else the only matrix of numbers,
    unless it is named like the weights of a network.

    Args:
        path: The file. Pickles and arrays of Python objects are refused.
        member: Which array of a .npz, or which tensor of a dict in a .pt; chosen if None.
        mmap: Map the file instead of reading it: .npy, uncompressed .npz and .pt can be larger
            than memory. Compressed members are always read.

    Returns:
        Array of shape (n, dim), of the file's own real dtype (bfloat16 becomes float32); a
        read-only map of the file where it could be mapped.

    Raises:
        FileFormatError: If the file is missing, empty, cut short, of another kind, holds no matrix
            of numbers, or several of which none is named as above.

    Example:
        >>> import tempfile, numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/all.npz", embedding=np.eye(3), label=np.arange(3))
        ...     read_embeddings(f"{folder}/all.npz", mmap=False).shape
        (3, 3)
    """
    return pick_embeddings(path, member=member, mmap=mmap)[0]


def pick_embeddings(
    path: PathLike, *, member: str | None = None, mmap: bool = True
) -> tuple[Array, str | None]:
    """Read embeddings as ``read_embeddings`` does, and say which member of the file they were.

    Returns:
        The array, and the name of its member; None where the file holds nothing else.
    """
    embeddings, chosen = pick_array(
        path,
        caller="read_embeddings",
        member=member,
        names=_NAMES,
        wanted=_is_matrix,
        what="a matrix of real numbers of shape (n, dim)",
        mmap=mmap,
    )
    if 0 in embeddings.shape:
        raise FileFormatError(
            f"read_embeddings: the matrix in {path} has shape {embeddings.shape} and holds no "
            "numbers; look at what wrote it, and write one row per image."
        )
    return embeddings, chosen


def _is_matrix(member: Member) -> bool:
    return len(member.shape) == 2 and member.kind in "fiu"
