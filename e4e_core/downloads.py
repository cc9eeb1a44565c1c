"""Fetching published checkpoints from the Hugging Face Hub, with mirrors, progress and a digest check."""

import contextlib
import hashlib
import io
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from errors import DownloadError

CONNECT_SECONDS = 0.8  # a page that waits longer for a dead network feels broken

Progress = Callable[[int, int], None]  # bytes fetched so far, bytes in all


def fetch(name: str, entry: Mapping[str, Any], folder: Path, progress: Progress | None) -> Path:
    """The published file of a registry entry, its digest checked.

    Args:
        folder: looked into first, for a copy put there by hand; then the Hub's cache, then the mirrors in order.
    Raises: DownloadError, within about a second when there is no network. A download that is not the published
        file is deleted; a copy put there by hand is left alone, but not used.
    """
    local = folder / entry["file"]
    if local.exists():
        if is_intact(local, entry):
            return local
        raise DownloadError(f"{local} is not the published file; remove it, or replace it by {entry['page']}.")
    problems = []
    for mirror, path in _copies(entry["mirrors"], progress, problems):
        if is_intact(path, entry):
            return path
        path.resolve().unlink(missing_ok=True)  # the Hub's cache keeps the contents apart and links to them
        path.unlink(missing_ok=True)
        problems.append(f"the copy of {path.name} from {mirror} was not the published file and is deleted")
    raise DownloadError(
        f"The {name} model could not be downloaded ({'; '.join(problems)}); try again with a working connection, "
        f"or put {entry['file']} from {entry['page']} into {folder}."
    )


def is_at_hand(entry: Mapping[str, Any], folder: Path) -> bool:
    """Whether a file is in `folder` or in the Hub's cache, or could be asked for over the network."""
    from huggingface_hub import constants, try_to_load_from_cache

    if (folder / entry["file"]).exists():
        return True
    for mirror in entry["mirrors"]:
        if isinstance(try_to_load_from_cache(mirror["repository"], mirror["path"], revision=mirror["revision"]), str):
            return True
    return not constants.HF_HUB_OFFLINE and is_reachable(constants.ENDPOINT)


def _copies(
    mirrors: list[dict[str, str]], progress: Progress | None, problems: list[str]
) -> Iterator[tuple[str, Path]]:
    """(repository, file) of every copy to be had: those in the Hub's cache, then those the mirrors send."""
    from huggingface_hub import constants

    for mirror in mirrors:
        folder = Path(constants.HF_HUB_CACHE) / f"models--{mirror['repository'].replace('/', '--')}"
        if folder.exists():  # spares the second that asking the Hub's own code takes
            with contextlib.suppress(OSError):  # what it raises when there is none
                yield mirror["repository"], _from_hub(mirror, None, local_files_only=True)
    if constants.HF_HUB_OFFLINE or not is_reachable(constants.ENDPOINT):
        problems.append("there is no network")
        return
    for mirror in mirrors:
        try:
            path = _from_hub(mirror, progress)
        except Exception as error:  # of many kinds, the Hub's and those of the network below it
            problems.append(f"{mirror['repository']}: {str(error).partition(chr(10))[0]}")
        else:
            yield mirror["repository"], path


def _from_hub(mirror: Mapping[str, str], progress: Progress | None, local_files_only: bool = False) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(
        hf_hub_download(
            mirror["repository"],
            mirror["path"],
            revision=mirror["revision"],
            local_files_only=local_files_only,
            tqdm_class=None if progress is None else _reporting(progress),
        )
    )


def is_reachable(url: str) -> bool:
    """Whether a connection to the host of `url`, or to the proxy for it, opens within CONNECT_SECONDS."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy:
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    answer = []

    def connect() -> None:
        try:
            port = parts.port or (80 if parts.scheme == "http" else 443)
            socket.create_connection((parts.hostname, port), CONNECT_SECONDS).close()
            answer.append(True)
        except OSError:
            pass

    # In a thread, because looking up a name has no timeout of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    return bool(answer)


def _reporting(progress: Progress) -> type[tqdm]:
    """A silent tqdm class that tells `progress` instead of a terminal."""

    class Reporting(tqdm):
        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **options, file=io.StringIO())

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            progress(int(self.n), int(self.total or 0))
            return shown

    return Reporting


def is_intact(path: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a file has the size and the SHA-256 digest of its registry entry."""
    if path.stat().st_size != entry["bytes"]:
        return False
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest() == entry["sha256"]
