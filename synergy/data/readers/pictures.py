"""Images wherever a row keeps them: bytes, {bytes, path} structs, base64, files below a folder, members of a zip file.

Bytes go through as they are. Each image is decoded once at most: of a JPEG that is whole by its markers only the beginning
(``jpeg``), unless its perceptual hash is asked for; then it is decoded at down to an eighth of its size.
"""

from __future__ import annotations

import base64
import binascii
import functools
import io
import os
import urllib.parse
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synergy.data import untrusted
from synergy.data.readers import jpeg
from synergy.driver import scan

FORMATS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}
"""Formats that are opened, and their suffix. Others run programs (EPS) or are no pictures that the frameworks read."""
OPENED = tuple(name for name in FORMATS if name != "MPO")  # which Pillow finds in what it opens as JPEG
MOST_BYTES = 64 << 20
MOST_PIXELS = 50_000_000
"""Of an image: a page of A3 at 400 dpi has 31 million."""
MOST_RATIO = 200
"""Of a zip member's size to what it takes in the archive, and of an image's longer side to the shorter (Qwen2-VL's limit)."""
SIDE, BITS = 64, 256
"""Pixels of a side from which the perceptual hash is made, and its length."""


class Unreadable(ValueError):
    """An image that can't be opened."""


class Unsafe(ValueError):
    """An image or archive that is refused, whatever it holds."""


@dataclass(frozen=True)
class Seen:
    """name: ``images/ab/<BLAKE3>.png``. hash: perceptual, in hexadecimal digits; '' where it was not asked for."""

    name: str
    width: int
    height: int
    hash: str

    def row(self) -> list[Any]:
        return [self.name, self.width, self.height, self.hash]


def data(cell: Any, media: Path) -> tuple[bytes, Path | None]:
    """The bytes of an image cell, and the file that was read for it. media: the folder or zip file of what cells name.

    Raises Unreadable, or Unsafe for what lies outside the media or is too large.
    """
    if isinstance(cell, Mapping):
        if cell.get("bytes"):
            return _bounded(bytes(cell["bytes"])), None
        if cell.get("base64"):
            try:
                return _bounded(base64.b64decode(cell["base64"], validate=True)), None
            except (binascii.Error, ValueError) as error:
                raise Unreadable(f"is not base64 ({error})") from error
        cell = cell.get("path")
    if isinstance(cell, (bytes, bytearray)):
        return _bounded(bytes(cell)), None
    if not isinstance(cell, str):
        raise Unreadable(f"is {type(cell).__name__}: neither bytes nor a name")
    if media.is_file():
        return _member(media, cell), media
    file = place(cell, media)
    try:
        size = os.stat(file).st_size
        if size > MOST_BYTES:
            raise Unsafe(f"{cell!r} has {size >> 20} MiB, more than {MOST_BYTES >> 20}")
        return file.read_bytes(), file
    except OSError as error:
        raise Unreadable(f"{file} can't be read ({error.strerror})") from error


def place(name: str, media: Path) -> Path:
    """The file that a name or file:// address means. Raises Unsafe unless it lies below the media folder, links followed."""
    if name.startswith("file://"):
        name = urllib.parse.unquote(name.removeprefix("file://"))
    if "\0" in name or len(name) > 4096:
        raise Unsafe("its name is no file name")
    below = name
    if os.path.isabs(name):  # published sets may name their images so; records never do
        root = next((root for root in (str(media), untrusted.real(media)) if name.startswith(f"{root}/")), None)
        below = os.path.relpath(name, root) if root else name
    try:
        return untrusted.inside(media, os.path.normpath(below))
    except ValueError as error:
        raise Unsafe(
            f"{name[:80]!r} {error} (media: {media}); set media to the folder that holds the images"
        ) from error


def _bounded(found: bytes) -> bytes:
    if len(found) > MOST_BYTES:
        raise Unsafe(f"has {len(found) >> 20} MiB, more than {MOST_BYTES >> 20}")
    return found


@functools.lru_cache(maxsize=4)
def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise Unreadable(f"{path} can't be read as zip ({error})") from error


