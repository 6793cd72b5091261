"""Image files as tensors: what a picture of 8 bits would misrepresent is refused by its name."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from lightning_znorm.errors import DataError

__all__ = ["read_image", "read_mask"]

_SHOWN = 4


class _UnsuitableError(Exception):
    """What is wrong with an image, in words that follow its name."""


def read_image(path: Path, window: tuple[float, float] | None = None) -> Tensor:
    """Return an image as RGB, uint8 of shape ``(3, H, W)``.

    It is turned upright as its EXIF data say, and transparent pixels are put over black. Of colors with 16 bits per
    channel Pillow keeps the upper 8. The window has the values that become 0 and 255 where a gray image has more than 8
    bits; those beyond are clipped.
    """
    with _opened(path) as image:
        if not _is_deep(image):
            pixels: Tensor = pil_to_tensor(_flatten(image))
        elif window is None:
            raise _UnsuitableError(
                f"has more than 8 bits per pixel (mode {image.mode}), and which values are black and white is not"
                " known. Convert it to 8 bits, or, for `ImageFolder`, set `window`, for example to (0, 4095)."
            )
        elif image.format == "PPM":
            raise _UnsuitableError(
                "is a PGM file of more than 8 bits, whose values Pillow rescales, so that `window` would mean other"
                " values. Convert it to PNG or TIFF."
            )
        else:
            pixels = _apply_window(image, *window).expand(3, -1, -1).contiguous()
    return pixels


def read_mask(path: Path) -> Tensor:
    """Return a mask as uint8 of shape ``(1, H, W)``: 0 where the image is black, 1 where it has its one other value.

    That value may be any number or color: masks of 0 and 1, of 0 and 255, or of black and red mean the same.
    Transparent pixels are put over black.
    """
    with _opened(path) as image:
        is_gray = _is_deep(image) or (image.mode in ("1", "L") and not image.has_transparency_data)
        values = np.asarray(image if is_gray else _flatten(image))
        covered = values != 0 if is_gray else values.any(axis=-1)
        chosen = values[covered]
        if len(chosen) > 0 and (covered.all() or (chosen != chosen[0]).any()):
            raise _UnsuitableError(
                f"is not a mask: the background must be black, and everything else of one value or color, but its"
                f" values are {_list_values(values)}. Save it without soft edges (not as JPEG), over black."
            )
        if len(chosen) == 0 and not is_gray and (np.asarray(image) != np.asarray(image)[0, 0]).any():
            raise _UnsuitableError(
                "is not a mask: its pixels differ in transparency or in their place in the palette, but all of them are"
                " black. Save the mask in black and white."
            )
    return torch.from_numpy(covered.astype(np.uint8))[None]


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Decode an image and turn it upright; name it in what goes wrong with it."""
    try:
        with Image.open(path) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError(f"{image.width} x {image.height}")
            pages = getattr(image, "n_frames", 1)
            if pages > 1 and image.format != "MPO":
                raise _UnsuitableError(
                    f"has {pages} pages or frames, and which of them is meant is not known. Save each as a file."
                )
            ImageOps.exif_transpose(image, in_place=True)
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"{path} has more than {Image.MAX_IMAGE_PIXELS} pixels ({error}) and is not decoded: small files of this"
            " kind can fill the memory. Shrink it, or raise `PIL.Image.MAX_IMAGE_PIXELS`."
        ) from error
    except _UnsuitableError as error:
        raise DataError(f"{path} {error}") from error
    except Exception as error:  # Pillow raises errors of many kinds where a file is damaged
        raise DataError(f"{path} is not a readable image ({error!r}). Replace it, or remove it.") from error


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _flatten(image: Image.Image) -> Image.Image:
    """Return an image in RGB, with black behind what is transparent."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")


def _apply_window(image: Image.Image, low: float, high: float) -> Tensor:
    values = torch.from_numpy(np.array(image, dtype=np.float64))
    if values.isnan().any():
        raise _UnsuitableError("has pixels that are not a number (NaN). Give them a value, or remove the image.")
    return ((values - low) / (high - low) * 255).clamp(0, 255).round().to(torch.uint8)


def _list_values(values: np.ndarray) -> str:
    """Return the first of the values or colors in an image."""
    unique = np.unique(values.reshape(values.shape[0] * values.shape[1], -1), axis=0)
    first = [str(value[0] if len(value) == 1 else tuple(value)) for value in unique[:_SHOWN].tolist()]
    return ", ".join(first) + (f" and {len(unique) - _SHOWN} more" if len(unique) > _SHOWN else "")
