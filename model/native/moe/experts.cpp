#include "moe/experts.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "gemm/microkernel.h"
#include "gemm/pack_activations.h"
#include "simd/exp_f32.h"
#include "simd/vec.h"

namespace smoe {
namespace SMOE_ISA {
namespace {

// a = silu(a) * b.
void silu_multiply(float* a, const float* b, int count) {
    for (int i = 0; i < count; i += LANES) {
        const Vec x = load(a + i);
        store(a + i, x / (exp(-x) + 1.0f) * load(b + i));
    }
}

// Convert panel `panel` of sums [rows][PANEL] to words of a tile, in the layout of pack_rows. Columns past the matrix's
// end are zeros, because their weights are zeros.
void store_words(int dtype, const float* sums, int rows, int64_t panel, int64_t depth, uint32_t* tile) {
    const int num_words = dtype == BFLOAT16 ? PANEL / 2 : PANEL;
    const auto count = static_cast<int>(std::min<int64_t>(num_words, depth - panel * num_words));
    for (int m = 0; m < rows; ++m) {
        uint32_t words[PANEL];
        if (dtype == BFLOAT16) {
            uint16_t halves[PANEL];
            for (int n = 0; n < PANEL; n += LANES) store(halves + n, load(sums + m * PANEL + n));
            std::memcpy(words, halves, sizeof halves);
        } else {
            std::memcpy(words, sums + m * PANEL, sizeof words);
        }
        if (uses_amx_layout(dtype, rows)) {
            std::memcpy(tile + (panel * rows + m) * LINE, words, LINE * 4);
        } else {
            for (int n = 0; n < count; ++n) tile[(panel * num_words + n) * rows + m] = words[n];
        }
    }
}

// Store the sums to panel `panel` of rows [.., O].
void store_columns(const float* sums, const Tile& tile, int64_t panel, int64_t O, float* rows) {
    const int64_t columns = std::min<int64_t>(PANEL, O - panel * PANEL);
    for (int m = 0; m < tile.rows; ++m)
        store_row(rows + (tile.first_row + m) * O + panel * PANEL, sums + m * PANEL, columns);
}

// Rows of x, packed for w1 and for w3; the same memory if both have one format and order.
struct PackedRows {
    const uint32_t *for_w1, *for_w3;
};

// hidden = silu(w1 x) * (w3 x); calls store(tile, panel, sums) for each panel.
template <class Store>
void gate_up_gemm(Pool& pool, const PackedRows& x, const Experts& weights, const std::vector<Tile>& tiles,
                  Store&& store) {
    const int64_t D = weights.D;
    const int format1 = weights[0].w1.format, format3 = weights[0].w3.format;
    const int64_t words1 = row_words(format1, D), words3 = row_words(format3, D);
    const int64_t pair_words = panel_words(format1, D) + panel_words(format3, D);
    for_each_product<Microkernel>(
        pool, tiles, ceil_div(weights.F, PANEL), pair_words, [&](auto& by, const Tile& tile, int64_t panel) {
            alignas(64) float a[MAX_TILE_ROWS * PANEL], b[MAX_TILE_ROWS * PANEL];
            const Expert& expert = weights[tile.expert];
            by.multiply(format1, tile.rows, x.for_w1 + tile.first_row * words1, expert.w1.panel(panel), D, a);
            by.multiply(format3, tile.rows, x.for_w3 + tile.first_row * words3, expert.w3.panel(panel), D, b);
            silu_multiply(a, b, tile.rows * PANEL);
            store(tile, panel, a);
        });
}

// y [P, D] = w2 hidden, in float32.
void down_gemm(Pool& pool, const uint32_t* hidden, const Experts& weights, const std::vector<Tile>& tiles, float* y) {
    const int format = weights[0].w2.format;
    const int64_t words = row_words(format, weights.F);
    for_each_product<Microkernel>(pool, tiles, ceil_div(weights.D, PANEL), panel_words(format, weights.F),
                                  [&](auto& by, const Tile& tile, int64_t panel) {
                                      alignas(64) float sums[MAX_TILE_ROWS * PANEL];
                                      const uint32_t* w2 = weights[tile.expert].w2.panel(panel);
                                      by.multiply(format, tile.rows, hidden + tile.first_row * words, w2, weights.F,
                                                  sums);
                                      store_columns(sums, tile, panel, weights.D, y);
                                  });
}

// Pack hidden rows into tiles in w2's format, panel by panel.
void pack_hidden(Pool& pool, const PackedRows& x, const Experts& weights, const std::vector<Tile>& tiles,
                 uint32_t* hidden) {
    const int dtype = weights[0].w2.format;
    const int64_t words = row_words(dtype, weights.F), depth = depth_of(dtype, weights.F);
    gate_up_gemm(pool, x, weights, tiles, [=](const Tile& tile, int64_t panel, const float* sums) {
        store_words(dtype, sums, tile.rows, panel, depth, hidden + tile.first_row * words);
    });
}

Orders orders_of(const Experts& weights, Matrix Expert::* matrix) {
    Orders orders(weights.E);
    for (int64_t e = 0; e < weights.E; ++e) orders[e] = (weights[e].*matrix).order;
    return orders;
}

// Collect whole rows in float32 first, because a row's scale depends on all of its numbers.
void quantize_hidden(Pool& pool, const PackedRows& x, const Experts& weights, const Pairs& pairs, float* rows,
                     uint32_t* hidden) {
    gate_up_gemm(pool, x, weights, pairs.tiles, [=, &weights](const Tile& tile, int64_t panel, const float* sums) {
        store_columns(sums, tile, panel, weights.F, rows);
    });
    std::vector<int32_t> in_order(pairs.rows.size());
    std::iota(in_order.begin(), in_order.end(), 0);
    const Orders orders = orders_of(weights, &Expert::w2);
    pack_rows(pool, FLOAT32, weights[0].w2.format, rows, in_order, pairs.tiles, weights.F, orders, hidden);
}

}  // namespace

const float* multiply_experts(Pool& pool, int dtype, const void* x, const Experts& weights, const Pairs& pairs) {
    const auto P = static_cast<int64_t>(pairs.rows.size());
    const int format1 = weights[0].w1.format, format3 = weights[0].w3.format, format2 = weights[0].w2.format;
    const int64_t x1_words = P * packing_words(dtype, format1, weights.D);
    const Orders orders1 = orders_of(weights, &Expert::w1), orders3 = orders_of(weights, &Expert::w3);
    const bool is_shared = format3 == format1 && orders3 == orders1;
    const int64_t x3_words = is_shared ? 0 : P * packing_words(dtype, format3, weights.D);
    const int64_t hidden_words = P * row_words(format2, weights.F) * (is_quantized(format2) ? 2 : 1);
    const int64_t num_floats = P * std::max(weights.D, is_quantized(format2) ? weights.F : 0);
    auto* x1 = reinterpret_cast<uint32_t*>(pool.scratch((x1_words + x3_words + hidden_words + num_floats) * 4));
    uint32_t *x3 = x3_words ? x1 + x1_words : x1, *hidden = x1 + x1_words + x3_words;
    auto* floats = reinterpret_cast<float*>(hidden + hidden_words);
    pack_rows(pool, dtype, format1, x, pairs.rows, pairs.tiles, weights.D, orders1, x1);
    if (x3_words) pack_rows(pool, dtype, format3, x, pairs.rows, pairs.tiles, weights.D, orders3, x3);
    if (is_quantized(format2))
        quantize_hidden(pool, {x1, x3}, weights, pairs, floats, hidden);
    else
        pack_hidden(pool, {x1, x3}, weights, pairs.tiles, hidden);
    down_gemm(pool, hidden, weights, pairs.tiles, floats);
    return floats;
}

}  // namespace SMOE_ISA
}  // namespace smoe
