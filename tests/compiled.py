"""The small preloaded libraries of the fault tests, compiled where there is a C compiler."""

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest


@cache
def compiler() -> list[str] | None:
    """Return a C compiler: the system's, or that of the PyPI package ziglang if it is installed."""
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    zig = [sys.executable, "-m", "ziglang"]
    found = subprocess.run([*zig, "version"], capture_output=True, check=False)
    return [*zig, "cc"] if found.returncode == 0 else None


def library(source: Path, directory: Path) -> Path:
    """Compile `source` for LD_PRELOAD; skip the test visibly if that is impossible."""
    words = compiler()
    if words is None:
        pytest.skip("there is no C compiler (cc, gcc, clang, or the package ziglang)")
    built = directory / f"{source.stem}.so"
    options = ["-O1", "-shared", "-fPIC", "-o", str(built), str(source), "-ldl", "-lpthread"]
    subprocess.run([*words, *options], check=True)
    return built
