"""Finding faces: dlib's HOG detector and 68 landmarks, on a photo of any size, upright or tilted."""

import importlib.util
import math
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import dlib
import numpy as np
from PIL import Image, ImageOps

from errors import ModelError

from .photos import open_photo

SEARCH_PIXELS = (2**20, 3 * 2**19)  # a quarter of the photo is searched first, at least and at most this: 0.2 to 0.3 s
TILTED_PIXELS = 2**20  # the same for each of the turned copies
FINE_PIXELS = 2**22  # for small faces, only when the first look finds nothing certain, or several
RUNG = 5 / 6  # dlib's detector searches an image pyramid with this ratio
WINDOW = 80  # px, the side of dlib's detection window: smaller faces are not found
LARGEST_FACE = 640  # px, landmarks of larger faces are read off a reduced copy
LARGEST_ROLL = 12  # degrees, landmarks of faces tilted further are read again, off a copy that stands upright
CONFIDENT = 0.4  # from this score on, it is a face
COMPANION = 0.2  # the least score of a face beside a certain one
READINGS = [((0, 0), 1.0), ((0.03, 0), 0.95), ((-0.03, 0), 0.95), ((0, 0.03), 1.05), ((0, -0.03), 1.05)]
TILTS = (30, -30, 90, -90, 180)  # degrees; one copy covers about 25° to either side

_lock = threading.Lock()  # dlib's detector keeps its working memory in the object


@dataclass(frozen=True, eq=False)
class Face:
    """One face in a photo.

    landmarks: float32 [68, 2], (x, y) in photo pixels, a pixel's centre at whole numbers, origin top left;
        the order of the iBUG 300-W points (0–16 jaw, 17–26 brows, 27–35 nose, 36–47 eyes, 48–67 mouth).
    box: (left, top, right, bottom) in photo pixels, the detector's square; it may reach beyond the photo.
    score: the detector's, above 0; a clear frontal face has 1…3.
    """

    landmarks: np.ndarray
    box: tuple[float, float, float, float]
    score: float


@dataclass(frozen=True, eq=False)
class _View:
    """A copy of the photo for the detector: scaled, bordered, turned."""

    pixels: np.ndarray  # uint8 [h, w, 3]
    view_to_photo: np.ndarray  # float64 [3, 3]
    angle: float  # degrees the copy is turned counterclockwise
    doublings: int  # how often dlib itself shall enlarge it: its own doubling moves boxes by a pixel, as in FFHQ's


