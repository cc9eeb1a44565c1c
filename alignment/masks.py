"""Soft masks that follow a face's landmarks: which part of a picture an edit may change."""

from typing import Literal, get_args

import cv2
import numpy as np

from errors import PhotoError

Region = Literal["everything", "mouth", "eyes", "skin", "head"]
REGIONS: tuple[Region, ...] = get_args(Region)

FOREHEAD = 0.42  # its height above the brows, in heights of the face from chin to brows; the classical canon has 0.5
LID = 0.45  # how far "eyes" reaches beyond the lids, in widths of an eye
LIP = 0.3  # how far "mouth" reaches beyond the lips, in widths of the mouth
SKIRT = 0.04  # how far everything that is not skin is kept off it, in heights of the face
MIDDLE = [1, 3, 5, 11, 13, 15, 26, 17]  # landmarks around cheeks, nose and mouth
FOREIGN = (1.5, 3.0)  # how many times further from the skin's colour than skin usually is: surely skin, surely not
MARGIN = 0.08  # how far around brows, eyes, nose and mouth no colour is foreign, in heights of the face
SMOOTH = 0.02  # standard deviation of the blur before colours are judged, in heights of the face
SNAP = 0.06  # how far an edge may draw a mask, in heights of the face
FLAT = 1e-3  # variance of grey (0 … 1) below which there is no edge


def check_region(region: str, feather: float = 1.0) -> None:
    """Raises PhotoError for a region or a feather that does not exist."""
    if region not in REGIONS:
        raise PhotoError(f"There is no region {str(region)!r}; choose one of {', '.join(REGIONS)}.")
    if not 0 < feather <= 1:
        raise PhotoError(f"The feather cannot be {feather}; choose a number above 0 and at most 1.")


def face_height(points: np.ndarray) -> float:
    """Distance from chin to brows of landmarks [68, 2]: the unit in which masks and feathers are measured."""
    return float(np.hypot(*(points[17:27].mean(axis=0) - points[8])))


def region_mask(region: Region, points: np.ndarray, size: tuple[int, int], feather: float) -> np.ndarray:
    """The part of a picture that belongs to a region of a face.

    points: landmarks [68, 2] in pixels of the picture. size: (width, height) of the picture.
    feather: width of the soft edge, which lies inside the region, in heights of the face from chin to brows.
    Returns float32 [height, width] in [0, 1].
    """
    unit = face_height(points)
    if region == "head":
        return _soft(_cover([_head(points)], size), feather * unit)
    face = _soft(_cover([outline(points)], size), feather * unit)
    eyes, lips, brows = [points[36:42], points[42:48]], [points[48:60]], [points[17:22], points[22:27]]
    if region == "mouth":
        reach = LIP * np.hypot(*(points[54] - points[48]))
        return face * _soft(_cover(lips, size, reach), reach)
    if region == "eyes":
        reach = LID * np.hypot(*(points[39] - points[36] + points[45] - points[42])) / 2
        return face * _soft(_cover(eyes, size, reach), reach)
    if region == "skin":
        return face * (1 - _soft(_cover(eyes + lips + brows, size, 2 * SKIRT * unit), SKIRT * unit))
    return face


