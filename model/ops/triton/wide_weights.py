"""Widen words of four 8-bit weights to bfloat16 on the CUDA cores, exactly; the scale is applied to sums.

Each asm text takes two words (`pack=2`) and gives four registers with two bfloat16 each: byte j of both words. With
other compute dtypes, and under the interpreter, plain arithmetic gives the same numbers.

fp8 (prmt, shr, and, lop3, fma: 2.5 instructions per weight): a byte s eeee mmm becomes a bfloat16 with the same sign,
exponent and mantissa bits. That is too small by 2^120 (exponent biases 127 and 7), which the fma corrects; e4m3's
subnormals come out right too, because bfloat16's own have the same form. Adding -0 keeps the sign of zeros.
int8 (prmt, lop3, lop3, fma: 2 per weight): with the low 7 bits u and the sign s of a byte, the bfloat16 0x4300 | u is
128 + u, and 0xc300 | s << 7 is -(128 + 128 s). Their sum is u - 128 s, the number itself.
"""

import triton
import triton.language as tl

# mypy: disable-error-code="untyped-decorator, no-any-return"

_FP8_PLANE = """
prmt.b32 p, $4, $5, {selector};
shr.u32 t, p, 4;
and.b32 t, t, 0x07f007f0;
lop3.b32 t, t, p, 0x80008000, 0xf8;
fma.rn.bf16x2 {out}, t, c, z;"""
_INT8_PLANE = """
prmt.b32 p, $4, $5, {selector};
lop3.b32 t, p, 0x007f007f, 0x43004300, 0xea;
lop3.b32 p, p, 0x00800080, 0xc300c300, 0xea;
fma.rn.bf16x2 {out}, t, c, p;"""


def _asm(plane: str, selectors: tuple[str, ...], c: str) -> str:
    """Return the text for all four bytes; `c` is the factor of the fma."""
    planes = "".join(plane.format(selector=text, out=f"${index}") for index, text in enumerate(selectors))
    return f"{{\n.reg .b32 p, t, c, z;\nmov.b32 c, {c};\nmov.b32 z, 0x80008000;{planes}\n}}"


# Selectors put byte j of the first word into the low 16 bits and byte j of the second into the high ones: into the
# upper byte of each for fp8, into the lower byte for int8. The other byte of each is masked out.
FP8_ASM = tl.constexpr(_asm(_FP8_PLANE, ("0x4000", "0x5010", "0x6020", "0x7030"), "0x7b807b80"))  # 2^120
INT8_ASM = tl.constexpr(_asm(_INT8_PLANE, ("0x0400", "0x0501", "0x0602", "0x0703"), "0x3f803f80"))  # 1


@triton.jit
def widen(
    words: tl.tensor, FORMAT: tl.constexpr, dtype: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Return the weights in bytes 0, 1, 2 and 3 of each word as `dtype`, in the shape of `words` each."""
    if dtype == tl.bfloat16:
        planes = tl.inline_asm_elementwise(
            FP8_ASM if FORMAT == "fp8" else INT8_ASM,
            "=r,=r,=r,=r,r,r",
            [words],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=2,
        )
    else:
        planes = (
            widen_byte(words, 0, FORMAT).to(dtype),
            widen_byte(words, 1, FORMAT).to(dtype),
            widen_byte(words, 2, FORMAT).to(dtype),
            widen_byte(words, 3, FORMAT).to(dtype),
        )
    return planes


@triton.jit
def widen_byte(words: tl.tensor, INDEX: tl.constexpr, FORMAT: tl.constexpr) -> tl.tensor:
    """Return the weights in byte INDEX of each word, as float16, which is exact."""
    if FORMAT == "int8":
        number = ((words << (24 - 8 * INDEX)) >> 24).to(tl.float16)
    else:
        code = ((words >> (8 * INDEX)) & 0xFF).to(tl.int16)
        number = (((code & 0x80) << 8) | ((code & 0x7F) << 7)).to(tl.float16, bitcast=True) * 256.0
    return number
