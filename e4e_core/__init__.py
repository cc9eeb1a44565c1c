"""Pictures to latent codes and back: the models, their checkpoints, their training and their measures."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from e4e_core.checkpoints import load_model
    from e4e_core.models.e4e import E4E

__all__ = ["E4E", "load_model"]


def __getattr__(name: str) -> Any:
    """`load_model` and `E4E` on first use, so that importing the package alone does not import torch."""
    if name == "load_model":
        from e4e_core.checkpoints import load_model

        return load_model
    if name == "E4E":
        from e4e_core.models.e4e import E4E

        return E4E
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
