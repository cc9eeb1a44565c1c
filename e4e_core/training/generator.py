"""Training StyleGAN2 on a folder of aligned pictures (Karras et al. 2020)."""

import copy
import re
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from e4e_core.formats import read_folder
from e4e_core.images import in_square, to_sheet
from e4e_core.models.discriminators import Discriminator
from e4e_core.models.stylegan2 import Generator, GeneratorConfig, NoiseInjection
from e4e_core.training.augment import Augment
from e4e_core.training.data import Pictures, endless_batches
from e4e_core.training.losses import PathLength, discriminator_loss, gradient_penalty, non_saturating
from e4e_core.training.processes import Precision, Processes
from e4e_core.training.run import Log, Progress, Run, Stateful, check_finite, digest, load_state, replacing
from e4e_core.training.settings import GeneratorTraining
from errors import TrainingError

__all__ = [
    "GeneratorTraining",
    "blend",
    "draw_codes",
    "export_generator",
    "for_sheet",
    "load_generator",
    "sample",
    "train_generator",
]

DISCRIMINATOR = "discriminator.safetensors"  # beside a model: the critic its generator was trained with
AT_ONCE = 8  # pictures of a sheet rendered together: 64 of 1024 px would fill a GPU
SHEET_SIDE = 256  # px of a picture in it, at most
PATH_EVERY = 4  # steps between path-length regularisations


