#include "moe/moe.h"

#include <algorithm>
#include <iterator>
#include <vector>

#include "gemm/packed_row_layout.h"
#include "moe/experts.h"
#include "simd/exp_f32.h"
#include "simd/vec.h"

namespace smoe {
namespace SMOE_ISA {
namespace {

constexpr int64_t ROWS_PER_TASK = 16;  // rows per task of row-wise work

template <class F>
void for_each_row(Pool& pool, int64_t T, F&& f) {
    pool.parallel_for(ceil_div(T, ROWS_PER_TASK), [&](int64_t task) {
        const int64_t end = std::min(T, (task + 1) * ROWS_PER_TASK);
        for (int64_t t = task * ROWS_PER_TASK; t < end; ++t) f(t);
    });
}

constexpr int GATES_AT_ONCE = 4;  // independent sums, which hide the latency of their additions

// Compute x [D] times each of GATES rows of weight [.., D].
template <int GATES, class T>
void dots(const T* x, const float* weight, int64_t D, float* logits) {
    Vec sums[GATES] = {};
    int64_t d = 0;
    for (; d + LANES <= D; d += LANES) {
        const Vec number = load(x + d);
#pragma GCC unroll 4
        for (int e = 0; e < GATES; ++e) add_product(sums[e], number, load(weight + e * D + d));
    }
    for (int e = 0; e < GATES; ++e) logits[e] = sum(sums[e]);
    for (; d < D; ++d)
        for (int e = 0; e < GATES; ++e) logits[e] += load_one(x + d) * weight[e * D + d];
}

// Softmax over the chosen k only (Jiang et al. 2024, section 2.1).
void softmax_over_chosen(const float* logits, const int32_t* experts, int64_t k, float* shares) {
    float largest = logits[experts[0]];
    for (int64_t i = 1; i < k; ++i) largest = std::max(largest, logits[experts[i]]);
    float total = 0;
    for (int64_t i = 0; i < k; ++i) total += shares[i] = exp_one(logits[experts[i]] - largest);
    for (int64_t i = 0; i < k; ++i) shares[i] /= total;
}

// Compute the gate's logits of one row x; weight [E, D].
template <class T>
void gate_row(const T* x, const float* gate, int64_t E, int64_t D, float* logits) {
    int64_t e = 0;
    for (; e + GATES_AT_ONCE <= E; e += GATES_AT_ONCE) dots<GATES_AT_ONCE>(x, gate + e * D, D, logits + e);
    for (; e < E; ++e) dots<1>(x, gate + e * D, D, logits + e);
}

Choice route(Pool& pool, int dtype, const void* x, const float* gate, int64_t E, int64_t D, int64_t T,
             const Routing& routing) {
    Choice choice(T, 0, routing.experts_per_token);
    std::vector<float> logits(T * E);
    std::vector<uint8_t> taken(T * E);
    for_each_row(pool, T, [&](int64_t t) {
        float* row = logits.data() + t * E;
        uint8_t* row_taken = taken.data() + t * E;
        int32_t* experts = choice.experts.data() + choice.first[t];
        int32_t* expert_ids = routing.expert_ids + t * routing.max_k;
        const int64_t k = choice.k(t);
        if (routing.allowed)
            for (int64_t e = 0; e < E; ++e) row_taken[e] = !routing.allowed[t * E + e];
        if (dtype == BFLOAT16)
            gate_row(static_cast<const uint16_t*>(x) + t * D, gate, E, D, row);
        else
            gate_row(static_cast<const float*>(x) + t * D, gate, E, D, row);
        select_top_k(row, E, k, row_taken, expert_ids, experts);
        std::fill(expert_ids + k, expert_ids + routing.max_k, -1);
        softmax_over_chosen(row, experts, k, choice.shares.data() + choice.first[t]);
    });
    return choice;
}

// Row y = sum over i of shares[i] * outputs[place[i]], i ascending.
template <class T>
void combine_row(const float* outputs, const int64_t* place, const float* shares, int64_t k, int64_t D, T* y) {
    int64_t d = 0;
    for (; d + LANES <= D; d += LANES) {
        Vec total = load(outputs + place[0] * D + d) * shares[0];
        for (int64_t i = 1; i < k; ++i) total = fma(load(outputs + place[i] * D + d), broadcast(shares[i]), total);
        store(y + d, total);
    }
    for (; d < D; ++d) {
        float total = outputs[place[0] * D + d] * shares[0];
        for (int64_t i = 1; i < k; ++i) total += outputs[place[i] * D + d] * shares[i];
        store_one(y + d, total);
    }
}

void combine(Pool& pool, int dtype, const float* outputs, const Choice& choice, const Pairs& pairs, int64_t D,
             void* y) {
    for_each_row(pool, choice.num_rows(), [&](int64_t t) {
        const int64_t* place = pairs.place.data() + choice.first[t];
        const float* shares = choice.shares.data() + choice.first[t];
        if (dtype == BFLOAT16)
            combine_row(outputs, place, shares, choice.k(t), D, static_cast<uint16_t*>(y) + t * D);
        else
            combine_row(outputs, place, shares, choice.k(t), D, static_cast<float*>(y) + t * D);
    });
}

// Rows that a tile may have in all products of an expert with `rows` rows.
int max_rows(const Expert& expert, int64_t rows) {
    return std::min({max_tile_rows(expert.w1.format, rows), max_tile_rows(expert.w3.format, rows),
                     max_tile_rows(expert.w2.format, rows)});
}

std::vector<int32_t> experts_of(const std::vector<Tile>& tiles) {
    std::vector<int32_t> experts;
    for (const Tile& tile : tiles)
        if (experts.empty() || experts.back() != tile.expert) experts.push_back(tile.expert);
    return experts;
}

std::vector<Tile> tiles_of(const std::vector<Tile>& tiles, const std::vector<int32_t>& experts) {
    std::vector<Tile> found;
    std::copy_if(tiles.begin(), tiles.end(), std::back_inserter(found),
                 [&](const Tile& tile) { return std::binary_search(experts.begin(), experts.end(), tile.expert); });
    return found;
}

Matrix moved(Matrix matrix, intptr_t bytes) {
    matrix.panels = reinterpret_cast<const uint32_t*>(reinterpret_cast<intptr_t>(matrix.panels) + bytes);
    return matrix;
}

// Compute the experts of a store as they come into memory.
void multiply_stored(Pool& pool, int dtype, const void* x, const Experts& weights, const Pairs& pairs,
                     const ProductMemory& memory) {
    ExpertStore& store = *weights.store;
    std::vector<Expert> placed(weights.experts, weights.experts + weights.E);
    Experts in_slots = weights;
    in_slots.experts = placed.data();
    const StoredLayer layer(store, weights.stored_layer, experts_of(pairs.tiles));
    for (auto experts = store.next(pool); !experts.empty(); experts = store.next(pool)) {
        for (const int32_t expert : experts) {
            const auto [w1, w3, w2] = weights[expert];
            const intptr_t shift = store.shift(expert);
            placed[expert] = {moved(w1, shift), moved(w3, shift), moved(w2, shift)};
        }
        multiply_experts(pool, dtype, x, in_slots, pairs, tiles_of(pairs.tiles, experts), memory);
        store.done(experts);
    }
}

void run_experts(Pool& pool, int dtype, const void* x, const Experts& weights, const Choice& choice, void* y) {
    const Pairs pairs = sort_pairs(choice, weights.E, [&](int64_t rows) { return max_rows(weights[0], rows); });
    const auto num_pairs = static_cast<int64_t>(pairs.rows.size());
    const ProductMemory memory = reserve_products(pool, dtype, weights, num_pairs, weights.store);
    if (weights.store)
        multiply_stored(pool, dtype, x, weights, pairs, memory);
    else
        multiply_experts(pool, dtype, x, weights, pairs, pairs.tiles, memory);
    combine(pool, dtype, memory.outputs, choice, pairs, weights.num_outputs(), y);
}

}  // namespace

void ffn(Pool& pool, int dtype, const void* x, const Experts& weights, void* y, int64_t T) {
    Choice all(T, 1, nullptr);
    std::fill(all.shares.begin(), all.shares.end(), 1.0f);
    run_experts(pool, dtype, x, weights, all, y);
}

void moe(Pool& pool, int dtype, const void* x, const float* gate, const Experts& weights, void* y, int64_t T,
         const Routing& routing) {
    run_experts(pool, dtype, x, weights, route(pool, dtype, x, gate, weights.E, weights.D, T, routing), y);
}

void choose_experts(Pool& pool, int dtype, const void* x, const float* gate, int64_t E, int64_t D, int64_t T,
                    const Routing& routing) {
    route(pool, dtype, x, gate, E, D, T, routing);
}

}  // namespace SMOE_ISA
}  // namespace smoe
