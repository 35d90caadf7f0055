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

// hidden = silu(w1 x) * (w3 x); calls store(tile, panel, sums) for each panel.
template <class Store>
void gate_up_gemm(Pool& pool, const uint32_t* x, const Experts& weights, const std::vector<Tile>& tiles,
                  Store&& store) {
    const int64_t words = row_words(weights.format, weights.D), panel_size = panel_words(weights.format, weights.D);
    const int64_t num_pairs = ceil_div(weights.F, PANEL);
    for_each_product<Microkernel>(
        pool, tiles, num_pairs, 2 * panel_size, [&](auto& by, const Tile& tile, int64_t pair) {
            alignas(64) float a[MAX_TILE_ROWS * PANEL], b[MAX_TILE_ROWS * PANEL];
            const uint32_t* panels = weights.w13 + (tile.expert * num_pairs + pair) * 2 * panel_size;
            const uint32_t* rows = x + tile.first_row * words;
            by.multiply(weights.format, tile.rows, rows, panels, weights.D, a);
            by.multiply(weights.format, tile.rows, rows, panels + panel_size, weights.D, b);
            silu_multiply(a, b, tile.rows * PANEL);
            store(tile, pair, a);
        });
}

// y [P, D] = w2 hidden, in float32.
void down_gemm(Pool& pool, const uint32_t* hidden, const Experts& weights, const std::vector<Tile>& tiles, float* y) {
    const int64_t words = row_words(weights.format, weights.F), panel_size = panel_words(weights.format, weights.F);
    const int64_t num_panels = ceil_div(weights.D, PANEL);
    for_each_product<Microkernel>(pool, tiles, num_panels, panel_size, [&](auto& by, const Tile& tile, int64_t panel) {
        alignas(64) float sums[MAX_TILE_ROWS * PANEL];
        const uint32_t* w2 = weights.w2 + (tile.expert * num_panels + panel) * panel_size;
        by.multiply(weights.format, tile.rows, hidden + tile.first_row * words, w2, weights.F, sums);
        store_columns(sums, tile, panel, weights.D, y);
    });
}

// Pack hidden rows into tiles of x's dtype, panel by panel.
void pack_hidden(Pool& pool, int dtype, const uint32_t* x, const Experts& weights, const std::vector<Tile>& tiles,
                 uint32_t* hidden) {
    const int64_t words = row_words(dtype, weights.F), depth = depth_of(dtype, weights.F);
    gate_up_gemm(pool, x, weights, tiles, [=](const Tile& tile, int64_t panel, const float* sums) {
        store_words(dtype, sums, tile.rows, panel, depth, hidden + tile.first_row * words);
    });
}

// Collect whole rows in float32 first, because a row's scale depends on all of its numbers.
void quantize_hidden(Pool& pool, const uint32_t* x, const Experts& weights, const Pairs& pairs, float* rows,
                     uint32_t* hidden) {
    gate_up_gemm(pool, x, weights, pairs.tiles, [=, &weights](const Tile& tile, int64_t panel, const float* sums) {
        store_columns(sums, tile, panel, weights.F, rows);
    });
    std::vector<int32_t> in_order(pairs.rows.size());
    std::iota(in_order.begin(), in_order.end(), 0);
    pack_rows(pool, FLOAT32, weights.format, rows, in_order, pairs.tiles, weights.F, hidden);
}

}  // namespace

const float* multiply_experts(Pool& pool, int dtype, const void* x, const Experts& weights, const Pairs& pairs) {
    const auto P = static_cast<int64_t>(pairs.rows.size());
    const int64_t x_words = P * packing_words(weights.format, weights.D);
    const int64_t hidden_words = P * packing_words(weights.format, weights.F);
    const int64_t num_floats = P * std::max(weights.D, is_quantized(weights.format) ? weights.F : 0);
    auto* rows = reinterpret_cast<uint32_t*>(pool.scratch((x_words + hidden_words + num_floats) * 4));
    uint32_t* hidden = rows + x_words;
    auto* floats = reinterpret_cast<float*>(hidden + hidden_words);
    pack_rows(pool, dtype, weights.format, x, pairs.rows, pairs.tiles, weights.D, rows);
    if (is_quantized(weights.format))
        quantize_hidden(pool, rows, weights, pairs, floats, hidden);
    else
        pack_hidden(pool, dtype, rows, weights, pairs.tiles, hidden);
    down_gemm(pool, hidden, weights, pairs.tiles, floats);
    return floats;
}

}  // namespace SMOE_ISA
}  // namespace smoe
