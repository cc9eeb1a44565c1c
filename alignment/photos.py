"""Opening a photo: whatever file or PIL picture a person has, as an upright 8-bit RGB picture."""

import hashlib
import io
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError

from errors import PhotoError
from limits import limit

# A list of our own, because some of Pillow's other readers start external programs (EPS: Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "TGA", "ICO")
SUFFIXES = {".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}  # taken from folders
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


def open_photo(source: str | PathLike[str] | BinaryIO | Image.Image) -> Image.Image:
    """Open a photo as the rest of this project wants it.

    source: a path, a binary file object or a PIL picture of any mode and size.
    Returns a PIL picture, mode RGB, 8 bits, sRGB, upright (its EXIF orientation applied, then gone), loaded.
    Transparency is laid on white, 16 bits become 8, of an animation the first picture counts.
    A PIL picture that is already so is returned as it is. Raises PhotoError for everything that is not a picture,
    MemoryError if there is no room for it.
    """
    if isinstance(source, Image.Image):
        return _normalise(source, "This picture")
    name = Path(source).name if isinstance(source, str | PathLike) else "This file"
    try:
        data = source.read() if hasattr(source, "read") else Path(source).read_bytes()
    except OSError as error:
        raise PhotoError(f"{name} cannot be read ({error.strerror or error}); choose another file.") from error
    try:
        Image.init()
        picture = Image.open(io.BytesIO(data), formats=[kind for kind in FORMATS if kind in Image.OPEN])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PhotoError(_too_large(name)) from error
    except UnidentifiedImageError as error:
        heic = data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS
        kind = "a HEIC photo, which this program cannot read" if heic else "not a picture this program can read"
        raise PhotoError(f"{name} is {kind}; save it as JPEG or PNG and try again.") from error
    except Exception as error:  # decoders raise almost anything on a damaged header
        raise PhotoError(_damaged(name)) from error
    return _normalise(picture, name)


def file_digest(photo: Path) -> str:
    """Sixteen hexadecimal digits that tell photos with other bytes apart. Raises OSError if it cannot be read."""
    return hashlib.sha256(photo.read_bytes()).hexdigest()[:16]


def _normalise(picture: Image.Image, name: str) -> Image.Image:
    if picture.width * picture.height > limit("E4E_MAX_MEGAPIXELS") * 1_000_000:
        raise PhotoError(_too_large(name))
    if not picture.width or not picture.height:
        raise PhotoError(f"{name} has no pixels; choose another picture.")
    try:
        picture.load()
        upright = _upright(picture)
        if upright.mode != "RGB" or upright.info.get("icc_profile"):
            return _to_rgb(upright)
        held = isinstance(upright, ImageFile.ImageFile)  # by its decoder, which may keep the picture once more
        return upright.copy() if held else upright
    except MemoryError:
        raise
    except Exception as error:  # decoders raise almost anything on damaged data
        raise PhotoError(_damaged(name)) from error


def _too_large(name: str) -> str:
    return f"{name} has more than {limit('E4E_MAX_MEGAPIXELS')} million pixels; reduce it and try again."


def _damaged(name: str) -> str:
    return f"{name} is damaged or incomplete; save or download it again, or choose another picture."


def _upright(picture: Image.Image) -> Image.Image:
    try:
        turned = picture.getexif().get(0x0112, 1) != 1
    except Exception:  # unreadable EXIF says nothing about the pixels
        return picture
    return ImageOps.exif_transpose(picture) if turned else picture


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode to RGB in sRGB, without the picture's metadata."""
    profile = picture.info.get("icc_profile")
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = _to_eight_bits(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        colours, alpha = picture.convert("RGB"), picture.getchannel("A")
        colours = _to_srgb(colours, profile)
        return Image.composite(colours, Image.new("RGB", picture.size, "white"), alpha)
    if picture.mode not in ("RGB", "L", "CMYK"):
        picture = picture.convert("RGB")
    return _to_srgb(picture, profile)


def _to_eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or floating point to 8 bits; Pillow's own conversion would clip at 255."""
    grey = np.nan_to_num(np.asarray(picture, dtype=np.float32))
    top = float(grey.max())
    if picture.mode.startswith("I;16") or (picture.mode == "I" and 255 < top <= 65535):
        white = 65535.0
    elif picture.mode == "F" and top <= 1:
        white = 1.0
    else:
        white = max(top, 255.0)
    return Image.fromarray((grey.clip(0, white) * (255 / white) + 0.5).astype(np.uint8))


def _to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB, L or CMYK to RGB in sRGB; a profile that is broken or does not fit the mode is ignored."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "sRGB" not in ImageCms.getProfileDescription(source):
                target = ImageCms.createProfile("sRGB")
                picture = ImageCms.profileToProfile(picture, source, target, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass
    rgb = picture.convert("RGB")
    rgb.info.clear()
    return rgb
