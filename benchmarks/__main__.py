"""How fast is it here? One table of figures beside their goals; markdown on stdout, json in a file.

    python -m benchmarks            everything a CPU can measure
    python -m benchmarks --quick    in two minutes: fewer repetitions, without a folder and what has no goal at 1024²
    python -m benchmarks --profile  also where the time goes: by operator, and each layer of the 1024² picture both ways

A time is the shortest of a few. So that it means the same on every machine it is also a multiple of the roofline:
what the published model's FLOPs (151 G for a picture, 145 G for an encoding) would take at the rate of a float32
matrix product of 4096³. Machines that others share change their pace, so that product is timed again right before
each call, and the multiple is the median of the calls'.
"""

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import alignment
from benchmarks import browser
from e4e_core import load_model
from e4e_core.formats import from_published, save_model
from e4e_core.models.e4e import E4E
from e4e_core.rendering import Renderer
from editing import Editor
from errors import E4EError

ROOT = Path(__file__).resolve().parents[1]
KIT = ROOT / "tests" / "conformance"
RENDER_FLOP, ENCODE_FLOP = 151e9, 145e9
NO_GPU = "no GPU here"

# Run in processes of their own, because the peak of a process's memory never falls: seconds, then bytes.
# VmHWM and not getrusage, whose peak a process inherits from the one that started it.
LOADING = """
import re, sys, time
import torch
{setup}
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
start = time.perf_counter()
{load}
taken = time.perf_counter() - start
print(taken, peak() - before)
"""
PLAIN_SETUP = """
from e4e_core.checkpoints import load_model
model = load_model(sys.argv[2], "cpu", "float32")
for parameter in model.parameters():
    parameter.data = torch.zeros_like(parameter)
"""
PLAIN_LOAD = """
content = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
state = dict(content["state_dict"], latent_avg=content["latent_avg"])
model.load_state_dict(state, strict=True)
"""
OWN_SETUP = "from e4e_core.checkpoints import load_model"
OWN_LOAD = """
model = load_model(sys.argv[2], "cpu", "float32")
for tensor in model.state_dict().values():
    tensor.sum()  # every page is in memory: nothing is put off until the first picture
"""


@dataclass(frozen=True)
class Row:
    """One line of the table; `met` is None where nothing was measured or nothing was promised."""

    what: str
    goal: str
    measured: str
    met: bool | None = None


