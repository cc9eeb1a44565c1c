"""What comes over the network, checked, and what a handler answers when it cannot be done."""

import base64
import functools
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from errors import E4EError, PhotoError
from limits import limit
from page.studio import is_out_of_memory

FAILED = "Something went wrong here; try again, and reload the page if it happens again."
FULL = "The memory of this machine does not suffice for that; try again, or take a smaller photo."
DROPPED = (
    "Your photo is not kept any more, because the page was disconnected or others needed the room; "
    "choose it again and your edits will act on it."
)
GONE = "There is no photo here; choose one first."

# Most handlers that compute share one queue, in the order of their events. What follows the hand (`page.frames`) and
# what takes long have turns of their own.
RENDERING = {"concurrency_id": "rendering", "concurrency_limit": 1}
# Pictures travel as data URLs, which Gradio need not convert and never writes to disk.
RAW = {"preprocess": False, "postprocess": False, "api_visibility": "private"}
# Handlers that show that they are at work, and those that answer at once. Without its empty list, Gradio 6's hidden
# progress would count time on the status line for ever, which keeps a core busy.
WORK = {"show_progress": "minimal", **RENDERING, **RAW}
HIDDEN = {"show_progress": "hidden", "show_progress_on": []}
QUIETLY = {**HIDDEN, **RENDERING, **RAW}

log = logging.getLogger("e4e")


def uploaded(file: Any, folder: str) -> Path | io.BytesIO:
    """What a field sends: a file that Gradio has stored in its `folder`, or a data URL.

    Gradio does not check the path for handlers without preprocessing: any other file of this machine is refused here.
    """
    try:
        url = file.get("url") or ""
        if url.startswith("data:") and len(url) <= limit("E4E_MAX_UPLOAD_MB") * 1_400_000:  # base64's 4/3, and more
            return io.BytesIO(base64.b64decode(url.partition(",")[2]))
        path = Path(file["path"])
        if path.resolve().is_relative_to(Path(folder).resolve()):
            return path
    except (AttributeError, KeyError, TypeError, ValueError, OSError):  # what no browser sends
        pass
    raise PhotoError("What the browser sent is not a file it uploaded; choose the file again.")


def uploaded_file(file: Any, folder: str) -> Path:
    """As `uploaded`, for fields that never send a data URL."""
    source = uploaded(file, folder)
    if isinstance(source, Path):
        return source
    raise PhotoError("What the browser sent is not a file it uploaded; choose the file again.")


def number_of(choices: Any, index: Any) -> int:
    """`index`, as it came over the network, if it is one of `choices`."""
    if type(index) is not int or not 0 <= index < len(choices):
        raise PhotoError("That choice is not there any more; reload the page and choose again.")
    return index


def chosen(choices: Any, index: Any) -> Any:
    return choices[number_of(choices, index)]


def check_open(visit: Any) -> None:
    if visit.session is None:
        raise PhotoError(DROPPED if visit.dropped else GONE)


def in_sentences(
    handler: Callable[..., Any],
    answer: Callable[[str], Any],
    free_memory: Callable[[], None],
    failed: str = FAILED,
    full: str = FULL,
) -> Callable[..., Any]:
    """The handler with its errors as sentences, which `answer` shows or raises.

    Args:
        free_memory: called before the answer when there was too little memory.
        failed, full: what is said of an error that no sentence was written for, and of too little memory.
    """

    @functools.wraps(handler)
    def wrapped(*inputs, **named):
        try:
            return handler(*inputs, **named)
        except E4EError as error:
            sentence = str(error)
        except Exception as error:
            log.exception("%s failed.", handler.__name__)
            sentence = full if is_out_of_memory(error) else failed
        if sentence is full:
            free_memory()
        return answer(sentence)

    return wrapped
