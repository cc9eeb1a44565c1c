"""The fast renderer against the plain generator, and what it keeps for whom."""

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from e4e_core import rendering
from e4e_core.models.e4e import E4E
from e4e_core.models.encoder import Encoder, EncoderConfig
from e4e_core.models.stylegan2 import Generator, GeneratorConfig
from e4e_core.rendering import Renderer


class Owner:
    """Stands for a session."""


def random_model(channels: tuple[int, ...]) -> E4E:
    torch.manual_seed(0)
    decoder = Generator(GeneratorConfig(4 * 2 ** (len(channels) - 1), 16, 2, channels))
    for name, parameter in decoder.named_parameters():
        if "noise" in name or name.endswith("bias"):
            parameter.data.normal_()
    shape = EncoderConfig("e4e", 64, 2 * len(channels), 16, 8, (8, 8, 8, 8), (1, 1, 1, 1), pyramid=8)
    return E4E(Encoder(shape), decoder).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> E4E:
    """64 px; its 128 channels are many enough for minimal filtering."""
    return random_model((128, 128, 130, 40, 32))


def codes_of(model: E4E, count: int = 1) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(count, model.num_layers, 16)


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("size", [4, 8, 32, None])
def test_the_same_pictures_as_the_plain_generator(model, size):
    codes, renderer = codes_of(model, 2), Renderer(model)
    pictures = renderer.render(codes, size)
    assert error(pictures, model.synthesize(codes, size)) < 1e-5
    assert torch.equal(pictures[1:], renderer.render(codes[1:], size)), "a batch changes nothing"


def test_both_ways_of_every_layer_agree(model, monkeypatch):
    codes = codes_of(model)
    expected = model.synthesize(codes)
    for tiled in (True, False):
        monkeypatch.setattr(rendering._Layer, "_prefers_tiles", lambda layer, tiled=tiled: tiled and layer.side >= 8)
        assert error(Renderer(model).render(codes), expected) < 1e-5


@pytest.mark.parametrize(("features", "tiles"), [(1, 1), (12 * 16 * 130, 16)])
def test_strips_join_without_seams(model, monkeypatch, features, tiles):
    monkeypatch.setattr(rendering, "STRIP", features)
    monkeypatch.setattr(rendering, "TILES", tiles)
    codes = codes_of(model)
    assert error(Renderer(model).render(codes), model.synthesize(codes)) < 1e-5


def test_bfloat16_stays_near_float32():
    model = random_model((128, 128, 130, 40, 32))
    codes = codes_of(model)
    expected = model.synthesize(codes)
    assert error(Renderer(model.set_precision("bfloat16")).render(codes), expected) < 0.02


@pytest.mark.parametrize("first", [0, 3, 5, 6, 8])
def test_what_is_kept_never_changes_a_picture(model, first):
    renderer, owner, codes = Renderer(model), Owner(), codes_of(model)
    for size in (16, None, 16, None, None):
        codes = codes.clone()
        codes[:, first:] += 0.5
        assert torch.equal(renderer.render(codes, size, owner), renderer.render(codes, size))


def counted(renderer: Renderer) -> list[int]:
    """The sides of the layers that are computed from here on."""
    sides = []
    for layer in renderer._layers:

        def strips(x, style, layer=layer, compute=layer.strips):
            sides.append(layer.side)
            return compute(x, style)

        layer.strips = strips
    return sides


def test_an_edit_of_fine_layers_computes_only_those(model):
    renderer, owner, codes = Renderer(model), Owner(), codes_of(model)
    renderer.render(codes, owner=owner)
    sides = counted(renderer)
    for strength in (0.1, 0.2):
        edited = codes.clone()
        edited[:, 8:] += strength
        renderer.render(edited, owner=owner)
    assert sides == [64, 64]
    sides.clear()
    codes[:, 0] += 1
    renderer.render(codes, owner=owner)
    assert len(sides) == 9


def test_the_full_picture_goes_on_where_the_preview_ended(model):
    renderer, owner, codes = Renderer(model), Owner(), codes_of(model)
    renderer.render(codes, 32, owner)
    sides = counted(renderer)
    renderer.render(codes, owner=owner)
    assert sides == [64, 64]


def test_what_is_kept_is_bounded_and_goes_with_its_owner(model, monkeypatch):
    renderer, codes = Renderer(model), codes_of(model)
    owners = [Owner() for _ in range(5)]
    renderer.render(codes, owner=owners[0])
    each = renderer.kept_bytes
    assert each > 0
    monkeypatch.setattr(rendering, "KEPT_BYTES", 3 * each)
    for owner in owners:
        renderer.render(codes, owner=owner)
    assert renderer.kept_bytes == 3 * each
    del owner, owners
    gc.collect()
    assert renderer.kept_bytes == 0 and not renderer._last


def test_threads_share_one_renderer(model):
    renderer, owners = Renderer(model), [Owner() for _ in range(3)]
    codes = [codes_of(model) + number for number in range(6)]
    alone = [renderer.render(each) for each in codes]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda i: renderer.render(codes[i], owner=owners[i % 3]), range(6)))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


class RecordedGraph(TorchDispatchMode):
    """Stands for a CUDA graph on a CPU: what was computed, to be computed again in the same memory."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        answer = operator(*args, **(kwargs or {}))
        self.calls.append((operator, args, kwargs or {}, answer))
        return answer

    def replay(self) -> None:
        for operator, args, kwargs, answer in self.calls:
            again = operator(*args, **kwargs)
            if isinstance(answer, torch.Tensor) and again.data_ptr() != answer.data_ptr():
                answer.copy_(again)


@pytest.fixture
def pretended_gpu(monkeypatch) -> None:
    """Gives the renderer's graphs a CPU for a GPU."""

    @contextmanager
    def graph(recorded: RecordedGraph, stream: object, capture_error_mode: str) -> Iterator[None]:
        with recorded:
            yield

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, stand_in in {
        "CUDAGraph": RecordedGraph,
        "graph": graph,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda stream: nullcontext(),
        "device": lambda device: nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)


def test_replayed_graphs_give_the_same_pictures(model, pretended_gpu):
    renderer = Renderer(model)
    renderer._graphs = rendering._Graphs(model)
    first, second = codes_of(model, 2).split(1)
    kept = renderer.render(first)
    for codes, size in ((second, None), (first, 16), (second, 16)):
        assert torch.equal(renderer.render(codes, size), model.synthesize(codes, size))
    assert sorted(renderer._graphs._captured) == [16, 64], "one graph per size"
    assert torch.equal(kept, model.synthesize(first)), "later pictures leave this one as it was"
    renderer.forget_all()
    assert not renderer._graphs._captured


def test_a_graph_that_fails_costs_a_sentence_and_no_picture(model, pretended_gpu, monkeypatch, caplog):
    def refuse() -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", refuse)
    renderer, codes = Renderer(model), codes_of(model)
    renderer._graphs = rendering._Graphs(model)
    for _ in range(2):
        assert error(renderer.render(codes), model.synthesize(codes)) < 1e-5
    assert [record.message for record in caplog.records] == [
        "The picture's CUDA graph failed (operation not permitted when stream is capturing); "
        "pictures are rendered without."
    ]


def test_wrong_shapes_are_named(model):
    with pytest.raises(ValueError, match=r"takes codes of shape \[n, 10, 16\]"):
        Renderer(model).render(torch.zeros(1, 16))
    with pytest.raises(ValueError, match="power of two from 4 to 64, not 24"):
        Renderer(model).render(torch.zeros(1, 10, 16), 24)
