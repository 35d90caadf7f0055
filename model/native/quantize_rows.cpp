#include <algorithm>
#include <cstddef>
#include <numeric>

#include "pack_rows.h"
#include "quantize.h"
#include "row_layout.h"
#include "transpose.h"
#include "vec_part.h"

namespace smoe {
namespace SMOE_ISA {
namespace {

template <class T>
float largest_magnitude(const T* x, int64_t K) {
    Words largest = {};
    for (int64_t k = 0; k < K; k += LANES) {
        const Words magnitude = bits(load_first(x + k, K - k)) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    uint32_t word = 0;
    for (int i = 0; i < LANES; ++i) word = std::max(word, static_cast<uint32_t>(largest[i]));
    return float_of(word);
}

// x[0] .. x[count - 1], zeros behind them -> GROUP numbers q; returns their sum.
template <class T>
uint32_t quantize_group(const T* x, int64_t count, float inverse, uint8_t* q) {
    Words total = {};
#pragma GCC unroll 8
    for (int i = 0; i < GROUP; i += LANES) {
        const Vec part = i < count ? load_first(x + i, count - i) : Vec{};
        const Words rounded = round_to_integers(part * inverse);
        const Bytes bytes = __builtin_convertvector(rounded, Bytes);
        std::memcpy(q + i, &bytes, sizeof bytes);
        total += rounded - round_to_integers(Vec{});
    }
    uint32_t sum = 0;
    for (int i = 0; i < LANES; ++i) sum += total[i];
    return sum;
}

template <class T>
void quantize_to_int8(const T* x, int64_t K, uint32_t* row) {
    const Scale scale = scale_of(largest_magnitude(x, K));
    const int64_t depth = ceil_div(K, 4);
    uint32_t sum = 0, units[GROUP / 4];
    for (int64_t k = 0; k < K; k += GROUP) {
        sum += quantize_group(x + k, K - k, scale.inverse, reinterpret_cast<uint8_t*>(units));
        std::memcpy(row + 1 + k / 4, units, std::min<int64_t>(GROUP / 4, depth - k / 4) * 4);
    }
    row[0] = -128u * sum;
    row[1 + depth] = word_of(scale.scale);
}

template <class T>
void quantize_to_int4(const T* x, int64_t K, uint32_t* row) {
    const Scale scale = scale_of(largest_magnitude(x, K));
    for (int64_t k = 0; k < K; k += GROUP, row += INT4_ROW_WORDS)
        row[0] = -8u * quantize_group(x + k, K - k, scale.inverse, reinterpret_cast<uint8_t*>(row + 1));
    row[0] = word_of(scale.scale);
}

template <class T>
void quantize_row(int format, const T* x, int64_t K, uint32_t* row) {
    format == INT8 ? quantize_to_int8(x, K, row) : quantize_to_int4(x, K, row);
}

void quantize_row(int dtype, int format, const void* x, int64_t row, int64_t K, uint32_t* packed) {
    if (dtype == BFLOAT16) return quantize_row(format, static_cast<const uint16_t*>(x) + row * K, K, packed);
    quantize_row(format, static_cast<const float*>(x) + row * K, K, packed);
}

// Packed rows [rows][words] -> tile [words][rows], by squares. Whole vectors are stored: what is too much lies where the
// next k's words come, but for those at the tile's end. Needs rows <= LANES.
[[maybe_unused]] void interleave(const uint32_t* from, int rows, int64_t words, uint32_t* tile) {
    const auto* numbers = reinterpret_cast<const float*>(from);
    uint32_t* end = tile + words * rows;
    for (int64_t k = 0; k < words; k += LANES) {
        Vec square[LANES];
#pragma GCC unroll 16
        for (int m = 0; m < LANES; ++m)
            square[m] = m < rows ? load_first(numbers + m * words + k, words - k) : Vec{};
        transpose(square);
        const int64_t count = std::min<int64_t>(LANES, words - k);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) {
            if (i >= count) break;
            uint32_t* to = tile + (k + i) * rows;
            if (end - to >= LANES)
                std::memcpy(to, &square[i], sizeof square[i]);
            else
                std::memcpy(to, &square[i], rows * sizeof *to);
        }
    }
}

// Packed rows [rows][words] of int8 -> tile in lines.
void lay_in_lines(const uint32_t* from, int rows, int64_t depth, uint32_t* tile) {
    const int64_t num_lines = ceil_div(depth, LINE), words = depth + 2;
    uint32_t* starts = tile + num_lines * LINE * rows;
    for (int m = 0; m < rows; ++m, from += words) {
        for (int64_t line = 0; line < num_lines; ++line) {
            const int64_t count = std::min<int64_t>(LINE, depth - line * LINE);
            uint32_t* to = tile + (line * rows + m) * LINE;
            std::memcpy(to, from + 1 + line * LINE, count * 4);
            std::fill(to + count, to + LINE, 0);
        }
        starts[m] = from[0];
        starts[rows + m] = from[1 + depth];
    }
}

// Row by row to `memory`, from there to the tile.
void quantize_tile(int dtype, int format, const void* x, const int32_t* row_ids, int rows, int64_t K, uint32_t* memory,
                   uint32_t* tile) {
    const int64_t words = format == INT8 ? depth_of(INT8, K) + 2 : row_words(format, K);
    const bool is_tile = rows == 1 && !in_lines(format, rows);
    for (int m = 0; m < rows; ++m) quantize_row(dtype, format, x, row_ids[m], K, (is_tile ? tile : memory) + m * words);
    if (is_tile) return;
    if (in_lines(format, rows)) return lay_in_lines(memory, rows, depth_of(format, K), tile);
    if constexpr (LANES > 12) {
        interleave(memory, rows, words, tile);
    } else {
        int32_t in_order[MAX_TILE_ROWS];
        std::iota(in_order, in_order + rows, 0);
        pack_tile(FLOAT32, memory, in_order, rows, words, tile);
    }
}

// Rows of bfloat16 -> tile in lines.
void copy_in_lines(const uint16_t* x, const int32_t* row_ids, int rows, int64_t K, uint32_t* tile) {
    const int64_t line_bytes = LINE * 4, row_bytes = K * 2;
    auto* to = reinterpret_cast<std::byte*>(tile);
    for (int64_t at = 0; at < row_bytes; at += line_bytes)
        for (int m = 0; m < rows; ++m, to += line_bytes) {
            const int64_t count = std::min(line_bytes, row_bytes - at);
            std::memcpy(to, reinterpret_cast<const std::byte*>(x + row_ids[m] * K) + at, count);
            std::fill(to + count, to + line_bytes, std::byte{0});
        }
}

}  // namespace

void pack_rows(Pool& pool, int dtype, int format, const void* x, const std::vector<int32_t>& row_ids,
               const std::vector<Tile>& tiles, int64_t K, uint32_t* packed) {
    const int64_t words = row_words(format, K), all_words = static_cast<int64_t>(row_ids.size()) * words;
    for_each_tile(pool, tiles, all_words, [&](const Tile& tile) {
        uint32_t* to = packed + tile.first_row * words;
        const int32_t* ids = row_ids.data() + tile.first_row;
        if (is_quantized(format))
            quantize_tile(dtype, format, x, ids, tile.rows, K, to + all_words, to);
        else if (in_lines(format, tile.rows))
            copy_in_lines(static_cast<const uint16_t*>(x), ids, tile.rows, K, to);
        else
            pack_tile(dtype, x, ids, tile.rows, K, to);
    });
}

}  // namespace SMOE_ISA
}  // namespace smoe
