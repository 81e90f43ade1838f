"""One image's file as whole numbers 0 to 255 [channels, height, width]: PNG and JPEG by Pillow, DICOM by pydicom.

Sizes are read from the file's head and compared with what is expected before a pixel is decoded. `look` decodes too:
a file that breaks off in the middle is then a row at fault when records are loaded, and not a failed round.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from sovfed.federation.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from PIL.Image import Image
    from pydicom import Dataset

    from sovfed.federation.tasks.columns import Column

FORMATS: Final = ("PNG", "JPEG")
MODES: Final = {1: ("L", "1"), 3: ("RGB", "P", "RGBA"), 4: ("RGBA",)}  # Pillow's, by channels
MAX_HEAD: Final = 1 << 22  # bytes of a file beyond those that its pixels would take unpacked
DEFLATED: Final = "1.2.840.10008.1.2.1.99"  # DICOM's transfer syntax
DICOM: Final = (".dcm", ".dicom", ".ima")
PLAIN: Final = (".png", ".jpg", ".jpeg")


class _UnfitError(Exception):
    """Says what a file has and what was expected: no value and no name."""


@contextmanager
def _decoding(what: str) -> Iterator[None]:
    """Raise _UnfitError, which says `what`, for whatever a library raises over the bytes of one file.

    Nobody can list that, and whatever else escaped would take all other records with this one.
    """
    try:
        yield
    except (_UnfitError, DataError, MemoryError):
        raise
    except Exception as error:
        raise _UnfitError(f"{what} ({type(error).__name__})") from None


def look(folder: Path, name: str, column: Column) -> str:
    """Why the image `name` in `folder` does not fit `column`, or cannot be decoded to its end; "" if it can."""
    if not name or not _inside(folder, name):
        return "a name is empty or leads out of the folder"
    try:
        _pixels(folder / name, column)
    except _UnfitError as reason:
        return str(reason)
    return ""


def decode(path: Path, column: Column) -> npt.NDArray[np.uint8]:
    """The image's pixels. Raises DataError."""
    try:
        return _pixels(path, column)
    except _UnfitError as reason:
        raise DataError(f"an image of column '{column.name}' no longer fits: {reason}") from None


def shape_of(folder: Path, name: str) -> tuple[int, int, int] | None:
    """Channels, height and width of the image `name` in `folder`, by its head; None if it is no image of ours."""
    if not name or not _inside(folder, name):
        return None
    path = folder / name
    try:
        with _decoding("no image"):
            if not path.is_file():
                return None
            if _is_dicom(path):
                return _dicom_shape(_dicom(path, pixels=False))
            with _picture(path) as image:
                channels = next((count for count, modes in MODES.items() if image.mode in modes), 0)
                return (channels, image.height, image.width) if channels else None
    except (_UnfitError, DataError):
        return None


