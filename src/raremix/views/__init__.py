"""Views of an image: the large and small random crops that self-supervised training compares."""

from raremix.views.geometry import overlap, point_in_source, point_in_view, source_box
from raremix.views.multicrop import MultiCropTransform
from raremix.views.rarity import RarityViews
from raremix.views.rows import COLUMNS, ViewParameters, from_rows, to_rows
from raremix.views.seeding import sample_seeds
from raremix.views.view import View

__all__ = [
    "COLUMNS",
    "MultiCropTransform",
    "RarityViews",
    "View",
    "ViewParameters",
    "from_rows",
    "overlap",
    "point_in_source",
    "point_in_view",
    "sample_seeds",
    "source_box",
    "to_rows",
]
