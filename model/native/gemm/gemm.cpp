#include "gemm/gemm.h"

#include <algorithm>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#include "gemm/blocks/amx_blocks.h"
#include "gemm/coded/coded_panel.h"
#include "gemm/gemm_amx.h"
#include "gemm/gemm_float.h"
#include "gemm/gemm_int8.h"
#include "gemm/int4/int4_block.h"
#include "gemm/int4/int4_group_sums.h"
#include "gemm/low_rank.h"
#include "gemm/microkernel.h"
#include "gemm/packing/pack_activations.h"

namespace smoe {
namespace SMOE_ISA {
namespace {

using Product = void (*)(const uint32_t* x, int stride, const uint32_t* panel, int64_t K, float* out,
                         const PrefetchShare& share);

// Multiply ROWS rows by a panel: all columns in one pass if their sums fit into registers, else a few per pass.
template <class Format, int ROWS>
void multiply_panel(const uint32_t* x, int stride, const uint32_t* panel, int64_t K, float* out,
                    const PrefetchShare& share) {
    if constexpr (shares_panels(Format::FORMAT) && !unpacks_panels(Format::FORMAT))
        if (share.words)
            return Format::template multiply<ROWS, PANEL / LANES, true>(x, stride, panel, 0, K, out, share);
    constexpr int VECTORS = ROWS <= MAX_ROWS_IN_ONE_PASS ? PANEL / LANES : COLUMNS / LANES;
    for (int column = 0; column < PANEL; column += VECTORS * LANES)
        Format::template multiply<ROWS, VECTORS>(x, stride, panel, column, K, out);
}

// Table of products for 1, 2, .. MAX_ROWS rows.
template <class Format, int... ROWS>
Product product_of(int rows, std::integer_sequence<int, ROWS...>) {
    static constexpr Product products[] = {multiply_panel<Format, ROWS + 1>...};
    return products[rows - 1];
}

template <class Format, int MAX_ROWS = Format::MAX_ROWS>
void multiply_tile(int rows, const uint32_t* tile, const uint32_t* panel, int64_t K, float* out,
                   const PrefetchShare& share = {}) {
    for (int first = 0; first < rows; first += MAX_ROWS) {
        const int count = std::min(MAX_ROWS, rows - first);
        const Product product = product_of<Format>(count, std::make_integer_sequence<int, MAX_ROWS>());
        product(tile + first, rows, panel, K, out + first * PANEL, share);
    }
}

// As multiply_tile(), in parts of the units if several passes compute the columns.
template <class Unit>
void multiply_float_tile(int rows, const uint32_t* tile, const uint32_t* panel, int64_t K, float* out,
                         const PrefetchShare& share) {
    const int64_t numbers = PART * (Unit::FORMAT == BFLOAT16 ? 2 : 1);
    const int64_t first = PART && rows > MAX_ROWS_IN_ONE_PASS ? std::min(numbers, K) : K;
    multiply_tile<FloatBlock<Unit>>(rows, tile, panel, first, out, share);
    if constexpr (PART)
        for (int64_t k = first; k < K; k += numbers) {
            tile += numbers * rows, panel += PART * PANEL;
            multiply_tile<FloatBlock<Unit, true>>(rows, tile, panel, std::min(numbers, K - k), out);
        }
}

// True if a panel of this format is unpacked whole for a single tile, too.
constexpr bool unpacks_for_one_tile(int format) { return SMOE_MATRIX_PRODUCTS && format == CODED_BFLOAT16; }

// As multiply_tile(): each part of the coded panel is unpacked in the first-level cache. Small parts keep the reads of
// memory in flight.
void multiply_coded_tile(int rows, const uint32_t* tile, const uint32_t* panel, int64_t K, float* out) {
    if constexpr (!unpacks_for_one_tile(CODED_BFLOAT16)) {
        constexpr int64_t PAIRS = 8;
        using Block = FloatBlock<Bfloat16, true, false>;
        alignas(64) uint32_t units[2 * PAIRS * PANEL];
        CodedPanel coded(panel, K);
        std::fill(out, out + rows * PANEL, 0.0f);
        for (int64_t k = 0; k < K; k += 4 * PAIRS) {
            const int64_t numbers = std::min(4 * PAIRS, K - k);
            coded.unpack(coded_pairs(numbers), units);
            multiply_tile<Block>(rows, tile, units, numbers, out);
            tile += 2 * PAIRS * Block::X_WORDS * rows;
        }
    }
}

// As multiply_tile(), in parts if several passes compute the columns.
template <class Block>
void multiply_integer_tile(int rows, const uint32_t* tile, const uint32_t* panel, int64_t K, float* out,
                           const PrefetchShare& share) {
    if constexpr (!HAS_PARTS) {
        multiply_tile<Block>(rows, tile, panel, K, out, share);
    } else if (rows <= MAX_ROWS_IN_ONE_PASS) {
        multiply_tile<Block, MAX_ROWS_IN_ONE_PASS>(rows, tile, panel, K, out);
    } else {
        const int64_t blocks = ceil_div(K, Block::NUMBERS);
        std::fill(out, out + rows * PANEL, 0.0f);
        add_in_parts<Block>(rows, tile + Block::FIRST_WORD * rows, panel, blocks, out);
        scale_sums<Block>(rows, tile, panel, blocks, out);
    }
}

using Int4 = std::conditional_t<SUMS_OF_16_BITS, Int4GroupSums, Int4Block>;

std::vector<int32_t> in_order(int64_t count) {
    std::vector<int32_t> ids(count);
    std::iota(ids.begin(), ids.end(), 0);
    return ids;
}

template <class T>
void store_tile(T* y, const float* sums, int rows, int64_t columns, int64_t stride) {
    for (int m = 0; m < rows; ++m) store_row(y + m * stride, sums + m * PANEL, columns);
}

// Place of a matrix's outputs in a row of y, which has `stride` numbers.
struct Columns {
    int64_t first, stride;
};

// Multiply x [T, K] by one matrix, and add the low-rank terms of its outputs. The tasks beside compute A x of the
// terms.
template <class Number>
void multiply_matrix(Pool& pool, int dtype, const void* x, const Matrix& matrix, Number* y, int64_t T, int64_t K,
                     const Columns& place, const LowRankProduct& low_rank, const SideTasks& beside) {
    const int format = matrix.format;
    const std::vector<int32_t> row_ids = in_order(T);
    std::vector<Tile> tiles;
    append_tiles(tiles, 0, T, 0, max_tile_rows(format, T));
    const int64_t words = row_words(format, K);
    auto* rows = reinterpret_cast<uint32_t*>(pool.scratch((T * packing_words(dtype, format, K) + SPARE_WORDS) * 4));
    pack_rows(pool, dtype, format, x, row_ids, tiles, K, {matrix.order}, rows, beside);
    const auto multiply = [&](Microkernel& by, const TileGroup& group, int64_t panel, const NextPanel& next) {
        const int64_t first = place.first + panel * PANEL;
        if (!low_rank.is_empty())
            for (const Tile& tile : group) low_rank.prefetch(tile, first);
        float* sums = by.multiply(format, group, {rows, words}, matrix.panel(panel), K,
                                  use_of(next, matrix, panel_words(format, K)));
        const int64_t columns = std::min<int64_t>(PANEL, matrix.outputs - panel * PANEL);
        for (const Tile& tile : group) {
            if (!low_rank.is_empty()) low_rank.add(tile, first, sums);
            store_tile(y + tile.first_row * place.stride + first, sums, tile.rows, columns, place.stride);
            sums += TILE_SUMS;
        }
    };
    for_each_product<Microkernel>(pool, tiles, ceil_div(matrix.outputs, PANEL), panel_words(format, K),
                                  pass_order(format), multiply);
}

}  // namespace

float* Microkernel::multiply(int format, const TileGroup& group, const PackedTiles& x, const uint32_t* panel, int64_t K,
                             const PanelUse& use) {
    if (unpacks_panels(format) && (use.tiles > 1 || unpacks_for_one_tile(format))) {
        panel = unpacked_.get(use.matrix, format, panel, K);
        if (format == INT4) K = int4_blocks(K) * INT4_BLOCK;
        format = format == INT4 ? INT8 : BFLOAT16;
    }
    float* sums = sums_[use.matrix];
#if defined(__AMX_TILE__)
    if (is_block_format(format)) {
        if (uses_amx_layout(format, group.first->rows)) {
            multiply_block_group(registers_, format, group, x, panel, K, sums);
            return sums;
        }
    } else if (group.count > 1) {
        multiply_group(registers_, format, group, x, panel, K, sums, use.share);
        return sums;
    }
#endif
    float* out = sums;
    for (const Tile& tile : group) {
        multiply_one(format, tile.rows, x.of(tile), panel, K, out, use.share);
        out += TILE_SUMS;
    }
    return sums;
}

void Microkernel::multiply_one(int format, int rows, const uint32_t* tile, const uint32_t* panel, int64_t K, float* out,
                               const PrefetchShare& share) {
#if defined(__AMX_TILE__)
    if (uses_amx_layout(format, rows)) return multiply_lines(registers_, format, rows, tile, panel, K, out);
#endif
    if (is_block_format(format)) return multiply_blocks(format, rows, tile, panel, K, out);
    if (format == INT4) return multiply_integer_tile<Int4>(rows, tile, panel, K, out, share);
    if (format == INT8) return multiply_integer_tile<Int8Block>(rows, tile, panel, K, out, share);
    if (format == BFLOAT16) return multiply_float_tile<Bfloat16>(rows, tile, panel, K, out, share);
    if (format == CODED_BFLOAT16) return multiply_coded_tile(rows, tile, panel, K, out);
    multiply_float_tile<Float32>(rows, tile, panel, K, out, share);
}

void linear(Pool& pool, int dtype, const void* x, const Matrix* matrices, int64_t num_matrices, void* y, int64_t T,
            int64_t K, bool wide_output, const LowRankTerms& terms) {
    int64_t all_outputs = 0, first_output = 0;
    for (int64_t i = 0; i < num_matrices; ++i) all_outputs += matrices[i].outputs;
    LowRankProduct low_rank(terms_of_rows(terms, T), terms.count);
    const std::vector<int32_t> row_ids = in_order(T);
    SideTasks projection = low_rank.projection(dtype, x, row_ids, K);
    const bool is_wide = wide_output || dtype == FLOAT32;
    for (int64_t i = 0; i < num_matrices; ++i) {
        const Columns place{first_output, all_outputs};
        if (is_wide)
            multiply_matrix(pool, dtype, x, matrices[i], static_cast<float*>(y), T, K, place, low_rank, projection);
        else
            multiply_matrix(pool, dtype, x, matrices[i], static_cast<uint16_t*>(y), T, K, place, low_rank, projection);
        projection.count = 0;  // done
        first_output += matrices[i].outputs;
    }
}

}  // namespace SMOE_ISA
}  // namespace smoe
