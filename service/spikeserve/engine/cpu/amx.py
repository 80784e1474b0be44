"""Intel's tiles (AMX) in compiled loops: instructions that numba does not have, but LLVM behind it has.

A tile is a register of 16 rows of 64 bytes. One instruction multiplies 16 positions by 64 inputs with 64 inputs by 16
channels, in 32-bit integers. Each function here is one instruction, or one for each row of a tile, of a loop that
`compiled` compiles; addresses are integers. No C compiler is needed.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

Array = NDArray[Any]

ROWS, DEPTH, COLUMNS = 16, 64, 16
TILE = ROWS * DEPTH
LINE = 64
"""Bytes of a line of the cache, and of a row of a tile: a row that is in two lines takes twice the time."""

# Linux gives a process the registers for tiles when it asks for them.
_ARCH_PRCTL = 158
_REQUEST_PERMISSION = 0x1023
_TILE_DATA = 18

_BYTE, _WORD, _LONG = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_POINTER = _BYTE.as_pointer()
_WORDS, _FLOATS = ir.VectorType(_WORD, 16), ir.VectorType(ir.FloatType(), 16)
_NEEDED = ("amx-tile", "amx-int8", "avx512f")


@functools.cache
def available() -> bool:
    """Whether this processor has tiles for bytes, and the system lets this process use them."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return False
    features = binding.get_host_cpu_features()
    if not all(features.get(name) for name in _NEEDED):
        return False
    system = ctypes.CDLL(None, use_errno=True)
    return int(system.syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA)) == 0


def aligned(shape: tuple[int, ...], dtype: Any) -> Array:
    """Memory that begins with a line of the cache; what is in it is not said."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(size + LINE, np.uint8)
    first = -memory.ctypes.data % LINE
    array: Array = memory[first : first + size].view(dtype).reshape(shape)
    return array


def _configuration() -> Array:
    """Eight whole tiles, as the processor reads it."""
    config = np.zeros(64, np.uint8)
    config[0] = 1
    config[16:32].view(np.uint16)[:] = DEPTH
    config[48:56] = ROWS
    return config


CONFIGURATION = _configuration()


def _at(builder: Any, address: Any, kind: Any, offset: int = 0) -> Any:
    return builder.inttoptr(builder.add(address, _LONG(offset)), kind.as_pointer())


def _instruction(name: str, *tiles: int, arguments: int = 0) -> Any:
    """LLVM's intrinsic of that name for these tiles, with an address, and the distance between rows."""
    kinds = [_POINTER, _LONG][:arguments]

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        function = builder.module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(ir.VoidType(), [_BYTE] * len(tiles) + kinds)
            function = ir.Function(builder.module, kind, name)
        address = [_at(builder, given[0], _BYTE)] if given else []
        builder.call(function, [*map(_BYTE, tiles), *address, *given[1:]])
        return context.get_dummy_value()

    def none(typing: Any) -> Any:
        return types.void(), generate

    def one(typing: Any, address: Any) -> Any:
        return types.void(types.intp), generate

    def two(typing: Any, address: Any, distance: Any) -> Any:
        return types.void(types.intp, types.intp), generate

    return intrinsic((none, one, two)[arguments])


configure = _instruction("llvm.x86.ldtilecfg", arguments=1)
release = _instruction("llvm.x86.tilerelease")

# Tiles 0 to 3 are sums: 0 and 1 of the first inputs, 4, and 2 and 3 of the second ones, 5, with the weights 6 and 7.
zero_0, zero_1, zero_2, zero_3 = (_instruction("llvm.x86.tilezero", tile) for tile in range(4))
load_4, load_5, load_6, load_7 = (
    _instruction("llvm.x86.tileloadd64", tile, arguments=2) for tile in range(4, 8)
)
store_0, store_1, store_2, store_3 = (
    _instruction("llvm.x86.tilestored64", tile, arguments=2) for tile in range(4)
)
multiply_0, multiply_1 = (_instruction("llvm.x86.tdpbusd", tile, 4, 6 + tile) for tile in (0, 1))
multiply_2, multiply_3 = (
    _instruction("llvm.x86.tdpbusd", 2 + tile, 5, 6 + tile) for tile in (0, 1)
)


def _lines(copy: bool) -> Any:
    """Write so many lines: copies of others, or zeros."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, source, count = arguments
        with cgutils.for_range(builder, count) as loop:
            offset = builder.mul(loop.index, _LONG(LINE))
            value = ir.Constant(_WORDS, [0] * 16)
            if copy:
                value = builder.load(_at(builder, builder.add(source, offset), _WORDS), align=1)
            builder.store(value, _at(builder, builder.add(target, offset), _WORDS), align=1)
        return context.get_dummy_value()

    def typed(typing: Any, target: Any, source: Any, count: Any) -> Any:
        return types.void(types.intp, types.intp, types.intp), generate

    return intrinsic(typed)


copy_lines, clear_lines = _lines(True), _lines(False)


def _scaled(parts: int) -> Any:
    """Sums of 16 channels of one position, int32, to currents: scale * sum + bias.

    Of two parts, the sums of the low one are a tile further, and count for 1/256 of the high one's.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, scale, bias, out = arguments
        total = builder.load(_at(builder, sums, _WORDS), align=4)
        if parts == 2:
            low = builder.load(_at(builder, sums, _WORDS, 4 * ROWS * COLUMNS), align=4)
            total = builder.add(builder.shl(total, ir.Constant(_WORDS, [8] * 16)), low)
        scales = builder.load(_at(builder, scale, _FLOATS), align=4)
        biases = builder.load(_at(builder, bias, _FLOATS), align=4)
        current = builder.fadd(builder.fmul(builder.sitofp(total, _FLOATS), scales), biases)
        builder.store(current, _at(builder, out, _FLOATS), align=4)
        return context.get_dummy_value()

    def typed(typing: Any, sums: Any, scale: Any, bias: Any, out: Any) -> Any:
        return types.void(types.intp, types.intp, types.intp, types.intp), generate

    return intrinsic(typed)


scaled_one, scaled_two = _scaled(1), _scaled(2)
