"""Editing directions: arithmetic on latent codes, their own files, and the published ones.

An edit adds Σ strength · vectors to the codes of a photo: strength 0 is the identity, edits add up, and their order
does not matter.
"""

import contextlib
import hashlib
import http.client
import io
import json
import math
import os
import re
import sys
import tempfile
import urllib.request
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from e4e_core.checkpoints import cache_folder, registry
from e4e_core.downloads import is_reachable
from errors import DirectionError, DownloadError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from e4e_core.models.e4e import E4E

REACH = 3.0  # strengths up to this multiple of a direction's range are computed, larger ones are refused
PUBLISHED = Path(__file__).resolve().parents[1] / "checkpoints" / "directions.toml"
TIMEOUT = 5.0  # seconds without an answer from a network that is there


@dataclass(frozen=True, eq=False)
class Direction:
    """One slider.

    Attributes:
        label: what a person reads.
        group: heading under which the slider stands.
        low, high: calibrated range of the strength, low ≤ 0 ≤ high.
        vectors: float32 [L, D] on the CPU, added to the codes per unit of strength; zero rows leave a layer alone.
        measured: figures measured for it, to be kept with it (plain JSON values).
        source, licence: where it comes from and under which terms.
    Raises: DirectionError if the numbers cannot make a slider.
    """

    label: str
    group: str
    low: float
    high: float
    vectors: Tensor
    measured: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    licence: str = ""

    def __post_init__(self):
        vectors = self.vectors.detach().to("cpu", torch.float32).clone()  # no one else may change it later
        if vectors.dim() != 2 or not vectors.isfinite().all():
            raise DirectionError(
                f"The vectors of {self.label!r} must be finite and of shape [layers, width]; remake it."
            )
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= 0 <= self.high > self.low):
            raise DirectionError(f"The range {self.low} … {self.high} of {self.label!r} must enclose 0; correct it.")
        object.__setattr__(self, "vectors", vectors)

    @property
    def farther(self) -> float:
        """That end of the range which is farther from 0; the high one of two alike."""
        return self.low if -self.low > self.high else self.high

    @property
    def layers(self) -> list[int]:
        """The layers it changes, ascending."""
        return self.vectors.any(1).nonzero().flatten().tolist()


def check_name(name: str) -> None:
    """Raises DirectionError for what could not be typed in `--edit name=1`."""
    if not re.fullmatch(r"[\w-]+", name):
        raise DirectionError(f"{name!r} cannot name a direction; use letters, digits, _ and - only.")


