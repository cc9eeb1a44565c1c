"""Several processes on one batch, started by `accelerate launch`; alone, everything here does nothing.

All processes draw the same random numbers for the whole batch, and each computes its share of the samples: every
`count`-th one. Gradients are averaged once per step, and batch statistics are those of the whole batch. So two
processes compute what one would, up to rounding; and one saved random state restores them all. Only what the
networks draw themselves (noise maps, augmentation) is the same in all processes, instead of new for each sample.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from errors import TrainingError


class Processes:
    """The processes of this run.

    Args: device: "cpu", "cuda", or "auto": a GPU where there is one, else the CPU.
    Attributes:
        rank, count: which of how many this is.
        device: the one to compute on, of its own for each process where there are several GPUs.
        main: whether this process saves, measures and prints.
    Raises TrainingError for a GPU that is not there.
    """

    def __init__(self, device: str):
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.rank, self.count, self.device = 0, 1, torch.device(device)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            state = PartialState(cpu=self.device.type == "cpu")
            self.rank, self.count, self.device = state.process_index, state.num_processes, state.device
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise TrainingError(f"PyTorch finds no GPU for --device {device} here; use --device cpu.")
        self.main = self.rank == 0

    def check(self, *sizes: int, parts: int = 1) -> None:
        """Raises TrainingError unless batches of these sizes divide into `parts` for each process."""
        shares = self.count * parts
        if parts < 1 or any(size % shares for size in sizes):
            raise TrainingError(
                f"{self.count} processes cannot share batches of {sizes} in {parts} parts; use multiples of {shares}."
            )

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The others do this after the main process, and find what it has downloaded."""
        if not self.main:
            self.wait()
        try:
            yield
        finally:
            if self.main:
                self.wait()

    def agree(self, images: int, facts: str = "") -> None:
        """Raises TrainingError unless all processes go on after as many pictures, and say the same of their networks.

        Args: facts: names of the losses, digests of weights.
        """
        mark = int(hashlib.sha256(facts.encode()).hexdigest()[:15], 16)
        counts, marks = self.gather(torch.tensor([[images, mark]], device=self.device)).T.tolist()
        if len(set(counts)) > 1:
            raise TrainingError(
                f"The processes would go on after {', '.join(map(str, counts))} pictures: they do not read the same "
                "state. Let --out be a folder that all machines share, or copy its state.pt to each of them."
            )
        if len(set(marks)) > 1:
            raise TrainingError(
                f"The processes would train different networks (this one: {facts}). Let all machines have the same "
                "files: --generator, --start, and what checkpoints/networks.toml names."
            )

    def share(self, batch: Tensor) -> Tensor:
        """[n, …] of all processes -> [n / count, …], this one's samples."""
        return batch[self.rank :: self.count]

    def gather(self, part: Tensor) -> Tensor:
        """[n / count, …] -> [n, …], the samples of all processes in their order, without gradient."""
        if self.count == 1:
            return part.detach()
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.count)]
        torch.distributed.all_gather(parts, part.detach().contiguous())
        return torch.stack(parts, 1).flatten(0, 1)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all processes, without gradient."""
        value = value.detach()
        if self.count > 1:
            value = value.clone()
            torch.distributed.all_reduce(value)
            value = value / self.count
        return value

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the mean of all processes' gradients, in one exchange."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.count > 1 and gradients:
            flat = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def join_batch_norms(self, network: nn.Module) -> None:
        """Let the network's batch norms use the statistics of the whole batch."""
        if self.count > 1:
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.__class__ = JointBatchNorm

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            torch.distributed.barrier()


class Precision:
    """Half precision where it is asked for: bfloat16, or float16 with losses scaled so that gradients do not vanish.

    Attributes:
        autocast: the context to compute the networks in.
        scaler: of the losses; it does nothing but in float16.
    """

    def __init__(self, name: str, device: torch.device):
        dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name, torch.float32)
        self.autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, scaled."""
        self.scaler.scale(loss).backward()

    def step(self, *optimizers: torch.optim.Optimizer) -> None:
        """A step of each, unless its gradients have overflown; call it once for the optimizers of one scaled loss."""
        for optimizer in optimizers:
            self.scaler.step(optimizer)


class JointBatchNorm(nn.BatchNorm2d):
    """Batch norm over all processes' samples; unlike `nn.SyncBatchNorm` it exists on CPUs too."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        count = torch.distributed.get_world_size()
        y = x.float()
        moments = torch.stack([y.mean((0, 2, 3)), y.square().mean((0, 2, 3))])  # [2, c]
        mean, square = all_reduce(moments) / count
        variance = (square - mean.square()).clamp(min=0)
        with torch.no_grad():
            size = count * x.numel() // x.shape[1]
            self.running_mean.lerp_(mean.detach(), self.momentum)
            self.running_var.lerp_(variance.detach() * size / max(size - 1, 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * torch.rsqrt(variance + self.eps)  # [c]
        y = (y - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]
        return y.to(x.dtype)
