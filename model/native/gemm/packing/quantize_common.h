// Quantization code shared by activations and weights. Included by kernel files only.
#pragma once

#include <algorithm>
#include <limits>

#include "simd/vec_tail.h"

namespace smoe {
namespace SMOE_ISA {

// x ~ scale * round(x * inverse).
struct Scale {
    float scale, inverse;
};

// Scale for numbers up to `largest` in magnitude, mapped to -most .. most. A row of negligible numbers is mapped to
// zeros.
inline Scale scale_of(float largest, float most = 127) {
    if (!(largest < std::numeric_limits<float>::infinity())) return {std::numeric_limits<float>::quiet_NaN(), 0};
    if (largest < 1e-30f) return {0, 0};
    return {largest / most, most / largest};
}

constexpr float TO_INTEGER = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, ties to even

// Round to integers: the low bits of each word hold the integer, as the difference to the word of 0.
inline Words round_to_integers(Vec x) { return bits(x + TO_INTEGER); }

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

// Quantize x[0] .. x[count - 1], zero-padded, to SIZE numbers q. The lanes of the result add up to the sum of q.
template <int SIZE, class T>
Words quantize_group(const T* x, int64_t count, float inverse, uint8_t* q) {
    Words total = {};
#pragma GCC unroll 8
    for (int i = 0; i < SIZE; i += LANES) {
        const Vec part = i < count ? load_first(x + i, count - i) : Vec{};
        const Words rounded = round_to_integers(part * inverse);
        store_low_bytes(q + i, rounded);
        total += rounded - round_to_integers(Vec{});
    }
    return total;
}

inline uint32_t sum_of_lanes(Words lanes) {
    uint32_t sum = 0;
    for (int i = 0; i < LANES; ++i) sum += lanes[i];
    return sum;
}

}  // namespace SMOE_ISA
}  // namespace smoe
