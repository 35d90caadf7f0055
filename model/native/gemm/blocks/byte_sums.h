// Exact sums of products of bytes, and of pairs of 16-bit integers. Included by kernel files only.
//
// Each lane of a vector holds four bytes of an output's weights: a unit. Sums are the same on every instruction set.
#pragma once

#include <algorithm>

#include "gemm/gemm_int8.h"
#include "gemm/packed_row_layout.h"
#include "simd/integer_dot_products.h"
#include "simd/prefetch.h"

namespace smoe {
namespace SMOE_ISA {

// True if the first products of a sum are stored rather than added to zero.
constexpr bool STARTS_SUMS = SUMS_OF_16_BITS && LANES == 8;

// Vectors of columns in one pass over a panel. With 8 lanes one row reads all columns at once, so that memory is asked
// for in the order of its addresses; more sums than 8 leave too few of the 16 registers for weights and masks.
template <int ROWS>
constexpr int VECTORS_OF = LANES == 8 && ROWS == 1 ? PANEL / LANES : COLUMNS / LANES;

constexpr int MANY_UNITS = 64;  // as many as any block has

// Rows of a tile from which unpacking a block's numbers before they are multiplied pays, by measurement (decisions 106,
// 114 and 124): numbers that are put together from two words or looked up, and those that are shifted and masked.
constexpr int FEW_TO_UNPACK = 16, MANY_TO_UNPACK = 28, NEVER = 1 << 30;

// Return total + a.low * b.low + a.high * b.high, of signed 16-bit halves.
inline Words add_pairs(Words total, Words a, Words b) {
#if SMOE_VNNI
    return dot_pairs(total, a, b);
#elif defined(__AVX512BW__)
    return total + (Words)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return add_word_pairs(total, a, b);
#else
    const Words low = (Words)((Ints)(a << 16) >> 16) * (Words)((Ints)(b << 16) >> 16);
    return total + low + (Words)((Ints)a >> 16) * (Words)((Ints)b >> 16);
#endif
}

// Return the low (HALF = 0) or high 16 bits of each lane, twice.
template <int HALF>
inline Words repeat_half(Words pairs) {
#if defined(__AVX2__) && !defined(__AVX512BW__)
    constexpr int BYTES = 0x01000100 + 0x02020202 * HALF;  // of the first lane; one instruction instead of three
    const __m128i order = _mm_setr_epi32(BYTES, BYTES + 0x04040404, BYTES + 0x08080808, BYTES + 0x0c0c0c0c);
    return (Words)_mm256_shuffle_epi8((__m256i)pairs, _mm256_broadcastsi128_si256(order));
#else
    return HALF ? (pairs & 0xffff0000u) | pairs >> 16 : (pairs & 0xffffu) | pairs << 16;
#endif
}

// Return the low (HALF = 0) or high 16 bits of each lane as a signed integer.
template <int HALF>
inline Words integer_half(Words pairs) {
    return (Words)((Ints)(HALF ? pairs : pairs << 16) >> 16);
}

// Sum of the products of unsigned bytes w, at most MAX_W, and signed bytes x, -127 .. 127. SHORT: it has to fit into 16
// bits where SHORT_BYTE_SUMS.
template <int MAX_W, bool SHORT = false>
struct ByteSum {
    static constexpr bool IS_SHORT = SHORT && SHORT_BYTE_SUMS;
    // Units that fit into 16 bits, as two sums or one; elsewhere any number fits.
    static constexpr int CAPACITY = SUMS_OF_16_BITS ? 32767 / (2 * 127 * MAX_W)
                                    : IS_SHORT      ? 32767 / (4 * 127 * MAX_W)
                                                    : MANY_UNITS;

    Words sum = {};

    // Factor from the low or high 16 bits of each lane: an integer, the same 16 bits twice, or 16 bits and zeros.
    template <int HALF>
    static inline Words factor(Words pairs) {
        if constexpr (SUMS_OF_16_BITS) return repeat_half<HALF>(pairs);
        if constexpr (IS_SHORT) return HALF ? pairs >> 16 : pairs & 0xffffu;
        return integer_half<HALF>(pairs);
    }

