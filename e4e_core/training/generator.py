"""Training StyleGAN2 on a folder of aligned pictures (Karras et al. 2020)."""

import copy
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from e4e_core.formats import read_folder
from e4e_core.images import to_sheet
from e4e_core.models.discriminators import Discriminator
from e4e_core.models.stylegan2 import Generator, GeneratorConfig, NoiseInjection
from e4e_core.training.augment import Augment
from e4e_core.training.data import Pictures, endless_batches
from e4e_core.training.losses import discriminator_loss, gradient_penalty, non_saturating
from e4e_core.training.run import Progress, Run, load_state
from errors import TrainingError

DISCRIMINATOR = "discriminator.safetensors"  # beside a model: the critic its generator was trained with


@dataclass(frozen=True)
class GeneratorTraining:
    """Train a StyleGAN2 generator on aligned pictures. Stop it when you like; the same command continues."""

    data: Path
    """Folder or zip of aligned pictures."""
    out: Path
    """Folder of this run: its state, its sample sheets, its weights."""
    resolution: int = 64
    """Side of the pictures in pixels, a power of two from 32 to 1024."""
    channels: tuple[int, ...] = (192, 192, 128, 64, 32)
    """Widths at 4, 8, … resolution pixels."""
    latent_dim: int = 128
    """Width of z and w."""
    mapping_layers: int = 6
    images: int = 100_000
    """How many pictures the discriminator is shown in all."""
    batch: int = 32
    learning_rate: float = 2.5e-3
    r1: float = 0.3
    """Weight γ of the gradient penalty (Mescheder et al. 2018)."""
    r1_every: int = 16
    """Steps between gradient penalties."""
    mixing: float = 0.9
    """Share of pictures whose layers come from two latent codes."""
    augment: float = 0.0
    """Target of the adaptive augmentation, for sets of a few thousand pictures and less: 0.6 is usual, 0 is off."""
    noise: bool = True
    """Noise maps in every layer. Without them all of a picture comes from its code, so that an encoder can find it."""
    ema_images: float = 10_000
    """Half-life of the averaged generator, in pictures."""
    start: Path | None = None
    """Run or model folder whose weights to start from, of the same resolution or of half of it."""
    precision: str = "float32"
    """float32 or bfloat16 (which helps on GPUs and on CPUs with fast bfloat16)."""
    device: str = "cpu"
    workers: int = 1
    """Processes that decode pictures."""
    save_every: int = 8_000
    """Pictures between saved states and sample sheets."""
    seed: int = 0


