"""Argument checks shared by all operators: each names the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
NORMS = ("rms", "layer")


def is_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.layout is not torch.strided:
        raise TypeError(f"{name}: expected a dense tensor (layout torch.strided), got layout {value.layout}")


def is_optional_tensor(name: str, value: object) -> None:
    if value is not None:
        is_tensor(name, value)


def are_optional_tensors(**values: object) -> None:
    """The same for several arguments; a call for each would take longer than the check."""
    for value in values.values():
        if value is not None and (not isinstance(value, Tensor) or value.layout is not torch.strided):
            for name, each in values.items():
                is_optional_tensor(name, each)


def is_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected a bool, got {type(value).__name__}")


def is_int(name: str, value: object, low: int) -> None:
    # torch.SymInt is what an int becomes under torch.compile with dynamic shapes.
    # The exact type first, since asking an abstract class takes longer than a small operator.
    if type(value) is not int and (isinstance(value, bool) or not isinstance(value, (Integral, torch.SymInt))):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value < low:
        raise ValueError(f"{name}: expected an int >= {low}, got {value}")


def is_number(name: str, value: object, low: float, *, above: bool = False) -> None:
    """A float or int that is at least `low`, or above it; NaN is neither."""
    if type(value) not in (float, int) and (
        isinstance(value, bool) or not isinstance(value, (Real, torch.SymFloat, torch.SymInt))
    ):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not (value > low if above else value >= low):
        raise ValueError(f"{name}: expected a number {'>' if above else '>='} {low}, got {value}")


def is_one_of(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected {_either([repr(c) for c in choices])}, got {value!r}")


def has_dtype(name: str, tensor: Tensor, allowed: Sequence[torch.dtype]) -> None:
    is_tensor(name, tensor)  # the dispatcher lets None pass for a tensor
    if tensor.dtype not in allowed:
        raise TypeError(f"{name}: expected dtype {_either(allowed)}, got {tensor.dtype}")


def is_dtype(name: str, dtype: object, allowed: Sequence[torch.dtype]) -> None:
    if dtype not in allowed:
        raise TypeError(f"{name}: expected {_either(allowed)}, got {dtype}")


def has_shape(name: str, tensor: Tensor, shape: Sequence[int], meaning: str) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected shape {meaning} = {tuple(shape)}, got {tuple(tensor.shape)}")


def has_dims(name: str, tensor: Tensor, count: int, meaning: str, *, at_least: bool = False) -> None:
    if not (tensor.dim() >= count if at_least else tensor.dim() == count):
        raise ValueError(f"{name}: expected shape {meaning}, got {tuple(tensor.shape)}")


def on_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{name}: expected device {device}, as the other arguments, got {tensor.device}")


def floats(name: str, x: Tensor) -> None:
    """Float vectors (..., d), d >= 1."""
    has_dtype(name, x, FLOATS)
    vectors(name, x, "(..., d)")


def packed(name: str, bits: Tensor, dims: int = 1, meaning: str = "(..., w)") -> None:
    """Packed tokens (..., w), w >= 1 bytes."""
    has_dtype(name, bits, (torch.uint8,))
    vectors(name, bits, meaning, dims)


def packed_for(name: str, bits: Tensor, d: int) -> None:
    """Packed tokens whose bytes hold exactly d channels."""
    packed(name, bits)
    if bits.shape[-1] != (d + 7) // 8:
        raise ValueError(
            f"{name}: expected {(d + 7) // 8} bytes in the last dimension for d = {d}, got shape {tuple(bits.shape)}"
        )


def channels(name: str, vector: Tensor | None, d: int, device: torch.device, meaning: str = "(d,)") -> None:
    """An optional float vector with one entry a channel."""
    if vector is not None:
        has_dtype(name, vector, FLOATS)
        has_shape(name, vector, (d,), meaning)
        on_device(name, vector, device)


def per_token(name: str, values: Tensor | None, shape: Sequence[int], device: torch.device) -> None:
    """An optional float for every token."""
    if values is not None:
        has_dtype(name, values, FLOATS)
        has_shape(name, values, shape, "(...)")
        on_device(name, values, device)


def integers(name: str, values: Tensor | None, shape: Sequence[int], meaning: str, device: torch.device) -> None:
    """An optional int32 or int64 tensor of a given shape."""
    if values is not None:
        has_dtype(name, values, (torch.int32, torch.int64))
        has_shape(name, values, shape, meaning)
        on_device(name, values, device)


def within(name: str, values: Tensor, low: int, high: int) -> None:
    """Integers inside a tensor; reads them."""
    if values.numel():
        least, most = (int(v) for v in values.aminmax())
        if least < low or most > high:
            raise ValueError(f"{name}: expected values from {low} to {high}, got {least} to {most}")


def offsets(name: str, cu_seqlens: Tensor, device: torch.device) -> None:
    """Offsets of packed passages, int32 or int64 (B + 1,)."""
    has_dtype(name, cu_seqlens, (torch.int32, torch.int64))
    has_dims(name, cu_seqlens, 1, "(B + 1,)")
    on_device(name, cu_seqlens, device)
    if cu_seqlens.shape[0] < 1:
        raise ValueError(f"{name}: expected shape (B + 1,), got (0,)")


def norm(name: str, value: object) -> None:
    if value is not None and value not in NORMS:
        raise ValueError(f"{name}: expected None, 'rms' or 'layer', got {value!r}")


def without_gradient(operator: str, **inputs: Tensor | None) -> None:
    """None of the inputs asks for a gradient, which the operator does not have."""
    if not torch.is_grad_enabled():
        return
    for name, value in inputs.items():
        if value is not None and value.requires_grad:
            raise ValueError(
                f"{name}: expected a tensor that does not require grad, since {operator} has no gradient; "
                "call it under torch.no_grad()"
            )


def writable(out: Tensor | None, *inputs: Tensor | None) -> None:
    """Writing into `out` is not differentiable, so nothing may ask for a gradient through it."""
    if out is None or not torch.is_grad_enabled():
        return
    if out.requires_grad:
        raise ValueError("out: expected a tensor that does not require grad")
    for t in inputs:
        if t is not None and t.requires_grad:
            raise ValueError(
                "out: expected None where an input requires grad, since writing into out is not differentiable"
            )


def vectors(name: str, x: Tensor, meaning: str, dims: int = 1) -> Sequence[int]:
    """The shape of x, which has at least `dims` dimensions, the last of them not empty."""
    shape = x.shape
    if len(shape) < dims:
        raise ValueError(f"{name}: expected shape {meaning}, got {tuple(shape)}")
    if shape[-1] < 1:
        raise ValueError(f"{name}: expected at least one channel in the last dimension, got shape {tuple(shape)}")
    return shape


def _either(choices: Sequence[object]) -> str:
    return " or ".join(str(c) for c in choices)
