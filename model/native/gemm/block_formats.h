// Block formats: matrices as files of quantized models hold them, multiplied without quantizing them again. INT4_G32 to
// INT8_G128 are the groups of AWQ and GPTQ, AFFINE4_G32 to AFFINE8_G128 those of MLX, the others types of GGUF files
// (llama.cpp, ggml-common.h).
//
// A row of such a matrix is a sequence of blocks with scales of their own. Rows of x are quantized to int8 block by
// block: x ~ s * p with s = max |x| / 127 over a block, so that one large number spoils one block only. Sums inside a
// block are exact integers; the blocks are added up in float32, k ascending, each operation rounded by itself. So a
// row's result is the same on every instruction set, beside any other rows.
//
// Blocks of 32: w = d (q - zero), or d q + m in Q4_1 and Q5_1, or d values[q] in IQ4_NL; d and m float16. P = sum of p,
// I = sum of q p.
//     y += s (d (I - zero P))   or   y += s (d I + m P)
//   row, per block: [-zero P, or P; 8 units of four p; s]
//   panel, per block: d [PANEL] float16, m [PANEL] float16, bit plane [PANEL], words [4 or 8][PANEL]
// Groups of 32, 64 or 128: w = d (q - z) in INT4 and INT8, d q + m in AFFINE4 and AFFINE8; d and m float32, z a byte in
// INT4 and 16 bits in INT8 (0 .. 256).
//     y += s d (I - z P)   or   y += s (d I + m P)
//   row, per group: [-P, or P; units; s]
//   panel, per group: d [PANEL] float32, z [PANEL] or m [PANEL], words [numbers / 8, or / 4][PANEL]
//   unpacked, per group: d, z or m, then the numbers; those of 4 bits as bytes of which byte j holds number j and, in
//   its high half, number j + numbers / 2
// A matrix in groups may have an order: its number i is multiplied by x[order[i]] (GPTQ's act-order).
// Blocks of 256: w = d sc q - dmin mn in groups of 32 (Q4_K, Q5_K) or 16 (Q2_K), or d sc (q - zero) in groups of 16
// (Q3_K, Q6_K) or 32 (IQ4_XS, with values[q]); sc and mn are small integers, d and dmin float16.
//     y += s (d sum(sc I) - dmin sum(mn P))   or   y += s (d (sum(sc I) - zero sum(sc P)))
//   row, per block: [64 units; P of each group, two int16 per word; s]
//   row of Q6_K on AVX2 without VNNI: [64 units; -32 P of each group, two int16 in a word: of the bytes 0 and 1 of its
//   units, and of the bytes 2 and 3; s]; on Intel's AVX-512 with VNNI: [64 units; -32 P of each half of a group; s]
//   panel, per block: d, dmin [PANEL] float16; sc, mn [groups / 2][PANEL][2] bytes; bit planes; words
// Code books, blocks of 256: a code stands for four (IQ3) or eight (IQ2) magnitudes g of an entry of the book, 1 .. 62.
// w = d u (2 n + 1) (+-g) in groups of 32 (IQ3_S, IQ3_XXS, IQ2_XXS) or 16 (IQ2_S, IQ2_XS); n is 0 .. 15, u a power of
// two: 1, 1/4 and 1/8 in IQ3_S, IQ3_XXS and IQ2. Kernels multiply bytes q, with which u (+-g) = v (f q - zero):
//     y += s ((d v) float(f sum(sc I) - zero sum(sc P))), sc = 2 n + 1
//   where v = u, f = 2, zero = 15 in IQ3_S; v = 1/2, f = 1, zero = 32 in IQ3_XXS; v = 1/8, f = 1, zero = 64 in IQ2
//   row, per block: as of the other blocks of 256
//   panel, per block: d [PANEL] float16; n of two neighbouring groups [groups / 2][PANEL] bytes (IQ3_S, IQ2_S, IQ2_XS);
//   planes of signs [8][PANEL]; codes [64 or 32][PANEL] bytes; their further bits [8][PANEL] bytes (IQ3_S, IQ2_S)
//   The plane of 32 numbers: bit u of byte j is the sign of number 4 u + j. Where eight signs are stored as seven,
//   because an even number of them is minus, the place of the eighth has a bit of n (IQ3_XXS, IQ2_XXS) or of a code
//   (IQ2_XS).
// Words of numbers and of bit planes lie as in the file, transposed to [..][PANEL]: packing loses nothing.
#pragma once

