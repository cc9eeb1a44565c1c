"""Editing photos with a model: open a photo once, render it as often as sliders move.

editor = Editor(load_model("demo"))
session = editor.open("photo.jpg")
picture = editor.render(session, {"smile": 1.5, "age": -1})
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from editing.directions import Direction, DirectionSet
    from editing.editor import Editor, Session

__all__ = ["Direction", "DirectionSet", "Editor", "Session"]


def __getattr__(name: str):
    # On first use, so that `python -m editing --help` answers without waiting for torch.
    if name in ("Editor", "Session"):
        from editing import editor

        return getattr(editor, name)
    if name in ("Direction", "DirectionSet"):
        from editing import directions

        return getattr(directions, name)
    raise AttributeError(f"module 'editing' has no attribute {name!r}")
