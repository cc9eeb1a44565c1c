"""Models on disk: the published .pt layout, and this project's folder of `model.safetensors` and `config.json`."""

import argparse
import contextlib
import json
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from e4e_core.models.e4e import DTYPES, E4E, FFHQ_TEMPLATE, PASSES
from e4e_core.models.encoder import Encoder, EncoderConfig
from e4e_core.models.stylegan2 import FFHQ_CHANNELS, Generator, GeneratorConfig
from errors import ModelError

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FORMAT = 1
PARTS = {"generator": GeneratorConfig, "encoder": EncoderConfig}
ENCODER_TYPES = {  # published name -> kind, trunk, channels of the input
    "Encoder4Editing": ("e4e", "irse", 3),
    "GradualStyleEncoder": ("psp", "irse", 3),
    "SingleStyleCodeEncoder": ("w", "irse", 3),
    "ProgressiveBackboneEncoder": ("e4e", "irse", 6),  # ReStyle's
    "ResNetProgressiveBackboneEncoder": ("e4e", "resnet", 6),
    "BackboneEncoder": ("psp", "irse", 6),
    "ResNetBackboneEncoder": ("psp", "resnet", 6),
}
RESNET_STEM = {"conv1": "input_layer.0", "bn1": "input_layer.1", "relu": "input_layer.2"}  # published: here
FACE_DATA_SETS = ("ffhq", "celeb")  # how the published `dataset_type`s of faces begin
REFUSED = re.compile(r"GLOBAL ([\w.]+)")  # how torch.load names what it will not import


def read_published(path: Path, name: str) -> E4E:
    """A checkpoint laid out as e4e's and pSp's authors publish theirs: `state_dict`, `latent_avg`, `opts`.

    Nothing in the file is executed.

    Raises: ModelError if it is broken, would need code to be run, or is not such a checkpoint.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # some files keep `opts` in one
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch.load raises whatever the bytes provoke
        if isinstance(error, pickle.UnpicklingError):
            refused = REFUSED.search(str(error))
            reason = f"it asks for {refused[1]}" if refused else "it is no plain checkpoint"
            raise ModelError(
                f"{path} is refused because opening it could run code ({reason}); "
                "use a file that holds tensors and plain settings only."
            ) from error
        raise ModelError(f"{path} cannot be read as a checkpoint; it may be incomplete, so fetch it again.") from error
    try:
        return from_published(content, name)
    except ModelError as error:
        raise ModelError(f"{path} cannot be used: {error}") from error


def from_published(content: Mapping[str, Any], name: str) -> E4E:
    """The model in the contents of a published checkpoint; tensors are taken over, not copied.

    Args:
        content: `state_dict` with the keys `encoder.*` and `decoder.*`, `opts`, and `latent_avg` [L, D] or [D];
            a missing `latent_avg` is computed.
    Raises: ModelError if something else is missing or does not fit.
    """
    try:
        opts = content["opts"]
        opts = opts if isinstance(opts, Mapping) else vars(opts)
        state = _renamed(content["state_dict"], RESNET_STEM)
        generator, encoder = _published_shape(state, opts)
        domain = str(opts.get("dataset_type", ""))
        template = opts.get("template", FFHQ_TEMPLATE if domain.startswith(FACE_DATA_SETS) else None)
        settings = {
            "name": name,
            "template": template and tuple(template),
            "aspect": tuple(opts.get("aspect", (4, 3) if domain.startswith("cars") else (1, 1))),
            "start_from_latent_avg": bool(opts.get("start_from_latent_avg", True)),
            "passes": int(opts.get("n_iters_per_batch", PASSES)),
        }
        latent_avg = content.get("latent_avg")
        shape = (generator.num_layers, generator.latent_dim)
        state["latent_avg"] = torch.zeros(shape) if latent_avg is None else latent_avg.float().expand(shape).clone()
        num_deltas = int(opts.get("num_deltas", encoder.num_layers - 1))
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else _first_line(error)
        raise ModelError(
            f"it is not laid out like a published e4e or pSp checkpoint of state_dict, latent_avg, opts ({reason})."
        ) from error
    model = _build(generator, encoder, num_deltas, settings, state)
    if latent_avg is None:
        with torch.no_grad():
            model.latent_avg = model.decoder.mean_latent().expand(shape).clone()
    return model


def _published_shape(state: Mapping[str, Tensor], opts: Mapping[str, Any]) -> tuple[GeneratorConfig, EncoderConfig]:
    """Kind of encoder from the settings, every width from the tensors; the settings' resolution must be theirs."""
    if opts["encoder_type"] not in ENCODER_TYPES:
        raise ValueError(f"encoder_type {opts['encoder_type']} is none of {', '.join(ENCODER_TYPES)}")
    kind, trunk, inputs = ENCODER_TYPES[opts["encoder_type"]]

    def count(pattern: str) -> int:
        return sum(re.fullmatch(pattern, key) is not None for key in state)

    parts = {key.removeprefix("decoder."): value for key, value in state.items() if key.startswith("decoder.")}
    generator = GeneratorConfig.from_state(parts)
    size = opts.get("stylegan_size") or opts["output_size"]
    if generator.resolution != size:
        raise ValueError(f"the settings name a generator of {size} px, the tensors are one of {generator.resolution}")
    conv = "res_layer.1" if trunk == "irse" else "conv1"
    blocks = count(rf"encoder\.body\.\d+\.{re.escape(conv)}\.weight")
    widths = [state[f"encoder.body.{block}.{conv}.weight"].shape[0] for block in range(blocks)]
    stages = [(width, len(list(group))) for width, group in groupby(widths)]
    shape = {
        "kind": kind,
        "trunk": trunk,
        "inputs": inputs,
        "num_layers": generator.num_layers,
        "latent_dim": generator.latent_dim,
        "stem": state["encoder.input_layer.0.weight"].shape[0],
        "stages": tuple(width for width, _ in stages),
        "blocks": tuple(length for _, length in stages),
    }
    smallest, usual, largest = 1, EncoderConfig.input_size, 1024
    if kind != "w":
        halvings = [count(rf"encoder\.styles\.{i}\.convs\.\d+\.weight") for i in range(generator.num_layers)]
        shape["coarse"] = halvings.count(halvings[0])
        shape["middle"] = halvings.count(halvings[0] + 1)
        largest = usual = 2 ** (halvings[0] + len(stages))  # sides down to the next power of two have as many halvings
        smallest = largest // 2 + 1
        shape["pyramid"] = state["encoder.styles.0.convs.0.weight"].shape[0]
    shape["input_size"] = int(opts.get("input_size", usual))
    if not smallest <= shape["input_size"] <= largest:
        raise ValueError(f"an input of {shape['input_size']} px does not fit an encoder for {smallest} to {largest}")
    return generator, EncoderConfig(**shape)


