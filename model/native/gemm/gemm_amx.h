// Products on AMX: up to 32 rows in the AMX layout times a panel. Included by gemm/gemm.cpp only.
#pragma once

#if defined(__AMX_TILE__)

#include "gemm/amx_tiles.h"
#include "gemm/gemm_int8.h"
#include "gemm/int4/int4_weights.h"

namespace smoe {
namespace SMOE_ISA {

// sums += x [rows][LINE] times w [LINE][PANEL].
template <int FORMAT, bool BOTH>
inline void add_line(const uint32_t* x, const uint32_t* w) {
    _tile_loadd(6, w, PANEL * 4);
    _tile_loadd(7, w + 16, PANEL * 4);
    _tile_loadd(4, x, LINE * 4);
    if constexpr (BOTH) _tile_loadd(5, x + 16 * LINE, LINE * 4);
    add_products<FORMAT, BOTH>();
}

template <int FORMAT, bool BOTH>
void add_lines(const uint32_t* x, int rows, const uint32_t* panel, int64_t depth) {
    constexpr int PREFETCH_DISTANCE = 4 * LINE * PANEL;  // words: with few rows the panel comes from memory
    for (; depth >= LINE; depth -= LINE) {
        for (int word = 0; word < LINE * PANEL; word += LINE) __builtin_prefetch(panel + PREFETCH_DISTANCE + word);
        add_line<FORMAT, BOTH>(x, panel);
        x += rows * LINE;
        panel += LINE * PANEL;
    }
    if (depth == 0) return;
    alignas(64) uint32_t rest[LINE * PANEL] = {};
    std::memcpy(rest, panel, depth * PANEL * 4);
    compiler_barrier();
    add_line<FORMAT, BOTH>(x, rest);
}

// Each block of int4 is a line: it is unpacked in the first-level cache. For one tile of rows.
template <bool BOTH>
void add_int4_lines(const uint32_t* x, int rows, const uint32_t* panel, int64_t depth) {
    static_assert(INT4_UNITS == LINE);
    alignas(64) uint32_t units[LINE * PANEL];
    for (; depth; depth -= LINE) {
        unpack_block(panel, units);
        compiler_barrier();
        add_line<INT8, BOTH>(x, units);
        compiler_barrier();
        x += rows * LINE;
        panel += INT4_BLOCK_WORDS;
    }
}

template <int FORMAT, bool BOTH>
void add_all_lines(const uint32_t* x, int rows, const uint32_t* panel, int64_t depth) {
    if constexpr (FORMAT == INT4)
        add_int4_lines<BOTH>(x, rows, panel, depth);
    else
        add_lines<FORMAT, BOTH>(x, rows, panel, depth);
}

// out[rows][PANEL], float32 or int32.
template <int FORMAT>
void multiply_tiles(AmxTiles& registers, int rows, const uint32_t* x, const uint32_t* panel, int64_t depth, void* out) {
    registers.shape_square(rows);
    auto* sums = static_cast<uint32_t*>(out);
    _tile_zero(0);
    _tile_zero(1);
    if (rows <= 16) {
        add_all_lines<FORMAT, false>(x, rows, panel, depth);
    } else {
        _tile_zero(2);
        _tile_zero(3);
        add_all_lines<FORMAT, true>(x, rows, panel, depth);
        _tile_stored(2, sums + 16 * PANEL, PANEL * 4);
        _tile_stored(3, sums + 16 * PANEL + 16, PANEL * 4);
    }
    _tile_stored(0, sums, PANEL * 4);
    _tile_stored(1, sums + 16, PANEL * 4);
    compiler_barrier();
}

// Convert integer sums to float32, as Int8Block does.
inline void scale_tiles(float* sums, int rows, const uint32_t* starts, const uint32_t* x_scales,
                        const uint32_t* scales) {
    const Vec scale0 = from_bits(load_words(scales)), scale1 = from_bits(load_words(scales + LANES));
    for (int m = 0; m < rows; ++m) {
        float* row = sums + m * PANEL;
        store(row, scaled(bits(load(row)), starts[m], scale0, x_scales[m]));
        store(row + LANES, scaled(bits(load(row + LANES)), starts[m], scale1, x_scales[m]));
    }
}

inline void multiply_lines(AmxTiles& registers, int format, int rows, const uint32_t* tile, const uint32_t* panel,
                           int64_t K, float* out) {
    const int64_t depth = format == INT4 ? int4_blocks(K) * LINE : depth_of(format, K);
    if (format == BFLOAT16) return multiply_tiles<BFLOAT16>(registers, rows, tile, panel, depth, out);
    if (format == INT4)
        multiply_tiles<INT4>(registers, rows, tile, panel, depth, out);
    else
        multiply_tiles<INT8>(registers, rows, tile, panel, depth, out);
    const uint32_t* starts = tile + ceil_div(depth, LINE) * LINE * rows;
    scale_tiles(out, rows, starts, starts + rows, panel + panel_words(format, K) - PANEL);
}

}  // namespace SMOE_ISA
}  // namespace smoe

#endif
