// Attention of one row block over one span. Compiled once per instruction set.
#include "attention/attention.h"

#include <type_traits>

#include "attention/attention_amx.h"
#include "attention/attention_bf16.h"
#include "attention/attention_f32.h"
#include "attention/kv_span.h"
#include "attention/kv_tile_prefetch.h"
#include "attention/kv_tile_span.h"
#include "attention/span_softmax.h"
#include "simd/exp_f32.h"
#include "simd/vec.h"
#include "simd/vec_tail.h"

namespace smoe {
namespace SMOE_ISA {
namespace {

// Attention of one row block over one span, computed in float32. Cache reads the caches.
template <class Cache>
class SpanAttention : SpanSoftmax {
  public:
    SpanAttention(const AttentionArgs& args, const RowBlock& block, int64_t span_start, const KvPrefetchSpan& prefetch,
                  float* partials, float* scratch)
        : SpanSoftmax(args, block, span_start, prefetch, partials), query_stride_(padded_dim(args.head_dim)),
          value_stride_(value_dims(args.head_dim)), queries_(scratch), scores_(queries_ + num_queries_ * query_stride_),
          panel_(scores_ + num_queries_ * SPAN) {}

    void run() {
        const Range keys = visible();
        const Cache cache(args_, block_, span_start_, keys.begin, keys.end);
        for (int64_t i = 0; i < num_queries_; ++i)
            args_.dtype == BFLOAT16 ? load_query(i, query<uint16_t>(i)) : load_query(i, query<float>(i));
        const int64_t first_key = keys.begin / TILE_WIDTH * TILE_WIDTH;
        const int64_t num_panels = (keys.end - first_key + TILE_WIDTH - 1) / TILE_WIDTH;
        Prefetcher prefetcher(prefetch_, num_panels * key_steps() + keys.end - keys.begin);
        for (int64_t first = first_key; first < keys.end; first += TILE_WIDTH) {
            if (first == first_key || first % MAX_KEY_PANEL == 0) prefetch_behind_keys(cache, first, keys, prefetcher);
            score(cache, {first, first + TILE_WIDTH}, prefetcher);
        }
        for (int64_t i = 0; i < num_queries_; ++i) softmax_row(i, prefetcher);
        for (int64_t first = keys.begin; first < keys.end; first += MAX_KEY_PANEL) {
            const int64_t next = first + MAX_KEY_PANEL;
            const int64_t steps = value_steps(min(next, keys.end) - first);
            prefetcher.begin(next < keys.end ? cache.tiles(args_.v_cache, 0, next) : first_tiles(prefetch_), steps);
            add_values(cache, {first, min(next, keys.end)}, prefetcher);
        }
    }

  private:
    using Prefetcher = typename Cache::Prefetcher;
    static constexpr bool BY_PANEL = Prefetcher::IS_BY_PANEL;
    static constexpr int64_t SOFTMAX_STEPS = 4;  // of the prefetcher, for a vector of weights

    // Steps of the prefetcher for TILE_WIDTH keys, for the values of some positions, and for the weights of all
    // queries.
    int64_t key_steps() const {
        return reads_pairs() ? TILE_VECS * args_.head_dim / 2 : key_squares(TILE_WIDTH, args_.head_dim);
    }
    int64_t value_steps(int64_t positions) const {
        return positions * (reads_pairs() ? value_stride_ / TILE_WIDTH : 1);
    }
    int64_t softmax_steps(Range keys) const { return num_queries_ * (keys.end - keys.begin) / LANES * SOFTMAX_STEPS; }

    template <class T>
    void load_query(int64_t i, const T* from) {
        for (int64_t k = 0; k < args_.head_dim; k += LANES)
            store(queries_ + i * query_stride_ + k, load_first(from + k, args_.head_dim - k));
    }

    // True if keys and values are not packed: few queries read them once or twice.
    bool reads_pairs() const {
        return Cache::HAS_PAIRS && num_queries_ <= TILE_ROWS && args_.head_dim == value_stride_;
    }

    // Prefetch what is read behind the MAX_KEY_PANEL keys at `first`: more keys, or the first values.
    void prefetch_behind_keys(const Cache& cache, int64_t first, Range keys, Prefetcher& prefetcher) const {
        const int64_t next = (first / MAX_KEY_PANEL + 1) * MAX_KEY_PANEL;
        const int64_t steps = (min(next, keys.end) - first + TILE_WIDTH - 1) / TILE_WIDTH * key_steps();
        if (next < keys.end) return prefetcher.begin(cache.tiles(args_.k_cache, 0, next), steps);
        prefetcher.begin(cache.tiles(args_.v_cache, 0, keys.begin), steps + softmax_steps(keys));
    }