def _renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors with the beginnings of the encoder's keys replaced: `encoder.conv1.*` -> `encoder.input_layer.0.*`."""
    for before, after in names.items():
        start = f"encoder.{before}."
        state = {key.replace(start, f"encoder.{after}.") if key.startswith(start) else key: state[key] for key in state}
    return dict(state)


def export_published(model: E4E, path: str | Path) -> None:
    """Write a model as a .pt file in the published layout, float32; `opts` is a plain dict.

    Others' programs add all offsets of an e4e encoder: those that were not trained yet become 0. They build networks of
    the published shapes only; a line on stderr says so where this is another one.
    Raises: ModelError if it cannot be written.
    """
    state = {key: _stored(value, torch.float32) for key, value in model.state_dict().items()}
    latent_avg = state.pop("latent_avg")
    shape = model.encoder.config
    if shape.kind == "e4e":
        for layer in range(model.encoder.num_deltas + 1, shape.num_layers):
            for key in (f"encoder.styles.{layer}.linear.weight", f"encoder.styles.{layer}.linear.bias"):
                state[key] = torch.zeros_like(state[key])
    if not has_published_shape(model):
        print(f"{path} is for this project only: others' programs build the published sizes.", file=sys.stderr)
    if shape.trunk == "resnet":
        state = _renamed(state, {here: published for published, here in RESNET_STEM.items()})
    types = {values: published for published, values in ENCODER_TYPES.items()}
    opts = {
        "encoder_type": types[shape.kind, shape.trunk, shape.inputs],
        "input_nc": shape.inputs,
        "input_size": model.input_size,
        "n_iters_per_batch": model.passes,
        "stylegan_size": model.resolution,
        "dataset_type": f"{model.name}_encode",
        "start_from_latent_avg": model.start_from_latent_avg,
        "num_deltas": model.encoder.num_deltas,
        "template": model.template and list(model.template),
        "aspect": list(model.aspect),
    }
    content = {"state_dict": state, "latent_avg": latent_avg, "opts": opts}
    _write(Path(path), lambda part: torch.save(content, part))


