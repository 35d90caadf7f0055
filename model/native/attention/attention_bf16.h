// Attention with pairwise bfloat16 products, for bfloat16 queries and bfloat16 or int8 caches on instruction sets that
// multiply pairs: neighbouring dims for scores, neighbouring positions for values. Included by kernel files only.
//
// An int8 row is its bytes, exact in bfloat16, times its scale: a key's scale multiplies the scores of its position, a
// value's scale the weights before they are rounded.
//
// On AMX it serves up to 16 queries of a KV head, attention/attention_amx.h more, with the same bits. One exception: a
// NaN or infinity among a bfloat16 cache's values reaches also queries that are multiplied together with one that sees
// it, since 0 times NaN is NaN.
//
// attention/bf16_softmax.h states what weights are, attention/bf16_dot_products.h the order of summation.
#pragma once

#if defined(__AVX512BF16__)

#include "attention/attention.h"
#include "attention/attention_f32.h"
#include "attention/bf16_dot_products.h"
#include "attention/bf16_softmax.h"
#include "attention/kv_tile_prefetch.h"

namespace smoe {
namespace SMOE_ISA {

// Attention of one row block over one span. Number is the type that the caches hold: uint16_t (bfloat16) or int8_t;
// Cache<Number> reads them.
//
// The work is divided into items: first the keys of each panel of TILE_WIDTH positions and each KV head, heads inside,
// then the values in the same order. During an item the next one is prefetched.
template <template <class> class Cache, class Number>
class Bf16Attention : Bf16Softmax {
  public:
    Bf16Attention(const AttentionArgs& args, const RowBlock& block, int64_t span_start, const KvPrefetchSpan& prefetch,
                  float* partials, float* scratch)
        : Bf16Softmax(args, block, span_start, prefetch, partials), keys_(visible()),
          panels_{keys_.begin / TILE_WIDTH * TILE_WIDTH, (keys_.end + TILE_WIDTH - 1) / TILE_WIDTH * TILE_WIDTH},
          heads_(block.num_kv_heads), num_items_((panels_.end - panels_.begin) / TILE_WIDTH * heads_),
          cache_(args, block, span_start, keys_.begin, keys_.end), prefetcher_(prefetch, num_steps()),
          dims_(padded_dim(args.head_dim)), queries_(reinterpret_cast<uint32_t*>(scratch)),
          scores_(scratch + heads_ * num_queries_ * dims_),
          panel_(reinterpret_cast<uint32_t*>(scores_ + heads_ * num_queries_ * SPAN)) {}

    void run() {
        for (int64_t i = 0; i < heads_ * num_queries_; ++i) load_query(i);
        for (int64_t item = 0; item < num_items_; ++item) {
            const int64_t head = item % heads_, first = position(item);
            const bool is_last = item + heads_ >= num_items_;
            prefetcher_.begin(tiles(item + 1), key_steps() + (is_last ? softmax_steps() : 0));
            multiply_keys(head, first);
            if (is_last) softmax(head);
        }
        for (int64_t item = 0; item < num_items_; ++item) {
            prefetcher_.begin(tiles(num_items_ + item + 1), value_steps());
            add_values(item % heads_, position(item));
        }
    }

  private:
    static constexpr bool IS_SCALED = sizeof(Number) == 1;

    using Prefetcher = typename Cache<Number>::Prefetcher;
    using Products = Bf16DotProducts<Prefetcher>;
    static constexpr bool MAY_READ_IN_PLACE = Cache<Number>::HAS_PAIRS_IN_PLACE && !Products::NEEDS_ONE_PANEL;

    static constexpr int64_t SOFTMAX_STEPS = 10;  // of the prefetcher, for a pair of vectors of weights

    // First position of the item's panel.
    int64_t position(int64_t item) const { return panels_.begin + item / heads_ * TILE_WIDTH; }

    // Tiles of an item; after the last the first ones of the span that follows.
    KvTiles tiles(int64_t item) const {
        if (item >= 2 * num_items_) return first_tiles(prefetch_);
        const bool is_values = item >= num_items_;
        if (is_values) item -= num_items_;
        return cache_.tiles(is_values ? args_.v_cache : args_.k_cache, item % heads_, position(item));
    }

