// Attention with pairwise bfloat16 products, for bfloat16 queries and bfloat16 or int8 caches on instruction sets that
// multiply pairs: neighbouring dims for scores, neighbouring positions for values. Included by kernel files only.
//
// An int8 row is its bytes, exact in bfloat16, times its scale: a key's scale multiplies the scores of its position, a
// value's scale the weights before they are rounded.
//
// Weights are rounded to bfloat16. Over bfloat16 caches l sums the rounded weights, so that they add up to one.
// attention/bf16_dot_products.h states the order of summation.
#pragma once

#if defined(__AVX512BF16__)

#include "attention/attention.h"
#include "attention/attention_f32.h"
#include "attention/bf16_dot_products.h"
#include "attention/span_softmax.h"
#include "simd/vec_tail.h"

namespace smoe {
namespace SMOE_ISA {

// Attention of one row block over one span. Number is the type that the caches hold: uint16_t (bfloat16) or int8_t;
// Cache<Number> reads them.
template <template <class> class Cache, class Number>
class Bf16Attention : SpanSoftmax {
  public:
    Bf16Attention(const AttentionArgs& args, const RowBlock& block, int64_t span_start, const KvPrefetchSpan& prefetch,
                  float* partials, float* scratch)
        : SpanSoftmax(args, block, span_start, prefetch, partials), dims_(padded_dim(args.head_dim)),
          queries_(reinterpret_cast<uint32_t*>(scratch)), scores_(scratch + num_queries_ * dims_),
          panel_(reinterpret_cast<uint32_t*>(scores_ + num_queries_ * SPAN)) {}

    void run() {
        const Range keys = visible();
        const Cache<Number> cache(args_, block_, span_start_, keys.begin, keys.end);
        const Range panels{keys.begin / TILE_WIDTH * TILE_WIDTH, (keys.end + TILE_WIDTH - 1) / TILE_WIDTH * TILE_WIDTH};
        KvPrefetcher prefetcher(prefetch_, num_steps(panels));
        for (int64_t i = 0; i < num_queries_; ++i) load_query(i);
        if constexpr (IS_SCALED) cache.scales(args_.k_cache, key_scales_), cache.scales(args_.v_cache, value_scales_);
        for (int64_t first = panels.begin; first < panels.end; first += TILE_WIDTH) {
            const KeyColumns columns = cache.key_columns(first, panel_);
            for_tiles(first, [&](int64_t i, int64_t rows) { score(i, rows, first, columns, prefetcher); });
        }
        for (int64_t i = 0; i < num_queries_; ++i) softmax_row(i, panels, prefetcher);
        for (int64_t first = panels.begin; first < panels.end; first += TILE_WIDTH) {
            const int64_t num_pairs = (min(TILE_WIDTH, keys.end - first) + 1) / 2;
            const int64_t depth =
                (num_pairs + Bf16DotProducts::DEPTH - 1) / Bf16DotProducts::DEPTH * Bf16DotProducts::DEPTH;
            const ValueRows values = cache.template value_rows<!Bf16DotProducts::NEEDS_ONE_PANEL>(first, depth, panel_);
            for_tiles(first, [&](int64_t i, int64_t rows) { add_values(i, rows, first, depth, values, prefetcher); });
        }
    }

  private:
    static constexpr bool IS_SCALED = sizeof(Number) == 1;

    static constexpr int64_t SOFTMAX_STEPS = 10;  // of the prefetcher, for a pair of vectors of weights

    // Steps of all products of one k that tiles of queries make over the panels, at most, and of their weights.
    int64_t num_steps(Range panels) const {
        const int64_t tiles = (num_queries_ + Bf16DotProducts::MAX_ROWS - 1) / Bf16DotProducts::MAX_ROWS;
        const int64_t num_panels = (panels.end - panels.begin) / TILE_WIDTH;
        const int64_t products = key_depth() + dims_ / TILE_WIDTH * TILE_WIDTH / 2;
        return num_panels * (tiles * products + num_queries_ * TILE_WIDTH / (2 * LANES) * SOFTMAX_STEPS);
    }

