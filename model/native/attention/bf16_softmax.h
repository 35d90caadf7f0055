// Softmax of attention with bfloat16 weights, over one span. Included by kernel files only.
//
// Scores are products of queries and keys, not yet divided by sqrt(K). Weights are rounded to bfloat16. Over bfloat16
// caches l sums the rounded weights, so that they add up to one; over int8 caches it sums them unrounded, before a
// value's scale multiplies them.
#pragma once

#if defined(__AVX512BF16__)

#include "attention/span_softmax.h"
#include "simd/exp2_bf16.h"

namespace smoe {
namespace SMOE_ISA {

// Softmax state of one row block.
class Bf16Softmax : protected SpanSoftmax {
  protected:
    static constexpr int64_t STEP = 2 * LANES;  // positions whose weights are computed at once

    using SpanSoftmax::SpanSoftmax;

    // Write the largest score that queries first .. first + count - 1 see to their partials, times 1 / sqrt(K) as m;
    // the queries' scores lie SPAN floats apart. A query that sees no position gets minus infinity as m.
    void find_largest(const float* scores, int64_t first, int64_t count, float* partials) const {
        for (int64_t i = 0; i < count; ++i, scores += SPAN, partials += stride_) {
            const Range seen = visible(first + i);
            partials[LARGEST] = seen.empty() ? 0 : largest_seen(scores, seen);
            partials[0] = seen.empty() ? MINUS_INFINITY : partials[LARGEST] * scale_;
        }
    }

    // Turn the scores of one query into pairs of weights for all `positions`, a multiple of STEP, in place; set l.
    // Values have scales if IS_SCALED. Calls step() for each STEP positions.
    template <bool IS_SCALED, class Step>
    void weigh(Range positions, Range seen, float* scores, const float* value_scales, float* partial,
               Step&& step) const {
        const Exponents exponents{broadcast(partial[LARGEST]), broadcast(factor_)};
        const int64_t begin = min(max(positions.begin, (seen.begin + STEP - 1) / STEP * STEP), positions.end);
        const int64_t end = max(begin, seen.end / STEP * STEP);  // begin .. end - 1: whole steps that are seen
        Vec total{};
        int64_t j = positions.begin;
        for (; j < begin; j += STEP, step())
            total = weigh_some<IS_SCALED>(seen, j, scores, exponents, value_scales, total);
#pragma GCC unroll 2
        for (; j < end; j += STEP, step()) {
            const Vec first = exponents.weights(scores + j), second = exponents.weights(scores + j + LANES);
            if constexpr (IS_SCALED) {
                total = total + first + second;
                put(first * load(value_scales + j), second * load(value_scales + j + LANES), scores + j / 2);
            } else {
                total = add_pairs(total, put(first, second, scores + j / 2));
            }
        }
        for (; j < positions.end; j += STEP, step())
            total = weigh_some<IS_SCALED>(seen, j, scores, exponents, value_scales, total);
        partial[1] = sum(total);
    }

  private:
    static constexpr float LOG2_E = 1.44269504f;
    static constexpr int64_t LARGEST = 2;  // place in a partial of the largest score, not divided

    // e^(score - largest) as powers of two.
    struct Exponents {
        Vec largest, factor;

        // The difference comes first, so that the largest score has exactly weight 1, however large it is.
        Vec weights(const float* scores) const { return exp2_bf16((load(scores) - largest) * factor); }
    };

    // As the loop of weigh(), for STEP positions of which some are not seen.
    template <bool IS_SCALED>
    static Vec weigh_some(Range seen, int64_t j, float* scores, const Exponents& exponents, const float* value_scales,
                          Vec total) {
        Vec halves[2] = {};
        for (int half = 0; half < 2; ++half)
            if (const int64_t first = j + half * LANES; first < seen.end && first + LANES > seen.begin) {
                halves[half] = mask(exponents.weights(scores + first), first, seen, 0);
                if constexpr (IS_SCALED) {
                    total += halves[half];
                    halves[half] *= mask(load(value_scales + first), first, seen, 0);
                }
            }
        const Words pairs = put(halves[0], halves[1], scores + j / 2);
        return IS_SCALED ? total : add_pairs(total, pairs);
    }

    // Round weights to bfloat16 and store them; returns them.
    static Words put(Vec first, Vec second, float* to) {
        const auto pairs = (Words)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
        std::memcpy(to, &pairs, sizeof pairs);
        return pairs;
    }

    static Vec add_pairs(Vec total, Words pairs) {
        constexpr uint32_t ONES = 0x3f803f80;  // two in bfloat16
        return (Vec)_mm512_dpbf16_ps((__m512)total, (__m512bh)pairs, (__m512bh)broadcast_word(ONES));
    }

    const int64_t stride_ = partial_floats(args_.head_dim);
    const float scale_ = scale(), factor_ = scale_ * LOG2_E;
};

}  // namespace SMOE_ISA
}  // namespace smoe

#endif
