"""Machine code from LLVM text: what the processor offers, and functions compiled for it that are reached by address.

The innermost loops are written as LLVM text for one shape and this machine's vectors, compiled in some hundredths of a
second when a plan first asks for the shape, and called from Numba kernels by their address.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm
import numba


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
    module = llvm.parse_assembly(text)
    module.triple = llvm.get_process_triple()
    target = llvm.Target.from_default_triple().create_target_machine(machine.cpu, machine.features, opt=3)
    passes = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(module, passes)
    engine = llvm.create_mcjit_compiler(module, target)
    engine.finalize_object()
    _ENGINES.append(engine)
    return int(engine.get_function_address(name))


_ENGINES: list[Any] = []  # compiled code lives as long as its engine