def skin_weight(pixels: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Where a face is skin and not the hair or background that its outline also takes in.

    pixels: float32 [h, w, 3], 0 … 255. shape: the face's landmarks [68, 2] in it. Returns float32 [h, w], 1 for skin,
    0 where the colour is not that of the cheeks, except on the features, from brows to mouth, which is always 1.
    """
    size, unit = (pixels.shape[1], pixels.shape[0]), face_height(shape)
    smooth = cv2.GaussianBlur(pixels, (0, 0), SMOOTH * unit)
    middle = _cover([shape[MIDDLE]], size)[1:-1, 1:-1] > 0
    if not middle.any():
        return np.ones(pixels.shape[:2], np.float32)
    usual = np.median(smooth[middle], axis=0)
    spread = np.median(np.abs(smooth[middle] - usual).max(axis=1)) + 8  # of 255: more than evenly lit skin has
    low, high = FOREIGN
    foreign = smoothstep((np.abs(smooth - usual).max(axis=2) / spread - low) / (high - low))
    features = _cover([cv2.convexHull(shape[17:].astype(np.float32))[:, 0]], size, MARGIN * unit)
    inner = _soft(features, MARGIN * unit)
    return (1 - foreign * (1 - inner)).astype(np.float32)


def onto_edges(mask: np.ndarray, pixels: np.ndarray, unit: float) -> np.ndarray:
    """A soft mask with its edge drawn to where the picture has one: the guided filter of He, Sun & Tang (2010).

    mask: float32 [h, w] in [0, 1]. pixels: float32 [h, w, 3], 0 … 255, its grey is the guide. unit: `face_height`.
    """
    grey = cv2.GaussianBlur(pixels.mean(axis=2), (0, 0), SMOOTH * unit) / 255
    window = (2 * max(round(SNAP * unit), 1) + 1,) * 2
    mean_grey, mean_mask = cv2.blur(grey, window), cv2.blur(mask, window)
    slope = (cv2.blur(grey * mask, window) - mean_grey * mean_mask) / (cv2.blur(grey**2, window) - mean_grey**2 + FLAT)
    offset = mean_mask - slope * mean_grey
    return np.clip(cv2.blur(slope, window) * grey + cv2.blur(offset, window), 0, 1)


def outline(points: np.ndarray) -> np.ndarray:
    """[n, 2]: the face's outline, from landmarks [68, 2]: the jaw, closed by half an ellipse over the forehead."""
    chin, brow = points[8], points[17:27].mean(axis=0)
    middle, half = (points[0] + points[16]) / 2, (points[16] - points[0]) / 2
    up = brow + FOREHEAD * (brow - chin) - middle
    angle = np.linspace(0, np.pi, 24)[1:-1, None]
    return np.concatenate([points[:17], middle + np.cos(angle) * half + np.sin(angle) * up])


def _head(points: np.ndarray) -> np.ndarray:
    """[n, 2]: an ellipse around the head with its hair and ears."""
    chin, brow = points[8], points[17:27].mean(axis=0)
    up, jaw = brow - chin, points[16] - points[0]
    # From a little below the chin to as far above the brows as they are above the chin.
    middle, along = chin + up * (2.15 - 0.2) / 2, up * (2.15 + 0.2) / 2
    across = np.array([-up[1], up[0]]) / max(np.hypot(*up), 1e-6)
    middle = middle + (((points[0] + points[16]) / 2 - middle) @ across) * across
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)[:, None]
    return middle + np.cos(angle) * across * 0.8 * np.hypot(*jaw) + np.sin(angle) * along


def _cover(polygons: list[np.ndarray], size: tuple[int, int], grow: float = 0.0) -> np.ndarray:
    """uint8 [h, w]: 1 inside the polygons and up to `grow` pixels around them, with a border of 1 pixel of 0."""
    covered = np.zeros((size[1] + 2, size[0] + 2), np.uint8)
    for polygon in polygons:
        cv2.fillPoly(covered, [np.rint(polygon * 16 + 16).astype(np.int32)], 1, shift=4)
    if grow:
        covered = (cv2.distanceTransform(1 - covered, cv2.DIST_L2, 5) <= grow).astype(np.uint8)
    return covered


def _soft(covered: np.ndarray, width: float) -> np.ndarray:
    """float32: 0 outside, rising smoothly to 1 over `width` pixels inwards; the border of `_cover` is taken off."""
    depth = cv2.distanceTransform(covered, cv2.DIST_L2, 5)[1:-1, 1:-1]
    return smoothstep(depth / max(width, 1e-3))


def smoothstep(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, 3x² − 2x³ between."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)
