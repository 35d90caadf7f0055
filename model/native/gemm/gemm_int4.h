// Product blocks with int4 weights. Included by gemm/gemm.cpp only.
#pragma once

#include "gemm/gemm_int8.h"

namespace smoe {
namespace SMOE_ISA {

// Sum of the products of one group: four bytes of x times four bytes of w (0 .. 15) at a time.
struct GroupSum {
    Words sum;

#if SMOE_DOT_BYTES
    static inline GroupSum zero() { return {Words{}}; }
    inline void add(Words x, Words w) { sum = dot_bytes(sum, w, x); }
    inline Words total() const { return sum; }
#elif defined(__AVX512BW__) || defined(__AVX2__)
    // 16-bit sums suffice: the 16 products of a group per lane stay below 16 * 15 * 127 = 30,480.
    static inline GroupSum zero() { return {Words{}}; }
#if defined(__AVX512BW__)
    inline void add(Words x, Words w) {
        sum = (Words)_mm512_add_epi16((__m512i)sum, _mm512_maddubs_epi16((__m512i)w, (__m512i)x));
    }
    inline Words total() const { return (Words)_mm512_madd_epi16((__m512i)sum, _mm512_set1_epi16(1)); }
#else
    inline void add(Words x, Words w) {
        sum = (Words)_mm256_add_epi16((__m256i)sum, _mm256_maddubs_epi16((__m256i)w, (__m256i)x));
    }
    inline Words total() const { return (Words)_mm256_madd_epi16((__m256i)sum, _mm256_set1_epi16(1)); }
#endif
#else
    static inline GroupSum zero() { return {Words{}}; }
    inline void add(Words x, Words w) { sum = Int8Unit::add(sum, x, w); }
    inline Words total() const { return sum; }
#endif
};

struct Int4Block {
    static constexpr int MAX_ROWS = LANES == 16 ? 6 : LANES == 8 ? 3 : SMOE_MATRIX_PRODUCTS ? 4 : 2;

    template <int ROWS, int VECTORS>
    static void multiply(const uint32_t* x, int stride, const uint32_t* panel, int column, int64_t K, float* out) {
        Vec totals[ROWS][VECTORS] = {};
        for (int64_t group = ceil_div(K, GROUP); group; --group) {
            add_group(totals, x, stride, panel, column);
            x += INT4_ROW_WORDS * stride;
            panel += INT4_PANEL_WORDS;
        }
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 8
            for (int part = 0; part < VECTORS; ++part) totals[m][part] *= broadcast(float_of(x[m]));
        store_sums(out, column, totals);
    }

  private:
    template <int ROWS, int VECTORS>
    static inline void add_group(Vec (&totals)[ROWS][VECTORS], const uint32_t* x, int stride, const uint32_t* panel,
                                 int column) {
        GroupSum sums[ROWS][VECTORS];
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 8
            for (int part = 0; part < VECTORS; ++part) sums[m][part] = GroupSum::zero();
        const uint32_t *w = panel + PANEL / 2, *units = x + stride;
        prefetch_panel<VECTORS>(panel, column);
        if constexpr (IN_PAIRS<ROWS>) {
            multiply_in_pairs(sums, units, stride, w, column);
        } else {
#pragma GCC unroll 4
            for (int pair = 0; pair < GROUP / 8; ++pair) {
                prefetch_panel<VECTORS>(w, column);
                add_pair(sums, units, stride, w + column);
                units += 2 * stride;
                w += PANEL;
            }
        }
        const auto* scales = reinterpret_cast<const uint16_t*>(panel) + column;
#pragma GCC unroll 8
        for (int part = 0; part < VECTORS; ++part) {
            const Vec scale = load(scales + part * LANES);
#pragma GCC unroll 12
            for (int m = 0; m < ROWS; ++m)
                totals[m][part] += to_float(sums[m][part].total() + broadcast_word(x[m])) * scale;
        }
    }

    // Compute the sums of a group, with both units of a word in one instruction.
    template <int ROWS, int VECTORS>
    [[gnu::always_inline]] static inline void multiply_in_pairs(GroupSum (&sums)[ROWS][VECTORS], const uint32_t* x,
                                                                int stride, const uint32_t* w, int column) {
        PairedSums<Words, ROWS, VECTORS> paired;
#pragma GCC unroll 4
        for (int pair = 0; pair < GROUP / 8; ++pair) {
            prefetch_panel<VECTORS>(w, column);
            Words low[VECTORS], high[VECTORS];
#pragma GCC unroll 2
            for (int part = 0; part < VECTORS; ++part) {
                const Words word = load_words(w + column + part * LANES);
                low[part] = word & 0x0f0f0f0fu;
                high[part] = word >> 4 & 0x0f0f0f0fu;
            }
            paired.add(x, stride, low, high);
            x += 2 * stride;
            w += PANEL;
        }
#pragma GCC unroll 4
        for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 2
            for (int part = 0; part < VECTORS; ++part) sums[m][part].sum = paired.row(m, part);
    }

    // Add the products of two units: the low and the high half bytes of w.
    template <int ROWS, int VECTORS>
    static inline void add_pair(GroupSum (&sums)[ROWS][VECTORS], const uint32_t* x, int stride, const uint32_t* w) {
#pragma GCC unroll 4
        for (int part = 0; part < VECTORS; part += 2) {
            const Words w0 = load_words(w + part * LANES), w1 = load_words(w + (part + 1) * LANES);
            add_unit(sums, part, x, w0 & 0x0f0f0f0fu, w1 & 0x0f0f0f0fu);
            add_unit(sums, part, x + stride, w0 >> 4 & 0x0f0f0f0fu, w1 >> 4 & 0x0f0f0f0fu);
        }
    }

    template <int ROWS, int VECTORS>
    static inline void add_unit(GroupSum (&sums)[ROWS][VECTORS], int part, const uint32_t* x, Words w0, Words w1) {
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; ++m) {
            const Words row = broadcast_word(x[m]);
            sums[m][part].add(row, w0);
            sums[m][part + 1].add(row, w1);
        }
    }
};

}  // namespace SMOE_ISA
}  // namespace smoe
