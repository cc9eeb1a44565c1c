"""Training the e4e encoder on a frozen generator (Tov et al. 2021)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from e4e_core.checkpoints import save_model
from e4e_core.images import to_sheet
from e4e_core.models.discriminators import LatentDiscriminator
from e4e_core.models.e4e import E4E
from e4e_core.models.encoder import Encoder, EncoderConfig
from e4e_core.training.data import Pictures, endless_batches
from e4e_core.training.generator import load_generator
from e4e_core.training.losses import (
    DiscriminatorFeatures,
    delta_penalty,
    discriminator_loss,
    gradient_penalty,
    non_saturating,
)
from e4e_core.training.run import Progress, Run


@dataclass(frozen=True)
class EncoderTraining:
    """Train an e4e encoder for a generator. Stop it when you like; the same command continues."""

    data: Path
    """Folder or zip of aligned pictures."""
    generator: Path
    """Run folder of the generator's training, or a model folder with `discriminator.safetensors`."""
    out: Path
    """Folder of this run: its state, its sample sheets, its weights."""
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
    """Real pictures per step."""
    synthetic: int = 16
    """Pictures per step that the generator makes, whose codes are known."""
    learning_rate: float = 1e-3
    """At the start; it falls to zero along a half cosine."""
    l2: float = 1.0
    perceptual: float = 0.8
    known_codes: float = 1.0
    """Weight of the squared distance to the known w of synthetic pictures."""
    delta: float = 2e-3
    """Weight of the penalty on the offsets' length."""
    adversarial: float = 0.1
    discriminator_rate: float = 2e-4
    r1: float = 10.0
    r1_every: int = 16
    pool: int = 50
    """Past codes the latent discriminator is shown again."""
    progressive_start: int = 20_000
    """Real pictures until the first offset is added to w."""
    progressive_every: int = 2_500
    """Real pictures from one offset to the next."""
    template: tuple[float, float] = (0.42, 0.62)
    """(centre, scale) by which the pictures were cropped around their faces, see `alignment.align`."""
    device: str = "cpu"
    workers: int = 1
    save_every: int = 8_000
    holdout: int = 500
    """Pictures at the end of the data that are never shown, to be measured on."""
    seed: int = 0


class CodePool:
    """Codes the encoder gave in the past; half of each answer is drawn from them (Shrivastava et al. 2017)."""

    def __init__(self, size: int):
        self.size = size
        self.codes: list[Tensor] = []

    def exchange(self, codes: Tensor) -> Tensor:
        """Takes float [n, d] and returns as many: new ones, or past ones whose place a new one takes."""
        answer = []
        for code in codes.detach():
            if len(self.codes) < self.size:
                self.codes.append(code)
                answer.append(code)
            elif torch.rand(()) < 0.5:
                place = int(torch.randint(self.size, ()))
                answer.append(self.codes[place])
                self.codes[place] = code
            else:
                answer.append(code)
        return torch.stack(answer)

    def state_dict(self) -> dict[str, list[Tensor]]:
        return {"codes": self.codes}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        self.codes = list(state["codes"])


