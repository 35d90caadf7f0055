// Attention in bfloat16 products, two at a time, where queries and caches are bfloat16 and the instruction set multiplies
// such pairs: of neighbouring dims for scores, of neighbouring positions for values. Included by kernel files only.
//
// Products are exact and are summed in float32. Weights are rounded to bfloat16, and l is the sum of what they were rounded
// to, so that they still add up to one. One accumulator per number, in ascending order, as in attention_tiles.h.
#pragma once

#if defined(__AVX512BF16__)

#include "attention.h"
#include "attention_tiles.h"
#include "span_block.h"
#include "span_cache.h"
#include "vec_part.h"

namespace smoe {
namespace SMOE_ISA {

// sums [ROWS][TILE_VECS] += pairs [ROWS, depth] times panel [depth, TILE_WIDTH], in words of two numbers.
template <int ROWS>
inline void add_pairs(Vec (&sums)[ROWS][TILE_VECS], const uint32_t* pairs, int64_t pair_stride, const uint32_t* panel,
                      int64_t panel_stride, int64_t depth) {
    for (int64_t k = 0; k < depth; ++k) {
        __m512bh column[TILE_VECS];
#pragma GCC unroll 4
        for (int n = 0; n < TILE_VECS; ++n) column[n] = (__m512bh)load_words(panel + k * panel_stride + n * LANES);
#pragma GCC unroll 6
        for (int row = 0; row < ROWS; ++row) {
            const auto pair = (__m512bh)broadcast_word(pairs[row * pair_stride + k]);
#pragma GCC unroll 4
            for (int n = 0; n < TILE_VECS; ++n)
                sums[row][n] = (Vec)_mm512_dpbf16_ps((__m512)sums[row][n], pair, column[n]);
        }
    }
}

// A row block over a span.
class PairAttention : SpanBlock {
  public:
    PairAttention(const AttentionArgs& args, const RowBlock& block, int64_t span_start, float* partials, float* scratch)
        : SpanBlock(args, block, span_start, partials), dims_(padded_dim(args.head_dim)),
          queries_(reinterpret_cast<uint32_t*>(scratch)), scores_(scratch + num_queries_ * dims_),
          panel_(reinterpret_cast<uint32_t*>(scores_ + num_queries_ * SPAN)) {}

    void run() {
        const Range keys = visible();
        const SpanCache<uint16_t> cache(args_, block_, span_start_, keys.begin, keys.end);
        const Range panels{keys.begin / TILE_WIDTH * TILE_WIDTH, (keys.end + TILE_WIDTH - 1) / TILE_WIDTH * TILE_WIDTH};
        for (int64_t i = 0; i < num_queries_; ++i)
            std::memcpy(queries_ + i * dims_, query<uint16_t>(i), args_.head_dim * sizeof(uint16_t));
        for (int64_t first = panels.begin; first < panels.end; first += TILE_WIDTH) {
            cache.pack_key_pairs<TILE_WIDTH>(first, panel_);
            for_tiles(first, [&](auto tile, int64_t i) { score<tile.value>(i, first); });
        }
        for (int64_t i = 0; i < num_queries_; ++i) soften(i, panels);
        for (int64_t first = panels.begin; first < panels.end; first += TILE_WIDTH) {
            const int64_t last = min(first + TILE_WIDTH, keys.end);
            cache.pack_value_pairs(first, last, panel_);
            for_tiles(first, [&](auto tile, int64_t i) { add_values<tile.value>(i, first, (last - first + 1) / 2); });
        }
    }

  private:
    // Calls body(Rows<rows>, first query) for each tile of queries that sees something of the panel from `position` on.
    template <class Body>
    void for_tiles(int64_t position, Body&& body) const {
        for (int64_t first = 0; first < num_queries_; first += TILE_ROWS) {
            const int64_t rows = min(TILE_ROWS, num_queries_ - first);
            if (intersect({position, position + TILE_WIDTH}, visible(first, rows)).empty()) continue;
            with_rows(rows, [&](auto tile) { body(tile, first); });
        }
    }

    // Scores of the panel's keys, also of some that their query does not see: nobody reads those.
    template <int ROWS>
    void score(int64_t i, int64_t position) {
        Vec sums[ROWS][TILE_VECS] = {};
        add_pairs(sums, queries_ + i * dims_, dims_, panel_, TILE_WIDTH, args_.head_dim / 2);
        for (int row = 0; row < ROWS; ++row)
            for (int n = 0; n < TILE_VECS; ++n)
                store(scores_ + (i + row) * SPAN + position + n * LANES, sums[row][n] * scale());
    }

    // Scores of query i -> pairs of weights of all positions of the panels, at the front of the scores' own memory.
    void soften(int64_t i, Range panels) {
        const Range seen = visible(i);
        float* scores = scores_ + i * SPAN;
        start(partial(i), seen.empty() ? MINUS_INFINITY : largest_seen(scores, seen));
        Vec total{};
        for (int64_t j = panels.begin; j < panels.end; j += 2 * LANES) {
            Vec halves[2] = {};
            for (int half = 0; half < 2; ++half)
                if (const int64_t first = j + half * LANES; first < seen.end && first + LANES > seen.begin)
                    halves[half] = weights(scores, first, seen, partial(i)[0]);
            const auto pairs = (Words)_mm512_cvtne2ps_pbh((__m512)halves[1], (__m512)halves[0]);
            total += from_bits(pairs << 16) + from_bits(pairs & 0xffff0000u);
            std::memcpy(scores + j / 2, &pairs, sizeof pairs);
        }
        partial(i)[1] = sum(total);
    }

    // Positions that a query does not see have weight 0, and add nothing.
    template <int ROWS>
    void add_values(int64_t i, int64_t position, int64_t num_pairs) {
        const auto* weights = reinterpret_cast<const uint32_t*>(scores_ + i * SPAN + position / 2);
        for (int64_t dim = 0; dim < dims_; dim += TILE_WIDTH) {
            Vec sums[ROWS][TILE_VECS];
            for (int row = 0; row < ROWS; ++row)
                for (int n = 0; n < TILE_VECS; ++n) sums[row][n] = load(output(i + row, dim) + n * LANES);
            add_pairs(sums, weights, SPAN, panel_ + dim, dims_, num_pairs);
            for (int row = 0; row < ROWS; ++row)
                for (int n = 0; n < TILE_VECS; ++n) store(output(i + row, dim) + n * LANES, sums[row][n]);
        }
    }

    float* output(int64_t i, int64_t dim) const { return partial(i) + PARTIAL_HEADER + dim; }

    const int64_t dims_;       // words of a query, and of a pair of positions in the panel of values
    uint32_t* const queries_;  // [Q, dims]
    float* const scores_;      // [Q, SPAN]
    uint32_t* const panel_;    // [K/2, TILE_WIDTH] of keys, then [TILE_WIDTH / 2, dims] of values
};

}  // namespace SMOE_ISA
}  // namespace smoe

#endif