    // Compute the scores of a panel of keys. Masked positions get a score too; no code reads it.
    void score(const Cache& cache, Range keys, Prefetcher& prefetcher) {
        if constexpr (Cache::HAS_PAIRS)
            if (reads_pairs()) return score_in_place(cache, keys, prefetcher);
        cache.template pack_keys<TILE_WIDTH>(keys.begin, panel_, prefetcher);
        for (int64_t first = 0; first < num_queries_; first += TILE_ROWS) {
            const int64_t rows = min(TILE_ROWS, num_queries_ - first);
            if (intersect(keys, visible(first, rows)).empty()) continue;
            with_rows(rows, [&](auto tile) {
                score_tile<tile.value>(queries_ + first * query_stride_, query_stride_, panel_, args_.head_dim, scale(),
                                       scores_ + first * SPAN + keys.begin);
            });
        }
    }

    void score_in_place(const Cache& cache, Range keys, Prefetcher& prefetcher) {
        typename Cache::KeyPairs pairs[TILE_VECS];
        for (int n = 0; n < TILE_VECS; ++n) pairs[n] = cache.key_pairs(keys.begin + n * LANES);
        with_rows(num_queries_, [&](auto tile) {
            score_pairs<tile.value>(queries_, query_stride_, pairs, args_.head_dim, scale(), scores_ + keys.begin,
                                    prefetcher);
        });
    }

    // Turn the scores of query i into weights; set m and l; clear o.
    void softmax_row(int64_t i, Prefetcher& prefetcher) {
        const Range seen = visible(i);
        float* scores = scores_ + i * SPAN;
        const float largest = seen.empty() ? MINUS_INFINITY : largest_seen(scores, seen);
        start(partial(i), largest);
        Vec total{};
        for (int64_t j = seen.begin / LANES * LANES; j < seen.end; j += LANES) {
            const Vec weight = weights(scores, j, seen, largest);
            store(scores + j, weight);
            total += weight;
            if constexpr (BY_PANEL) prefetcher.step(SOFTMAX_STEPS);
        }
        partial(i)[1] = sum(total);
    }

    void add_values(const Cache& cache, Range positions, Prefetcher& prefetcher) {
        if (!reads_pairs()) cache.pack_values(positions.begin, positions.end, panel_, prefetcher);
        for (int64_t first = 0; first < num_queries_; first += TILE_ROWS) {
            const int64_t rows = min(TILE_ROWS, num_queries_ - first);
            // Add the positions that all queries of the tile see at once, and the rest per query.
            const Range shared = intersect(positions, {visible(first + rows - 1).begin, visible(first).end});
            if (shared.empty()) {
                for (int64_t i = first; i < first + rows; ++i)
                    add(cache, i, 1, intersect(positions, visible(i)), positions, prefetcher);
                continue;
            }
            for (int64_t i = first; i < first + rows; ++i)
                add(cache, i, 1, intersect({positions.begin, shared.begin}, visible(i)), positions, prefetcher);
            add(cache, first, rows, shared, positions, prefetcher);
            for (int64_t i = first; i < first + rows; ++i)
                add(cache, i, 1, intersect({shared.end, positions.end}, visible(i)), positions, prefetcher);
        }
    }

    // Add the values of positions `added` to o of queries first .. first + rows - 1. The panel holds `packed`.
    void add(const Cache& cache, int64_t first, int64_t rows, Range added, Range packed, Prefetcher& prefetcher) {
        if (added.empty()) return;
        const float* weights = scores_ + first * SPAN;
        const float* values = panel_ + (added.begin - packed.begin) * value_stride_;
        for (int64_t dim = 0; dim < value_stride_; dim += TILE_WIDTH)
            with_rows(rows, [&](auto tile) {
                float* outputs = partial(first) + PARTIAL_HEADER + dim;
                const int64_t stride = partial_floats(args_.head_dim);
                if constexpr (Cache::HAS_PAIRS)
                    if (reads_pairs())
                        return value_pairs<tile.value>(weights, cache, dim, added, outputs, stride, prefetcher);
                value_tile<tile.value>(weights + added.begin, values + dim, value_stride_, added.end - added.begin,
                                       outputs, stride);
            });
    }

