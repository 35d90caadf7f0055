// Products of many rows with the block formats of 256 numbers, on AMX. Included by gemm/blocks/amx_blocks.cpp only.
//
// A block's sum over its groups of sc sum(q p) is sum((sc q) p), and the numbers sc q fit into 16 bits. Each is put
// together from two digits, 256 h + l, h signed and l not: tile products with each are exact for the whole block, so no
// group's sum leaves the registers. The digits are unpacked once for all tiles of a group, in the first-level cache.
// Sums of integers are exact in any order and the float32 part is that of Superblocks, so the bits are the same.
#pragma once

#if defined(__AMX_TILE__)

#include <utility>

#include "gemm/amx_tiles.h"
#include "gemm/blocks/gemm_code_books.h"
#include "gemm/blocks/gemm_superblocks.h"

namespace smoe {
namespace SMOE_ISA {

constexpr int BLOCK_UNITS = 64, HALVES = PANEL / LANES;  // of a block; of a panel's columns

// The digits of a block's numbers: [units / LINE][HALVES][LINE][high digits of LANES outputs, low digits of them].
using BlockDigits = uint32_t[BLOCK_UNITS * 2 * PANEL];

// True if the digits are those of FACTOR q - OFFSET, so that no product with the sums of p remains.
template <class Format>
constexpr bool INCLUDES_OFFSET = !Format::HAS_MIN;

// Store the digits of LANES units: their numbers times the scale of each output, which is in both halves of its lane.
template <class Format>
[[gnu::always_inline]] inline void store_digits(Words units, Words scales, uint32_t* digits) {
    constexpr int FACTOR = INCLUDES_OFFSET<Format> ? Format::FACTOR : 1;
    constexpr int OFFSET = INCLUDES_OFFSET<Format> ? Format::OFFSET : 0;
    static_assert(FACTOR == 1 || FACTOR == 2);
    const auto product = [&](Words bytes) {
        const Words numbers = (bytes & 0x00ff00ffu) * FACTOR;  // two of 16 bits
        return (Words)_mm512_mullo_epi16(_mm512_sub_epi16((__m512i)numbers, _mm512_set1_epi16(OFFSET)),
                                         (__m512i)scales);
    };
    const Words even = product(units), odd = product(units >> 8);  // bytes 0 and 2, bytes 1 and 3
    store_words(digits, (even >> 8 & 0x00ff00ffu) | (odd & 0xff00ff00u));
    store_words(digits + LANES, (even & 0x00ff00ffu) | (odd << 8 & 0xff00ff00u));
}

template <class Format>
struct DigitUnpacker {
    // Unpack all groups; `next` is the block behind this one in memory, which is prefetched meanwhile, unless looking
    // up codes did that.
    static void unpack(const uint32_t* block, const uint32_t* next, uint32_t* digits) {
        unpack_pairs(block, next, digits, std::make_integer_sequence<int, Format::PAIRS>());
    }

  private:
    static constexpr int LINES = Format::PANEL_WORDS / LINE_WORDS;  // of cache

    template <int... PAIR>
    static void unpack_pairs(const uint32_t* block, const uint32_t* next, uint32_t* digits,
                             std::integer_sequence<int, PAIR...>) {
        ((unpack_group<PAIR, 0>(block, next, digits), unpack_group<PAIR, 1>(block, next, digits)), ...);
    }