def has_published_shape(model: E4E) -> bool:
    """Whether others' programs, which have the published widths written into them, can build such a model."""
    generator, encoder = model.decoder.config, model.encoder.config
    published = GeneratorConfig(model.resolution, channels=FFHQ_CHANNELS[: len(generator.channels)])
    free = {name: getattr(encoder, name) for name in ("kind", "num_layers", "inputs", "trunk")}
    if encoder.inputs == 6:
        free |= {"coarse": encoder.num_layers, "middle": 0}
    return generator == published and encoder == EncoderConfig(**free)


def save_model(model: E4E, folder: str | Path, dtype: str = "float32") -> None:
    """Write `model.safetensors` and `config.json` into a folder; `load_model(folder)` reads them.

    Args:
        dtype: of the tensors on disk, "float32", "bfloat16" or "float16".
    Raises: ModelError if the folder cannot be written.
    """
    folder = Path(folder)
    config = {
        "format": FORMAT,
        "name": model.name,
        "template": model.template,
        "aspect": model.aspect,
        "start_from_latent_avg": model.start_from_latent_avg,
        "passes": model.passes,
        "num_deltas": model.encoder.num_deltas,
        "generator": asdict(model.decoder.config),
        "encoder": asdict(model.encoder.config),
    }
    state = {key: _stored(value, DTYPES[dtype]) for key, value in model.state_dict().items()}
    _write(folder / WEIGHTS, lambda part: save_file(state, part))
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    _write(folder / CONFIG, lambda part: part.write_text(text, encoding="utf-8"))  # last: it marks a whole folder


def read_folder(folder: Path) -> E4E:
    """The model that `save_model` wrote, on the CPU, its tensors mapped from the file. Raises ModelError."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if config["format"] != FORMAT:
            raise ValueError(f"format {config['format']}, not {FORMAT}")
        shapes = ({k: tuple(v) if isinstance(v, list) else v for k, v in config[part].items()} for part in PARTS)
        generator, encoder = (kind(**shape) for kind, shape in zip(PARTS.values(), shapes, strict=True))
        settings = {
            "name": config["name"],
            "template": config["template"] and tuple(config["template"]),
            "aspect": tuple(config["aspect"]),
            "start_from_latent_avg": config["start_from_latent_avg"],
            "passes": config.get("passes", PASSES),
        }
        state = load_file(folder / WEIGHTS)
        if max(generator.mapping_layers, encoder.num_layers, *encoder.blocks) > len(state):
            raise ValueError("its settings name more layers than it has tensors")  # nor would they ever be built
        model = _build(generator, encoder, config["num_deltas"], settings, state)
    except FileNotFoundError as error:
        raise ModelError(
            f"{folder} is not a model folder: {Path(error.filename or WEIGHTS).name} is missing; restore it."
        ) from error
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        SafetensorError,
        ModelError,
    ) as error:
        raise ModelError(f"The model in {folder} is broken ({_first_line(error)}); restore its files.") from error
    model.folder = folder
    return model


class Unfilled(TorchFunctionMode):
    """The modules made within it are not filled with random numbers.

    On the meta device there is nothing to fill, but PyTorch would import its compiler for it, which takes longer than
    all the rest of loading.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_):
            return kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def _build(
    generator: GeneratorConfig,
    encoder: EncoderConfig,
    num_deltas: int,
    settings: Mapping[str, Any],
    state: Mapping[str, Tensor],
) -> E4E:
    """A model around `state`, strictly; nothing is filled with random numbers first. Raises ModelError."""
    with torch.device("meta"), Unfilled():
        model = E4E(Encoder(encoder), Generator(generator), **settings)
    try:
        model.load_state_dict(state, strict=True, assign=True)
        model.encoder.num_deltas = num_deltas
    except (RuntimeError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise ModelError(f"its tensors do not fit its settings: {' '.join(lines[1:2] or lines)[:200]}.") from error
    return model.float().eval().requires_grad_(False)


def _first_line(error: Exception) -> str:
    """An error's text up to its first line break, without the full stop, to stand inside a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor.to(dtype).contiguous() if tensor.is_floating_point() else tensor


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside `path`, then put in place in one step: a reader never sees half a file."""
    part = path.with_name(f"{path.name}.{uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        os.replace(part, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{path} could not be written ({_first_line(error)}); check the folder and its space."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
