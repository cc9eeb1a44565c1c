"""What the page lets people take of its machine. Each limit is an environment variable; docs/serving.md explains them.

At the top, as `errors`, because `alignment` and `page` both ask for them.
"""

import os

from errors import SettingError

# name -> (default, highest)
LIMITS = {
    "E4E_MAX_UPLOAD_MB": (100, 10_000),
    "E4E_MAX_MEGAPIXELS": (150, 178),  # the largest phone sensors deliver 108; Pillow refuses more than 178
    "E4E_MAX_QUEUE": (200, 100_000),
    "E4E_MAX_PHOTOS": (100, 100_000),
    "E4E_REFINE_SECONDS": (120, 86_400),
}


def limit(name: str) -> int:
    """The value of one of LIMITS, at least 1. Raises SettingError if the variable holds something else."""
    default, highest = LIMITS[name]
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= highest):
        raise SettingError(f"{name} is {text!r}; set it to a whole number from 1 to {highest}, or unset it.")
    return int(text)