def active_deltas(config: EncoderTraining, images: int, num_layers: int) -> int:
    """How many offsets are added to w after `images` pictures: none at first, in the end one per layer after w's."""
    if images < config.progressive_start:
        return 0
    return min(num_layers - 1, 1 + (images - config.progressive_start) // config.progressive_every)


def train_encoder(config: EncoderTraining) -> Path:
    """Run or continue the training; returns the folder with the model for `load_model`.

    Raises TrainingError for unusable data or states.
    """
    torch.manual_seed(config.seed)
    device = torch.device(config.device)
    generator, critic = load_generator(config.generator)
    generator = generator.to(device).eval().requires_grad_(False)
    perceptual = DiscriminatorFeatures(critic).to(device)
    layers, dim = generator.config.num_layers, generator.config.latent_dim
    encoder = Encoder(
        EncoderConfig(
            input_size=config.input_size,
            stem=config.stem,
            stages=config.stages,
            blocks=config.blocks,
            pyramid=config.pyramid,
            latent_dim=dim,
            num_layers=layers,
        )
    ).to(device, memory_format=torch.channels_last)
    model = E4E(encoder, generator, generator.mean_latent(), name=config.out.name, template=config.template).to(device)
    latent_critic = LatentDiscriminator(dim).to(device)
    optimizer = torch.optim.AdamW(encoder.parameters(), config.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    steps = config.images // config.batch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    critic_optimizer = torch.optim.Adam(latent_critic.parameters(), config.discriminator_rate)
    pool, progress = CodePool(config.pool), Progress()
    parts = {
        "encoder": encoder,
        "latent_critic": latent_critic,
        "optimizer": optimizer,
        "schedule": schedule,
        "critic_optimizer": critic_optimizer,
        "pool": pool,
        "progress": progress,
    }
    run = Run(config.out, config, parts)
    run.resume()
    pictures = Pictures(config.data, generator.config.resolution, mirror=True, holdout=config.holdout)
    batches = endless_batches(pictures, config.batch, config.seed, progress.images, config.workers)

    bar = tqdm(total=config.images, initial=progress.images, unit="img", smoothing=0.05)
    while progress.images < config.images:
        step = progress.images // config.batch
        encoder.num_deltas = active_deltas(config, progress.images, layers)
        active = encoder.num_deltas + 1
        reals = next(batches).to(device, memory_format=torch.channels_last)  # [n, 3, R, R]
        with torch.no_grad():
            known = generator.map(torch.randn(config.synthetic, dim, device=device))  # [m, D]
            made = model.synthesize(known[:, None].expand(-1, layers, -1))
        inputs = resize(torch.cat([reals, made]), config.input_size)
        codes, synthetic_codes = model.invert(inputs).split([config.batch, config.synthetic])  # [n, L, D], [m, L, D]
        images = model.synthesize(codes)
        terms = {
            "l2": config.l2 * F.mse_loss(images, reals),
            "perc": config.perceptual * perceptual(images, reals),
            "known": config.known_codes * F.mse_loss(synthetic_codes, known[:, None].expand_as(synthetic_codes)),
            "delta": config.delta * delta_penalty(codes),
            "adv": config.adversarial * non_saturating(latent_critic(codes[:, :active].flatten(0, 1))),
        }
        optimizer.zero_grad(set_to_none=True)
        sum(terms.values()).backward()
        optimizer.step()
        schedule.step()

        real_codes = generator.map(torch.randn(config.batch * active, dim, device=device)).detach()
        fake_codes = pool.exchange(codes[:, :active].flatten(0, 1))
        critic_loss = discriminator_loss(latent_critic(real_codes), latent_critic(fake_codes))
        if step % config.r1_every == 0:
            critic_loss = critic_loss + config.r1 / 2 * config.r1_every * gradient_penalty(latent_critic, real_codes)
        critic_optimizer.zero_grad(set_to_none=True)
        critic_loss.backward()
        critic_optimizer.step()

        progress.images += config.batch
        bar.update(config.batch)
        bar.set_postfix({"deltas": encoder.num_deltas} | {name: f"{term.item():.3f}" for name, term in terms.items()})
        if progress.images % config.save_every < config.batch or progress.images >= config.images:
            run.save()
            save_model(model, run.folder / "model")
            sheet = torch.stack([reals, images.detach()], 1).flatten(0, 1)  # each picture, then its inversion
            to_sheet(sheet, columns=8).save(run.folder / f"inversions_{progress.images:07d}.png")
    bar.close()
    return run.folder / "model"


def resize(images: Tensor, size: int) -> Tensor:
    """float [n, 3, h, w] -> [n, 3, size, size], averaging over the area of each new pixel."""
    return images if images.shape[-1] == size else F.adaptive_avg_pool2d(images, size)
