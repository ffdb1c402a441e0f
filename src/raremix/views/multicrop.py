"""The multi-crop transform: some large and some small views of one image, the DINO recipe at first.

It puts together what the other modules of this room do, and knows no dataset and no model.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, get_args

import torch
from torch import Tensor
from typing_extensions import Self

from raremix.errors import ImageInputError, OptionError
from raremix.inputs import ArrayLike
from raremix.options import check_choice, check_count, check_number, check_numbers, check_range
from raremix.seeds import derive_seed
from raremix.views.checks import (
    as_parameters,
    as_seed,
    as_seeds,
    as_strength,
    check_boxes,
    checked_cut,
    checked_generator,
)
from raremix.views.draws import ViewTable, draw_rows
from raremix.views.functions import ViewFunction, view_by
from raremix.views.images import MOST_PIXELS, ImageLike, as_image, as_images
from raremix.views.making import cut_views, finish_views, make_views
from raremix.views.recipes import IMAGENET_MEAN, IMAGENET_STD, RecipeName, recipe
from raremix.views.rows import ViewParameters, from_rows
from raremix.views.view import View

__all__ = ["MultiCropTransform"]


class MultiCropTransform:
    """Makes the global and local views of an image, by default those of DINO.

    Every view is a random crop, resized (bicubic, antialiased) to a square, mirrored at .5,
    jittered in brightness, contrast, saturation and hue (.4, .4, .2, .1, in random order) at .8,
    made gray at .2, blurred (sigma .1 to 2 pixels) and normalised. The first global view is always
    blurred; the second is blurred at .1 and solarized at .2; local views are blurred at .5. Global
    views after the second are like the second. There are 6 local views here; DINO's own default
    is 8.

    There are two stages. ``cut`` draws everything, crops, resizes and mirrors, all on bytes; its
    result goes through a ``DataLoader`` at a quarter of the size. ``finish`` does the rest from the
    same draw, on any device, for a whole batch. A call does both, and ``batch`` does both for many
    images.

    Colours stay floats from the first change to the last, where DINO's PIL code rounds to 8 bits
    after each. Its blur imitates a Gaussian with three box filters; this one is a Gaussian.

    A transform holds no state: it can be copied, pickled, sent to workers and shared by threads.
    Randomness comes from the seed or the generator of the call. Without either, one number is taken
    from torch's default generator, which a ``DataLoader`` seeds differently in each worker.

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
        >>> views = transform(image, seed=0)
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
        dino = recipe("dino")
        wide: dict[str, Any] = {"size": global_crop_size, "scale": global_scale, "ratio": ratio}
        first, second = replace(dino.first, **wide), replace(dino.second, **wide)
        local = replace(dino.local, size=local_crop_size, scale=local_scale, ratio=ratio)
        self._set(
            [first, *[second] * (n_global_views - 1)], [local] * n_local_views, mean=mean, std=std
        )

    @classmethod
    def recipe(
        cls,
        name: RecipeName,
        *,
        global_crop_size: int | None = None,
        local_crop_size: int | None = None,
        n_global_views: int = 2,
        n_local_views: int | None = None,
        flip_p: float = 0.5,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] | None = None,
    ) -> Self:
        """Make the transform of a published recipe, or of small images.

        All mirror at .5 and take colours away at .2. Jitter is .4, .4, .2, .1 at .8 if nothing is
        said of it, and interpolation is bicubic.

        - "dino": 2 x 224 of .4 to 1 of the image, 8 x 96 of .05 to .4; blur at 1, .1 and .5 for
          first, second and local views; the second solarized at .2.
        - "dinov2": 2 x 224 of .32 to 1, 8 x 96 of .05 to .32; blur at 0, .9 and .5, reaching 4
          pixels; the second solarized at .2. These are the blurs that its code makes: it mistakes
          the chance of a blur (1 and .1) for the chance of none.
        - "swav": 2 x 224 of .14 to 1, 6 x 96 of .05 to .14; jitter .8, .8, .8, .2; blur at .5;
          bilinear.
        - "simclr": 2 x 224 of .08 to 1; jitter .8, .8, .8, .2; blur at .5. Its own code does not
          normalise, and resizes without antialiasing.
        - "small", for images of some 8 to 64 pixels, such as CIFAR or handwritten digits: 2 x 32 of
          .5 to 1, 6 x 16 of .2 to .5; no blur, which would leave little of such an image; the second
          solarized at .2. Ours, after "dino".

        Args:
            name: Of the recipe.
            global_crop_size: Side of the global views in pixels, if other than the recipe's.
            local_crop_size: The same for local views.
            n_global_views: How many global views, at least 1.
            n_local_views: How many local views, if other than the recipe's.
            flip_p: How often a view is mirrored; 0 where left and right matter, as in writing.
            mean: As of the class.
            std: As of the class; by default the recipe's.

        Raises:
            OptionError: If there is no such recipe, or an option lies outside its range.

        Source:
            https://github.com/facebookresearch/dino/blob/main/main_dino.py,
            https://github.com/facebookresearch/dinov2/blob/main/dinov2/data/augmentations.py,
            https://github.com/facebookresearch/swav/blob/main/src/multicropdataset.py,
            and appendix A of SimCLR, https://arxiv.org/abs/2002.05709.

        Example:
            >>> transform = MultiCropTransform.recipe("small", local_crop_size=8, flip_p=0.0)
            >>> [view.shape[-1] for view in transform(torch.zeros(1, 8, 8, dtype=torch.uint8))]
            [32, 32, 8, 8, 8, 8, 8, 8]
        """
        caller = f"{cls.__name__}.recipe"
        check_choice(caller, "name", name, get_args(RecipeName))
        first, second, local, n_local, own_std = recipe(name)
        if n_local_views is not None:
            n_local = check_count(caller, "n_local_views", n_local_views, least=0)
        if n_local == 0 and local_crop_size is not None:
            raise OptionError(
                f"{caller} got local_crop_size={local_crop_size} for no local view; pass n_local_views too."
            )
        check_count(caller, "n_global_views", n_global_views, least=1)
        changes: dict[str, Any] = {
            "flip_p": check_number(caller, "flip_p", flip_p, least=0.0, most=1.0)
        }
        if local_crop_size is not None:
            check_count(caller, "local_crop_size", local_crop_size, least=1)
            local = replace(local, size=local_crop_size)
        if global_crop_size is not None:
            check_count(caller, "global_crop_size", global_crop_size, least=1)
            first, second = (replace(view, size=global_crop_size) for view in (first, second))
        first, second, local = (replace(view, **changes) for view in (first, second, local))
        return cls.from_views(
            [first, *[second] * (n_global_views - 1)],
            [local] * n_local,
            mean=mean,
            std=own_std if std is None else std,
        )

    @classmethod
    def from_views(
        cls,
        global_views: Iterable[View | ViewFunction],
        local_views: Iterable[View | ViewFunction] = (),
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> Self:
        """Make a transform of any views instead of DINO's.

        Args:
            global_views: The kinds of the global views, at least one. Each a ``View``, or a function
                of the image that returns the view, such as a transform of torchvision; it gets the
                image as it came. If it has an argument ``generator``, it gets one of its own; if not,
                torch's default generator is seeded for it, and put back after, one thread at a time. What draws from ``random`` or
                NumPy does not follow the seed.
            local_views: The kinds of the local views.
            mean: As of the class; functions normalise themselves.
            std: As of the class.

        Raises:
            OptionError: If there is no global view, or something that is neither.

        Example:
            >>> plain = View(size=64, scale=(0.5, 1.0), jitter_p=0.0, grayscale_p=0.0)
            >>> MultiCropTransform.from_views([plain, plain]).n_global_views
            2
        """
        for name, views in (("global_views", global_views), ("local_views", local_views)):
            if not isinstance(views, Iterable):
                raise OptionError(
                    f"{cls.__name__}.from_views expects {name} as a list of views, got {views!r}; put it "
                    "into one."
                )
        transform = cls.__new__(cls)
        transform._set(list(global_views), list(local_views), mean=mean, std=std)
        return transform

    def __call__(
        self,
        image: ImageLike,
        *,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        strength: float = 1.0,
    ) -> list[Tensor]:
        """Make the views of an image.

        Args:
            image: A PIL image of 8 bits or fewer per channel (alpha is dropped, a palette looked
                up, the EXIF orientation not applied); a uint8 tensor of shape (1 or 3, height,
                width) on the CPU; or a uint8 array of shape (height, width), (height, width, 1)
                or (height, width, 3). One channel stands for three equal ones.
            generator: Where the randomness comes from, on the CPU: one number is taken from it, its
                seed. torch's default generator if None.
            seed: At least 0, instead of a generator. Each view is a pure function of the image, the
                seed, its place among the views and its description: on any number of threads,
                workers or ranks, in any order. On another kind of processor, float32 may round
                differently in the last digits.
            strength: At least 0: the spans of jitter (up to .5 for the hue) and the chances (up to 1)
                of jitter, grayscale, blur and solarize are this many times as large as described.

        Returns:
            Float32 tensors of shape (3, size, size), normalised, global views first.

        Raises:
            ImageInputError: If the image is none of these, or empty.
            OptionError: If there are both a generator and a seed, or one is out of its range.
        """
        caller = type(self).__name__
        pixels = as_image(image, caller=caller)
        chosen = as_seed(seed, generator, caller=caller)
        rows = self._draw(pixels.shape[1:], chosen, strength, caller)
        views = [view[0] for view in make_views(pixels[None], rows, self._constants, self._sizes)]
        return self._with_functions(views, image, int(chosen)) if self._functions else views

    def cut(
        self,
        image: ImageLike,
        *,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        strength: float = 1.0,
    ) -> dict[str, Tensor]:
        """Stage one alone: draw everything, crop, resize and mirror; ``finish`` does the rest.

        For the workers of a loader: ``ImageFolder(root, transform=transform.cut)``. torch's own
        collate makes one tensor for each size out of a batch of these.

        Args:
            image: As of a call.
            generator: As of a call.
            seed: As of a call; the same one gives the same views.
            strength: As of a call.

        Returns:
            By size, such as "224": uint8 of shape (views, 3, size, size), the views of this size in
            their order; and "rows": float32 of shape (views, 19), what was drawn for all views.

        Raises:
            ImageInputError: As of a call.
            OptionError: As of a call, or if a view is made by a function.

        Example:
            >>> transform = MultiCropTransform()
            >>> samples = [transform.cut(torch.zeros(3, 60, 80, dtype=torch.uint8)) for _ in range(4)]
            >>> batch = torch.utils.data.default_collate(samples)
            >>> {name: tuple(part.shape) for name, part in batch.items()}
            {'224': (4, 2, 3, 224, 224), '96': (4, 6, 3, 96, 96), 'rows': (4, 8, 19)}
            >>> [tuple(view.shape) for view in transform.finish(batch)[1:3]]
            [(4, 3, 224, 224), (4, 3, 96, 96)]
        """
        caller = f"{type(self).__name__}.cut"
        pixels = as_image(image, caller=caller)
        self.check_described(caller)
        chosen = as_seed(seed, generator, caller=caller)
        rows = self._draw(pixels.shape[1:], chosen, strength, caller)
        parts = {
            size: torch.empty((count, 3, size, size), dtype=torch.uint8, device="cpu")
            for size, count in Counter(self._sizes).items()
        }
        places = zip(self._sizes, self._places, strict=True)
        cut_views(pixels[None], rows, [parts[size][at : at + 1] for size, at in places])
        return {**{str(size): part for size, part in parts.items()}, "rows": rows[0]}

    def finish(
        self, batch: Mapping[str, Tensor], *, device: torch.device | str | None = None
    ) -> list[Tensor]:
        """Stage two: recolour and normalise what ``cut`` made, on the device where it lies.

        Args:
            batch: As ``cut`` returns it, or a batch of these as torch's collate makes it.
            device: Where to do it; the views are sent there first, as bytes. By default where they
                are. "rows" should stay on the CPU, or the device has to be waited for.

        Returns:
            One float32 tensor of shape (n, 3, size, size) for each view, normalised, global views
            first; of shape (3, size, size) for what ``cut`` returned.

        Raises:
            OptionError: If a view is made by a function.
            ImageInputError: If the batch is not one of this transform's.
        """
        caller = f"{type(self).__name__}.finish"
        self.check_described(caller)
        if isinstance(batch, Mapping) and "active" in batch:
            raise ImageInputError(
                f"{caller} got what RarityViews.cut made, and would show views that it leaves out; call "
                "finish of the RarityViews."
            )
        parts, rows = checked_cut(batch, self._sizes, caller=caller)
        single = rows.ndim == 2
        if device is not None:
            parts = {size: part.to(device, non_blocking=True) for size, part in parts.items()}
        if single:
            parts, rows = {size: part[None] for size, part in parts.items()}, rows[None]
        places = self._places
        views = [parts[size][:, at] for size, at in zip(self._sizes, places, strict=True)]
        made = finish_views(views, rows, self._constants)
        return [view[0] for view in made] if single else made

    def batch(
        self,
        images: Tensor,
        *,
        seeds: ArrayLike | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        strength: ArrayLike | float = 1.0,
    ) -> list[Tensor]:
        """Make the views of many images of one size, on the device where they lie.

        On a CPU, row i of every view is what a call with image i and ``seeds[i]`` makes, bit for
        bit, and torch's number of threads is used. On other devices all is done by torch, without
        a loop over images; resized bytes are the same but for ties, and colours to 1e-4.

        Args:
            images: Uint8 of shape (n, 1 or 3, height, width).
            seeds: Whole numbers of shape (n,), at least 0, such as ``raremix.views.sample_seeds``
                makes from ids.
            generator: Where seeds come from, if not given; as of a call.
            strength: As of a call; of all images, or of shape (n,).

        Returns:
            One float32 tensor of shape (n, 3, size, size) for each view, global views first, on the
            device of ``images``.

        Raises:
            ImageInputError: If the images are none.
            OptionError: If there are both seeds and a generator, or a view is made by a function.

        Example:
            >>> from raremix.views import sample_seeds
            >>> transform = MultiCropTransform.recipe("small")
            >>> images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
            >>> views = transform.batch(images, seeds=sample_seeds(0, 0, range(5)))
            >>> one = transform(images[3], seed=int(sample_seeds(0, 0, [3])))
            >>> len(views), torch.equal(views[7][3], one[7])
            (8, True)
        """
        caller = f"{type(self).__name__}.batch"
        self.check_described(caller)
        images = as_images(images, caller=caller)
        n = len(images)
        if seeds is None:
            generator = checked_generator(generator, caller=caller)
            numbers = torch.randint(2**63 - 1, (n,), generator=generator, device="cpu")
        elif generator is not None:
            raise OptionError(f"{caller} expects seeds or a generator, got both; leave one out.")
        else:
            numbers = as_seeds(seeds, n, caller=caller)
        rows = self._draw(images.shape[2:], numbers, strength, caller)
        return make_views(images, rows, self._constants, self._sizes)

    def with_rows(
        self,
        image: ImageLike,
        *,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        strength: float = 1.0,
    ) -> tuple[list[Tensor], Tensor]:
        """Make the views of an image, and tell what was drawn for them.

        Args:
            image: As of a call.
            generator: As of a call.
            seed: As of a call; the same one gives the same views.
            strength: As of a call.

        Returns:
            The views; and float32 of shape (views, 19), columns as ``raremix.views.COLUMNS`` says:
            ``rows[:, :4]`` are the boxes, left, top, right and bottom, right and bottom exclusive, in
            pixels of the image. ``raremix.views.from_rows`` makes ``ViewParameters`` of them.

        Raises:
            ImageInputError: As of a call.
            OptionError: As of a call, or if a view is made by a function.
        """
        caller = f"{type(self).__name__}.with_rows"
        pixels = as_image(image, caller=caller)
        self.check_described(caller)
        chosen = as_seed(seed, generator, caller=caller)
        rows = self._draw(pixels.shape[1:], chosen, strength, caller)
        views = make_views(pixels[None], rows, self._constants, self._sizes)
        return [view[0] for view in views], rows[0]

    def draw(
        self,
        *,
        height: int,
        width: int,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        strength: float = 1.0,
    ) -> list[ViewParameters]:
        """Draw what is to be done to an image of some size, without doing it.

        Args:
            height: Height of the image in pixels, at least 1.
            width: Width of the image in pixels, at least 1.
            generator: As of a call.
            seed: As of a call.
            strength: As of a call.

        Returns:
            What was drawn for each view: crop box, mirrored or not, colour changes.

        Raises:
            OptionError: As of a call, if height or width are below 1, or if a view is made by a
                function.
        """
        caller = f"{type(self).__name__}.draw"
        self.check_described(caller)
        size = _side(caller, "height", height), _side(caller, "width", width)
        rows = self._draw(size, as_seed(seed, generator, caller=caller), strength, caller)
        return from_rows(rows[0])

    def apply(
        self, image: ImageLike, parameters: Iterable[ViewParameters] | ArrayLike
    ) -> list[Tensor]:
        """Make the views that were drawn; nothing here is random.

        So a view is cut again from its source, if need be with other colours or a wider box.

        Args:
            image: As of a call.
            parameters: As ``draw`` returns them for an image of this size, or rows as ``with_rows``
                does; any number, of any size.

        Returns:
            One view for each, as of a call.

        Raises:
            ImageInputError: As of a call, or if a box reaches outside the image.
            OptionError: If these are no parameters of views.

        Example:
            >>> transform = MultiCropTransform()
            >>> image = torch.zeros(3, 120, 160, dtype=torch.uint8)
            >>> drawn = transform.draw(height=120, width=160)
            >>> views = transform.apply(image, drawn)
            >>> mirrored = [view.flipped for view in drawn]
        """
        caller = f"{type(self).__name__}.apply"
        pixels = as_image(image, caller=caller)
        rows = as_parameters(parameters, caller=caller)
        check_boxes(rows, *pixels.shape[1:], caller=caller)
        sizes = rows[:, 4].int().tolist()
        return [view[0] for view in make_views(pixels[None], rows[None], self._constants, sizes)]

    @property
    def numbers_drawn(self) -> int:
        """How many numbers of the stream of a seed views may be drawn from; see ``uniforms``."""
        return self._table.numbers

    def check_described(self, caller: str) -> None:
        """Raise ``OptionError`` if a view is made by a function."""
        if self._functions:
            at, function = next(iter(self._functions.items()))
            raise OptionError(
                f"{caller} cannot say what view {at} does, which a function makes ({function!r}); "
                "call the transform itself, or describe the view with View(size=..., scale=...)."
            )

    def __repr__(self) -> str:
        lines = []
        for start, stop in ((0, self.n_global_views), (self.n_global_views, len(self.views))):
            kind = "local" if start else "global"
            for view, group in groupby(self.views[start:stop]):
                lines.append(f"    {len(list(group))} {kind}: {view!r},\n")
        mean, std = (tuple(round(value, 7) for value in row) for row in self._constants.tolist())
        return f"{type(self).__name__}(\n{''.join(lines)}    mean={mean}, std={std},\n)"

    def _set(
        self,
        global_views: list[View | ViewFunction],
        local_views: list[View | ViewFunction],
        *,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        caller = type(self).__name__
        for view in (*global_views, *local_views):
            if not isinstance(view, View) and (isinstance(view, type) or not callable(view)):
                raise OptionError(
                    f"{caller}.from_views expects View objects or functions, got {view!r}; describe "
                    "each view with View(size=..., scale=...), or pass what makes it of the image."
                )
        if not global_views:
            raise OptionError(
                f"{caller}.from_views expects at least one global view, got none; a teacher sees "
                "global views only."
            )
        self.views: tuple[View | ViewFunction, ...] = (*global_views, *local_views)
        self.n_global_views: int = len(global_views)
        self._functions = {
            at: view for at, view in enumerate(self.views) if not isinstance(view, View)
        }
        described = [view if isinstance(view, View) else None for view in self.views]
        self._table = ViewTable(described)
        self._sizes = [view.size for view in described if view is not None]
        # Of each view, its place among those of its size.
        self._places = [self._sizes[:at].count(size) for at, size in enumerate(self._sizes)]
        constants = [
            check_numbers(caller, "mean", mean, length=3),
            check_numbers(caller, "std", std, length=3),
        ]
        if not 0 <= min(constants[0]) <= max(constants[0]) <= 1:
            raise OptionError(
                f"{caller} expects mean in [0, 1], as values are when it is taken, got {mean!r}; divide it "
                "by 255."
            )
        if min(constants[1]) <= 0:
            raise OptionError(f"{caller} expects std above 0, got {std!r}.")
        self._constants = torch.tensor(constants, dtype=torch.float32, device="cpu")

    def _draw(
        self,
        size: Sequence[int],
        seeds: Tensor,
        strength: ArrayLike | Sequence[float] | float,
        caller: str,
    ) -> Tensor:
        height, width = size
        return draw_rows(
            self._table,
            height=height,
            width=width,
            seeds=seeds,
            strength=as_strength(strength, len(seeds), caller=caller),
        )

    def _with_functions(self, views: list[Tensor], image: ImageLike, seed: int) -> list[Tensor]:
        made = iter(views)
        return [
            next(made) if isinstance(view, View) else view_by(view, image, derive_seed(seed, at))
            for at, view in enumerate(self.views)
        ]


def _side(caller: str, name: str, pixels: int) -> int:
    if check_count(caller, name, pixels, least=1) > MOST_PIXELS:
        raise OptionError(f"{caller} expects {name} of at most {MOST_PIXELS} pixels, got {pixels}.")
    return int(pixels)
