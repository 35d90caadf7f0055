// Products on AMX: up to 32 rows in the AMX layout times a panel. Included by gemm/gemm.cpp only.
#pragma once

#if defined(__AMX_TILE__)

#include "gemm/amx_tiles.h"
#include "gemm/coded/coded_panel.h"
#include "gemm/gemm_int8.h"
#include "gemm/int4/int4_weights.h"
#include "gemm/microkernel.h"
#include "simd/prefetch.h"

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

// As add_line(). With few rows the panel comes from memory: a line that is read some kilobytes later is prefetched in
// parts, between the instructions that load.
template <int FORMAT, bool BOTH>
inline void add_line_from_memory(const uint32_t* x, const uint32_t* w) {
    constexpr int AHEAD = 1024;  // words
    const auto prefetch_quarter = [w](int quarter) {
        prefetch_lines<LINE * PANEL / 4, NO_FURTHER>(w + AHEAD + quarter * LINE * PANEL / 4);
    };
    _tile_loadd(6, w, PANEL * 4);
    prefetch_quarter(0);
    _tile_loadd(7, w + 16, PANEL * 4);
    prefetch_quarter(1);
    _tile_loadd(4, x, LINE * 4);
    prefetch_quarter(2);
    if constexpr (BOTH) _tile_loadd(5, x + 16 * LINE, LINE * 4);
    prefetch_quarter(3);
    add_products<FORMAT, BOTH>();
}

