"""Views of many samples at once, on any device: no loop over samples, parameters of each its own.

Each step equals the one of ``pixels`` for a single view, up to rounding. Neighbours in the batch do
not touch a view: every sum runs over the taps of one sample, in their order. There are no matrix
products here, so neither autocast nor TF32 makes them coarse. Which samples a step changes is known
on the CPU, so nobody waits for a device.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from raremix.views.rows import COLUMNS, KINDS

__all__ = ["cut_batch", "finish_batch"]

_Change = Callable[[Tensor, Tensor], Tensor]
_Step = tuple[_Change, Tensor, Tensor]
"""What is done, to which samples, and with which numbers: a row for each of those."""

# ITU-R 601, in the digits that torchvision uses.
_GRAY = (0.2989, 0.587, 0.114)
# Red, green and blue lie 5/6, 3/6 and 1/6 of a turn along the wave of `pixels.adjust_hue`.
_CHANNEL_TURNS = (5 / 6, 3 / 6, 1 / 6)
_HUE = KINDS.index("hue")
_FIRST_CHANGE = COLUMNS.index("kind_0")
# What lies midway between two levels goes up, whichever way its sum was rounded.
_HALF = 0.5 + 2**-12
# Room for the tensors in between. On a CPU they had better stay in its cache; a device wants few
# and large launches.
_CPU_BYTES = 16 * 2**20
_DEVICE_BYTES = 256 * 2**20
_WIDTHS = 16


def cut_batch(
    images: Tensor,
    rows: Tensor,
    *,
    size: int | None = None,
    sources: Tensor | None = None,
    max_bytes: int | None = None,
) -> Tensor:
    """Cut a box out of each image, resize it with antialiasing and mirror it where its row says.

    The weights are those of Pillow and torch; sums are float32 and rounded once, at the end.

    Args:
        images: Uint8 of shape (n, channels, height, width), on any device and in any layout.
        rows: Float64 of shape (n, 19) as ``to_rows`` gives, on the CPU; one size for all.
        size: Side of the views; by default what the first row says.
        sources: Indices of shape (n,), on the CPU: the image that each row cuts from, so that
            many views of few images are cut at once. By default, each row has its own.
        max_bytes: About how much room the tensors in between may take, though never less than a
            single view needs; by default what suits the device.

    Returns:
        Uint8 of shape (n, channels, size, size), contiguous, on the device of ``images``.
    """
    device, channels = images.device, images.shape[1]
    if size is None:
        size = int(rows[0, COLUMNS.index("size")]) if len(rows) else 0
    views = torch.empty((len(rows), channels, size, size), dtype=torch.uint8, device=device)
    if len(rows) == 0:
        return views
    if sources is None:
        sources = torch.arange(len(rows), device="cpu")
    starts, lengths = rows[:, :2].long(), (rows[:, 2:4] - rows[:, :2]).long()
    # A chunk reads windows as large as its largest box, so boxes alike go together.
    order = lengths.prod(dim=1).argsort(stable=True)
    width, height = lengths.amax(dim=0).tolist()
    bytes_per_view = channels * (5 * width * height + 8 * width * size + 9 * size * size)
    per_chunk = _per_chunk(bytes_per_view, max_bytes, device)
    for place, chosen in enumerate(torch.split(order, per_chunk)):
        width, height = lengths[chosen].amax(dim=0).tolist()
        # In steps, for on a CPU the sums are compiled anew for every width.
        width = min(-(-width // _WIDTHS) * _WIDTHS, images.shape[3])
        # Near the edge a window begins before its box, to end inside the image.
        left = starts[chosen, 0].clamp(max=images.shape[3] - width)
        top = starts[chosen, 1].clamp(max=images.shape[2] - height)
        across, down = _taps(rows[chosen], left, top, size, device)
        image, left, top = _send(torch.stack([sources[chosen], left, top]), device).unbind()
        windows = images.unfold(2, height, 1).unfold(3, width, 1)[image, :, top, left]
        # Rows of pixels, a channel beside the other; then columns.
        lines = _lines(windows.permute(0, 2, 1, 3))
        lines = _lines(_combine(lines, *down).permute(0, 3, 2, 1))
        small = _combine(lines, *across).add_(_HALF).clamp_(0, 255).permute(0, 2, 3, 1)
        views[place * per_chunk :][: len(chosen)].copy_(small)
    return views.index_select(0, _send(order.argsort(), device))


def finish_batch(
    pixels: Tensor, rows: Tensor, mean: Tensor, std: Tensor, *, max_bytes: int | None = None
) -> Tensor:
    """Recolour and normalise views that are cut, resized and mirrored already.

    Args:
        pixels: Uint8 of shape (n, 1 or 3, size, size), on any device and in any layout; never
            written to.
        rows: Float64 of shape (n, 19) as ``to_rows`` gives, on the CPU.
        mean: (3,) taken from each channel.
        std: (3,) they are divided by.
        max_bytes: About how much room the tensors in between may take, though never less than a
            single view needs; by default what suits the device.

    Returns:
        Float32 of shape (n, 3, size, size), contiguous, on the device of ``pixels``.
    """
    device, size = pixels.device, pixels.shape[-1]
    finished = torch.empty((len(pixels), 3, size, size), dtype=torch.float32, device=device)
    mean, std = (_send(given.to(torch.float32), device).view(1, 3, 1, 1) for given in (mean, std))
    # The turn of the hue takes most, about four times the view itself.
    per_chunk = _per_chunk(48 * size * size, max_bytes, device)
    for start in range(0, len(pixels), per_chunk):
        chunk = slice(start, start + per_chunk)
        view = finished[chunk]
        # Gray becomes colour as late as here, so that one channel was resized and not three.
        view.copy_(pixels[chunk]).div_(255)
        for change, at, numbers in _sent(_steps(rows[chunk], size), device):
            if len(at) < len(view):
                view.index_copy_(0, at, change(view.index_select(0, at), numbers))
                continue
            changed = change(view, numbers)
            if changed is not view:
                view.copy_(changed)
        view.sub_(mean).div_(std)
    return finished


def _per_chunk(bytes_per_view: int, max_bytes: int | None, device: torch.device) -> int:
    if max_bytes is None:
        max_bytes = _CPU_BYTES if device.type == "cpu" else _DEVICE_BYTES
    return max(1, max_bytes // max(1, bytes_per_view))


def _send(given: Tensor, device: torch.device) -> Tensor:
    """To the device, which need not have come to the end of what it was told before."""
    if device.type == "cuda" and given.device.type == "cpu":
        return given.pin_memory().to(device, non_blocking=True)
    return given.to(device)


def _lines(given: Tensor) -> Tensor:
    """A table for ``_combine``; twice contiguous, as ``to`` heeds the format only when it copies."""
    return given.to(torch.float32, memory_format=torch.contiguous_format).contiguous()


def _taps(
    rows: Tensor, left: Tensor, top: Tensor, size: int, device: torch.device
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Find what each pixel of a view is made of.

    Where a pixel begins to take is found in float64 and on the CPU: that is little work, and a
    device may have no float64. The weights, which are more, are made on the device.

    Args:
        rows: (n, 19), on the CPU.
        left: (n,) columns at which the windows begin, on the CPU.
        top: (n,) rows at which they begin, on the CPU.
        size: Side of the views.
        device: Where the results are wanted.

    Returns:
        Across and down, each: (n, size) int64, the line of the window to begin with, and
        (n, size, taps) float32, the weights of this line and those behind it. Weights past the
        last tap of a pixel are zero.

    Source:
        As Pillow's ``precompute_coeffs`` does; bicubic is Keys' with a = -0.5.
    """
    start, stop = rows[:, 0:2].T[:, :, None], rows[:, 2:4].T[:, :, None]
    bilinear = rows[:, COLUMNS.index("bilinear"), None].expand_as(start)
    scale = (stop - start) / size
    stretch = scale.clamp(min=1)
    reach = stretch * (2 - bilinear)
    centre = (torch.arange(size, dtype=torch.float64, device="cpu") + 0.5) * scale
    first = (centre - reach + 0.5).floor_().clamp_(min=0)
    count = torch.minimum((centre + reach + 0.5).floor_(), stop - start).sub_(first)
    most = int(count.max())
    lead = (first - centre + 0.5) / stretch
    places = torch.stack([first + start - torch.stack([left, top])[:, :, None], lead, count])
    flipped = rows[:, COLUMNS.index("flipped"), None] > 0
    places[:, 0] = torch.where(flipped, places[:, 0].flip(-1), places[:, 0])
    numbers = torch.cat([*places, 1 / stretch, bilinear], dim=2).to(torch.float32)
    first, lead, count, step, bilinear = (
        part[..., None] for part in torch.split(_send(numbers, device), [size] * 3 + [1, 1], dim=2)
    )
    tap = torch.arange(most, dtype=torch.float32, device=device)
    distance = (tap * step).add(lead).abs_().clamp_(max=2)
    near = (1.5 * distance - 2.5).mul_(distance).mul_(distance).add_(1)
    far = (-0.5 * distance).add_(2.5).mul_(distance).sub_(4).mul_(distance).add_(2)
    cubic = torch.where(distance < 1, near, far)
    weights = torch.where(bilinear > 0, (1 - distance).clamp_(min=0), cubic).mul_(tap < count)
    # Summed as whole numbers, which hangs on no order and so not on how many taps others have.
    total = weights.mul(2**24).long().sum(dim=3, keepdim=True).to(torch.float32)
    weights.mul_(2**24).div_(total)
    lines = first[..., 0].long()
    return (lines[0], weights[0]), (lines[1], weights[1])


