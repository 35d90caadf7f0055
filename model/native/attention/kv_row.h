// Layout of the KV caches in rows: K numbers per position and KV head. Included by kernel files only.
//
// float32 and bfloat16 rows store the K numbers. An int8 row stores K bytes, then a float32 scale: number k is byte k
// times the scale, and the scale is the row's largest magnitude divided by 127. Rows too small to divide by are stored
// as zeros. A row with a NaN or an infinity gets a NaN scale, so that the reader sees it.
#pragma once

#include <cstring>

#include "runtime/isa.h"
#include "simd/vec.h"
#include "simd/vec_tail.h"

namespace smoe {
namespace SMOE_ISA {

// Call body with a zero of the element type that caches of kv_dtype hold.
template <class Body>
void with_kv_number(int kv_dtype, Body&& body) {
    switch (kv_dtype) {
        case INT8: return body(int8_t{});
        case BFLOAT16: return body(uint16_t{});
        default: return body(float{});
    }
}

// Reads the numbers of one row.
template <class Number>
class KvRow {
  public:
    KvRow(const char* row, int64_t head_dim) : numbers_(reinterpret_cast<const Number*>(row)), head_dim_(head_dim) {}

    // Numbers from k on; zeros past the last.
    Vec load(int64_t k) const { return load_first(numbers_ + k, head_dim_ - k); }

  private:
    const Number* numbers_;
    int64_t head_dim_;
};

template <>
class KvRow<int8_t> {
  public:
    KvRow(const char* row, int64_t head_dim) : bytes_(row), head_dim_(head_dim) {
        float scale;
        std::memcpy(&scale, row + head_dim, sizeof scale);
        scale_ = broadcast(scale);
    }

    Vec load(int64_t k) const {
        Bytes bytes{};
        std::memcpy(&bytes, bytes_ + k, head_dim_ - k < LANES ? head_dim_ - k : LANES);
        return __builtin_convertvector(__builtin_convertvector(bytes, Ints), Vec) * scale_;
    }

  private:
    const char* bytes_;
    int64_t head_dim_;
    Vec scale_;
};

constexpr float SMALLEST_SCALED = 1e-30f;  // rows with no larger magnitude are stored as zeros

// Write one int8 row; number(k) returns numbers k .. k + LANES - 1, zeros past the last.
template <class Source>
void write_int8_row(char* row, int64_t head_dim, Source&& number) {
    Vec largest{}, odd{};
    for (int64_t k = 0; k < head_dim; k += LANES) {
        const Vec x = number(k), magnitude = from_bits(bits(x) & 0x7fffffffu);
        largest = largest > magnitude ? largest : magnitude;
        odd += x * 0.0f;  // NaN from NaN and from infinities
    }
    float magnitude = 0;
    for (int i = 0; i < LANES; ++i) magnitude = magnitude > largest[i] ? magnitude : largest[i];
    const bool is_zero = magnitude < SMALLEST_SCALED;
    const float scale = is_zero ? 0.0f : magnitude / 127.0f, inverse = is_zero ? 0.0f : 127.0f / magnitude;
    // 1.5 * 2^23: the low byte of the sum is the number rounded to nearest, ties to even
    constexpr float TO_INTEGER = 12582912.0f;
    for (int64_t k = 0; k < head_dim; k += LANES) {
        uint8_t bytes[LANES];
        store_low_bytes(bytes, bits(number(k) * inverse + TO_INTEGER));
        std::memcpy(row + k, bytes, head_dim - k < LANES ? head_dim - k : LANES);
    }
    const float stored = scale + sum(odd);
    std::memcpy(row + head_dim, &stored, sizeof stored);
}

#if defined(__AVX512BF16__)
// int8 numbers as bfloat16, exactly.
inline __m512i widened(__m128i low, __m128i high) {
    const __m512 first = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(low));
    const __m512 second = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(high));
    return (__m512i)_mm512_cvtne2ps_pbh(second, first);
}

inline __m512i widened(__m256i bytes) {
    return widened(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
}
#endif

}  // namespace SMOE_ISA
}  // namespace smoe
