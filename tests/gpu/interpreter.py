"""What the tests need of Triton's interpreter beyond running a kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from triton.runtime import interpreter


@contextmanager
def end_of_grid(programs: int) -> Iterator[None]:
    """Within the block a launch runs only the last few programs of its one-dimensional grid, and copies nothing."""
    function, executor = interpreter.InterpretedFunction, interpreter.GridExecutor
    builder = type(interpreter.interpreter_builder)
    saved = function.run, executor._restore_args_dev, builder.set_grid_dim, builder.set_grid_idx
    run, _, set_dim, set_index = saved
    first, total = 0, 0

    def run_end(self, *args, grid, **kwargs):
        nonlocal first, total
        (total,) = grid
        first = max(0, total - programs)
        return run(self, *args, grid=(total - first,), **kwargs)

    function.run = run_end
    executor._restore_args_dev = lambda *args: None  # CPU tensors were shared with the kernel, not copied
    builder.set_grid_dim = lambda self, x, y, z: set_dim(self, total, y, z)
    builder.set_grid_idx = lambda self, x, y, z: set_index(self, first + x, y, z)
    try:
        yield
    finally:
        function.run, executor._restore_args_dev, builder.set_grid_dim, builder.set_grid_idx = saved