    template <int PAIR, int HALF>
    static void unpack_group(const uint32_t* block, const uint32_t* next, uint32_t* digits) {
        constexpr int FIRST = (2 * PAIR + HALF) * Format::UNITS;
        Words scales[HALVES];
        for (int half = 0; half < HALVES; ++half) {
            const uint16_t* pairs = scales_of<Format, PAIR>(block, half * LANES);
            scales[half] = repeat_half<HALF>(Format::scale_pairs(load_byte_pairs(pairs)));
        }
        for (int line = LINES * FIRST / BLOCK_UNITS; line < LINES * (FIRST + Format::UNITS) / BLOCK_UNITS; ++line)
            prefetch<Format>(next + line * LINE_WORDS + NEARER_WORDS);
        uint32_t* to = digits + FIRST / LINE * (LINE * 2 * PANEL) + FIRST % LINE * (2 * LANES);
#pragma GCC unroll 1
        for (int i = 0; i < Format::UNITS; ++i, to += 2 * LANES)
            for (int half = 0; half < HALVES; ++half)
                store_digits<Format>(Format::template unit<PAIR, HALF>(block + half * LANES, i), scales[half],
                                     to + half * (LINE * 2 * LANES));
    }
};

// sums [rows, 16 or 32][high, low][LANES] = rows of a block [units / LINE][rows][LINE] times LANES outputs' digits.
template <bool BOTH>
inline void multiply_digits(const uint32_t* x, int rows, const uint32_t* digits, uint32_t* sums) {
    zero_square();
    for (int line = 0; line < BLOCK_UNITS / LINE; ++line) {
        _tile_loadd(6, digits, 2 * LANES * 4);
        _tile_loadd(7, digits + LANES, 2 * LANES * 4);
        _tile_loadd(4, x, LINE * 4);
        _tile_dpbssd(0, 4, 6);
        _tile_dpbsud(1, 4, 7);
        if constexpr (BOTH) {
            _tile_loadd(5, x + 16 * LINE, LINE * 4);
            _tile_dpbssd(2, 5, 6);
            _tile_dpbsud(3, 5, 7);
        }
        x += rows * LINE;
        digits += HALVES * LINE * 2 * LANES;
    }
    if constexpr (BOTH) {
        store_square(sums, 2 * LANES);
    } else {
        _tile_stored(0, sums, 2 * LANES * 4);
        _tile_stored(1, sums + LANES, 2 * LANES * 4);
    }
    compiler_barrier();
}

// Format: of a panel; Block: what is unpacked from it, Format or UnpackedCodes<Format>.
template <class Format, class Block = Format>
class AmxSuperblocks {
  public:
    static constexpr int BLOCKS = 1, PANEL_WORDS = Format::PANEL_WORDS, ROW_WORDS = Superblocks<Block>::ROW_WORDS;
    static constexpr int LINE_UNITS = LINE;

    // Make a block of a panel ready for add(), and prefetch the one after it.
    void unpack(const uint32_t* panel, int) {
        block_ = panel;
        if constexpr (Block::IS_UNPACKED) {
            Block::unpack(panel, numbers_);
            block_ = numbers_;
        }
        DigitUnpacker<Block>::unpack(block_, panel + PANEL_WORDS, digits_);
    }

    // out [rows][PANEL] += the products of a tile's block at x with the unpacked one.
    void add(const uint32_t* x, int rows, int, float* out) const {
        alignas(64) uint32_t sums[HALVES][MAX_TILE_ROWS * 2 * LANES];
        for (int half = 0; half < HALVES; ++half) {
            const uint32_t* digits = digits_ + half * (LINE * 2 * LANES);
            if (rows > 16)
                multiply_digits<true>(x, rows, digits, sums[half]);
            else
                multiply_digits<false>(x, rows, digits, sums[half]);
        }
        x += BLOCK_UNITS * rows;
        constexpr int ROWS = 4;
        int m = 0;
        for (; m + ROWS <= rows; m += ROWS) finish<ROWS>(x, rows, m, sums, out);
        for (; m < rows; ++m) finish<1>(x, rows, m, sums, out);
    }

  private:
    template <int ROWS>
    void finish(const uint32_t* x, int rows, int first, const uint32_t (&sums)[HALVES][MAX_TILE_ROWS * 2 * LANES],
                float* out) const {
        Words totals[ROWS][HALVES];
        for (int m = 0; m < ROWS; ++m)
            for (int half = 0; half < HALVES; ++half) {
                const uint32_t* digits = sums[half] + (first + m) * 2 * LANES;
                totals[m][half] = (load_words(digits) << 8) + load_words(digits + LANES);
            }
        Superblocks<Block>::template finish<INCLUDES_OFFSET<Block>>(totals, x + first, rows, block_, 0,
                                                                    out + first * PANEL);
    }

    const uint32_t* block_ = nullptr;  // what Superblocks::finish() reads
    alignas(64) uint32_t numbers_[Block::IS_UNPACKED ? Superblocks<Block>::PANEL_WORDS : 1];
    alignas(64) BlockDigits digits_;
};

}  // namespace SMOE_ISA
}  // namespace smoe

#endif
