// Attention of one row block over one span. Compiled once per instruction set.
#include "attention.h"

#include "attention_tiles.h"
#include "exp.h"
#include "span_cache.h"
#include "vec.h"
#include "vec_part.h"

namespace smoe {
namespace SMOE_ISA {
namespace {

constexpr float MINUS_INFINITY = -__builtin_inff();

// Positions begin .. end - 1 of a span.
struct Range {
    int64_t begin;
    int64_t end;

    bool empty() const { return begin >= end; }
};

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
inline Range intersect(Range a, Range b) { return {max(a.begin, b.begin), min(a.end, b.end)}; }

// One row block over one span: its queries in float32, their scores and weights, their partials. Number is what the
// caches hold.
template <class Number>
class SpanAttention {
  public:
    SpanAttention(const AttentionArgs& args, const RowBlock& block, int64_t span_start, float* partials, float* scratch)
        : args_(args), block_(block), span_start_(span_start), partials_(partials),
          num_queries_(block.num_rows * args.queries_per_row()), query_stride_(padded_dim(args.head_dim)),
          queries_(scratch), scores_(queries_ + num_queries_ * query_stride_), panel_(scores_ + num_queries_ * SPAN) {}

    void run() {
        // The block's last row ends last, its first row begins first.
        const Range keys{visible(0).begin, visible(num_queries_ - 1).end};
        const SpanCache<Number> cache(args_, block_, span_start_, keys.begin, keys.end);
        if (args_.dtype == BFLOAT16)
            load_queries<uint16_t>();
        else
            load_queries<float>();
        for (int64_t first = keys.begin / TILE_WIDTH * TILE_WIDTH; first < keys.end; first += TILE_WIDTH) {
            cache.template pack_keys<TILE_WIDTH>(first, panel_);
            score({first, first + TILE_WIDTH});
        }
        for (int64_t i = 0; i < num_queries_; ++i) soften(i);
        for (int64_t first = keys.begin; first < keys.end; first += MAX_KEY_PANEL) {
            const Range positions{first, min(first + MAX_KEY_PANEL, keys.end)};
            cache.pack_values(positions.begin, positions.end, panel_);
            add_values(positions);
        }
    }

  private:
    // What query i sees of the span.
    Range visible(int64_t i) const {
        const int64_t position = block_.position + i / args_.queries_per_row();
        return {max(args_.first_visible(position) - span_start_, 0), min(position + 1 - span_start_, SPAN)};
    }

    float* partial(int64_t i) const { return partials_ + i * partial_floats(args_.head_dim); }

    template <class T>
    void load_queries() {
        const int64_t R = args_.queries_per_row(), K = args_.head_dim;
        for (int64_t i = 0; i < num_queries_; ++i) {
            const int64_t head = block_.kv_head * R + i % R;
            const T* from = static_cast<const T*>(args_.q) + ((block_.first_row + i / R) * args_.num_heads + head) * K;
            for (int64_t k = 0; k < K; k += LANES) store(queries_ + i * query_stride_ + k, load_first(from + k, K - k));
        }
    }

    // Scores of the panel's keys, also of some that their query does not see: nobody reads those.
    void score(Range keys) {
        const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(args_.head_dim));
        for (int64_t first = 0; first < num_queries_; first += TILE_ROWS) {
            const int64_t rows = min(TILE_ROWS, num_queries_ - first);
            if (intersect(keys, {visible(first).begin, visible(first + rows - 1).end}).empty()) continue;
            with_rows(rows, [&](auto tile) {
                score_tile<tile.value>(queries_ + first * query_stride_, query_stride_, panel_, args_.head_dim, scale,
                                       scores_ + first * SPAN + keys.begin);
            });
        }
    }

    // Scores of query i -> weights e^(score - m), 0 where it does not see; m and l; o = 0.
    void soften(int64_t i) {
        const Range seen = visible(i);
        float* scores = scores_ + i * SPAN;
        float* result = partial(i);
        result[0] = MINUS_INFINITY, result[1] = 0;
        if (seen.empty()) return;
        const int64_t first = seen.begin / LANES * LANES;
        Vec largest = broadcast(MINUS_INFINITY);
        for (int64_t j = first; j < seen.end; j += LANES) {
            const Vec score = mask(load(scores + j), j, seen, MINUS_INFINITY);
            largest = largest > score ? largest : score;
        }
        const float m = largest_lane(largest);
        Vec total{};
        for (int64_t j = first; j < seen.end; j += LANES) {
            const Vec weight = mask(exp(load(scores + j) - m), j, seen, 0);
            store(scores + j, weight);
            total += weight;
        }
        result[0] = m, result[1] = sum(total);
        for (int64_t k = 0; k < query_stride_; k += LANES) store(result + PARTIAL_HEADER + k, Vec{});
    }

