"""The settings of both trainings, and the encoder's preset for each case."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class GeneratorTraining:
    """Train a StyleGAN2 generator on aligned pictures. Stop it when you like; the same command continues."""

    data: Path
    """Folder, zip or tar of aligned pictures."""
    out: Path
    """Folder of this run: its state, its sample sheets, its weights."""
    resolution: int = 64
    """Side of the pictures in pixels, a power of two from 32 to 1024."""
    channels: tuple[int, ...] = (192, 192, 128, 64, 32)
    """Widths at 4, 8, … resolution pixels."""
    aspect: tuple[int, int] = (1, 1)
    """(width, height) ratio of the pictures; wide ones lie in the middle rows of a black square."""
    latent_dim: int = 128
    """Width of z and w."""
    mapping_layers: int = 6
    images: int = 100_000
    """How many pictures the discriminator is shown in all."""
    batch: int = 32
    """Pictures per step, of all processes together."""
    learning_rate: float = 2.5e-3
    r1: float = 0.3
    """Weight γ of the gradient penalty (Mescheder et al. 2018)."""
    r1_every: int = 16
    """Steps between gradient penalties."""
    path_length: float = 0.0
    """Weight of path-length regularisation; the authors' is 2, and it helps inversion at the cost of time."""
    mixing: float = 0.9
    """Share of pictures whose layers come from two latent codes."""
    augment: float = 0.0
    """Target of the adaptive augmentation, for sets of a few thousand pictures and less: 0.6 is usual, 0 is off."""
    noise: bool = True
    """Noise maps in every layer. Without them all of a picture comes from its code, so that an encoder can find it."""
    ema_images: float = 10_000
    """Half-life of the averaged generator, in pictures."""
    start: Path | None = None
    """Run, model folder or .pt (`g_ema`) whose weights to start from, of the same resolution or of half of it."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """bfloat16 helps on GPUs and on CPUs with fast bfloat16, float16 on older GPUs."""
    accumulate: int = 1
    """Parts of a batch that the discriminator sees one after the other, for less memory."""
    device: str = "auto"
    """auto is a GPU where there is one, else the CPU; or cpu, cuda."""
    workers: int = 1
    """Processes that decode pictures."""
    save_every: int = 8_000
    """Pictures between saved states and sample sheets."""
    log_every: int = 10
    """Steps between TensorBoard's scalars."""
    seed: int = 0


