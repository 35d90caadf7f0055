#include "moe.h"

#include <algorithm>
#include <vector>

#include "exp.h"
#include "routing.h"
#include "vec.h"

namespace smoe {
namespace SMOE_ISA {
namespace {

constexpr int64_t ROWS_PER_TASK = 16;  // of what is done row by row

template <class F>
void for_each_row(Pool& pool, int64_t T, F&& f) {
    pool.parallel_for(ceil_div(T, ROWS_PER_TASK), [&](int64_t task) {
        const int64_t end = std::min(T, (task + 1) * ROWS_PER_TASK);
        for (int64_t t = task * ROWS_PER_TASK; t < end; ++t) f(t);
    });
}

template <class T>
float dot(const T* x, const float* weight, int64_t D) {
    Vec sums = {};
    int64_t d = 0;
    for (; d + LANES <= D; d += LANES) sums = fma(load(x + d), load(weight + d), sums);
    float total = sum(sums);
    for (; d < D; ++d) total += load_one(x + d) * weight[d];
    return total;
}

// Softmax over the chosen k alone (Jiang et al. 2024, section 2.1).
void share_out(const float* logits, const int32_t* experts, int64_t k, float* shares) {
    float largest = logits[experts[0]];
    for (int64_t i = 1; i < k; ++i) largest = std::max(largest, logits[experts[i]]);
    float total = 0;
    for (int64_t i = 0; i < k; ++i) total += shares[i] = exp_one(logits[experts[i]] - largest);
    for (int64_t i = 0; i < k; ++i) shares[i] /= total;
}

// The gate's logits of row x; weight [E, D].
template <class T>
void gate_row(const T* x, const float* gate, int64_t E, int64_t D, float* logits) {
    for (int64_t e = 0; e < E; ++e) logits[e] = dot(x, gate + e * D, D);
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
        int32_t* chosen = routing.chosen + t * routing.max_k;
        const int64_t k = choice.k(t);
        if (routing.allowed)
            for (int64_t e = 0; e < E; ++e) row_taken[e] = !routing.allowed[t * E + e];
        if (dtype == BFLOAT16)
            gate_row(static_cast<const uint16_t*>(x) + t * D, gate, E, D, row);
        else
            gate_row(static_cast<const float*>(x) + t * D, gate, E, D, row);
        choose(row, E, k, row_taken, chosen, experts);
        std::fill(chosen + k, chosen + routing.max_k, -1);
        share_out(row, experts, k, choice.shares.data() + choice.first[t]);
    });
    return choice;
}

// silu(a) * b, to a.
void gate_with(float* a, const float* b, int count) {
    for (int i = 0; i < count; i += LANES) {
        const Vec x = load(a + i);
        store(a + i, x / (exp(-x) + 1.0f) * load(b + i));
    }
}

// Columns first_unit .. of sums [rows][PANEL] become units of a tile, as pack_tile would write them. Columns behind the
// matrix's end are zeros, as their weights are.
void store_units(int dtype, const float* sums, int rows, int64_t first_unit, int64_t depth, uint32_t* tile) {
    const int columns_per_unit = dtype == BFLOAT16 ? 2 : 1;
    const auto count = static_cast<int>(std::min<int64_t>(PANEL / columns_per_unit, depth - first_unit));
    for (int m = 0; m < rows; ++m) {
        uint32_t units[PANEL];
        if (dtype == BFLOAT16) {
            uint16_t halves[PANEL];
            for (int n = 0; n < PANEL; n += LANES) store(halves + n, load(sums + m * PANEL + n));
            std::memcpy(units, halves, sizeof halves);
        } else {
            std::memcpy(units, sums + m * PANEL, sizeof units);
        }
        for (int n = 0; n < count; ++n) tile[(first_unit + n) * rows + m] = units[n];
    }
}

// hidden = silu(w1 x) * (w3 x), in tiles like x.
void multiply_up(Pool& pool, int dtype, const uint32_t* x, const Experts& weights, const std::vector<Tile>& tiles,
                 uint32_t* hidden) {
    const int64_t depth = depth_of(dtype, weights.D), hidden_depth = depth_of(dtype, weights.F);
    const int64_t units = panel_units(dtype, weights.D), num_pairs = ceil_div(weights.F, PANEL);
    const int64_t units_per_panel = PANEL / (dtype == BFLOAT16 ? 2 : 1);  // of hidden
    for_each_product(pool, tiles, num_pairs, 2 * units, [&](const Tile& tile, int64_t pair) {
        alignas(64) float a[MAX_TILE_ROWS * PANEL], b[MAX_TILE_ROWS * PANEL];
        const uint32_t* panels = weights.w13 + (tile.expert * num_pairs + pair) * 2 * units;
        const uint32_t* rows = x + tile.first_row * depth;
        multiply(dtype, tile.rows, rows, panels, depth, a);
        multiply(dtype, tile.rows, rows, panels + units, depth, b);
        gate_with(a, b, tile.rows * PANEL);
        store_units(dtype, a, tile.rows, pair * units_per_panel, hidden_depth, hidden + tile.first_row * hidden_depth);
    });
}

// y [P, D] = w2 hidden, in float32.
void multiply_down(Pool& pool, int dtype, const uint32_t* hidden, const Experts& weights, const std::vector<Tile>& tiles,
                   float* y) {
    const int64_t depth = depth_of(dtype, weights.F), units = panel_units(dtype, weights.F);
    const int64_t num_panels = ceil_div(weights.D, PANEL);
    for_each_product(pool, tiles, num_panels, units, [&](const Tile& tile, int64_t panel) {
        alignas(64) float sums[MAX_TILE_ROWS * PANEL];
        const uint32_t* w2 = weights.w2 + (tile.expert * num_panels + panel) * units;
        multiply(dtype, tile.rows, hidden + tile.first_row * depth, w2, depth, sums);
        const int64_t columns = std::min<int64_t>(PANEL, weights.D - panel * PANEL);
        for (int m = 0; m < tile.rows; ++m) {
            float* row = y + (tile.first_row + m) * weights.D + panel * PANEL;
            std::memcpy(row, sums + m * PANEL, columns * sizeof(float));
        }
    });
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

void combine(Pool& pool, int dtype, const float* outputs, const Choice& choice, const Pairs& pairs, int64_t D, void* y) {
    for_each_row(pool, choice.num_rows(), [&](int64_t t) {
        const int64_t* place = pairs.place.data() + choice.first[t];
        const float* shares = choice.shares.data() + choice.first[t];
        if (dtype == BFLOAT16)
            combine_row(outputs, place, shares, choice.k(t), D, static_cast<uint16_t*>(y) + t * D);
        else
            combine_row(outputs, place, shares, choice.k(t), D, static_cast<float*>(y) + t * D);
    });
}

void run_experts(Pool& pool, int dtype, const void* x, const Experts& weights, const Choice& choice, void* y) {
    const Pairs pairs = sort_pairs(choice, weights.E);
    const auto P = static_cast<int64_t>(pairs.rows.size());
    const int64_t x_units = P * depth_of(dtype, weights.D), hidden_units = P * depth_of(dtype, weights.F);
    auto* rows = reinterpret_cast<uint32_t*>(pool.scratch((x_units + hidden_units + P * weights.D) * 4));
    uint32_t* hidden = rows + x_units;
    auto* outputs = reinterpret_cast<float*>(hidden + hidden_units);
    pack_tiles(pool, dtype, x, pairs.rows, pairs.tiles, weights.D, rows);
    multiply_up(pool, dtype, rows, weights, pairs.tiles, hidden);
    multiply_down(pool, dtype, hidden, weights, pairs.tiles, outputs);
    combine(pool, dtype, outputs, choice, pairs, weights.D, y);
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

}  // namespace SMOE_ISA
}  // namespace smoe
