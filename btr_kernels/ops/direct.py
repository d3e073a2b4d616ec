"""The short way from a public function to an operator: past PyTorch's dispatcher, where that would change nothing.

`torch.ops.btr.*` go from Python to C++ and back before they reach `define`'s implementation, which costs more than
packing a few tokens (benchmarks/notes/calls.md). The dispatcher is there for tensors and modes that want to see an
operator instead of its result. `key` looks for all of them; where it finds none, `define` calls the implementation
itself: the same checks, the same allocation, the same backend.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad, profiler

calls = type("calls", (), {"__doc__": "The operators by name, `<name>_out` included, as public functions call them."})()

#: Arguments that are what they look like: not a torch.SymInt, no subclass that PyTorch would convert.
_CONSTANTS = frozenset((type(None), bool, int, float, str, torch.dtype))

_is_compiling = torch.compiler.is_compiling
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_transform = torch._C._functorch.peek_interpreter_stack
_trace = torch._C._get_tracing_state
_is_grad_enabled = torch.is_grad_enabled


def _refuse_tangents(args: tuple) -> None:
    """PyTorch would drop them silently: operators written in Python have no forward-mode derivatives."""
    for value in args:
        if isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None:
            raise NotImplementedError(
                "forward-mode derivatives (torch.func.jvp, torch.autograd.forward_ad) are not implemented; use backward"
            )


def key(args: tuple) -> tuple | None:
    """None if the dispatcher has to see this call, else what the operator's checks depend on.

    That is the shape and dtype of tensors, and all other arguments. No two calls share a key by chance: only a tensor
    puts a torch.Size into it, and its dtype behind that.
    """
    if _is_compiling():  # first: Dynamo then reads no further
        return None
    if forward_ad._current_level >= 0:
        _refuse_tangents(args)
        return None
    if (
        _dispatch_modes()  # FakeTensorMode, make_fx, whoever counts or logs operators
        or _function_modes()
        or _transform() is not None  # vmap, torch.func.grad, functionalize
        or _trace() is not None  # torch.jit.trace
        or profiler._is_profiler_enabled  # shows operators by name
    ):
        return None
    found = []
    for value in args:
        kind = type(value)
        if kind is Tensor or kind is torch.nn.Parameter:  # any other subclass may override operators
            if not value.is_cpu or (value.requires_grad and _is_grad_enabled()):
                return None
            if value.is_neg() or value._is_zerotensor():  # their memory does not hold their values
                return None
            found.append(value.shape)
            found.append(value.dtype)
        elif kind in _CONSTANTS:
            found.append(kind)  # 1, 1.0 and True are equal
            found.append(value)
        else:
            return None
    return tuple(found)
