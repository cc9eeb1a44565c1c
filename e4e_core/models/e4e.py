"""The whole model: a picture to latent codes, latent codes to a picture."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from e4e_core.models.encoder import Encoder
from e4e_core.models.ops import ModulatedConv2d
from e4e_core.models.stylegan2 import ConstantInput, Generator
from errors import ModelError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FFHQ_TEMPLATE = (0.1, 1.0)
PASSES = 5  # of ReStyle's encoders, as they were trained


class E4E(nn.Module):
    """An encoder and the generator it was trained for.

    Gradients flow through `invert` and `synthesize` to inputs and parameters that require them; a loaded
    model's parameters require none.

    Attributes:
        latent_avg: float32 [L, D], the centre of W, once per layer.
        resolution, num_layers, latent_dim, input_size: R, L, D, S of the shapes below.
        template: (centre, scale) of the crop around a face, see `alignment.align`; None is a domain without faces.
        aspect: (width, height) ratio of the content inside the square picture.
        passes: how often a ReStyle encoder looks at a picture; others look once.
        name: what the model is called in the registry, or its file's name.
        folder: where it was loaded from, if its files lie in a folder of their own.
        precision: "float32", "bfloat16" or "float16".
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Generator,
        latent_avg: Tensor | None = None,
        *,
        name: str = "",
        template: tuple[float, float] | None = FFHQ_TEMPLATE,
        aspect: tuple[int, int] = (1, 1),
        start_from_latent_avg: bool = True,
        passes: int = PASSES,
    ):
        super().__init__()
        if not 1 <= passes <= 100:
            raise ModelError(f"A ReStyle encoder makes 1 to 100 passes, not {passes}; {PASSES} are usual.")
        layers, dim = decoder.config.num_layers, decoder.config.latent_dim
        if (encoder.config.num_layers, encoder.config.latent_dim) != (layers, dim):
            raise ModelError(
                f"The encoder makes {encoder.config.num_layers}×{encoder.config.latent_dim} codes, the generator takes "
                f"{layers}×{dim}; build the encoder with the generator's num_layers and latent_dim."
            )
        self.encoder = encoder
        self.decoder = decoder
        if latent_avg is None:
            latent_avg = torch.zeros(layers, dim)
        self.register_buffer("latent_avg", latent_avg.expand(layers, dim).clone())
        self.name = name
        self.template = template
        self.aspect = aspect
        self.start_from_latent_avg = start_from_latent_avg
        self.passes = passes
        self.folder: Path | None = None
        self.precision = "float32"

    @property
    def resolution(self) -> int:
        return self.decoder.config.resolution

    @property
    def num_layers(self) -> int:
        return self.decoder.config.num_layers

    @property
    def latent_dim(self) -> int:
        return self.decoder.config.latent_dim

    @property
    def input_size(self) -> int:
        return self.encoder.config.input_size

    @property
    def device(self) -> torch.device:
        return self.latent_avg.device

    def invert(self, images: Tensor) -> Tensor:
        """Pictures to latent codes.

        Args:
            images: float [n, 3, S, S], RGB in [-1, 1]; where `aspect` is not square, S is the width and the
                height may follow the aspect (cars: [n, 3, 192, 256]).
        Returns: float32 [n, L, D] on the model's device, `latent_avg` added.
        Raises: ValueError for other shapes.
        """
        side = self.input_size
        sizes = {(side, side), (side * self.aspect[1] // self.aspect[0], side)}
        if images.dim() != 4 or images.shape[1] != 3 or tuple(images.shape[2:]) not in sizes:
            allowed = " or ".join(f"[n, 3, {height}, {width}]" for height, width in sorted(sizes))
            raise ValueError(f"invert takes pictures of shape {allowed}, not {list(images.shape)}; resize them first.")
        images = images.to(self.device)
        if self.encoder.config.inputs == 6:
            return self._invert_in_passes(images)
        codes = self.encoder(images)  # [n, L, D]
        return codes + self.latent_avg if self.start_from_latent_avg else codes

    def _invert_in_passes(self, images: Tensor) -> Tensor:
        """ReStyle (Alaluf et al. 2021, eq. 2–4): from the average on, each pass adds what the one before lacks."""
        codes = self.latent_avg.expand(len(images), -1, -1)
        height, width = images.shape[2:]
        rows = self.resolution * height // width  # the others hold nothing
        for _ in range(self.passes):
            pictures = self.synthesize(codes).narrow(2, (self.resolution - rows) // 2, rows)  # [n, 3, rows, R]
            reconstructions = F.adaptive_avg_pool2d(pictures, (height, width))
            codes = codes + self.encoder(torch.cat([images.float(), reconstructions], 1))  # [n, L, D]
        return codes

    def synthesize(self, codes: Tensor, size: int | None = None) -> Tensor:
        """Latent codes to pictures, with the generator's fixed noise: the same codes give the same picture.

        Args:
            codes: float32 [n, L, D].
            size: side of a preview, a power of two from 4; None, R or more is the full picture.
        Returns: float32 [n, 3, R, R] or [n, 3, size, size] on the model's device, RGB around [-1, 1], not clamped.
        Raises: ValueError for other shapes or sizes.
        """
        self.check_codes(codes, size)
        return self.decoder(codes.to(self.device, torch.float32), size)

    def check_codes(self, codes: Tensor, size: int | None = None) -> None:
        """Raises ValueError for codes or a size that `synthesize` does not take."""
        if codes.dim() != 3 or tuple(codes.shape[1:]) != (self.num_layers, self.latent_dim):
            raise ValueError(
                f"synthesize takes codes of shape [n, {self.num_layers}, {self.latent_dim}], not {list(codes.shape)}."
            )
        if size is not None and size < self.resolution and (size < 4 or size & (size - 1)):
            raise ValueError(f"size must be a power of two from 4 to {self.resolution}, not {size}.")

    def map(self, z: Tensor) -> Tensor:
        """The mapping network: normal float32 [n, D] -> w, float32 [n, D]."""
        return self.decoder.map(z.to(self.device, torch.float32))

    def with_generator(self, decoder: Generator) -> "E4E":
        """The same encoder and centre of W with another generator of the same shape, such as one tuned for a photo.

        The precision is that of the generator's weights. Raises: ModelError if the shapes differ.
        """
        names = ("name", "template", "aspect", "start_from_latent_avg", "passes")
        other = E4E(self.encoder, decoder, self.latent_avg, **{name: getattr(self, name) for name in names})
        dtype = decoder.input.input.dtype
        other.precision = next(name for name, known in DTYPES.items() if known == dtype)
        other.folder = self.folder
        return other.train(self.training)

    def set_precision(self, precision: str) -> "E4E":
        """Cast the weights, once, so that feature maps are computed in `precision`.

        Latent codes, styles and the sum of the `to_rgb` pictures stay float32, whatever the precision. The digits
        that a lower precision drops do not come back with a higher one.

        Args:
            precision: "float32", "bfloat16", "float16", or "auto", the best one for the model's device.
        Raises: ModelError for an unknown precision and for float16 on a CPU.
        """
        self.precision = resolve_precision(precision, self.device)
        dtype = DTYPES[self.precision]
        self.float()
        for module in self.encoder.modules():
            if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.PReLU)):
                module.to(dtype)
        for module in self.decoder.modules():
            if isinstance(module, ModulatedConv2d):
                module.weight.data = module.weight.data.to(dtype)
            elif isinstance(module, ConstantInput):  # its dtype is that of all feature maps
                module.to(dtype)
        return self


def resolve_precision(precision: str, device: torch.device) -> str:
    """The precision that `precision`, "auto" included, means on `device`; raises ModelError if it cannot be had."""
    if precision == "auto":
        if device.type == "cuda":
            return "float16"
        # On CPUs without tile units, bfloat16 was measured slower than float32 even with avx512_bf16.
        return "bfloat16" if device.type == "cpu" and torch.cpu._is_amx_tile_supported() else "float32"
    if precision not in DTYPES:
        raise ModelError(f"There is no precision {precision!r}; use auto, {', '.join(DTYPES)}.")
    if precision == "float16" and device.type == "cpu":
        raise ModelError("float16 needs a GPU; on a CPU use float32 or bfloat16.")
    return precision
