// Products of a few rows with the matrices of a low-rank term. Included by gemm/low_rank.cpp only.
//
// a in float32: for each four k the ranks one below the other, [K / 4][rank][4]. In bfloat16 a unit is two numbers, k
// in the low half and k + 4 in the high one: [K / 8][rank][4] units. K and the rank (to a multiple of 4) are
// zero-padded. b in panels: [rank][PANEL] in float32; [rank / 2][PANEL] units of two neighbouring ranks in bfloat16,
// the lower rank in the low half, an odd rank zero-padded.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "gemm/gemm.h"
#include "simd/vec_tail.h"

namespace smoe {
namespace SMOE_ISA {

constexpr int SUMS = 4;                            // of a rank in A x
constexpr int ROWS_AT_ONCE = LANES == 16 ? 4 : 2;  // as many as fit into registers
constexpr int WIDENED = 1024;                      // numbers of a row that are widened at once

inline int64_t padded_rank(int64_t rank) { return ceil_div(rank, 4) * 4; }

// Numbers of a unit: of float32 or bfloat16.
template <class Unit>
constexpr int numbers_of() {
    return std::is_same_v<Unit, float> ? 1 : 2;
}

// Units in one panel of b.
template <class Unit>
inline int64_t panel_units(int64_t rank) {
    return ceil_div(rank, numbers_of<Unit>()) * PANEL;
}

// The two numbers of each unit.
inline Vec low_halves(Words units) { return from_bits(units << 16); }
inline Vec high_halves(Words units) { return from_bits(units & 0xffff0000u); }

// Four numbers, repeated.
inline Vec repeat_four(const float* x) {
#if defined(__AVX512F__)
    return (Vec)_mm512_broadcast_f32x4(_mm_loadu_ps(x));
#elif defined(__AVX2__)
    return (Vec)_mm256_broadcast_ps(reinterpret_cast<const __m128*>(x));
#else
    return load(x);
#endif
}

template <class Unit>
inline void prefetch_units(const Unit* from, int64_t count) {
    constexpr int LINE = 16;
    for (int64_t i = 0; i < count; i += LINE) __builtin_prefetch(from + i, 0, 2);
}

// sums[m] += the products of the numbers of x that a unit has, for a few rows x of which the first four numbers begin
// at x[m * WIDENED].
template <int ROWS, int VECTORS>
inline void add_units(Vec (&sums)[ROWS][VECTORS], const float* x, const float* a) {
    Vec numbers[ROWS];
#pragma GCC unroll 4
    for (int m = 0; m < ROWS; ++m) numbers[m] = repeat_four(x + m * WIDENED);
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
        const Vec units = load(a + v * LANES);
#pragma GCC unroll 4
        for (int m = 0; m < ROWS; ++m) sums[m][v] = fma(numbers[m], units, sums[m][v]);
    }
}

template <int ROWS, int VECTORS>
inline void add_units(Vec (&sums)[ROWS][VECTORS], const float* x, const uint32_t* a) {
    Vec low[ROWS], high[ROWS];
#pragma GCC unroll 4
    for (int m = 0; m < ROWS; ++m) {
        low[m] = repeat_four(x + m * WIDENED);
        high[m] = repeat_four(x + m * WIDENED + 4);
    }
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
        const Words units = load_words(a + v * LANES);
        const Vec first = low_halves(units), second = high_halves(units);
#pragma GCC unroll 4
        for (int m = 0; m < ROWS; ++m) sums[m][v] = fma(high[m], second, fma(low[m], first, sums[m][v]));
    }
}

// Add to sums [ROWS][VECTORS * LANES] the products of `count` numbers, a multiple of those in four units. a advances
// `stride` units per four.
template <int ROWS, int VECTORS, class Unit>
void multiply_ranks(const float* x, const Unit* a, int64_t count, int64_t stride, float* const* all_sums, int64_t at) {
    constexpr int AHEAD = 1024, LINE = 16;  // units: a comes from memory
    Vec sums[ROWS][VECTORS];
    for (int m = 0; m < ROWS; ++m)
        for (int v = 0; v < VECTORS; ++v) sums[m][v] = load(all_sums[m] + at + v * LANES);
    for (int64_t k = 0; k < count; k += 4 * numbers_of<Unit>(), a += stride) {
#pragma GCC unroll 4
        for (int i = 0; i < VECTORS * LANES; i += LINE) __builtin_prefetch(a + AHEAD + i);
        add_units(sums, x + k, a);
    }
    for (int m = 0; m < ROWS; ++m)
        for (int v = 0; v < VECTORS; ++v) store(all_sums[m] + at + v * LANES, sums[m][v]);
}

