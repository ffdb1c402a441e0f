"""The multi-crop transform: some large and some small views of one image, the DINO recipe at first.

It puts together what the other modules of this room do, and knows no dataset and no model.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby

import torch
from torch import Tensor
from typing_extensions import Self

from raremix.errors import ImageInputError, OptionError
from raremix.options import check_count, check_numbers, check_range
from raremix.views.draws import ViewParameters, draw_parameters
from raremix.views.images import ImageLike, as_image
from raremix.views.kernel import finished
from raremix.views.pixels import recolour, resized_crop
from raremix.views.view import View

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "MultiCropTransform"]

# The mean and deviation of ImageNet's channels that torchvision's models, and DINO, are fed with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class MultiCropTransform:
    """Makes the global and local views of an image, by default those of DINO.

    Every view is a random crop, resized (bicubic, antialiased) to a square, mirrored at .5,
    jittered in brightness, contrast, saturation and hue (.4, .4, .2, .1, in random order) at .8,
    made gray at .2, blurred (sigma .1 to 2 pixels) and normalised. The first global view is always
    blurred; the second is blurred at .1 and solarized at .2; local views are blurred at .5. Global
    views after the second are like the second. There are 6 local views here; DINO's own default
    is 8.

    Colours stay floats from the first change to the last, where DINO's PIL code rounds to 8 bits
    after each. Its blur imitates a Gaussian with three box filters; this one is a Gaussian.

    A transform holds no state: it can be copied, pickled, sent to workers and shared by threads.
    Randomness comes from the generator of the call, or else from torch's default generator, which
    a ``DataLoader`` seeds differently in each worker; never from ``random`` or numpy.

    Args:
        global_crop_size: Side of the global views in pixels, at least 1.
        local_crop_size: Side of the local views in pixels, at least 1.
        n_global_views: How many global views, at least 1.
        n_local_views: How many local views, at least 0.
        global_scale: Least and greatest area of a global crop, as a part of the image, in (0, 1].
        local_scale: The same for local crops.
        ratio: Least and greatest width over height of every crop, above 0.
        mean: What is taken from red, green and blue in [0, 1].
        std: What they are divided by then, above 0.

    Attributes:
        views: The kinds of view, in order, global ones first.
        n_global_views: How many of them are global.

    Raises:
        OptionError: If an option lies outside its range.

    Source:
        Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021,
        https://arxiv.org/abs/2104.14294, class ``DataAugmentationDINO`` in
        https://github.com/facebookresearch/dino/blob/main/main_dino.py.

    Example:
        >>> transform = MultiCropTransform()
        >>> image = torch.zeros(3, 120, 160, dtype=torch.uint8)
        >>> views = transform(image, generator=torch.Generator().manual_seed(0))
        >>> [tuple(view.shape) for view in views[1:4]]
        [(3, 224, 224), (3, 96, 96), (3, 96, 96)]
    """

    def __init__(
        self,
        *,
        global_crop_size: int = 224,
        local_crop_size: int = 96,
        n_global_views: int = 2,
        n_local_views: int = 6,
        global_scale: tuple[float, float] = (0.4, 1.0),
        local_scale: tuple[float, float] = (0.05, 0.4),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        caller = "MultiCropTransform"
        # Checked by these names first: `View` would complain of names that the caller never wrote.
        check_count(caller, "global_crop_size", global_crop_size, least=1)
        check_count(caller, "local_crop_size", local_crop_size, least=1)
        check_count(caller, "n_global_views", n_global_views, least=1)
        check_count(caller, "n_local_views", n_local_views, least=0)
        check_range(caller, "global_scale", global_scale, above=0.0, most=1.0)
        check_range(caller, "local_scale", local_scale, above=0.0, most=1.0)
        check_range(caller, "ratio", ratio, above=0.0, most=float("inf"))
        first = View(global_crop_size, global_scale, ratio, blur_p=1.0)
        second = View(global_crop_size, global_scale, ratio, blur_p=0.1, solarize_p=0.2)
        local = View(local_crop_size, local_scale, ratio, blur_p=0.5)
        self._set(
            [first, *[second] * (n_global_views - 1)], [local] * n_local_views, mean=mean, std=std
        )

    @classmethod
    def from_views(
        cls,
        global_views: Iterable[View],
        local_views: Iterable[View] = (),
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> Self:
        """Make a transform of any views instead of DINO's.

        Args:
            global_views: The kinds of the global views, at least one.
            local_views: The kinds of the local views.
            mean: As of the class.
            std: As of the class.

        Raises:
            OptionError: If there is no global view, or something else than a ``View``.

        Example:
            >>> plain = View(size=64, scale=(0.5, 1.0), jitter_p=0.0, grayscale_p=0.0)
            >>> MultiCropTransform.from_views([plain, plain]).n_global_views
            2
        """
        transform = cls.__new__(cls)
        transform._set(list(global_views), list(local_views), mean=mean, std=std)
        return transform

    @classmethod
    def for_small_images(
        cls,
        *,
        size: int = 32,
        local_size: int = 16,
        n_global_views: int = 2,
        n_local_views: int = 6,
        flip_p: float = 0.5,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> Self:
        """Make a transform for images of some 8 to 64 pixels, such as CIFAR or handwritten digits.

        As the DINO recipe, without blur, which would leave little of such an image, and with
        larger crops: .5 to 1 of the image for global views and .2 to .5 for local ones, so that a
        local crop of 8 by 8 pixels is still at least 3 wide.

        Args:
            size: Side of the global views in pixels, at least 1; best that of the images.
            local_size: Side of the local views in pixels, at least 1.
            n_global_views: How many global views, at least 1.
            n_local_views: How many local views, at least 0.
            flip_p: How often a view is mirrored; 0 where left and right matter, as in writing.
            mean: As of the class.
            std: As of the class.

        Raises:
            OptionError: If an option lies outside its range.

        Example:
            >>> transform = MultiCropTransform.for_small_images(size=16, local_size=8, flip_p=0.0)
            >>> digit = torch.zeros(1, 8, 8, dtype=torch.uint8)
            >>> [view.shape[-1] for view in transform(digit)]
            [16, 16, 8, 8, 8, 8, 8, 8]
        """
        caller = "MultiCropTransform.for_small_images"
        check_count(caller, "size", size, least=1)
        check_count(caller, "local_size", local_size, least=1)
        check_count(caller, "n_global_views", n_global_views, least=1)
        check_count(caller, "n_local_views", n_local_views, least=0)
        first = View(size, scale=(0.5, 1.0), flip_p=flip_p)
        second = View(size, scale=(0.5, 1.0), flip_p=flip_p, solarize_p=0.2)
        local = View(local_size, scale=(0.2, 0.5), flip_p=flip_p)
        return cls.from_views(
            [first, *[second] * (n_global_views - 1)], [local] * n_local_views, mean=mean, std=std
        )

    def __call__(
        self, image: ImageLike, *, generator: torch.Generator | None = None
    ) -> list[Tensor]:
        """Make the views of an image.

        Args:
            image: A PIL image of 8 bits or fewer per channel (alpha is dropped, a palette looked
                up, the EXIF orientation not applied); a uint8 tensor of shape (1 or 3, height,
                width) on the CPU; or a uint8 array of shape (height, width), (height, width, 1)
                or (height, width, 3). One channel stands for three equal ones.
            generator: Where the randomness comes from, on the CPU; torch's default generator if
                None. The same state gives the same views, on any number of threads; on another
                kind of processor, float32 may round differently in the last digits.

        Returns:
            Float32 tensors of shape (3, size, size), normalised, global views first.

        Raises:
            ImageInputError: If the image is none of these, or empty.
            OptionError: If the generator is not one of the CPU.
        """
        pixels = as_image(image, caller="MultiCropTransform")
        return self._make(pixels, self._draw(pixels, generator))

    def with_boxes(
        self, image: ImageLike, *, generator: torch.Generator | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Make the views of an image, and tell where in the image they come from.

        Whether a view is mirrored, and all else that was drawn, ``draw`` and ``apply`` tell.

        Args:
            image: As of a call.
            generator: As of a call; the same state gives the same views as a call.

        Returns:
            The views of a call, and int64 of shape (views, 4), the left, top, right and bottom edge
            of each crop in source pixels, right and bottom exclusive.

        Raises:
            ImageInputError: As of a call.
            OptionError: As of a call.
        """
        pixels = as_image(image, caller="MultiCropTransform.with_boxes")
        parameters = self._draw(pixels, generator)
        boxes = torch.tensor([row.box for row in parameters], dtype=torch.int64, device="cpu")
        return self._make(pixels, parameters), boxes

    def draw(
        self, *, height: int, width: int, generator: torch.Generator | None = None
    ) -> list[ViewParameters]:
        """Draw what is to be done to an image of some size, without doing it.

        Args:
            height: Height of the image in pixels, at least 1.
            width: Width of the image in pixels, at least 1.
            generator: As of a call.

        Returns:
            One row of parameters for each view, with crop box, mirrored or not, colour changes.

        Raises:
            OptionError: If height or width are below 1, or the generator is not one of the CPU.
        """
        caller = "MultiCropTransform.draw"
        return draw_parameters(
            self.views,
            height=check_count(caller, "height", height, least=1),
            width=check_count(caller, "width", width, least=1),
            generator=generator,
            caller=caller,
        )

    def apply(self, image: ImageLike, parameters: Iterable[ViewParameters]) -> list[Tensor]:
        """Make the views that were drawn; nothing here is random.

        Args:
            image: As of a call.
            parameters: Rows as ``draw`` returns them, for an image of this size.

        Returns:
            One view for each row, as of a call.

        Raises:
            ImageInputError: As of a call, or if a box reaches outside the image.

        Example:
            >>> transform = MultiCropTransform()
            >>> image = torch.zeros(3, 120, 160, dtype=torch.uint8)
            >>> rows = transform.draw(height=120, width=160)
            >>> views = transform.apply(image, rows)
            >>> mirrored = [row.flipped for row in rows]
        """
        pixels = as_image(image, caller="MultiCropTransform.apply")
        rows = list(parameters)
        height, width = pixels.shape[1:]
        for row in rows:
            left, top, right, bottom = row.box
            if not (0 <= left < right <= width and 0 <= top < bottom <= height):
                raise ImageInputError(
                    f"MultiCropTransform.apply expects boxes inside the image of {width} x "
                    f"{height} pixels, got {row.box}; draw the parameters for this image's size."
                )
        return self._make(pixels, rows)

    def __repr__(self) -> str:
        lines = []
        for start, stop in ((0, self.n_global_views), (self.n_global_views, len(self.views))):
            kind = "local" if start else "global"
            for view, group in groupby(self.views[start:stop]):
                lines.append(f"    {len(list(group))} {kind}: {view!r},\n")
        mean, std = self._mean, self._std
        return f"{type(self).__name__}(\n{''.join(lines)}    mean={mean}, std={std},\n)"

    def _set(
        self,
        global_views: list[View],
        local_views: list[View],
        *,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        caller = type(self).__name__
        for view in (*global_views, *local_views):
            if not isinstance(view, View):
                raise OptionError(
                    f"{caller}.from_views expects View objects, got {type(view).__name__}; "
                    "describe each view with View(size=..., scale=...)."
                )
        if not global_views:
            raise OptionError(
                f"{caller}.from_views expects at least one global view, got none; a teacher sees "
                "global views only."
            )
        self.views: tuple[View, ...] = (*global_views, *local_views)
        self.n_global_views: int = len(global_views)
        self._mean = tuple(check_numbers(caller, "mean", mean, length=3))
        self._std = tuple(check_numbers(caller, "std", std, length=3))
        if min(self._std) <= 0:
            raise OptionError(f"{caller} expects std above 0, got {std!r}.")

    def _draw(self, pixels: Tensor, generator: torch.Generator | None) -> list[ViewParameters]:
        _, height, width = pixels.shape
        return draw_parameters(
            self.views,
            height=height,
            width=width,
            generator=generator,
            caller=type(self).__name__,
        )

    def _make(self, pixels: Tensor, parameters: list[ViewParameters]) -> list[Tensor]:
        return [self._finish(resized_crop(pixels, row.box, row.size), row) for row in parameters]

    def _finish(self, small: Tensor, row: ViewParameters) -> Tensor:
        view = finished(small, row, self._mean, self._std)
        if view is None:
            view = recolour(small, row)
            for plane, mean, std in zip(view, self._mean, self._std, strict=True):
                plane.sub_(mean).div_(std)
        return view
