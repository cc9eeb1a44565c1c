"""Training pictures: a folder or a zip of aligned photos, in an order that a stopped run can continue."""

import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from e4e_core.images import to_tensor
from errors import TrainingError

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


class Pictures(Dataset):
    """All pictures below a folder or inside a zip file, sorted by name, as float32 [3, size, size] in [-1, 1].

    With `mirror`, item i + n is picture i mirrored left to right, and there are 2n items. The last `holdout`
    pictures are left out, to be measured on.
    Raises TrainingError when there is no picture, or when one cannot be read.
    """

    def __init__(self, path: str | Path, size: int, mirror: bool = False, holdout: int = 0):
        self.path = Path(path)
        self.size = size
        self.mirror = mirror
        self._zip: zipfile.ZipFile | None = None
        if self.path.is_dir():
            found = (str(p.relative_to(self.path)) for p in self.path.rglob("*"))
        elif zipfile.is_zipfile(self.path):
            found = iter(zipfile.ZipFile(self.path).namelist())
        else:
            raise TrainingError(f"{self.path} is neither a folder nor a zip file of pictures; check --data.")
        self.names = sorted(name for name in found if Path(name).suffix.lower() in PICTURE_SUFFIXES)
        self.names = self.names[: len(self.names) - holdout]
        if not self.names:
            raise TrainingError(f"{self.path} holds too few pictures; add png, jpg, webp, bmp or tif files.")

    def __len__(self) -> int:
        return len(self.names) * (2 if self.mirror else 1)

    def __getitem__(self, index: int) -> Tensor:
        name = self.names[index % len(self.names)]
        try:
            picture = Image.open(self._open(name)).convert("RGB")
        except (OSError, UnidentifiedImageError, zipfile.BadZipFile) as error:
            raise TrainingError(f"{name} in {self.path} cannot be read ({error}); remove it and resume.") from error
        if picture.size != (self.size, self.size):
            picture = picture.resize((self.size, self.size), Image.Resampling.BOX)
        image = to_tensor(picture)[0]
        return image.flip(2) if index >= len(self.names) else image

    def _open(self, name: str) -> BytesIO | Path:
        if self.path.is_dir():
            return self.path / name
        if self._zip is None:  # one handle per worker process
            self._zip = zipfile.ZipFile(self.path)
        return BytesIO(self._zip.read(name))


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


def endless_batches(pictures: Pictures, batch: int, seed: int, start: int, workers: int) -> Iterator[Tensor]:
    """float32 [batch, 3, size, size] without end, continuing after `start` pictures of the order that `seed` gives."""
    order = EndlessOrder(len(pictures), seed, start)
    own_random = torch.Generator()  # the loader must not draw from torch's, whose state a resumed run restores
    return iter(DataLoader(pictures, batch_size=batch, sampler=order, num_workers=workers, generator=own_random))
