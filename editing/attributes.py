"""What a face shows, in numbers: measured from landmarks and pixels, and from dlib's face embedding.

Lengths are in units of the distance between the eyes' centres, so that they do not depend on the picture's size.
"""

import threading
from functools import cache

import cv2
import dlib
import numpy as np
import torch
from PIL import Image

from alignment import Face, find_faces
from alignment.landmarks import reread_landmarks
from e4e_core.images import to_tensor
from e4e_core.models.dlib_face import DlibFaceNetwork, dlib_weights

BORDER = 0.375  # of the picture's side, added all around: aligned faces fill the picture, dlib wants room
SIDE = 128  # px, the size at which faces are looked for in aligned pictures
FINE = 256  # px, the size at which their landmarks are read again: dlib's stand on whole pixels
_lock = threading.Lock()

LEFT_EYE, RIGHT_EYE, LIPS = slice(36, 42), slice(42, 48), slice(48, 68)
MOUTH_CORNERS, NOSE_TIP, JAW_ENDS, INNER_LIPS = [48, 54], 30, [0, 16], [62, 66]
EYE_LIDS = [(37, 41, 38, 40, 36, 39), (43, 47, 44, 46, 42, 45)]  # two heights and the width of each eye


def with_border(picture: Image.Image, side: int = SIDE) -> Image.Image:
    """An aligned picture at `side` pixels, with its edge pixels repeated around it (96 px for a side of 256)."""
    pixels = np.asarray(picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
    margin = round(BORDER * side)
    return Image.fromarray(cv2.copyMakeBorder(pixels, margin, margin, margin, margin, cv2.BORDER_REPLICATE))


def find_aligned_face(picture: Image.Image) -> tuple[Image.Image, Face] | None:
    """The bordered picture and the best face in it, in its pixels; None when dlib finds no face."""
    bordered = with_border(picture)
    faces = find_faces(bordered)
    return (bordered, faces[0]) if faces else None


def detects(picture: Image.Image) -> bool:
    """Whether dlib's detector finds an upright face in an aligned picture, at 256 px with a border of 96 px."""
    with _lock:
        return len(_detector()(np.asarray(with_border(picture, 256)), 0)) > 0


def measure(picture: Image.Image, face: Face) -> dict[str, float]:
    """Attributes of an aligned picture and the face that `find_aligned_face` found in it.

    Returns:
        yaw: nose tip between the jaw's ends, 0 = frontal, ±1 = at one of them.
        pitch: nose tip below the eyes' line; larger when the head is lowered.
        smile: how far the mouth's corners stand above the lips' centre.
        mouth_open: distance of the inner lips. mouth_width: distance of the mouth's corners.
        eye_open: height of the eyes as a share of their width.
        and all that `measure_light` returns.
    """
    fine = np.asarray(with_border(picture, FINE))
    points = reread_landmarks(fine, face.landmarks * (FINE / SIDE)).astype(np.float64)  # [68, 2]
    left, right = points[LEFT_EYE].mean(0), points[RIGHT_EYE].mean(0)
    axis = right - left
    distance = np.linalg.norm(axis)
    along = axis / distance
    down = np.array([-along[1], along[0]])
    points = (points - (left + right) / 2) @ np.stack([along, down], 1) / distance  # x along the eyes, y down
    jaw_left, jaw_right = points[JAW_ENDS, 0]
    eyes = [
        (np.linalg.norm(points[a] - points[b]) + np.linalg.norm(points[c] - points[d]))
        / (2 * np.linalg.norm(points[e] - points[f]))
        for a, b, c, d, e, f in EYE_LIDS
    ]
    return {
        "yaw": (2 * points[NOSE_TIP, 0] - jaw_left - jaw_right) / (jaw_right - jaw_left),
        "pitch": points[NOSE_TIP, 1],
        "smile": points[LIPS, 1].mean() - points[MOUTH_CORNERS, 1].mean(),
        "mouth_open": float(np.linalg.norm(points[INNER_LIPS[0]] - points[INNER_LIPS[1]])),
        "mouth_width": float(np.linalg.norm(points[MOUTH_CORNERS[0]] - points[MOUTH_CORNERS[1]])),
        "eye_open": float(np.mean(eyes)),
    } | measure_light(picture)


def measure_light(picture: Image.Image) -> dict[str, float]:
    """What the pixels of an aligned picture say of its light, wherever the face is.

    Returns:
        bright: mean grey value, 0 … 255. The others are in units of 255.
        light_lr: right half minus left half. light_ud: upper half minus lower half. contrast: the grey values'
        standard deviation. warm: mean red minus mean blue.
    """
    pixels = np.asarray(picture.convert("RGB"), np.float64) / 255  # [h, w, 3]
    grey = np.asarray(picture.convert("L"), np.float64) / 255  # [h, w]
    middle, centre = grey.shape[1] // 2, grey.shape[0] // 2
    return {
        "bright": 255 * float(grey.mean()),
        "light_lr": float(grey[:, middle:].mean() - grey[:, :middle].mean()),
        "light_ud": float(grey[:centre].mean() - grey[centre:].mean()),
        "contrast": float(grey.std()),
        "warm": float(pixels[..., 0].mean() - pixels[..., 2].mean()),
    }


def embed(bordered: Image.Image, face: Face) -> np.ndarray:
    """dlib's embedding, float64 [128], of a face that `find_aligned_face` found; the same person is nearer than 0.6."""
    left, top, right, bottom = (round(side) for side in face.box)
    points = dlib.points([dlib.point(round(float(x)), round(float(y))) for x, y in face.landmarks])
    shape = dlib.full_object_detection(dlib.rectangle(left, top, right, bottom), points)
    chip = dlib.get_face_chip(np.asarray(bordered), shape, DlibFaceNetwork.SIDE, DlibFaceNetwork.PADDING)
    with torch.inference_mode():
        return _embedder().describe(to_tensor(Image.fromarray(chip)))[0].numpy().astype(np.float64)


@cache
def _detector() -> dlib.fhog_object_detector:
    return dlib.get_frontal_face_detector()


@cache
def _embedder() -> DlibFaceNetwork:
    return DlibFaceNetwork(dlib_weights())
