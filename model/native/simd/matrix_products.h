// Products of small matrices in one instruction: ARM's I8MM and BF16. Included by kernel files only.
//
// SMOE_MATRIX_PRODUCTS: the instruction set has them. A unit is four bytes, or two bfloat16 numbers, of neighbouring k.
// A vector holds two units of each of two rows, [m, k] [m, k + 1] [m + 1, k] [m + 1, k + 1], or of two columns. One
// instruction adds the products of two columns and two rows to sums [n, m] [n, m + 1] [n + 1, m] [n + 1, m + 1].
//
// Bytes: exact. bfloat16 (Arm Architecture Reference Manual, BFDOT and BFMMLA, with FPCR.EBF = 0): the products of a
// unit are added, then that sum to the accumulator, each result rounded by itself, to odd, and subnormal numbers are
// zeros. BFMMLA does so for the first units, then for the second ones: it has the bits of two BFDOT.
#pragma once

#include "simd/vec.h"

#if defined(__ARM_FEATURE_MATMUL_INT8) && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define SMOE_MATRIX_PRODUCTS 1
#else
#define SMOE_MATRIX_PRODUCTS 0
#endif

#if SMOE_MATRIX_PRODUCTS

namespace smoe {
namespace SMOE_ISA {

// Return sums + the products of unsigned bytes of two columns w and signed bytes of two rows x.
inline Words add_matrix_product(Words sums, Words w, Words x) {
    return (Words)vusmmlaq_s32((int32x4_t)sums, (uint8x16_t)w, (int8x16_t)x);
}

// Return sums + the products of bfloat16 numbers of two columns w and two rows x.
inline Vec add_matrix_product(Vec sums, Words w, Words x) {
    const auto columns = vreinterpretq_bf16_u32((uint32x4_t)w), rows = vreinterpretq_bf16_u32((uint32x4_t)x);
    return (Vec)vbfmmlaq_f32((float32x4_t)sums, columns, rows);
}

// Return sums + the products of two bfloat16 numbers per lane.
inline Vec dot_bf16(Vec sums, Words w, Words x) {
    const auto columns = vreinterpretq_bf16_u32((uint32x4_t)w), row = vreinterpretq_bf16_u32((uint32x4_t)x);
    return (Vec)vbfdotq_f32((float32x4_t)sums, columns, row);
}

// a0 b0 a1 b1, and a2 b2 a3 b3.
inline Words interleave_low(Words a, Words b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
inline Words interleave_high(Words a, Words b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }

// a0 a2 b0 b2, and a1 a3 b1 b3.
template <class Lanes>
inline Lanes even_lanes(Lanes a, Lanes b) {
    return __builtin_shufflevector(a, b, 0, 2, 4, 6);
}
template <class Lanes>
inline Lanes odd_lanes(Lanes a, Lanes b) {
    return __builtin_shufflevector(a, b, 1, 3, 5, 7);
}

// Load the first `count` words, and zeros after them; a whole vector if count >= 4.
inline Words load_first_words(const uint32_t* p, int count) {
    if (count >= 4) return load_words(p);
    const uint32x2_t zeros = vdup_n_u32(0);
    const uint32x2_t low = count == 1 ? vld1_lane_u32(p, zeros, 0) : vld1_u32(p);
    return (Words)vcombine_u32(low, count == 3 ? vld1_lane_u32(p + 2, zeros, 0) : zeros);
}

// Keeps FPCR.EBF at 0 on this thread while it lives. Where the CPU has FEAT_EBF16 that bit changes the roundings of
// BFDOT and BFMMLA. It is 0 when a process starts, but other code in the process may set it.
class UnfusedBf16 {
  public:
    UnfusedBf16() : control_(read()) {
        if (control_ & EBF) write(control_ & ~EBF);
    }
    ~UnfusedBf16() {
        if (control_ & EBF) write(control_);
    }
    UnfusedBf16(const UnfusedBf16&) = delete;
    UnfusedBf16& operator=(const UnfusedBf16&) = delete;

  private:
    static constexpr uint64_t EBF = 1 << 13;

    // "memory": products are computed from memory and stored there, so they stay between two writes.
    static uint64_t read() {
        uint64_t control;
        asm volatile("mrs %0, fpcr" : "=r"(control) : : "memory");
        return control;
    }
    static void write(uint64_t control) { asm volatile("msr fpcr, %0" : : "r"(control) : "memory"); }

    uint64_t control_;
};

}  // namespace SMOE_ISA
}  // namespace smoe

#endif
