"""Putting an edited crop back into its photo: feathered towards the photo, its border matched in colour."""

import math

import cv2
import numpy as np
from PIL import Image

from .crop import Crop, cut
from .photos import open_photo

ROUND = 3  # the mask's outline is |x|³ + |y|³ = 1: between a circle and the crop's square
GRID = 256  # side of the coarse grid over the crop on which the mask and the colours are worked out
FEATHER = 0.28  # depth at which the picture covers the photo fully; depths are parts of the crop's half side
REACH = 0.8  # depth at which the colour correction has faded out
SMOOTH = 0.05  # standard deviation of the colour correction, as a part of the crop's side
BAND = 512  # rows of the photo worked on at a time, for the memory's sake
LARGEST_CORRECTION = 60.0  # of 255: a larger mismatch is another content, not another colour
COARSE = 0.03  # standard deviation that parts coarse from fine detail, as a part of the crop's side
MOVED = (4.0, 14.0)  # of 255: an edit that changes fine detail by less has moved nothing, by more it has


def paste_back(
    photo: Image.Image, picture: Image.Image, crop: Crop, unedited: Image.Image | None = None
) -> Image.Image:
    """Put an edited crop into the photo it was cut from.

    photo: the photo `align` got, any size. picture: the edited crop, of any size. crop: from `align`.
    unedited: what the model makes of the crop without any edit. With it only the edit goes into the photo: the
        photo keeps its own colours everywhere and its own detail wherever the edit moved nothing, so that a picture
        without edits gives the photo back. Without it the middle of the crop is the picture's as it is.
    Returns an RGB picture of the photo's size. Towards the crop's border the picture fades into the photo, with its
    colours drawn to the photo's there. Photo pixels outside the crop are bit-identical, and only those around it
    cost time. Raises PhotoError for a damaged picture.
    """
    photo, picture = open_photo(photo), open_photo(picture)
    depth = _depth(crop, photo.size)
    alpha = _smoothstep(depth / FEATHER)
    picture = _shrink(picture, crop)
    if unedited is None:
        correction, keep = _correction(photo, picture, crop, depth, alpha), None
    else:
        unedited = open_photo(unedited).resize(picture.size, Image.Resampling.BICUBIC)
        correction, keep = _coarse_residual(photo, unedited, crop), _unmoved(picture, unedited)
    pixels = np.asarray(picture, np.float32) + cv2.resize(correction, picture.size)

    result = photo.copy()
    left, top = (max(math.floor(v), 0) for v in crop.quad.min(axis=0))
    right, bottom = (min(math.ceil(v) + 1, n) for v, n in zip(crop.quad.max(axis=0), photo.size, strict=True))
    for y in range(top, bottom, BAND):
        box = (left, y, right, min(y + BAND, bottom))
        part = np.asarray(photo.crop(box)).astype(np.float32)  # [h, w, 3]
        new = _lay(pixels, crop, box, cv2.INTER_CUBIC)
        if unedited is not None:  # the fine detail of the photo that the model did not reproduce
            model = np.asarray(unedited, np.float32) + cv2.resize(correction, unedited.size)
            new += _lay(keep, crop, box, cv2.INTER_LINEAR)[..., None] * (part - _lay(model, crop, box, cv2.INTER_CUBIC))
        mask = _lay(alpha, crop, box, cv2.INTER_LINEAR) * _inside(crop, box)  # [h, w]
        part += mask[..., None] * (new - part)
        result.paste(Image.fromarray(np.rint(part.clip(0, 255)).astype(np.uint8)), (left, y))
    return result


def _depth(crop: Crop, photo_size: tuple[int, int]) -> np.ndarray:
    """float32 [GRID, GRID]: 0 on a rounded square inscribed in the crop, 1 in its middle, negative in its corners.

    Where the crop is wide enough to hold it, the outline of the head takes the square's place: background, neck and
    clothes stay the photo's. Sides that lie on or beyond the photo's edge have no seam; towards them the depth does
    not fall.
    """
    last = np.array(photo_size) - 0.5
    open_side = []
    for a, b in zip(crop.quad, np.roll(crop.quad, -1, axis=0), strict=True):  # top, right, bottom, left
        ends = np.stack([a, b])
        open_side.append(bool(((ends <= -0.5 + 1e-6).all(axis=0) | (ends >= last - 1e-6).all(axis=0)).any()))
    axis = (np.arange(GRID, dtype=np.float32) + 0.5) / GRID * 2 - 1
    x = np.where(axis < 0, -axis * (not open_side[3]), axis * (not open_side[1]))
    y = np.where(axis < 0, -axis * (not open_side[0]), axis * (not open_side[2]))
    depth = 1 - (x[None, :] ** ROUND + y[:, None] ** ROUND) ** (1 / ROUND)
    return depth if crop.landmarks is None else np.minimum(depth, _depth_in_head(crop))


