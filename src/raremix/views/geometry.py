"""Where a view lies in its source, and how two views lie to each other.

Boxes are left, top, right and bottom edge, right and bottom exclusive. It sees no pixels.
"""

from raremix.errors import OptionError
from raremix.views.rows import Box, ViewParameters

__all__ = ["overlap", "point_in_source", "point_in_view", "source_box"]


def overlap(first: ViewParameters, second: ViewParameters) -> float:
    """Intersection over union of the parts of the source that two views show, in [0, 1].

    Example:
        >>> left = ViewParameters((0, 0, 20, 10), 32)
        >>> overlap(left, ViewParameters((10, 0, 30, 10), 32))
        0.3333333333333333
    """
    for view in (first, second):
        if not isinstance(view, ViewParameters):
            raise OptionError(
                f"overlap expects ViewParameters, got {type(view).__name__}; from_rows makes them of rows."
            )
    a, b = first.box, second.box
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / (_area(a) + _area(b) - common)


def point_in_source(view: ViewParameters, x: float, y: float) -> tuple[float, float]:
    """Where in the source a point of the view is; (0, 0) is the outer corner of the first pixel."""
    left, top, right, bottom = view.box
    across = view.size - x if view.flipped else x
    return left + across * (right - left) / view.size, top + y * (bottom - top) / view.size


def point_in_view(view: ViewParameters, x: float, y: float) -> tuple[float, float]:
    """Where in the view a point of the source is; outside [0, size] if the view does not show it.

    Example:
        >>> view = ViewParameters((10, 0, 30, 20), 40, flipped=True)
        >>> point_in_view(view, 15.0, 5.0), point_in_source(view, 30.0, 10.0)
        ((30.0, 10.0), (15.0, 5.0))
    """
    left, top, right, bottom = view.box
    across = (x - left) * view.size / (right - left)
    down = (y - top) * view.size / (bottom - top)
    return (view.size - across if view.flipped else across), down


def source_box(view: ViewParameters, box: tuple[float, float, float, float]) -> Box:
    """The whole source pixels that a box of the view covers, at least in part.

    Resizing blends in a little from beyond: two pixels of the source (bilinear: one), or as many of
    the view where that is smaller than its box.

    Example:
        >>> view = ViewParameters((10, 0, 30, 20), 40, flipped=True)
        >>> source_box(view, (0, 0, 10, 9))
        (25, 0, 30, 5)
    """
    x0, y0 = point_in_source(view, box[0], box[1])
    x1, y1 = point_in_source(view, box[2], box[3])
    return (
        int(min(x0, x1) // 1),
        int(min(y0, y1) // 1),
        int(-(-max(x0, x1) // 1)),
        int(-(-max(y0, y1) // 1)),
    )


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])
