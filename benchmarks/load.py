"""How many people can one machine serve? 1, 4, 16 and 32 simultaneous visitors over HTTP on loopback.

    python -m benchmarks.load [--model demo] [--seconds 20] [--clients 1 4 16 32]

Starts the page in a process of its own. Each client is a thread that does what a browser does: it opens the page and a
photo once, then asks for the picture of one slider movement after the other, as fast as they come.
"""

import argparse
import json
import random
import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np

from benchmarks.visitor import PATIENCE, Visitor, page, some_photo

Answers = tuple[list[tuple[float, float]], list[str]]  # (begin, end) of every answer on one clock; the errors


def peak_bytes(process: int) -> int | None:
    """The most memory a process ever held; None where the system does not tell (only Linux does)."""
    status = Path(f"/proc/{process}/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else None


def client(address: str, number: int, start: threading.Barrier, seconds: float) -> Answers:
    """What one client saw, from the moment that all have opened their photo."""
    taken, errors = [], []
    try:
        config = httpx.get(f"{address}config", timeout=PATIENCE).json()
        visitor = Visitor(address, config, f"load{start.parties}x{number}")
        visitor.open(some_photo(random.Random(number)))
    except Exception as error:
        start.abort()  # otherwise the others would wait for this one for ever
        return taken, [repr(error)]
    start.wait()
    end, frame = time.monotonic() + seconds, number
    while time.monotonic() < end:
        frame += 1
        begin = time.perf_counter()
        try:
            answer = visitor.move([0.05 * (1 + frame % 10)])  # never 0, where the page stands already
            if answer.status_code != 200 or not answer.json()[0]:
                raise RuntimeError(f"no picture: {answer.status_code} {answer.text[:300]}")
            taken.append((begin, time.perf_counter()))
        except Exception as error:  # counted and shown: what fails under load is what this measures
            errors.append(repr(error))
    visitor.close()
    return taken, errors


def drive(address: str, process: int, clients: int, seconds: float) -> dict[str, object]:
    """The figures of `clients` simultaneous clients."""
    barrier = threading.Barrier(clients)
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda number: attempt(address, number, barrier, seconds), range(clients)))
    spans = [span for times, _ in answers for span in times]
    taken = [end - begin for begin, end in spans]
    elapsed = max(end for _, end in spans) - min(begin for begin, _ in spans) if spans else seconds
    errors = [each for _, several in answers for each in several]
    counts = [len(times) for times, _ in answers]
    return {
        "clients": clients,
        "frames": len(taken),
        "seconds": elapsed,
        "frames per second": len(taken) / elapsed,
        "latency in s, 50/95/99 %": [float(p) for p in np.percentile(taken, [50, 95, 99])] if taken else [],
        "frames of the least and the most served client": [min(counts), max(counts)],
        "errors": len(errors),
        "first errors": errors[:3],
        "peak memory of the page in bytes": peak_bytes(process),
    }


def attempt(address: str, number: int, barrier: threading.Barrier, seconds: float) -> Answers:
    try:
        return client(address, number, barrier, seconds)
    except threading.BrokenBarrierError:
        return [], ["another client could not connect"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each number of clients is kept up")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--json", type=Path, default=Path("results/load.json"))
    options = parser.parse_args(arguments)
    figures = []
    print("| clients | frames/s | latency 50 % | 95 % | 99 % | least–most served | errors | peak memory |")
    print("|---|---|---|---|---|---|---|---|")
    with page(options.model) as (address, process):
        for clients in options.clients:
            found = drive(address, process, clients, options.seconds)
            figures.append(found)
            latency = [f"{each:.2f} s" for each in found["latency in s, 50/95/99 %"]] or ["–"] * 3
            peak = found["peak memory of the page in bytes"]
            memory = "–" if peak is None else f"{peak / 2**20:.0f} MiB"
            least, most = found["frames of the least and the most served client"]
            rate = found["frames per second"]
            print(
                f"| {clients} | {rate:.1f} | {' | '.join(latency)} | {least}–{most} | {found['errors']} | {memory} |",
                flush=True,
            )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