    const int64_t query_stride_;
    const int64_t value_stride_;  // of a position in the value panel
    float* const queries_;        // [Q, query_stride]
    float* const scores_;         // [Q, SPAN]
    float* const panel_;          // [K, TILE_WIDTH] of keys, then [MAX_KEY_PANEL, value_stride] of values
};

template <class T>
void finish(const AttentionArgs& args, const RowBlock& block, const float* partials) {
    const int64_t K = args.head_dim;
    for (int64_t i = 0; i < num_queries(args, block); ++i) {
        const float* partial = partials + i * partial_floats(K);
        T* out = static_cast<T*>(args.out) + query_number(args, block, i) * K;
        for (int64_t k = 0; k < K; k += LANES)
            store_first(out + k, load(partial + PARTIAL_HEADER + k) / partial[1], K - k);
    }
}

void merge_one(int64_t head_dim, float* into, const float* later) {
    if (later[1] == 0) return;
    const bool is_first = into[1] == 0;
    const bool is_larger = is_first || later[0] > into[0];
    const float m = is_larger ? later[0] : into[0];
    // e^0 is exactly 1: only the smaller m's factor is computed.
    const float smaller = is_first ? 0 : exp_one(is_larger ? into[0] - m : later[0] - m);
    const float keep = is_larger ? smaller : 1, add = is_larger ? 1 : smaller;
    into[0] = m;
    into[1] = is_first ? later[1] : into[1] * keep + later[1] * add;
    for (int64_t k = PARTIAL_HEADER; k < PARTIAL_HEADER + padded_dim(head_dim); k += LANES)
        store(into + k, is_first ? load(later + k) : load(into + k) * keep + load(later + k) * add);
}

// What is prefetched while KV head i of the block is attended: by panel the next head's span, and `prefetch` after the
// last head; else a part of `prefetch`.
template <class Prefetcher>
KvPrefetchSpan next_span(const AttentionArgs& args, const RowBlock& block, int64_t span_start, int64_t i,
                         const KvPrefetchSpan& prefetch) {
    if (!Prefetcher::IS_BY_PANEL) return prefetch.part(i, block.num_kv_heads);
    if (i + 1 == block.num_kv_heads) return prefetch;
    RowBlock head = block;
    head.kv_head += i + 1, head.num_kv_heads = 1;
    return {args, head, span_start};
}

#if defined(__AVX512BF16__)
template <template <class> class Cache, class Number>
void attend_bf16(const AttentionArgs& args, const RowBlock& block, int64_t span_start, const KvPrefetchSpan& prefetch,
                 float* partials, float* scratch) {
#if defined(__AMX_TILE__)
    if (block.num_rows * args.queries_per_row() > TILE_QUERIES)
        return AmxAttention<Cache, Number>(args, block, span_start, prefetch, partials, scratch).run();
#endif
    Bf16Attention<Cache, Number>(args, block, span_start, prefetch, partials, scratch).run();
}
#endif

// Attention of one row block over one span; Cache<Number> reads the caches.
template <template <class> class Cache>
void attend(const AttentionArgs& args, const RowBlock& block, int64_t span_start, const KvPrefetchSpan& prefetch,
            float* partials, float* scratch) {
#if defined(__AVX512BF16__)
    if (args.dtype == BFLOAT16 && args.kv_dtype == BFLOAT16 && args.head_dim % 2 == 0)
        return attend_bf16<Cache, uint16_t>(args, block, span_start, prefetch, partials, scratch);
    if (args.dtype == BFLOAT16 && args.kv_dtype == INT8 && args.head_dim % 2 == 0)
        return attend_bf16<Cache, int8_t>(args, block, span_start, prefetch, partials, scratch);
#endif
    for (int64_t i = 0; i < block.num_kv_heads; ++i) {
        RowBlock head = block;
        head.kv_head += i, head.num_kv_heads = 1;
        float* results = partials + i * num_queries(args, head) * partial_floats(args.head_dim);
        with_kv_number(args.kv_dtype, [&](auto number) {
            using Number = decltype(number);
            using Reader = std::conditional_t<std::is_same_v<Number, float>, KvSpan<float>, Cache<Number>>;
            const KvPrefetchSpan next = next_span<typename Reader::Prefetcher>(args, block, span_start, i, prefetch);
            SpanAttention<Reader>(args, head, span_start, next, results, scratch).run();
        });
    }
}

}  // namespace

void attend_span(const AttentionArgs& args, const RowBlock& block, int64_t span_start, const KvPrefetchSpan& prefetch,
                 float* partials, float* scratch) {
    if (args.in_tiles())
        attend<KvTileSpan>(args, block, span_start, prefetch, partials, scratch);
    else
        attend<KvSpan>(args, block, span_start, prefetch, partials, scratch);
}

void merge_partials(int64_t head_dim, int64_t num_queries, float* into, const float* later) {
    for (int64_t i = 0; i < num_queries; ++i)
        merge_one(head_dim, into + i * partial_floats(head_dim), later + i * partial_floats(head_dim));
}

void finish_attention(const AttentionArgs& args, const RowBlock& block, const float* partials) {
    if (args.out_dtype == BFLOAT16)
        finish<uint16_t>(args, block, partials);
    else
        finish<float>(args, block, partials);
}

}  // namespace SMOE_ISA
}  // namespace smoe
