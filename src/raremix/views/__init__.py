"""Views of an image: the large and small random crops that self-supervised training compares."""

from raremix.views.draws import ViewParameters
from raremix.views.multicrop import MultiCropTransform
from raremix.views.view import View

__all__ = ["MultiCropTransform", "View", "ViewParameters"]
