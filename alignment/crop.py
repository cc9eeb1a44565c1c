"""The FFHQ alignment: a square crop, turned with the face, of a photo in memory (Karras et al. 2019, appendix A)."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image

from errors import NoFaceError, PhotoError

from .landmarks import Face, find_faces
from .photos import open_photo

FFHQ = (0.1, 1.0)  # (centre, scale) of the FFHQ template, see `align`


@dataclass(frozen=True, eq=False)
class Crop:
    """Where a crop lies in its photo.

    crop_to_photo: float64 [3, 3], takes homogeneous (x, y, 1) pixels of a crop of `size` to photo pixels; in both
        a pixel's centre is at whole numbers, as in `Face.landmarks`.
    size: (width, height) of the crop in pixels.
    landmarks: float32 [68, 2] in photo pixels of the face it was made for, or None.
    """

    crop_to_photo: np.ndarray
    size: tuple[int, int]
    landmarks: np.ndarray | None = None

    @cached_property
    def photo_to_crop(self) -> np.ndarray:
        """float64 [3, 3], the inverse of `crop_to_photo`."""
        return np.linalg.inv(self.crop_to_photo)

    @property
    def quad(self) -> np.ndarray:
        """float64 [4, 2]: the crop's outer corners in photo pixels, clockwise from the top left one."""
        w, h = self.size
        corners = np.array([(0, 0, 1), (w, 0, 1), (w, h, 1), (0, h, 1)]) - (0.5, 0.5, 0)
        return (corners @ self.crop_to_photo.T)[:, :2]

    @property
    def scale(self) -> float:
        """Photo pixels per crop pixel, along one axis."""
        return math.sqrt(abs(np.linalg.det(self.crop_to_photo)))

    def resized(self, size: tuple[int, int]) -> "Crop":
        """The same part of the photo, at (width, height) pixels."""
        sx, sy = self.size[0] / size[0], self.size[1] / size[1]
        resize = np.array([[sx, 0, (sx - 1) / 2], [0, sy, (sy - 1) / 2], [0, 0, 1]])
        return replace(self, crop_to_photo=self.crop_to_photo @ resize, size=size)


@dataclass(frozen=True, eq=False)
class CutOut:
    """What a model is to see of a photo.

    photo: upright RGB.
    faces: all faces found, the best first; empty for models of other things than faces.
    face: index of the one cut out.
    crop: where `picture` lies in `photo`.
    picture: RGB, the model's input.
    """

    photo: Image.Image
    faces: tuple[Face, ...]
    face: int
    crop: Crop
    picture: Image.Image


def cut_out(
    photo: Image.Image | Path | str | BinaryIO,
    face: int,
    size: int,
    template: tuple[float, float] | None = FFHQ,
    aspect: tuple[int, int] = (1, 1),
    faces: tuple[Face, ...] | None = None,
) -> CutOut:
    """Open a photo, find its faces and align one; without a template, cut out its middle.

    photo: path, open file or PIL picture. face: index into the faces, the best first. size, template, aspect: see
        `align` and `centre_crop`. faces: those found before, which are not searched again.
    Raises PhotoError for what is no picture and for a face that is not there, NoFaceError if there is none.
    """
    photo = open_photo(photo)
    if template is None:
        if face:
            raise PhotoError("This model edits the whole picture, not faces; leave the face at 0.")
        picture, crop = centre_crop(photo, size, aspect)
        return CutOut(photo, (), 0, crop, picture)
    faces = tuple(find_faces(photo)) if faces is None else faces
    if not faces:
        raise NoFaceError(
            "No face was found in this photo; choose one in which a face is large, upright and unobstructed."
        )
    if not 0 <= face < len(faces):
        numbers = f"{len(faces)} faces, numbers 0 to {len(faces) - 1}" if len(faces) > 1 else "one face, number 0"
        raise PhotoError(f"There is no face {face} in this photo; it has {numbers}.")
    picture, crop = align(photo, faces[face], size, template)
    return CutOut(photo, faces, face, crop, picture)


def align(
    photo: Image.Image, face: Face, size: int = 256, template: tuple[float, float] = FFHQ
) -> tuple[Image.Image, Crop]:
    """Cut out a face the way the model's training data were cut.

    photo: the picture `find_faces` got. face: one of its answers. size: side of the crop in pixels.
    template: (centre, scale). The square's middle is eyes + centre · (mouth − eyes), its half side is
        scale · max(2 · distance of the eyes, 1.8 · distance from eyes to mouth); (0.1, 1) is FFHQ's.
    Returns the crop (RGB, size × size) and its place in the photo. Beyond the photo's edges the picture is mirrored
    and blurred, and fades to its median colour.
    """
    photo = open_photo(photo)
    points = face.landmarks.astype(np.float64)
    left_eye, right_eye = points[36:42].mean(axis=0), points[42:48].mean(axis=0)
    eyes, mouth = (left_eye + right_eye) / 2, (points[48] + points[54]) / 2
    across, down = right_eye - left_eye, mouth - eyes
    centre, scale = template
    # Both the line of the eyes and the (turned) line to the mouth tell which way is right; the mean of the two counts.
    right = across + np.array([down[1], -down[0]])
    right *= scale * max(2 * np.hypot(*across), 1.8 * np.hypot(*down)) / max(np.hypot(*right), 1e-6)
    lower = np.array([-right[1], right[0]])
    crop = _place(eyes + centre * down - right - lower, 2 * right, 2 * lower, (size, size), face.landmarks)
    return cut(photo, crop), crop


