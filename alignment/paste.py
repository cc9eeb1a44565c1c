"""Putting an edit into the photo: as motion of the photo's own pixels, light on them, and new detail where needed.

All three come from comparing what the model makes of a face with and without the edit. Photo and both renderings are
first brought to one shape, the photo's face moved as the edit moves it; there
    result = photo + light · coarse(edited − unedited) + detail · fine(edited − (photo where it is new, else unedited)),
the two-band blending of Brown & Lowe (2003) with masks that follow the face: colour goes up to its outline, detail
stays away from it, so that background, hair and shoulders remain the photo's and the outline is never drawn twice.
"""

import math

import cv2
import numpy as np
from PIL import Image

from .crop import Crop, cut
from .landmarks import reread_landmarks
from .masks import Region, check_region, face_height, onto_edges, region_mask, skin_weight, smoothstep
from .photos import open_photo

FEATHER = 0.15  # default width of the edge, in heights of the face from chin to brows
OUTLINE = 0.02  # the edge of what counts as face when colours are averaged, in heights of the face
DEEP = 2.5  # the edge of detail, in feathers: the outline of the face itself moves, and is not drawn anew
GRID = 256  # px, the edit is worked out on a copy of the crop of at least this side
BAND = 256  # rows of the photo worked on at a time, for the memory's sake
COARSE = 0.03  # standard deviation that parts coarse from fine detail, as a part of the crop's side
VISIBLE = 6.0  # of 255: weaker fine detail is never new
NEW = (1.0, 2.0)  # how many times what the model missed of the photo an edit's fine detail must be to count as new
STILL = 0.005  # of the crop's side: motion up to here is the landmarks' uncertainty
FARTHEST = 0.15  # of the crop's side: what seems to move further is a misreading
SPREAD = (0.15, 0.06)  # of the crop's side: how far a landmark drags its surroundings along, coarse then fine
STEEP = 0.5  # the greatest change of motion from pixel to pixel; from 1 on a picture folds over itself
GRAIN = 3.0  # in medians of the photo's finest detail: what is stronger is no grain but an edge
EDGE = 0.2  # width of the edge inside a crop with a face, in its half sides
PARTS = ("mouth", "eyes", "skin")  # regions beyond which nothing moves
ROUND = 3  # a crop's own outline is |x|³ + |y|³ = 1: between a circle and the square


def paste_back(
    photo: Image.Image,
    picture: Image.Image,
    crop: Crop,
    unedited: Image.Image | None = None,
    region: Region = "everything",
    feather: float = FEATHER,
) -> Image.Image:
    """Put an edited crop into the photo it was cut from.

    photo: the photo `align` got, any size. picture: the edited crop, of any size. crop: from `align`.
    unedited: what the model makes of the crop without any edit, so that nothing but the edit goes into the photo;
        without it everything does in which the picture differs from the photo.
    region: "everything" is the face from jaw to forehead, "mouth", "eyes" and "skin" are parts of it, "head" is the
        face with its hair. A crop that was not made for a face has one region only, all of it.
    feather: width of the soft edge in heights of the face from chin to brows, above 0 and at most 1.
    Returns an RGB picture of the photo's size. Pixels outside the crop are bit-identical and cost neither time nor
    memory; a picture without an edit gives the photo back.
    Raises PhotoError for a damaged picture and for a region or feather that does not exist.
    """
    check_region(region, feather)
    photo, picture = open_photo(photo), open_photo(picture)
    grid = _grid(crop, picture.size)
    there = np.asarray(cut(photo, grid), np.float32)  # [h, w, 3]
    edited = _fit(picture, grid)
    before = _fit(cut(photo, crop.resized(picture.size)) if unedited is None else open_photo(unedited), grid)
    if np.array_equal(edited, before):
        return photo.copy()
    if crop.landmarks is None:
        flow = np.zeros((*there.shape[:2], 2), np.float32)
        light = detail = _window(grid, photo.size, feather)
        valid = np.ones_like(light)
    else:
        shape = _to_grid(crop.landmarks, grid)
        window = _window(grid, photo.size, EDGE)
        if unedited is None:  # the picture need not show a face
            moved, flow = shape, np.zeros((*there.shape[:2], 2), np.float32)
        else:
            was, now, aim = _motion(before, edited, shape)
            flow = _flow(shape, aim, grid.size)
            if region in PARTS:
                flow *= region_mask(region, shape, grid.size, feather)[..., None]
            flow = _without_folds(flow, grid, photo.size)
            moved = _follow(shape, flow)
            there, edited, before = _warp(there, flow), _fitted(edited, now, moved), _fitted(before, was, moved)
        light, detail = (region_mask(region, moved, grid.size, f) * window for f in (feather, DEEP * feather))
        valid = region_mask(region, moved, grid.size, OUTLINE)
        if region != "head":
            skin = skin_weight(edited, moved) * skin_weight(before, moved)
            valid *= skin
            light = onto_edges(light * skin_weight(there, moved), there, face_height(moved)) * window
            detail = np.minimum(light, detail) * skin
    edit, new = _compose(edited, before, there, light, detail, valid)
    return _apply(photo, grid, edit, new, there, flow)


