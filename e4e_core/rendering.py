"""The fast path of the generator: latent codes to one picture, for every move of a slider.

Same pictures as `E4E.synthesize`, to rounding. On NVIDIA GPUs its operators are captured once as a CUDA graph and
replayed for every picture. What makes it fast on a CPU:

- A layer's output is computed in strips of rows that stay in the processor's cache until noise, bias, leaky ReLU and
  the projection to RGB are done, and is written once, into a workspace that all layers and all pictures share.
- Style and demodulation scale whichever is smaller, the features or the weights; the √2 of the activation goes with
  them, because leaky ReLU is positively homogeneous.
- 3×3 convolutions take Winograd's minimal filtering F(4×4, 3×3) (Lavin & Gray 2016): 36 instead of 144 products per
  tile of 16 pixels. Up-convolutions, but for the smallest and widest, take it too, merged with their blur into one 3×3
  convolution per parity of output row and column. `benchmarks/README.md` has the figures.
- All styles are one matrix product, and every demodulation is a small one.
"""

import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.nn import functional as F

from e4e_core.models.e4e import E4E
from e4e_core.models.ops import EPSILON, LEAKY_GAIN, LEAKY_SLOPE, ModulatedConv2d
from e4e_core.models.stylegan2 import StyledConv

log = logging.getLogger("e4e")

STRIP = 2**19  # features of a strip of direct convolution: 2 MB of float32, about a core's second-level cache
TILES = 128  # tiles of a strip of minimal filtering: fewer read the weights too often, more leave the cache
KEPT_BYTES = 256 * 2**20  # features kept for all sessions together
SNAPSHOT_BYTES = 48 * 2**20  # the largest single one: 256² of a published generator, not 512²
BRANCH = 8  # the layer from which most edits of colour and detail start
_capturing = threading.Lock()  # CUDA captures one graph at a time in a process

