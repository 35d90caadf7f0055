#include "moe/experts.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "gemm/low_rank.h"
#include "gemm/microkernel.h"
#include "gemm/packing/pack_activations.h"
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
void store_words(int dtype, const float* sums, int rows, int64_t panel, int64_t width, uint32_t* tile) {
    if (uses_amx_layout(dtype, rows)) {  // a panel's columns are a line
        auto* halves = reinterpret_cast<uint16_t*>(tile + panel * rows * LINE);
        for (int i = 0; i < rows * PANEL; i += LANES) store(halves + i, load(sums + i));
        return;
    }
    const int num_words = dtype == BFLOAT16 && !is_widened(dtype) ? PANEL / 2 : PANEL;
    const auto count = static_cast<int>(std::min<int64_t>(num_words, width - panel * num_words));
    for (int m = 0; m < rows; ++m) {
        uint32_t words[PANEL];
        if (dtype == BFLOAT16) {
            uint16_t halves[PANEL];
            for (int n = 0; n < PANEL; n += LANES) store(halves + n, load(sums + m * PANEL + n));
            if (is_widened(dtype))
                for (int n = 0; n < PANEL; n += LANES) store(reinterpret_cast<float*>(words) + n, load(halves + n));
            else
                std::memcpy(words, halves, sizeof halves);
        } else {
            std::memcpy(words, sums + m * PANEL, sizeof words);
        }
        for (int n = 0; n < count; ++n) tile[(panel * num_words + n) * rows + m] = words[n];
    }
}

// Store the sums to panel `panel` of rows [.., O].
template <class T>
void store_columns(const float* sums, const Tile& tile, int64_t panel, int64_t O, T* rows) {
    const int64_t columns = std::min<int64_t>(PANEL, O - panel * PANEL);
    for (int m = 0; m < tile.rows; ++m)
        store_row(rows + (tile.first_row + m) * O + panel * PANEL, sums + m * PANEL, columns);
}

// Rows of x, packed for w1 and for w3, the same memory if both have one format and order; and their low-rank terms.
struct PackedRows {
    const uint32_t *for_w1, *for_w3;
    const LowRankProduct& low_rank;
};

// hidden = silu(w1 x) * (w3 x); calls store(tile, panel, sums) for each panel.
template <class Store>
void gate_up_gemm(Pool& pool, const PackedRows& x, const Experts& weights, const std::vector<Tile>& tiles,
                  Store&& store) {
    const int64_t D = weights.D;
    const int format1 = weights[0].w1.format, format3 = weights[0].w3.format;
    const PackedTiles rows1{x.for_w1, row_words(format1, D)}, rows3{x.for_w3, row_words(format3, D)};
    const int64_t pair_words = panel_words(format1, D) + panel_words(format3, D);
    for_each_product<Microkernel>(
        pool, tiles, ceil_div(weights.num_hidden(), PANEL), pair_words, pass_order(format1, format3),
        [&](Microkernel& by, const TileGroup& group, int64_t panel, const NextPanel& next) {
            const Expert &expert = weights[group.first->expert], &later = weights[next.expert];
            if (!x.low_rank.is_empty())
                for (const Tile& tile : group) x.low_rank.prefetch(tile, panel * PANEL);
            float* a = by.multiply(format1, group, rows1, expert.w1.panel(panel), D,
                                   use_of(next, later.w1, panel_words(format1, D)));
            float* b = by.multiply(format3, group, rows3, expert.w3.panel(panel), D,
                                   use_of(next, later.w3, panel_words(format3, D), 1));
            for (const Tile& tile : group) {
                if (!x.low_rank.is_empty()) {
                    x.low_rank.add_term(tile, 0, panel * PANEL, a);
                    x.low_rank.add_term(tile, 1, panel * PANEL, b);
                }
                silu_multiply(a, b, tile.rows * PANEL);
                store(tile, panel, a);
                a += TILE_SUMS, b += TILE_SUMS;
            }
        });
}