def shortest(function: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of `repeats` calls, after one that is not counted."""
    function()
    return min(timed(function) for _ in range(repeats))


class Roofline:
    """FLOP per second of a float32 matrix product of 4096³."""

    def __init__(self):
        self.factors = torch.randn(2, 4096, 4096)
        self.rate = 2 * 4096**3 / shortest(self.product, 3)

    def product(self) -> torch.Tensor:
        return self.factors[0] @ self.factors[1]

    def row(self, what: str, function: Callable[[], object], flop: float, limit: float | None, repeats: int) -> Row:
        """What a function takes, against what its FLOPs would at the rate of the moment."""
        function()
        taken, multiples = [], []
        for _ in range(repeats + 1):
            seconds, own = timed(self.product), timed(function)
            taken.append(own)
            multiples.append(own / (flop * seconds / (2 * 4096**3)))
        multiple = float(np.median(multiples))
        goal = "–" if limit is None else f"≤ {limit:g} × roofline"
        return Row(what, goal, f"{min(taken):.2f} s, {multiple:.2f} ×", None if limit is None else multiple <= limit)


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def published_kit():
    """The module that fills the published layout with reproducible numbers."""
    sys.path.insert(0, str(KIT))
    import weights

    return weights


@torch.no_grad()
def published_rows(model: E4E, kit, roofline: Roofline, repeats: int, quick: bool) -> list[Row]:
    """Pictures and encodings of published-size weights, in the precision that this machine gets by itself."""
    half = model.precision != "float32"
    codes, image = kit.make_codes("ffhq1024", 0), kit.make_image("ffhq1024", 0)
    renderer, where = Renderer(model), f"CPU, {model.precision}"

    def row(what: str, function: Callable[[], object], flop: float, limit: float | None) -> Row:
        return roofline.row(f"{what}, {where}", function, flop, limit, repeats)

    rows = [row("render 1024²", lambda: renderer.render(codes), RENDER_FLOP, 0.55 if half else 1.3)]
    rows += [row("preview 256²", lambda: renderer.render(codes, 256), RENDER_FLOP, 0.25)]
    session, strength = KeptFor(), iter(range(1000))

    def fine_edit(size: int | None) -> torch.Tensor:
        edited = codes.clone()
        edited[:, 8:] += 0.01 * next(strength)
        return renderer.render(edited, size, session)

    fine_edit(None)
    for size in (256,) if quick else (None, 256):
        name = f"edit of layers ≥ 8, {size or 1024}²"
        rows.append(row(name, lambda size=size: fine_edit(size), RENDER_FLOP, None))
    rows.append(row("encode 256²", lambda: model.invert(image), ENCODE_FLOP, 0.48 if half else 1.0))
    if not quick:
        rows.append(row("render 1024², plain operators", lambda: model.synthesize(codes), RENDER_FLOP, None))
    return rows


class KeptFor:
    """Stands for a session, for which the renderer keeps features."""


@torch.no_grad()
def same_picture(model: E4E, kit, expected: torch.Tensor) -> Row:
    """The renderer's picture against float32 with plain operators."""
    error, psnr = difference(Renderer(model).render(kit.make_codes("ffhq1024", 0)), expected)
    limit = 1e-4 if model.precision == "float32" else 0.01
    measured = f"error {error:.1e}, PSNR {psnr:.0f} dB"
    return Row("same picture as float32", f"error ≤ {limit:g}, ≥ 40 dB", measured, error <= limit and psnr >= 40)


def difference(picture: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """(relative error, PSNR in dB of the range that the expected picture itself has)."""
    peak = float(expected.max() - expected.min())
    error = float((picture - expected).norm() / expected.norm())
    return error, float(10 * torch.log10(peak**2 / (picture - expected).square().mean()))


def loading_rows(folder: Path, checkpoint: Path, weights: int, repeats: int) -> list[Row]:
    """The files were just written: they are in the disk's cache."""

    def child(setup: str, load: str) -> tuple[float, float]:
        command = [sys.executable, "-c", LOADING.format(setup=setup, load=load), str(checkpoint), str(folder)]
        answers = []
        for _ in range(repeats):
            done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
            answers.append([float(word) for word in done.stdout.split()])
        return min(a[0] for a in answers), max(a[1] for a in answers)

    plain, _ = child(PLAIN_SETUP, PLAIN_LOAD)
    own, peak = child(OWN_SETUP, OWN_LOAD)
    return [
        Row(
            f"load {weights / 1e9:.1f} GB, all pages in memory",
            "≤ 1/3 of torch.load + strict load",
            f"{own:.2f} s of {plain:.2f} s, {own / plain:.2f} ×",
            own <= plain / 3,
        ),
        Row("load, peak memory", "≤ 1.5 × the weights", f"{peak / weights:.2f} ×", peak <= 1.5 * weights),
    ]


def demo_rows(repeats: int) -> list[Row]:
    """The embedded model: a photo of 12 megapixels."""
    from page.parts import data_url

    editor = Editor(load_model("demo", "cpu"))
    face = Image.open(ROOT / "examples" / "astronaut.png").convert("RGB")
    data = io.BytesIO()
    face.resize((3464, 3464), Image.Resampling.BICUBIC).save(data, "JPEG", quality=92)

    def first_picture() -> str:
        opened = editor.open(io.BytesIO(data.getvalue()))
        return data_url(editor.render(opened, {}))

    photo = alignment.open_photo(io.BytesIO(data.getvalue()))
    first, search = shortest(first_picture, repeats), shortest(lambda: alignment.find_faces(photo), repeats)
    return [
        Row("12 megapixels, file to first JPEG, demo model", "≤ 1.5 s", f"{first:.2f} s", first <= 1.5),
        Row("12 megapixels, detection + landmarks", "≤ 0.3 s", f"{search:.2f} s", search <= 0.3),
    ]


def folder_row(repeats: int) -> Row:
    """What `benchmarks.folder` measures."""
    count = 12 * repeats
    command = [sys.executable, "-m", "benchmarks.folder", "--photos", str(count)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    together, one_by_one = json.loads(done.stdout)
    measured = f"{together:.2f} photos/s, one by one {one_by_one:.2f}, {together / one_by_one:.1f} ×"
    return Row(f"a folder of {count} photos of 2.6 megapixels, pasted back, demo model", "–", measured)


def browser_rows(folder: Path, repeats: int) -> list[Row]:
    """The page in Chromium: the demo model, and the published-size weights in `folder`."""
    if browser.chromium() is None:
        return [Row("slider to picture in the browser", "median ≤ 80 ms, 95 % ≤ 150 ms", "no playwright or Chromium")]
    demo = load_model("demo", "cpu")
    name, direction = next(iter(Editor(demo).directions.items()))
    with tempfile.TemporaryDirectory() as temporary:
        photo = Path(temporary) / "photo.jpg"
        face = Image.open(ROOT / "examples" / "astronaut.png").convert("RGB")
        face.resize((3464, 3464), Image.Resampling.BICUBIC).save(photo, quality=92)
        with browser.served("demo") as page:
            first = browser.upload(page, photo)
            values = np.linspace(direction.low, direction.high, 20 * repeats + 1)[1:]
            frames, _ = browser.moves(page, f"#direction-{name}", values, demo.resolution)
        median, late = np.percentile(frames, [50, 95])
        with browser.served(str(folder)) as page:
            browser.upload(page, ROOT / "examples" / "astronaut.png")
            previews, pictures = browser.moves(page, "#fidelity", np.linspace(0.9, 0.1, 1 + 2 * repeats), 1024)
    preview, full = np.median(previews), np.median(pictures)
    return [
        Row(
            "slider to picture in the browser, demo model",
            "median ≤ 80 ms, 95 % ≤ 150 ms",
            f"median {median:.0f} ms, 95 % {late:.0f} ms",
            bool(median <= 80 and late <= 150),
        ),
        Row(
            "slider to picture in the browser, 1024² weights",
            "preview ≤ 0.5 s, the full one follows by itself",
            f"{preview / 1000:.2f} s, full after {full / 1000:.2f} s",
            bool(preview <= 500),
        ),
        Row("12 megapixels, upload to picture in the browser, demo model", "≤ 1.5 s", f"{first:.2f} s", first <= 1.5),
    ]


def gpu_rows(folder: Path, kit, expected: torch.Tensor, repeats: int) -> list[Row]:
    """The published-size weights in `folder` on a GPU, where there is one. Nobody has run this on one so far."""
    render, train = "render 1024², GPU", "e4e training step, GPU"
    instant, twice = "≤ 6 ms on an H200-class card, nothing allocated", "≥ 2 × the reference's pictures per second"
    if not torch.cuda.is_available():
        return [Row(render, instant, NO_GPU), Row(train, twice, NO_GPU)]
    rows = []
    for what, goal, measured in (
        (render, instant, lambda: gpu_picture(folder, kit, expected, repeats)),
        (train, twice, lambda: gpu_training(folder, repeats)),
    ):
        try:
            text, met = measured()
            rows.append(Row(what, goal, f"{text}, {torch.cuda.get_device_name()}", met))
        except (RuntimeError, ImportError, E4EError) as error:  # the other rows are there
            rows.append(Row(what, goal, f"failed: {str(error).splitlines()[0]}", False))
    return rows


@torch.no_grad()
def gpu_picture(folder: Path, kit, expected: torch.Tensor, repeats: int) -> tuple[str, bool]:
    """(what one picture took and whether it is the same as float32's, whether all of that meets its goal)."""
    renderer, codes = Renderer(load_model(folder, "cuda")), kit.make_codes("ffhq1024", 0).cuda()

    def one() -> torch.Tensor:
        picture = renderer.render(codes)
        torch.cuda.synchronize()
        return picture

    error, psnr = difference(one().cpu(), expected)
    before = torch.cuda.memory_stats()["segment.all.allocated"]
    seconds = shortest(one, 20 * repeats)
    taken = torch.cuda.memory_stats()["segment.all.allocated"] - before
    graph = renderer._graphs is not None
    text = f"{seconds * 1000:.1f} ms {'with' if graph else 'without'} a CUDA graph, {taken} allocations"
    text += f", {renderer.model.precision}, error {error:.1e}, PSNR {psnr:.0f} dB"
    return text, seconds <= 0.006 and taken == 0 and graph and error <= 0.01 and psnr >= 40


def gpu_training(folder: Path, repeats: int) -> tuple[str, bool]:
    """(pictures per second of a training step and of one as the reference does it, whether they meet their goal)."""
    generator = folder / "generator.pt"
    torch.save({"g_ema": load_model(folder, "cpu", "float32").decoder.state_dict()}, generator)
    ours = pictures_per_second(generator, "bfloat16", 1, repeats)
    reference = pictures_per_second(generator, "float32", 2, repeats)
    return f"{ours:.1f}/s of {reference:.1f}/s, {ours / reference:.1f} ×", ours >= 2 * reference


def pictures_per_second(generator: Path, precision: str, inversions: int, repeats: int) -> float:
    """Of training an encoder of the published size on a GPU; the reference inverts every batch twice, in float32.

    All offsets are trained and the latent discriminator takes part, as in the longest part of a training.
    Of the pictures' losses only the pixels' distance takes part: the others' networks would have to be downloaded.
    """
    from e4e_core.training.encoder import Training  # here, because the other rows do without requirements-training.txt
    from e4e_core.training.processes import Processes
    from e4e_core.training.settings import DomainTraining

    config = DomainTraining(generator, generator, generator, lpips=0, moco=0, precision=precision)
    training = Training(config, Processes(config.device))
    training.progress.images = config.images
    side = training.model.resolution
    reals = torch.rand(config.batch, 3, side, side, device=training.processes.device)

    def step() -> None:
        for _ in range(inversions - 1):
            with torch.no_grad():
                training.invert(reals)
        training.step(reals, penalize=False)
        torch.cuda.synchronize()

    return config.batch / shortest(step, 5 * repeats)


@torch.no_grad()
def operator_profile(what: str, function: Callable[[], object]) -> list[str]:
    """The operators that take the most time of one call, as shares of it; markdown."""
    function()
    with torch.profiler.profile() as profiled:
        function()
    events = sorted(profiled.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    lines = [f"| {what}: operator | calls | share |", "|---|---|---|"]
    return lines + [f"| {e.key} | {e.count} | {e.self_cpu_time_total / total:.0%} |" for e in events[:10]] + [""]


@torch.no_grad()
def layer_profile(model: E4E, kit, repeats: int) -> list[str]:
    """Every layer of the picture by the library's convolution and, in float32, by minimal filtering; markdown."""
    renderer = Renderer(model)
    codes = kit.make_codes("ffhq1024", 0)
    renderer.render(codes)
    lines = ["| layer | output | direct | tiles | used |", "|---|---|---|---|---|"]
    for index, layer in enumerate(renderer._layers):
        side = layer.side // 2 if layer.upsample else layer.side
        x = torch.randn(side + 2, side + 2, layer.inputs).to(renderer._dtype)
        style, used, times = renderer._styles(codes[0])[index], layer.tiled, []
        ways = (False, True) if x.dtype == torch.float32 and side >= 8 else (False,)
        for layer.tiled in ways:
            times.append(shortest(lambda: [None for _ in layer.strips(x, style)], repeats) * 1000)  # noqa: B023
        layer.tiled = used
        tiles = f"{times[1]:.1f} ms" if len(times) == 2 else "–"
        shape = f"{layer.channels} × {layer.side}²{' up' if layer.upsample else ''}"
        lines.append(f"| {index} | {shape} | {times[0]:.1f} ms | {tiles} | {'tiles' if used else 'direct'} |")
    return lines


def full_profile(model: E4E, kit, repeats: int) -> list[str]:
    """Where the time goes of what misses its goal; markdown."""
    codes, image, renderer = kit.make_codes("ffhq1024", 0), kit.make_image("ffhq1024", 0), Renderer(model)
    return [
        *operator_profile("render 1024²", lambda: renderer.render(codes)),
        *operator_profile("preview 256²", lambda: renderer.render(codes, 256)),
        *operator_profile("encode 256²", lambda: model.invert(image)),
        *layer_profile(model, kit, repeats),
    ]


def machine() -> str:
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"


def measure(quick: bool, profile: bool) -> tuple[list[Row], list[str], float]:
    """(rows, lines of the profile, FLOP per second of the matrix product)."""
    repeats = 1 if quick else 5
    roofline = Roofline()
    kit, profiled = published_kit(), []
    with tempfile.TemporaryDirectory() as temporary:
        folder, checkpoint = Path(temporary) / "ffhq1024", Path(temporary) / "ffhq1024.pt"
        kit.save_checkpoint("ffhq1024", 0, checkpoint)
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        model = from_published(content, "ffhq1024")
        weights = sum(tensor.nbytes for tensor in model.state_dict().values())
        with torch.no_grad():
            expected = model.synthesize(kit.make_codes("ffhq1024", 0))
        save_model(model, folder)
        del model, content
        loading = loading_rows(folder, checkpoint, weights, repeats)
        model = load_model(folder, "cpu")
        rows = published_rows(model, kit, roofline, repeats, quick)
        rows += [same_picture(model, kit, expected), *loading]
        if profile:
            profiled = full_profile(model, kit, repeats)
        del model
        gpu = gpu_rows(folder, kit, expected, repeats)
        rows += browser_rows(folder, repeats)
    rows += demo_rows(repeats) + ([] if quick else [folder_row(repeats)])
    return rows + gpu, profiled, roofline.rate


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="each time from one repetition")
    parser.add_argument("--profile", action="store_true", help="also where the time goes")
    parser.add_argument("--json", type=Path, default=Path("results/benchmarks.json"), help="where the figures go")
    options = parser.parse_args(arguments)
    rows, profiled, rate = measure(options.quick, options.profile)
    print(f"{machine()}; float32 matrix product {rate / 1e9:.0f} GFLOP/s\n")
    print("| what | goal | here | met |\n|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.what} | {row.goal} | {row.measured} | {'–' if row.met is None else 'yes' if row.met else 'no'} |"
        )
    if profiled:
        print("\n" + "\n".join(profiled))
    answer = {"machine": machine(), "matrix_flop_per_second": rate, "rows": [asdict(row) for row in rows]}
    answer["profile"] = profiled
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(answer, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
