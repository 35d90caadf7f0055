// Product blocks with int8 weights. Included by kernel files only.
#pragma once

#include "gemm/gemm_float.h"
#include "gemm/panel_parts.h"
#include "simd/integer_dot_products.h"
#include "simd/prefetch.h"

namespace smoe {
namespace SMOE_ISA {

inline Vec to_float(Words sums) { return __builtin_convertvector((Ints)sums, Vec); }

// Dot product of four bytes of x with the four bytes of each lane of w, stored as q + 128. Without VNNI no instruction
// of x86 multiplies full-range bytes without saturation, so there the operand is q or its magnitude; on ARM without
// I8MM it is q.
struct Int8Unit {
#if SMOE_UNSIGNED_BY_SIGNED
    static constexpr bool IS_BIASED = true;

    static inline Words prepare(Words w) { return w; }
    static inline Words add(Words sums, Words x, Words w) { return dot_bytes(sums, w, x); }
#elif SMOE_DOT_BYTES
    static constexpr bool IS_BIASED = false;

    static inline Words prepare(Words w) { return w ^ 0x80808080u; }
    static inline Words add(Words sums, Words x, Words w) { return dot_bytes(sums, w, x); }
#elif defined(__AVX512BW__)
    static constexpr bool IS_BIASED = false;

    static inline Words prepare(Words w) { return w ^ 0x80808080u; }
    // |w| * (x with w's sign): the sum of two such products stays below 2^15.
    static inline Words add(Words sums, Words x, Words w) {
        const auto w8 = (__m512i)w;
        const __m512i signed_x = _mm512_mask_sub_epi8((__m512i)x, _mm512_movepi8_mask(w8), __m512i{}, (__m512i)x);
        const __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(w8), signed_x);
        return sums + (Words)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
    }
#elif defined(__AVX2__)
    static constexpr bool IS_BIASED = false;

    static inline Words prepare(Words w) { return w ^ 0x80808080u; }
    static inline Words add(Words sums, Words x, Words w) {
        const auto w8 = (__m256i)w;
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w8), _mm256_sign_epi8((__m256i)x, w8));
        return add_to(sums, (Words)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
#else
    static constexpr bool IS_BIASED = true;

    static inline Words prepare(Words w) { return w; }
    static inline Words add(Words sums, Words x, Words w) {
        for (int shift = 0; shift < 32; shift += 8)
            sums += (w >> shift & 0xffu) * (Words)((Ints)(x << (24 - shift)) >> 24);
        return sums;
    }
#endif
};

// Prefetch WORDS words of a panel that the loop reads some kilobytes later. The first pass fetches for all columns.
template <int WORDS, int VECTORS, int FURTHER = FURTHER_WORDS>
[[gnu::always_inline]] inline void prefetch_words(const uint32_t* w, int column) {
    constexpr int IN_ORDER = LANES == 8 ? WORDS_AHEAD_IN_ORDER : 2048;
    constexpr int AHEAD = VECTORS * LANES == PANEL && LANES < 16 ? IN_ORDER : 1024;
    if (!column) prefetch_lines<WORDS, FURTHER>(w + AHEAD);
}

// Result of exact sums that start at `start` where Int8Unit::IS_BIASED.
inline Vec scaled(Words sums, uint32_t start, Vec scale, uint32_t x_scale) {
    const Words whole = sums + broadcast_word(Int8Unit::IS_BIASED ? start : 0);
    return to_float(whole) * scale * broadcast(float_of(x_scale));
}

// Store the results of sums; starts, x_scales and scales: of the rows and of all columns.
template <int ROWS, int VECTORS>
[[gnu::always_inline]] inline void store_scaled(const Words (&sums)[ROWS][VECTORS], const uint32_t* starts,
                                                const uint32_t* x_scales, const uint32_t* scales, int column,
                                                float* out) {
    Vec products[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int part = 0; part < VECTORS; ++part) {
        const Vec scale = from_bits(load_words(scales + column + part * LANES));
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; ++m) products[m][part] = scaled(sums[m][part], starts[m], scale, x_scales[m]);
    }
    store_sums(out, column, products);
}

