"""Training an encoder (e4e: Tov et al. 2021; pSp: Richardson et al. 2021) on a generator, frozen or learning."""

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from e4e_core.formats import read_folder, read_published
from e4e_core.images import content
from e4e_core.models.e4e import E4E
from e4e_core.models.encoder import Encoder, EncoderConfig
from e4e_core.models.ops import without_autocast
from e4e_core.models.stylegan2 import GeneratorConfig
from e4e_core.training.data import Pictures, endless_batches
from e4e_core.training.decoder import LearningDecoder
from e4e_core.training.generator import draw_codes, load_generator
from e4e_core.training.latents import CodePool, LatentCritic
from e4e_core.training.losses import delta_penalty, feature_distance
from e4e_core.training.perception import load_losses, published_weights
from e4e_core.training.processes import Precision, Processes
from e4e_core.training.report import Report
from e4e_core.training.run import Progress, Run, Stateful, check_finite, digest
from e4e_core.training.settings import EncoderTraining
from errors import DownloadError, TrainingError

__all__ = ["CodePool", "EncoderTraining", "LearningDecoder", "active_deltas", "rate_share", "train_encoder"]

MIXING = 0.9  # share of a learning generator's samples whose layers come from two codes


def active_deltas(config: EncoderTraining, images: int, num_layers: int, first: int = 0) -> int:
    """How many offsets are added to w after `images` pictures: none at first, in the end one per layer after w's.

    Args: first: offsets that the encoder it started from had; they are never lost.
    """
    if images < config.progressive_start:
        return first
    return min(num_layers - 1, max(first, 1 + (images - config.progressive_start) // config.progressive_every))


def rate_share(config: EncoderTraining, images: int) -> float:
    """The learning rates after `images` pictures, 0 … 1 of their first: along half a cosine, or always 1."""
    if not config.decay:
        return 1.0
    return (1 + math.cos(math.pi * min(images / config.images, 1.0))) / 2


def train_encoder(config: EncoderTraining) -> Path:
    """Run or continue the training; returns the folder with the model for `load_model`.

    Raises TrainingError for unusable data or states.
    """
    processes = Processes(config.device)
    samples = config.samples if config.decoder_rate else 0
    processes.check(config.batch, config.synthetic, samples, parts=config.accumulate)
    torch.manual_seed(config.seed)
    training = Training(config, processes)
    progress, size, aspect = training.progress, training.model.resolution, config.aspect
    pictures = Pictures(config.data, size, mirror=True, holdout=config.holdout, aspect=aspect)
    run = Run(config.out, config, training.parts(), training.facts, quiet=not processes.main)
    run.resume()
    processes.agree(progress.images, f"{training.facts} {digest(training.encoder.state_dict())}")
    batches = endless_batches(pictures, config.batch, config.seed, progress.images, config.workers, processes)
    report = Report(config, training, run, pictures) if processes.main else None
    bar = tqdm(total=config.images, initial=progress.images, unit="img", smoothing=0.05, disable=not processes.main)
    while progress.images < config.images:
        step = progress.images // config.batch
        reals = next(batches)  # [n, 3, h, w]
        terms = training.step(reals, penalize=step % config.r1_every == 0)
        progress.images += config.batch
        if step % config.log_every == 0:
            values = {name: processes.mean(term).item() for name, term in terms.items()}
            bar.set_postfix({"deltas": training.encoder.num_deltas} | {k: f"{v:.3f}" for k, v in values.items()})
            if report:
                rate = training.optimizer.param_groups[0]["lr"]
                report.log.scalars("train", values | {"total": sum(values.values()), "rate": rate}, step)
        bar.update(config.batch)
        if progress.images % config.save_every < config.batch or progress.images >= config.images:
            check_finite({name: processes.mean(term) for name, term in terms.items()})
            if report:
                report.save(reals)
            processes.wait()
    bar.close()
    if report:
        report.log.close()
    return config.out / "model"


class Training:
    """All networks, losses and optimizers of a run, and one step of them."""

    def __init__(self, config: EncoderTraining, processes: Processes):
        self.config, self.processes = config, processes
        device = processes.device
        self.precision = Precision(config.precision, device)
        generator, critic = load_generator(config.generator)
        with processes.main_first():
            self.losses, self.perceptual = load_losses(config)
            self.encoder = _encoder(config, generator.config)
        self.facts = {  # what a stopped run must find again, and all processes alike
            "losses": str({name: type(network).__name__ for name, (_, network) in sorted(self.losses.items())}),
            "decoder-rate": "above 0" if config.decoder_rate else "0",
            "weights of the generator": digest(generator.state_dict(), critic.state_dict() if critic else {}),
        }
        for _, network in self.losses.values():
            network.to(device)
        if critic is None and (self.perceptual or config.decoder_rate):
            raise TrainingError(f"{config.generator} has no discriminator; use {self._without_critic()}.")
        if config.looks_at_faces and config.template is None:
            raise TrainingError(
                "dlib's network sees only faces; use --projected 0 --likeness 0 --variety 0, or give their --template."
            )
        if config.decoder_rate and config.aspect != (1, 1):
            raise TrainingError("A learning generator needs square pictures; use --decoder-rate 0 or --aspect 1 1.")
        self.generator = generator.to(device).eval().requires_grad_(False)
        self.critic = critic and critic.to(device, memory_format=torch.channels_last).requires_grad_(False)
        self.encoder.to(device, memory_format=torch.channels_last)
        center, self.first_deltas = generator.mean_latent(), 0
        if config.start is not None:
            center, self.first_deltas = start_from(config.start, self.encoder)
        settings = {"name": config.out.name, "template": config.template, "aspect": config.aspect}
        self.model = E4E(self.encoder, generator, center.to(device), **settings).to(device)
        processes.join_batch_norms(self.encoder)
        self.latent_critic = LatentCritic(config, generator.config.latent_dim, processes)
        self.optimizer = _optimizer(config, self.encoder)
        self.progress = Progress()
        self.decoder = (
            LearningDecoder(config, generator, critic, processes, self.precision) if config.decoder_rate else None
        )
        if config.compile:
            self.encoder.compile(dynamic=False)
            generator.compile(dynamic=False)
            if critic is not None:
                critic.features = torch.compile(critic.features, dynamic=False)

    def _without_critic(self) -> str:
        """The settings that need no discriminator, of those that now do."""
        config, remedies = self.config, []
        if config.perceptual:
            remedies.append("--perceptual 0")
        if self.perceptual > config.perceptual:
            remedies.append("--lpips 0 (or LPIPS's weights, as said above)")
        if config.decoder_rate:
            remedies.append("--decoder-rate 0")
        return " and ".join(remedies)

    def parts(self) -> dict[str, Stateful]:
        """What a stopped run needs."""
        return {
            "encoder": self.encoder,
            **self.latent_critic.parts(),
            "optimizer": self.optimizer,
            "progress": self.progress,
            "scaler": self.precision.scaler,
            **(self.decoder.parts() if self.decoder else {}),
        }

    def invert(self, images: Tensor) -> Tensor:
        """float [n, 3, h, w] of the generator's size -> codes float32 [n, L, D]."""
        return self.model.invert(self._pooled(images, self.config.input_size))

    def _pooled(self, images: Tensor, side: int) -> Tensor:
        """float [n, 3, h, w] -> [n, 3, h', side] of the pictures' aspect, averaged."""
        width, height = self.config.aspect
        size = (side * height // width, side)
        return images if tuple(images.shape[2:]) == size else F.adaptive_avg_pool2d(images, size)

    def render(self, codes: Tensor) -> Tensor:
        """Codes float [n, L, D] -> pictures [n, 3, h, w]: of the generator's square, the rows that hold something."""
        return content(self.model.synthesize(codes), self.config.aspect)

    def distances(self, images: Tensor, reals: Tensor) -> dict[str, Tensor]:
        """How far pictures float [n, 3, h, w] are from the true ones, by name, each times its weight."""
        features = (self.critic.features(images), self.critic.features(reals)) if self.perceptual else None
        return self._distances(images, reals, features)

    def _distances(
        self, images: Tensor, reals: Tensor, features: tuple[list[Tensor], list[Tensor]] | None
    ) -> dict[str, Tensor]:
        largest = self.model.resolution
        side = min(self.config.compare or largest, largest)
        images, reals = self._pooled(images.float(), side), self._pooled(reals, side)
        terms = {"l2": self.config.l2 * F.mse_loss(images, reals)}
        if self.perceptual:
            terms["perc"] = self.perceptual * feature_distance(*features)
        with without_autocast(reals):
            for name, (weight, network) in self.losses.items():
                terms[name] = weight * network(images, reals)
        return terms

    def step(self, reals: Tensor, penalize: bool) -> dict[str, Tensor]:
        """One step of everything on pictures float [n, 3, h, w]; returns the encoder's losses.

        Args: penalize: whether the discriminators' gradient penalties, which are lazy, are due.
        """
        config, decoder, precision = self.config, self.decoder, self.precision
        self.encoder.num_deltas = active_deltas(config, self.progress.images, self.model.num_layers, self.first_deltas)
        self._set_rates(rate_share(config, self.progress.images))
        optimizers = [self.optimizer, *(decoder.optimizers if decoder else [])]
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        answers = [self._learn_from(part) for part in reals.chunk(config.accumulate)]
        self.processes.average_gradients(self.encoder.parameters())
        if decoder:
            decoder.finish_gradients(reals, penalize)
        precision.step(*optimizers)
        precision.scaler.update()
        if decoder:
            decoder.follow()
            if penalize:  # as seldom
                decoder.mover.learn()
        if self.judged:
            codes = torch.cat([codes for _, codes in answers])[:, : self.encoder.num_deltas + 1]
            with torch.no_grad():
                mapped = self._mapped(config.batch * codes.shape[1])
            self.latent_critic.step(mapped, codes, penalize)
        return {name: torch.stack([terms[name] for terms, _ in answers]).mean() for name in answers[0][0]}

    @property
    def judged(self) -> bool:
        """Whether the latent discriminator takes part."""
        return self.config.kind == "e4e" and self.config.adversarial > 0

    def _set_rates(self, share: float) -> None:
        """Let the encoder and a learning generator learn at this share of their first rates."""
        for group in self.optimizer.param_groups:
            group["lr"] = share * self.config.learning_rate
        if self.decoder:
            self.decoder.set_rates(share)

    def _learn_from(self, reals: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Add all gradients for a part of the batch; returns the encoder's losses, and the codes without gradient."""
        config, decoder, share = self.config, self.decoder, self.processes.share
        layers, n, parts = self.model.num_layers, len(reals), config.accumulate
        with torch.no_grad():
            known = share(self._mapped(config.synthetic // parts))[:, None].expand(-1, layers, -1)  # [m, L, D]
            drawn = share(draw_codes(self.generator, config.samples // parts if decoder else 0, MIXING))  # [s, L, D]
            drawn = decoder.mover(drawn) if decoder else drawn
        with self.precision.autocast:
            with torch.no_grad():
                shown = self.render(known) if len(known) else reals[:0]
            codes, synthetic_codes = self.invert(torch.cat([reals, shown])).split([n, len(known)])
            made = self.render(torch.cat([decoder.half_in_w(codes) if decoder else codes, drawn]))
            maps, real_maps = self._features(made, reals)
            nearby = ([fake[:n] for fake in maps], [real.detach() for real in real_maps])
            terms = self._distances(made[:n], reals, nearby)
        if config.kind == "e4e":
            terms["delta"] = config.delta * delta_penalty(codes, config.delta_norm)
        if self.judged:
            terms["adv"] = config.adversarial * self.latent_critic.doubt(codes[:, : self.encoder.num_deltas + 1])
        if len(known) and config.known_codes:
            terms["known"] = config.known_codes * F.mse_loss(synthetic_codes, known)
        if decoder:
            terms["real"] = config.realism * decoder.realism(maps, n)
            if decoder.face_critic:
                terms |= decoder.face_critic.terms(made, reals)
            decoder.mover.recent.add(self.processes.gather(codes[:, 0]))
        self.precision.backward(sum(terms.values()) / parts)
        if decoder:
            decoder.criticise(real_maps, made.detach())
        return {name: term.detach() for name, term in terms.items()}, codes.detach()

    def _mapped(self, count: int) -> Tensor:
        """Random codes float [count, D] of all processes together."""
        w = self.generator.map(torch.randn(count, self.model.latent_dim, device=self.processes.device))
        return self.decoder.mover(w) if self.decoder else w

    def _features(self, made: Tensor, reals: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The discriminator's features of both, where they are needed; of `reals` with a graph if it learns."""
        if not self.perceptual and not self.decoder:
            return [], []
        with torch.set_grad_enabled(self.decoder is not None):
            self.critic.requires_grad_(self.decoder is not None)
            real_maps = self.critic.features(reals)
        self.critic.requires_grad_(False)
        return self.critic.features(made), real_maps


def _encoder(config: EncoderTraining, generator: GeneratorConfig) -> Encoder:
    shape = EncoderConfig(
        kind=config.kind,
        input_size=config.input_size,
        stem=config.stem,
        stages=config.stages,
        blocks=config.blocks,
        pyramid=config.pyramid,
        latent_dim=generator.latent_dim,
        num_layers=generator.num_layers,
    )
    encoder = Encoder(shape)
    if config.trunk and config.start is None:
        start_trunk(config.trunk, encoder)
    return encoder


def start_trunk(source: str, encoder: Encoder) -> None:
    """Copy the weights of a trained trunk: of a model's encoder, or the published ArcFace's, as the paper does.

    Raises TrainingError if the shapes do not fit; ArcFace weights that cannot be had cost a sentence.
    """
    try:
        weights = published_weights(source) if source == "arcface" else read_model(Path(source)).encoder.state_dict()
    except DownloadError as error:
        print(f"The encoder's trunk starts from nothing, because ArcFace's weights cannot be had: {error}")
        return
    trunk = {key: value for key, value in weights.items() if key.startswith(("input_layer.", "body."))}
    own = {key for key in encoder.state_dict() if key.startswith(("input_layer.", "body."))}
    try:
        encoder.load_state_dict(trunk, strict=False)
    except RuntimeError as error:
        raise TrainingError(f"The trunk in {source} has another shape than these settings ({error}).") from error
    if own != set(trunk):
        raise TrainingError(f"The trunk in {source} has other layers than these settings; use its own.")


def read_model(path: Path) -> E4E:
    return read_published(path, path.stem) if path.is_file() else read_folder(path)


def _optimizer(config: EncoderTraining, encoder: Encoder) -> torch.optim.Optimizer:
    if config.optimizer == "ranger":
        from pytorch_optimizer import Ranger

        return Ranger(encoder.parameters(), config.learning_rate)
    return torch.optim.AdamW(encoder.parameters(), config.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)


def start_from(folder: Path, encoder: Encoder) -> tuple[Tensor, int]:
    """Copy the weights of a trained encoder, whose generator may have had fewer layers.

    Returns: its mean latent [D] and how many offsets it adds.
    Raises TrainingError if the shapes do not fit.
    """
    model = read_model(folder)
    try:
        missing, unexpected = encoder.load_state_dict(model.encoder.state_dict(), strict=False)
    except RuntimeError as error:
        raise TrainingError(f"The encoder in {folder} has another shape than these settings ({error}).") from error
    if unexpected or any(not key.startswith("styles.") for key in missing):
        raise TrainingError(f"The encoder in {folder} has another shape than these settings; use its own.")
    return model.latent_avg[0], model.encoder.num_deltas