// Widen `count` numbers of a row, followed by zeros up to a multiple of eight.
template <class X>
void widen_numbers(const X* x, int64_t count, float* wide) {
    std::fill(wide + count / 8 * 8, wide + ceil_div(count, 8) * 8, 0.0f);
    for (int64_t k = 0; k < count; k += LANES) store_first(wide + k, load_first(x + k, count - k), count - k);
}

// sums[m] [rank][SUMS] += the products of a row x[m] [K] with a; the rank is padded.
template <int ROWS, class X, class Unit>
void multiply_rows(const X* const* x, const Unit* a, int64_t K, int64_t rank, float* const* sums) {
    constexpr int VECTORS = 4;
    alignas(64) float wide[ROWS * WIDENED];
    const int64_t stride = rank * 4, step = WIDENED / (4 * numbers_of<Unit>()) * stride;
    for (int64_t k = 0; k < K; k += WIDENED, a += step) {
        const int64_t count = std::min<int64_t>(WIDENED, K - k);
        for (int m = 0; m < ROWS; ++m) widen_numbers(x[m] + k, count, wide + m * WIDENED);
        int64_t at = 0;
        for (; at + VECTORS * LANES <= stride; at += VECTORS * LANES)
            multiply_ranks<ROWS, VECTORS>(wide, a + at, count, stride, sums, at);
        for (; at + 2 * LANES <= stride; at += 2 * LANES)
            multiply_ranks<ROWS, 2>(wide, a + at, count, stride, sums, at);
        for (; at < stride; at += LANES) multiply_ranks<ROWS, 1>(wide, a + at, count, stride, sums, at);
    }
}

// Turn sums [rank][SUMS] into scale * their totals [rank], in the same place.
inline void reduce(float* sums, int64_t rank, float scale) {
    for (int64_t j = 0; j < rank; ++j) {
        const float* of_rank = sums + j * SUMS;
        sums[j] = scale * ((of_rank[0] + of_rank[1]) + (of_rank[2] + of_rank[3]));
    }
    std::fill(sums + rank, sums + padded_rank(rank), 0.0f);
}

// sums[m] += a panel's units of rank j, and of rank j + 1 if a unit has two numbers.
template <int ROWS, int VECTORS>
inline void add_ranks(Vec (&sums)[ROWS][VECTORS], const float* const* projected, int64_t j, const float* units) {
#pragma GCC unroll 8
    for (int part = 0; part < VECTORS; ++part) {
        const Vec numbers = load(units + part * LANES);
#pragma GCC unroll 4
        for (int m = 0; m < ROWS; ++m) sums[m][part] = fma(broadcast(projected[m][j]), numbers, sums[m][part]);
    }
}

template <int ROWS, int VECTORS>
inline void add_ranks(Vec (&sums)[ROWS][VECTORS], const float* const* projected, int64_t j, const uint32_t* units) {
#pragma GCC unroll 8
    for (int part = 0; part < VECTORS; ++part) {
        const Words pairs = load_words(units + part * LANES);
        const Vec first = low_halves(pairs), second = high_halves(pairs);
#pragma GCC unroll 4
        for (int m = 0; m < ROWS; ++m) {
            const Vec sum = fma(broadcast(projected[m][j]), first, sums[m][part]);
            sums[m][part] = fma(broadcast(projected[m][j + 1]), second, sum);
        }
    }
}

// Compute products [ROWS][PANEL] of projected[m] [rank] with a panel of b.
template <int ROWS, class Unit>
void multiply_panel(const float* const* projected, const Unit* panel, int64_t rank, float (*products)[PANEL]) {
    constexpr int VECTORS = PANEL / LANES;
    Vec sums[ROWS][VECTORS] = {};
    for (int64_t j = 0; j < rank; j += numbers_of<Unit>(), panel += PANEL) add_ranks(sums, projected, j, panel);
#pragma GCC unroll 4
    for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 8
        for (int part = 0; part < VECTORS; ++part) store(products[m] + part * LANES, sums[m][part]);
}

// sums[n] += products[n] for `count` numbers.
inline void add_numbers(const float* products, int64_t count, float* sums) {
    for (int64_t n = 0; n < count; n += LANES)
        store_first(sums + n, load_first(sums + n, count - n) + load_first(products + n, count - n), count - n);
}

}  // namespace SMOE_ISA
}  // namespace smoe