// y [P, num_outputs()] = w2 hidden, in float32.
void down_gemm(Pool& pool, const uint32_t* hidden, const Experts& weights, const std::vector<Tile>& tiles,
               const LowRankProduct& low_rank, float* y) {
    const int format = weights[0].w2.format;
    const int64_t num_outputs = weights.num_outputs();
    const PackedTiles rows{hidden, row_words(format, weights.F)};
    for_each_product<Microkernel>(
        pool, tiles, ceil_div(num_outputs, PANEL), panel_words(format, weights.F), pass_order(format),
        [&](Microkernel& by, const TileGroup& group, int64_t panel, const NextPanel& next) {
            if (!low_rank.is_empty())
                for (const Tile& tile : group) low_rank.prefetch(tile, panel * PANEL);
            float* sums = by.multiply(format, group, rows, weights[group.first->expert].w2.panel(panel), weights.F,
                                      use_of(next, weights[next.expert].w2, panel_words(format, weights.F)));
            for (const Tile& tile : group) {
                if (!low_rank.is_empty()) low_rank.add(tile, panel * PANEL, sums);
                store_columns(sums, tile, panel, num_outputs, y);
                sums += TILE_SUMS;
            }
        });
}

// dtype of hidden rows before they are packed: a matrix that is not quantized multiplies rows of its own dtype.
int hidden_dtype(int format2) { return is_quantized(format2) ? FLOAT32 : row_format(format2); }

// Pack hidden rows into tiles in w2's format, panel by panel.
void pack_hidden(Pool& pool, const PackedRows& x, const Experts& weights, const std::vector<Tile>& tiles,
                 uint32_t* hidden) {
    const int dtype = hidden_dtype(weights[0].w2.format);
    const int64_t words = row_words(dtype, weights.F);
    gate_up_gemm(pool, x, weights, tiles, [=](const Tile& tile, int64_t panel, const float* sums) {
        store_words(dtype, sums, tile.rows, panel, words, hidden + tile.first_row * words);
    });
}

Orders orders_of(const Experts& weights, Matrix Expert::* matrix) {
    Orders orders(weights.E);
    for (int64_t e = 0; e < weights.E; ++e) orders[e] = (weights[e].*matrix).order;
    return orders;
}

// True if one packing of the rows of x serves w1 and w3.
bool shares_rows(const Experts& weights) {
    return weights[0].w3.format == weights[0].w1.format &&
           orders_of(weights, &Expert::w3) == orders_of(weights, &Expert::w1);
}

// True if hidden rows are collected before they are packed; the bits are the same. has_terms: some row has one of w2.
bool packs_whole_rows(const Experts& weights, bool has_terms) {
    return is_quantized(weights[0].w2.format) || weights.group || has_terms;
}

// Terms of the sorted pairs in these tiles, from term `first` of their experts on; empty if no row has an adapter.
RowTerms terms_of_pairs(const LowRankTerms& terms, const Pairs& pairs, const std::vector<Tile>& tiles, int64_t first) {
    constexpr int64_t TERMS_OF_EXPERT = 3;
    RowTerms rows;
    if (!terms.adapters) return rows;
    rows.resize(pairs.rows.size());
    for (const Tile& tile : tiles)
        for (int64_t p = tile.first_row; p < tile.first_row + tile.rows; ++p) {
            const smoe_adapter adapter = terms.adapters[pairs.rows[p]];
            if (adapter) rows[p] = adapter + terms.first + TERMS_OF_EXPERT * tile.expert + first;
        }
    return rows;
}

// Compute hidden rows [P, F] of type T; in a group `part` [P, num_hidden()] holds this rank's columns first.
template <class T>
void collect_hidden(Pool& pool, const PackedRows& x, const Experts& weights, const Pairs& pairs,
                    const std::vector<Tile>& tiles, T* rows, T* part) {
    T* own = weights.group ? part : rows;
    const int64_t num_hidden = weights.num_hidden();
    gate_up_gemm(pool, x, weights, tiles, [=](const Tile& tile, int64_t panel, const float* sums) {
        store_columns(sums, tile, panel, num_hidden, own);
    });
    if (!weights.group) return;
    const int64_t item = sizeof(T), num_rows = static_cast<int64_t>(pairs.rows.size());
    weights.group->gather(own, rows, num_rows,
                          {weights.F * item, weights.first_F * item, num_hidden * item, PANEL * item});
}