    // x where lanes j, j + 1, ... are seen, else `other`.
    static Vec mask(Vec x, int64_t j, Range seen, float other) {
        if (j >= seen.begin && j + LANES <= seen.end) return x;
        float lanes[LANES];
        store(lanes, x);
        for (int64_t i = 0; i < LANES; ++i)
            if (j + i < seen.begin || j + i >= seen.end) lanes[i] = other;
        return load(lanes);
    }

    static float largest_lane(Vec x) {
        float lanes[LANES];
        store(lanes, x);
        for (int i = 1; i < LANES; ++i) lanes[0] = lanes[0] > lanes[i] ? lanes[0] : lanes[i];
        return lanes[0];
    }

    void add_values(Range positions) {
        for (int64_t first = 0; first < num_queries_; first += TILE_ROWS) {
            const int64_t rows = min(TILE_ROWS, num_queries_ - first);
            // What all queries of the tile see, they add together; what is before and behind it, each alone.
            const Range shared = intersect(positions, {visible(first + rows - 1).begin, visible(first).end});
            if (shared.empty()) {
                for (int64_t i = first; i < first + rows; ++i) add(i, 1, intersect(positions, visible(i)), positions);
                continue;
            }
            for (int64_t i = first; i < first + rows; ++i)
                add(i, 1, intersect({positions.begin, shared.begin}, visible(i)), positions);
            add(first, rows, shared, positions);
            for (int64_t i = first; i < first + rows; ++i)
                add(i, 1, intersect({shared.end, positions.end}, visible(i)), positions);
        }
    }

    // Adds the values of positions `added` to o of queries first .. first + rows - 1; the panel holds `packed`.
    void add(int64_t first, int64_t rows, Range added, Range packed) {
        if (added.empty()) return;
        for (int64_t dim = 0; dim < query_stride_; dim += TILE_WIDTH)
            with_rows(rows, [&](auto tile) {
                value_tile<tile.value>(scores_ + first * SPAN + added.begin,
                                       panel_ + (added.begin - packed.begin) * query_stride_ + dim, query_stride_,
                                       added.end - added.begin, partial(first) + PARTIAL_HEADER + dim,
                                       partial_floats(args_.head_dim));
            });
    }

    const AttentionArgs& args_;
    const RowBlock& block_;
    const int64_t span_start_;
    float* const partials_;
    const int64_t num_queries_;
    const int64_t query_stride_;  // also of a position in the panel of values
    float* const queries_;        // [Q, query_stride]
    float* const scores_;         // [Q, SPAN]
    float* const panel_;          // [K, TILE_WIDTH] of keys, then [MAX_KEY_PANEL, query_stride] of values
};

template <class T>
void finish(const AttentionArgs& args, const RowBlock& block, const float* partials) {
    const int64_t R = args.queries_per_row(), K = args.head_dim;
    for (int64_t i = 0; i < block.num_rows * R; ++i) {
        const float* partial = partials + i * partial_floats(K);
        const int64_t head = block.kv_head * R + i % R;
        T* out = static_cast<T*>(args.out) + ((block.first_row + i / R) * args.num_heads + head) * K;
        for (int64_t k = 0; k < K; k += LANES)
            store_first(out + k, load(partial + PARTIAL_HEADER + k) / partial[1], K - k);
    }
}

void merge_one(int64_t head_dim, float* into, const float* later) {
    if (later[1] == 0) return;
    const bool is_first = into[1] == 0;
    const float m = is_first || later[0] > into[0] ? later[0] : into[0];
    const float keep = is_first ? 0 : exp_one(into[0] - m), add = exp_one(later[0] - m);
    into[0] = m;
    into[1] = is_first ? later[1] : into[1] * keep + later[1] * add;
    for (int64_t k = PARTIAL_HEADER; k < PARTIAL_HEADER + padded_dim(head_dim); k += LANES)
        store(into + k, is_first ? load(later + k) : load(into + k) * keep + load(later + k) * add);
}

}  // namespace

void attend_span(const AttentionArgs& args, const RowBlock& block, int64_t span_start, float* partials,
                 float* scratch) {
    with_kv_number(args.kv_dtype, [&](auto number) {
        SpanAttention<decltype(number)>(args, block, span_start, partials, scratch).run();
    });
}

void merge_partials(int64_t head_dim, int64_t num_queries, float* into, const float* later) {
    for (int64_t i = 0; i < num_queries; ++i)
        merge_one(head_dim, into + i * partial_floats(head_dim), later + i * partial_floats(head_dim));
}

void finish_attention(const AttentionArgs& args, const RowBlock& block, const float* partials) {
    if (args.dtype == BFLOAT16)
        finish<uint16_t>(args, block, partials);
    else
        finish<float>(args, block, partials);
}

}  // namespace SMOE_ISA
}  // namespace smoe
