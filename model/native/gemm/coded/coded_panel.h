// Unpacks coded weights (gemm/coded_weights.h). Included by kernel files only.
#pragma once

#include <algorithm>
#include <cstring>

#include "gemm/coded_weights.h"
#include "gemm/gemm.h"
#include "simd/byte_table.h"
#include "simd/prefetch.h"

namespace smoe {
namespace SMOE_ISA {

// Interleave the bytes of the low, or of the high halves of each 16 bytes: low byte, high byte, low byte ...
template <bool HIGH_HALVES>
inline Words interleave_bytes(Words low, Words high) {
#if defined(__AVX512BW__)
    const auto a = (__m512i)low, b = (__m512i)high;
    return (Words)(HIGH_HALVES ? _mm512_unpackhi_epi8(a, b) : _mm512_unpacklo_epi8(a, b));
#elif defined(__AVX2__)
    const auto a = (__m256i)low, b = (__m256i)high;
    return (Words)(HIGH_HALVES ? _mm256_unpackhi_epi8(a, b) : _mm256_unpacklo_epi8(a, b));
#elif defined(__aarch64__)
    const auto a = (uint8x16_t)low, b = (uint8x16_t)high;
    return (Words)(HIGH_HALVES ? vzip2q_u8(a, b) : vzip1q_u8(a, b));
#else
    uint8_t from[2][16], to[16];
    std::memcpy(from[0], &low, 16);
    std::memcpy(from[1], &high, 16);
    for (int i = 0; i < 16; ++i) to[i] = from[i % 2][8 * HIGH_HALVES + i / 2];
    std::memcpy(&low, to, 16);
    return low;
#endif
}

// Reads a panel from its first pair to its last.
class CodedPanel {
  public:
    CodedPanel(const uint32_t* panel, int64_t K)
        : patch_(panel + FIRST_PATCH_AT),
          end_of_patches_(patch_ + std::min<int64_t>(panel[PATCH_COUNT_AT], patch_words(K))),
          pair_(panel + first_pair_at(K)) {
        std::memcpy(table_, panel, sizeof table_);
    }

    // Unpack the next `pairs` pairs to units [2 * pairs][PANEL] of bfloat16, and prefetch what is read later.
    void unpack(int64_t pairs, uint32_t* units) {
        for (int64_t i = 0; i < pairs; ++i, pair_ += PAIR_WORDS) unpack_pair(units + 2 * i * PANEL);
        const uint32_t num_weights = static_cast<uint32_t>(pairs) * WEIGHTS_PER_PAIR;
        for (; patch_ < end_of_patches_; ++patch_) {
            const uint32_t at = (*patch_ >> 8) - first_weight_;
            if (at >= num_weights) break;  // it belongs to a later pair
            reinterpret_cast<uint8_t*>(units)[2 * at + 1] = static_cast<uint8_t>(*patch_);
        }
        first_weight_ += num_weights;
    }

  private:
    static constexpr uint32_t WEIGHTS_PER_PAIR = 4 * PANEL;
    static constexpr int AHEAD = IS_FOR_INTEL ? 896 : 1024;  // words

    void unpack_pair(uint32_t* units) {
        prefetch_lines<PAIR_WORDS, NO_FURTHER>(pair_ + AHEAD);
#pragma GCC unroll 4
        for (int at = 0; at < PANEL / 2; at += LANES) {
            const Words codes = load_words(pair_ + at);
            unpack_unit(load_words(pair_ + PANEL / 2 + at), codes & 0x0f0f0f0fu, units + at);
            unpack_unit(load_words(pair_ + PANEL + at), codes >> 4 & 0x0f0f0f0fu, units + PANEL + at);
        }
    }

    // Columns 0 .. LANES - 1 and PANEL / 2 .. of a unit, from the first column of `unit` on.
    void unpack_unit(Words low, Words codes, uint32_t* unit) const {
        const Words high = look_up(table_, codes);
        store_words(unit, interleave_bytes<false>(low, high));
        store_words(unit + PANEL / 2, interleave_bytes<true>(low, high));
    }

    alignas(16) uint8_t table_[16];
    const uint32_t* patch_;
    const uint32_t* const end_of_patches_;
    const uint32_t* pair_;
    uint32_t first_weight_ = 0;
};

}  // namespace SMOE_ISA
}  // namespace smoe