// Pack whole rows: a quantized row's scale and the low-rank terms of w2 depend on all of its numbers, and in a group
// other ranks have some.
void pack_whole_hidden(Pool& pool, const PackedRows& x, const Experts& weights, const Pairs& pairs,
                       const std::vector<Tile>& tiles, const ProductMemory& memory, LowRankProduct& low_rank) {
    const int format = weights[0].w2.format, row_dtype = hidden_dtype(format);
    if (row_dtype == FLOAT32)
        collect_hidden(pool, x, weights, pairs, tiles, memory.whole, memory.part);
    else
        collect_hidden(pool, x, weights, pairs, tiles, reinterpret_cast<uint16_t*>(memory.whole),
                       reinterpret_cast<uint16_t*>(memory.part));
    std::vector<int32_t> in_order(pairs.rows.size());
    std::iota(in_order.begin(), in_order.end(), 0);
    const Orders orders = orders_of(weights, &Expert::w2);
    pack_rows(pool, row_dtype, format, memory.whole, in_order, tiles, weights.F, orders, memory.hidden,
              low_rank.projection(row_dtype, memory.whole, in_order, weights.F));
}

}  // namespace

ProductMemory reserve_products(Pool& pool, int dtype, const Experts& weights, int64_t num_pairs, bool in_parts) {
    const int64_t P = num_pairs;
    const int format1 = weights[0].w1.format, format3 = weights[0].w3.format, format2 = weights[0].w2.format;
    const bool is_shared = shares_rows(weights);
    const int64_t x1_words = P * packing_words(dtype, format1, weights.D);
    const int64_t x3_words = is_shared ? 0 : P * packing_words(dtype, format3, weights.D);
    const int64_t hidden_words = P * packing_words(hidden_dtype(format2), format2, weights.F);
    const int64_t whole_floats = packs_whole_rows(weights, weights.low_rank.adapters) ? P * weights.F : 0;
    const int64_t part_floats = weights.group ? P * weights.num_hidden() : 0;
    const int64_t output_floats = P * weights.num_outputs();
    const int64_t floats = in_parts ? whole_floats + output_floats : std::max(whole_floats, output_floats);
    const int64_t num_words = x1_words + x3_words + hidden_words + floats + part_floats + SPARE_WORDS;
    auto* x1 = reinterpret_cast<uint32_t*>(pool.scratch(num_words * 4));
    uint32_t* hidden = x1 + x1_words + x3_words;
    auto* whole = reinterpret_cast<float*>(hidden + hidden_words);
    return {x1,
            is_shared ? nullptr : x1 + x1_words,
            hidden,
            whole,
            whole + floats,
            in_parts ? whole + whole_floats : whole};
}

void multiply_experts(Pool& pool, int dtype, const void* x, const Experts& weights, const Pairs& pairs,
                      const std::vector<Tile>& tiles, const ProductMemory& memory) {
    const int format1 = weights[0].w1.format, format3 = weights[0].w3.format;
    uint32_t *x1 = memory.x1, *x3 = memory.x3;
    LowRankProduct low_rank13(terms_of_pairs(weights.low_rank, pairs, tiles, 0), 2);
    LowRankProduct low_rank2(terms_of_pairs(weights.low_rank, pairs, tiles, 2), 1);
    pack_rows(pool, dtype, format1, x, pairs.rows, tiles, weights.D, orders_of(weights, &Expert::w1), x1,
              low_rank13.projection(dtype, x, pairs.rows, weights.D));
    if (x3) pack_rows(pool, dtype, format3, x, pairs.rows, tiles, weights.D, orders_of(weights, &Expert::w3), x3, {});
    const PackedRows rows{x1, x3 ? x3 : x1, low_rank13};
    if (packs_whole_rows(weights, !low_rank2.is_empty()))
        pack_whole_hidden(pool, rows, weights, pairs, tiles, memory, low_rank2);
    else
        pack_hidden(pool, rows, weights, tiles, memory.hidden);
    down_gemm(pool, memory.hidden, weights, tiles, low_rank2, memory.outputs);
}

}  // namespace SMOE_ISA

}  // namespace smoe
