// Attention of many queries with AMX's tile registers. Included by kernel files only.
//
// The bits are those of attention/attention_bf16.h, which attends fewer queries: only the order differs in which
// queries and panels take turns. Here 32 queries pass the whole span before the next ones do, so that their scores and
// weights stay in the first-level cache and their outputs in registers.
#pragma once

#if defined(__AMX_TILE__)

#include "attention/bf16_dot_products.h"
#include "attention/bf16_softmax.h"
#include "attention/kv_prefetch.h"

namespace smoe {
namespace SMOE_ISA {

constexpr int64_t TILE_QUERIES = 16;  // rows of a tile register

// Attention of one row block over one span. Number is the type that the caches hold: uint16_t (bfloat16) or int8_t;
// Cache<Number> reads them.
template <template <class> class Cache, class Number>
class AmxAttention : Bf16Softmax {
  public:
    AmxAttention(const AttentionArgs& args, const RowBlock& block, int64_t span_start, const KvPrefetchSpan& prefetch,
                 float* partials, float* scratch)
        : Bf16Softmax(args, block, span_start, prefetch, partials), keys_(visible()), panels_(panels_of(keys_)),
          cache_(args, block, span_start, keys_.begin, keys_.end),
          prefetcher_(prefetch, block.num_kv_heads * num_queries_), dims_(padded_dim(args.head_dim)),
          depth_((args.head_dim / 2 + LINE - 1) / LINE * LINE), scores_(scratch),
          queries_(reinterpret_cast<uint32_t*>(scores_ + SQUARE * SPAN)), key_panels_(queries_ + SQUARE * dims_),
          value_panels_(key_panels_ + SPAN / 2 * dims_) {}

    void run() {
        const int64_t square = min(SQUARE, num_queries_);
        registers_.shape_square(static_cast<int>(square));
        for (int64_t head = 0; head < block_.num_kv_heads; ++head) {
            load_panels(head);
            for (int64_t first = 0; first < num_queries_; first += square)
                attend(head, first, min(square, num_queries_ - first));
        }
    }

  private:
    static constexpr bool IS_SCALED = sizeof(Number) == 1;
    static constexpr int64_t SQUARE = AMX_QUERIES;  // queries, and columns, that are multiplied at once

    static Range panels_of(Range positions) {
        if (positions.empty()) return {0, 0};
        return {positions.begin / TILE_WIDTH * TILE_WIDTH, (positions.end + TILE_WIDTH - 1) / TILE_WIDTH * TILE_WIDTH};
    }

    // Find or pack the keys and values of a KV head.
    void load_panels(int64_t head) {
        for (int64_t j = panels_.begin; j < panels_.end; j += TILE_WIDTH) {
            columns_[j / TILE_WIDTH] = cache_.key_columns(head, j, key_panels_ + j / 2 * dims_);
            const int64_t pairs = (min(TILE_WIDTH, keys_.end - j) + 1) / 2;
            cache_.template value_rows<false>(head, j, (pairs + LINE - 1) / LINE * LINE, value_panels_ + j / 2 * dims_);
        }
        if constexpr (IS_SCALED) {
            cache_.scales(args_.k_cache, head, panels_, key_scales_ + panels_.begin);
            cache_.scales(args_.v_cache, head, panels_, value_scales_ + panels_.begin);
        }
    }

    // Attend queries first .. first + count - 1 of a KV head.
    void attend(int64_t head, int64_t first, int64_t count) {
        const Range seen = visible(first, count), panels = panels_of(seen);
        float* partials = partial(head * num_queries_ + first);
        const int64_t stride = partial_floats(args_.head_dim);
        if (seen.empty()) {
            for (int64_t i = 0; i < count; ++i) partials[i * stride] = MINUS_INFINITY, partials[i * stride + 1] = 0;
            for (int64_t i = 0; i < count; ++i) prefetcher_.step();
            return;
        }
        load_queries(head, first, count);
        count > TILE_QUERIES ? multiply_keys<true>(panels) : multiply_keys<false>(panels);
        if constexpr (IS_SCALED) scale_scores(panels, count);
        find_largest(scores_, first, count, partials);
        for (int64_t i = 0; i < count; ++i) {
            weigh<IS_SCALED>(panels, visible(first + i), scores_ + i * SPAN, value_scales_, partials + i * stride,
                             [] {});
            prefetcher_.step();
        }
        if (count == SQUARE || count == num_queries_)
            return add_values<true>(panels, partials + PARTIAL_HEADER, stride);
        auto* outputs = reinterpret_cast<float*>(queries_);  // of SQUARE queries: there are not as many partials
        count > TILE_QUERIES ? add_values<true>(panels, outputs, dims_) : add_values<false>(panels, outputs, dims_);
        for (int64_t i = 0; i < count; ++i)
            std::memcpy(partials + i * stride + PARTIAL_HEADER, outputs + i * dims_, dims_ * sizeof(float));
    }

