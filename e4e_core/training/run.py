"""One run of a training: everything that must survive a stop, saved and restored together, and what it reports."""

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from errors import TrainingError

# Settings that a stopped run may go on with, changed; of a generator its weights count.
CHANGEABLE = {
    *("out", "generator", "directions", "images", "learning_rate", "discriminator_rate", "decoder_rate"),
    *("save_every", "log_every", "workers", "device", "precision", "accumulate", "compile"),
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Writing that fails, as on a full disk, raises TrainingError with the name of what was written."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise TrainingError(
            f"{path} could not be written ({error}); make room, then start again. What was saved before is kept."
        ) from error


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A file beside `file` to write, which then takes its place in one step; if that fails, the old one stays whole.

    Raises TrainingError if it fails.
    """
    part = file.with_name(f"{file.name}.part")
    try:
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            yield part
            os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class Progress:
    """How far a run has come: pictures shown to the network, seconds spent, the best (lowest) validation so far."""

    def __init__(self):
        self.images = 0
        self.seconds = 0.0
        self.best = math.inf
        self._since = time.monotonic()

    def state_dict(self) -> dict[str, float]:
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        return {"images": self.images, "seconds": self.seconds, "best": self.best}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.images, self.seconds = int(state["images"]), float(state["seconds"])
        self.best = float(state.get("best", math.inf))  # runs saved before there was validation have none


class Run:
    """A folder with `state.pt`: the named parts' states, the random state and the settings (also `settings.json`).

    Args: facts: name -> what else must not change while the run is stopped.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: Any,
        parts: dict[str, Stateful],
        facts: Mapping[str, str] | None = None,
        quiet: bool = False,
    ):
        self.folder = Path(folder)
        self.settings = settings
        self.parts = parts
        self.facts = dict(facts or {})
        self.quiet = quiet

    @property
    def file(self) -> Path:
        return self.folder / "state.pt"

    def save(self) -> None:
        """Replace the saved state. Raises TrainingError if that fails; the old one then stays whole."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state["random"] = torch.get_rng_state()
        if torch.cuda.is_available():
            state["random_cuda"] = torch.cuda.get_rng_state()
        state["settings"] = self._settings()
        state["facts"] = self.facts
        with replacing(self.file) as part:
            torch.save(state, part)

    def save_sheet(self, name: str, sheet: Image.Image, images: int) -> None:
        """Keep a picture as `name`_`images`.png. Raises TrainingError when it cannot be written."""
        with replacing(self.folder / f"{name}_{images:07d}.png") as part:
            sheet.save(part, "PNG")

    def resume(self) -> None:
        """Restore the saved state if there is one, but with the settings' learning rates; then keep the settings.

        Raises TrainingError if the state does not fit or the run was started with others than CHANGEABLE allows.
        """
        if self.file.exists():
            self._restore(load_state(self.file))
        if not self.quiet:
            text = json.dumps({"training": type(self.settings).__name__} | asdict(self.settings), indent=2, default=str)
            print(text)
            with replacing(self.folder / "settings.json") as part:
                part.write_text(text + "\n", encoding="utf-8")
            if self.parts["progress"].images >= self.settings.images:
                print(f"The run in {self.folder} was finished before; give it more --images to go on.")

    def _settings(self) -> dict[str, str]:
        return {key: str(value) for key, value in asdict(self.settings).items()}

    def _restore(self, state: dict[str, Any]) -> None:
        then, now = state["settings"] | state.get("facts", {}), self._settings() | self.facts
        for name in sorted((then.keys() & now.keys()) - CHANGEABLE):  # older runs lack the newer settings
            if os.path.abspath(then[name]) != os.path.abspath(now[name]):  # a path may be written in two ways
                raise TrainingError(
                    f"The run in {self.folder} was started with {name.replace('_', '-')} {then[name]}, not "
                    f"{now[name]}; use another --out, or what it was started with."
                )
        for name, part in self.parts.items():
            try:
                part.load_state_dict(state[name])
            except (KeyError, RuntimeError, ValueError) as error:
                raise TrainingError(
                    f"{self.file} does not fit these settings ({name}: {error}); "
                    "use another --out, or the settings this run was started with."
                ) from error
            if isinstance(part, torch.optim.Optimizer):
                for group in part.param_groups:
                    group["lr"] = part.defaults["lr"]
        torch.set_rng_state(state["random"])
        if "random_cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["random_cuda"])


def digest(*states: Mapping[str, Tensor]) -> str:
    """What tells networks with other weights apart."""
    whole = hashlib.sha256()
    for state in states:
        for name, tensor in state.items():
            whole.update(name.encode() + tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()[:12]


def check_finite(terms: Mapping[str, Tensor]) -> None:
    """Raises TrainingError, before the last state is replaced, if a loss is infinite or not a number."""
    for name, term in terms.items():
        if not torch.isfinite(term).all():
            raise TrainingError(
                f"The training has diverged: {name} is {term.item()}. Lower the learning rate and start again; "
                "the last state is kept."
            )


def load_state(file: Path) -> dict[str, Any]:
    """A saved run's state on the CPU. Raises TrainingError when the file is missing or broken."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the broken bytes provoke
        raise TrainingError(f"{file} cannot be read as a saved run ({error}).") from error


class Log:
    """A run's TensorBoard files in `folder`/tensorboard; without the package `tensorboard` there are none.

    Raises TrainingError when they cannot be written.
    """

    def __init__(self, folder: Path, images: int):
        self.writer, self.folder = None, folder / "tensorboard"
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            print("TensorBoard is not installed, so there are no curves; requirements-training.txt names it.")
            return
        with writing(self.folder):
            self.writer = SummaryWriter(str(self.folder), purge_step=images)

    def scalars(self, group: str, values: Mapping[str, float], images: int) -> None:
        if self.writer:
            with writing(self.folder):
                for name, value in values.items():
                    self.writer.add_scalar(f"{group}/{name}", value, images)

    def picture(self, name: str, sheet: Image.Image, images: int) -> None:
        if self.writer:
            import numpy as np

            with writing(self.folder):
                self.writer.add_image(name, np.asarray(sheet), images, dataformats="HWC")

    def close(self) -> None:
        if self.writer:
            with writing(self.folder):
                self.writer.close()