template <int FORMAT, bool BOTH>
void add_lines(const uint32_t* x, int rows, const uint32_t* panel, int64_t depth) {
    RegularStores stores;
    for (; depth >= LINE; depth -= LINE) {
        add_line_from_memory<FORMAT, BOTH>(x, panel);
        stores.after_line();
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
    RegularStores stores;
    for (; depth; depth -= LINE) {
        unpack_block(panel, units);
        compiler_barrier();
        add_line<INT8, BOTH>(x, units);
        stores.after_line();
        compiler_barrier();
        x += rows * LINE;
        panel += INT4_BLOCK_WORDS;
    }
}

// Each line of coded weights is unpacked in the first-level cache, too.
template <bool BOTH>
void add_coded_lines(const uint32_t* x, int rows, const uint32_t* panel, int64_t K) {
    constexpr int64_t PAIRS = LINE / 2;  // of a line
    alignas(64) uint32_t units[LINE * PANEL];
    CodedPanel coded(panel, K);
    RegularStores stores;
    for (int64_t left = coded_pairs(K); left > 0; left -= PAIRS) {
        if (left < PAIRS) std::fill(units, units + LINE * PANEL, 0);
        coded.unpack(std::min(left, PAIRS), units);
        compiler_barrier();
        add_line<BFLOAT16, BOTH>(x, units);
        stores.after_line();
        compiler_barrier();
        x += rows * LINE;
    }
}

// `depth`: units; of coded weights K.
template <int FORMAT, bool BOTH>
void add_all_lines(const uint32_t* x, int rows, const uint32_t* panel, int64_t depth) {
    if constexpr (FORMAT == INT4)
        add_int4_lines<BOTH>(x, rows, panel, depth);
    else if constexpr (FORMAT == CODED_BFLOAT16)
        add_coded_lines<BOTH>(x, rows, panel, depth);
    else
        add_lines<FORMAT, BOTH>(x, rows, panel, depth);
}

// out[rows][PANEL], float32 or int32. `depth` as add_all_lines().
template <int FORMAT>
void multiply_tiles(AmxTiles& registers, int rows, const uint32_t* x, const uint32_t* panel, int64_t depth, void* out) {
    registers.shape_square(rows);
    auto* sums = static_cast<uint32_t*>(out);
    if (rows <= 16) {
        _tile_zero(0);
        _tile_zero(1);
        add_all_lines<FORMAT, false>(x, rows, panel, depth);
        _tile_stored(0, sums, PANEL * 4);
        _tile_stored(1, sums + 16, PANEL * 4);
    } else {
        zero_square();
        add_all_lines<FORMAT, true>(x, rows, panel, depth);
        store_square(sums, PANEL);
    }
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

// Lines of a panel that stay in the first-level cache while the tiles of a group pass: 16 KB.
constexpr int64_t BLOCK_LINES = 8;

// As add_line() for all of 32 rows. A few lines are prefetched between two instructions that load: many at once would
// delay the loads, which wait for the same buffers of the first-level cache (decision 118).
template <int FORMAT, int PER_STEP>
[[gnu::always_inline]] inline void add_line_prefetching(const uint32_t* x, const uint32_t* w,
                                                        InterleavedPrefetch& prefetch) {
    _tile_loadd(6, w, PANEL * 4);
    prefetch.part<PER_STEP, 0, 8>();
    _tile_loadd(4, x, LINE * 4);
    prefetch.part<PER_STEP, 1, 8>();
    SMOE_ADD_PRODUCT(FORMAT, 0, 4, 6);
    prefetch.part<PER_STEP, 2, 8>();
    _tile_loadd(7, w + 16, PANEL * 4);
    prefetch.part<PER_STEP, 3, 8>();
    SMOE_ADD_PRODUCT(FORMAT, 1, 4, 7);
    prefetch.part<PER_STEP, 4, 8>();
    _tile_loadd(5, x + 16 * LINE, LINE * 4);
    prefetch.part<PER_STEP, 5, 8>();
    SMOE_ADD_PRODUCT(FORMAT, 2, 5, 6);
    prefetch.part<PER_STEP, 6, 8>();
    SMOE_ADD_PRODUCT(FORMAT, 3, 5, 7);
    prefetch.part<PER_STEP, 7, 8>();
    if constexpr (PER_STEP > 0) prefetch.next_step<PER_STEP>();
}

// sums [32][PANEL] = or += x [rows] times some lines of a panel: `depth` units, of which only the last line may lack
// some. Sums of rows past the tile's are any numbers.
template <int FORMAT, int PER_STEP>
void add_block(const uint32_t* x, int rows, const uint32_t* panel, int64_t depth, bool is_first, uint32_t* sums,
               InterleavedPrefetch& prefetch) {
    if (is_first)
        zero_square();
    else
        load_square(sums, PANEL);
    for (; depth >= LINE; depth -= LINE) {
        add_line_prefetching<FORMAT, PER_STEP>(x, panel, prefetch);
        x += rows * LINE;
        panel += LINE * PANEL;
    }
    if (depth) {
        alignas(64) uint32_t rest[LINE * PANEL] = {};
        std::memcpy(rest, panel, depth * PANEL * 4);
        compiler_barrier();
        add_line_prefetching<FORMAT, PER_STEP>(x, rest, prefetch);
    }
    store_square(sums, PANEL);
    compiler_barrier();
}

// add_block() with as many prefetches beside a line as are to be made now.
template <int FORMAT>
auto block_adder(const InterleavedPrefetch& prefetch) {
    static constexpr decltype(&add_block<FORMAT, 0>) adders[] = {
        add_block<FORMAT, 0>, add_block<FORMAT, 4>, add_block<FORMAT, 8>, add_block<FORMAT, 12>, add_block<FORMAT, 16>};
    return adders[prefetch.per_step() / InterleavedPrefetch::RUNS];
}

// The blocks of lines of a panel in turn, as they lie in memory.
class StoredLines {
  public:
    explicit StoredLines(const uint32_t* panel) : at_(panel) {}

    // The next `depth` units.
    const uint32_t* next(int64_t depth) {
        const uint32_t* units = at_;
        at_ += depth * PANEL;
        return units;
    }

  private:
    const uint32_t* at_;
};

// The same of a coded panel, unpacked in the first-level cache.
class CodedLines {
  public:
    CodedLines(const uint32_t* panel, int64_t K) : coded_(panel, K) {}

    const uint32_t* next(int64_t depth) {
        coded_.unpack(ceil_div(depth, 2), units_);
        compiler_barrier();
        return units_;
    }

  private:
    CodedPanel coded_;
    alignas(64) uint32_t units_[BLOCK_LINES * LINE * PANEL];
};

// sums [tiles][MAX_TILE_ROWS][PANEL], float32 or int32, of tiles of 17 or more rows, block of lines by block of lines.
template <int FORMAT, class Lines>
void multiply_blocks_of_group(AmxTiles& registers, const TileGroup& group, const PackedTiles& x, Lines lines,
                              int64_t depth, uint32_t* sums, const PrefetchShare& share) {
    int most_rows = 0;
    for (const Tile& tile : group) most_rows = std::max(most_rows, tile.rows);
    registers.shape_square(most_rows);  // one shape for all: the rows of tiles differ by one
    const PrefetchShare none{sums, 0};
    InterleavedPrefetch prefetch(share.words ? share : none, group.count * ceil_div(depth, LINE));
    constexpr int64_t BLOCK = BLOCK_LINES * LINE;
    for (int64_t first = 0; first < depth; first += BLOCK) {
        const int64_t count = std::min(BLOCK, depth - first);
        const uint32_t* units = lines.next(count);
        uint32_t* out = sums;
        for (const Tile& tile : group) {
            const auto add = block_adder<FORMAT>(prefetch);
            add(x.of(tile) + first * tile.rows, tile.rows, units, count, first == 0, out, prefetch);
            out += TILE_SUMS;
        }
    }
}

// Convert integer sums of a tile to float32: its starting sums and scales follow its lines.
inline void scale_tile(const uint32_t* tile, int rows, const uint32_t* panel, int64_t K, float* out) {
    const uint32_t* starts = tile + ceil_div(depth_of(INT8, K), LINE) * LINE * rows;
    scale_tiles(out, rows, starts, starts + rows, panel + panel_words(INT8, K) - PANEL);
}

// out [tiles][MAX_TILE_ROWS][PANEL] = each tile of the group, in bfloat16, coded or not, or int8, times the panel.
inline void multiply_group(AmxTiles& registers, int format, const TileGroup& group, const PackedTiles& x,
                           const uint32_t* panel, int64_t K, float* out, const PrefetchShare& share) {
    const int64_t depth = depth_of(row_format(format), K);
    auto* sums = reinterpret_cast<uint32_t*>(out);
    if (format == CODED_BFLOAT16)
        return multiply_blocks_of_group<BFLOAT16>(registers, group, x, CodedLines(panel, K), depth, sums, share);
    const StoredLines lines(panel);
    if (format == BFLOAT16) return multiply_blocks_of_group<BFLOAT16>(registers, group, x, lines, depth, sums, share);
    multiply_blocks_of_group<INT8>(registers, group, x, lines, depth, sums, share);
    for (const Tile& tile : group) {
        scale_tile(x.of(tile), tile.rows, panel, K, out);
        out += TILE_SUMS;
    }
}

inline void multiply_lines(AmxTiles& registers, int format, int rows, const uint32_t* tile, const uint32_t* panel,
                           int64_t K, float* out) {
    if (format == CODED_BFLOAT16) return multiply_tiles<CODED_BFLOAT16>(registers, rows, tile, panel, K, out);
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
