// The two matrix products of attention in float32, for up to TILE_ROWS queries at once. Included by kernel files only.
//
// Both use one accumulator per output and add in ascending order, so a query's result does not depend on the other
// queries in its tile.
#pragma once

#include "attention/attention.h"
#include "simd/vec.h"

namespace smoe {
namespace SMOE_ISA {

// The TILE_ROWS x TILE_VECS accumulators stay in registers, beside TILE_VECS loaded vectors and one broadcast vector.
constexpr int TILE_ROWS = 6;
constexpr int TILE_VECS = LANES == 16 ? 4 : 2;
constexpr int TILE_WIDTH = TILE_VECS * LANES;  // keys of a score tile, dims of a value tile

// queries [ROWS, head_dim] times keys [head_dim, TILE_WIDTH], scaled, into scores [ROWS, SPAN].
template <int ROWS>
inline void score_tile(const float* queries, int64_t query_stride, const float* keys, int64_t head_dim, float scale,
                       float* scores) {
    Vec sums[ROWS][TILE_VECS] = {};
    for (int64_t k = 0; k < head_dim; ++k) {
        Vec key[TILE_VECS];
#pragma GCC unroll 4
        for (int n = 0; n < TILE_VECS; ++n) key[n] = load(keys + k * TILE_WIDTH + n * LANES);
#pragma GCC unroll 6
        for (int row = 0; row < ROWS; ++row) {
            const Vec query = broadcast(queries[row * query_stride + k]);
#pragma GCC unroll 4
            for (int n = 0; n < TILE_VECS; ++n) sums[row][n] = fma(query, key[n], sums[row][n]);
        }
    }
#pragma GCC unroll 6
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
        for (int n = 0; n < TILE_VECS; ++n) store(scores + row * SPAN + n * LANES, sums[row][n] * scale);
}

// Add weights [ROWS, SPAN] times values [num_positions, value_stride] to TILE_WIDTH dims of each row's o.
template <int ROWS>
inline void value_tile(const float* weights, const float* values, int64_t value_stride, int64_t num_positions,
                       float* outputs, int64_t output_stride) {
    Vec sums[ROWS][TILE_VECS];
#pragma GCC unroll 6
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
        for (int n = 0; n < TILE_VECS; ++n) sums[row][n] = load(outputs + row * output_stride + n * LANES);
    for (int64_t j = 0; j < num_positions; ++j) {
        Vec value[TILE_VECS];
#pragma GCC unroll 4
        for (int n = 0; n < TILE_VECS; ++n) value[n] = load(values + j * value_stride + n * LANES);
#pragma GCC unroll 6
        for (int row = 0; row < ROWS; ++row) {
            const Vec weight = broadcast(weights[row * SPAN + j]);
#pragma GCC unroll 4
            for (int n = 0; n < TILE_VECS; ++n) sums[row][n] = fma(weight, value[n], sums[row][n]);
        }
    }
#pragma GCC unroll 6
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
        for (int n = 0; n < TILE_VECS; ++n) store(outputs + row * output_stride + n * LANES, sums[row][n]);
}

template <int N>
struct Rows {
    static constexpr int value = N;
};

// Call tile(Rows<rows>) for 1 <= rows <= TILE_ROWS.
template <class Tile>
inline void with_rows(int64_t rows, Tile tile) {
    switch (rows) {
        case 1: return tile(Rows<1>{});
        case 2: return tile(Rows<2>{});
        case 3: return tile(Rows<3>{});
        case 4: return tile(Rows<4>{});
        case 5: return tile(Rows<5>{});
        default: return tile(Rows<6>{});
    }
}

}  // namespace SMOE_ISA
}  // namespace smoe