def _pixels(path: Path, column: Column) -> npt.NDArray[np.uint8]:
    """Shape [channels, height, width]. Raises _UnfitError, and DataError where pydicom is not installed."""
    _check_size(path, column)
    with _decoding("a file cannot be decoded to its end"):
        if _is_dicom(path):
            return _dicom_pixels(_dicom(path, pixels=True), column)
        with _picture(path) as image:
            _check(image, column)
            pixels = np.asarray(image.convert(_mode(column)), np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _inside(folder: Path, name: str) -> bool:
    """Whether `name` stays within `folder`, also through links."""
    if "\0" in name or os.path.isabs(name):  # noqa: PTH117 - a text, not yet a path
        return False
    inner = os.path.realpath(folder / name)
    return inner.startswith(_root(folder) + os.sep)


@lru_cache(maxsize=16)
def _root(folder: Path) -> str:
    return os.path.realpath(folder)


def _check_size(path: Path, column: Column) -> None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        raise _UnfitError("a file is not there or cannot be opened") from None
    if not stat.S_ISREG(status.st_mode):
        raise _UnfitError("a name is no file's")
    most = 4 * column.size + MAX_HEAD
    if not 0 < status.st_size <= most:
        raise _UnfitError(f"a file has {status.st_size} bytes, expected 1 to {most}")


def _picture(path: Path) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(path, formats=FORMATS)
    except UnidentifiedImageError:
        raise _UnfitError(f"a file is none of {', '.join(FORMATS)} or DICOM ({', '.join(DICOM)})") from None


def _mode(column: Column) -> str:
    return {1: "L", 3: "RGB", 4: "RGBA"}.get(column.shape[0], "")


def _check(image: Image, column: Column) -> None:
    channels, height, width = column.shape
    if image.size != (width, height):
        raise _UnfitError(
            f"an image has {image.size[0]} × {image.size[1]} pixels (width × height), expected {width} × {height}: "
            "bring all to this size before"
        )
    if image.mode not in MODES.get(channels, ()):
        raise _UnfitError(f"an image's colours are '{image.mode}', expected {channels} channels of 8 bits")
    if getattr(image, "n_frames", 1) != 1:
        raise _UnfitError("an image has several frames")


def _is_dicom(path: Path) -> bool:
    if (suffix := path.suffix.lower()) in DICOM or suffix in PLAIN:
        return suffix in DICOM
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _dicom(path: Path, *, pixels: bool) -> Dataset:
    try:
        import pydicom
    except ImportError:
        raise DataError("a DICOM image needs pydicom: pip install 'sovfed[dicom]'") from None
    with _decoding("a file is no DICOM"):
        if pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID") == DEFLATED:
            raise _UnfitError("a DICOM file is deflated as a whole, to a size that nothing bounds: save it unpacked")
        return pydicom.dcmread(path, stop_before_pixels=not pixels)


def _check_dicom(data: Dataset, column: Column) -> None:
    channels, height, width = column.shape
    shape = _dicom_shape(data)
    if shape != (channels, height, width) or int(data.get("NumberOfFrames", 1) or 1) != 1:
        raise _UnfitError(
            f"a DICOM image has {shape[2]} × {shape[1]} pixels of {shape[0]} channels, expected one frame of "
            f"{width} × {height} of {channels}"
        )


def _dicom_shape(data: Dataset) -> tuple[int, int, int]:
    """Channels, height and width."""
    return int(data.get("SamplesPerPixel", 1)), int(data.get("Rows", 0)), int(data.get("Columns", 0))


def _dicom_pixels(data: Dataset, column: Column) -> npt.NDArray[np.uint8]:
    """Rescaled, windowed as the file says (else over all that its bits can be), and 255 always the brightest."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    _check_dicom(data, column)
    with _decoding("a DICOM image cannot be decoded"):
        raw = data.pixel_array
        if column.shape[0] == 3:
            return np.ascontiguousarray(np.asarray(raw, np.uint8).transpose(2, 0, 1))
        values = np.asarray(apply_modality_lut(raw, data), np.float64)
        low, high = _window(data)
        if "WindowWidth" not in data and "VOILUTSequence" in data:
            values = np.asarray(apply_voi_lut(raw, data), np.float64)
            low, high = float(values.min()), float(values.max())
        if not np.isfinite([low, high]).all():
            raise ValueError("a window without end")
    scaled = np.clip((values - low) / max(high - low, 1e-9), 0.0, 1.0) * 255.0
    if data.get("PhotometricInterpretation") == "MONOCHROME1":
        scaled = 255.0 - scaled
    return np.rint(scaled).astype(np.uint8)[None]


def _window(data: Dataset) -> tuple[float, float]:
    """Least and greatest rescaled value that is told apart."""
    if "WindowCenter" in data and "WindowWidth" in data:
        centre, width = _first(data.WindowCenter), _first(data.WindowWidth)
        return centre - width / 2, centre + width / 2
    bits, signed = int(data.get("BitsStored", 16)), int(data.get("PixelRepresentation", 0))
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    slope, intercept = float(data.get("RescaleSlope", 1)), float(data.get("RescaleIntercept", 0))
    return min(low * slope, high * slope) + intercept, max(low * slope, high * slope) + intercept


def _first(value: Any) -> float:
    return float(value[0] if isinstance(value, (list, tuple)) or hasattr(value, "__len__") else value)
