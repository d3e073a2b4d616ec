"""Which of a kernel's configurations runs: the table shipped for measured GPUs, else the fastest, timed once.

A kernel offers a short list of configurations, the best guess first. What was found is kept in memory and in a file
per GPU and versions of Triton, torch and CUDA, below BTR_CACHE_DIR (by default ~/.cache/btr-kernels). Anything in
such a file that cannot be used is a miss. Nothing is timed during graph capture, in the interpreter or with
BTR_TUNE=0: then the first configuration runs.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton
from triton.runtime.errors import OutOfResources
from triton.testing import do_bench

from .common import INTERPRET

Config = dict[str, int]
Timer = Callable[[Callable[[], None]], float]

#: Milliseconds for which each configuration is timed, and those before them that warm up.
REPEAT_MS, WARM_UP_MS = 10, 2

#: {GPU: {kernel: {key: configuration}}}, as in the files of the cache: what `make gpu` found.
SHIPPED = Path(__file__).with_name("tuned.json")

_chosen: dict[tuple, Config] = {}
_unknown: set[tuple] = set()


@cache
def architecture(device: torch.device) -> int:
    """Whose configurations fit: 90 for GPUs with warp-group instructions and much shared memory, 80 for others, 0
    for the interpreter."""
    if device.type == "cpu":
        return 0
    major, _ = torch.cuda.get_device_capability(device)
    return 90 if major in (9, 10) else 80


def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU, which each want a program; those of an H100 or H200 where there is no GPU to ask, two
    in the interpreter."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 2 if INTERPRET else 132


def for_device(table: Mapping[int, Sequence[Config]], device: torch.device) -> Sequence[Config]:
    """The entry of the architecture, or of the next older one."""
    wanted = architecture(device)
    return table[max(known for known in table if known <= wanted and (known > 0) == (wanted > 0))]


def run(kernel: str, configs: Sequence[Config], key: tuple, launch: Callable[..., None], device: torch.device) -> None:
    """Launch a kernel with the best of its configurations for arguments described by `key`.

    `launch(**config)` runs it; it may run several times, so it must give the same results every time.
    """
    launch(**choose(kernel, configs, key, launch, device))


def choose(
    kernel: str,
    configs: Sequence[Config],
    key: tuple,
    launch: Callable[..., None],
    device: torch.device,
    timer: Timer | None = None,
) -> Config:
    if len(configs) == 1:
        return configs[0]
    place = (device, kernel, key)
    if (known := _chosen.get(place)) is not None:
        return known
    name = ",".join(map(str, key))
    if place not in _unknown:
        if (known := _known(_file(device), kernel, name, configs)) is not None:
            return _chosen.setdefault(place, known)
        _unknown.add(place)  # files are read once
    if not _may_time(device):
        return configs[0]  # a later call may time
    try:
        found = _fastest(configs, launch, timer or _seconds)
    except torch.OutOfMemoryError:  # timing takes memory that the call itself does not
        return configs[0]
    _store(_file(device), kernel, name, found)
    return _chosen.setdefault(place, found)


def _may_time(device: torch.device) -> bool:
    if INTERPRET or device.type != "cuda" or os.environ.get("BTR_TUNE", "1") == "0":
        return False
    return not torch.cuda.is_current_stream_capturing()


def _fastest(configs: Sequence[Config], launch: Callable[..., None], timer: Timer) -> Config:
    """A configuration that does not fit the GPU is left out."""
    times: list[tuple[float, Config]] = []
    for config in configs:
        try:
            times.append((timer(lambda config=config: launch(**config)), config))
        except OutOfResources:
            continue
    if not times:
        raise RuntimeError(f"no configuration fits this GPU: {list(configs)}")
    return min(times, key=lambda entry: entry[0])[1]


def _seconds(launch: Callable[[], None]) -> float:
    """The median of launches that find the cache cold, as a layer's weight does after all others of its model. Emptying
    it also keeps the GPU busy until Python has launched: of small kernels the time is their own."""
    return do_bench(launch, WARM_UP_MS, REPEAT_MS, return_mode="median") / 1000


@cache
def _file(device: torch.device) -> Path:
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    versions = f"triton-{triton.__version__}_torch-{torch.__version__}_cuda-{torch.version.cuda}"
    folder = Path(os.environ.get("BTR_CACHE_DIR") or Path.home() / ".cache" / "btr-kernels")
    return folder / re.sub(r"[^\w.+-]+", "-", f"{gpu}_{versions}.json")


def stored(device: torch.device) -> dict[str, Any]:
    """{kernel: {key: configuration}}: what has been found on a GPU with these versions."""
    return _read(_file(device))


def _known(path: Path, kernel: str, name: str, configs: Sequence[Config]) -> Config | None:
    """The entry of the shipped table or else of the cache, if it is one of the configurations."""
    for table in (_read(SHIPPED).get(path.name.split("_triton-")[0]), _read(path)):
        try:
            entry = table[kernel][name]
        except (KeyError, TypeError):
            continue
        if entry in configs:
            return entry
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _store(path: Path, kernel: str, name: str, config: Config) -> None:
    """Replace the file by one with the entry. Two processes may lose each other's entry, never the file."""
    content = _read(path)
    entries = content.get(kernel)
    content[kernel] = {**(entries if isinstance(entries, dict) else {}), name: config}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            json.dump(content, file, indent=1, sort_keys=True)
        os.replace(file.name, path)
    except OSError:
        return  # a cache that cannot be written costs time only
