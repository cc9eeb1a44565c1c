"""The page in a process of its own, and a browser's session on it without a browser, by the same requests."""

import io
import json
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parents[1]
STARTING = 300  # seconds until the page must listen
PATIENCE = 300  # seconds for one answer on a busy machine
FAILED = re.compile("Something went wrong|Traceback")


@contextmanager
def page(model: str) -> Iterator[tuple[str, int]]:
    """(address, process id) of a page of its own, ended afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "app.py", "--model", model, "--port", str(port)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            end = time.monotonic() + STARTING
            while not listens(port):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise SystemExit(f"The page did not start; it said:\n{log.read()}")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/", process.pid
        finally:
            process.terminate()  # as a service manager would
            process.wait(120)  # under load, what is under way takes its time


def some_photo(chance: random.Random) -> bytes:
    """A photo that nobody sent before, of the size that a phone's messenger sends."""
    path = chance.choice(sorted((ROOT / "examples").glob("*.png")))
    picture = Image.open(path).convert("RGB").resize([chance.randrange(500, 1000)] * 2)
    data = io.BytesIO()
    (ImageOps.mirror(picture) if chance.random() < 0.5 else picture).save(data, "JPEG")
    return data.getvalue()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Visitor:
    """One open page; `config` is what the address answers on /config, `session` a name of its own."""

    def __init__(self, address: str, config: Mapping[str, Any], session: str):
        self.session, self.levels = session, ""  # what last set the sliders
        self.http = httpx.Client(base_url=address, timeout=PATIENCE)
        self.events = events(config)
        # While this stream is open the page is; closing it is what closing a tab does.
        heartbeat = self.http.build_request("GET", f"gradio_api/heartbeat/{session}")
        self.heartbeat = self.http.send(heartbeat, stream=True)
        part = self.call("bank")["output"]["render_config"]
        self.events |= events({**config, "dependencies": part["dependencies"]})
        names = [each["props"].get("elem_id") or "" for each in part["components"]]
        self.sliders = [name.removeprefix("direction-") for name in names if name.startswith("direction-")]
        self.hand = [1.0, *[0.0] * len(self.sliders)]  # where fidelity and the sliders stand
        picker = next(each for each in config["components"] if each["props"].get("elem_id") == "model")
        self.bank = {"model": picker["props"]["value"], "own": {}}

    def call(self, name: str, *values: Any, data: Any = None, read: bool = True) -> dict[str, Any]:
        """The last message about one event; values are those of the inputs, None for states; `data` is the event's."""
        number, inputs, levels = self.events[name]
        given = [*values, *[None] * (inputs - len(values))]
        job = {"data": given, "fn_index": number, "session_hash": self.session, "event_data": data, "trigger_id": None}
        event_id = self.http.post("gradio_api/queue/join", json=job).raise_for_status().json()["event_id"]
        with self.http.stream("GET", f"gradio_api/queue/data?session_hash={self.session}") as stream:
            for line in stream.iter_lines():
                if not line.startswith("data:"):
                    continue
                message = json.loads(line[5:])
                if not read and message["msg"] == "process_starts":
                    return message
                if message["msg"] == "process_completed" and message["event_id"] == event_id:
                    if not message["success"] or FAILED.search(json.dumps(message["output"].get("data"))):
                        raise RuntimeError(f"{name}: {message['output']}")
                    if levels is not None and isinstance(message["output"]["data"][levels], str):
                        self.levels = message["output"]["data"][levels]
                        told = json.loads(self.levels)
                        self.hand = [told["fidelity"], *(told["strengths"].get(name, 0) for name in self.sliders)]
                    return message
        raise RuntimeError(f"{name}: the answer broke off")

    def upload(self, name: str, data: bytes) -> dict[str, Any]:
        path = self.http.post("gradio_api/upload", files={"files": (name, data)}).raise_for_status().json()[0]
        return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    def open(self, data: bytes) -> None:
        """Choose a photo and wait for its first picture."""
        answer = self.call("photo", self.upload("photo.jpg", data))["output"]["data"]
        if "Opened in" not in json.dumps(answer):
            raise RuntimeError(f"the photo was not opened: {json.dumps(answer)[:300]}")

    def move(self, values: list[float], fidelity: float = 1.0) -> httpx.Response:
        """Move the sliders, in their order, and wait for the picture that follows the hand."""
        sent = {"strengths": dict(zip(self.sliders, values, strict=False)), "fidelity": fidelity}
        asked = {"session": self.session, "bank": self.bank, "levels": self.levels, "sent": sent}
        return self.http.post("frame", json=asked).raise_for_status()

    def rest(self, values: list[float], fidelity: float = 1.0) -> None:
        """Let go of the sliders and wait for the picture that stays."""
        self.hand = [fidelity, *values]
        self.call("settle", self.levels, None, *self.hand)

    def press(self, button: str) -> dict[str, Any]:
        """A button that acts on what the page shows."""
        self.call(button, self.levels, None, *self.hand)
        return self.call(f"{button}, then")

    def close(self) -> None:
        self.heartbeat.close()
        self.http.close()


Event = tuple[int, int, int | None]
"""(number, count of inputs, which output says where the sliders stand)"""


def event(each: Mapping[str, Any], levels: int) -> Event:
    return each["id"], len(each["inputs"]), each["outputs"].index(levels) if levels in each["outputs"] else None


def events(config: Mapping[str, Any]) -> dict[str, Event]:
    """The events in a page's configuration by the names of their components."""
    names = {each["id"]: each["props"].get("elem_id") for each in config["components"]}
    levels = next(number for number, name in names.items() if name == "levels")
    found = {}
    for each in config["dependencies"]:
        for component, kind in each["targets"]:
            name = names.get(component)
            if name and each["backend_fn"]:
                found[name] = event(each, levels)
            elif kind == "load" and len(each["targets"]) > 1:  # the sliders, made for each visitor
                found["bank"] = event(each, levels)
    after = {each["trigger_after"]: each for each in config["dependencies"] if each["backend_fn"]}
    for name, (number, *_) in list(found.items()):
        if number in after:
            found[f"{name}, then"] = event(after[number], levels)
    return found
