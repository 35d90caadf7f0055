// Softmax of attention over one span, shared by the float32 and the bfloat16 kernels. Included by kernel files only.
#pragma once

#include "attention/attention.h"
#include "attention/kv_prefetch.h"
#include "simd/exp_f32.h"
#include "simd/vec.h"

namespace smoe {
namespace SMOE_ISA {

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

// Softmax state of one row block over one span.
class SpanSoftmax {
  protected:
    SpanSoftmax(const AttentionArgs& args, const RowBlock& block, int64_t span_start, const KvPrefetchSpan& prefetch,
                float* partials)
        : args_(args), block_(block), span_start_(span_start), prefetch_(prefetch), partials_(partials),
          queries_per_row_(static_cast<uint32_t>(args.queries_per_row())),
          num_queries_(block.num_rows * args.queries_per_row()) {}

    // Positions of the span that query i of a KV head sees.
    Range visible(int64_t i) const {
        const int64_t position = block_.position + row_of(i);
        return {max(args_.first_visible(position) - span_start_, 0), min(position + 1 - span_start_, SPAN)};
    }

    // Row of the block that has query i of a KV head. A division of 32 bits takes half as long as one of 64.
    uint32_t row_of(int64_t i) const { return static_cast<uint32_t>(i) / queries_per_row_; }

    // Union of the positions that queries first .. first + count - 1 see: the first query begins first, the last ends
    // last.
    Range visible(int64_t first, int64_t count) const { return {visible(first).begin, visible(first + count - 1).end}; }
    Range visible() const { return visible(0, num_queries_); }

    float* partial(int64_t i) const { return partials_ + i * partial_floats(args_.head_dim); }

    // Pointer to the K numbers of query i of the block, in dtype.
    template <class T>
    const T* query(int64_t i) const {
        return static_cast<const T*>(args_.q) + query_number(args_, block_, i) * args_.head_dim;
    }

    // Factor of all scores: 1 / sqrt(K).
    float scale() const { return 1.0f / __builtin_sqrtf(static_cast<float>(args_.head_dim)); }

    // Largest visible score of one query in this span. Four chains, for speed.
    static float largest_seen(const float* scores, Range seen) {
        Vec a = broadcast(MINUS_INFINITY), b = a, c = a, d = a;
        const auto mask_one = [&](int64_t j) { a = larger(a, mask(load(scores + j), j, seen, MINUS_INFINITY)); };
        int64_t j = seen.begin / LANES * LANES;
        if (j < seen.begin && j < seen.end) mask_one(j), j += LANES;
        for (; j + 4 * LANES <= seen.end; j += 4 * LANES) {
            a = larger(a, load(scores + j));
            b = larger(b, load(scores + j + LANES));
            c = larger(c, load(scores + j + 2 * LANES));
            d = larger(d, load(scores + j + 3 * LANES));
        }
        for (; j < seen.end; j += LANES) mask_one(j);
        return largest(larger(larger(a, b), larger(c, d)));
    }

    // Weights e^(score - m) of positions j .. j + LANES - 1; 0 for masked positions.
    static Vec weights(const float* scores, int64_t j, Range seen, float m) {
        return mask(exp(load(scores + j) - m), j, seen, 0);
    }

    // Initialize a partial: the given m, l = 0, o = 0.
    void start(float* partial, float m) const {
        partial[0] = m, partial[1] = 0;
        clear_output(partial);
    }

    void clear_output(float* partial) const {
        for (int64_t k = 0; k < padded_dim(args_.head_dim); k += LANES) store(partial + PARTIAL_HEADER + k, Vec{});
    }

    // Select x in visible lanes (positions j, j + 1, ...) and `other` elsewhere.
    static Vec mask(Vec x, int64_t j, Range seen, float other) {
        if (j >= seen.begin && j + LANES <= seen.end) return x;
        Ints position = {};
        for (int i = 0; i < LANES; ++i) position[i] = static_cast<int32_t>(j) + i;
        const auto begin = static_cast<int32_t>(seen.begin), end = static_cast<int32_t>(seen.end);
        const Ints is_seen = (position >= begin) & (position < end);
        return is_seen ? x : broadcast(other);
    }

    const AttentionArgs& args_;
    const RowBlock& block_;
    const int64_t span_start_;
    const KvPrefetchSpan& prefetch_;
    float* const partials_;
    const uint32_t queries_per_row_;
    const int64_t num_queries_;  // of one KV head
};

}  // namespace SMOE_ISA
}  // namespace smoe
