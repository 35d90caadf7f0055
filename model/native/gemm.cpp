#include "gemm.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "rows.h"
#include "vec.h"

namespace smoe {
namespace SMOE_ISA {
namespace {

// Columns that one pass over k computes, for at most BLOCK_ROWS rows: as many accumulators as registers hold beside
// two vectors of the panel and one of x.
constexpr int COLUMNS = 2 * LANES;
constexpr int BLOCK_ROWS = LANES == 16 ? 12 : 6;
constexpr int PREFETCH_UNITS = 1024;  // 4 KB ahead: with few rows the panel comes from memory

inline Words broadcast_unit(uint32_t unit) { return unit - Words{}; }

inline Words load_units(const uint32_t* p) {
    Words units;
    std::memcpy(&units, p, sizeof units);
    return units;
}

struct Float32 {
    template <int ROWS>
    static inline void add(Vec (&sums)[ROWS][2], const uint32_t* x, const uint32_t* w) {
        const Vec w0 = from_bits(load_units(w)), w1 = from_bits(load_units(w + LANES));
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; ++m) {
            const Vec row = from_bits(broadcast_unit(x[m]));
            sums[m][0] = fma(row, w0, sums[m][0]);
            sums[m][1] = fma(row, w1, sums[m][1]);
        }
    }
};

struct Bfloat16 {
#if defined(__AVX512BF16__)
    template <int ROWS>
    static inline void add(Vec (&sums)[ROWS][2], const uint32_t* x, const uint32_t* w) {
        const auto w0 = (__m512bh)load_units(w), w1 = (__m512bh)load_units(w + LANES);
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; ++m) {
            const auto row = (__m512bh)broadcast_unit(x[m]);
            sums[m][0] = (Vec)_mm512_dpbf16_ps((__m512)sums[m][0], row, w0);
            sums[m][1] = (Vec)_mm512_dpbf16_ps((__m512)sums[m][1], row, w1);
        }
    }
#else
    template <int ROWS>
    static inline void add(Vec (&sums)[ROWS][2], const uint32_t* x, const uint32_t* w) {
        const Words units0 = load_units(w), units1 = load_units(w + LANES);
        const Vec even0 = from_bits(units0 << 16), even1 = from_bits(units1 << 16);
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; ++m) {
            const Vec row = from_bits(broadcast_unit(x[m] << 16));
            sums[m][0] = fma(row, even0, sums[m][0]);
            sums[m][1] = fma(row, even1, sums[m][1]);
        }
        const Vec odd0 = from_bits(units0 & 0xffff0000u), odd1 = from_bits(units1 & 0xffff0000u);
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; ++m) {
            const Vec row = from_bits(broadcast_unit(x[m] & 0xffff0000u));
            sums[m][0] = fma(row, odd0, sums[m][0]);
            sums[m][1] = fma(row, odd1, sums[m][1]);
        }
    }
#endif
};

// out[ROWS][COLUMNS of PANEL]; x has `stride` units from one k to the next.
template <class Format, int ROWS>
void multiply_block(const uint32_t* x, int stride, const uint32_t* w, int64_t depth, float* out) {
    Vec sums[ROWS][2] = {};
    for (int64_t k = 0; k < depth; ++k) {
        __builtin_prefetch(w + PREFETCH_UNITS);
        if constexpr (LANES == 16) __builtin_prefetch(w + PREFETCH_UNITS + LANES);
        Format::add(sums, x, w);
        x += stride;
        w += PANEL;
    }
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; ++m) {
        store(out + m * PANEL, sums[m][0]);
        store(out + m * PANEL + LANES, sums[m][1]);
    }
}

using Block = void (*)(const uint32_t* x, int stride, const uint32_t* w, int64_t depth, float* out);

// The block of 1, 2, .. BLOCK_ROWS rows.
template <class Format, int... ROWS>
Block block_of(int rows, std::integer_sequence<int, ROWS...>) {
    static constexpr Block blocks[] = {multiply_block<Format, ROWS + 1>...};
    return blocks[rows - 1];
}

template <class Format>
void multiply_tile(int rows, const uint32_t* tile, const uint32_t* panel, int64_t depth, float* out) {
    for (int first = 0; first < rows; first += BLOCK_ROWS) {
        const int count = std::min(BLOCK_ROWS, rows - first);
        const Block block = block_of<Format>(count, std::make_integer_sequence<int, BLOCK_ROWS>());
        for (int column = 0; column < PANEL; column += COLUMNS)
            block(tile + first, rows, panel + column, depth, out + first * PANEL + column);
    }
}

// The columns of a panel that exist, to row `row` of y.
template <class T>
void store_row(T* y, const float* sums, int64_t columns) {
    if (columns == PANEL) {
        for (int n = 0; n < PANEL; n += LANES) store(y + n, load(sums + n));
    } else {
        for (int64_t n = 0; n < columns; ++n) store_one(y + n, sums[n]);
    }
}

template <class T>
void store_tile(T* y, const float* sums, int rows, int64_t columns, int64_t stride) {
    for (int m = 0; m < rows; ++m) store_row(y + m * stride, sums + m * PANEL, columns);
}

}  // namespace

void multiply(int dtype, int rows, const uint32_t* tile, const uint32_t* panel, int64_t depth, float* out) {
    if (dtype == BFLOAT16) return multiply_tile<Bfloat16>(rows, tile, panel, depth, out);
    multiply_tile<Float32>(rows, tile, panel, depth, out);
}

void linear(Pool& pool, int dtype, const void* x, const void* packed, void* y, int64_t T, int64_t O, int64_t K,
            bool wide_output) {
    std::vector<int32_t> row_ids(T);
    std::iota(row_ids.begin(), row_ids.end(), 0);
    std::vector<Tile> tiles;
    append_tiles(tiles, 0, T, 0);
    const int64_t depth = depth_of(dtype, K), units = panel_units(dtype, K);
    auto* rows = reinterpret_cast<uint32_t*>(pool.scratch(T * depth * 4));
    pack_tiles(pool, dtype, x, row_ids, tiles, K, rows);
    const auto* panels = static_cast<const uint32_t*>(packed);
    for_each_product(pool, tiles, ceil_div(O, PANEL), units, [&](const Tile& tile, int64_t panel) {
        alignas(64) float sums[MAX_TILE_ROWS * PANEL];
        multiply(dtype, tile.rows, rows + tile.first_row * depth, panels + panel * units, depth, sums);
        const int64_t columns = std::min<int64_t>(PANEL, O - panel * PANEL);
        const int64_t first = tile.first_row * O + panel * PANEL;
        if (wide_output || dtype == FLOAT32) {
            store_tile(static_cast<float*>(y) + first, sums, tile.rows, columns, O);
        } else {
            store_tile(static_cast<uint16_t*>(y) + first, sums, tile.rows, columns, O);
        }
    });
}

}  // namespace SMOE_ISA
}  // namespace smoe