@dataclass(frozen=True)
class EncoderTraining:
    """Train an encoder for a generator, with what the demo model needs. Stop it when you like; the same command
    continues it."""

    data: Path
    """Folder, zip or tar of aligned pictures."""
    generator: Path
    """Run folder of the generator's training, a model folder with `discriminator.safetensors`, or a .pt (`g_ema`)."""
    out: Path
    """Folder of this run: its state, its sample sheets, its weights."""
    start: Path | None = None
    """Model folder or published .pt whose encoder to go on from, offsets included; heads for a grown generator's new
    layers are added."""
    trunk: str = ""
    """Where a new encoder's trunk has its first weights from: a model folder, a published .pt, or "arcface"."""
    kind: Literal["e4e", "psp", "w"] = "e4e"
    """e4e: one w and offsets (W^k). psp: a code from every head (W+), w: a single code, both trained without
    progression, offset penalty and latent discriminator."""
    input_size: int = 64
    """Side of the encoder's input in pixels."""
    stem: int = 32
    """Width of the trunk's first layer."""
    stages: tuple[int, ...] = (48, 96, 160, 256)
    """Widths of the trunk's four stages."""
    blocks: tuple[int, ...] = (2, 2, 3, 2)
    """Residual blocks in each stage."""
    pyramid: int = 128
    """Width of the feature pyramid and of the heads."""
    images: int = 80_000
    """How many real pictures the encoder is shown in all."""
    batch: int = 16
    """Real pictures per step, of all processes together."""
    synthetic: int = 16
    """Pictures per step that the generator makes, whose codes are known."""
    optimizer: Literal["adamw", "ranger"] = "adamw"
    learning_rate: float = 1e-3
    decay: bool = True
    """Let the learning rates fall to zero along a half cosine."""
    compare: int = 0
    """Side in pixels at which pictures are compared by L2, LPIPS, identity and MoCo; 0 is the generator's."""
    l2: float = 1.0
    """Weight of the pixels' squared distance."""
    perceptual: float = 0.8
    """Weight of the distance in the features of the generator's trained discriminator."""
    lpips: float = 0.0
    """Weight of LPIPS (Zhang et al. 2018, AlexNet); without its weights `perceptual` takes its place."""
    identity: float = 0.0
    """Weight of the distance of ArcFace embeddings, for faces; without its weights, of dlib's, squared."""
    moco: float = 0.0
    """Weight of the distance of MoCo v2 features, for other domains."""
    known_codes: float = 1.0
    """Weight of the squared distance to the known w of synthetic pictures."""
    delta: float = 2e-3
    """Weight of the penalty on the offsets' length."""
    delta_norm: float = 2.0
    """Order p of the norm that measures it."""
    adversarial: float = 0.1
    """Weight of the latent discriminator's judgement."""
    discriminator_rate: float = 2e-4
    r1: float = 10.0
    r1_every: int = 16
    pool: int = 50
    """Past codes the latent discriminator is shown again."""
    progressive_start: int = 20_000
    """Real pictures until the first offset is added to w."""
    progressive_every: int = 2_500
    """Real pictures from one offset to the next."""
    decoder_rate: float = 0.0
    """Learning rate of the generator and its discriminator, which then learn with the encoder; 0 keeps them frozen."""
    samples: int = 8
    """Random codes per step that keep a learning generator a generator."""
    realism: float = 0.1
    """Weight of a learning generator's non-saturating loss, on inversions and on samples."""
    projected: float = 0.0
    """Weight of the same by a second discriminator, which sees faces as dlib's network does (Sauer et al. 2021)."""
    likeness: float = 0.0
    """Weight of how far inversions are from their photos in what that discriminator sees, embeddings included."""
    variety: float = 0.0
    """Weight of the energy distance between the embeddings of a learning generator's samples and of photos."""
    decoder_r1: float = 0.1
    """Weight γ of its discriminator's gradient penalty."""
    template: tuple[float, float] | None = (0.42, 0.62)
    """(centre, scale) by which the pictures were cropped around their faces, see `alignment.align`."""
    aspect: tuple[int, int] = (1, 1)
    """(width, height) ratio of the pictures; a wide one lies in the middle rows of the generator's square."""
    directions: Path | None = None
    """Safetensors file of directions [L, D] whose edits the sample sheets show."""
    device: str = "auto"
    """auto is a GPU where there is one, else the CPU; or cpu, cuda."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    accumulate: int = 1
    """Parts of a batch that are computed one after the other, for less memory; each has batch statistics of its own."""
    compile: bool = False
    """Compile the networks first: minutes of waiting, then faster steps (needs a C++ compiler)."""
    workers: int = 1
    """Processes that decode pictures."""
    save_every: int = 8_000
    """Real pictures between saved states, validations and sample sheets."""
    log_every: int = 10
    """Steps between TensorBoard's scalars."""
    holdout: int = 500
    """Pictures at the end of the data that are never shown, to be measured on."""
    seed: int = 0

    @property
    def looks_at_faces(self) -> bool:
        """Whether a learning generator is judged by what dlib's face network sees."""
        return any((self.projected, self.likeness, self.variety))


@dataclass(frozen=True)
class DomainTraining(EncoderTraining):
    """Train an encoder of the published size on pictures of any domain, with the paper's settings and a GPU."""

    input_size: int = 256
    stem: int = 64
    stages: tuple[int, ...] = (64, 128, 256, 512)
    blocks: tuple[int, ...] = (3, 4, 14, 3)
    pyramid: int = 512
    images: int = 1_600_000
    batch: int = 8
    synthetic: int = 0
    optimizer: Literal["adamw", "ranger"] = "ranger"
    learning_rate: float = 1e-4
    decay: bool = False
    compare: int = 256
    perceptual: float = 0.0
    lpips: float = 0.8
    moco: float = 0.5
    known_codes: float = 0.0
    delta: float = 2e-4
    discriminator_rate: float = 2e-5
    progressive_start: int = 160_000
    progressive_every: int = 16_000
    template: tuple[float, float] | None = None
    workers: int = 4
    save_every: int = 80_000


@dataclass(frozen=True)
class FacesTraining(DomainTraining):
    """Train an encoder of the published size on FFHQ-aligned faces, with the paper's settings and a GPU."""

    trunk: str = "arcface"
    images: int = 2_400_000
    moco: float = 0.0
    identity: float = 0.1
    template: tuple[float, float] | None = (0.1, 1.0)


@dataclass(frozen=True)
class CarsTraining(DomainTraining):
    """Train an encoder of the published size on 4:3 pictures of cars, with the paper's settings and a GPU."""

    aspect: tuple[int, int] = (4, 3)


PRESETS: dict[str, type[EncoderTraining]] = {
    "encoder": EncoderTraining,
    "encoder-faces": FacesTraining,
    "encoder-cars": CarsTraining,
    "encoder-domain": DomainTraining,
}
