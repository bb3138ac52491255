"""Explicit SIMD for numba kernels: a value type of 16 float32 lanes, its mask, and arithmetic on them.

numba's auto-vectoriser does not handle the loop over a rasteriser tile. LLVM splits the 16 lanes for CPUs with narrower
registers. A float32 scalar is accepted wherever a vector is, and is broadcast to 16 equal lanes.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, overload, register_model

from reconx_core.cpu.jit import inlined

LANES = 16
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_BITS = ir.VectorType(ir.IntType(1), LANES)


class Vector(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"Vector{LANES}")


class Mask(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"Mask{LANES}")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _FLOATS)


@register_model(Mask)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _BITS)


vector, mask = Vector(), Mask()


def _lanes(builder: Any, value: Any, kind: Any) -> Any:
    """The LLVM value as a vector; a scalar is repeated."""
    if kind is vector:
        return value
    undefined = ir.Constant(_FLOATS, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def _operand(kind: Any) -> Any:
    return vector if kind is vector else types.float32


def _pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _FLOATS.as_pointer())


@intrinsic
def splat(typing, x):
    """16 equal lanes."""
    return vector(types.float32), lambda context, builder, sig, args: _lanes(builder, args[0], sig.args[0])


@intrinsic
def load(typing, array, index):
    """16 consecutive floats of a flat array."""

    def generate(context, builder, sig, args):
        value = builder.load(_pointer(context, builder, sig.args[0], *args), typ=_FLOATS)
        value.align = 4
        return value

    return vector(array, types.intp), generate


@intrinsic
def store(typing, array, index, value):
    """Write 16 consecutive floats of a flat array."""

    def generate(context, builder, sig, args):
        builder.store(args[2], _pointer(context, builder, sig.args[0], *args[:2])).align = 4
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@inlined
def at(array, k):
    """The k-th of the vectors in a flat array."""
    return load(array, k * LANES)


@inlined
def put(array, k, value):
    """Write the k-th of the vectors in a flat array."""
    store(array, k * LANES, value)


def _arithmetic(name: str) -> Any:
    @intrinsic
    def operation(typing, x, y):
        def generate(context, builder, sig, args):
            x, y = (_lanes(builder, value, kind) for value, kind in zip(args, sig.args))
            return getattr(builder, name)(x, y)

        return vector(_operand(x), _operand(y)), generate

    return operation


def _overload(symbol: Any, operation: Any) -> None:
    def choose(x, y):
        kinds = (x, y)
        if vector in kinds and all(kind is vector or isinstance(kind, types.Float) for kind in kinds):
            return lambda x, y: operation(x, y)
        return None

    overload(symbol, inline="always")(choose)


for _name, _symbols in {
    "fadd": (operator.add, operator.iadd),
    "fsub": (operator.sub, operator.isub),
    "fmul": (operator.mul, operator.imul),
    "fdiv": (operator.truediv, operator.itruediv),
}.items():
    for _symbol in _symbols:
        _overload(_symbol, _arithmetic(_name))


@intrinsic
def fma(typing, x, y, z):
    """x * y + z, rounded once. Explicit, so that the result does not depend on which operations the compiler fuses."""

    def generate(context, builder, sig, args):
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_FLOATS, [_FLOATS] * 3), f"llvm.fma.v{LANES}f32"
        )
        return builder.call(function, [_lanes(builder, value, kind) for value, kind in zip(args, sig.args)])

    return vector(_operand(x), _operand(y), _operand(z)), generate


def _comparison(symbol: str) -> Any:
    @intrinsic
    def operation(typing, x, y):
        def generate(context, builder, sig, args):
            return builder.fcmp_ordered(symbol, args[0], _lanes(builder, args[1], sig.args[1]))

        return mask(vector, _operand(y)), generate

    return operation


greater, greater_equal, less, less_equal = _comparison(">"), _comparison(">="), _comparison("<"), _comparison("<=")


def _extreme(symbol: str) -> Any:
    @intrinsic
    def operation(typing, x, y):
        def generate(context, builder, sig, args):
            other = _lanes(builder, args[1], sig.args[1])
            return builder.select(builder.fcmp_ordered(symbol, args[0], other), args[0], other)

        return vector(vector, _operand(y)), generate

    return operation


minimum, maximum = _extreme("<"), _extreme(">")


@intrinsic
def both(typing, x, y):
    return mask(mask, mask), lambda context, builder, sig, args: builder.and_(*args)


@intrinsic
def either(typing, x, y):
    return mask(mask, mask), lambda context, builder, sig, args: builder.or_(*args)


@intrinsic
def any_lane(typing, x):
    def generate(context, builder, sig, args):
        bits = ir.IntType(LANES)
        return builder.icmp_unsigned("!=", builder.bitcast(args[0], bits), ir.Constant(bits, 0))

    return types.boolean(mask), generate


@intrinsic
def select(typing, condition, x, y):
    """Lanes of ``x`` where ``condition`` holds, of ``y`` elsewhere."""

    def generate(context, builder, sig, args):
        x, y = (_lanes(builder, value, kind) for value, kind in zip(args[1:], sig.args[1:]))
        return builder.select(args[0], x, y)

    return vector(mask, _operand(x), _operand(y)), generate


@intrinsic
def store_mask(typing, array, index, value):
    """Write 16 consecutive booleans of a flat array."""

    def generate(context, builder, sig, args):
        array, index, value = args
        bytes_ = ir.VectorType(ir.IntType(8), LANES)
        data = context.make_array(sig.args[0])(context, builder, array).data
        place = builder.bitcast(builder.gep(data, [index]), bytes_.as_pointer())
        builder.store(builder.zext(value, bytes_), place).align = 1
        return context.get_dummy_value()

    return types.void(array, types.intp, mask), generate


def _of_each_lane(name: str) -> Any:
    @intrinsic
    def operation(typing, x):
        def generate(context, builder, sig, args):
            kind = ir.FunctionType(_FLOATS, [_FLOATS])
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{LANES}f32"), args)

        return vector(vector), generate

    return operation


root, ceiling = _of_each_lane("sqrt"), _of_each_lane("ceil")


@intrinsic
def least(typing, x):
    """The smallest lane."""

    def generate(context, builder, sig, args):
        kind = ir.FunctionType(ir.FloatType(), [_FLOATS])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fmin.v{LANES}f32"), args)

    return types.float32(vector), generate


@intrinsic
def negative(typing, x):
    return vector(vector), lambda context, builder, sig, args: builder.fneg(args[0])


@intrinsic
def lane_centres(typing):
    """0.5, 1.5, ... 15.5: the pixel centres of a row of 16."""
    return vector(), lambda context, builder, sig, args: ir.Constant(_FLOATS, [i + 0.5 for i in range(LANES)])


def _fold(size: int) -> Any:
    """Combine two vectors of partial sums in groups of 2 * size lanes into one with groups of ``size``: first x, then y."""
    low = [base + group + k for base in (0, LANES) for group in range(0, LANES, 2 * size) for k in range(size)]

    @intrinsic
    def operation(typing, x, y):
        def generate(context, builder, sig, args):
            kind = ir.VectorType(ir.IntType(32), LANES)
            halves = (builder.shuffle_vector(*args, ir.Constant(kind, [lane + k for lane in low])) for k in (0, size))
            return builder.fadd(*halves)

        return vector(vector, vector), generate

    return operation


_fold8, _fold4, _fold2, _fold1 = _fold(8), _fold(4), _fold(2), _fold(1)


@inlined
def _lane_sums4(a, b, c, d):
    return _fold4(_fold8(a, b), _fold8(c, d))


@inlined
def lane_sums(v):
    """The sums of 12 vectors in the first 12 lanes, with a third of the instructions of 12 separate sums."""
    first = _fold2(_lane_sums4(v[0], v[1], v[2], v[3]), _lane_sums4(v[4], v[5], v[6], v[7]))
    last = _lane_sums4(v[8], v[9], v[10], v[11])
    return _fold1(first, _fold2(last, last))


@intrinsic
def float_bits(typing, x):
    """The bit pattern of the float32; for positive numbers it sorts like the number."""
    return types.uint32(types.float32), lambda context, builder, sig, args: builder.bitcast(args[0], ir.IntType(32))


@inlined
def aligned(length: int) -> np.ndarray:
    """Uninitialised float32 array that starts on a cache line."""
    padded = np.empty(length + LANES, np.float32)
    start = (-(padded.ctypes.data >> 2)) & (LANES - 1)
    return padded[start : start + length]


@intrinsic
def lane(typing, x, index):
    """One lane of a vector."""
    return types.float32(vector, types.int32), lambda context, builder, sig, args: builder.extract_element(*args)


@intrinsic
def bilinear(typing, quads, width, x, y):
    """16 samples in [0, 255] of a flat image of :func:`packed_quads`, at (x, y) pixels from the centre of its first one.

    The caller keeps 0 <= x <= ``width`` - 1, and y likewise.
    """

    def generate(context, builder, sig, args):
        array, width, x, y = args
        integers, addresses = (ir.VectorType(ir.IntType(bits), LANES) for bits in (32, 64))
        all_of = lambda value, kind: ir.Constant(kind, [value] * LANES)  # noqa: E731
        column, row = builder.fptosi(x, integers), builder.fptosi(y, integers)
        right, below = (builder.fsub(at, builder.sitofp(whole, _FLOATS)) for at, whole in ((x, column), (y, row)))
        data = context.make_array(sig.args[0])(context, builder, array).data
        bases = (builder.ptrtoint(data, ir.IntType(64)), builder.trunc(width, ir.IntType(32)))
        start, stride = (_repeated(builder, value, kind) for value, kind in zip(bases, (addresses, integers)))
        index = builder.sext(builder.add(builder.mul(row, stride), column), addresses)
        pointers = ir.VectorType(ir.PointerType(ir.IntType(32)), LANES)
        places = builder.inttoptr(builder.add(start, builder.shl(index, all_of(2, addresses))), pointers)
        kinds = ir.FunctionType(integers, [pointers, ir.IntType(32), _BITS, integers])
        gather = cgutils.get_or_insert_function(builder.module, kinds, f"llvm.masked.gather.v{LANES}i32.v{LANES}p0")
        found = builder.call(gather, [places, ir.Constant(ir.IntType(32), 4), all_of(1, _BITS), all_of(0, integers)])
        parts = (builder.and_(builder.lshr(found, all_of(bits, integers)), all_of(255, integers)) for bits in (0, 8, 16, 24))
        corners = [builder.sitofp(part, _FLOATS) for part in parts]
        mixed = lambda one, two, share: builder.fadd(one, builder.fmul(share, builder.fsub(two, one)))  # noqa: E731
        return mixed(mixed(*corners[:2], right), mixed(*corners[2:], right), below)

    return vector(quads, types.intp, vector, vector), generate


def _repeated(builder: Any, value: Any, kind: Any) -> Any:
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def packed_quads(image: np.ndarray) -> np.ndarray:
    """An image [h w] in [0, 1] in bytes, flat: each element holds a pixel and those right of it, below it, and below right."""
    levels = np.pad(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint32), ((0, 1), (0, 1)), mode="edge")
    here, right, below, across = levels[:-1, :-1], levels[:-1, 1:], levels[1:, :-1], levels[1:, 1:]
    return (here | right << 8 | below << 16 | across << 24).ravel()