class DirectionSet(Mapping[str, Direction]):
    """The directions of one model by name, in the order of the sliders; immutable.

    Names consist of letters, digits, `_` and `-`, see `check_name`.
    """

    def __init__(self, directions: Mapping[str, Direction]):
        self._directions = dict(directions)
        for name in self._directions:
            check_name(name)
        shapes = {tuple(direction.vectors.shape) for direction in self.values()}
        if len(shapes) > 1:
            raise DirectionError(f"Directions of one model have one shape, not {sorted(shapes)}; keep them apart.")

    def __getitem__(self, name: str) -> Direction:
        return self._directions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._directions)

    def __len__(self) -> int:
        return len(self._directions)

    def check_fits(self, num_layers: int, latent_dim: int) -> None:
        """Raises DirectionError unless every direction is made for codes [num_layers, latent_dim]."""
        for name, direction in self.items():
            if tuple(direction.vectors.shape) != (num_layers, latent_dim):
                layers, width = direction.vectors.shape
                raise DirectionError(
                    f"Direction {name!r} is made for {layers} layers of width {width}, but this model has {num_layers} "
                    f"of width {latent_dim}; use directions made for this model."
                )

    def check(self, strengths: Mapping[str, float], fidelity: float = 1.0) -> None:
        """Raises DirectionError for what `edit_codes` cannot render: unknown names, strengths that are not numbers
        within REACH × the range (a slider's ends are its range; beyond it faces fall apart), fidelity outside 0 … 1.
        """
        for name, strength in strengths.items():
            if name not in self:
                known = f"choose one of {', '.join(self)}" if self else "it has no directions at all"
                raise DirectionError(f"This model has no direction {name!r}; {known}.")
            low, high = self[name].low, self[name].high
            if not isinstance(strength, Real) or not REACH * low <= strength <= REACH * high:  # NaN fails it too
                raise DirectionError(
                    f"The strength of {name!r} cannot be {strength}; give a number from {low:g} to {high:g}."
                )
        if not (isinstance(fidelity, Real) and 0 <= fidelity <= 1):
            raise DirectionError(f"Fidelity cannot be {fidelity}; give a number from 0 (editable) to 1 (faithful).")

    def edit_codes(self, codes: Tensor, strengths: Mapping[str, float], fidelity: float = 1.0) -> Tensor:
        """Edited latent codes: w + fidelity · (codes − w) + Σ strength · vectors.

        Args:
            codes: float32 [n, L, D] from the encoder; the first row is its single w.
            strengths: name -> strength; 0 is exactly the identity.
            fidelity: 0 keeps w alone on all layers, 1 the codes as they are, values between scale the offsets
                from w (Tov et al. 2021, section 3: editability against distortion).
        Returns: float32 [n, L, D], a new value; bit-identical however `strengths` is ordered.
        Raises: DirectionError, see `check` and `check_fits`.
        """
        self.check(strengths, fidelity)
        self.check_fits(*codes.shape[1:])
        edited = torch.lerp(codes[:, :1], codes, float(fidelity))  # [n, L, D], exact at 0 and at 1
        edits = [float(strengths[name]) * self[name].vectors for name in sorted(strengths) if strengths[name]]
        return edited + sum(edits).to(codes.device) if edits else edited

    def keeping(self, names: Collection[str]) -> "DirectionSet":
        """The same sliders, of which those not in `names` no longer move a face along those in `names`.

        On each layer, a row loses its projection on the span of the kept rows: conditional manipulation, Shen et al.
        2020 (InterFaceGAN), section 3.3, with any number of conditions. A row that is 0 stays 0.
        Raises: DirectionError for names that are not there.
        """
        if not names:
            return self
        self.check(dict.fromkeys(names, 0.0))
        kept = torch.stack([self[name].vectors.double() for name in names], dim=1)  # [L, k, D]
        inverse = torch.linalg.pinv(kept)  # [L, D, k]
        free = {}
        for name, direction in self.items():
            row = direction.vectors.double()[:, None]  # [L, 1, D]
            vectors = direction.vectors if name in names else (row - row @ inverse @ kept)[:, 0].float()
            free[name] = replace(direction, vectors=vectors)
        return DirectionSet(free)

    def packed(self) -> bytes:
        """One safetensors file: name -> float32 [L, D], and label, group and range of each in the metadata."""
        words = {
            name: {"label": direction.label, "group": direction.group, "range": [direction.low, direction.high]}
            for name, direction in self.items()
        }
        # Copies, because safetensors refuses memory that two names share.
        tensors = {name: direction.vectors.clone() for name, direction in self.items()}
        return save(tensors, {"directions": json.dumps(words, ensure_ascii=False, default=float)})

    def save(self, folder: Path | str) -> None:
        """Write `directions.safetensors` (see `packed`) and `directions.json` (everything readable).

        Raises: DirectionError if they cannot be written.
        """
        readable = {
            name: {
                "label": direction.label,
                "group": direction.group,
                "range": [direction.low, direction.high],
                "layers": direction.layers,
                "measured": dict(direction.measured),
                "source": direction.source,
                "licence": direction.licence,
            }
            for name, direction in self.items()
        }
        text = json.dumps(readable, indent=2, ensure_ascii=False, default=float)  # NumPy's numbers are not JSON's
        folder = Path(folder)
        files = {"directions.safetensors": self.packed(), "directions.json": f"{text}\n".encode()}
        parts = {name: folder / f".{name}" for name in files}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                parts[name].write_bytes(content)
            for name, part in parts.items():  # the old ones are there until the new ones are complete
                part.replace(folder / name)
        except OSError as error:
            raise DirectionError(
                f"The directions cannot be written to {folder} ({error}); check the folder and its space."
            ) from error
        finally:
            for part in parts.values():
                with contextlib.suppress(OSError):
                    part.unlink()

    @classmethod
    def load(cls, folder: Path | str) -> "DirectionSet":
        """Read what `save` wrote, or `packed` as `directions.safetensors` alone.

        Raises: DirectionError if the files are missing, broken or disagree.
        """
        folder = Path(folder)
        try:
            vectors = load_file(folder / "directions.safetensors")
            if (folder / "directions.json").exists():
                readable = json.loads((folder / "directions.json").read_text(encoding="utf-8"))
            else:
                with safe_open(folder / "directions.safetensors", "pt") as file:
                    readable = json.loads((file.metadata() or {})["directions"])
            if set(readable) != set(vectors):
                raise ValueError(f"only one of its files knows {', '.join(sorted(set(readable) ^ set(vectors)))}")
            return cls({name: _from_json(entry, vectors[name]) for name, entry in readable.items()})
        except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError, DirectionError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error).rstrip(".")
            raise DirectionError(
                f"The directions in {folder} cannot be read ({reason}); restore directions.json and "
                "directions.safetensors or remove both."
            ) from error


def _from_json(entry: Mapping[str, Any], vectors: Tensor) -> Direction:
    low, high = map(float, entry["range"])
    optional = {key: entry[key] for key in ("measured", "source", "licence") if key in entry}
    return Direction(str(entry["label"]), str(entry["group"]), low, high, vectors, **optional)


