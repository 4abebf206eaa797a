"""Vectors in Numba code: `Vector` values and the functions on them.

Numba vectorizes a loop only as far as LLVM recognizes it, which misses sums of int8 in int16
lanes held in registers.  Here a value is an LLVM vector of a fixed number of lanes, which LLVM
maps to whatever registers the CPU has, so no function depends on an instruction set.

Addresses are int64.  `lanes` must be a constant: a literal or a variable of an enclosing function.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import operator

from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F32 = ir.FloatType()
_ELEMENTS = {"i8": _I8, "i16": _I16, "i32": _I32, "i64": _I64, "f32": _F32}
_SCALARS = {
    "i8": (types.int8, _I8),
    "i16": (types.int16, _I16),
    "u8": (types.uint8, _I8),
    "i32": (types.int32, _I32),
    "i64": (types.int64, _I64),
    "f32": (types.float32, _F32),
}


class Vector(types.Type):
    """A number of lanes of one element type: i8, i16, i32, i64 or f32."""

    def __init__(self, element: str, lanes: int) -> None:
        self.element = element
        self.lanes = lanes
        super().__init__(name=f"Vector({element}, {lanes})")

    @property
    def llvm(self):
        return ir.VectorType(_ELEMENTS[self.element], self.lanes)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector) -> None:
        super().__init__(manager, vector, vector.llvm)


def pointer_to(builder, address, pointee):
    """LLVM code: an int64 address as a pointer."""
    return builder.inttoptr(address, ir.PointerType(pointee))


def splat_lanes(builder, value, lanes):
    """LLVM code: a vector with a scalar in every lane."""
    vector = ir.VectorType(value.type, lanes)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _I32(0))
    mask = ir.Constant(ir.VectorType(_I32, lanes), None)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), mask)


# Arithmetic on vectors of one type.

_INTEGER = {operator.add: "add", operator.sub: "sub", operator.mul: "mul"}
_FLOAT = {
    operator.add: "fadd",
    operator.sub: "fsub",
    operator.mul: "fmul",
    operator.truediv: "fdiv",
}


def _register_operator(op) -> None:
    class VectorOperator(AbstractTemplate):
        def generic(self, args, kws):
            left, right = args
            if isinstance(left, Vector) and left == right:
                return signature(left, left, right)
            return None

    infer_global(op)(VectorOperator)

    @lower_builtin(op, Vector, Vector)
    def lower(context, builder, sig, args):
        method = _FLOAT[op] if sig.return_type.element == "f32" else _INTEGER[op]
        return getattr(builder, method)(*args)


for _op in _FLOAT:
    _register_operator(_op)


@intrinsic
def multiply_add(typingctx, left, right, addend):
    """left * right + addend, rounded once where the CPU can."""

    def codegen(context, builder, sig, args):
        kind = ir.FunctionType(left.llvm, [left.llvm] * 3)
        name = f"llvm.fmuladd.v{left.lanes}f32"
        return builder.call(builder.module.declare_intrinsic(name, (), kind), args)

    return left(left, right, addend), codegen


# Memory.


def _make_load(element):
    @intrinsic(prefer_literal=True)
    def load(typingctx, address, lanes):
        """The vector at an address, which need not be aligned."""
        if not isinstance(lanes, types.IntegerLiteral):
            return None
        vector = Vector(element, lanes.literal_value)

        def codegen(context, builder, sig, args):
            return builder.load(pointer_to(builder, args[0], vector.llvm), align=1, typ=vector.llvm)

        return vector(types.int64, lanes), codegen

    return load


load_i8 = _make_load("i8")
load_i32 = _make_load("i32")
load_f32 = _make_load("f32")


def _make_load_like(element):
    @intrinsic
    def load_like(typingctx, address, like):
        """As many lanes from an address as `like` has."""
        vector = Vector(element, like.lanes)

        def codegen(context, builder, sig, args):
            return builder.load(pointer_to(builder, args[0], vector.llvm), align=1, typ=vector.llvm)

        return vector(types.int64, like), codegen

    return load_like


load_i8_like = _make_load_like("i8")
load_f32_like = _make_load_like("f32")


@intrinsic
def store(typingctx, address, value):
    """Write a vector to an address, which need not be aligned."""

    def codegen(context, builder, sig, args):
        builder.store(args[1], pointer_to(builder, args[0], value.llvm), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, value), codegen


@intrinsic
def stream(typingctx, address, value):
    """Write a vector past the caches, to an address that is a multiple of 64."""

    def codegen(context, builder, sig, args):
        written = builder.store(args[1], pointer_to(builder, args[0], value.llvm), align=64)
        written.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    return types.void(types.int64, value), codegen


def _make_read(scalar):
    numba_type, llvm_type = _SCALARS[scalar]

    @intrinsic
    def read(typingctx, address):
        """The scalar at an address."""

        def codegen(context, builder, sig, args):
            return builder.load(pointer_to(builder, args[0], llvm_type), typ=llvm_type)

        return numba_type(types.int64), codegen

    return read


def _make_write(scalar):
    numba_type, llvm_type = _SCALARS[scalar]

    @intrinsic
    def write(typingctx, address, value):
        """Store a scalar at an address."""

        def codegen(context, builder, sig, args):
            builder.store(args[1], pointer_to(builder, args[0], llvm_type))
            return context.get_dummy_value()

        return types.void(types.int64, numba_type), codegen

    return write


read_i8, read_u8, read_i32, read_i64, read_f32 = map(_make_read, ("i8", "u8", "i32", "i64", "f32"))
write_u8, write_i32, write_i64, write_f32 = map(_make_write, ("u8", "i32", "i64", "f32"))


LINE = 64  # bytes of a cache line
PAGE = 4096  # bytes; the CPU itself does not read ahead from one page into the next


def prefetch_line(builder, address, cache):
    """Emit code that starts loading a cache line into the first (3) or second (2) cache."""
    kind = ir.FunctionType(ir.VoidType(), [ir.PointerType(_I8), _I32, _I32, _I32])
    function = builder.module.declare_intrinsic("llvm.prefetch.p0", (), kind)
    builder.call(function, [pointer_to(builder, address, _I8), _I32(0), _I32(cache), _I32(1)])


@intrinsic
def prefetch_far(typingctx, address):
    """Start loading a cache line into the second cache."""

    def codegen(context, builder, sig, args):
        prefetch_line(builder, args[0], 2)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic(prefer_literal=True)
def prefetch(typingctx, address, num_bytes):
    """Start loading the cache lines of so many bytes."""
    if not isinstance(num_bytes, types.IntegerLiteral):
        return None

    def codegen(context, builder, sig, args):
        for offset in range(0, max(num_bytes.literal_value, 1), LINE):
            prefetch_line(builder, builder.add(args[0], _I64(offset)), 3)
        return context.get_dummy_value()

    return types.void(types.int64, num_bytes), codegen


@intrinsic
def take_piece(typingctx, args):
    """The number of the next piece of work: `args[0]++`, once for all threads."""

    def codegen(context, builder, sig, values):
        return builder.atomic_rmw("add", values[0], _I64(1), "monotonic")

    return types.int64(types.CPointer(types.int64)), codegen


# Making and converting vectors.


def _make_splat(element):
    numba_type, _ = _SCALARS[element]

    @intrinsic(prefer_literal=True)
    def splat(typingctx, value, lanes):
        """A vector with `value` in every lane."""
        if not isinstance(lanes, types.IntegerLiteral):
            return None
        vector = Vector(element, lanes.literal_value)

        def codegen(context, builder, sig, args):
            return splat_lanes(builder, args[0], vector.lanes)

        return vector(numba_type, lanes), codegen

    return splat


splat_i8, splat_i16, splat_i32 = map(_make_splat, ("i8", "i16", "i32"))
splat_i64, splat_f32 = map(_make_splat, ("i64", "f32"))


def _make_splat_like(element):
    numba_type, _ = _SCALARS[element]

    @intrinsic
    def splat_like(typingctx, value, like):
        """A vector with `value` in as many lanes as `like` has."""
        vector = Vector(element, like.lanes)

        def codegen(context, builder, sig, args):
            return splat_lanes(builder, args[0], vector.lanes)

        return vector(numba_type, like), codegen

    return splat_like


splat_i32_like = _make_splat_like("i32")
splat_f32_like = _make_splat_like("f32")


def _make_convert(element, method):
    @intrinsic
    def convert(typingctx, value):
        """The same numbers in lanes of another type."""
        vector = Vector(element, value.lanes)

        def codegen(context, builder, sig, args):
            if value.element == element:
                return args[0]
            return getattr(builder, method)(args[0], vector.llvm)

        return vector(value), codegen

    return convert


widen_i16 = _make_convert("i16", "sext")
widen_i32 = _make_convert("i32", "sext")
widen_i64 = _make_convert("i64", "sext")
widen_unsigned_i32 = _make_convert("i32", "zext")
narrow_i8 = _make_convert("i8", "trunc")
to_f32 = _make_convert("f32", "sitofp")


# Choosing lane by lane.


def _make_extreme(predicate, float_function):
    @intrinsic
    def extreme(typingctx, left, right):
        """The greater or lesser of each pair; NaN if either is NaN."""

        def codegen(context, builder, sig, args):
            if left.element == "f32":
                kind = ir.FunctionType(left.llvm, [left.llvm] * 2)
                name = f"{float_function}.v{left.lanes}f32"
                return builder.call(builder.module.declare_intrinsic(name, (), kind), args)
            return builder.select(builder.icmp_signed(predicate, *args), *args)

        return left(left, right), codegen

    return extreme


greater = _make_extreme(">", "llvm.maximum")
lesser = _make_extreme("<", "llvm.minimum")


@intrinsic
def clamp(typingctx, value, low, high):
    """Numbers (not NaN) limited to low..high."""

    def codegen(context, builder, sig, args):
        number, least, most = args
        number = builder.select(builder.fcmp_ordered("<", number, least), least, number)
        return builder.select(builder.fcmp_ordered(">", number, most), most, number)

    return value(value, low, high), codegen


@intrinsic
def relu(typingctx, value):
    """max(value, 0); NaN stays."""

    def codegen(context, builder, sig, args):
        zero = ir.Constant(value.llvm, None)
        return builder.select(builder.fcmp_ordered("<", args[0], zero), zero, args[0])

    return value(value), codegen


@intrinsic
def leaky_relu(typingctx, value, slope):
    """value where it is positive, else value * slope."""

    def codegen(context, builder, sig, args):
        zero = ir.Constant(value.llvm, None)
        positive = builder.fcmp_ordered(">", args[0], zero)
        return builder.select(positive, args[0], builder.fmul(*args))

    return value(value, slope), codegen


@intrinsic
def where_positive(typingctx, value, left, right):
    """left where value is positive, else right."""

    def codegen(context, builder, sig, args):
        zero = ir.Constant(value.llvm, None)
        return builder.select(builder.fcmp_ordered(">", args[0], zero), args[1], args[2])

    return left(value, left, left), codegen


@intrinsic
def zero_for_nan(typingctx, value):
    """value, with 0 for NaN."""

    def codegen(context, builder, sig, args):
        number = builder.fcmp_ordered("==", args[0], args[0])
        return builder.select(number, args[0], ir.Constant(value.llvm, None))

    return value(value), codegen


@intrinsic
def zero_up_to(typingctx, value, limit):
    """value, with 0 where it is at most limit; NaN stays."""

    def codegen(context, builder, sig, args):
        small = builder.fcmp_ordered("<=", *args)
        return builder.select(small, ir.Constant(value.llvm, None), args[0])

    return value(value, limit), codegen


@intrinsic
def root(typingctx, value):
    """Square roots, rounded once."""

    def codegen(context, builder, sig, args):
        kind = ir.FunctionType(value.llvm, [value.llvm])
        name = f"llvm.sqrt.v{value.lanes}f32"
        return builder.call(builder.module.declare_intrinsic(name, (), kind), args)

    return value(value), codegen


@intrinsic
def round_small(typingctx, value):
    """The nearest int32, half to even, of numbers (not NaN) up to 2**22 in size.

    After 1.5 * 2**23 is added no bits are left for a fraction, and the lowest hold the integer.
    """
    vector = Vector("i32", value.lanes)

    def codegen(context, builder, sig, args):
        shift = ir.Constant(value.llvm, [_F32(12582912.0)] * value.lanes)
        bits = builder.bitcast(builder.fadd(args[0], shift), vector.llvm)
        return builder.sub(bits, ir.Constant(vector.llvm, [_I32(0x4B400000)] * value.lanes))

    return vector(value), codegen


# Codes of 4 and 2 bits: fields of a byte, lowest bits first.


def _shuffle(builder, vector, lanes):
    mask = ir.Constant(ir.VectorType(_I32, len(lanes)), [_I32(lane) for lane in lanes])
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)


@intrinsic(prefer_literal=True)
def pack_fields(typingctx, codes, bits):
    """Bytes [L * bits / 8] of int8 codes [L]."""
    if not isinstance(bits, types.IntegerLiteral):
        return None
    width, per_byte = bits.literal_value, 8 // bits.literal_value
    vector = Vector("i8", codes.lanes // per_byte)

    def codegen(context, builder, sig, args):
        packed = ir.Constant(vector.llvm, None)
        mask = ir.Constant(vector.llvm, [_I8(2**width - 1)] * vector.lanes)
        for field in range(per_byte):
            part = _shuffle(builder, args[0], range(field, codes.lanes, per_byte))
            shift = ir.Constant(vector.llvm, [_I8(field * width)] * vector.lanes)
            packed = builder.or_(packed, builder.shl(builder.and_(part, mask), shift))
        return packed

    return vector(codes, bits), codegen


@intrinsic(prefer_literal=True)
def unpack_fields(typingctx, packed, bits):
    """int8 codes [L * 8 / bits] of bytes [L]."""
    if not isinstance(bits, types.IntegerLiteral):
        return None
    width, per_byte = bits.literal_value, 8 // bits.literal_value
    vector = Vector("i8", packed.lanes * per_byte)

    def codegen(context, builder, sig, args):
        repeated = _shuffle(builder, args[0], [i // per_byte for i in range(vector.lanes)])
        left = [_I8(8 - width - i % per_byte * width) for i in range(vector.lanes)]
        right = ir.Constant(vector.llvm, [_I8(8 - width)] * vector.lanes)
        return builder.ashr(builder.shl(repeated, ir.Constant(vector.llvm, left)), right)

    return vector(packed, bits), codegen


@intrinsic
def half_bytes(typingctx, packed):
    """code + 8 of the even and of the odd channels, from bytes of two 4-bit codes each."""

    def codegen(context, builder, sig, args):
        def constant(number):
            return ir.Constant(packed.llvm, [_I8(number)] * packed.lanes)

        unsigned = builder.xor(args[0], constant(0x88))
        even = builder.and_(unsigned, constant(0x0F))
        odd = builder.lshr(unsigned, constant(4))
        return context.make_tuple(builder, sig.return_type, (even, odd))

    return types.UniTuple(packed, 2)(packed), codegen


@intrinsic
def quarter_bytes(typingctx, packed):
    """code + 2 of each fourth channel, from bytes of four 2-bit codes each."""

    def codegen(context, builder, sig, args):
        def constant(number):
            return ir.Constant(packed.llvm, [_I8(number)] * packed.lanes)

        unsigned = builder.xor(args[0], constant(0xAA))
        fields = [
            builder.and_(builder.lshr(unsigned, constant(shift)), constant(3))
            for shift in (0, 2, 4, 6)
        ]
        return context.make_tuple(builder, sig.return_type, fields)

    return types.UniTuple(packed, 4)(packed), codegen


@intrinsic
def interleave(typingctx, even, odd):
    """even[0], odd[0], even[1], odd[1], ..."""
    vector = Vector(even.element, 2 * even.lanes)

    def codegen(context, builder, sig, args):
        lanes = [_I32(i // 2 + i % 2 * even.lanes) for i in range(vector.lanes)]
        mask = ir.Constant(ir.VectorType(_I32, vector.lanes), lanes)
        return builder.shuffle_vector(*args, mask)

    return vector(even, odd), codegen


# For attention: rows of floats or codes alike, heads side by side, exp, and scratch memory.


@intrinsic
def load_floats(typingctx, base, index, like):
    """From entry `index` of a row as floats: float32 values, or int8 codes."""
    stored, vector = Vector(like.element, like.lanes), Vector("f32", like.lanes)

    def codegen(context, builder, sig, args):
        size = _I64(1 if like.element == "i8" else 4)
        place = builder.add(args[0], builder.mul(args[1], size))
        value = builder.load(pointer_to(builder, place, stored.llvm), align=1, typ=stored.llvm)
        return value if like.element == "f32" else builder.sitofp(value, vector.llvm)

    return vector(types.int64, types.int64, like), codegen


@intrinsic
def prefetch_floats(typingctx, base, index, like):
    """Start loading what `load_floats` reads."""
    size = 1 if like.element == "i8" else 4

    def codegen(context, builder, sig, args):
        place = builder.add(args[0], builder.mul(args[1], _I64(size)))
        for offset in range(0, size * like.lanes, LINE):
            prefetch_line(builder, builder.add(place, _I64(offset)), 3)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, like), codegen


@intrinsic
def spread(typingctx, address, segment, like):
    """Floats from an address, each in as many lanes as `segment` has: as many as `like` has."""
    count = like.lanes // segment.lanes
    vector = Vector("f32", like.lanes)

    def codegen(context, builder, sig, args):
        few = ir.VectorType(_F32, count)
        values = builder.load(pointer_to(builder, args[0], few), align=1, typ=few)
        return _shuffle(builder, values, [lane // segment.lanes for lane in range(like.lanes)])

    return vector(types.int64, segment, like), codegen


@intrinsic(prefer_literal=True)
def repeat(typingctx, value, lanes):
    """All lanes again and again, so many in all."""
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    vector = Vector(value.element, lanes.literal_value)

    def codegen(context, builder, sig, args):
        return _shuffle(builder, args[0], [lane % value.lanes for lane in range(vector.lanes)])

    return vector(value, lanes), codegen


@intrinsic
def join(typingctx, left, right):
    """The lanes of both, one after the other."""
    vector = Vector(left.element, 2 * left.lanes)

    def codegen(context, builder, sig, args):
        lanes = [_I32(lane) for lane in range(vector.lanes)]
        mask = ir.Constant(ir.VectorType(_I32, vector.lanes), lanes)
        return builder.shuffle_vector(*args, mask)

    return vector(left, right), codegen


@intrinsic
def add_segments(typingctx, value, segment):
    """The sum of each run of as many lanes as `segment` has, in any order."""
    vector = Vector("f32", value.lanes // segment.lanes)

    def codegen(context, builder, sig, args):
        total, width = args[0], segment.lanes
        while width > 1:
            lanes, width = range(total.type.count), width // 2
            low = _shuffle(builder, total, [i for i in lanes if i // width % 2 == 0])
            high = _shuffle(builder, total, [i for i in lanes if i // width % 2 == 1])
            total = builder.fadd(low, high)
        return total

    return vector(value, segment), codegen


@intrinsic(prefer_literal=True)
def rotate(typingctx, value, distance):
    """Each lane gets the one that is so many lanes further, around the end."""
    if not isinstance(distance, types.IntegerLiteral):
        return None

    def codegen(context, builder, sig, args):
        shift, lanes = distance.literal_value, value.lanes
        return _shuffle(builder, args[0], [(i + shift) % lanes for i in range(lanes)])

    return value(value, distance), codegen


@intrinsic
def add_lanes(typingctx, value):
    """Sum of all lanes, in any order."""

    def codegen(context, builder, sig, args):
        kind = ir.FunctionType(_F32, [_F32, value.llvm])
        name = f"llvm.vector.reduce.fadd.v{value.lanes}f32"
        function = builder.module.declare_intrinsic(name, (), kind)
        return builder.call(function, [_F32(0.0), args[0]], fastmath=("reassoc",))

    return types.float32(value), codegen


@intrinsic
def merge_lanes(typingctx, left, right, count):
    """The first `count` lanes of `left`, the others of `right`."""

    def codegen(context, builder, sig, args):
        lane = ir.Constant(ir.VectorType(_I64, left.lanes), [_I64(i) for i in range(left.lanes)])
        is_left = builder.icmp_signed("<", lane, splat_lanes(builder, args[2], left.lanes))
        return builder.select(is_left, args[0], args[1])

    return left(left, right, types.int64), codegen


_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.44269504, 0.693359375, -2.12194440e-4
_LEAST_EXP = -87.0
_EXP_TERMS = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1)


@intrinsic
def exp(typingctx, value):
    """exp of numbers up to 0, to about 1e-7 of the result; 0 below exp(-87), NaN for NaN."""

    def codegen(context, builder, sig, args):
        vector, integers = value.llvm, ir.VectorType(_I32, value.lanes)

        def constant(number):
            return ir.Constant(vector, [_F32(number)] * value.lanes)

        kind = ir.FunctionType(vector, [vector] * 3)
        name = f"llvm.fmuladd.v{value.lanes}f32"
        fused = builder.module.declare_intrinsic(name, (), kind)

        def multiply_add(left, right, addend):
            return builder.call(fused, [left, right, addend])

        x = args[0]
        tiny = builder.fcmp_ordered("<", x, constant(_LEAST_EXP))
        x = builder.select(tiny, constant(0.0), x)
        kind = ir.FunctionType(vector, [vector])
        rint = builder.module.declare_intrinsic(f"llvm.rint.v{value.lanes}f32", (), kind)
        power = builder.call(rint, [builder.fmul(x, constant(_LOG2_E))])
        rest = multiply_add(power, constant(-_LN2_HIGH), x)
        rest = multiply_add(power, constant(-_LN2_LOW), rest)
        series = constant(_EXP_TERMS[0])
        for term in (*_EXP_TERMS[1:], 0.5):
            series = multiply_add(series, rest, constant(term))
        series = builder.fadd(multiply_add(series, builder.fmul(rest, rest), rest), constant(1.0))
        power = builder.select(builder.fcmp_ordered("==", x, x), power, constant(0.0))
        bias = ir.Constant(integers, [_I32(127)] * value.lanes)
        shift = ir.Constant(integers, [_I32(23)] * value.lanes)
        exponent = builder.shl(builder.add(builder.fptosi(power, integers), bias), shift)
        result = builder.fmul(series, builder.bitcast(exponent, vector))
        return builder.select(tiny, constant(0.0), result)

    return value(value), codegen


@intrinsic(prefer_literal=True)
def scratch_floats(typingctx, count):
    """The address of so many floats that this call of the kernel has for itself."""
    if not isinstance(count, types.IntegerLiteral):
        return None

    def codegen(context, builder, sig, args):
        with builder.goto_entry_block():
            memory = builder.alloca(ir.ArrayType(_F32, count.literal_value))
        return builder.ptrtoint(memory, _I64)

    return types.int64(count), codegen
