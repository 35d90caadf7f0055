// The two matrix products of attention in float32, for up to TILE_ROWS queries at once. Included by kernel files only.
//
// Both use one accumulator per output and add in ascending order, so a query's result does not depend on the other
// queries in its tile. Keys and values come from panels or, where a tile has all queries, from the cache itself.
#pragma once

#include "attention/attention.h"
#include "attention/kv_tile.h"
#include "attention/span_softmax.h"
#include "simd/vec.h"

namespace smoe {
namespace SMOE_ISA {

// The TILE_ROWS x TILE_VECS accumulators stay in registers, beside TILE_VECS loaded vectors and one broadcast vector.
constexpr int TILE_ROWS = 6;
constexpr int TILE_VECS = LANES == 16 ? 4 : 2;
constexpr int TILE_WIDTH = TILE_VECS * LANES;  // keys of a score tile, dims of a value tile

// Dims of a panel of values: whole tiles.
inline int64_t value_dims(int64_t head_dim) { return (head_dim + TILE_WIDTH - 1) / TILE_WIDTH * TILE_WIDTH; }

// sums[row] += the row's factor times each vector. Factors of rows are `stride` floats apart.
template <int ROWS>
[[gnu::always_inline]] inline void add_products(Vec (&sums)[ROWS][TILE_VECS], const float* factors, int64_t stride,
                                                const Vec (&vectors)[TILE_VECS]) {
#pragma GCC unroll 6
    for (int row = 0; row < ROWS; ++row) {
        const Vec factor = broadcast(factors[row * stride]);
#pragma GCC unroll 4
        for (int n = 0; n < TILE_VECS; ++n) add_product(sums[row][n], factor, vectors[n]);
    }
}

template <int ROWS>
inline void store_scores(const Vec (&sums)[ROWS][TILE_VECS], float scale, float* scores) {
#pragma GCC unroll 6
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
        for (int n = 0; n < TILE_VECS; ++n) store(scores + row * SPAN + n * LANES, sums[row][n] * scale);
}

// queries [ROWS, head_dim] times keys [head_dim, TILE_WIDTH], scaled, into scores [ROWS, SPAN].
template <int ROWS>
inline void score_tile(const float* queries, int64_t query_stride, const float* keys, int64_t head_dim, float scale,
                       float* scores) {
    Vec sums[ROWS][TILE_VECS] = {};
    for (int64_t k = 0; k < head_dim; ++k) {
        Vec key[TILE_VECS];
#pragma GCC unroll 4
        for (int n = 0; n < TILE_VECS; ++n) key[n] = load(keys + k * TILE_WIDTH + n * LANES);
        add_products(sums, queries + k, query_stride, key);
    }
    store_scores(sums, scale, scores);
}

// As score_tile(), of keys [n][at(k)] in pairs of neighbouring dims.
template <int ROWS, class Keys, class Prefetcher>
[[gnu::noinline]] void score_pairs(const float* queries, int64_t query_stride, const Keys (&keys)[TILE_VECS],
                                   int64_t head_dim, float scale, float* scores, Prefetcher& prefetcher) {
    Vec sums[ROWS][TILE_VECS] = {};
    for (int64_t k = 0; k < head_dim; k += 2) {
        Vec first[TILE_VECS], second[TILE_VECS];
#pragma GCC unroll 4
        for (int n = 0; n < TILE_VECS; ++n) {
            const PairVecs pair = keys[n].at(k);
            first[n] = pair.first, second[n] = pair.second;
        }
        add_products(sums, queries + k, query_stride, first);
        add_products(sums, queries + k + 1, query_stride, second);
        prefetcher.step(TILE_VECS);
    }
    store_scores(sums, scale, scores);
}

// TILE_WIDTH dims of the o of some queries, while weighted values are added.
template <int ROWS>
class Outputs {
  public:
    Outputs(float* outputs, int64_t stride) : outputs_(outputs), stride_(stride) {
#pragma GCC unroll 6
        for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
            for (int n = 0; n < TILE_VECS; ++n) sums_[row][n] = load(outputs + row * stride + n * LANES);
    }

    // Add the values of one position; `weights`: of it, [ROWS, SPAN].
    [[gnu::always_inline]] inline void add(const float* weights, const Vec (&values)[TILE_VECS]) {
        add_products(sums_, weights, SPAN, values);
    }

    void finish() const {
#pragma GCC unroll 6
        for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
            for (int n = 0; n < TILE_VECS; ++n) store(outputs_ + row * stride_ + n * LANES, sums_[row][n]);
    }

  private:
    float* const outputs_;
    const int64_t stride_;
    Vec sums_[ROWS][TILE_VECS];
};

// Add weights [ROWS, SPAN] times values [num_positions, value_stride] to TILE_WIDTH dims of each row's o.
template <int ROWS>
[[gnu::noinline]] void value_tile(const float* weights, const float* values, int64_t value_stride,
                                  int64_t num_positions, float* outputs, int64_t output_stride) {
    Outputs<ROWS> sums(outputs, output_stride);
    for (int64_t j = 0; j < num_positions; ++j) {
        Vec value[TILE_VECS];
#pragma GCC unroll 4
        for (int n = 0; n < TILE_VECS; ++n) value[n] = load(values + j * value_stride + n * LANES);
        sums.add(weights + j, value);
    }
    sums.finish();
}

// As value_tile(), of positions of a cache that has them in pairs; `weights`: [ROWS, SPAN].
template <int ROWS, class Cache, class Prefetcher>
[[gnu::noinline]] void value_pairs(const float* weights, const Cache& cache, int64_t dim, Range positions,
                                   float* outputs, int64_t output_stride, Prefetcher& prefetcher) {
    Outputs<ROWS> sums(outputs, output_stride);
    for (int64_t j = positions.begin; j < positions.end;) {
        const int64_t end = min((j / KV_TILE + 1) * KV_TILE, positions.end);
        auto pair = cache.value_pair(j / 2 * 2, dim);
        if (j % 2) {
            Vec first[TILE_VECS], second[TILE_VECS];
            pair.load(first, second);
            sums.add(weights + j++, second);
            pair.advance();
        }
        for (; j + 1 < end; j += 2, pair.advance()) {
            Vec first[TILE_VECS], second[TILE_VECS];
            pair.load(first, second);
            sums.add(weights + j, first);
            sums.add(weights + j + 1, second);
            prefetcher.step(2);
        }
        if (j < end) {
            Vec first[TILE_VECS], second[TILE_VECS];
            pair.load(first, second);
            sums.add(weights + j++, first);
        }
    }
    sums.finish();
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
