"""What the other rooms need of torch.distributed: rank, world size, and gathering rows.

Alone, every function is a no-op. It never starts a process group, and it reads rank and world size
at the call, because samplers are often built before the group exists.
"""

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["gather_rows", "rank", "world_size"]


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """How many processes train together; 1 without a process group."""
    return dist.get_world_size() if _grouped() else 1


def rank() -> int:
    """This process's place among them; 0 without a process group."""
    return dist.get_rank() if _grouped() else 0


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows of all processes in the order of their ranks.

    A collective call: every process must make it, in the same order. The number of rows may differ
    from process to process, the other dimensions and the dtype may not.

    Args:
        rows: Tensor of shape (n, ...).

    Returns:
        Tensor of shape (sum of n, ...), equal on every process, on the device of ``rows``. Alone,
        ``rows`` itself.
    """
    if world_size() == 1:
        return rows
    home = rows.device
    on_gpu = dist.get_backend() == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    # Bool has no collective in every backend.
    payload = rows.to(torch.uint8) if rows.dtype == torch.bool else rows
    payload = payload.to(device).contiguous()

    count = torch.tensor([payload.shape[0]], dtype=torch.int64, device=device)
    counts = [torch.empty_like(count) for _ in range(world_size())]
    dist.all_gather(counts, count)
    lengths = torch.cat(counts).tolist()

    padded = payload.new_zeros((max(lengths), *payload.shape[1:]))
    padded[: payload.shape[0]] = payload
    gathered = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(gathered, padded)
    kept = [part[:length] for part, length in zip(gathered, lengths, strict=True)]
    return torch.cat(kept).to(device=home, dtype=rows.dtype)
