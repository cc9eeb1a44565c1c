"""The page: a photo goes in, sliders move, the edited photo comes out. `page/` is how it looks and what it does."""

import argparse
import contextlib
import ctypes
import importlib.util
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

# PyTorch's threads would wait for each other at full speed, on cores that the browser beside them needs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if os.environ.get("SPACE_ID"):  # ZeroGPU replaces parts of torch, and must come before it
    try:
        import spaces
    except ImportError:
        spaces = None
else:
    spaces = None

import gradio as gr

from e4e_core.checkpoints import default_model_name, load_or_demo, registry
from editing import Editor
from errors import E4EError, ModelError, SettingError
from limits import LIMITS, limit
from page.page import Page
from page.studio import Studio

LOOK = Path(__file__).resolve().parent / "page"
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
GPU_SECONDS = 20  # a call on ZeroGPU may take; the shorter, the sooner it gets its turn


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="app.py", description="Serve the page on which photos are edited.")
    parser.add_argument("--model", help="a name from checkpoints/registry.toml, a published .pt file or a model folder")
    parser.add_argument("--host", help="address to listen on, 0.0.0.0 for the whole network (default: this machine)")
    parser.add_argument("--port", type=int, help="port to listen on (default: the first free one from 7860)")
    parser.add_argument("--mcp", action="store_true", help="also offer /directions and /edit as tools for AI agents")
    return parser.parse_args(arguments)


def on_gpu(function: Callable) -> Callable:
    """On a Space with ZeroGPU, the function in a worker that has the GPU for so long; elsewhere, the function."""
    return function if spaces is None else spaces.GPU(duration=GPU_SECONDS)(function)


def first_editor(name: str) -> tuple[Studio, str, str]:
    """(studio, the name of the model it starts with, why that is not the wanted one or an empty sentence)."""
    if name not in registry() and not Path(name).exists():
        raise ModelError(f"There is no model {name!r}; use one of {', '.join(registry())}, or the path of a model.")
    model, notice = load_or_demo(name)
    name = "demo" if notice else name
    zero_gpu = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "true")
    return Studio(name, Editor(model), on_gpu, live=not zero_gpu), name, notice or ""


def share_heaps() -> None:
    """Let all threads share two heaps: of glibc's one for each, what one has freed is of no use to the others."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").mallopt(-8, 2)  # M_ARENA_MAX


@contextlib.contextmanager
def temporary_files() -> Iterator[None]:
    """A folder for uploads and downloads that goes with this process, even while pages are open that hold Gradio up."""
    parent = os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir()
    try:
        Path(parent).mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix="edit-a-face-", dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise SettingError(
            f"No files can be kept in {parent} ({error}); name another folder as GRADIO_TEMP_DIR."
        ) from None
    with folder:
        os.environ["GRADIO_TEMP_DIR"] = folder.name
        try:
            yield
        finally:
            os.environ["GRADIO_TEMP_DIR"] = parent


def main(arguments: list[str] | None = None) -> int:
    """Serve the page until interrupted. Returns the exit code."""
    chosen = options(arguments)
    share_heaps()
    for end in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):  # a service manager's, a closed terminal's
        if signal.getsignal(end) == signal.SIG_DFL:  # not with nohup
            signal.signal(end, signal.default_int_handler)  # in good order, too
    try:
        with temporary_files():
            serve(chosen)
    except KeyboardInterrupt:  # before the page was there
        return 130
    except (E4EError, OSError) as error:
        print(f"app.py: {error}", file=sys.stderr)
        return 2
    return 0


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Raises SettingError where an address is none, or is taken."""
    try:
        yield
    except (OSError, OverflowError) as error:  # the second for a port above 65535
        raise SettingError(f"The page cannot listen there ({error}); choose another --host or --port.") from None


def serve(chosen: argparse.Namespace) -> None:
    """Serve the page until interrupted. Raises E4EError, and OSError for a model's file that cannot be read."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "100"  # which Gradio remembers; 10,000 by itself
    limits = {name: limit(name) for name in LIMITS}  # a wrong one is told now, not when a visitor reaches it
    if chosen.mcp and importlib.util.find_spec("mcp") is None:
        raise SettingError("--mcp needs one more package; install it with: pip install 'gradio[mcp]'")
    host = (chosen.host or "127.0.0.1").strip("[]")
    if chosen.port:  # a port in use is told at once, not after the model has been loaded
        with listening():
            socket.create_server((host, chosen.port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    page = Page(*first_editor(chosen.model or default_model_name()))
    page.blocks.queue(max_size=limits["E4E_MAX_QUEUE"])
    page.blocks._queue.sleep_when_free = 0.01  # seconds; Gradio's own 0.001 takes a tenth of a core at rest
    with listening():
        page.blocks.launch(
            server_name=f"[{host}]" if ":" in host else chosen.host,  # Gradio makes an address of it
            server_port=chosen.port,
            theme=gr.themes.Base(neutral_hue="stone", font=FONTS, font_mono=["ui-monospace", "Consolas", "monospace"]),
            css=(LOOK / "page.css").read_text(encoding="utf-8"),
            head=f"<script>{(LOOK / 'page.js').read_text(encoding='utf-8')}</script>",
            footer_links=[],
            run_history=False,
            mcp_server=chosen.mcp,
            state_session_capacity=10 * limits["E4E_MAX_PHOTOS"],  # Gradio's part of a visit, and of a program's
            max_file_size=f"{limits['E4E_MAX_UPLOAD_MB']}mb",
            ssr_mode=False,
            app_kwargs={"routes": page.routes},
            quiet=True,
            prevent_thread_lock=True,
        )
    print(f"The page is at {page.blocks.local_url} (Ctrl+C ends it).", flush=True)
    threading.Thread(target=page.warm_up, daemon=True).start()
    page.blocks.block_thread()


if __name__ == "__main__":
    sys.exit(main())
