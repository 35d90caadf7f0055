// Attention in bfloat16 products, two at a time, where queries and caches are bfloat16 and the instruction set
// multiplies such pairs: of neighbouring dims for scores, of neighbouring positions for values. Included by kernel
// files only.
//
// Weights are rounded to bfloat16, and l is the sum of what they were rounded to, so that they still add up to one.
// attention/bf16_dot_products.h says in which order products are summed.
#pragma once

#if defined(__AVX512BF16__)

#include "attention/attention.h"
#include "attention/attention_f32.h"
#include "attention/bf16_dot_products.h"
#include "attention/kv_span.h"
#include "attention/span_softmax.h"
#include "simd/vec_tail.h"

namespace smoe {
namespace SMOE_ISA {

// A row block over a span.
class Bf16Attention : SpanSoftmax {
  public:
    Bf16Attention(const AttentionArgs& args, const RowBlock& block, int64_t span_start, const KvPrefetchSpan& ahead,
                  float* partials, float* scratch)
        : SpanSoftmax(args, block, span_start, ahead, partials), dims_(padded_dim(args.head_dim)),
          queries_(reinterpret_cast<uint32_t*>(scratch)), scores_(scratch + num_queries_ * dims_),
          panel_(reinterpret_cast<uint32_t*>(scores_ + num_queries_ * SPAN)) {}

    void run() {
        const Range keys = visible();
        const KvSpan<uint16_t> cache(args_, block_, span_start_, keys.begin, keys.end);
        const Range panels{keys.begin / TILE_WIDTH * TILE_WIDTH, (keys.end + TILE_WIDTH - 1) / TILE_WIDTH * TILE_WIDTH};
        const int64_t num_panels = (panels.end - panels.begin) / TILE_WIDTH;
        KvPrefetcher asking(ahead_, num_panels * (key_squares(TILE_WIDTH, args_.head_dim / 2) + TILE_WIDTH / 2));
        for (int64_t i = 0; i < num_queries_; ++i) load_query(i);
        for (int64_t first = panels.begin; first < panels.end; first += TILE_WIDTH) {
            cache.pack_key_pairs<TILE_WIDTH>(first, panel_, asking);
            for_tiles(first, [&](int64_t i, int64_t rows) { score(i, rows, first); });
        }
        for (int64_t i = 0; i < num_queries_; ++i) softmax_row(i, panels);
        for (int64_t first = panels.begin; first < panels.end; first += TILE_WIDTH) {
            const int64_t num_pairs = (min(TILE_WIDTH, keys.end - first) + 1) / 2;
            const int64_t depth =
                (num_pairs + Bf16DotProducts::DEPTH - 1) / Bf16DotProducts::DEPTH * Bf16DotProducts::DEPTH;
            cache.pack_value_pairs(first, first + 2 * depth, panel_, asking);
            for_tiles(first, [&](int64_t i, int64_t rows) { add_values(i, rows, first, depth); });
        }
    }

  private:
    // Pairs of a query's dims, zeros behind them as far as a panel of keys goes.
    void load_query(int64_t i) {
        std::memset(queries_ + i * dims_, 0, key_depth() * sizeof(uint32_t));
        std::memcpy(queries_ + i * dims_, query<uint16_t>(i), args_.head_dim * sizeof(uint16_t));
    }

    int64_t key_depth() const { return (args_.head_dim / 2 + LANES - 1) / LANES * LANES; }

    // Calls body(first query, count) for each tile of queries that sees something of the panel from `position` on.
    template <class Body>
    void for_tiles(int64_t position, Body&& body) const {
        for (int64_t first = 0; first < num_queries_; first += Bf16DotProducts::MAX_ROWS) {
            const int64_t rows = min(Bf16DotProducts::MAX_ROWS, num_queries_ - first);
            if (!intersect({position, position + TILE_WIDTH}, visible(first, rows)).empty()) body(first, rows);
        }
    }

    // Scores of the panel's keys, also of some that their query does not see: nobody reads those.
    void score(int64_t i, int64_t rows, int64_t position) {
        float* scores = scores_ + i * SPAN + position;
        products_.multiply(rows, {queries_ + i * dims_, dims_}, {panel_, TILE_WIDTH}, key_depth(), scale(),
                           {scores, SPAN});
    }

    // Scores of query i -> pairs of weights of all positions of the panels, at the front of the scores' own memory.
    void softmax_row(int64_t i, Range panels) {
        const Range seen = visible(i);
        float* scores = scores_ + i * SPAN;
        const float largest = seen.empty() ? MINUS_INFINITY : largest_seen(scores, seen);
        start(partial(i), largest);
        Vec total{};
        for (int64_t j = panels.begin; j < panels.end; j += 2 * LANES) {
            Vec halves[2] = {};
            for (int half = 0; half < 2; ++half)
                if (const int64_t first = j + half * LANES; first < seen.end && first + LANES > seen.begin)
                    halves[half] = weights(scores, first, seen, largest);
            const auto pairs = (Words)_mm512_cvtne2ps_pbh((__m512)halves[1], (__m512)halves[0]);
            total += from_bits(pairs << 16) + from_bits(pairs & 0xffff0000u);
            std::memcpy(scores + j / 2, &pairs, sizeof pairs);
        }
        partial(i)[1] = sum(total);
    }

    // Positions that a query does not see have weight 0, and add nothing.
    void add_values(int64_t i, int64_t rows, int64_t position, int64_t depth) {
        const auto* weights = reinterpret_cast<const uint32_t*>(scores_ + i * SPAN + position / 2);
        for (int64_t dim = 0; dim < dims_; dim += TILE_WIDTH)
            products_.add(rows, {weights, SPAN}, {panel_ + dim, dims_}, depth,
                          {partial(i) + PARTIAL_HEADER + dim, partial_floats(args_.head_dim)});
    }

    Bf16DotProducts products_;
    const int64_t dims_;       // words of a query, and of a pair of positions in the panel of values
    uint32_t* const queries_;  // [Q, dims]
    float* const scores_;      // [Q, SPAN]
    uint32_t* const panel_;    // [K/2, TILE_WIDTH] of keys, then [TILE_WIDTH / 2, dims] of values
};

}  // namespace SMOE_ISA
}  // namespace smoe

#endif
