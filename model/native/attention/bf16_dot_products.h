// Dot products of bfloat16 pairs, accumulated in float32, for up to MAX_ROWS attention rows at once. Included by kernel
// files only.
//
// A word holds two numbers of neighbouring k. One accumulator per output, k ascending, for any number of rows. Columns
// and values may be pairs of int8 numbers (uint16_t) too, which bfloat16 holds exactly.
#pragma once

#if defined(__AVX512BF16__)

#include <algorithm>

#include "attention/attention_f32.h"
#include "attention/kv_row.h"
#include "gemm/amx_tiles.h"

namespace smoe {
namespace SMOE_ISA {

// Row-major matrix; rows are `stride` elements apart.
template <class T>
struct Matrix {
    T* first;
    int64_t stride;
};

// TILE_WIDTH columns of pairs, in groups of LANES; the rows of a group are `stride` pairs apart.
template <class Pair>
struct KeyColumns {
    const Pair* groups[TILE_VECS];
    int64_t stride;
    const float* scales = nullptr;  // of the columns; null: ones
};

// Rows of pairs, in runs of VALUE_RUN rows that are `stride` pairs apart.
constexpr int64_t VALUE_RUN = KV_TILE / 2;
template <class Pair>
struct ValueRows {
    const Pair* runs[TILE_WIDTH / KV_TILE];
    int64_t stride;
};

inline Vec scaled(Vec sums, const float* scales, int column) { return scales ? sums * load(scales + column) : sums; }

// Load LANES pairs as bfloat16.
inline __m512bh load_pairs_bf16(const uint32_t* pairs) { return (__m512bh)load_words(pairs); }
inline __m512bh load_pairs_bf16(const uint16_t* pairs) {
    return (__m512bh)widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs)));
}

// Each step of the prefetcher goes with one k.
#if defined(__AMX_TILE__)

template <class Prefetcher>
class Bf16DotProducts {
  public:
    static constexpr int64_t MAX_ROWS = 16;
    static constexpr int64_t DEPTH = LINE;         // the depth is a multiple of this
    static constexpr bool NEEDS_ONE_PANEL = true;  // of words: the runs of ValueRows lie one behind the other

    // sums [rows, TILE_WIDTH] = pairs [rows, depth] times columns [depth, TILE_WIDTH], times their scales.
    void multiply(int64_t rows, Matrix<const uint32_t> pairs, const KeyColumns<uint32_t>& columns, int64_t depth,
                  Matrix<float> sums, Prefetcher& prefetcher) {
        add_to<true>(rows, pairs, columns, depth, sums, prefetcher);
        if (columns.scales)
            for (int64_t row = 0; row < rows; ++row)
                for (int n = 0; n < TILE_WIDTH; n += LANES) {
                    float* sum = sums.first + row * sums.stride + n;
                    store(sum, scaled(load(sum), columns.scales, n));
                }
    }

    // sums += pairs [rows, depth] times TILE_WIDTH columns of `values` from `column` on.
    void add(int64_t rows, Matrix<const uint32_t> pairs, const ValueRows<uint32_t>& values, int64_t column,
             int64_t depth, Matrix<float> sums, Prefetcher& prefetcher) {
        const uint32_t* first = values.runs[0] + column;
        const KeyColumns<uint32_t> columns{{first, first + LANES, first + 2 * LANES, first + 3 * LANES}, values.stride};
        add_to<false>(rows, pairs, columns, depth, sums, prefetcher);
    }

  private:
    template <bool FROM_ZERO>
    void add_to(int64_t rows, Matrix<const uint32_t> pairs, KeyColumns<uint32_t> columns, int64_t depth,
                Matrix<float> sums, Prefetcher& prefetcher) {
        registers_.shape_wide(static_cast<int>(rows));
        compiler_barrier();
        begin<FROM_ZERO>(sums);
        const int64_t column_bytes = columns.stride * 4;
        for (; depth; depth -= LINE) {
            _tile_loadd(4, pairs.first, pairs.stride * 4);
            _tile_loadd(5, columns.groups[0], column_bytes);
            _tile_loadd(6, columns.groups[1], column_bytes);
            _tile_loadd(7, columns.groups[2], column_bytes);
            _tile_dpbf16ps(0, 4, 5);
            _tile_dpbf16ps(1, 4, 6);
            _tile_dpbf16ps(2, 4, 7);
            _tile_loadd(5, columns.groups[3], column_bytes);
            _tile_dpbf16ps(3, 4, 5);
            pairs.first += LINE;
            for (const uint32_t*& group : columns.groups) group += LINE * columns.stride;
            prefetcher.step(LINE);
        }
        _tile_stored(0, sums.first, sums.stride * 4);
        _tile_stored(1, sums.first + 16, sums.stride * 4);
        _tile_stored(2, sums.first + 32, sums.stride * 4);
        _tile_stored(3, sums.first + 48, sums.stride * 4);
        compiler_barrier();
    }