    // Steps of all products of one k that an item makes at most, and of the weights of one KV head.
    int64_t query_tiles() const { return (num_queries_ + Products::MAX_ROWS - 1) / Products::MAX_ROWS; }
    int64_t key_steps() const { return query_tiles() * key_depth(); }
    int64_t value_steps() const { return query_tiles() * dims_ / TILE_WIDTH * TILE_WIDTH / 2; }
    int64_t softmax_steps() const { return num_queries_ * (panels_.end - panels_.begin) / (2 * LANES) * SOFTMAX_STEPS; }
    int64_t num_steps() const {
        return num_items_ * (key_steps() + query_tiles() * padded_dim(args_.head_dim) / 2) + heads_ * softmax_steps();
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
        for (int64_t first = 0; first < num_queries_; first += Products::MAX_ROWS) {
            const int64_t rows = min(Products::MAX_ROWS, num_queries_ - first);
            if (!intersect({position, position + TILE_WIDTH}, visible(first, rows)).empty()) body(first, rows);
        }
    }

    // True if the pairs of int8 caches are widened while they are multiplied: with few queries that is less work than
    // widened panels are.
    bool reads_in_place() const {
        if constexpr (MAY_READ_IN_PLACE) return num_queries_ <= Products::MAX_ROWS && cache_.has_pairs_in_place();
        return false;
    }

    // Compute the scores of the panel's keys. Masked positions get a score too; no code reads it.
    void multiply_keys(int64_t head, int64_t first) {
        if constexpr (IS_SCALED) cache_.scales(args_.k_cache, head, {first, first + TILE_WIDTH}, key_scales_);
        if constexpr (MAY_READ_IN_PLACE)
            if (reads_in_place()) return multiply_columns(head, first, cache_.key_columns_in_place(head, first));
        multiply_columns(head, first, cache_.key_columns(head, first, panel_));
    }

    template <class Pair>
    void multiply_columns(int64_t head, int64_t first, KeyColumns<Pair> columns) {
        if constexpr (IS_SCALED) columns.scales = key_scales_;
        for_tiles(first, [&](int64_t i, int64_t rows) {
            i += head * num_queries_;
            products_.multiply(rows, {queries_ + i * dims_, dims_}, columns, key_depth(),
                               {scores_ + i * SPAN + first, SPAN}, prefetcher_);
        });
    }

    // Turn the scores of a KV head's queries into weights; clear their outputs.
    void softmax(int64_t head) {
        if constexpr (IS_SCALED) cache_.scales(args_.v_cache, head, panels_, value_scales_ + panels_.begin);
        float* scores = scores_ + head * num_queries_ * SPAN;
        float* to = partial(head * num_queries_);
        find_largest(scores, 0, num_queries_, to);
        for (int64_t i = 0; i < num_queries_; ++i, scores += SPAN, to += partial_floats(args_.head_dim)) {
            weigh<IS_SCALED>(panels_, visible(i), scores, value_scales_, to, [&] { prefetcher_.step(SOFTMAX_STEPS); });
            clear_output(to);
        }
    }

    // Add the panel's weighted values. Masked positions have weight 0.
    void add_values(int64_t head, int64_t first) {
        const int64_t num_pairs = (min(TILE_WIDTH, keys_.end - first) + 1) / 2;
        const int64_t depth = (num_pairs + Products::DEPTH - 1) / Products::DEPTH * Products::DEPTH;
        if constexpr (MAY_READ_IN_PLACE)
            if (reads_in_place()) return add_rows(head, first, depth, cache_.value_rows_in_place(head, first));
        add_rows(head, first, depth,
                 cache_.template value_rows<!Products::NEEDS_ONE_PANEL>(head, first, depth, panel_));
    }

    template <class Pair>
    void add_rows(int64_t head, int64_t first, int64_t depth, const ValueRows<Pair>& values) {
        for_tiles(first, [&](int64_t i, int64_t rows) {
            i += head * num_queries_;
            const auto* weights = reinterpret_cast<const uint32_t*>(scores_ + i * SPAN + first / 2);
            for (int64_t dim = 0; dim < dims_; dim += TILE_WIDTH)
                products_.add(rows, {weights, SPAN}, values, dim, depth,
                              {partial(i) + PARTIAL_HEADER + dim, partial_floats(args_.head_dim)}, prefetcher_);
        });
    }

    Products products_;
    const Range keys_;         // visible positions
    const Range panels_;       // whole panels with all of them
    const int64_t heads_;      // KV heads
    const int64_t num_items_;  // of keys; as many of values
    const Cache<Number> cache_;
    Prefetcher prefetcher_;
    const int64_t dims_;       // words per query, and per pair of positions in a value panel
    uint32_t* const queries_;  // [Q, dims]
    float* const scores_;      // [Q, SPAN]
    alignas(64) float key_scales_[IS_SCALED ? TILE_WIDTH : 1];
    alignas(64) float value_scales_[IS_SCALED ? SPAN : 1];
    uint32_t* const panel_;  // for key_columns() and value_rows(): MAX_KEY_PANEL * dims words
};

}  // namespace SMOE_ISA
}  // namespace smoe

#endif