// Make results of the sums of all blocks in the place of out[rows][PANEL].
template <class Block>
void scale_sums(int rows, const uint32_t* tile, const uint32_t* panel, int64_t blocks, float* out) {
    const uint32_t* x_scales = tile + (Block::FIRST_WORD + blocks * Block::ROW_WORDS) * rows;
    const uint32_t* scales = panel + blocks * Block::PANEL_WORDS;
    for (int m = 0; m < rows; ++m, out += PANEL)
        for (int column = 0; column < PANEL; column += LANES) {
            const Vec scale = from_bits(load_words(scales + column));
            store(out + column, scaled(bits(load(out + column)), tile[m], scale, x_scales[m]));
        }
}

struct Int8Block {
    static constexpr int FORMAT = INT8;
    static constexpr int MAX_ROWS = LANES == 16 || SMOE_MATRIX_PRODUCTS ? 12 : SMOE_DOT_BYTES ? 6 : 4;

    // What add_in_parts() asks for; a block is a unit.
    static constexpr int NUMBERS = 4, FIRST_WORD = 1, BLOCKS = 64, ROW_WORDS = 1, PANEL_WORDS = PANEL;

    template <int ROWS>
    static constexpr int COLUMNS_OF = COLUMNS;

    // Add the products of some units to sums: integers, in the place of the floats of out[ROWS][PANEL].
    template <int ROWS>
    static void add(const uint32_t* x, int64_t stride, const uint32_t* panel, int column, int units, float* out) {
        Words sums[ROWS][2];
        load_sums(out, column, sums);
        const uint32_t* ahead = share_of_next(panel, PANEL * units, column);
        for (; units; --units) {
            prefetch_in_place(ahead);
            add_unit(sums, x, panel + column);
            x += stride;
            panel += PANEL;
            ahead += COLUMNS;
        }
        store_sums(out, column, sums);
    }

    // SHARES: prefetch the share of a later panel, too.
    template <int ROWS, int VECTORS, bool SHARES = false>
    static void multiply(const uint32_t* x, int stride, const uint32_t* panel, int column, int64_t K, float* out,
                         const PrefetchShare& share = {}) {
        const int64_t depth = ceil_div(K, 4);
        PacedPrefetch later(share, depth);
        const uint32_t* starts = x;
        Words sums[ROWS][VECTORS] = {};
        int64_t k = 0;
        if constexpr (IN_PAIRS<ROWS>) {
            k = multiply_in_pairs(sums, x + stride, stride, panel, column, depth);
            x += k * stride;
            panel += k * PANEL;
        }
        for (; k < depth; ++k) {
            x += stride;
            if constexpr (SHARES) later.step();
            prefetch_words<PANEL, VECTORS, NO_FURTHER>(panel, column);
            add_unit(sums, x, panel + column);
            panel += PANEL;
        }
        store_scaled(sums, starts, x + stride, panel, column, out);
    }

  private:
    template <int ROWS, int VECTORS>
    static inline void add_unit(Words (&sums)[ROWS][VECTORS], const uint32_t* x, const uint32_t* w) {
#pragma GCC unroll 4
        for (int part = 0; part < VECTORS; part += 2) {
            const Words w0 = Int8Unit::prepare(load_words(w + part * LANES));
            const Words w1 = Int8Unit::prepare(load_words(w + (part + 1) * LANES));
#pragma GCC unroll 12
            for (int m = 0; m < ROWS; ++m) {
                const Words row = broadcast_word(x[m]);
                sums[m][part] = Int8Unit::add(sums[m][part], row, w0);
                sums[m][part + 1] = Int8Unit::add(sums[m][part + 1], row, w1);
            }
        }
    }
};

}  // namespace SMOE_ISA
}  // namespace smoe
