// Product blocks in float32 and bfloat16: a few rows times some columns of a panel. Included by kernel files only.
#pragma once

#include "gemm/gemm.h"
#include "gemm/packed_row_layout.h"
#include "gemm/paired_sums.h"
#include "simd/prefetch.h"
#include "simd/vec.h"

namespace smoe {
namespace SMOE_ISA {

// Columns computed in one pass over k, and rows for which one pass computes all columns.
constexpr int COLUMNS = 2 * LANES;
#if defined(__AVX512F__)
constexpr int MAX_ROWS_IN_ONE_PASS = 0;  // two vectors are all columns
#elif defined(__AVX2__) || defined(__ARM_FEATURE_DOTPROD)
constexpr int MAX_ROWS_IN_ONE_PASS = 2;
#else
constexpr int MAX_ROWS_IN_ONE_PASS = 0;
#endif

// Units that each pass multiplies before the next pass begins, so that the panel is read from memory once; meanwhile
// the passes prefetch the next units. 0: one pass computes all columns, or sums cannot be stored in between.
constexpr int64_t PART = LANES == 16 || SMOE_MATRIX_PRODUCTS ? 0 : 64;

// With few rows the panel comes from memory: fetch what the loop reads some kilobytes later. The first pass fetches for
// all.
template <int VECTORS>
inline void prefetch_panel(const uint32_t* w, int column) {
    constexpr int AHEAD = VECTORS * LANES == PANEL && LANES < 16 ? 2048 : 1024;  // words
    if (column) return;
#pragma GCC unroll 2
    for (int at = 0; at < PANEL; at += LINE_WORDS) {
        if constexpr (IS_FOR_INTEL)
            prefetch_in_place<NO_FURTHER>(w + AHEAD + at);
        else
            __builtin_prefetch(w + AHEAD + at);
    }
}

#if SMOE_MATRIX_PRODUCTS

// Compute the sums over all pairs of units from a column on; return the number of units. x advances `stride` words per
// unit.
template <class Number, int ROWS, int VECTORS>
[[gnu::always_inline]] inline int64_t multiply_in_pairs(Number (&sums)[ROWS][VECTORS], const uint32_t* x, int stride,
                                                        const uint32_t* panel, int column, int64_t depth) {
    PairedSums<Number, ROWS, VECTORS> paired;
    for (int64_t pair = depth / 2; pair; --pair) {
        prefetch_panel<VECTORS>(panel, column);
        prefetch_panel<VECTORS>(panel + PANEL, column);
        Words first[VECTORS], second[VECTORS];
#pragma GCC unroll 4
        for (int part = 0; part < VECTORS; ++part) {
            first[part] = load_words(panel + column + part * LANES);
            second[part] = load_words(panel + PANEL + column + part * LANES);
        }
        paired.add(x, stride, first, second);
        x += 2 * stride;
        panel += 2 * PANEL;
    }
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
        for (int part = 0; part < VECTORS; ++part) sums[m][part] = paired.row(m, part);
    return depth / 2 * 2;
}

#endif

// Add the products of one number of each row with two vectors of columns, from vector `part` on.
template <int ROWS, int VECTORS>
[[gnu::always_inline]] inline void add_products(Vec (&sums)[ROWS][VECTORS], int part, const uint32_t* x, Vec w0,
                                                Vec w1) {
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; ++m) {
        const Vec row = from_bits(broadcast_word(x[m]));
        add_product(sums[m][part], row, w0);
        add_product(sums[m][part + 1], row, w1);
    }
}

struct Float32 {
    static constexpr int FORMAT = FLOAT32;
    static constexpr bool HAS_PAIRS = false;

    template <int ROWS, int VECTORS>
    static inline void add(Vec (&sums)[ROWS][VECTORS], const uint32_t* x, int, const uint32_t* w) {
#pragma GCC unroll 4
        for (int part = 0; part < VECTORS; part += 2) {
            const Vec w0 = from_bits(load_words(w + part * LANES)), w1 = from_bits(load_words(w + (part + 1) * LANES));
            add_products(sums, part, x, w0, w1);
        }
    }
};

// The first and the second numbers of LANES units, as float32.
inline Vec load_even(const uint32_t* units) { return from_bits(load_words(units) << 16); }

inline Vec load_odd(const uint32_t* units) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    // From memory, because a register for the mask would displace a sum.
    alignas(32) static constexpr uint32_t MASK[LANES] = {0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u,
                                                         0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u};
    Words odd = load_words(units);
    asm("vpand %1, %0, %0" : "+x"(odd) : "m"(MASK));
    return from_bits(odd);
#else
    return from_bits(load_words(units) & 0xffff0000u);
#endif
}

