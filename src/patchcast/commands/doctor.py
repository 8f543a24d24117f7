"""`patchcast doctor`: versions, devices, defaults, the cache, and what is not installed, to copy into an issue."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from patchcast import __version__
from patchcast.backbones.support import made_for
from patchcast.files import cache_folder
from patchcast.options import Device

NEEDED = ("torch", "torchvision", "timm", "lightning", "scikit-learn", "numpy", "pillow", "pyarrow", "safetensors")
EXTRAS = {
    "demo": ("mlxtend", "patchcast demo"),
    "data": ("datasets", "hf: data and remote files"),
    "export": ("onnx", "export --to onnx"),
    "tensorboard": ("tensorboard", "--tensorboard"),
    "wandb": ("wandb", "--wandb"),
}
"""The optional groups of packages: one package of each, and what it is for."""


def doctor() -> bool:
    """Print what patchcast runs on; returns whether everything that it needs is there."""
    missing = [name for name in NEEDED if _version(name) is None]
    print(f"patchcast    {__version__}, Python {platform.python_version()}, {platform.platform()}")
    versions = {name: _version(name) or "MISSING" for name in NEEDED}
    print(f"packages     {_joined([f'{name} {found}' for name, found in versions.items()])}")
    if _version("timm") != made_for():
        print(f"             the table of backbones is for timm {made_for()}: names are looked up in timm itself")
    absent = {group: use for group, (package, use) in EXTRAS.items() if _version(package) is None}
    for group, use in absent.items():
        print(f"not there    {use}: pip install 'patchcast[{group}]'")
    if "torch" not in missing:
        _print_devices()
    cache = cache_folder()
    size = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) if cache.is_dir() else 0
    print(f"cache        {cache}, {size / 2**20:,.0f} MiB; it may be deleted at any time")
    if missing:
        print(f"patchcast needs {', '.join(missing)}: pip install patchcast", file=sys.stderr)
    return not missing


def _print_devices() -> None:
    import torch

    from patchcast.training.engine import default_precision, default_workers, usable_cores

    device: Device = "gpu" if torch.cuda.is_available() else "cpu"
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"processor    {usable_cores()} cores, {torch.get_num_threads()} threads, {capability}")
    if not torch.cuda.is_available():
        print("GPU          none that torch can use")
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        print(f"GPU {index}        {found.name}, {found.total_memory / 2**30:.0f} GiB")
    print(f"defaults     --device {device} --precision {default_precision(device)} --workers {default_workers(device)}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _joined(parts: list[str], width: int = 78, indent: str = " " * 13) -> str:
    """Comma-separated parts in lines of at most this width."""
    lines = [indent]
    for part in parts:
        if len(lines[-1]) + len(part) + 2 > width:
            lines.append(indent)
        lines[-1] += part if lines[-1] == indent else f", {part}"
    return "\n".join(lines).strip()
