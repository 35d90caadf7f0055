// Products with packed weights: the building blocks of linear, ffn, moe and head.
//
// A packed [O, K] matrix is a sequence of panels of PANEL outputs. In the float formats a panel is [depth][PANEL]
// units; a unit is one float32 or two bfloat16 of neighbouring k, and an odd K is padded with a zero.
// gemm/quant_formats.h, gemm/block_formats.h and gemm/coded_weights.h describe the other formats. Rows of x are
// packed by tiles, in the order in which a product reads them: gemm/packed_row_layout.h.
//
// One accumulator per output, k ascending, for any number of rows: a row's result depends on that row alone.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gemm/block_formats.h"
#include "gemm/coded_weights.h"
#include "gemm/quant_formats.h"
#include "runtime/isa.h"
#include "runtime/thread_pool.h"
#include "smoe_native.h"

namespace smoe {

constexpr int PANEL = 32;

// Units in a row of K numbers; not for int4 and block formats.
inline int64_t depth_of(int format, int64_t K) {
    return format == INT8 ? ceil_div(K, 4) : format == BFLOAT16 ? ceil_div(K, 2) : K;
}

// Words in one panel.
inline int64_t panel_words(int format, int64_t K) {
    if (format == INT4) return int4_blocks(K) * INT4_BLOCK_WORDS + PANEL;
    if (format == CODED_BFLOAT16) return coded_panel_words(K);
    if (is_block_format(format)) return K / block_layout(format).numbers * block_layout(format).panel_words;
    return (depth_of(format, K) + (format == INT8 ? 1 : 0)) * PANEL;
}

// A packed matrix: `stride` words from one panel to the next. `order`: of the numbers of x, in groups; or null.
struct Matrix {
    int format;
    const uint32_t* panels;
    int64_t outputs, stride;
    const int32_t* order;

    const uint32_t* panel(int64_t index) const { return panels + index * stride; }
};

// Low-rank terms of a product's rows: `count` terms from `first` on of the adapter of each row, [T]. Null: no row has
// an adapter.
struct LowRankTerms {
    const smoe_adapter* adapters = nullptr;
    int64_t first = 0, count = 0;
};

// Pack weight [O, K] of dtype into format: the dtype's own, int8 or int4, or bfloat16 as coded weights; `stride` words
// from one panel to the next. Returns false if the weights cannot be coded.
bool pack(Pool& pool, int isa, int dtype, int format, const void* weight, uint32_t* packed, int64_t stride, int64_t O,
          int64_t K);
// Pack rows row_ids[0] .. row_ids[rows - 1] of x [.., K] into a tile in dtype's own format: [depth][rows] units.
void pack_tile(int dtype, const void* x, const int32_t* row_ids, int rows, int64_t K, uint32_t* tile);

// Multiply x [T, K] by matrices one below the other: y [T, sum of their outputs].
SMOE_PER_ISA(void linear(Pool& pool, int dtype, const void* x, const Matrix* matrices, int64_t num_matrices, void* y,
                         int64_t T, int64_t K, bool wide_output, const LowRankTerms& low_rank))

}  // namespace smoe
