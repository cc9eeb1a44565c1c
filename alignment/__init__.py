"""Faces in photos: find them, cut them out the way FFHQ was cut, and put edited ones back."""

from errors import NoFaceError, PhotoError

from .crop import Crop, CutOut, align, centre_crop, cut_out
from .landmarks import Face, find_faces
from .masks import REGIONS, Region
from .paste import FEATHER, paste_back
from .photos import open_photo

__all__ = [
    "FEATHER",
    "REGIONS",
    "Crop",
    "CutOut",
    "Face",
    "NoFaceError",
    "PhotoError",
    "Region",
    "align",
    "centre_crop",
    "cut_out",
    "find_faces",
    "open_photo",
    "paste_back",
]
