"""From a model's name to the model: the registry, the cache of converted checkpoints, `load_model`.

A name leads to a file (`downloads.py`), a published file is converted once into a folder of the own format
(`formats.py`), and every later start maps that folder into memory.
"""

import contextlib
import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from e4e_core.downloads import Progress, fetch, is_intact, is_reachable
from e4e_core.formats import CONFIG, export_published, read_folder, read_published, save_model
from e4e_core.models.e4e import E4E, resolve_precision
from errors import DownloadError, ModelError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "cache_folder",
    "default_model_name",
    "dlib_face_network",
    "export_published",
    "load_model",
    "load_or_demo",
    "published_file",
    "registry",
    "save_model",
]

CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"


def registry() -> dict[str, dict[str, Any]]:
    """The known models by name; the head of `checkpoints/registry.toml` explains the keys of an entry."""
    return tomllib.loads((CHECKPOINTS / "registry.toml").read_text(encoding="utf-8"))


def default_model_name() -> str:
    """The model to start with: `E4E_MODEL` if set, the full one on a Hugging Face Space, else the embedded one."""
    return os.environ.get("E4E_MODEL") or ("ffhq" if os.environ.get("SPACE_ID") else "demo")


def dlib_face_network() -> Path:
    """dlib's face embedding network, in its package, which is not imported. Raises ModelError without the package."""
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None or spec.origin is None:
        raise ModelError("The package face_recognition_models is missing; run pip install -r requirements.txt.")
    return Path(spec.origin).parent / "models" / "dlib_face_recognition_resnet_model_v1.dat"


def load_model(
    name_or_path: str | Path,
    device: str | torch.device | None = None,
    precision: str = "auto",
    progress: Progress | None = None,
) -> E4E:
    """A model ready to use: in evaluation mode, its parameters without gradients.

    Args:
        name_or_path: a name from the registry, a published .pt file, or a folder that `save_model` wrote.
        device: None is the GPU if there is one, else the CPU.
        precision: "auto", "float32", "bfloat16" or "float16"; see `E4E.set_precision`.
        progress: called with (bytes so far, bytes in all) during a download; None shows a bar on the terminal.
    Raises: ModelError if there is no such model or its file cannot be used; DownloadError if it cannot be fetched.
    """
    device = _device(device)
    resolve_precision(precision, device)  # refuse before a download of a gigabyte
    model = _find(str(name_or_path), progress)
    return model.to(device).set_precision(precision).eval().requires_grad_(False)


def load_or_demo(
    name: str | None = None,
    device: str | torch.device | None = None,
    precision: str = "auto",
    progress: Progress | None = None,
) -> tuple[E4E, str | None]:
    """`load_model(name)`, or the embedded demo model and a sentence that says why it is the demo.

    Raises: ModelError if the demo model cannot be loaded either.
    """
    name = name or default_model_name()
    resolve_precision(precision, _device(device))  # what no model could serve is no reason for the demo
    try:
        return load_model(name, device, precision, progress), None
    except ModelError as error:
        if name == "demo":
            raise
        return load_model("demo", device, precision), f"The demo model is used instead. {error}"


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"There is no device {device!r}; use cpu, or cuda where there is an Nvidia GPU.") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"PyTorch finds no GPU for {device!r} here; use cpu.")
    return found


def _find(name: str, progress: Progress | None) -> E4E:
    entries = registry()
    if name in entries:
        entry = entries[name]
        if "folder" in entry:
            model = read_folder(CHECKPOINTS / entry["folder"])
        elif "sha256" in entry:
            folder = cache_folder() / f"{name}-{entry['sha256'][:12]}"
            model = _converted(folder, name, lambda: fetch(name, entry, CHECKPOINTS, progress))
        else:
            model = _from_file(_put_by_hand(name, entry), name)
        model.name = name
        return model
    path = Path(name).expanduser()
    if path.is_dir():
        return read_folder(path)
    if path.is_file():
        known = {entry["file"]: known for known, entry in entries.items() if "file" in entry}
        return _from_file(path, known.get(path.name, path.stem))
    if path.suffix == ".pt" or os.sep in name:
        raise ModelError(f"There is no file or folder {name}; check the path, or use one of {', '.join(entries)}.")
    raise ModelError(f"There is no model {name!r}; use {', '.join(entries)}, a published .pt file, or a model folder.")


def _from_file(path: Path, name: str) -> E4E:
    """A published .pt file; its conversion is kept as long as path, size and date stay the same."""
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    return _converted(cache_folder() / f"{path.stem}-{key}", name, lambda: path)


def _put_by_hand(name: str, entry: Mapping[str, Any]) -> Path:
    path = CHECKPOINTS / entry["file"]
    if not path.exists():
        raise ModelError(
            f"The {name} model has to be fetched by hand: download {entry['file']} from {entry['page']} "
            f"and put it into {CHECKPOINTS}, or name the file instead of {name!r}."
        )
    return path


def cache_folder() -> Path:
    """Where converted models are kept; `E4E_CACHE` names another folder."""
    named = os.environ.get("E4E_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "e4e" / "models"


def _converted(folder: Path, name: str, source: Callable[[], Path]) -> E4E:
    """The model in `folder`; if it is not there, or broken, the published file `source()` is converted into it."""
    if (folder / CONFIG).exists():
        with contextlib.suppress(ModelError):
            return read_folder(folder)
    model = read_published(source(), name)
    try:
        save_model(model, folder)
    except ModelError:  # no room or no right to write: the next start converts again
        return model
    return read_folder(folder)


def networks() -> dict[str, dict[str, Any]]:
    """Networks that others trained; the head of `checkpoints/networks.toml` explains the keys of an entry."""
    return tomllib.loads((CHECKPOINTS / "networks.toml").read_text(encoding="utf-8"))


def published_file(name: str, progress: Progress | None = None) -> Path:
    """The file of an entry of `networks()`, its digest checked; `progress` as in `load_model`. Raises DownloadError."""
    entry = networks()[name]
    by_hand, cached = CHECKPOINTS / entry["file"], cache_folder().parent / "losses" / entry["file"]
    if "sha256" not in entry:
        if by_hand.exists():
            return by_hand
        raise DownloadError(f"download {entry['file']} from {entry['page']} and put it into {CHECKPOINTS}")
    if "mirrors" in entry:
        return fetch(name, entry, CHECKPOINTS, progress)
    if by_hand.exists() and not is_intact(by_hand, entry):
        raise DownloadError(f"{by_hand} is not the published file; remove it, or replace it by {entry['page']}")
    for path in (by_hand, cached):
        if path.exists() and is_intact(path, entry):
            return path
    if not is_reachable(entry["url"]):
        raise DownloadError(f"there is no network; put {entry['file']} from {entry['page']} into {CHECKPOINTS}")
    cached.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(entry["url"], str(cached), hash_prefix=entry["sha256"])
    except (OSError, RuntimeError) as error:
        raise DownloadError(f"{entry['url']}: {error}") from error
    return cached
