"""One run of a training: everything that must survive a stop, saved and restored together."""

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch

from errors import TrainingError


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class Progress:
    """How far a run has come: pictures shown to the network, and seconds spent."""

    def __init__(self):
        self.images = 0
        self.seconds = 0.0
        self._since = time.monotonic()

    def state_dict(self) -> dict[str, float]:
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        return {"images": self.images, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.images, self.seconds = int(state["images"]), float(state["seconds"])


class Run:
    """A folder with `state.pt`: the named parts' states, torch's random state and the settings."""

    def __init__(self, folder: str | Path, settings: Any, parts: dict[str, Stateful]):
        self.folder = Path(folder)
        self.settings = settings
        self.parts = parts
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def file(self) -> Path:
        return self.folder / "state.pt"

    def save(self) -> None:
        """Write the state beside the old one, then replace it in one step; a full disk leaves the old one whole.

        Raises TrainingError when the file cannot be written.
        """
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state["random"] = torch.get_rng_state()
        state["settings"] = {key: str(value) for key, value in asdict(self.settings).items()}
        new = self.file.with_suffix(".new")
        try:
            torch.save(state, new)
            os.replace(new, self.file)
        except (OSError, RuntimeError) as error:
            new.unlink(missing_ok=True)
            raise TrainingError(f"{self.file} could not be written ({error}); the last saved state is kept.") from error

    def resume(self) -> bool:
        """Restore the saved state if there is one; says whether there was. Raises TrainingError if it does not fit."""
        if not self.file.exists():
            return False
        state = load_state(self.file)
        for name, part in self.parts.items():
            try:
                part.load_state_dict(state[name])
            except (KeyError, RuntimeError, ValueError) as error:
                raise TrainingError(
                    f"{self.file} does not fit these settings ({name}: {error}); "
                    "use another --out, or the settings this run was started with."
                ) from error
        torch.set_rng_state(state["random"])
        return True


def load_state(file: Path) -> dict[str, Any]:
    """A saved run's state on the CPU. Raises TrainingError when the file is missing or broken."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the broken bytes provoke
        raise TrainingError(f"{file} cannot be read as a saved run ({error}).") from error
