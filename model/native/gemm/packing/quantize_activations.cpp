#include <algorithm>
#include <cstddef>
#include <numeric>
#include <utility>

#include "gemm/packed_row_layout.h"
#include "gemm/packing/pack_activations.h"
#include "gemm/packing/quantize_blocks.h"
#include "gemm/packing/quantize_common.h"
#include "simd/transpose.h"
#include "simd/vec_tail.h"

namespace smoe {
namespace SMOE_ISA {
namespace {

// Destination of one row: LINE units per line, and `stride` words from one line to the next.
struct Int8Row {
    uint32_t *start, *units, *scale;
    int64_t stride;
};

// Quantize K numbers to `depth` units, zero-padded.
template <class T>
void quantize_to_int8(const T* x, int64_t K, int64_t depth, const Int8Row& row) {
    const Scale scale = scale_of(largest_magnitude(x, K));
    Words total = {};
    for (int64_t unit = 0; unit < depth; unit += GROUP / 4) {
        const int64_t k = 4 * unit, count = depth - unit;
        uint32_t* to = row.units + unit / LINE * row.stride + unit % LINE;
        if (count >= GROUP / 4) {
            total += quantize_group<GROUP>(x + std::min(k, K), K - k, scale.inverse, reinterpret_cast<uint8_t*>(to));
        } else {
            uint32_t units[GROUP / 4];
            total += quantize_group<GROUP>(x + k, K - k, scale.inverse, reinterpret_cast<uint8_t*>(units));
            std::memcpy(to, units, count * 4);
        }
    }
    *row.start = -128u * sum_of_lanes(total);
    *row.scale = word_of(scale.scale);
}

// Quantize for int4 where products of bytes are added up in 16 bits.
template <class T>
void quantize_by_groups(const T* x, int64_t K, uint32_t* row) {
    const Scale scale = scale_of(largest_magnitude(x, K));
    for (int64_t k = 0; k < K; row += INT4_BLOCK / 4) {
        uint32_t& minus_sums = *row++;
        auto* q = reinterpret_cast<uint8_t*>(row);
        minus_sums = 0;
        for (int group = 0; group < 2; ++group, k += GROUP, q += GROUP)
            minus_sums |= (-sum_of_lanes(quantize_group<GROUP>(x + std::min(k, K), K - k, scale.inverse, q)) & 0xffffu)
                          << 16 * group;
    }
    *row = word_of(scale.scale);
}

// Units of a row in int8 or int4.
int64_t units_of(int format, int64_t K) {
    return format == INT4 ? int4_blocks(K) * (INT4_BLOCK / 4) : depth_of(INT8, K);
}

// Call use(first number of the row).
template <class Use>
void with_row(int dtype, const void* x, int64_t row, int64_t K, Use&& use) {
    dtype == BFLOAT16 ? use(static_cast<const uint16_t*>(x) + row * K) : use(static_cast<const float*>(x) + row * K);
}

// Quantize one row to consecutive words, as gemm/quant_formats.h describes.
void quantize_row(int dtype, int format, const void* x, int64_t row, int64_t K, const int32_t* order,
                  uint32_t* packed) {
    with_row(dtype, x, row, K, [=](auto* numbers) {
        if (is_block_format(format)) return quantize_by_blocks(format, numbers, K, order, packed);
        if (format == INT4 && SUMS_OF_16_BITS) return quantize_by_groups(numbers, K, packed);
        const int64_t depth = units_of(format, K);
        quantize_to_int8(numbers, K, depth, {packed, packed + 1, packed + 1 + depth, LINE});
    });
}

// Transpose packed rows [ROWS][words] into a tile [words][ROWS], square by square. Whole vectors are stored; the excess
// is overwritten by the next k, so the last words are copied one by one.
template <int ROWS>
void interleave(const uint32_t* from, int64_t words, uint32_t* tile) {
    const auto* numbers = reinterpret_cast<const float*>(from);
    int64_t k = 0;
    for (; (k + LANES) * ROWS + LANES - ROWS <= words * ROWS; k += LANES) {
        Vec square[LANES] = {};
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; ++m) square[m] = load(numbers + m * words + k);
        transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) std::memcpy(tile + (k + i) * ROWS, &square[i], sizeof square[i]);
    }
    for (; k < words; ++k)
        for (int m = 0; m < ROWS; ++m) tile[k * ROWS + m] = from[m * words + k];
}

using Interleave = void (*)(const uint32_t* from, int64_t words, uint32_t* tile);

// Table of interleave functions for 1, 2, .. MAX_UNIT_ROWS rows.
template <int... ROWS>
Interleave interleave_of(int rows, std::integer_sequence<int, ROWS...>) {
    static constexpr Interleave of_rows[] = {interleave<ROWS + 1>...};
    return of_rows[rows - 1];
}

// Quantize to int8 or int4 in the AMX layout.
void quantize_for_amx(int dtype, int format, const void* x, const int32_t* row_ids, int rows, int64_t K,
                      uint32_t* tile) {
    const int64_t stride = int64_t{rows} * LINE, depth = units_of(format, K);
    uint32_t* starts = tile + ceil_div(depth, LINE) * stride;
    std::fill(starts - stride, starts, 0);  // padding past the rows' ends
    for (int m = 0; m < rows; ++m)
        with_row(dtype, x, row_ids[m], K, [=](auto* numbers) {
            quantize_to_int8(numbers, K, depth, {starts + m, tile + m * LINE, starts + rows + m, stride});
        });
}

// Copy quantized rows [rows][words] of a block format to a tile in the AMX layout.
void copy_blocks_for_amx(int format, const uint32_t* from, int rows, int64_t words, uint32_t* tile) {
    const int numbers = block_layout(format).numbers, units = numbers / 4, line = amx_line_units(units);
    const auto block_words = static_cast<int>(row_words(format, numbers));
    const int before = numbers < 256 ? 1 : 0;  // words before the units
    for (const uint32_t* end = from + words; from < end; from += block_words) {
        for (int unit = 0; unit < units; unit += line)
            for (int m = 0; m < rows; ++m, tile += line)
                std::memcpy(tile, from + m * words + before + unit, line * sizeof *tile);
        for (int word = 0; word < block_words; ++word) {
            if (word == before) word += units;
            for (int m = 0; m < rows; ++m) *tile++ = from[m * words + word];
        }
    }
}

// Quantize row by row into `memory`, then interleave into the tile, or copy line by line.
void quantize_tile(int dtype, int format, const void* x, const int32_t* row_ids, int rows, int64_t K,
                   const int32_t* order, uint32_t* memory, uint32_t* tile) {
    if (uses_amx_layout(format, rows) && !is_block_format(format))
        return quantize_for_amx(dtype, format, x, row_ids, rows, K, tile);
    const int64_t words = format == INT8 ? depth_of(INT8, K) + 2 : row_words(format, K);
    for (int m = 0; m < rows; ++m)
        quantize_row(dtype, format, x, row_ids[m], K, order, (rows == 1 ? tile : memory) + m * words);
    if (rows == 1) return;
    if (uses_amx_layout(format, rows)) return copy_blocks_for_amx(format, memory, rows, words, tile);
    if constexpr (LANES > MAX_UNIT_ROWS)
        if (rows <= MAX_UNIT_ROWS)
            return interleave_of(rows, std::make_integer_sequence<int, MAX_UNIT_ROWS>())(memory, words, tile);
    int32_t in_order[MAX_TILE_ROWS];
    std::iota(in_order, in_order + rows, 0);
    pack_tile(FLOAT32, memory, in_order, rows, words, tile);
}

// Round float32 rows to bfloat16.
void round_rows(const float* x, const int32_t* row_ids, int rows, int64_t K, uint16_t* to) {
    for (int m = 0; m < rows; ++m)
        for (int64_t k = 0; k < K; k += LANES)
            store_first(to + m * K + k, load_first(x + row_ids[m] * K + k, K - k), K - k);
}

// Copy bfloat16 rows into a tile in the AMX layout.
void copy_for_amx(const uint16_t* x, const int32_t* row_ids, int rows, int64_t K, uint32_t* tile) {
    const int64_t line_bytes = LINE * 4, row_bytes = K * 2;
    auto* to = reinterpret_cast<std::byte*>(tile);
    for (int64_t at = 0; at < row_bytes; at += line_bytes)
        for (int m = 0; m < rows; ++m, to += line_bytes) {
            const int64_t count = std::min(line_bytes, row_bytes - at);
            std::memcpy(to, reinterpret_cast<const std::byte*>(x + row_ids[m] * K) + at, count);
            std::fill(to + count, to + line_bytes, std::byte{0});
        }
}

// Pack bfloat16 rows as float32 numbers: square by square, the last rows first, because whole vectors are stored and
// the excess belongs to the first rows of the next k.
void widen_tile(const uint16_t* x, const int32_t* row_ids, int rows, int64_t K, float* tile) {
    const int64_t width = 2 * depth_of(BFLOAT16, K);
    for (int64_t k = 0; k < width; k += LANES)
        for (int first = (rows - 1) / LANES * LANES; first >= 0; first -= LANES) {
            Vec square[LANES] = {};
            for (int m = 0; m < std::min(LANES, rows - first); ++m)
                square[m] = load_first(x + row_ids[first + m] * K + k, K - k);
            transpose(square);
            for (int64_t i = 0; i < std::min<int64_t>(LANES, width - k); ++i) {
                float* to = tile + (k + i) * rows + first;
                store_first(to, square[i], tile + width * rows - to);
            }
        }
}

// Pack a tile in dtype's own format.
void copy_tile(int dtype, const void* x, const int32_t* row_ids, int rows, int64_t K, uint32_t* tile) {
    if (uses_amx_layout(dtype, rows)) return copy_for_amx(static_cast<const uint16_t*>(x), row_ids, rows, K, tile);
    if (is_widened(dtype))
        return widen_tile(static_cast<const uint16_t*>(x), row_ids, rows, K, reinterpret_cast<float*>(tile));
    pack_tile(dtype, x, row_ids, rows, K, tile);
}

// Round rows to bfloat16 in `memory`, then pack them into the tile.
void round_tile(const void* x, const int32_t* row_ids, int rows, int64_t K, uint32_t* memory, uint32_t* tile) {
    int32_t in_order[MAX_TILE_ROWS];
    std::iota(in_order, in_order + rows, 0);
    round_rows(static_cast<const float*>(x), row_ids, rows, K, reinterpret_cast<uint16_t*>(memory));
    copy_tile(BFLOAT16, memory, in_order, rows, K, tile);
}

}  // namespace

void pack_rows(Pool& pool, int dtype, int format, const void* x, const std::vector<int32_t>& row_ids,
               const std::vector<Tile>& tiles, int64_t K, const Orders& orders, uint32_t* packed,
               const SideTasks& beside) {
    const int64_t words = row_words(format, K), all_words = static_cast<int64_t>(row_ids.size()) * words;
    for_each_tile(pool, tiles, all_words, beside, [&](const Tile& tile) {
        uint32_t* to = packed + tile.first_row * words;
        const int32_t* ids = row_ids.data() + tile.first_row;
        if (is_quantized(format))
            quantize_tile(dtype, format, x, ids, tile.rows, K, orders[tile.expert], to + all_words, to);
        else if (row_format(format) != dtype)
            round_tile(x, ids, tile.rows, K, to + all_words, to);
        else
            copy_tile(dtype, x, ids, tile.rows, K, to);
    });
}

}  // namespace SMOE_ISA
}  // namespace smoe