    // Load queries as pairs of dims, zero-padded to the depth of a key panel.
    void load_queries(int64_t head, int64_t first, int64_t count) {
        const int64_t K = args_.head_dim, R = queries_per_row_, row = row_of(first);
        const auto* rows = static_cast<const uint16_t*>(args_.q) +
                           ((block_.first_row + row) * args_.num_heads + (block_.kv_head + head) * R) * K;
        for (int64_t i = 0, query = first - row * R; i < count; ++i) {
            copy_query(rows + query * K, queries_ + i * dims_);
            if (++query == R) query = 0, rows += args_.num_heads * K;
        }
    }

    void copy_query(const uint16_t* from, uint32_t* to) const {
        const int64_t pairs = args_.head_dim / 2;
        int64_t k = 0;
        for (; k + LINE <= pairs; k += LINE) std::memcpy(to + k, from + 2 * k, LINE * sizeof(uint32_t));
        if (k == pairs) return;
        std::memset(to + k, 0, LINE * sizeof(uint32_t));
        std::memcpy(to + k, from + 2 * k, (pairs - k) * sizeof(uint32_t));
    }

    // Compute the scores of the queries and of all keys in the panels. The last, fewer queries are multiplied with as
    // many rows as the others: to set another shape of the registers takes longer.
    template <bool BOTH>
    void multiply_keys(Range panels) {
        compiler_barrier();
        for (int64_t j = panels.begin; j < panels.end; j += SQUARE) {
            const KeyColumns<uint32_t>& columns = columns_[j / TILE_WIDTH];
            const int64_t group = j % TILE_WIDTH / LANES;
            zero_square();
            for (int64_t k = 0; k < depth_; k += LINE) {
                load_rows<BOTH>(queries_ + k, dims_);
                _tile_loadd(6, columns.groups[group] + k * columns.stride, columns.stride * 4);
                _tile_loadd(7, columns.groups[group + 1] + k * columns.stride, columns.stride * 4);
                add_products<BFLOAT16, BOTH>();
            }
            store<BOTH>(scores_ + j, SPAN);
        }
        compiler_barrier();
    }

    // Compute the weighted sums of all values in the panels; zeros past dim K.
    template <bool BOTH>
    void add_values(Range panels, float* outputs, int64_t stride) {
        const auto* weights = reinterpret_cast<const uint32_t*>(scores_);
        const int64_t last = min(panels.end, (keys_.end + SQUARE - 1) / SQUARE * SQUARE);
        compiler_barrier();
        for (int64_t dim = 0; dim < dims_; dim += SQUARE) {
            const int64_t end = dim < args_.head_dim ? last : panels.begin;
            zero_square();
            for (int64_t j = panels.begin; j < end; j += SQUARE) {
                load_rows<BOTH>(weights + j / 2, SPAN);
                const uint32_t* values = value_panels_ + j / 2 * dims_ + dim;
                _tile_loadd(6, values, dims_ * 4);
                _tile_loadd(7, values + LINE, dims_ * 4);
                add_products<BFLOAT16, BOTH>();
            }
            store<BOTH>(outputs + dim, stride);
        }
        compiler_barrier();
    }

    template <bool BOTH>
    static void load_rows(const uint32_t* rows, int64_t stride) {
        _tile_loadd(4, rows, stride * 4);
        if constexpr (BOTH) _tile_loadd(5, rows + TILE_QUERIES * stride, stride * 4);
    }

    template <bool BOTH>
    static void store(float* sums, int64_t stride) {
        _tile_stored(0, sums, stride * 4);
        _tile_stored(1, sums + LINE, stride * 4);
        if constexpr (BOTH) {
            _tile_stored(2, sums + TILE_QUERIES * stride, stride * 4);
            _tile_stored(3, sums + TILE_QUERIES * stride + LINE, stride * 4);
        }
    }

    void scale_scores(Range panels, int64_t count) {
        for (int64_t i = 0; i < count; ++i)
            for (int64_t j = panels.begin; j < panels.end; j += LANES) {
                float* score = scores_ + i * SPAN + j;
                SMOE_ISA::store(score, load(score) * load(key_scales_ + j));
            }
    }

    AmxTiles registers_;
    const Range keys_;    // visible positions
    const Range panels_;  // whole panels with all of them
    const Cache<Number> cache_;
    KvPrefetcher prefetcher_;
    const int64_t dims_;            // words per query, and per pair of positions in a value panel
    const int64_t depth_;           // words of a query that are multiplied
    float* const scores_;           // [SQUARE, SPAN]
    uint32_t* const queries_;       // [SQUARE, dims]
    uint32_t* const key_panels_;    // [SPAN / TILE_WIDTH, dims / 2, TILE_WIDTH], of which `depth` rows are used
    uint32_t* const value_panels_;  // [SPAN / 2, dims]
    KeyColumns<uint32_t> columns_[SPAN / TILE_WIDTH];
    alignas(64) float key_scales_[IS_SCALED ? SPAN : 1];
    alignas(64) float value_scales_[IS_SCALED ? SPAN : 1];
};

}  // namespace SMOE_ISA
}  // namespace smoe

#endif
