"""Takes a user's image, whatever holds it, as uint8 channels first, copying as little as it can.

It knows nothing of crops or colours.
"""

from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from raremix.errors import ImageInputError
from raremix.inputs import tensor_of

__all__ = ["MOST_PIXELS", "ImageLike", "as_image", "as_images"]

MOST_PIXELS = 1 << 24
"""Up to here, float32 rows hold every edge of a box exactly."""


ImageLike: TypeAlias = "Image.Image | Tensor | np.ndarray[Any, np.dtype[Any]]"
"""A PIL image, a uint8 tensor (1 or 3, height, width) or a uint8 array (height, width, 1 or 3)."""

# More than 8 bits a pixel. Which part of their span holds the picture, only the caller knows.
_DEEP_MODES = ("F", "I")


def as_image(image: ImageLike, *, caller: str) -> Tensor:
    """Turn an image into a uint8 tensor of shape (1 or 3, height, width) on the CPU.

    Channels come out as planes, or as a channels-first view of channels-last memory, whichever they
    were: the kernel takes both. The result may share memory with ``image`` and must not be written
    to.

    Args:
        image: A PIL image of 8 bits or fewer per channel (an alpha channel is dropped, a palette
            looked up, other colour spaces converted to RGB; the EXIF orientation is not applied);
            a uint8 tensor of shape (1 or 3, height, width); or a uint8 array of shape (height,
            width), (height, width, 1) or (height, width, 3).
        caller: The call to name in an error.

    Raises:
        ImageInputError: If the image is none of these, or has no pixels.
    """
    if isinstance(image, Image.Image):
        tensor = _from_pil(image, caller)
    elif isinstance(image, Tensor):
        tensor = _from_tensor(image, caller)
    elif isinstance(image, np.ndarray):
        tensor = _from_array(image, caller)
    else:
        raise ImageInputError(
            f"{caller} expects an image as a PIL image, a uint8 tensor of shape (1 or 3, height, "
            f"width) or a uint8 array of shape (height, width, 3), got {type(image).__name__}; "
            "open files with PIL.Image.open(path)."
        )
    if tensor.numel() == 0:
        raise ImageInputError(
            f"{caller} got an image of {tensor.shape[2]} x {tensor.shape[1]} pixels, which has "
            "nothing to crop; leave empty images out of the dataset."
        )
    return _in_order(_checked_size(tensor[None], caller))[0]


def as_images(images: Tensor, *, caller: str) -> Tensor:
    """Take a uint8 tensor of shape (n, 1 or 3, height, width) on any device.

    Raises:
        ImageInputError: If it is none, or its images have no pixels.
    """
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise ImageInputError(
            f"{caller} expects a uint8 tensor of shape (n, 1 or 3, height, width), got {got}; "
            "stack images of one size with torch.stack, and call the transform itself on others."
        )
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        hint = "move the channels first with .permute(0, 3, 1, 2), and drop an alpha channel with [:, :3]"
        if images.ndim == 3:
            hint = "add the batch with .unsqueeze(0)"
        elif images.ndim != 4:
            hint = "stack images of one size with torch.stack"
        elif 0 in images.shape[2:]:
            hint = "leave images without pixels out of the dataset"
        raise ImageInputError(
            f"{caller} expects a tensor of shape (n, 1 or 3, height, width), got "
            f"{tuple(images.shape)}; {hint}."
        )
    return _in_order(_checked_size(images.detach().as_subclass(Tensor), caller))


def _checked_size(images: Tensor, caller: str) -> Tensor:
    if max(images.shape[2:]) > MOST_PIXELS:
        raise ImageInputError(
            f"{caller} expects images of at most {MOST_PIXELS} pixels a side, got "
            f"{images.shape[3]} x {images.shape[2]}; cut them into tiles."
        )
    return images


def _in_order(images: Tensor) -> Tensor:
    """Copy pixels that are neither planes nor channels last."""
    colour = images.shape[1] == 3
    if images.stride(3) == 1 or (colour and (images.stride(3), images.stride(1)) == (3, 1)):
        return images
    if colour:
        return images.contiguous(memory_format=torch.channels_last)
    # Of a single pixel's width torch takes any step for contiguous.
    return images.clone(memory_format=torch.contiguous_format)


def _from_pil(image: Image.Image, caller: str) -> Tensor:
    mode = image.mode
    if mode.startswith(_DEEP_MODES):
        raise ImageInputError(
            f"{caller} expects 8 bits per channel, got a PIL image of mode {mode!r}; scale it to "
            "0..255 by the span your data uses, such as Image.fromarray((numpy.asarray(image) / "
            "257).astype('uint8')) for full 16 bits."
        )
    try:
        if mode in ("1", "LA"):
            image = image.convert("L")
        elif mode == "La":
            image = image.convert("LA").convert("L")
        elif mode == "PA" or (mode == "P" and "transparency" in image.info):
            # By way of RGBA: straight to RGB, PIL warns of the transparency it drops.
            image = image.convert("RGBA").convert("RGB")
        elif mode == "RGBa":
            image = image.convert("RGBA").convert("RGB")
        elif mode not in ("RGB", "L"):
            image = image.convert("RGB")
    except ValueError as error:
        raise ImageInputError(
            f"{caller} got a PIL image of mode {mode!r}, which PIL cannot convert to RGB: {error}; "
            "convert it to RGB first."
        ) from error
    return _channels_first(np.asarray(image))


def _from_tensor(image: Tensor, caller: str) -> Tensor:
    if image.dtype != torch.uint8:
        hint = (
            "leave out ToTensor, or scale to 0..255 and call .round().to(torch.uint8)"
            if image.is_floating_point()
            else "call .to(torch.uint8) once its values lie in 0..255"
        )
        raise ImageInputError(f"{caller} expects a uint8 tensor, got {image.dtype}; {hint}.")
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ImageInputError(
            f"{caller} expects a tensor of shape (1 or 3, height, width), got "
            f"{tuple(image.shape)}; {_shape_hint(image.ndim)}."
        )
    if image.layout != torch.strided:
        raise ImageInputError(
            f"{caller} expects a dense tensor, got {image.layout}; call .to_dense()."
        )
    if image.device.type != "cpu":
        raise ImageInputError(
            f"{caller} expects a tensor on the CPU, got one on {image.device}; call .cpu()."
        )
    # Strips torchvision's tv_tensors.Image, which would follow every step along.
    return image.detach().as_subclass(Tensor)


def _from_array(image: "np.ndarray[Any, np.dtype[Any]]", caller: str) -> Tensor:
    if image.dtype != np.uint8:
        raise ImageInputError(
            f"{caller} expects a uint8 array, got {image.dtype}; scale it to 0..255 and call "
            ".astype('uint8')."
        )
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise ImageInputError(
            f"{caller} expects an array of shape (height, width), (height, width, 1) or (height, "
            f"width, 3), got {image.shape}; move the channels last with .transpose(1, 2, 0), and "
            "drop an alpha channel with [:, :, :3]."
        )
    if any(stride < 0 for stride in image.strides):
        image = image.copy(order="C")
    return _channels_first(image)


def _channels_first(array: "np.ndarray[Any, np.dtype[Any]]") -> Tensor:
    tensor = tensor_of(array)
    return tensor.unsqueeze(0) if tensor.ndim == 2 else tensor.permute(2, 0, 1)


def _shape_hint(ndim: int) -> str:
    if ndim == 2:
        return "add the channel with .unsqueeze(0)"
    if ndim == 4:
        return "pass one image at a time"
    return "move the channels first with .permute(2, 0, 1), and drop an alpha channel with [:3]"