def find_faces(photo: Image.Image) -> list[Face]:
    """All faces of a photo, the best score first; [] when there is none.

    photo: any PIL picture; the faces' coordinates are those of `open_photo(photo)`. The time does not depend on its
    size: a reduced copy is searched, on which a face of a 12-megapixel photo is found from about 250 px on. If there
    are several, a finer copy is searched for their smaller companions. If nothing is certain, that finer one with a
    border is (small faces, faces cut by the edge), then turned ones. Raises PhotoError for a damaged picture.
    """
    photo = open_photo(photo)
    least, most = SEARCH_PIXELS
    pixels = min(max(photo.width * photo.height // 4, least), most)
    found = _search(photo, _view(photo, pixels, enlarge=2))
    certain = _certain(found)
    if certain:  # beside a face that is one, a faint pattern is none
        found = [face for face in found if face.score >= COMPANION]
    if certain == 1:
        return _without_doubles(found)
    finer = _search(photo, _view(photo, FINE_PIXELS, enlarge=4, border=0.15))
    if certain:  # those known keep their places, which do not depend on who stands beside them
        finer = [face for face in finer if face.score >= COMPANION and not any(_covers(k, face) for k in found)]
    found += finer
    for angle in TILTS:
        if _certain(found):
            break
        found += _search(photo, _view(photo, TILTED_PIXELS, enlarge=2, angle=angle))
    return _without_doubles(found)


def _certain(faces: list[Face]) -> int:
    return sum(face.score >= CONFIDENT for face in faces)


def _view(photo: Image.Image, pixels: int, enlarge: float, border: float = 0.0, angle: float = 0.0) -> _View:
    """A copy with at most `pixels` pixels, border and turn included, at most `enlarge` times the photo's size.

    Its scale is a whole number of rungs of dlib's pyramid below ×2, so that the detector's boxes, from which the
    landmarks start, are those of a search of the whole photo enlarged twice, as the FFHQ data set was made.
    """
    margin = border * min(photo.size)
    w, h = photo.width + 2 * margin, photo.height + 2 * margin
    c, s = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
    area = (w * c + h * s) * (w * s + h * c)
    steps = math.ceil(math.log(math.sqrt(pixels / area) / 2, RUNG) - 1e-9)
    scale = min(2 * RUNG**steps, enlarge)
    doublings = max(int(math.log2(scale)), 0)
    scale /= 2**doublings
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    copy = photo.resize(size, Image.Resampling.BILINEAR, reducing_gap=1.0)
    to_photo = np.diag([photo.width / size[0], photo.height / size[1], 1.0]) @ _shift(0.5, 0.5)
    if border:
        margin = round(border * min(size))
        copy = ImageOps.expand(copy, margin, fill=_mean_colour(copy))
        to_photo = to_photo @ _shift(-margin, -margin)
    if angle:
        turned = copy.rotate(angle, Image.Resampling.BILINEAR, expand=True, fillcolor=_mean_colour(copy))
        middle_to_copy = _shift((copy.width - 1) / 2, (copy.height - 1) / 2) @ _turn(angle)
        to_photo = to_photo @ middle_to_copy @ _shift(-(turned.width - 1) / 2, -(turned.height - 1) / 2)
        copy = turned
    return _View(np.asarray(copy), _shift(-0.5, -0.5) @ to_photo, angle, doublings)


def _search(photo: Image.Image, view: _View) -> list[Face]:
    with _lock:
        boxes, scores, _ = _detector().run(view.pixels, view.doublings, 0.0)
    scale = math.sqrt(abs(np.linalg.det(view.view_to_photo)))
    faces = []
    for box, score in zip(boxes, scores, strict=True):
        middle = view.view_to_photo @ ((box.left() + box.right()) / 2, (box.top() + box.bottom()) / 2, 1)
        centre, side = middle[:2], (box.right() - box.left()) * scale
        left, top = centre - side / 2
        square = (float(left), float(top), float(left + side), float(top + side))
        landmarks = _read_landmarks(photo, centre, side, view.angle)
        angle = view.angle
        for _ in range(3):  # a tilted face's first reading, and so its roll, can be far off
            roll = _roll(landmarks)
            if abs((roll - angle + 180) % 360 - 180) <= LARGEST_ROLL:
                break
            landmarks, angle = _read_landmarks(photo, centre, side, roll), roll
        faces.append(Face(landmarks, square, float(score)))
    return faces


def _read_landmarks(photo: Image.Image, centre: np.ndarray, side: float, angle: float) -> np.ndarray:
    """float32 [68, 2] in photo pixels, for a face of this centre and side in a photo turned by `angle`."""
    half = math.ceil(0.75 * side)
    left, top = (round(float(c)) - half for c in centre)
    patch = photo.crop((left, top, left + 2 * half + 1, top + 2 * half + 1))  # black beyond the photo
    if angle:
        patch = patch.rotate(angle, Image.Resampling.BICUBIC)
    zoom = 2.0 if side < WINDOW else min(1.0, LARGEST_FACE / side)
    if zoom != 1:
        length = round(patch.width * zoom)
        zoom = length / patch.width
        patch = patch.resize((length, length), Image.Resampling.BILINEAR, reducing_gap=2.0)
    to_patch = _shift(half, half) @ _turn(-angle) @ _shift(-left - half, -top - half)
    to_patch = _shift(-0.5, -0.5) @ np.diag([zoom, zoom, 1]) @ _shift(0.5, 0.5) @ to_patch
    x, y = (to_patch @ (*centre, 1))[:2]
    reach = side * zoom / 2
    box = dlib.rectangle(*(round(float(v)) for v in (x - reach, y - reach, x + reach, y + reach)))
    with _lock:
        parts = _predictor()(np.asarray(patch), box).parts()
    points = np.array([(part.x, part.y, 1) for part in parts], dtype=np.float64)  # [68, 3]
    return (points @ np.linalg.inv(to_patch).T)[:, :2].astype(np.float32)


def reread_landmarks(pixels: np.ndarray, near: np.ndarray) -> np.ndarray:
    """The landmarks of an upright face whose place is known, in a picture the detector need not recognise.

    pixels: uint8 [h, w, 3]. near: [68, 2], about where they are. Returns float32 [68, 2] in its pixels: the mean of
    readings from several boxes, because one alone jumps by a pixel and more between pictures that hardly differ.
    """
    low, high = near.min(axis=0), near.max(axis=0)
    centre, side = (low + high) / 2, float((high - low).max())
    pad = math.ceil(side)
    bordered = Image.fromarray(cv2.copyMakeBorder(pixels, pad, pad, pad, pad, cv2.BORDER_REPLICATE))
    readings = [
        _read_landmarks(bordered, centre + pad + np.array(shift) * side, scale * side, 0.0) - pad
        for shift, scale in READINGS
    ]
    return np.mean(readings, axis=0, dtype=np.float32)


def _roll(landmarks: np.ndarray) -> float:
    """Degrees by which turning the photo counterclockwise makes the line through the eyes level."""
    x, y = landmarks[42:48].mean(axis=0) - landmarks[36:42].mean(axis=0)
    return math.degrees(math.atan2(y, x))


def _without_doubles(faces: list[Face]) -> list[Face]:
    """Best first, without those whose centre lies in a better one's box (found again on another copy)."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.score):
        if not any(_covers(better, face) for better in kept):
            kept.append(face)
    return kept


def _covers(face: Face, other: Face) -> bool:
    """Whether the centre of `other` lies in the box of `face`."""
    left, top, right, bottom = face.box
    return left < (other.box[0] + other.box[2]) / 2 < right and top < (other.box[1] + other.box[3]) / 2 < bottom


def _shift(x: float, y: float) -> np.ndarray:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def _turn(angle: float) -> np.ndarray:
    """From a picture turned counterclockwise by `angle` degrees back to the picture, about the origin, y down."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _mean_colour(picture: Image.Image) -> tuple[int, ...]:
    return picture.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))


@cache
def _detector() -> dlib.fhog_object_detector:
    return dlib.get_frontal_face_detector()


@cache
def _predictor() -> dlib.shape_predictor:
    """The 68-point model; the package that carries it is found but not imported (it needs pkg_resources)."""
    spec = importlib.util.find_spec("face_recognition_models")
    folders = spec.submodule_search_locations if spec else None
    path = Path(folders[0]) / "models/shape_predictor_68_face_landmarks.dat" if folders else None
    if path is None or not path.is_file():
        raise ModelError("The face landmark file is missing; run `pip install face_recognition_models` and try again.")
    return dlib.shape_predictor(str(path))
