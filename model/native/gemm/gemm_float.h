// Product blocks in float32 and bfloat16: a few rows times COLUMNS columns of a panel. Included by gemm/gemm.cpp only.
#pragma once

#include "gemm/gemm.h"
#include "simd/vec.h"

namespace smoe {
namespace SMOE_ISA {

// Columns computed in one pass over k.
constexpr int COLUMNS = 2 * LANES;
constexpr int PREFETCH_WORDS = 1024;  // 4 KB ahead: with few rows the panel comes from memory

struct Float32 {
    static constexpr int FORMAT = FLOAT32;

    template <int ROWS>
    static inline void add(Vec (&sums)[ROWS][2], const uint32_t* x, const uint32_t* w) {
        const Vec w0 = from_bits(load_words(w)), w1 = from_bits(load_words(w + LANES));
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; ++m) {
            const Vec row = from_bits(broadcast_word(x[m]));
            sums[m][0] = fma(row, w0, sums[m][0]);
            sums[m][1] = fma(row, w1, sums[m][1]);
        }
    }
};

struct Bfloat16 {
    static constexpr int FORMAT = BFLOAT16;

#if defined(__AVX512BF16__)
    template <int ROWS>
    static inline void add(Vec (&sums)[ROWS][2], const uint32_t* x, const uint32_t* w) {
        const auto w0 = (__m512bh)load_words(w), w1 = (__m512bh)load_words(w + LANES);
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; ++m) {
            const auto row = (__m512bh)broadcast_word(x[m]);
            sums[m][0] = (Vec)_mm512_dpbf16_ps((__m512)sums[m][0], row, w0);
            sums[m][1] = (Vec)_mm512_dpbf16_ps((__m512)sums[m][1], row, w1);
        }
    }
#else
    template <int ROWS>
    static inline void add(Vec (&sums)[ROWS][2], const uint32_t* x, const uint32_t* w) {
        const Words units0 = load_words(w), units1 = load_words(w + LANES);
        const Vec even0 = from_bits(units0 << 16), even1 = from_bits(units1 << 16);
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; ++m) {
            const Vec row = from_bits(broadcast_word(x[m] << 16));
            sums[m][0] = fma(row, even0, sums[m][0]);
            sums[m][1] = fma(row, even1, sums[m][1]);
        }
        const Vec odd0 = from_bits(units0 & 0xffff0000u), odd1 = from_bits(units1 & 0xffff0000u);
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; ++m) {
            const Vec row = from_bits(broadcast_word(x[m] & 0xffff0000u));
            sums[m][0] = fma(row, odd0, sums[m][0]);
            sums[m][1] = fma(row, odd1, sums[m][1]);
        }
    }
#endif
};

template <class Unit>
struct FloatBlock {
    // As many accumulators as fit into registers beside two vectors of the panel and one of x.
    static constexpr int MAX_ROWS = LANES == 16 ? 12 : 6;

    // Compute out[ROWS][COLUMNS of PANEL]. x advances `stride` words per k; panel and out start at the first column.
    template <int ROWS>
    static void multiply(const uint32_t* x, int stride, const uint32_t* panel, int column, int64_t K, float* out) {
        const int64_t depth = depth_of(Unit::FORMAT, K);
        const uint32_t* w = panel + column;
        Vec sums[ROWS][2] = {};
        for (int64_t k = 0; k < depth; ++k) {
            __builtin_prefetch(w + PREFETCH_WORDS);
            if constexpr (LANES == 16) __builtin_prefetch(w + PREFETCH_WORDS + LANES);
            Unit::add(sums, x, w);
            x += stride;
            w += PANEL;
        }
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; ++m) {
            store(out + m * PANEL + column, sums[m][0]);
            store(out + m * PANEL + column + LANES, sums[m][1]);
        }
    }
};

}  // namespace SMOE_ISA
}  // namespace smoe
