"""Builds the CPU kernels on the machine that runs them, once a source and processor, and loads them.

They are one small file without headers of torch: compiling takes two seconds. Where there is no compiler, or torch's
library has no BLAS to call, the tensor operations of `model.branches` do the same work, slower.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("kernels.cpp")
# Sums in any order and no traps, so that loops vectorise; NaN and infinity keep their meaning.
_FLAGS = [
    "-O3",
    "-march=native",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fassociative-math",
    "-freciprocal-math",
    "-fno-signed-zeros",
    "-shared",
    "-fPIC",
]
_WIDE = "-mprefer-vector-width=512"
_TIMEOUT_S = 120


class NoKernels(Exception):
    """There are none on this machine; says why."""


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL:
    """The kernels, built if they were not before. Raises NoKernels."""
    if os.environ.get("DINOCTL_NATIVE") == "0":
        raise NoKernels("DINOCTL_NATIVE is 0")
    blas = _blas()
    library, command = _library()
    kernels = _opened(library) if library.exists() else None
    if kernels is None:  # not built yet, or what lies there was damaged
        _compile(command, library)
        kernels = _opened(library)
    if kernels is None:
        raise NoKernels(f"{library} was built, but cannot be loaded")
    kernels.dinoctl_use(_address(blas, "sgemm_"), _address(blas, "MKL_Set_Num_Threads_Local"))
    return kernels


@lru_cache(maxsize=1)
def why_not() -> str | None:
    """Why there are no kernels here; None: there are."""
    try:
        load()
    except NoKernels as error:
        return str(error)
    return None


def _blas() -> ctypes.CDLL:
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise NoKernels(f"torch has no {path.name} here") from error
    if not hasattr(library, "sgemm_"):
        raise NoKernels("torch's library has no sgemm_ to call")
    return library


def _address(library: ctypes.CDLL, name: str) -> ctypes.c_void_p:
    return ctypes.cast(getattr(library, name), ctypes.c_void_p) if hasattr(library, name) else ctypes.c_void_p()


def _opened(library: Path) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(library))
    except OSError:
        return None


def _library() -> tuple[Path, list[str]]:
    """Where the kernels are kept, and the command that builds them."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++")), None)
    if compiler is None:
        raise NoKernels("there is no C++ compiler (g++)")
    flags = [*_FLAGS, _WIDE] if platform.machine() == "x86_64" else _FLAGS
    name, command = f"kernels-{_key(compiler, flags)}.so", [*compiler.split(), *flags]
    installed = Path(sys.prefix) / "share" / "dinoctl" / name  # of an image, for the processor that it was made on
    return installed if installed.exists() else _cache() / name, command


def _cache() -> Path:
    """Where a node keeps what it made. Never the directory for temporary files: what lies here is run as code."""
    try:
        chosen = os.environ.get("DINOCTL_CACHE_DIR")
        usual = os.environ.get("XDG_CACHE_HOME")
        directory = Path(chosen) if chosen else Path(usual or Path.home() / ".cache") / "dinoctl"
    except RuntimeError as error:
        raise NoKernels("there is no home directory to keep them in; set DINOCTL_CACHE_DIR") from error
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise NoKernels(f"{directory} cannot be made: {error.strerror}; set DINOCTL_CACHE_DIR") from error
    return directory


def _compile(command: list[str], library: Path) -> None:
    # Many ranks may come here at once: each builds its own, and the last rename wins; all are equal.
    try:
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / library.name
            done = subprocess.run(  # noqa: S603 - the user's compiler and our own source
                [*command, "-o", str(made), str(SOURCE)],
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
            if done.returncode:
                raise NoKernels(f"{command[0]} failed: {(done.stderr.strip().splitlines() or ['no message'])[0]}")
            made.replace(library)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoKernels(f"the kernels cannot be built in {library.parent}: {error}") from error


def _key(compiler: str, flags: list[str]) -> str:
    """What decides the machine code: source, flags, compiler, processor."""
    found = shutil.which(compiler.split()[0])
    about = f"{compiler} {Path(found).stat().st_mtime_ns}" if found else compiler  # another version is another file
    parts = [SOURCE.read_text(encoding="utf-8"), about, *flags, platform.machine(), sys.platform, _processor()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
