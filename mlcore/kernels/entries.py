"""Kernels reached by their address, from a driver that knows nothing of them but their arguments.

What a kernel calls by name is compiled into it, and again into whatever calls that. Behind an address it is compiled
once, alone, and only where somebody needs it; so two processes can share the work. Compiled only.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types

from mlcore.kernels import jit
from mlcore.kernels.simd import intrinsic


class Entry:
    """A serial kernel without a result, for arguments of exactly an example's types."""

    def __init__(self, dispatcher: Any, example: tuple[Any, ...]) -> None:
        self.dispatcher, self.example = dispatcher, example
        self._address = 0

    def address(self) -> int:
        """Where its code is, compiled or loaded when first asked for; 0 while kernels are noted."""
        if jit.note(self.dispatcher, self.example):
            return 0
        if not self._address:
            signature = tuple(numba.typeof(argument) for argument in self.example)
            self.dispatcher.compile(signature)
            made = self.dispatcher.overloads[signature]
            self._address = made.library.get_pointer_to_function(made.fndesc.llvm_func_name)
        return self._address


@intrinsic
def call_entry(typing_context: Any, address: Any, first: Any, second: Any) -> Any:
    """In a kernel: call the entry at an address with its two arguments."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args[1:]
        function = context.call_conv.get_function_type(types.none, kinds)
        result, error = (cgutils.alloca_once(builder, kind.pointee) for kind in function.args[:2])  # nothing raises
        values = context.get_arg_packer(kinds).as_arguments(builder, arguments[1:])
        builder.call(builder.inttoptr(arguments[0], ir.PointerType(function)), [result, error, *values])
        return context.get_dummy_value()

    return types.void(types.int64, first, second), emit