    // Return total + sum * factor.
    static inline Words add_scaled(Words total, Words sum, Words factor) {
        if constexpr (SUMS_OF_16_BITS || IS_SHORT) return add_pairs(total, sum, factor);
        return total + sum * factor;
    }

    // The same as adding to a sum of zero.
    inline void start(Words x, Words w) {
#if defined(__AVX2__) && !SMOE_DOT_BYTES && !defined(__AVX512BW__)
        sum = (Words)_mm256_maddubs_epi16((__m256i)w, (__m256i)x);
#else
        sum = Words{};
        add(x, w);
#endif
    }

    inline void add(Words x, Words w) {
#if SMOE_DOT_BYTES
        sum = dot_bytes(sum, w, x);
#elif defined(__AVX512BW__)
        sum = (Words)_mm512_add_epi16((__m512i)sum, _mm512_maddubs_epi16((__m512i)w, (__m512i)x));
#elif defined(__AVX2__)
        sum = add_byte_pairs(sum, w, x);
#else
        for (int shift = 0; shift < 32; shift += 8)
            sum += (w >> shift & 0xffu) * (Words)((Ints)(x << (24 - shift)) >> 24);
#endif
    }
};

// Sum of the products of bytes w, stored as q + 128 and prepared by Int8Unit, and signed bytes x. Where
// Int8Unit::IS_BIASED the sum is that of (q + 128) x.
struct BiasedByteSum {
    static constexpr int CAPACITY = MANY_UNITS;

    Words sum = {};

    template <int HALF>
    static inline Words factor(Words pairs) {
        return integer_half<HALF>(pairs);
    }

    static inline Words add_scaled(Words total, Words sum, Words factor) { return total + sum * factor; }

    inline void start(Words x, Words w) { sum = Int8Unit::add(Words{}, x, w); }
    inline void add(Words x, Words w) { sum = Int8Unit::add(sum, x, w); }
};

// Add the products of one unit of each row, at x, and of each vector of columns, or start the sums with them.
template <bool STARTS, class Sum, int ROWS, int VECTORS>
[[gnu::always_inline]] inline void add_products(Sum (&sums)[ROWS][VECTORS], const uint32_t* x,
                                                const Words (&w)[VECTORS]) {
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; ++m) {
        const Words row = broadcast_word(x[m]);
#pragma GCC unroll 4
        for (int part = 0; part < VECTORS; ++part) {
            if constexpr (STARTS)
                sums[m][part].start(row, w[part]);
            else
                sums[m][part].add(row, w[part]);
        }
    }
}

// Return total + sum.
inline Words add_unscaled(Words total, Words sum) {
#if defined(__AVX2__) && !defined(__AVX512BW__)
    // Intrinsics, so that GCC leaves out a total of zero.
    if constexpr (SUMS_OF_16_BITS) return total + (Words)_mm256_madd_epi16((__m256i)sum, _mm256_set1_epi16(1));
#endif
    if constexpr (SUMS_OF_16_BITS) return add_pairs(total, sum, broadcast_word(0x00010001u));
    return total + sum;
}

// Return the bits of low where the mask is set, with those of high where `high_mask` is; the masks have no common bits.
inline Words merge(Words low, uint32_t mask, Words high, uint32_t high_mask) {
#if defined(__AVX512F__)
    const auto select = (__m512i)broadcast_word(mask);  // two operations instead of three
    return (Words)_mm512_ternarylogic_epi32(select, (__m512i)low, (__m512i)high, 0xca) & (mask | high_mask);
#else
    return (low & mask) | (high & high_mask);
#endif
}

// Return words shifted by `places` bits to the left, or to the right if it is negative.
template <int places>
inline Words shift_left(Words words) {
    if constexpr (places >= 0) return words << places;
    return words >> -places;
}

// Load two signed bytes per lane as 16-bit integers.
inline Words load_byte_pairs(const void* p) {
#if defined(__AVX512BW__)
    return (Words)_mm512_cvtepi8_epi16(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
    return (Words)_mm256_cvtepi8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(p)));
#else
    typedef int8_t SmallPairs __attribute__((vector_size(LANES * 2)));
    typedef int16_t Pairs __attribute__((vector_size(LANES * 4)));
    SmallPairs bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    return (Words) __builtin_convertvector(bytes, Pairs);
#endif
}

}  // namespace SMOE_ISA
}  // namespace smoe