def train_generator(config: GeneratorTraining) -> Path:
    """Run or continue the training; returns the saved state. Raises TrainingError for unusable data or states."""
    processes = Processes(config.device)
    processes.check(config.batch, config.batch // 2 if config.path_length else config.batch, parts=config.accumulate)
    torch.manual_seed(config.seed)
    pictures = Pictures(config.data, config.resolution, mirror=True, aspect=config.aspect)
    training = Training(config, processes)
    run = Run(config.out, config, training.parts(), quiet=not processes.main)
    run.resume()
    networks = (training.generator, training.discriminator)
    processes.agree(training.progress.images, digest(*(network.state_dict() for network in networks)))
    training.settle()
    progress, average = training.progress, training.average
    batches = endless_batches(pictures, config.batch, config.seed, progress.images, config.workers, processes)
    sample_z = torch.randn(64, config.latent_dim, generator=torch.Generator().manual_seed(1)).to(processes.device)
    log = Log(config.out, progress.images // config.batch) if processes.main else None
    bar = tqdm(total=config.images, initial=progress.images, unit="img", smoothing=0.05, disable=not processes.main)
    while progress.images < config.images:
        step = progress.images // config.batch
        losses = training.step(in_square(next(batches)), step)
        progress.images += config.batch
        half_life = min(config.ema_images, progress.images / 10)
        blend(average, training.generator, 0.5 ** (config.batch / half_life))
        if step % config.log_every == 0:
            values = {name: processes.mean(loss).item() for name, loss in losses.items()}
            bar.set_postfix({name: f"{value:.2f}" for name, value in values.items()})
            if log:
                log.scalars("train", values | {"augment": training.augment.probability}, step)
        bar.update(config.batch)
        if progress.images % config.save_every < config.batch or progress.images >= config.images:
            check_finite({name: processes.mean(loss) for name, loss in losses.items()})
            if log:
                run.save()
                sheet = to_sheet(for_sheet(sample(average, sample_z, truncation=0.7)), columns=8)
                run.save_sheet("samples", sheet, progress.images)
                log.picture("samples", sheet, step)
            processes.wait()
    bar.close()
    if log:
        log.close()
    return run.file


class Training:
    """Both networks and their optimizers, and one step of them."""

    def __init__(self, config: GeneratorTraining, processes: Processes):
        self.config, self.processes = config, processes
        device = processes.device
        shape = GeneratorConfig(config.resolution, config.latent_dim, config.mapping_layers, config.channels)
        self.generator, self.discriminator = Generator(shape), Discriminator(config.channels)
        if config.start is not None:
            start_from(config.start, self.generator, self.discriminator)
        self.generator.to(device)
        self.discriminator.to(device, memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        rate, betas = config.learning_rate, (0.0, 0.99)
        self.g_optimizer = _lazy_adam(self.generator, rate, betas, PATH_EVERY if config.path_length else 0)
        self.d_optimizer = _lazy_adam(self.discriminator, rate, betas, config.r1_every)
        self.augment, self.progress = Augment(config.augment), Progress()
        self.path_length = PathLength(processes.mean)
        self.precision = Precision(config.precision, device)

    def parts(self) -> dict[str, Stateful]:
        """What a stopped run needs."""
        parts = {
            "g": self.generator,
            "d": self.discriminator,
            "g_ema": self.average,
            "g_optim": self.g_optimizer,
            "d_optim": self.d_optimizer,
            "augment": self.augment,
            "progress": self.progress,
            "scaler": self.precision.scaler,
        }
        return parts | ({"path_length": self.path_length} if self.config.path_length else {})

    def settle(self) -> None:
        """After weights were restored: without noise, whatever strengths they brought."""
        if not self.config.noise:
            remove_noise(self.generator)
            remove_noise(self.average)

    def step(self, reals: Tensor, step: int) -> dict[str, Tensor]:
        """Discriminator, then generator, on pictures float [n, 3, R, R]; returns their losses."""
        config, precision, discriminator = self.config, self.precision, self.discriminator
        parts, penalize = reals.chunk(config.accumulate), step % config.r1_every == 0
        self.d_optimizer.zero_grad(set_to_none=True)
        answers = [self._criticise(part, penalize) for part in parts]
        d_loss, fakes, real_logits = zip(*answers, strict=True)
        self.processes.average_gradients(discriminator.parameters())
        precision.step(self.d_optimizer)
        self.augment.adjust(self.processes.gather(torch.cat(real_logits)))

        discriminator.requires_grad_(False)
        self.g_optimizer.zero_grad(set_to_none=True)
        g_loss = [self._convince(part) for part in fakes]
        losses = {"d": torch.stack(d_loss).mean(), "g": torch.stack(g_loss).mean()}
        if config.path_length and step % PATH_EVERY == 0:
            losses["path"] = torch.stack([self._penalize_path() for _ in parts]).mean()
        self.processes.average_gradients(self.generator.parameters())
        precision.step(self.g_optimizer)
        precision.scaler.update()
        discriminator.requires_grad_(True)
        return losses

    def _criticise(self, reals: Tensor, penalize: bool) -> tuple[Tensor, Tensor | None, Tensor]:
        """Add the discriminator's gradients for a part of the batch: (its loss, the fakes, the logits of the reals).

        The fakes are for the generator's turn; None if there are more parts, whose graphs would fill the memory.
        """
        config, augment, discriminator = self.config, self.augment, self.discriminator
        whole = config.accumulate == 1
        with self.precision.autocast:
            with torch.set_grad_enabled(whole):
                fakes = self._render()
            real_logits = discriminator(augment(reals))
            loss = discriminator_loss(real_logits, discriminator(augment(fakes.detach())))
        self.precision.backward(loss / config.accumulate)
        if penalize:
            weight = config.r1 / 2 * config.r1_every / config.accumulate
            self.precision.backward(weight * gradient_penalty(discriminator, augment(reals)))
        return loss.detach(), fakes if whole else None, real_logits.detach()

    def _convince(self, fakes: Tensor | None) -> Tensor:
        """Add the generator's gradients for a part of the batch, or for as many new pictures; returns its loss."""
        with self.precision.autocast:
            loss = non_saturating(self.discriminator(self.augment(self._render() if fakes is None else fakes)))
        self.precision.backward(loss / self.config.accumulate)
        return loss.detach()

    def _render(self) -> Tensor:
        """This process's share of a part of the batch: random pictures with fresh noise."""
        codes = draw_codes(self.generator, self.config.batch // self.config.accumulate, self.config.mixing)
        return self.generator(self.processes.share(codes), random_noise=self.config.noise)

    def _penalize_path(self) -> Tensor:
        """Add the gradient of path-length regularisation, on half a batch, as the authors do to save memory."""
        count, parts = self.config.batch // 2, self.config.accumulate
        codes = self.processes.share(draw_codes(self.generator, max(count // parts, 1), self.config.mixing))
        penalty = self.path_length(self.generator(codes, random_noise=self.config.noise), codes)
        self.precision.backward(self.config.path_length * PATH_EVERY * penalty / parts)
        return penalty.detach()


def _lazy_adam(network: nn.Module, rate: float, betas: tuple[float, float], every: int) -> torch.optim.Adam:
    """Adam whose rates allow for a regularisation every so many steps (Karras et al. 2020, appendix B); 0 is none."""
    lazy = every / (every + 1) if every else 1.0
    return torch.optim.Adam(network.parameters(), rate * lazy, betas=(betas[0] ** lazy, betas[1] ** lazy))


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
    """Pictures of z [n, D], their w drawn towards the mean by `truncation` (ψ) from 1 (not) to 0.

    Returns: float32 [n, 3, R, R] on the CPU, a few rendered at a time.
    """
    center = generator.mean_latent()
    w = center + truncation * (generator.map(z) - center)  # [n, D]
    codes = w[:, None].expand(-1, generator.config.num_layers, -1)
    return torch.cat([generator(few).cpu() for few in codes.split(AT_ONCE)])


def for_sheet(images: Tensor) -> Tensor:
    """[n, 3, h, w] on any device -> on the CPU, averaged until no wider than SHEET_SIDE."""
    return F.avg_pool2d(images, -(-images.shape[3] // SHEET_SIDE)).cpu()


def load_generator(path: Path) -> tuple[Generator, Discriminator | None]:
    """The averaged generator and the discriminator of a trained model.

    Args: path: a run's folder, a model folder with `discriminator.safetensors`, or a .pt file in the widely used
        layout: `g_ema`, and perhaps `d`; without it there is no discriminator.
    Raises TrainingError if there is neither, ModelError if the model is broken.
    """
    if (path / DISCRIMINATOR).is_file():
        generator = read_folder(path).decoder
        critic_state = load_file(path / DISCRIMINATOR)
    else:
        file = path if path.is_file() else path / "state.pt"
        state = load_state(file)
        try:
            generator = Generator(GeneratorConfig.from_state(state["g_ema"]))
            generator.load_state_dict(state["g_ema"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise TrainingError(f"{file} holds no generator in the layout of `g_ema` ({error}).") from error
        critic_state = state.get("d")
    if critic_state is None:
        return generator, None
    discriminator = Discriminator(generator.config.channels)
    try:
        discriminator.load_state_dict(critic_state)
    except RuntimeError as error:
        raise TrainingError(f"{path} holds a discriminator of another layout ({error}); remove it.") from error
    return generator, discriminator


def export_generator(folder: Path, file: Path) -> None:
    """Write a trained generator as a .pt file in the widely used layout: `g_ema`, `latent_avg` [D], `d` if it is there.

    Raises: TrainingError if there is no generator in the folder or the file cannot be written.
    """
    generator, discriminator = load_generator(folder)
    content = {"g_ema": generator.state_dict(), "latent_avg": generator.mean_latent()}
    if discriminator is not None:
        content["d"] = discriminator.state_dict()
    with replacing(file) as part:
        torch.save(content, part)


@torch.no_grad()
def start_from(path: Path, generator: Generator, discriminator: Discriminator) -> None:
    """Copy the weights of trained networks of the same size, or of half the resolution, which then grow.

    A grown generator's new `to_rgb` starts at zero, so that it first renders the smaller one's pictures, enlarged.
    The discriminator gets a new first block in front of the smaller one's, which starts by passing them what they know.
    Args: generator, discriminator: on the CPU.
    Raises TrainingError if the shapes do not fit.
    """
    old_generator, old_discriminator = load_generator(path)
    old, new = old_generator.config, generator.config
    shared = new.channels[: len(old.channels)]
    if old != replace(new, resolution=old.resolution, channels=shared) or old.resolution < new.resolution // 2:
        raise TrainingError(
            f"{path} holds {old}, which does not fit {new}; use the same settings, or half the resolution."
        )
    same = old == new
    generator.load_state_dict(old_generator.state_dict(), strict=same)
    if not same:
        nn.init.zeros_(generator.to_rgbs[-1].conv.weight)
    if old_discriminator is None:
        print(f"{path} has no discriminator, so a new one starts from nothing; the first pictures will get worse.")
        return
    critic_weights = old_discriminator.state_dict()
    if same:
        discriminator.load_state_dict(critic_weights)
        return
    blocks = {key: value for key, value in critic_weights.items() if not key.startswith("convs.0.")}  # not the from-RGB
    moved = {re.sub(r"(?<=^convs\.)\d+", lambda match: str(int(match[0]) + 1), key): blocks[key] for key in blocks}
    discriminator.load_state_dict(moved, strict=False)
    _imitate(discriminator, old_discriminator.convs[0])


def _imitate(discriminator: Discriminator, from_rgb: nn.Module) -> None:
    """Let the first block give what `from_rgb`, the first layer of the smaller one, says of the picture at half size.

    Its own first layer takes some of that one's channels, and its skip recovers all of them by least squares over the
    RGB cube; its convolutions start at zero.
    """
    first, block = discriminator.convs[0], discriminator.convs[1]
    old_conv, old_bias = from_rgb[0].weight, from_rgb[1].bias
    chosen = torch.linspace(0, len(old_conv) - 1, len(first[0].weight)).round().long()
    first[0].weight.copy_(old_conv[chosen])
    first[1].bias.copy_(old_bias[chosen])
    for parameter in (block.conv2[1].weight, block.conv2[2].bias):
        nn.init.zeros_(parameter)
    colours = torch.rand(4096, 3, 1, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    have, wanted = first(colours).flatten(1), from_rgb(colours).flatten(1) * 2**0.5  # the block divides by √2
    skip = block.skip[1]
    solution = torch.linalg.lstsq(have, wanted).solution.T  # [out, in]
    skip.weight.copy_(solution[..., None, None] / skip.scale)
