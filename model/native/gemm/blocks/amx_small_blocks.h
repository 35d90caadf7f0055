// Products of many rows with the block formats of 32, 64 and 128 numbers, on AMX. Included by
// gemm/blocks/amx_blocks.cpp only.
//
// A tile product gives the sums of a block for 16 rows and 16 outputs, exactly. Vectors scale them as SmallBlocks does,
// k ascending, so the bits are the same.
#pragma once

#if defined(__AMX_TILE__)

#include <cstring>

#include "gemm/amx_tiles.h"
#include "gemm/blocks/gemm_small_blocks.h"

namespace smoe {
namespace SMOE_ISA {

// Register SUM += A times B, of signed bytes A and of signed or unsigned bytes B.
#define SMOE_ADD_BYTES(IS_SIGNED, SUM, A, B) \
    do {                                     \
        if constexpr (IS_SIGNED)             \
            _tile_dpbssd(SUM, A, B);         \
        else                                 \
            _tile_dpbsud(SUM, A, B);         \
    } while (false)

template <class Format>
class AmxSmallBlocks {
  public:
    static constexpr int BLOCKS = blocks_per_call(Format::UNITS), PANEL_WORDS = Format::PANEL_WORDS;
    static constexpr int ROW_WORDS = Format::UNITS + 2, LINE_UNITS = amx_line_units(Format::UNITS);

    // Make `blocks` blocks of a panel ready for add(), and prefetch the ones after them.
    void unpack(const uint32_t* panel, int blocks) {
        for (int block = 0; block < blocks; ++block, panel += PANEL_WORDS) {
            prefetch_lines<PANEL_WORDS>(panel + BLOCKS * PANEL_WORDS);
            std::memcpy(unpacked_[block], panel, Format::HEADER_WORDS * 4);
            unpack_half<0>(panel, unpacked_[block] + UNITS_AT);
            unpack_half<1>(panel, unpacked_[block] + UNITS_AT + Format::UNITS / 2 * PANEL);
        }
    }

    // out [rows][PANEL] += the products of a tile's blocks at x with the unpacked ones. Rows of `out` behind a tile's
    // last get any numbers.
    void add(const uint32_t* x, int rows, int blocks, float* out) const {
        for (int first = 0; first < rows; first += 16)
            for (int column = 0; column < PANEL; column += LANES)
                add_square(x, rows, first, column, blocks, out + first * PANEL + column);
    }

  private:
    static constexpr int UNITS_AT = (Format::HEADER_WORDS + LINE - 1) / LINE * LINE;  // of an unpacked block
    using Square = uint32_t[16][LANES];  // sums of 16 rows and LANES outputs

    // Bytes q, or q - ZERO where a row's first word would be added.
    template <int HALF>
    static void unpack_half(const uint32_t* block, uint32_t* units) {
        for (int i = 0; i < Format::UNITS / 2; ++i)
            for (int column = 0; column < PANEL; column += LANES, units += LANES) {
                Words bytes = Format::template unit<HALF>(block + column, i);
                if constexpr (Format::ADDS_FIRST)
                    bytes = (Words)_mm512_sub_epi8((__m512i)bytes, _mm512_set1_epi8(static_cast<char>(Format::ZERO)));
                store_words(units, bytes);
            }
    }

    // The next block is multiplied before this one's sums are scaled: vectors wait for what tiles have stored.
    void add_square(const uint32_t* x, int rows, int first, int column, int blocks, float* out) const {
        alignas(64) Square sums[2];
        Vec totals[16];
#pragma GCC unroll 16
        for (int m = 0; m < 16; ++m) totals[m] = load(out + m * PANEL);
        multiply(x, rows, first, unpacked_[0] + column, sums[0]);
        for (int block = 0; block < blocks; block += 2) {
            if (block + 1 < blocks) multiply(x + ROW_WORDS * rows, rows, first, unpacked_[block + 1] + column, sums[1]);
            scale(sums[0], x + first, rows, rows - first, unpacked_[block], column, totals);
            x += ROW_WORDS * rows;
            if (block + 1 == blocks) break;
            if (block + 2 < blocks) multiply(x + ROW_WORDS * rows, rows, first, unpacked_[block + 2] + column, sums[0]);
            scale(sums[1], x + first, rows, rows - first, unpacked_[block + 1], column, totals);
            x += ROW_WORDS * rows;
        }
#pragma GCC unroll 16
        for (int m = 0; m < 16; ++m) store(out + m * PANEL, totals[m]);
    }

    // sums = rows first .. first + 15 of a block [lines][rows][LINE_UNITS] times LANES outputs.
    [[gnu::always_inline]] static inline void multiply(const uint32_t* x, int rows, int first, const uint32_t* block,
                                                       Square& sums) {
        const uint32_t *from = x + first * LINE_UNITS, *units = block + UNITS_AT;
        const int64_t stride = rows * LINE_UNITS;
        if (first == 0) {
            _tile_zero(0);
            for (int unit = 0; unit < Format::UNITS; unit += LINE_UNITS, from += stride) {
                _tile_loadd(4, from, LINE_UNITS * 4);
                _tile_loadd(6, units + unit * PANEL, PANEL * 4);
                SMOE_ADD_BYTES(Format::ADDS_FIRST, 0, 4, 6);
            }
            _tile_stored(0, sums, LANES * 4);
        } else {
            _tile_zero(2);
            for (int unit = 0; unit < Format::UNITS; unit += LINE_UNITS, from += stride) {
                _tile_loadd(5, from, LINE_UNITS * 4);
                _tile_loadd(6, units + unit * PANEL, PANEL * 4);
                SMOE_ADD_BYTES(Format::ADDS_FIRST, 2, 5, 6);
            }
            _tile_stored(2, sums, LANES * 4);
        }
        compiler_barrier();
    }

    // 16 words of which a tile has `count`; zeros stand for the others, whose words are mostly denormal numbers, slow
    // to multiply.
    [[gnu::always_inline]] static inline const uint32_t* padded(const uint32_t* words, int count, uint32_t* memory) {
        if (count >= 16) return words;
        store_words(memory, (Words)_mm512_maskz_loadu_epi32(static_cast<__mmask16>((1 << count) - 1), words));
        return memory;
    }

    // totals += sums, scaled. x points at the first of `count` rows of the block, whose first words and scales follow
    // the units.
    [[gnu::always_inline]] static inline void scale(const Square& sums, const uint32_t* x, int rows, int count,
                                                    const uint32_t* block, int column, Vec (&totals)[16]) {
        alignas(64) uint32_t memory[2][16];
        const uint32_t* firsts = padded(x + Format::UNITS * rows, count, memory[0]);
        const uint32_t* scales = padded(x + (Format::UNITS + 1) * rows, count, memory[1]);
        const auto columns = Format::columns(block, column);
#pragma GCC unroll 16
        for (int m = 0; m < 16; ++m) {
            totals[m] += Format::value(load_words(sums[m]), firsts[m], columns) * broadcast(float_of(scales[m]));
        }
    }

    alignas(64) uint32_t unpacked_[BLOCKS][UNITS_AT + Format::UNITS * PANEL];
};

}  // namespace SMOE_ISA
}  // namespace smoe

#endif
