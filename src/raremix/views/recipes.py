"""The views of published recipes, by name.

Sizes, scales and chances only; nothing here is drawn.
"""

from dataclasses import replace
from typing import Literal, NamedTuple

from raremix.views.view import View

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Recipe", "RecipeName", "recipe"]

# The mean and deviation of ImageNet's channels that torchvision's models, and DINO, are fed with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

RecipeName = Literal["dino", "dinov2", "swav", "simclr", "small"]


class Recipe(NamedTuple):
    """Views of a recipe; the second global view stands for all further ones."""

    first: View
    second: View
    local: View
    n_local_views: int
    std: tuple[float, float, float] = IMAGENET_STD


def recipe(name: RecipeName) -> Recipe:
    """The views of a recipe, as ``MultiCropTransform.recipe`` describes them."""
    if name == "dino":
        first = View(224, scale=(0.4, 1.0), blur_p=1.0)
        second = replace(first, blur_p=0.1, solarize_p=0.2)
        return Recipe(first, second, View(96, scale=(0.05, 0.4), blur_p=0.5), 8)
    if name == "dinov2":
        # The code hands the chance of a blur on as the chance to leave it out: 1 and .1 there.
        first = View(224, scale=(0.32, 1.0), blur_p=0.0, blur_radius=4)
        second = replace(first, blur_p=0.9, solarize_p=0.2)
        local = View(96, scale=(0.05, 0.32), blur_p=0.5, blur_radius=4)
        return Recipe(first, second, local, 8)
    if name == "small":
        first = View(32, scale=(0.5, 1.0))
        return Recipe(first, replace(first, solarize_p=0.2), View(16, scale=(0.2, 0.5)), 6)
    strong = View(
        224,
        scale=(0.08, 1.0),
        brightness=0.8,
        contrast=0.8,
        saturation=0.8,
        hue=0.2,
        blur_p=0.5,
    )
    if name == "simclr":
        return Recipe(strong, strong, strong, 0)
    wide = replace(strong, scale=(0.14, 1.0), interpolation="bilinear")
    # SwAV's deviation of red differs from everyone's in its last digit.
    return Recipe(wide, wide, replace(wide, size=96, scale=(0.05, 0.14)), 6, (0.228, 0.224, 0.225))
