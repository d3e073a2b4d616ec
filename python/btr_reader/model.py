"""T5 v1.1 models of `transformers` as plain weight containers: random, loaded, saved, always with an untied head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from .jsonl import read_json_object

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
# Copies of `shared.weight` under other names; a file holds it once.
_EMBEDDING_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def check_architecture(config: T5Config, where: str = "config") -> None:
    """Raises `ValueError` unless the configuration is T5 v1.1: gated GELU and an unscaled, untied output head."""
    if config.feed_forward_proj != "gated-gelu":
        raise ValueError(
            f"{where}: expected feed_forward_proj 'gated-gelu' (T5 v1.1), got {config.feed_forward_proj!r}"
        )
    if config.scale_decoder_outputs:
        raise ValueError(f"{where}: expected tie_word_embeddings false (T5 v1.1 has an output head of its own)")


def untie_output_head(model: T5ForConditionalGeneration) -> None:
    """Gives `lm_head` a parameter of its own.

    transformers 5 ties it to the embedding whatever the configuration says, and would then load both from one tensor.
    """
    model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))


def random_model(config: T5Config, seed: int = 0) -> T5ForConditionalGeneration:
    """A float32 model with T5's initialisation, the same for the same seed; the global generator is left alone."""
    check_architecture(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(config)
        untie_output_head(model)
        with torch.no_grad():
            model.lm_head.weight.normal_(std=config.d_model**-0.5)
    return model.eval()


def model_from_state(config: T5Config, state: dict[str, torch.Tensor], where: str) -> T5ForConditionalGeneration:
    """A model that takes over the tensors of `state` (T5 names) without copying them.

    Raises `ValueError` naming `where` for missing, unexpected or wrongly shaped tensors.
    """
    check_architecture(config, where)
    if "shared.weight" not in state:
        raise ValueError(f"{where}: tensor shared.weight is missing")
    state = {**state, **dict.fromkeys(_EMBEDDING_COPIES, state["shared.weight"])}
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
    untie_output_head(model)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    problems = [f"{name} is missing" for name in expected if name not in state]
    problems += [f"{name} is unexpected" for name in state if name not in expected]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in state and state[name].shape != shape
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise ValueError(f"{where}: tensor {'; tensor '.join(problems[:3])}{more}")
    model.load_state_dict(state, assign=True)
    model.set_input_embeddings(model.shared)
    return model.eval()


def load_config(directory: Path) -> tuple[T5Config, dict[str, Any]]:
    """The T5 configuration of a directory, and the plain JSON object it was read from."""
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{directory}: not a reader directory (no {CONFIG_FILE})")
    record = read_json_object(path, "not valid JSON")
    if record.get("model_type") != "t5":
        raise ValueError(f"{path}: expected a configuration with model_type 't5'")
    return T5Config.from_dict(dict(record)), record


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, mapped from disk; a damaged file is a `ValueError` naming it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged safetensors file: {error}") from None


def save_model(model: T5ForConditionalGeneration, directory: Path, section: dict[str, Any]) -> None:
    """Writes `config.json` (with our own section under `btr`) and `model.safetensors`."""
    config = model.config.to_dict()
    config.update(tie_word_embeddings=False, architectures=["T5ForConditionalGeneration"], btr=section)
    config.pop("scale_decoder_outputs", None)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    state = {name: t.contiguous() for name, t in model.state_dict().items() if name not in _EMBEDDING_COPIES}
    save_file(state, directory / WEIGHTS_FILE, metadata={"format": "pt"})
