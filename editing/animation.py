"""Short films of an edit: a slider's path or a morph, as GIF or MP4 that say that AI made them."""

import math
import os
from collections.abc import Iterable
from pathlib import Path

import imageio_ffmpeg
from PIL import Image

from editing.export import MARK, NOTE
from errors import PhotoError

RATE = 20  # pictures per second
FRAMES = 48  # of a whole film
SMALLEST = 256  # px, the least side of a film: players and messengers do not enlarge well
LARGEST = {".gif": 480, ".mp4": 1280}  # px, the longer side; a GIF of a megapixel would take tens of megabytes


def there_and_back(low: float, high: float, frames: int = FRAMES) -> list[float]:
    """From low to high and back, slow at both ends; played again and again, it never jumps.

    low + (high − low) · (1 − cos 2πt) / 2 at t = 0, 1/frames, …
    """
    return [low + (high - low) * (1 - math.cos(2 * math.pi * k / frames)) / 2 for k in range(frames)]


def save_film(pictures: Iterable[Image.Image], target: Path) -> None:
    """Write pictures as a film that repeats (GIF) or plays once (MP4, H.264).

    Args:
        pictures: RGB, all of one size; each is asked for when it is written.
        target: `.gif` or `.mp4`, replaced only once the whole file is there. Its comment says that AI edited it; of
            the photo's own metadata nothing is written.
    Raises: PhotoError for another kind of file, or if the film cannot be written.
    """
    kind = target.suffix.lower()
    if kind not in LARGEST:
        raise PhotoError(f"{target.name} is neither .gif nor .mp4; choose one of them.")
    part = target.with_name(f"{target.stem}.{os.getpid()}.part{kind}")
    sized = (_sized(picture, LARGEST[kind]) for picture in pictures)
    try:
        _save_gif(sized, part) if kind == ".gif" else _save_mp4(sized, part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _sized(picture: Image.Image, largest: int) -> Image.Image:
    """The picture at a size that players take: even sides, none too small or too large."""
    scale = min(max(SMALLEST / min(picture.size), 1.0), largest / max(picture.size))
    size = tuple(max(2, round(side * scale / 2) * 2) for side in picture.size)
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _save_gif(pictures: Iterable[Image.Image], target: Path) -> None:
    """With one palette for all pictures, so that colours do not flicker."""
    pictures = list(pictures)
    sheet = Image.new("RGB", (64, 64 * len(pictures)))
    for number, picture in enumerate(pictures):
        sheet.paste(picture.resize((64, 64)), (0, 64 * number))
    palette = sheet.quantize(256)
    first, *others = [picture.quantize(palette=palette) for picture in pictures]
    comment = f"{NOTE} {MARK}".encode()
    first.save(target, "GIF", save_all=True, append_images=others, duration=1000 // RATE, loop=0, comment=comment)


def _save_mp4(pictures: Iterable[Image.Image], target: Path) -> None:
    pictures = iter(pictures)
    first = next(pictures)
    try:
        imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise PhotoError("There is no ffmpeg on this machine, which MP4 films need; choose GIF.") from error
    note = ["-metadata", f"comment={NOTE} {MARK}", "-movflags", "+faststart", "-threads", "1"]
    writer = imageio_ffmpeg.write_frames(
        str(target), first.size, fps=RATE, codec="libx264", quality=8, macro_block_size=2, output_params=note
    )
    try:
        writer.send(None)
        writer.send(first.tobytes())
        for picture in pictures:
            writer.send(picture.tobytes())
    except OSError as error:
        raise PhotoError("The film could not be written as MP4 on this machine; choose GIF.") from error
    finally:
        writer.close()
