"""Starting the page: what can go wrong on the command line is one sentence, and one exit code; and as a Space."""

import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file
from PIL import Image
from test_editing import some_directions, tiny_model

import app
from benchmarks.visitor import Visitor
from e4e_core.checkpoints import save_model
from page.parts import step

ROOT = Path(__file__).resolve().parents[1]
# What stands in for the package `spaces`, which every Gradio Space has: like ZeroGPU's worker it gets and gives only
# what can be pickled; elsewhere it changes nothing.
SPACES = """
import functools, os, pickle, sys
assert "torch" not in sys.modules, "spaces must be imported before torch"
def GPU(duration):
    def decorate(function):
        if not os.environ.get("SPACES_ZERO_GPU"):
            return function
        @functools.wraps(function)
        def on_gpu(*arguments):
            print("on the GPU:", function.__name__, flush=True)
            return pickle.loads(pickle.dumps(function(*pickle.loads(pickle.dumps(arguments)))))
        return on_gpu
    return decorate
def gradio_auto_wrap(function):
    return function
"""
RELOADING = "def start_reload_server(**_): pass\n"  # Gradio starts a Space's reloader in any case


@pytest.fixture
def model_folder(tmp_path):
    save_model(tiny_model(template=None), tmp_path / "model")
    some_directions().save(tmp_path / "model")
    return tmp_path / "model"


def test_an_unknown_model_is_a_sentence(capsys):
    assert app.main(["--model", "nonsense"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("app.py: There is no model 'nonsense'; use one of demo, ffhq")
    assert len(error.splitlines()) == 1


def test_a_port_in_use_is_a_sentence(capsys, model_folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert app.main(["--model", str(model_folder), "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert "choose another --host or --port" in error
    assert len(error.splitlines()) == 1


def test_a_model_that_cannot_be_had_gives_the_demo_and_a_notice(monkeypatch):
    model = tiny_model(template=None)
    monkeypatch.setattr(app, "load_or_demo", lambda name: (model, "The demo model is used instead."))
    monkeypatch.setattr("editing.editor.directions_for", lambda model: some_directions())
    _, name, notice = app.first_editor("ffhq")
    assert (name, notice) == ("demo", "The demo model is used instead.")


@pytest.mark.parametrize("low, high, expected", [(-3, 3, 0.05), (-5, 5, 0.1), (0, 1, 0.01), (-20, 40, 0.5)])
def test_steps_are_round_and_about_a_hundredth_of_the_range(low, high, expected):
    direction = next(iter(some_directions().values()))
    assert step(replace(direction, low=low, high=high)) == expected


@pytest.mark.parametrize("zero_gpu", [True, False], ids=["ZeroGPU", "CPU Space"])
def test_the_repository_is_a_space(zero_gpu, model_folder, tmp_path):
    """Started the way a Space starts it, with the variables a Space sets, and used."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    variables = {
        "SPACE_ID": "somebody/edit-a-face",
        "SYSTEM": "spaces",
        "E4E_MODEL": str(model_folder),
        "GRADIO_SERVER_NAME": "0.0.0.0",
        "GRADIO_SERVER_PORT": port,
        "GRADIO_TEMP_DIR": str(tmp_path / "temporary"),
        "E4E_MAX_UPLOAD_MB": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(tmp_path / "stand-in"),
    }
    if zero_gpu:
        variables["SPACES_ZERO_GPU"] = "true"
    metadata = tmp_path / "stand-in" / "spaces-1.0.0.dist-info"  # Gradio looks for the version
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: spaces\nVersion: 1.0.0\n")
    package = tmp_path / "stand-in" / "spaces"
    package.mkdir()
    (package / "__init__.py").write_text(SPACES)
    (package / "reloading.py").write_text(RELOADING)
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=ROOT, env={**os.environ, **variables}, stdout=output, stderr=output
        )
    try:
        while "The page is at" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        address = f"http://127.0.0.1:{port}/"
        visitor = Visitor(address, httpx.get(f"{address}config").json(), "visitor")
        visitor.open((ROOT / "examples" / "astronaut.png").read_bytes())
        visitor.rest([1.0] * len(visitor.sliders))
        visitor.close()
        large = httpx.post(f"{address}gradio_api/upload", files={"files": ("large.jpg", bytes(2 << 20))})
        assert large.status_code == 413
        client = Client(address, verbose=False, httpx_kwargs={"timeout": 600})
        photo = handle_file(str(ROOT / "examples" / "astronaut.png"))
        path, _ = client.predict(photo=photo, strengths={"smile": 1}, whole=True, api_name="/edit")
        assert Image.open(path).size == (512, 512)
    finally:
        process.terminate()
        process.wait(20)
    text = log.read_text()
    assert "Traceback" not in text, text
    assert not [path for path in (tmp_path / "temporary").rglob("*") if path.is_file()]
    assert [name in text for name in ("on the GPU: _encode", "on the GPU: _draw", "on the GPU: _lay")] == [zero_gpu] * 3


def test_the_docker_image_holds_all_that_the_page_imports():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    taken = {line[1:].rstrip("/") for line in lines if line.startswith("!")}
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    own = {Path(file).relative_to(ROOT).parts[0] for file in files if file and Path(file).is_relative_to(ROOT)}
    assert {"app.py", "page", "e4e_core"} <= own  # the import at the top of this file brought them
    assert own - taken <= {"tests", "benchmarks", ".venv"}
    assert {"requirements.txt", "examples", "checkpoints"} <= taken