def _grid(crop: Crop, size: tuple[int, int]) -> Crop:
    """The crop at the size the edit is worked out at: the picture's, not below GRID, not above what the photo has."""
    side = min(max(*size, GRID), max(math.ceil(crop.scale * max(crop.size)), 16))
    return crop.resized(tuple(max(1, round(side * n / max(crop.size))) for n in crop.size))


def _fit(picture: Image.Image, grid: Crop) -> np.ndarray:
    """float32 [h, w, 3]: a picture of the whole crop at the grid's size."""
    return np.asarray(picture.resize(grid.size, Image.Resampling.BICUBIC), np.float32)


def _to_grid(landmarks: np.ndarray, grid: Crop) -> np.ndarray:
    return np.c_[landmarks, np.ones(len(landmarks))] @ grid.photo_to_crop[:2].T  # [68, 2]


def _motion(before: np.ndarray, edited: np.ndarray, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The landmarks [68, 2] of both renderings (float32 [h, w, 3]), and where the edit would take `shape`, the photo's.

    Read off the pictures at the photo's places, because a detector may miss what a generator draws.
    """
    was, now = (reread_landmarks(np.rint(p.clip(0, 255)).astype(np.uint8), shape) for p in (before, edited))
    side = max(before.shape[:2])
    return was, now, shape + _limited(now - was, STILL * side, FARTHEST * side)


def _fitted(pixels: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Pixels [h, w, 3] with landmarks [68, 2] taken from start to end."""
    height, width = pixels.shape[:2]
    reached = start + _limited(end - start, 0, FARTHEST * max(height, width))
    return _warp(pixels, _flow(start, reached, (width, height)))


def _limited(motion: np.ndarray, still: float, farthest: float) -> np.ndarray:
    """Motion [68, 2] less what is uncertain about it; never so far that it must be a misreading."""
    length = np.hypot(*motion.T)[:, None]
    return motion * np.minimum(np.maximum(length - still, 0), farthest) / np.maximum(length, 1e-6)


def _flow(start: np.ndarray, end: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The smooth motion that takes points [n, 2] from start to end, float32 [h, w, 2] in pixels, where things arrive.

    Scattered motions are spread in two levels, coarse and then what is left (Lee, Wolberg & Shin 1997), by a
    normalised Gaussian that ends in no motion away from all points.
    """
    side = max(size)
    step = max(side / 64, 1)
    lattice = (max(2, round(size[0] / step)), max(2, round(size[1] / step)))
    x, y = ((np.arange(n) + 0.5) * total / n - 0.5 for n, total in zip(lattice, size, strict=True))
    place = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)  # [h*w, 2]
    left = end - start
    flow = np.zeros_like(place)
    for spread in SPREAD:
        flow += _spread(place, end, left, spread * side)
        left = left - _spread(end, end, left, spread * side)
    flow = flow.reshape(lattice[1], lattice[0], 2).astype(np.float32)
    return cv2.resize(flow, size, interpolation=cv2.INTER_LINEAR)


def _without_folds(flow: np.ndarray, grid: Crop, photo_size: tuple[int, int]) -> np.ndarray:
    """The flow [h, w, 2], ending at the crop's sides, and nowhere so steep that pixels would pass each other."""
    reach = float(np.hypot(flow[..., 0], flow[..., 1]).max())
    edge = 1.5 * reach / STEEP / (max(grid.size) / 2)  # 1.5 is the greatest slope of smoothstep
    flow = flow * _window(grid, photo_size, min(max(edge, EDGE), 1.0))[..., None]
    steepest = max(float(np.abs(np.gradient(flow, axis=axis)).max()) for axis in (0, 1))
    return flow * min(1.0, STEEP / max(steepest, 1e-6))


def _follow(points: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Where a flow [h, w, 2], known where things arrive, takes points [n, 2]: the fixed point of end = start + flow."""
    end = points
    for _ in range(8):  # a slope below STEEP makes it converge
        x, y = end.astype(np.float32).T[:, None]  # [1, n] each
        end = points + cv2.remap(flow, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)[0]
    return end


def _spread(place: np.ndarray, points: np.ndarray, motion: np.ndarray, sigma: float) -> np.ndarray:
    distance = ((place[:, None] - points) ** 2).sum(axis=-1)  # [places, points]
    weight = np.exp(-distance / (2 * sigma**2))
    return weight @ motion / (weight.sum(axis=1, keepdims=True) + 0.5)


def _warp(pixels: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Pixels [h, w, 3] moved by a flow [h, w, 2]."""
    y, x = np.mgrid[: flow.shape[0], : flow.shape[1]].astype(np.float32)
    return cv2.remap(pixels, x - flow[..., 0], y - flow[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def _compose(
    edited: np.ndarray,
    before: np.ndarray,
    there: np.ndarray,
    light: np.ndarray,
    detail: np.ndarray,
    valid: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """What is to be added to the photo, float32 [h, w, 3], and where the edit's detail is new, float32 [h, w].

    edited, before, there: float32 [h, w, 3] of one shape. light, detail: float32 [h, w], the masks of the two bands.
    """
    sigma = COARSE * max(there.shape[:2])
    difference, missed = edited - before, there - before
    total = cv2.GaussianBlur(valid, (0, 0), sigma)[..., None] + 1e-3
    coarse = cv2.GaussianBlur(difference * valid[..., None], (0, 0), sigma) / total
    fine, missed = difference - coarse, missed - cv2.GaussianBlur(missed, (0, 0), sigma)
    strong, weak = (cv2.GaussianBlur(np.abs(band).max(axis=2), (0, 0), sigma / 2) for band in (fine, missed))
    low, high = NEW
    new = detail * smoothstep((strong / (weak + VISIBLE) - low) / (high - low))
    return light[..., None] * coarse + detail[..., None] * fine - new[..., None] * missed, new


def _apply(
    photo: Image.Image, grid: Crop, edit: np.ndarray, new: np.ndarray, there: np.ndarray, flow: np.ndarray
) -> Image.Image:
    """The photo with its pixels moved by `flow` and `edit` added, both on the grid; detail finer than the grid's,
    `there` on it, gives way to grain where the edit's detail is new."""
    result = photo.copy()
    left, top = (max(math.floor(v), 0) for v in grid.quad.min(axis=0))
    right, bottom = (min(math.ceil(v) + 1, n) for v, n in zip(grid.quad.max(axis=0), photo.size, strict=True))
    to_photo = grid.crop_to_photo[:2, :2].T.astype(np.float32)
    reach = math.ceil(float(np.hypot(*(flow @ to_photo).transpose(2, 0, 1)).max())) + 2 if flow.any() else 0
    grain = None
    for y in range(top, bottom, BAND):
        box = (left, y, right, min(y + BAND, bottom))
        part = np.asarray(photo.crop(box)).astype(np.float32)  # [h, w, 3]
        before = part
        if reach:
            wider = (max(left - reach, 0), max(y - reach, 0), min(right + reach, photo.width))
            wider = (*wider, min(box[3] + reach, photo.height))
            source = np.asarray(photo.crop(wider), np.float32)
            motion = _lay(flow, grid, box) @ to_photo  # [h, w, 2] in photo pixels
            ys, xs = np.mgrid[box[1] : box[3], box[0] : box[2]].astype(np.float32)
            xs, ys = xs - wider[0] - motion[..., 0], ys - wider[1] - motion[..., 1]
            part = cv2.remap(source, xs, ys, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        if grid.scale > 1.2 and new.any():
            finest = part - _lay(there, grid, box)
            if grain is None:
                grain = GRAIN * float(np.median(np.abs(finest)))
            part = part - _lay(new, grid, box)[..., None] * (finest - finest.clip(-grain, grain))
        part = part + _lay(edit, grid, box)
        inside = _inside(grid, box)[..., None]
        part = np.where(inside, part, before)
        result.paste(Image.fromarray(np.rint(part.clip(0, 255)).astype(np.uint8)), (left, y))
    return result


def _window(grid: Crop, photo_size: tuple[int, int], feather: float) -> np.ndarray:
    """float32 [h, w]: 0 on a rounded square inscribed in the crop, 1 from `feather` of the half side inwards.

    Sides that lie on or beyond the photo's edge have no seam; towards them it does not fall.
    """
    last = np.array(photo_size) - 0.5
    seam = []
    for a, b in zip(grid.quad, np.roll(grid.quad, -1, axis=0), strict=True):  # top, right, bottom, left
        ends = np.stack([a, b])
        seam.append(not ((ends <= -0.5 + 1e-6).all(axis=0) | (ends >= last - 1e-6).all(axis=0)).any())
    x, y = ((np.arange(n, dtype=np.float32) + 0.5) / n * 2 - 1 for n in grid.size)
    x = np.where(x < 0, -x * seam[3], x * seam[1])
    y = np.where(y < 0, -y * seam[0], y * seam[2])
    return smoothstep((1 - (x[None, :] ** ROUND + y[:, None] ** ROUND) ** (1 / ROUND)) / feather)


def _lay(pixels: np.ndarray, grid: Crop, box: tuple[int, int, int, int]) -> np.ndarray:
    """Pixels [h, w, n] on the grid, resampled to a box (left, top, right, bottom) of the photo."""
    matrix = grid.crop_to_photo[:2] - [[0, 0, box[0]], [0, 0, box[1]]]
    size = (box[2] - box[0], box[3] - box[1])
    flags = cv2.INTER_CUBIC if pixels.ndim == 3 and pixels.shape[2] == 3 else cv2.INTER_LINEAR
    return cv2.warpAffine(pixels, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _inside(crop: Crop, box: tuple[int, int, int, int]) -> np.ndarray:
    """bool [h, w]: which pixel centres of a box of the photo lie inside the crop."""
    y, x = np.ogrid[box[1] : box[3], box[0] : box[2]]
    inside = np.ones((box[3] - box[1], box[2] - box[0]), dtype=bool)
    for (ax, ay), (bx, by) in zip(crop.quad, np.roll(crop.quad, -1, axis=0), strict=True):
        inside &= (bx - ax) * (y - ay) >= (by - ay) * (x - ax)
    return inside
