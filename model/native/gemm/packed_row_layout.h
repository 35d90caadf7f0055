// Layout of the rows of x in a packed tile. Included by kernel files only.
//
// Unit layout: [depth][rows], for blocks that multiply one unit of each row at a time. AMX layout: lines of LINE units,
// [depth / LINE][rows], the last line zero-padded. gemm/quant_formats.h and gemm/block_formats.h describe the rest of a
// quantized row; in the AMX layout int8's and int4's [rows] starting sums and then [rows] scales follow the units. A
// block of a block format has its lines, of fewer units if it has fewer, and then its other words [..][rows].
//
// Where no instruction multiplies bfloat16 numbers their rows are packed as float32, [K, rounded up to even][rows], so
// that a product does not convert them again for each panel.
#pragma once

#include <algorithm>

#include "gemm/gemm.h"
#include "gemm/row_tiles.h"
#include "simd/integer_dot_products.h"
#include "simd/matrix_products.h"

namespace smoe {
namespace SMOE_ISA {

#if defined(__AMX_TILE__)
constexpr bool HAS_AMX = true;
#else
constexpr bool HAS_AMX = false;
#endif

constexpr int LINE = 16;
constexpr int MAX_UNIT_ROWS = 12;  // rows of a tile in the unit layout, where blocks are not unpacked for many rows
constexpr int MAX_TILE_ROWS = 32;
static_assert(MAX_TILE_ROWS <= PANEL);  // pack_tile() transposes rows as it does a panel's outputs

// True if many rows of the format in the unit layout may share the unpacking of a block's numbers
// (gemm/blocks/unpacked_blocks.h): code books always, all formats on AVX2, and those that gain on AVX-512 with VNNI,
// where some do on Intel's CPUs only. AMX has many rows in its own layout.
constexpr bool unpacks_blocks(int format) {
    if (is_code_book(format)) return true;
    if (HAS_AMX) return false;
    if (SUMS_OF_16_BITS && LANES == 8) return is_block_format(format);
    switch (format) {
        case Q5_0:
        case Q5_1:
        case Q6_K:
        case IQ4_XS: return SMOE_VNNI && LANES == 16;
        case Q2_K:
        case Q3_K:
        case Q4_K:
        case Q5_K:
        case IQ4_NL: return SMOE_VNNI && IS_FOR_INTEL;
        default: return false;
    }
}

// Words of a group of 16 numbers in a row of Q6_K: the numbers at which its sums of products start; 0 if the row has
// the sums of its numbers instead (gemm/block_formats.h).
constexpr int STARTS_PER_GROUP = SUMS_OF_16_BITS && LANES == 8 ? 1 : SHORT_BYTE_SUMS && IS_FOR_INTEL ? 2 : 0;
constexpr bool has_starts(int format) { return STARTS_PER_GROUP > 0 && format == Q6_K; }

#if defined(__AMX_TILE__)
// In integer formats the unit layout is faster for few rows and gives the same bits, because their sums are exact.
constexpr bool uses_amx_layout(int format, int rows) {
    if (is_block_format(format)) return format != Q8_0 && rows > MAX_UNIT_ROWS;  // Q8_0: decision 123
    return row_format(format) == BFLOAT16 || ((format == INT8 || format == INT4) && rows > 4);
}
#else
constexpr bool uses_amx_layout(int, int) { return false; }
#endif

// Units in a line of a block format's row in the AMX layout.
constexpr int amx_line_units(int units) { return std::min(units, LINE); }

// True if a panel is unpacked once for several tiles of rows: int4 to int8's bytes, coded weights to bfloat16. On AMX a
// group of tiles unpacks coded weights line by line.
constexpr bool unpacks_panels(int format) {
    return (SMOE_VNNI && format == INT4) || (!HAS_AMX && format == CODED_BFLOAT16);
}

// True if several tiles of rows that are multiplied by one panel prefetch the next one together. Products on AMX that
// do not use its tiles were not measured.
constexpr bool shares_panels(int format) {
    if (HAS_AMX) return uses_amx_layout(format, MAX_TILE_ROWS) && !is_block_format(format);
    const bool is_float = format == FLOAT32 || format == BFLOAT16;
    return LANES == 16 && (is_float || format == INT8 || unpacks_panels(format));
}

// Tiles whose sums are kept at once. On AMX a few lines of a panel stay in the first-level cache while all tiles of a
// group pass, and the group's rows and sums in the second.
constexpr int64_t MAX_GROUP_TILES = HAS_AMX ? 8 : 1;

// The order of tiles and panels in products of matrices of this format.
constexpr PassOrder pass_order(int format) {
    constexpr int64_t ALL = 1 << 30;
    if (HAS_AMX && uses_amx_layout(format, MAX_TILE_ROWS)) return {MAX_GROUP_TILES, MAX_GROUP_TILES};
    return {shares_panels(format) || unpacks_panels(format) ? ALL : 1, 1};
}

// The order in products of matrices of both formats in turns.
constexpr PassOrder pass_order(int format, int other) {
    const PassOrder one = pass_order(format), two = pass_order(other);
    return {std::min(one.pass, two.pass), std::min(one.group, two.group)};
}

#if defined(__AVX512BF16__) || SMOE_MATRIX_PRODUCTS
constexpr bool is_widened(int) { return false; }
#else
constexpr bool is_widened(int format) { return row_format(format) == BFLOAT16; }
#endif

// Rows of a tile of a matrix that multiplies `rows` rows. On Intel's AVX-512 unpacking Q4_K gains nothing from fewer
// than 28, and passes over a larger tile are slower than those over several tiles. On AMX a tile of at most 16 rows of
// blocks of 256 is slower than two in the unit layout (decision 123).
constexpr int max_tile_rows(int format, int64_t rows) {
    const bool has_superblocks = is_block_format(format) && block_layout(format).numbers == 256;
    if (HAS_AMX && has_superblocks && rows <= 16) return MAX_UNIT_ROWS;
    if (LANES == 16 && !HAS_AMX && format == Q4_K && rows < 28) return MAX_UNIT_ROWS;
    if (unpacks_blocks(format)) return MAX_TILE_ROWS;
    return uses_amx_layout(format, MAX_TILE_ROWS) ? MAX_TILE_ROWS : MAX_UNIT_ROWS;
}

// Words in one packed row of x for a matrix of this format, in either layout.
inline int64_t row_words(int format, int64_t K) {
    if (format == INT4 && SUMS_OF_16_BITS) return int4_blocks(K) * (1 + INT4_BLOCK / 4) + 1;
    if (format == INT4) return int4_blocks(K) * (INT4_BLOCK / 4) + 2;
    if (is_block_format(format)) {
        const BlockLayout& layout = block_layout(format);
        return K / layout.numbers * (layout.row_words + (has_starts(format) ? 16 * STARTS_PER_GROUP - 8 : 0));
    }
    const int64_t depth = depth_of(row_format(format), K);
    if (is_widened(format)) return 2 * depth;
    return (uses_amx_layout(format, MAX_TILE_ROWS) ? ceil_div(depth, LINE) * LINE : depth) + (format == INT8 ? 2 : 0);
}

// Readable words behind the packed rows: on AMX the tiles of a group are read as if all had as many rows as the
// largest.
constexpr int64_t SPARE_WORDS = HAS_AMX ? LINE : 0;

// Rows of x, packed tile by tile, `words` words each.
struct PackedTiles {
    const uint32_t* rows;
    int64_t words;

    const uint32_t* of(const Tile& tile) const { return rows + tile.first_row * words; }
};

constexpr int64_t TILE_SUMS = MAX_TILE_ROWS * PANEL;  // of a tile's product with a panel

// Words that pack_rows needs per row of x: the packed row, and as many again as scratch if its numbers are rounded.
inline int64_t packing_words(int dtype, int format, int64_t K) {
    return row_words(format, K) * (row_format(format) == dtype ? 1 : 2);
}

}  // namespace SMOE_ISA
}  // namespace smoe