    template <bool FROM_ZERO>
    static void begin(Matrix<float> sums) {
        if constexpr (FROM_ZERO) {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
        } else {
            _tile_loadd(0, sums.first, sums.stride * 4);
            _tile_loadd(1, sums.first + 16, sums.stride * 4);
            _tile_loadd(2, sums.first + 32, sums.stride * 4);
            _tile_loadd(3, sums.first + 48, sums.stride * 4);
        }
    }

    AmxTiles registers_;
};

#else

template <class Prefetcher>
class Bf16DotProducts {
  public:
    static constexpr int64_t MAX_ROWS = TILE_ROWS;
    static constexpr int64_t DEPTH = 1;
    static constexpr bool NEEDS_ONE_PANEL = false;

    // sums [rows, TILE_WIDTH] = pairs [rows, depth] times columns [depth, TILE_WIDTH], times their scales.
    template <class Pair>
    void multiply(int64_t rows, Matrix<const uint32_t> pairs, const KeyColumns<Pair>& columns, int64_t depth,
                  Matrix<float> sums, Prefetcher& prefetcher) const {
        with_rows(rows, [&](auto tile) { multiply_rows<tile.value>(pairs, columns, depth, sums, prefetcher); });
    }

    // sums += pairs [rows, depth] times TILE_WIDTH columns of `values` from `column` on.
    template <class Pair>
    void add(int64_t rows, Matrix<const uint32_t> pairs, const ValueRows<Pair>& values, int64_t column, int64_t depth,
             Matrix<float> sums, Prefetcher& prefetcher) const {
        with_rows(rows, [&](auto tile) { add_rows<tile.value>(pairs, values, column, depth, sums, prefetcher); });
    }

  private:
    template <int ROWS, class Pair>
    static void multiply_rows(Matrix<const uint32_t> pairs, const KeyColumns<Pair>& columns, int64_t depth,
                              Matrix<float> into, Prefetcher& prefetcher) {
        Vec sums[ROWS][TILE_VECS] = {};
        for (int64_t k = 0; k < depth; ++k) {
            __m512bh column[TILE_VECS];
#pragma GCC unroll 4
            for (int n = 0; n < TILE_VECS; ++n) column[n] = load_pairs_bf16(columns.groups[n] + k * columns.stride);
            add_products(sums, pairs, k, column);
            prefetcher.step();
        }
#pragma GCC unroll 6
        for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
            for (int n = 0; n < TILE_VECS; ++n)
                store(into.first + row * into.stride + n * LANES, scaled(sums[row][n], columns.scales, n * LANES));
    }

    template <int ROWS, class Pair>
    static void add_rows(Matrix<const uint32_t> pairs, const ValueRows<Pair>& values, int64_t first, int64_t depth,
                         Matrix<float> into, Prefetcher& prefetcher) {
        Vec sums[ROWS][TILE_VECS];
#pragma GCC unroll 6
        for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
            for (int n = 0; n < TILE_VECS; ++n) sums[row][n] = load(into.first + row * into.stride + n * LANES);
        for (int64_t run = 0; run * VALUE_RUN < depth; ++run) {
            const Pair* row = values.runs[run] + first;
            const int64_t end = std::min(depth, (run + 1) * VALUE_RUN);
            for (int64_t k = run * VALUE_RUN; k < end; ++k, row += values.stride) {
                __m512bh column[TILE_VECS];
#pragma GCC unroll 4
                for (int n = 0; n < TILE_VECS; ++n) column[n] = load_pairs_bf16(row + n * LANES);
                add_products(sums, pairs, k, column);
                prefetcher.step();
            }
        }
#pragma GCC unroll 6
        for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
            for (int n = 0; n < TILE_VECS; ++n) store(into.first + row * into.stride + n * LANES, sums[row][n]);
    }

    // sums += pair k of each row times the columns.
    template <int ROWS>
    static inline __attribute__((always_inline)) void add_products(Vec (&sums)[ROWS][TILE_VECS],
                                                                   Matrix<const uint32_t> pairs, int64_t k,
                                                                   const __m512bh (&column)[TILE_VECS]) {
#pragma GCC unroll 6
        for (int row = 0; row < ROWS; ++row) {
            const auto pair = (__m512bh)broadcast_word(pairs.first[row * pairs.stride + k]);
#pragma GCC unroll 4
            for (int n = 0; n < TILE_VECS; ++n)
                sums[row][n] = (Vec)_mm512_dpbf16_ps((__m512)sums[row][n], pair, column[n]);
        }
    }
};

#endif

}  // namespace SMOE_ISA
}  // namespace smoe

#endif
