#include <algorithm>
#include <cstring>

#include "gemm.h"

namespace smoe {
namespace {

// Unit `index` of a row of K numbers; behind the row's end stands zero.
uint32_t unit_of(int dtype, const void* row, int64_t index, int64_t K) {
    uint32_t unit = 0;
    if (dtype == FLOAT32) {
        std::memcpy(&unit, static_cast<const float*>(row) + index, 4);
    } else {
        std::memcpy(&unit, static_cast<const uint16_t*>(row) + 2 * index, 2 * index + 1 < K ? 4 : 2);
    }
    return unit;
}

const std::byte* row_of(int dtype, const void* matrix, int64_t row, int64_t K) {
    return static_cast<const std::byte*>(matrix) + row * K * (dtype == FLOAT32 ? 4 : 2);
}

// Rows first_output .. first_output + PANEL - 1 of weight; rows behind its end are zeros.
void pack_panel(int dtype, const void* weight, int64_t first_output, int64_t O, int64_t K, uint32_t* panel) {
    const int64_t depth = depth_of(dtype, K);
    const int64_t outputs = std::min<int64_t>(PANEL, O - first_output);
    const std::byte* rows = row_of(dtype, weight, first_output, K);
    const int64_t row_bytes = K * (dtype == FLOAT32 ? 4 : 2);
    for (int64_t k = 0; k < depth; ++k) {
        uint32_t* units = panel + k * PANEL;
        for (int64_t n = 0; n < outputs; ++n) units[n] = unit_of(dtype, rows + n * row_bytes, k, K);
        for (int64_t n = outputs; n < PANEL; ++n) units[n] = 0;
    }
}

}  // namespace

void pack(Pool& pool, int dtype, const void* weight, void* packed, int64_t O, int64_t K) {
    const int64_t units = panel_units(dtype, K);
    pool.parallel_for(ceil_div(O, PANEL), [=](int64_t panel) {
        pack_panel(dtype, weight, panel * PANEL, O, K, static_cast<uint32_t*>(packed) + panel * units);
    });
}

void pack_pair(Pool& pool, int dtype, const void* w1, const void* w3, void* packed, int64_t F, int64_t K) {
    const int64_t units = panel_units(dtype, K);
    pool.parallel_for(2 * ceil_div(F, PANEL), [=](int64_t panel) {
        pack_panel(dtype, panel % 2 ? w3 : w1, panel / 2 * PANEL, F, K,
                   static_cast<uint32_t*>(packed) + panel * units);
    });
}

void pack_tile(int dtype, const void* x, const int32_t* row_ids, int rows, int64_t K, uint32_t* tile) {
    const int64_t depth = depth_of(dtype, K);
    for (int m = 0; m < rows; ++m) {
        const std::byte* row = row_of(dtype, x, row_ids[m], K);
        for (int64_t k = 0; k < depth; ++k) tile[k * rows + m] = unit_of(dtype, row, k, K);
    }
}

}  // namespace smoe