def train_generator(config: GeneratorTraining) -> Path:
    """Run or continue the training; returns the saved state. Raises TrainingError for unusable data or states."""
    torch.manual_seed(config.seed)
    device = torch.device(config.device)
    shape = GeneratorConfig(config.resolution, config.latent_dim, config.mapping_layers, config.channels)
    pictures = Pictures(config.data, config.resolution, mirror=True)
    generator = Generator(shape).to(device)
    discriminator = Discriminator(config.channels).to(device, memory_format=torch.channels_last)
    if config.start is not None:
        start_from(config.start, generator, discriminator)
    average = copy.deepcopy(generator).requires_grad_(False)
    g_optimizer = torch.optim.Adam(generator.parameters(), config.learning_rate, betas=(0.0, 0.99))
    lazy = config.r1_every / (config.r1_every + 1)  # Karras et al. 2020, appendix B: rates for lazy regularisation
    d_optimizer = torch.optim.Adam(discriminator.parameters(), config.learning_rate * lazy, betas=(0.0, 0.99**lazy))
    augment, progress = Augment(config.augment), Progress()
    run = Run(
        config.out,
        config,
        {
            "g": generator,
            "d": discriminator,
            "g_ema": average,
            "g_optim": g_optimizer,
            "d_optim": d_optimizer,
            "augment": augment,
            "progress": progress,
        },
    )
    run.resume()
    if not config.noise:
        remove_noise(generator)
        remove_noise(average)
    batches = endless_batches(pictures, config.batch, config.seed, progress.images, config.workers)
    sample_z = torch.randn(64, config.latent_dim, generator=torch.Generator().manual_seed(1)).to(device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")

    bar = tqdm(total=config.images, initial=progress.images, unit="img", smoothing=0.05)
    while progress.images < config.images:
        step = progress.images // config.batch
        reals = next(batches).to(device, memory_format=torch.channels_last)
        with autocast:
            fakes = generator(draw_codes(generator, config.batch, config.mixing), random_noise=config.noise)
            real_logits = discriminator(augment(reals))
            d_loss = discriminator_loss(real_logits, discriminator(augment(fakes.detach())))
        d_optimizer.zero_grad(set_to_none=True)
        d_loss.backward()
        if step % config.r1_every == 0:
            (config.r1 / 2 * config.r1_every * gradient_penalty(discriminator, augment(reals))).backward()
        d_optimizer.step()
        augment.adjust(real_logits)

        discriminator.requires_grad_(False)
        with autocast:
            g_loss = non_saturating(discriminator(augment(fakes)))
        g_optimizer.zero_grad(set_to_none=True)
        g_loss.backward()
        g_optimizer.step()
        discriminator.requires_grad_(True)

        progress.images += config.batch
        half_life = min(config.ema_images, progress.images / 10)
        blend(average, generator, 0.5 ** (config.batch / half_life))
        bar.update(config.batch)
        bar.set_postfix(d=f"{d_loss.item():.2f}", g=f"{g_loss.item():.2f}")
        if progress.images % config.save_every < config.batch or progress.images >= config.images:
            run.save()
            sheet = sample(average, sample_z, truncation=0.7)
            to_sheet(sheet, columns=8).save(run.folder / f"samples_{progress.images:07d}.png")
    bar.close()
    return run.file


def remove_noise(generator: Generator) -> None:
    """Set the strength of all noise maps to zero and keep it there."""
    for module in generator.modules():
        if isinstance(module, NoiseInjection):
            nn.init.zeros_(module.weight.requires_grad_(False))


def draw_codes(generator: Generator, count: int, mixing: float) -> Tensor:
    """Random codes float32 [count, L, D]; a share `mixing` of them changes its w at a random layer."""
    layers, dim = generator.config.num_layers, generator.config.latent_dim
    device = generator.input.input.device
    first, second = generator.map(torch.randn(2 * count, dim, device=device)).chunk(2)  # [count, D] each
    crossover = torch.randint(1, layers, (count, 1), device=device)
    crossover[torch.rand(count, 1, device=device) >= mixing] = layers
    use_first = torch.arange(layers, device=device)[None] < crossover  # [count, L]
    return torch.where(use_first[..., None], first[:, None], second[:, None])


@torch.no_grad()
def blend(average: nn.Module, current: nn.Module, keep: float) -> None:
    """Exponential moving average of the parameters: average ← keep · average + (1 - keep) · current."""
    for mean, value in zip(average.parameters(), current.parameters(), strict=True):
        mean.lerp_(value, 1 - keep)


@torch.no_grad()
def sample(generator: Generator, z: Tensor, truncation: float) -> Tensor:
    """Pictures [n, 3, R, R] of z [n, D], their w drawn towards the mean by `truncation` (ψ) from 1 (not) to 0."""
    center = generator.mean_latent()
    w = center + truncation * (generator.map(z) - center)  # [n, D]
    return generator(w[:, None].expand(-1, generator.config.num_layers, -1))


def load_generator(folder: Path) -> tuple[Generator, Discriminator]:
    """The averaged generator and the discriminator of a run, or of a model folder with `discriminator.safetensors`.

    Raises TrainingError if the folder holds neither, ModelError if the model is broken.
    """
    if (folder / DISCRIMINATOR).is_file():
        generator = read_folder(folder).decoder
        critic_state = load_file(folder / DISCRIMINATOR)
    else:
        state = load_state(folder / "state.pt")
        generator = Generator(GeneratorConfig.from_state(state["g_ema"]))
        generator.load_state_dict(state["g_ema"])
        critic_state = state["d"]
    discriminator = Discriminator(generator.config.channels)
    discriminator.load_state_dict(critic_state)
    return generator, discriminator


@torch.no_grad()
def start_from(folder: Path, generator: Generator, discriminator: Discriminator) -> None:
    """Copy the weights of trained networks of the same size, or of half the resolution, which then grow.

    A grown generator's new `to_rgb` starts at zero, so that it first renders the smaller one's pictures, enlarged.
    The discriminator gets a new first block in front of the smaller one's blocks.
    Raises TrainingError if the shapes do not fit.
    """
    old_generator, old_discriminator = load_generator(folder)
    old, new = old_generator.config, generator.config
    shared = new.channels[: len(old.channels)]
    if old != replace(new, resolution=old.resolution, channels=shared) or old.resolution < new.resolution // 2:
        raise TrainingError(
            f"{folder} holds {old}, which does not fit {new}; use the same settings, or half the resolution."
        )
    weights, critic_weights = old_generator.state_dict(), old_discriminator.state_dict()
    if old == new:
        generator.load_state_dict(weights)
        discriminator.load_state_dict(critic_weights)
        return
    generator.load_state_dict(weights, strict=False)
    nn.init.zeros_(generator.to_rgbs[-1].conv.weight)
    blocks = {key: value for key, value in critic_weights.items() if not key.startswith("convs.0.")}  # not the from-RGB
    moved = {re.sub(r"(?<=^convs\.)\d+", lambda match: str(int(match[0]) + 1), key): blocks[key] for key in blocks}
    discriminator.load_state_dict(moved, strict=False)