def _member(path: Path, name: str) -> bytes:
    """A member of a zip file, never unpacked to disk. Its name is only looked up, so it can lead nowhere."""
    archive = _archive(path)
    try:
        told = archive.getinfo(name.removeprefix("file://").removeprefix("./"))
        if told.file_size > MOST_BYTES or told.file_size > MOST_RATIO * max(told.compress_size, 1):
            raise Unsafe(
                f"{path.name}: {name!r} would unpack from {told.compress_size} to {told.file_size} bytes: a zip bomb"
            )
        with archive.open(told) as stream:
            found = stream.read(MOST_BYTES + 1)  # whatever its header says
    except KeyError as error:
        raise Unreadable(f"{path.name} has no member {name!r}") from error
    except (OSError, RuntimeError, NotImplementedError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise Unreadable(f"{path.name}: {name!r} can't be unpacked ({error})") from error
    return _bounded(found)


def look(found: bytes, hashed: bool = True) -> Seen:
    """Looks whether an image can be decoded; hashed: takes its perceptual hash too. Raises Unreadable or Unsafe."""
    width, height, suffix, mark = _looked(found, hashed)
    digest = scan.content(found)
    return Seen(f"images/{digest[:2]}/{digest}.{suffix}", width, height, mark)


def perceptual(found: bytes) -> str:
    """The perceptual hash of an image that was looked at before."""
    return _looked(found, True)[3]


def _looked(found: bytes, hashed: bool) -> tuple[int, int, str, str]:
    from PIL import Image

    told = None if hashed or found[:2] != b"\xff\xd8" else jpeg.whole(found)
    if told is not None:
        _bound(told.width, told.height)
        if told.head in _decoded:
            return told.width, told.height, FORMATS["JPEG"], ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is lower
            with Image.open(io.BytesIO(told.sample if told else found), formats=OPENED) as picture:
                width, height = picture.size
                _bound(width, height)
                suffix = FORMATS[str(picture.format)]
                picture.draft("L", (SIDE, SIDE))
                picture.load()
                grey = picture.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS) if hashed else None
    except (Unsafe, Unreadable):
        raise
    except Image.DecompressionBombError as error:
        raise Unsafe(f"is a decompression bomb ({error})") from error
    except Exception as error:  # whatever a damaged picture makes the decoder raise
        raise Unreadable(f"can't be opened ({error})") from error
    if told is not None and len(_decoded) < 1000:
        _decoded.add(told.head)
    return width, height, suffix, _hash(grey.tobytes()) if grey is not None else ""


_decoded: set[bytes] = set()
"""Heads of JPEGs that could be decoded."""


def _bound(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise Unsafe(f"has {width}x{height} pixels, more than {MOST_PIXELS:,}")
    if max(width, height) > MOST_RATIO * min(width, height):
        raise Unreadable(f"is {width}x{height}: one side is more than {MOST_RATIO} times the other")


def _hash(grey: bytes) -> str:
    """pHash, as the library imagehash makes it: whether each of the 16 x 16 lowest frequencies is over their median. Zeros for
    a picture of one colour, which has none."""
    import numpy as np
    from scipy.fft import dctn

    pixels = np.frombuffer(grey, np.uint8).reshape(SIDE, SIDE).astype(np.float32)
    low = dctn(pixels)[:16, :16].ravel()
    low[0] = 0  # how bright it is on the whole
    found = low > np.median(low) if pixels.std() >= 1 else np.zeros(BITS, bool)
    return np.packbits(found).tobytes().hex()


def enlarged(found: bytes, least: int) -> bytes:
    """The image as PNG, each side at least ``least`` pixels."""
    from PIL import Image

    with Image.open(io.BytesIO(found), formats=OPENED) as picture:
        scale = least / min(picture.size)
        size = tuple(max(least, round(side * scale)) for side in picture.size)
        out = io.BytesIO()
        picture.convert("RGB").resize((size[0], size[1]), Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()


def keep(found: bytes, seen: Seen, folder: Path) -> None:
    """Writes an image under its name, unless it is there or being written by another process. A folder that is left behind
    half-written is the caller's to throw away."""
    target = f"{folder}/{seen.name}"
    with suppress(FileExistsError):
        try:
            file = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            file = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with open(file, "wb", buffering=0) as stream:
            stream.write(found)