def _combine(table: Tensor, first: Tensor, weights: Tensor) -> Tensor:
    """Add up neighbouring lines, each times its weight.

    Args:
        table: (n, lines, channels, length) float32, contiguous.
        first: (n, size) int64, the line to begin with.
        weights: (n, size, taps) float32.

    Returns:
        (n, size, channels, length) float32, contiguous.
    """
    lines, taps = table.shape[1], weights.shape[2]
    index = first[:, :, None] + torch.arange(taps, device=table.device)
    return _weighted_sums(table, index.clamp_(max=lines - 1), weights)


def _weighted_sums(table: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """As ``_combine``, with the (n, size, taps) lines to take given one by one."""
    count, lines = table.shape[:2]
    size, taps = index.shape[1:]
    base = torch.arange(0, count * lines, lines, device=table.device).view(-1, 1, 1)
    index, weights = (index + base).view(-1, taps), weights.reshape(-1, taps)
    flat = table.view(count * lines, -1)
    if table.device.type in ("cpu", "cuda"):
        # Embeddings are summed just so: a line read once for each tap, no matrix of weights.
        sums = F.embedding_bag(index, flat, mode="sum", per_sample_weights=weights)
    else:
        sums = _sums_by_tap(flat, index, weights)
    return sums.view(count, size, *table.shape[2:])


def _sums_by_tap(flat: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """What ``embedding_bag`` does, for devices that may not have it."""
    sums = flat.index_select(0, index[:, 0]).mul_(weights[:, :1])
    for tap in range(1, index.shape[1]):
        sums.addcmul_(flat.index_select(0, index[:, tap]), weights[:, tap : tap + 1])
    return sums


def _steps(rows: Tensor, size: int) -> Iterator[_Step]:
    """What is to be done to which of these samples, in order; on the CPU."""
    for at in range(_FIRST_CHANGE, rows.shape[1], 2):
        kind, factor = rows[:, at], rows[:, at + 1]
        chosen = _where((kind >= 0) & (kind != _HUE))
        if len(chosen):
            rest = 1 - factor[chosen]
            parts = [kind[chosen] == KINDS.index(name) for name in ("saturation", "contrast")]
            yield _blend, chosen, torch.stack([factor[chosen], *(rest * part for part in parts)], 1)
        chosen = _where(kind == _HUE)
        if len(chosen):
            # A turn more keeps the sum with a hue above zero, where frac is the remainder.
            turns = [factor[chosen] + channel + 1 for channel in _CHANNEL_TURNS]
            yield _turn_hue, chosen, torch.stack(turns, 1)
    chosen = _where(rows[:, COLUMNS.index("grayscale")] > 0)
    if len(chosen):
        yield _to_grayscale, chosen, rows[chosen, :0]
    sigma = rows[:, COLUMNS.index("blur_sigma")]
    chosen = _where(sigma > 0)
    if len(chosen):
        radius = rows[chosen, COLUMNS.index("blur_radius")]
        yield _blur, chosen, _kernels(sigma[chosen], radius, size)
    chosen = _where(rows[:, COLUMNS.index("solarized")] > 0)
    if len(chosen):
        yield _solarize, chosen, rows[chosen, :0]


def _where(is_chosen: Tensor) -> Tensor:
    return is_chosen.nonzero()[:, 0]


def _sent(steps: Iterable[_Step], device: torch.device) -> list[_Step]:
    """The steps with their tensors on the device, all in two transfers."""
    steps = list(steps)
    if not steps or device.type == "cpu":
        return [(change, at, numbers.to(torch.float32)) for change, at, numbers in steps]
    every = _send(torch.cat([at for _, at, _ in steps]), device)
    flat = torch.cat([numbers.flatten() for _, _, numbers in steps]).to(torch.float32)
    return [
        (change, at, numbers.view(given.shape))
        for (change, _, given), at, numbers in zip(
            steps,
            torch.split(every, [len(at) for _, at, _ in steps]),
            torch.split(_send(flat, device), [numbers.numel() for _, _, numbers in steps]),
            strict=True,
        )
    ]


def _kernels(sigma: Tensor, radius: Tensor, size: int) -> Tensor:
    """(n, taps) the Gaussian of each sample, as wide as the widest and zero beyond its reach."""
    radius = torch.where(radius > 0, radius, (3 * sigma).ceil()).clamp(max=size - 1)[:, None]
    most = int(radius.max())
    steps = torch.arange(-most, most + 1, dtype=torch.float64, device="cpu")
    weights = torch.exp(-0.5 * (steps / sigma[:, None]) ** 2) * (steps.abs() <= radius)
    return weights / weights.sum(dim=1, keepdim=True)


def _blend(view: Tensor, numbers: Tensor) -> Tensor:
    """Brightness, contrast and saturation, which differ in what is added to a view made darker."""
    factor, to_gray, to_mean = numbers[:, :, None, None, None].unbind(1)
    gray = _gray(view)
    added = gray.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True) * to_mean
    return view.mul_(factor).add_(gray.mul_(to_gray).add_(added)).clamp_(0, 1)


def _turn_hue(view: Tensor, turns: Tensor) -> Tensor:
    """See ``pixels.adjust_hue``."""
    red, green, blue = view[:, 0:1], view[:, 1:2], view[:, 2:3]
    greatest = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = greatest - least
    hue = (green + blue).sub_(red).sub_(least)
    hue.div_(chroma.clamp(min=1e-12)).add_(1).div_(6).copysign_(green - blue)
    wave = (hue + turns[:, :, None, None]).frac_()
    wave.sub_(1 / 3).abs_().mul_(-6).add_(2).clamp_(0, 1)
    return torch.addcmul(greatest, chroma, wave, value=-1)


def _to_grayscale(view: Tensor, _: Tensor) -> Tensor:
    return _gray(view).expand_as(view)


def _blur(view: Tensor, kernels: Tensor) -> Tensor:
    """Each sample with a Gaussian of its own, mirrored at the edges."""
    size, most = view.shape[3], kernels.shape[1] // 2
    steps = torch.arange(-most, most + 1, device=view.device)
    index = (torch.arange(size, device=view.device)[:, None] + steps).abs_()
    index = (size - 1) - ((size - 1) - index).abs_()
    index = index.expand(len(view), -1, -1)
    weights = kernels[:, None].expand_as(index)
    lines = _lines(view.permute(0, 2, 1, 3))  # Rows, and columns thereafter.
    lines = _lines(_weighted_sums(lines, index, weights).permute(0, 3, 2, 1))
    return _weighted_sums(lines, index, weights).permute(0, 2, 3, 1)


def _solarize(view: Tensor, _: Tensor) -> Tensor:
    return torch.minimum(view, 1 - view)


def _gray(view: Tensor) -> Tensor:
    red, green, blue = view[:, 0:1], view[:, 1:2], view[:, 2:3]
    return (red * _GRAY[0]).add_(green, alpha=_GRAY[1]).add_(blue, alpha=_GRAY[2])