    // Load query i as pairs of dims, zero-padded to the depth of a key panel.
    void load_query(int64_t i) {
        std::memset(queries_ + i * dims_, 0, key_depth() * sizeof(uint32_t));
        std::memcpy(queries_ + i * dims_, query<uint16_t>(i), args_.head_dim * sizeof(uint16_t));
    }

    int64_t key_depth() const { return (args_.head_dim / 2 + LANES - 1) / LANES * LANES; }

    // Call body(first query, count) for each tile of queries that sees any position of the panel at `position`.
    template <class Body>
    void for_tiles(int64_t position, Body&& body) const {
        for (int64_t first = 0; first < num_queries_; first += Bf16DotProducts::MAX_ROWS) {
            const int64_t rows = min(Bf16DotProducts::MAX_ROWS, num_queries_ - first);
            if (!intersect({position, position + TILE_WIDTH}, visible(first, rows)).empty()) body(first, rows);
        }
    }

    // Compute the scores of the panel's keys. Masked positions get a score too; no code reads it.
    void score(int64_t i, int64_t rows, int64_t position, const KeyColumns& columns, KvPrefetcher& prefetcher) {
        float* scores = scores_ + i * SPAN + position;
        products_.multiply(rows, {queries_ + i * dims_, dims_}, columns, key_depth(), scale(), {scores, SPAN},
                           prefetcher);
        if constexpr (IS_SCALED)
            for (int64_t row = 0; row < rows; ++row)
                for (int n = 0; n < TILE_WIDTH; n += LANES)
                    store(scores + row * SPAN + n, load(scores + row * SPAN + n) * load(key_scales_ + position + n));
    }

    // Turn the scores of query i into pairs of weights, for all positions of the panels, in place.
    void softmax_row(int64_t i, Range panels, KvPrefetcher& prefetcher) {
        const Range seen = visible(i);
        float* scores = scores_ + i * SPAN;
        const float largest = seen.empty() ? MINUS_INFINITY : largest_seen(scores, seen);
        start(partial(i), largest);
        Vec total{};
        for (int64_t j = panels.begin; j < panels.end; j += 2 * LANES) {
            Vec halves[2] = {};
            for (int half = 0; half < 2; ++half)
                if (const int64_t first = j + half * LANES; first < seen.end && first + LANES > seen.begin) {
                    halves[half] = weights(scores, first, seen, largest);
                    if constexpr (IS_SCALED) {
                        total += halves[half];
                        halves[half] *= mask(load(value_scales_ + first), first, seen, 0);
                    }
                }
            const auto pairs = (Words)_mm512_cvtne2ps_pbh((__m512)halves[1], (__m512)halves[0]);
            if constexpr (!IS_SCALED) total += from_bits(pairs << 16) + from_bits(pairs & 0xffff0000u);
            std::memcpy(scores + j / 2, &pairs, sizeof pairs);
            prefetcher.step(SOFTMAX_STEPS);
        }
        partial(i)[1] = sum(total);
    }

    // Add weighted values. Masked positions have weight 0.
    void add_values(int64_t i, int64_t rows, int64_t position, int64_t depth, const ValueRows& values,
                    KvPrefetcher& prefetcher) {
        const auto* weights = reinterpret_cast<const uint32_t*>(scores_ + i * SPAN + position / 2);
        for (int64_t dim = 0; dim < dims_; dim += TILE_WIDTH)
            products_.add(rows, {weights, SPAN}, values, dim, depth,
                          {partial(i) + PARTIAL_HEADER + dim, partial_floats(args_.head_dim)}, prefetcher);
    }

    Bf16DotProducts products_;
    const int64_t dims_;                                  // words per query, and per pair of positions in a value panel
    uint32_t* const queries_;                             // [Q, dims]
    float* const scores_;                                 // [Q, SPAN]
    alignas(64) float key_scales_[IS_SCALED ? SPAN : 1];  // of the span's positions
    alignas(64) float value_scales_[IS_SCALED ? SPAN : 1];
    uint32_t* const panel_;  // for key_columns() and value_rows(): MAX_KEY_PANEL * dims words
};

}  // namespace SMOE_ISA
}  // namespace smoe

#endif
