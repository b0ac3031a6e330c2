"""Machine code from LLVM text: what the processor offers, and functions compiled for it that are reached by address.

The innermost loops are written as LLVM text for one shape and this machine's vectors, compiled in some hundredths of a
second when a plan first asks for the shape, and called from Numba kernels by their address. What was compiled is kept
beside Numba's own cache, in a folder of the user's that nobody else can write to: loading it is running it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numba
from llvmlite import ir

from mlcore.kernels.jit import cache_folder

DIGEST_BYTES = 32


@dataclass(frozen=True)
class Machine:
    """Vectors to compile for: `lanes` floats in a register, how many registers, LLVM's names for the processor, and
    whether it multiplies and adds pairs of bf16."""

    lanes: int
    registers: int
    cpu: str
    features: str
    has_bf16: bool = False

    def rows(self, vectors: int) -> int:
        """The most rows of a tile that leave a register for each vector of B and one for A."""
        return max(1, (self.registers - vectors - 1) // vectors)


AVX512 = Machine(16, 32, "skylake-avx512", "-prefer-256-bit")
AVX2 = Machine(8, 16, "haswell", "")
PORTABLE = Machine(4, 16, "", "")


@functools.cache
def this_machine() -> Machine:
    """The widest vectors that the processor has; numba's NUMBA_CPU_NAME, where set, says which processor to be."""
    if wanted := getattr(numba.config, "CPU_NAME", None):
        return {"skylake-avx512": AVX512, "haswell": AVX2}.get(wanted, PORTABLE)
    found = llvm.get_host_cpu_features()
    name, features = llvm.get_host_cpu_name(), found.flatten()
    if found.get("avx512f"):
        return Machine(16, 32, name, features + ",-prefer-256-bit", has_bf16=bool(found.get("avx512bf16")))
    if found.get("avx2") and found.get("fma"):
        return Machine(8, 16, name, features)
    return Machine(4, 16, name, features)


def compiled(text: str, name: str, machine: Machine) -> int:
    """The address of function `name` of a module of LLVM text; the code stays as long as the process."""
    shelf = Shelf.of(cache_folder())
    key = _key(text, machine)
    code = shelf.find(key) if shelf else None
    if code is None:
        code = _machine_code(text, machine)
        if shelf:
            shelf.keep(key, code)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target(machine))
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _ENGINES.append(engine)
    return int(engine.get_function_address(name))


def emit_call(builder: Any, address: Any, values: Sequence[Any]) -> None:
    """In an intrinsic: call the function without a result that lies at `address`, an integer."""
    function = ir.FunctionType(ir.VoidType(), [value.type for value in values])
    builder.call(builder.inttoptr(address, function.as_pointer()), values)


SPEED_LEVEL, OPT_LEVEL = 2, 3  # of the passes, of the machine code
_ENGINES: list[Any] = []  # compiled code lives as long as its engine


def _key(text: str, machine: Machine) -> str:
    """What the machine code depends on, as a name for a file."""
    how = f"speed {SPEED_LEVEL} opt {OPT_LEVEL}"
    parts = (text, machine.cpu, machine.features, llvmlite.__version__, llvm.get_process_triple(), how)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _machine_code(text: str, machine: Machine) -> bytes:
    """An object file with the module's functions."""
    module, target = llvm.parse_assembly(text), _target(machine)
    module.triple = llvm.get_process_triple()
    passes = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=SPEED_LEVEL))
    passes.getModulePassManager().run(module, passes)
    return bytes(target.emit_object(module))


def _target(machine: Machine) -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()  # numba does the same, but perhaps later
    return llvm.Target.from_default_triple().create_target_machine(
        machine.cpu, machine.features, opt=OPT_LEVEL, jit=True
    )


@dataclass(frozen=True)
class Shelf:
    """A folder of object files, each behind its SHA-256, so that a torn or damaged one is known before it is run."""

    folder: Path

    @classmethod
    def of(cls, parent: Path | None) -> Shelf | None:
        """The shelf in `parent`, made if need be; None unless it is this user's and only this user can write to it."""
        if parent is None or not hasattr(os, "getuid"):
            return None
        folder = parent / "native"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            seen = folder.lstat()
        except OSError:
            return None
        private = stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.getuid() and not seen.st_mode & 0o022
        return cls(folder) if private else None

    def find(self, key: str) -> bytes | None:
        """The code kept under `key`, if it is there and whole."""
        try:
            data = (self.folder / key).read_bytes()
        except OSError:
            return None
        digest, code = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
        return code if hashlib.sha256(code).digest() == digest else None

    def keep(self, key: str, code: bytes) -> None:
        """Put code there for the next process, whole or not at all; a full or read-only disk costs nothing else."""
        with contextlib.suppress(OSError):
            number, name = tempfile.mkstemp(dir=self.folder)
            try:
                with os.fdopen(number, "wb") as stream:
                    stream.write(hashlib.sha256(code).digest() + code)
                Path(name).replace(self.folder / key)
            except OSError:
                Path(name).unlink(missing_ok=True)
                raise
