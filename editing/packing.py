"""Sliders in one file that people pass on: safetensors with the words as metadata. Nothing read from it is trusted."""

import json

from safetensors.torch import load

from editing.directions import Direction, DirectionSet
from errors import DirectionError

MOST = 40  # sliders in a file
LARGEST = 1 << 26  # bytes of a file: forty sliders of the largest published model take 16 MB
LONGEST_LABEL = 40
FARTHEST = 1e4  # no code of a model is further from 0; beyond, arithmetic overflows


def unpack(data: bytes, group: str, num_layers: int, latent_dim: int) -> DirectionSet:
    """What `DirectionSet.packed` made or `DirectionSet.save` wrote, under one heading.

    Raises: DirectionError for what these did not write, for sliders of another model, and for numbers that no slider
    has.
    """
    try:
        if len(data) > LARGEST:
            raise ValueError("too large")
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        words, tensors = json.loads(header["__metadata__"]["directions"]), load(data)
        if set(words) != set(tensors) or not 0 < len(words) <= MOST:
            raise ValueError("names")
        found = {}
        for name, word in words.items():
            label = " ".join(str(word["label"]).split())[:LONGEST_LABEL]
            low, high = map(float, word["range"])
            found[name] = Direction(label or name, group, low, high, tensors[name])
        directions = DirectionSet(found)
    except Exception as error:  # whatever decoders make of a hostile file
        raise DirectionError(
            "This file holds no sliders that can be read; choose a .safetensors file that was saved on this page."
        ) from error
    directions.check_fits(num_layers, latent_dim)
    for each in directions.values():
        if not max(-each.low, each.high) * each.vectors.abs().max() <= FARTHEST:
            raise DirectionError(
                f"{each.label!r} in this file moves a face beyond all numbers; remove it from the file."
            )
    return directions
