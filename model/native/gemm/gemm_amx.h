// Products on AMX: up to 32 rows in the AMX layout times a panel. Included by gemm/gemm.cpp only.
#pragma once

#if defined(__AMX_TILE__)

#include "gemm/amx_tiles.h"
#include "gemm/gemm_int8.h"

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

// out[rows][PANEL], float32 or int32.
template <int FORMAT>
void multiply_tiles(AmxTiles& registers, int rows, const uint32_t* x, const uint32_t* panel, int64_t depth, void* out) {
    registers.shape_square(rows);
    auto* sums = static_cast<uint32_t*>(out);
    _tile_zero(0);
    _tile_zero(1);
    if (rows <= 16) {
        add_lines<FORMAT, false>(x, rows, panel, depth);
    } else {
        _tile_zero(2);
        _tile_zero(3);
        add_lines<FORMAT, true>(x, rows, panel, depth);
        _tile_stored(2, sums + 16 * PANEL, PANEL * 4);
        _tile_stored(3, sums + 16 * PANEL + 16, PANEL * 4);
    }
    _tile_stored(0, sums, PANEL * 4);
    _tile_stored(1, sums + 16, PANEL * 4);
    compiler_barrier();
}

// Convert integer sums to float32, as Int8Block does.
inline void scale_sums(float* sums, int rows, const uint32_t* starts, const uint32_t* scales,
                       const uint32_t* panel_scales) {
    const Vec scale0 = from_bits(load_words(panel_scales)), scale1 = from_bits(load_words(panel_scales + LANES));
    for (int m = 0; m < rows; ++m) {
        float* row = sums + m * PANEL;
        const Words start = broadcast_word(starts[m]);
        const Vec scale = broadcast(float_of(scales[m]));
        store(row, to_float(bits(load(row)) + start) * scale0 * scale);
        store(row + LANES, to_float(bits(load(row + LANES)) + start) * scale1 * scale);
    }
}

inline void multiply_lines(AmxTiles& registers, int format, int rows, const uint32_t* tile, const uint32_t* panel,
                           int64_t K, float* out) {
    const int64_t depth = depth_of(format, K);
    if (format == BFLOAT16) return multiply_tiles<BFLOAT16>(registers, rows, tile, panel, depth, out);
    multiply_tiles<INT8>(registers, rows, tile, panel, depth, out);
    const uint32_t* starts = tile + ceil_div(depth, LINE) * LINE * rows;
    scale_sums(out, rows, starts, starts + rows, panel + depth * PANEL);
}

}  // namespace SMOE_ISA
}  // namespace smoe

#endif