def centre_crop(photo: Image.Image, size: int = 256, aspect: tuple[int, int] = (1, 1)) -> tuple[Image.Image, Crop]:
    """Cut out the largest part of this aspect (width, height) from a photo's middle, for domains without faces.

    size: the crop's longer side in pixels. Returns the crop (RGB) and its place in the photo.
    """
    photo = open_photo(photo)
    unit = min(photo.width / aspect[0], photo.height / aspect[1])
    width, height = unit * aspect[0], unit * aspect[1]
    corner = np.array([photo.width - width - 1, photo.height - height - 1]) / 2
    longest = max(aspect)
    pixels = (round(size * aspect[0] / longest), round(size * aspect[1] / longest))
    crop = _place(corner, np.array([width, 0.0]), np.array([0.0, height]), pixels)
    return cut(photo, crop), crop


def _place(
    corner: np.ndarray, right: np.ndarray, lower: np.ndarray, size: tuple[int, int], landmarks: np.ndarray | None = None
) -> Crop:
    """The crop with this outer corner and these two sides, in photo pixels."""
    unit_to_photo = np.array([[right[0], lower[0], corner[0]], [right[1], lower[1], corner[1]], [0, 0, 1]])
    width, height = size
    crop_to_unit = np.array([[1 / width, 0, 0.5 / width], [0, 1 / height, 0.5 / height], [0, 0, 1]])
    return Crop(unit_to_photo @ crop_to_unit, size, landmarks)


def cut(photo: Image.Image, crop: Crop) -> Image.Image:
    """The crop's pixels, an RGB picture of its size. Only the part of the photo (RGB) around the crop is read."""
    side = crop.scale * max(crop.size)  # in photo pixels
    margin = max(round(0.1 * side), 3)
    left, top = np.floor(crop.quad.min(axis=0)).astype(int) - margin
    right, bottom = np.ceil(crop.quad.max(axis=0)).astype(int) + 1 + margin
    box = (max(left, 0), max(top, 0), min(right, photo.width), min(bottom, photo.height))
    overhang = np.array([box[0] - left, box[1] - top, right - box[2], bottom - box[3]])

    shrink = max(int(crop.scale), 1)
    size = (max(1, round((box[2] - box[0]) / shrink)), max(1, round((box[3] - box[1]) / shrink)))
    part = photo.resize(size, Image.Resampling.LANCZOS, box=box) if shrink > 1 else photo.crop(box)
    sx, sy = (box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1]
    photo_to_part = np.array(
        [[1 / sx, 0, (0.5 - box[0]) / sx - 0.5], [0, 1 / sy, (0.5 - box[1]) / sy - 0.5], [0, 0, 1]]
    )
    pixels = np.asarray(part)
    if overhang.max() > margin - 4:  # the crop itself, not only its margin, reaches beyond the photo
        pads = np.where(overhang > 0, np.maximum(overhang, round(0.3 * side)), 0) / shrink
        pixels, (dx, dy) = _extend(pixels, np.ceil(pads).astype(int), 0.02 * side / shrink)
        photo_to_part = np.array([[1, 0, dx], [0, 1, dy], [0, 0, 1]]) @ photo_to_part

    # Up to two photo pixels per crop pixel are left: taken at double size and averaged, none is skipped.
    double = crop.resized((2 * crop.size[0], 2 * crop.size[1]))
    matrix = (photo_to_part @ double.crop_to_photo)[:2]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    picture = cv2.warpAffine(pixels, matrix, double.size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return Image.fromarray(cv2.resize(picture, crop.size, interpolation=cv2.INTER_AREA))


def _extend(pixels: np.ndarray, pads: np.ndarray, sigma: float) -> tuple[np.ndarray, tuple[int, int]]:
    """Mirror uint8 pixels [h, w, 3] outwards by `pads` (left, top, right, bottom), blurred, fading to the median.

    Returns the larger array and how far (x, y) the picture moved in it.
    """
    left, top, right, bottom = (int(pad) for pad in pads)
    padded = np.pad(pixels, ((top, bottom), (left, right), (0, 0)), "reflect").astype(np.float32)
    # Distance beyond the photo's edge in units of the pad: 1 at the outer end, 0 at the edge, negative inside.
    x = np.arange(padded.shape[1], dtype=np.float32)[None, :]
    y = np.arange(padded.shape[0], dtype=np.float32)[:, None]
    ends = ((x, left), (y, top), (padded.shape[1] - 1 - x, right), (padded.shape[0] - 1 - y, bottom))
    beyond = np.full(padded.shape[:2], -1, dtype=np.float32)
    for distance, pad in ends:
        if pad:
            beyond = np.maximum(beyond, 1 - distance / pad)
    beyond = beyond[..., None]
    coarse = max(int(sigma / 4), 1)  # a wide blur needs no fine grid
    blurred = cv2.resize(padded, None, fx=1 / coarse, fy=1 / coarse, interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(blurred, (0, 0), sigma / coarse, borderType=cv2.BORDER_REFLECT)
    blurred = cv2.resize(blurred, padded.shape[1::-1])
    padded += (blurred - padded) * np.clip(3 * beyond + 1, 0, 1)
    padded += (np.median(padded, axis=(0, 1)) - padded) * np.clip(beyond, 0, 1)
    return np.clip(np.rint(padded), 0, 255).astype(np.uint8), (left, top)