#include <cstdint>

#include "runtime/isa.h"
#include "runtime/thread_pool.h"

namespace smoe {

enum BlockFormat {
    Q4_0 = 4,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
    INT4_G32,
    INT4_G64,
    INT4_G128,
    Q2_K,
    Q3_K,
    IQ4_NL,
    IQ4_XS,
    INT8_G32,
    INT8_G64,
    INT8_G128,
    AFFINE4_G32,
    AFFINE4_G64,
    AFFINE4_G128,
    AFFINE8_G32,
    AFFINE8_G64,
    AFFINE8_G128,
    IQ3_S,
    IQ3_XXS,
    IQ2_S,
    IQ2_XS,
    IQ2_XXS,
    END_OF_BLOCK_FORMATS
};

// Sizes of one block: numbers along k, bytes before packing, words in a panel, words in a packed row of x, without the
// numbers at which sums start.
struct BlockLayout {
    int numbers, file_bytes, panel_words, row_words;
};

constexpr BlockLayout BLOCK_LAYOUTS[] = {
    {32, 18, 144, 10},     // Q4_0
    {32, 20, 160, 10},     // Q4_1
    {32, 22, 176, 10},     // Q5_0
    {32, 24, 192, 10},     // Q5_1
    {32, 34, 272, 10},     // Q8_0
    {256, 144, 1184, 69},  // Q4_K
    {256, 176, 1440, 69},  // Q5_K
    {256, 210, 1680, 73},  // Q6_K
    {32, 21, 168, 10},     // INT4_G32
    {64, 37, 296, 18},     // INT4_G64
    {128, 69, 552, 34},    // INT4_G128
    {256, 84, 672, 73},    // Q2_K
    {256, 110, 912, 73},   // Q3_K
    {32, 18, 144, 10},     // IQ4_NL
    {256, 136, 1104, 69},  // IQ4_XS
    {32, 38, 304, 10},     // INT8_G32
    {64, 70, 560, 18},     // INT8_G64
    {128, 134, 1072, 34},  // INT8_G128
    {32, 24, 192, 10},     // AFFINE4_G32
    {64, 40, 320, 18},     // AFFINE4_G64
    {128, 72, 576, 34},    // AFFINE4_G128
    {32, 40, 320, 10},     // AFFINE8_G32
    {64, 72, 576, 18},     // AFFINE8_G64
    {128, 136, 1088, 34},  // AFFINE8_G128
    {256, 110, 880, 69},   // IQ3_S
    {256, 98, 784, 69},    // IQ3_XXS
    {256, 82, 656, 73},    // IQ2_S
    {256, 74, 592, 73},    // IQ2_XS
    {256, 66, 528, 69},    // IQ2_XXS
};

constexpr bool is_block_format(int format) { return format >= Q4_0 && format < END_OF_BLOCK_FORMATS; }
constexpr bool is_affine(int format) { return format >= AFFINE4_G32 && format <= AFFINE8_G128; }
constexpr bool is_code_book(int format) { return format >= IQ3_S && format < END_OF_BLOCK_FORMATS; }
constexpr const BlockLayout& block_layout(int format) { return BLOCK_LAYOUTS[format - Q4_0]; }

// Pack rows of blocks [O, K] into panels, `stride` words from one panel to the next. K is a multiple
// of the block's numbers. Outputs past O are zeros.
void pack_blocks(Pool& pool, int format, const void* rows, uint32_t* packed, int64_t stride, int64_t O, int64_t K);

// out[rows][32] = tile in the unit layout times a panel, in float32.
SMOE_PER_ISA(void multiply_blocks(int format, int rows, const uint32_t* tile, const uint32_t* panel, int64_t K,
                                  float* out))

}  // namespace smoe