def directions_for(model: "E4E") -> DirectionSet:
    """A model's own directions: those in its folder, else the published ones its registry entry names, else none.

    Raises: DirectionError if they do not fit the model or cannot be read; DownloadError if they cannot be fetched.
    """
    if model.folder is not None and any(model.folder.glob("directions.*")):
        directions = DirectionSet.load(model.folder)
    elif name := registry().get(model.name, {}).get("directions"):
        directions = published_directions(name, model.num_layers)
    else:
        directions = DirectionSet({})
    directions.check_fits(model.num_layers, model.latent_dim)
    return directions


def check_writable(folder: Path) -> None:
    """Makes the folder if need be; raises DirectionError if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise DirectionError(f"Nothing can be written to {folder} ({error}); choose another folder.") from error


def directions_to_extend(folder: Path, model: "E4E") -> DirectionSet:
    """Those of a folder that gets more: in the model's own folder what `directions_for` gives, published ones too.

    Raises: DirectionError if they do not fit the model or nothing can be written there; else see `directions_for`.
    """
    check_writable(folder)
    if model.folder is not None and folder.resolve() == model.folder.resolve():
        return directions_for(model)
    there = DirectionSet.load(folder) if any(folder.glob("directions.*")) else DirectionSet({})
    there.check_fits(model.num_layers, model.latent_dim)
    return there


def published_directions(domain: str, num_layers: int, folder: Path | None = None) -> DirectionSet:
    """The directions that `checkpoints/directions.toml` lists for `domain` ("ffhq", "cars"), for `num_layers` codes.

    Args:
        folder: where the published files lie or are downloaded to; the project's cache by default.
    Raises: DirectionError for an unknown domain or a model with too few layers; DownloadError, see `_fetch`.
    """
    table = tomllib.loads(PUBLISHED.read_text(encoding="utf-8"))
    files = table.pop("files")
    if domain not in table:
        raise DirectionError(f"No directions are published for {domain!r}; choose one of {', '.join(table)}.")
    folder = folder or cache_folder() / "directions"
    loaded = {name: _fetch(folder / name, files[name]) for name in sorted({entry["file"] for entry in table[domain]})}
    directions = {}
    for entry in table[domain]:
        published = files[entry["file"]]
        directions[entry["name"]] = Direction(
            entry["label"],
            entry["group"],
            *map(float, entry["range"]),
            _vectors(entry, loaded[entry["file"]], num_layers),
            source=published["source"],
            licence=published["licence"],
        )
    return DirectionSet(directions)


def _vectors(entry: Mapping[str, Any], content: Any, num_layers: int) -> Tensor:
    """float32 [num_layers, D] of one entry; see the head of `checkpoints/directions.toml` for the two kinds."""
    if "component" not in entry:  # InterFaceGAN: [1, D] for every layer or [1, L, D]
        per_layer = content.reshape(-1, content.shape[-1])
        if len(per_layer) not in (1, num_layers):
            raise DirectionError(
                f"Direction {entry['name']!r} is made for {len(per_layer)} layers, but this model has {num_layers}; "
                "use directions made for this model."
            )
        return per_layer.expand(num_layers, -1)
    component, (first, last) = entry["component"], entry["layers"]
    if last > num_layers:
        raise DirectionError(
            f"Direction {entry['name']!r} changes layer {last - 1}, but this model has only {num_layers}; "
            "use directions made for this model."
        )
    step = content["comp"][component, 0] * content["std"][component] * entry.get("sign", 1)  # [D]
    vectors = torch.zeros(num_layers, len(step))
    vectors[first:last] = step
    return vectors


def _fetch(path: Path, published: Mapping[str, str]) -> Any:
    """The tensors of a published file, from `path` if it is there intact, else downloaded and kept there.

    Raises: DownloadError without a network, within a second, and if what came is not the published file.
    """
    data = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(data).hexdigest() != published["sha256"]:
        data = _download(path, published)
        with contextlib.suppress(OSError):  # a folder that cannot be written to only costs the next start a download
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}.part")
            part.write_bytes(data)
            part.replace(path)  # a reader never sees half a file
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _download(path: Path, published: Mapping[str, str]) -> bytes:
    """The published file's bytes, their digest checked."""
    try:
        if not is_reachable(published["url"]):
            raise OSError("no network")
        with urllib.request.urlopen(published["url"], timeout=TIMEOUT) as response:
            data = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(
            f"{path.name} could not be fetched ({error}); connect to the network, or put the file from "
            f"{published['url']} into {path.parent}."
        ) from error
    if hashlib.sha256(data).hexdigest() != published["sha256"]:
        raise DownloadError(f"What {published['url']} sent is not the published file; try again later.")
    return data
