"""Training pictures: a folder, zip or tar of photos, in an order that a stopped run can continue."""

import tarfile
import zipfile
from collections.abc import Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from e4e_core.images import from_pixels, to_pixels
from e4e_core.training.processes import Processes
from errors import TrainingError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # Pillow's other readers may start external programs
LARGEST_FILE = 1 << 28  # bytes; whatever in an archive unfolds to more is no training picture
PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


class Pictures(Dataset):
    """All pictures below a folder or inside a zip or (WebDataset) tar, sorted by name, in [-1, 1].

    Each is turned upright, and of what has another `aspect` (width, height) the middle is taken: float32
    [3, size · height / width, size]. With `mirror`, item i + n is picture i mirrored left to right, and there are 2n
    items. The last `holdout` pictures are left out, to be measured on; with `held` there are only those.
    Raises TrainingError for a portrait aspect, when there is no picture, or when one cannot be read.
    """

    def __init__(
        self,
        path: str | Path,
        size: int,
        mirror: bool = False,
        holdout: int = 0,
        held: bool = False,
        aspect: tuple[int, int] = (1, 1),
    ):
        if aspect[0] < aspect[1] or aspect[1] < 1:
            raise TrainingError(f"Pictures must be at least as wide as high; --aspect {aspect[0]} {aspect[1]} is not.")
        self.path = Path(path)
        self.size = (size, size * aspect[1] // aspect[0])
        self.mirror = mirror
        self._zip: zipfile.ZipFile | None = None
        self._places: dict[str, tuple[int, int]] = {}  # inside a tar: where a file's bytes start, and how many
        if self.path.is_dir():
            found = (str(p.relative_to(self.path)) for p in self.path.rglob("*"))
        elif zipfile.is_zipfile(self.path):
            found = iter(_names(self.path))
        elif self.path.is_file() and tarfile.is_tarfile(self.path):
            self._places = _places(self.path)
            found = iter(self._places)
        else:
            raise TrainingError(f"{self.path} is neither a folder nor a zip or tar file of pictures; check --data.")
        names = sorted(name for name in found if Path(name).suffix.lower() in PICTURE_SUFFIXES)
        shown = max(len(names) - holdout, 0)
        self.names = names[shown:] if held else names[:shown]
        if not self.names:
            raise TrainingError(
                f"{self.path} holds too few pictures; add png, jpg, webp, bmp or tif files, or lower --holdout."
            )

    def __len__(self) -> int:
        return len(self.names) * (2 if self.mirror else 1)

    def __getitem__(self, index: int) -> Tensor:
        return from_pixels(self.pixels(index))

    def pixels(self, index: int) -> Tensor:
        """The same picture as uint8 [3, h, w]."""
        name = self.names[index % len(self.names)]
        try:
            picture = ImageOps.exif_transpose(Image.open(self._open(name), formats=FORMATS)).convert("RGB")
        except Exception as error:  # archives and decoders raise almost anything on damaged or hostile data
            raise TrainingError(f"{name} in {self.path} cannot be read ({error}); remove it and resume.") from error
        if picture.size != self.size:
            picture = ImageOps.fit(picture, self.size, Image.Resampling.BOX)
        pixels = to_pixels(picture)
        return pixels.flip(2) if index >= len(self.names) else pixels

    def _open(self, name: str) -> BytesIO | Path:
        if self.path.is_dir():
            return self.path / name
        if self._places:
            start, length = self._places[name]
            _check_length(length)
            with self.path.open("rb") as file:
                file.seek(start)
                return BytesIO(file.read(length))
        if self._zip is None:  # one handle per worker process
            self._zip = zipfile.ZipFile(self.path)
        _check_length(self._zip.getinfo(name).file_size)  # what the archive claims; it never unpacks more than that
        return BytesIO(self._zip.read(name))


def _check_length(length: int) -> None:
    if length > LARGEST_FILE:
        raise ValueError(f"it unfolds to {length >> 20} MB")


def _names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception as error:
        raise TrainingError(f"{path} is a damaged zip file ({error}); make or download it again.") from error


def _places(path: Path) -> dict[str, tuple[int, int]]:
    try:
        with tarfile.open(path, "r:") as archive:
            return {member.name: (member.offset_data, member.size) for member in archive if member.isfile()}
    except Exception as error:
        raise TrainingError(f"{path} cannot be read in any order; write the tar without compression.") from error


class EndlessOrder(Sampler[int]):
    """A new shuffle for every pass over the data; position p always gives the same item, so runs can resume."""

    def __init__(self, length: int, seed: int, start: int = 0):
        self.length = length
        self.seed = seed
        self.start = start

    def __iter__(self) -> Iterator[int]:
        epoch, offset = divmod(self.start, self.length)
        while True:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            yield from torch.randperm(self.length, generator=generator)[offset:].tolist()
            epoch, offset = epoch + 1, 0


class EveryNth(Sampler[int]):
    """One process's share of an order: the items at `first`, `first` + `step`, …"""

    def __init__(self, order: EndlessOrder, first: int, step: int):
        self.order, self.first, self.step = order, first, step

    def __iter__(self) -> Iterator[int]:
        return islice(self.order, self.first, None, self.step)


class _Batches(Dataset):
    """Lists of items as uint8 [n, 3, h, w], a quarter of the bytes of float32.

    A picture that cannot be read gives its error: one raised in a worker would come with a traceback in its text.
    """

    def __init__(self, pictures: Pictures):
        self.pictures = pictures

    def __getitem__(self, items: list[int]) -> Tensor | TrainingError:
        try:
            return torch.stack([self.pictures.pixels(item) for item in items])
        except TrainingError as error:
            return error


def endless_batches(
    pictures: Pictures, batch: int, seed: int, start: int, workers: int, processes: Processes
) -> Iterator[Tensor]:
    """float32 [batch / count, 3, h, w] without end, continuing after `start` pictures of the order that `seed` gives.

    Each of `count` processes gets every `count`-th picture of a batch, on its device, channels last.
    Raises TrainingError when a picture cannot be read.
    """
    device, count = processes.device, processes.count
    order = EveryNth(EndlessOrder(len(pictures), seed, start), processes.rank, count)
    loader = DataLoader(
        _Batches(pictures),
        batch_size=None,  # the sampler makes the batches
        sampler=BatchSampler(order, batch // count, drop_last=True),
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the loader must not draw from torch's, whose state a resumed run restores
    )
    for pixels in loader:
        if isinstance(pixels, TrainingError):
            raise pixels
        yield from_pixels(pixels.to(device, non_blocking=True, memory_format=torch.channels_last))