# F(4×4, 3×3): output tile = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A, here as Kronecker products on flattened tiles.
_B = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0]]
_B += [[0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
_G = [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]  # over 24
_A = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


def _squared(rows: list[list[int]], denominator: int = 1) -> Tensor:
    matrix = torch.tensor(rows, dtype=torch.float64) / denominator
    return torch.kron(matrix, matrix).float()


class _Workspace:
    """Memory that all layers and pictures use again: the system clears fresh memory page by page, which takes time."""

    def __init__(self):
        self._parts: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """[shape], holding anything, valid until this name is taken again."""
        needed = math.prod(shape)
        if name not in self._parts or self._parts[name].numel() < needed:
            self._parts[name] = torch.empty(needed, dtype=dtype)
        return self._parts[name][:needed].view(shape)

    def drop(self) -> None:
        self._parts.clear()


class _Layer:
    """One styled convolution: padded features [h + 2, w + 2, in] to strips of activated features [rows, w', out]."""

    def __init__(self, styled: StyledConv, noise: Tensor, workspace: _Workspace):
        conv = styled.conv
        self.workspace = workspace
        self.weight = conv.weight[0]  # [out, in, 3, 3], unscaled: the scale is part of the style
        self.upsample = conv.upsample
        self.bias = styled.activate.bias.float() * LEAKY_GAIN
        strength = styled.noise.weight.float() * LEAKY_GAIN
        self.noise = (strength * noise[0, 0].float())[..., None].to(self.weight.dtype)  # [h', w', 1]
        self.power = self.weight.float().square().sum((2, 3))  # [out, in]
        self.side = self.noise.shape[0]  # of the output
        self.channels, self.inputs = self.weight.shape[:2]
        if self.upsample:
            taps = conv.blur.kernel.float()[:, 0] * 2 / conv.blur.kernel[:, 0].sum()  # [4]: the kernel is their ⊗
            rows = taps.to(self.weight.dtype).expand(self.channels, 1, -1)
            self.blurs = rows[..., None].contiguous(), rows[:, :, None].contiguous()  # down the rows, along them
            self.taps = taps
        self.tiled = self._prefers_tiles()
        self._transformed: Tensor | None = None

    def _prefers_tiles(self) -> bool:
        """Where minimal filtering was measured faster than the direct convolution."""
        if self.weight.dtype != torch.float32:
            return False  # F(4×4, 3×3) loses too many digits of bfloat16
        if self.upsample:  # merging the blur makes the weights 16 times as large
            return self.side >= 64 or (self.channels <= 256 and self.side >= 32)
        return self.side >= 16

    @property
    def transformed(self) -> Tensor:
        """float32 [36, in, out or 4·out]: the weights as minimal filtering multiplies them; made on first use."""
        if self._transformed is None:
            kernels = (self._parities() if self.upsample else self.weight).flatten(2)  # [o, in, 9]
            product = _squared(_G, 24) @ kernels.permute(2, 1, 0).flatten(1)  # [36, in * o]
            self._transformed = product.view(36, self.inputs, -1)
        return self._transformed

    def _parities(self) -> Tensor:
        """[4·out, in, 3, 3]: transposed convolution and blur as one convolution per parity of row and column."""
        flat = self.weight.reshape(-1, 1, 3, 3)
        both = F.conv2d(flat, torch.outer(self.taps, self.taps)[None, None], padding=3)  # the FIR is symmetric
        both = both.view(self.channels, self.inputs, 6, 6)
        # Output row 2q + a adds up the input rows q − 1 + r with tap a + 4 − 2r of the six.
        chosen = [torch.tensor([a + 4 - 2 * r for r in range(3)]) for a in (0, 1)]
        return torch.cat([both[:, :, rows][..., columns] for rows in chosen for columns in chosen])

    def strips(self, x: Tensor, style: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """For x [h + 2, w + 2, in] with a border of zeros and the style [in]: (output rows, their features).

        The features [..., out] are contiguous, in the order of `ordered`, and valid until the next strip is asked for.
        """
        demodulation = LEAKY_GAIN * torch.rsqrt(self.power @ style.square() + EPSILON)  # [out]
        way = self._tiles if self.tiled else self._direct
        for rows, y in way(x, style, demodulation):
            y += self.ordered(self.noise[rows]).contiguous()  # adding it is faster than from its own order
            yield rows, F.leaky_relu_(y, LEAKY_SLOPE)

    def ordered(self, rows: Tensor) -> Tensor:
        """Rows [rows, w', k] of anything, viewed in the order in which a strip has its features."""
        if not self.tiled:
            return rows
        split = (-1, 4, 2 if self.upsample else 1)
        tiles = rows.unflatten(1, split).unflatten(0, split)  # per axis: tile, pixel, parity
        return tiles.permute(1, 4, 0, 3, 2, 5, 6)  # row, column, tile row, tile column, parities, k

    def _direct(self, x: Tensor, style: Tensor, demodulation: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """By the library's convolution; an up-convolution is blurred down the rows, then along them."""
        dtype, fold = self.weight.dtype, x.numel() > self.weight.numel()
        weight, bias, after = self.weight, self.bias.to(dtype), None
        if fold:
            scale = demodulation[:, None, None, None] * style[:, None, None]
            weight = (weight * scale).to(dtype)
        else:
            x, after = x * style.to(dtype), demodulation.to(dtype)
        if self.upsample:
            weight = weight.transpose(0, 1)
        factor = 2 if self.upsample else 1
        fitting = max(STRIP // (self.side * self.channels * factor), 1)
        count = min(1 << fitting.bit_length() - 1, x.shape[0] - 2)  # a power of two, which divides the side
        for top in range(0, x.shape[0] - 2, count):
            part = x[top : top + count + 2].permute(2, 0, 1)[None]  # [1, in, rows + 2, w + 2], channels last
            if self.upsample:
                y = F.conv_transpose2d(part, weight, stride=2, padding=1)  # [1, out, 2 rows + 3, 2w + 3]
                y = F.conv2d(y, self.blurs[0], groups=self.channels)
                y = F.conv2d(y, self.blurs[1], bias if fold else None, groups=self.channels)
            else:
                y = F.conv2d(part, weight, bias if fold else None)
            y = y[0].permute(1, 2, 0)  # [rows, w', out]
            yield slice(top * factor, (top + count) * factor), y if fold else torch.addcmul(bias, y, after)

    def _tiles(self, x: Tensor, style: Tensor, demodulation: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """By minimal filtering: tiles of 6×6 inputs, four apart, give tiles of 4×4 outputs (or of 4×4 per parity)."""
        factor = 2 if self.upsample else 1
        across = (x.shape[1] - 2) // 4  # tiles in a row
        high = min(max(TILES // across, 1), across)  # rows of tiles in a strip, a power of two
        inputs, outputs = self.inputs, self.channels * factor**2
        to_tiles, from_tiles = _squared(_B), _squared(_A)
        down, right = x.stride(0), x.stride(1)
        d = self.workspace.take("inputs", 6, 6, high, across, inputs)
        v = self.workspace.take("transformed inputs", 36, high * across * inputs)
        m = self.workspace.take("products", 36, high * across, outputs)
        y = self.workspace.take("outputs", 16, high * across * outputs)
        bias, scale = self.bias.repeat(factor**2), demodulation.repeat(factor**2)
        for top in range(0, x.shape[0] - 2, 4 * high):
            tiles = x[top:].as_strided((6, 6, high, across, inputs), (down, right, 4 * down, 4 * right, 1))
            torch.mul(tiles, style, out=d)
            torch.mm(to_tiles, d.view(36, -1), out=v)
            torch.bmm(v.view(36, -1, inputs), self.transformed, out=m)
            torch.mm(from_tiles, m.view(36, -1), out=y)
            flat = y.view(-1, outputs)
            torch.addcmul(bias, flat, scale, out=flat)
            strip = slice(top * factor, (top + 4 * high) * factor)
            yield strip, y.view(4, 4, high, across, factor, factor, self.channels)


class _Graphs:
    """CUDA graphs of one picture, one per size, each with fixed places for its codes and its picture.

    A replay asks neither Python nor the driver for anything per layer, and takes no memory.
    """

    def __init__(self, model: E4E):
        self.model = model
        self._captured: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    def render(self, codes: Tensor, side: int) -> Tensor:
        """float32 [1, L, D] -> [1, 3, side, side], valid until the next picture of this size."""
        with torch.cuda.device(self.model.device):
            if side not in self._captured:
                with _capturing, torch.cuda.stream(torch.cuda.current_stream()):  # left in order by a failed capture
                    self._captured[side] = self._capture(side)
            graph, given, picture = self._captured[side]
            given.copy_(codes)
            graph.replay()
            return picture

    def _capture(self, side: int) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        given, graph = self.model.latent_avg[None].clone(), torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # libraries set themselves up in their first calls, which cannot be captured
                self.model.synthesize(given, side)
        torch.cuda.current_stream().wait_stream(stream)
        # Other threads may use the GPU meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            picture = self.model.synthesize(given, side)
        return graph, given, picture

    def drop(self) -> None:
        self._captured.clear()


@dataclass(frozen=True)
class _Snapshot:
    """The state of a rendering before `layer`, and the codes that have shaped it."""

    layer: int
    codes: Tensor  # [layer, D], or one more where the last one shaped only the picture
    features: Tensor  # [h + 2, w + 2, c]
    rgb: Tensor | None  # [h', w', 3]

    @property
    def size(self) -> int:
        return self.features.nbytes + (0 if self.rgb is None else self.rgb.nbytes)


class Renderer:
    """Renders pictures with the generator of a model, whose weights must not change afterwards.

    For each `owner` (a session) at most two snapshots of intermediate features are kept: before the layer where its
    codes last began to differ, so that a slider of fine layers renders only those, and where its last preview ended,
    so that the full picture goes on from there. A snapshot is used only if all codes that shaped it are the same
    ones. All are dropped with their owner, those of owners not seen for longest once KEPT_BYTES are reached.

    Threads may share a Renderer: it computes one picture at a time. On devices other than CPUs it keeps nothing for
    owners: NVIDIA GPUs replay captured graphs, and where that fails, as on all other devices, it is `E4E.synthesize`.
    """

    def __init__(self, model: E4E):
        self.model = model
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, tuple[ref, dict[str, _Snapshot]]] = OrderedDict()  # by id, the newest last
        self._last: dict[int, Tensor] = {}  # id of the owner -> the codes it last rendered
        self._workspace = _Workspace()
        self._graphs = _Graphs(model) if model.device.type == "cuda" else None
        self._ready = False

    @torch.no_grad()
    def render(self, codes: Tensor, size: int | None = None, owner: Any = None) -> Tensor:
        """Latent codes to pictures; what is in a batch does not change its pictures.

        Args:
            codes: float32 [n, L, D].
            size: side of a preview, a power of two from 4; None, R or more is the full picture.
            owner: for whom features are kept until the next call, any object that can be referenced weakly; a batch
                of several, and None, keep nothing.
        Returns: float32 [n, 3, R, R] or [n, 3, size, size], RGB around [-1, 1], not clamped.
        Raises: ValueError for other shapes or sizes.
        """
        self.model.check_codes(codes, size)
        side = min(size or self.model.resolution, self.model.resolution)
        with self._lock:
            if self._graphs and len(codes) == 1:
                return self._replay(codes, side)
            if self.model.device.type != "cpu":
                return self.model.synthesize(codes, size)
            if not self._ready:
                self._prepare()
            owner = owner if len(codes) == 1 else None
            return torch.cat([self._one(code.cpu().float(), side, owner) for code in codes])

    def _replay(self, codes: Tensor, side: int) -> Tensor:
        """By a captured graph, or from its first failure on without."""
        try:
            return self._graphs.render(codes, side).clone()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # so far no one has run this on a GPU: a slower picture is better than none
            log.warning("The picture's CUDA graph failed (%s); pictures are rendered without.", error)
            self._graphs = None
            return self.model.synthesize(codes, side)

    def wait(self) -> None:
        """Return once no picture is being rendered: for long work, which gives way to pictures between its steps."""
        with self._lock:
            pass

    def _prepare(self) -> None:
        """What is the same for all pictures: scaled weights of the styles, and noise."""
        decoder = self.model.decoder
        convs, to_rgbs = [decoder.conv1, *decoder.convs], [decoder.to_rgb1, *decoder.to_rgbs]
        pairs = zip(convs, decoder.noises.buffers(), strict=True)
        self._layers = [_Layer(styled, noise, self._workspace) for styled, noise in pairs]
        self._rgb = [(layer.conv.weight[0, :, :, 0, 0].float(), layer.bias.float().flatten()) for layer in to_rgbs]
        users: list[tuple[int, ModulatedConv2d]] = [(index, styled.conv) for index, styled in enumerate(convs)]
        users += [(2 * level + 1, to_rgb.conv) for level, to_rgb in enumerate(to_rgbs)]
        linears = [(conv.modulation, conv.scale) for _, conv in users]
        self._style_weight = torch.cat([linear.weight * (linear.scale * scale) for linear, scale in linears])
        self._style_bias = torch.cat([linear.bias * (linear.lr_mul * scale) for linear, scale in linears])
        self._widths = [conv.weight.shape[2] for _, conv in users]
        which = [torch.full([width], index) for (index, _), width in zip(users, self._widths, strict=True)]
        self._which_code = torch.cat(which)[:, None]  # [sum of widths, 1]
        self._dtype = decoder.input.input.dtype
        self._ready = True

    def _styles(self, codes: Tensor) -> tuple[Tensor, ...]:
        """codes [L, D] -> the style of every convolution, then of every to_rgb, each [in] with the layer's scale."""
        every = self._style_weight @ codes.T  # [sum of widths, L]
        own = every.gather(1, self._which_code)[:, 0] + self._style_bias
        return own.split(self._widths)

    def _one(self, codes: Tensor, side: int, owner: Any) -> Tensor:
        """codes [L, D] -> [1, 3, side, side]."""
        styles, count = self._styles(codes), 2 * (side.bit_length() - 3) + 1  # layers up to this side
        layer, x, rgb = self._resume(codes, count, owner)
        branch = self._branch(codes, owner)
        for index in range(layer, count):
            if index == branch:
                self._keep(owner, "edit", _Snapshot(index, codes[:index].clone(), x, rgb))
            x, rgb = self._compute(index, x, rgb, styles)
        if layer < count and side < self.model.resolution:
            self._keep(owner, "preview", _Snapshot(count, codes[: count + 1].clone(), x, rgb))
        return rgb.permute(2, 0, 1)[None]

    def _compute(
        self, index: int, x: Tensor, rgb: Tensor | None, styles: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor | None]:
        """From the state before layer `index` to the one after it: (padded features, picture)."""
        layer, shows = self._layers[index], index % 2 == 0  # every second layer adds to the picture
        stored = index < len(self._layers) - 1  # of the last one, only the picture is wanted
        out = self._buffer(index) if stored else x
        if shows:
            weight, bias = self._rgb[index // 2]
            weight = weight * styles[len(self._layers) + index // 2]  # [3, c]
            rgb = torch.zeros(layer.side, layer.side, 3) if rgb is None else _upsample(rgb)
        for rows, y in layer.strips(x, styles[index]):
            if stored:
                layer.ordered(out[rows.start + 1 : rows.stop + 1, 1:-1]).copy_(y)
            if shows:
                own = torch.addmm(bias[:, None], weight, y.flatten(0, -2).float().T)  # [3, pixels]
                layer.ordered(rgb[rows]).add_(own.T.view(*y.shape[:-1], 3))
        return out, rgb

    def _buffer(self, index: int) -> Tensor:
        """The workspace of a layer's output [h + 2, w + 2, c] with a border of zeros; layers alternate between two."""
        layer = self._layers[index]
        name, side = "odd" if index % 2 else "even", layer.side + 2
        buffer = self._workspace.take(name, side, side, layer.channels, dtype=self._dtype)
        buffer[0], buffer[-1], buffer[:, 0], buffer[:, -1] = 0, 0, 0, 0
        return buffer

    def _start(self) -> Tensor:
        constant = self.model.decoder.input.input[0].permute(1, 2, 0)  # [4, 4, c]
        return F.pad(constant, (0, 0, 1, 1, 1, 1)).contiguous()

    def _resume(self, codes: Tensor, count: int, owner: Any) -> tuple[int, Tensor, Tensor | None]:
        """(layer, its padded input, the picture below it): the furthest snapshot that these codes agree with."""
        snapshots = self._kept[id(owner)][1] if id(owner) in self._kept else {}
        fit = [s for s in snapshots.values() if s.layer <= count and torch.equal(s.codes, codes[: len(s.codes)])]
        if not fit:
            return 0, self._start(), None
        best = max(fit, key=lambda s: s.layer)
        return best.layer, best.features, best.rgb

    def _branch(self, codes: Tensor, owner: Any) -> int:
        """Before which layer to keep the state: where the codes began to differ from the owner's last ones.

        The first layer of a level shares its code with the picture below it, whose state is the one before that level.
        """
        if owner is None:
            return -1
        key = id(owner)
        if key not in self._kept:
            self._kept[key] = (ref(owner, lambda _: self._forget(key)), {})
        self._kept.move_to_end(key)
        last, self._last[key] = self._last.get(key), codes.clone()
        if last is None:
            return BRANCH
        differs = (codes != last).any(1).nonzero()
        return int(differs[0]) // 2 * 2 if len(differs) else -1

    def _keep(self, owner: Any, kind: str, snapshot: _Snapshot) -> None:
        if owner is None or snapshot.size > SNAPSHOT_BYTES:
            return
        rgb = None if snapshot.rgb is None else snapshot.rgb.clone()
        kept = _Snapshot(snapshot.layer, snapshot.codes, snapshot.features.clone(), rgb)
        self._kept[id(owner)][1][kind] = kept
        while self.kept_bytes > KEPT_BYTES and len(self._kept) > 1:
            self._forget(next(iter(self._kept)))

    def _forget(self, key: int) -> None:
        self._kept.pop(key, None)
        self._last.pop(key, None)

    def forget_all(self) -> None:
        """Drop what is kept for all owners, workspace and graphs; their next pictures take a little longer."""
        with self._lock:
            self._kept.clear()
            self._last.clear()
            self._workspace.drop()
            if self._graphs:
                self._graphs.drop()

    @property
    def kept_bytes(self) -> int:
        """How much memory the kept features of all owners take."""
        return sum(s.size for _, snapshots in list(self._kept.values()) for s in list(snapshots.values()))


def _upsample(rgb: Tensor) -> Tensor:
    """[h, w, 3] -> [2h, 2w, 3] with StyleGAN2's FIR, which inside a border of zeros is bilinear interpolation."""
    padded = F.pad(rgb, (0, 0, 1, 1, 1, 1)).permute(2, 0, 1)[None]  # [1, 3, h + 2, w + 2], channels last
    wide = F.interpolate(padded, scale_factor=2, mode="bilinear", align_corners=False)
    return wide[0].permute(1, 2, 0)[2:-2, 2:-2]
