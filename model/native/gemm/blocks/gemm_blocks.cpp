#include <algorithm>
#include <utility>

#include "gemm/block_formats.h"
#include "gemm/blocks/gemm_code_books.h"
#include "gemm/blocks/gemm_groups.h"
#include "gemm/blocks/gemm_one_row.h"
#include "gemm/blocks/gemm_small_blocks.h"
#include "gemm/blocks/gemm_superblocks.h"
#include "gemm/blocks/unpacked_blocks.h"
#include "gemm/panel_parts.h"

namespace smoe {
namespace SMOE_ISA {
namespace {

// All columns of a few blocks, then the next blocks: the panel streams through the first-level cache once.
template <class Kernel>
void multiply_packed(int format, int rows, const uint32_t* tile, const uint32_t* panel, int64_t K, float* out) {
    const BlockLayout& layout = block_layout(format);
    const int64_t num_blocks = K / layout.numbers;
    std::fill(out, out + rows * PANEL, 0.0f);
    if constexpr (HAS_PARTS) return add_in_parts<Kernel>(rows, tile, panel, num_blocks, out);
    for (int first = 0, count; first < rows; first += count) {
        const int left = rows - first;
        count = static_cast<int>(ceil_div(left, ceil_div(left, Kernel::MAX_ROWS)));  // 12 rows: 6 + 6, not 8 + 4
        if constexpr (IN_PAIRS<Kernel::MAX_ROWS>) count = std::min(left, Kernel::MAX_ROWS);  // 9 rows: 4 + 4 + 1
        const auto [add, columns] = add_of<Kernel>(count, std::make_integer_sequence<int, Kernel::MAX_ROWS>());
        for (int64_t block = 0; block < num_blocks; block += Kernel::BLOCKS) {
            const auto blocks = static_cast<int>(std::min<int64_t>(Kernel::BLOCKS, num_blocks - block));
            for (int column = 0; column < PANEL; column += columns)
                add(tile + block * Kernel::ROW_WORDS * rows + first, rows, panel + block * layout.panel_words, column,
                    blocks, out + first * PANEL);
        }
    }
}

// The same. Many rows share the unpacking of the blocks, where that pays.
template <template <class> class Kernel, template <class> class Unpacked, class Format>
void multiply(int format, int rows, const uint32_t* tile, const uint32_t* panel, int64_t K, float* out) {
    if constexpr (unpacks_blocks(Q6_K) && Format::MIN_UNPACKED_ROWS != NEVER)
        if (unpacks_blocks(format) && rows >= Format::MIN_UNPACKED_ROWS)
            return multiply_unpacked<Kernel, Unpacked, Format>(rows, tile, panel, K / block_layout(format).numbers,
                                                               out);
    multiply_packed<Kernel<Format>>(format, rows, tile, panel, K, out);
}

template <class Format>
void multiply_small_blocks(int format, int rows, const uint32_t* tile, const uint32_t* panel, int64_t K, float* out) {
    multiply<SmallBlocks, UnpackedSmallBlock, Format>(format, rows, tile, panel, K, out);
}

// The same, with code of its own for a single row.
template <class Format>
void multiply_superblocks(int format, int rows, const uint32_t* tile, const uint32_t* panel, int64_t K, float* out) {
    if constexpr (SuperblockRow<Format>::IS_FASTER)
        if (rows == 1) return SuperblockRow<Format>::multiply(tile, panel, K / 256, out);
    multiply<Superblocks, UnpackedSuperblock, Format>(format, rows, tile, panel, K, out);
}

// Codes are looked up first, for one row too.
template <class Format>
void multiply_codes(int rows, const uint32_t* tile, const uint32_t* panel, int64_t K, float* out) {
    multiply_unpacked<Superblocks, UnpackedCodes, Format>(rows, tile, panel, K / 256, out);
}

}  // namespace

void multiply_blocks(int format, int rows, const uint32_t* tile, const uint32_t* panel, int64_t K, float* out) {
    switch (format) {
        case Q4_0: return multiply_small_blocks<Gguf32<Q4_0, false, false>>(format, rows, tile, panel, K, out);
        case Q4_1: return multiply_small_blocks<Gguf32<Q4_1, true, false>>(format, rows, tile, panel, K, out);
        case Q5_0: return multiply_small_blocks<Gguf32<Q5_0, false, true>>(format, rows, tile, panel, K, out);
        case Q5_1: return multiply_small_blocks<Gguf32<Q5_1, true, true>>(format, rows, tile, panel, K, out);
        case Q8_0: return multiply_small_blocks<GgufQ8>(format, rows, tile, panel, K, out);
        case Q4_K: return multiply_superblocks<Q4KBlock>(format, rows, tile, panel, K, out);
        case Q5_K: return multiply_superblocks<Q5KBlock>(format, rows, tile, panel, K, out);
        case Q6_K: return multiply_superblocks<Q6KBlock>(format, rows, tile, panel, K, out);
        case Q2_K: return multiply<Superblocks, UnpackedSuperblock, Q2KBlock>(format, rows, tile, panel, K, out);
        case Q3_K: return multiply<Superblocks, UnpackedSuperblock, Q3KBlock>(format, rows, tile, panel, K, out);
        case IQ4_NL: return multiply_small_blocks<GgufIq4>(format, rows, tile, panel, K, out);
        case IQ4_XS: return multiply<Superblocks, UnpackedSuperblock, Iq4XsBlock>(format, rows, tile, panel, K, out);
        case INT4_G32: return multiply_small_blocks<Int4Group<INT4_G32>>(format, rows, tile, panel, K, out);
        case INT4_G64: return multiply_small_blocks<Int4Group<INT4_G64>>(format, rows, tile, panel, K, out);
        case INT4_G128: return multiply_small_blocks<Int4Group<INT4_G128>>(format, rows, tile, panel, K, out);
        case INT8_G32: return multiply_small_blocks<Int8Group<INT8_G32>>(format, rows, tile, panel, K, out);
        case INT8_G64: return multiply_small_blocks<Int8Group<INT8_G64>>(format, rows, tile, panel, K, out);
        case INT8_G128: return multiply_small_blocks<Int8Group<INT8_G128>>(format, rows, tile, panel, K, out);
        case AFFINE4_G32: return multiply_small_blocks<Affine4Group<AFFINE4_G32>>(format, rows, tile, panel, K, out);
        case AFFINE4_G64: return multiply_small_blocks<Affine4Group<AFFINE4_G64>>(format, rows, tile, panel, K, out);
        case AFFINE4_G128: return multiply_small_blocks<Affine4Group<AFFINE4_G128>>(format, rows, tile, panel, K, out);
        case AFFINE8_G32: return multiply_small_blocks<Affine8Group<AFFINE8_G32>>(format, rows, tile, panel, K, out);
        case AFFINE8_G64: return multiply_small_blocks<Affine8Group<AFFINE8_G64>>(format, rows, tile, panel, K, out);
        case AFFINE8_G128: return multiply_small_blocks<Affine8Group<AFFINE8_G128>>(format, rows, tile, panel, K, out);
        case IQ3_S: return multiply_codes<Iq3SBlock>(rows, tile, panel, K, out);
        case IQ3_XXS: return multiply_codes<Iq3XxsBlock>(rows, tile, panel, K, out);
        case IQ2_S: return multiply_codes<Iq2SBlock>(rows, tile, panel, K, out);
        case IQ2_XS: return multiply_codes<Iq2XsBlock>(rows, tile, panel, K, out);
        case IQ2_XXS: return multiply_codes<Iq2XxsBlock>(rows, tile, panel, K, out);
    }
}

}  // namespace SMOE_ISA
}  // namespace smoe
