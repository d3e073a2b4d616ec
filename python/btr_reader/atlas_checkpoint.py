"""Original Atlas checkpoints -> reader directories.

An original checkpoint is `<dir>/model.pth.tar`: a `torch.save` of the training state, options object included. It is a
pickle, so it is read with `weights_only=True`: tensors and plain containers, and a named list of classes beside them.
"""

from __future__ import annotations

import argparse
import pickle
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration

from .model import model_from_state
from .reader import Reader
from .settings import CutPoint, ReaderSettings, Shape, default_cut_layer, t5_config
from .tokenizer import ReaderTokenizer

CHECKPOINT_FILE = "model.pth.tar"
# Longest first: `reader.` is a prefix of the other.
_PREFIXES = ("reader.module.", "reader.")


class OpaqueOptions(argparse.Namespace):
    """Stands in for the class of a checkpoint's options object: holds its attributes, runs none of its code."""


def load_atlas_model(directory: str | Path, options_classes: tuple[str, ...] = ()) -> T5ForConditionalGeneration:
    """The reader of an original Atlas checkpoint, in float32; its shape follows from its tensors.

    options_classes: full names (`package.module.Class`) of further classes that occur in the pickle. They are not
    imported: their objects are read as plain attributes. A class that is not listed is refused with a `ValueError`
    naming it, as are missing tensors and readers that are not T5 v1.1.
    """
    path = Path(directory) / CHECKPOINT_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{directory}: not an Atlas checkpoint (no {CHECKPOINT_FILE})")
    checkpoint = _load_safely(path, options_classes)
    tensors = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if not isinstance(tensors, dict):
        raise ValueError(f"{path}: expected a dictionary with the entry 'model'")
    state = _reader_tensors(tensors, path)
    return model_from_state(t5_config(infer_shape(state, str(path))), state, str(path))


def convert_atlas(
    directory: str | Path,
    tokenizer: ReaderTokenizer,
    cut_layer: int | None = None,
    cut_point: CutPoint = "attention_output",
    options_classes: tuple[str, ...] = (),
) -> Reader:
    """An original Atlas checkpoint and its T5 tokenizer as a `Reader`, cut where the paper cuts it unless told."""
    model = load_atlas_model(directory, options_classes)
    layers = model.config.num_layers
    settings = ReaderSettings(default_cut_layer(layers) if cut_layer is None else cut_layer, cut_point)
    return Reader(model, tokenizer, settings)


def _load_safely(path: Path, options_classes: tuple[str, ...]) -> object:
    allowed = [argparse.Namespace, defaultdict, dict, *((OpaqueOptions, name) for name in options_classes)]
    try:
        with torch.serialization.safe_globals(allowed):
            refused = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            if not refused:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path}: not a checkpoint that can be read safely: {str(error).splitlines()[0]}") from None
    raise ValueError(
        f"{path}: refused to unpickle the class {', '.join(sorted(refused))}; if it is the options object, name it "
        "(--options-class) to have it read as plain attributes"
    )


def _reader_tensors(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        found = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix) and isinstance(tensor, Tensor)
        }
        if found:
            return {name: tensor.detach().float() for name, tensor in found.items()}
    raise ValueError(f"{path}: no tensor of a reader (named {' or '.join(p + '...' for p in _PREFIXES)})")


def infer_shape(state: dict[str, Tensor], where: str) -> Shape:
    """The sizes of a T5 v1.1 reader from its tensors; raises `ValueError` naming the tensor that is missing."""

    def size(name: str, dimension: int) -> int:
        tensor = state.get(name)
        if tensor is None or tensor.ndim != 2:
            raise ValueError(f"{where}: tensor {name} is missing or not a matrix: not a T5 v1.1 reader")
        return tensor.shape[dimension]

    def depth(stack: str) -> int:
        return len({name.split(".")[2] for name in state if name.startswith(f"{stack}.block.")})

    attention = "encoder.block.0.layer.0.SelfAttention"
    heads = size(f"{attention}.relative_attention_bias.weight", 1)
    layers = depth("encoder")
    if depth("decoder") != layers:
        raise ValueError(f"{where}: {layers} encoder layers but {depth('decoder')} decoder layers")
    size("lm_head.weight", 0)
    return Shape(
        d_model=size("shared.weight", 1),
        d_ff=size("encoder.block.0.layer.1.DenseReluDense.wi_0.weight", 0),
        heads=heads,
        head_size=size(f"{attention}.q.weight", 0) // heads,
        layers=layers,
        cut_layer=default_cut_layer(layers),
        vocabulary=size("shared.weight", 0),
    )