struct Bfloat16 {
    static constexpr int FORMAT = BFLOAT16;
    static constexpr bool HAS_PAIRS = SMOE_MATRIX_PRODUCTS;  // PairedSums has the same bits as add()

#if defined(__AVX512BF16__)
    template <int ROWS>
    static inline void add(Vec (&sums)[ROWS][2], const uint32_t* x, int, const uint32_t* w) {
        const auto w0 = (__m512bh)load_words(w), w1 = (__m512bh)load_words(w + LANES);
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; ++m) {
            const auto row = (__m512bh)broadcast_word(x[m]);
            sums[m][0] = (Vec)_mm512_dpbf16_ps((__m512)sums[m][0], row, w0);
            sums[m][1] = (Vec)_mm512_dpbf16_ps((__m512)sums[m][1], row, w1);
        }
    }
#elif SMOE_MATRIX_PRODUCTS
    template <int ROWS, int VECTORS>
    static inline void add(Vec (&sums)[ROWS][VECTORS], const uint32_t* x, int, const uint32_t* w) {
#pragma GCC unroll 8
        for (int part = 0; part < VECTORS; ++part) {
            const Words units = load_words(w + part * LANES);
#pragma GCC unroll 12
            for (int m = 0; m < ROWS; ++m) sums[m][part] = dot_bf16(sums[m][part], units, broadcast_word(x[m]));
        }
    }
#else
    template <int ROWS, int VECTORS>
    static inline void add(Vec (&sums)[ROWS][VECTORS], const uint32_t* x, int stride, const uint32_t* w) {
#pragma GCC unroll 4
        for (int part = 0; part < VECTORS; part += 2) {
            const uint32_t *w0 = w + part * LANES, *w1 = w0 + LANES;
            add_products(sums, part, x, load_even(w0), load_even(w1));
            add_products(sums, part, x + stride, load_odd(w0), load_odd(w1));
        }
    }
#endif
};

// Store sums[ROWS][VECTORS] to out[ROWS][PANEL], from a column on: numbers, or the bits of integers.
template <class Lanes, int ROWS, int VECTORS>
inline void store_sums(float* out, int column, const Lanes (&sums)[ROWS][VECTORS]) {
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 8
        for (int part = 0; part < VECTORS; ++part) store(out + m * PANEL + column + part * LANES, (Vec)sums[m][part]);
}

template <class Lanes, int ROWS, int VECTORS>
inline void load_sums(const float* out, int column, Lanes (&sums)[ROWS][VECTORS]) {
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 8
        for (int part = 0; part < VECTORS; ++part) sums[m][part] = (Lanes)load(out + m * PANEL + column + part * LANES);
}

// CONTINUES: `out` has the sums of the units before. PREFETCHES: the panel comes from memory.
template <class Unit, bool CONTINUES = false, bool PREFETCHES = true>
struct FloatBlock {
    static constexpr int FORMAT = Unit::FORMAT;
    // As many accumulators as fit into registers beside two vectors of the panel and one of x.
    static constexpr int MAX_ROWS = LANES == 16 || Unit::HAS_PAIRS ? 12 : 6;
    static constexpr int X_WORDS = is_widened(Unit::FORMAT) ? 2 : 1;  // of a row's unit

    // Compute out[ROWS][VECTORS * LANES of PANEL] from a column on. x advances `stride` words per word of a row; panel
    // and out start at the first column. SHARES: prefetch the share of a later panel, too.
    template <int ROWS, int VECTORS, bool SHARES = false>
    static void multiply(const uint32_t* x, int stride, const uint32_t* panel, int column, int64_t K, float* out,
                         const PrefetchShare& share = {}) {
        const int64_t depth = depth_of(Unit::FORMAT, K);
        PacedPrefetch later(share, depth);
        Vec sums[ROWS][VECTORS] = {};
        if constexpr (CONTINUES) load_sums(out, column, sums);
        int64_t k = 0;
        if constexpr (Unit::HAS_PAIRS && IN_PAIRS<ROWS>) {
            k = multiply_in_pairs(sums, x, stride, panel, column, depth);
            x += k * stride;
            panel += k * PANEL;
        }
        const uint32_t* ahead = panel + PART * (PANEL + column);  // this pass's share of the next part
        for (; k < depth; ++k, ahead += VECTORS * LANES) {
            if constexpr (SHARES) later.step();
            if constexpr (PREFETCHES && PART && VECTORS * LANES < PANEL)
                __builtin_prefetch(ahead);  // in the order of the addresses
            else if constexpr (PREFETCHES)
                prefetch_panel<VECTORS>(panel, column);
            Unit::add(sums, x, stride, panel + column);
            x += X_WORDS * stride;
            panel += PANEL;
        }
        store_sums(out, column, sums);
    }
};

}  // namespace SMOE_ISA
}  // namespace smoe