def _depth_in_head(crop: Crop) -> np.ndarray:
    """float32 [GRID, GRID]: how deep in an ellipse around the head with its hair, FEATHER / 2 on the ellipse itself."""
    to_grid = crop.resized((GRID, GRID)).photo_to_crop
    points = np.c_[crop.landmarks, np.ones(len(crop.landmarks))] @ to_grid[:2].T  # [68, 2]
    jaw, chin, brow = points[16] - points[0], points[8], points[17:27].mean(axis=0)
    up = brow - chin
    height = np.hypot(*up)
    up /= height
    # In units of the face from chin to brow, hair reaches 1.15 above the brow; jaw and ears take 1.6 widths of the jaw.
    middle = (chin + brow) / 2 + up * height * (1.15 - 0.2) / 2
    middle += ((points[0] + points[16]) / 2 - middle) @ (up[1], -up[0]) * np.array([up[1], -up[0]])
    half = np.array([0.8 * np.hypot(*jaw), height * (1 + 1.15 + 0.2) / 2])  # across, along
    y, x = np.mgrid[:GRID, :GRID].astype(np.float32)
    across = ((x - middle[0]) * -up[1] + (y - middle[1]) * up[0]) / half[0]
    along = ((x - middle[0]) * up[0] + (y - middle[1]) * up[1]) / half[1]
    return FEATHER / 2 + (1 - np.hypot(across, along)) * float(half.min()) / (GRID / 2)


def _correction(
    photo: Image.Image, picture: Image.Image, crop: Crop, depth: np.ndarray, alpha: np.ndarray
) -> np.ndarray:
    """float32 [GRID, GRID, 3], to be added to the picture: the photo's colours less the picture's, smoothed.

    Taken along the seam, where the two are mixed, spread by normalised convolution (Knutsson & Westin 1993), and faded
    out towards the middle, so that an edit in the middle stays what it is.
    """
    grid = crop.resized((GRID, GRID))
    x, y = np.meshgrid(np.arange(GRID), np.arange(GRID))
    place = np.stack([x, y, np.ones_like(x)], axis=-1) @ grid.crop_to_photo.T  # [GRID, GRID, 3]
    in_photo = ((place[..., :2] >= 0) & (place[..., :2] <= np.array(photo.size) - 1)).all(axis=-1)
    there = np.asarray(cut(photo, grid), dtype=np.float32)
    here = np.asarray(picture.resize(grid.size, Image.Resampling.BILINEAR), dtype=np.float32)
    mismatch = np.clip(there - here, -LARGEST_CORRECTION, LARGEST_CORRECTION)
    weight = (4 * alpha * (1 - alpha) * in_photo).astype(np.float32)
    spread = cv2.GaussianBlur(mismatch * weight[..., None], (0, 0), SMOOTH * GRID)
    total = cv2.GaussianBlur(weight, (0, 0), SMOOTH * GRID) + 1e-4
    fade = 1 - _smoothstep((depth - FEATHER / 2) / (REACH - FEATHER / 2))
    return (spread * (fade / total)[..., None]).astype(np.float32)


def _coarse_residual(photo: Image.Image, unedited: Image.Image, crop: Crop) -> np.ndarray:
    """float32 [GRID, GRID, 3]: the photo less what the model makes of it, without fine detail."""
    there = np.asarray(cut(photo, crop.resized((GRID, GRID))), dtype=np.float32)
    here = np.asarray(unedited.resize((GRID, GRID), Image.Resampling.BILINEAR), dtype=np.float32)
    return cv2.GaussianBlur(there - here, (0, 0), COARSE * GRID)


def _unmoved(picture: Image.Image, unedited: Image.Image) -> np.ndarray:
    """float32 [GRID, GRID]: 1 where the edit changed at most colour and light, 0 where it moved or drew something."""
    size = (GRID, GRID)
    edited, before = (np.asarray(p.resize(size, Image.Resampling.BILINEAR), np.float32) for p in (picture, unedited))
    difference = edited - before
    fine = np.abs(difference - cv2.GaussianBlur(difference, (0, 0), COARSE * GRID)).max(axis=2)
    low, high = MOVED
    moved = _smoothstep((cv2.GaussianBlur(fine, (0, 0), COARSE / 2 * GRID) - low) / (high - low))
    # The edge of what moved lies outside of it, so that nothing is seen twice.
    moved = cv2.dilate(moved, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (GRID // 16 + 1, GRID // 16 + 1)))
    return 1 - cv2.GaussianBlur(moved, (0, 0), COARSE / 2 * GRID)


def _shrink(picture: Image.Image, crop: Crop) -> Image.Image:
    """The picture, reduced to the crop's size in the photo if it is larger, so that no pixel of it is skipped."""
    scale = crop.resized(picture.size).scale
    if scale >= 1:
        return picture
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _lay(pixels: np.ndarray, crop: Crop, box: tuple[int, int, int, int], interpolation: int) -> np.ndarray:
    """Pixels over the whole crop, resampled to a box (left, top, right, bottom) of the photo."""
    matrix = crop.resized((pixels.shape[1], pixels.shape[0])).crop_to_photo[:2] - [[0, 0, box[0]], [0, 0, box[1]]]
    size = (box[2] - box[0], box[3] - box[1])
    return cv2.warpAffine(pixels, matrix, size, flags=interpolation, borderMode=cv2.BORDER_REPLICATE)


def _inside(crop: Crop, box: tuple[int, int, int, int]) -> np.ndarray:
    """bool [h, w]: which pixel centres of a box of the photo lie inside the crop."""
    y, x = np.ogrid[box[1] : box[3], box[0] : box[2]]
    inside = np.ones((box[3] - box[1], box[2] - box[0]), dtype=bool)
    for (ax, ay), (bx, by) in zip(crop.quad, np.roll(crop.quad, -1, axis=0), strict=True):
        inside &= (bx - ax) * (y - ay) >= (by - ay) * (x - ax)
    return inside


def _smoothstep(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)
