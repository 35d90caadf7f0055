// Rows of x for the block formats: int8 with a scale per block. Included by gemm/quantize_activations.cpp only.
#pragma once

#include "gemm/block_formats.h"
#include "gemm/quantize_common.h"

namespace smoe {
namespace SMOE_ISA {

// Factor of a block's sum P in a packed row: minus the number that stands for zero, or 1 if the format has minima.
inline uint32_t factor_of_sum(int format) {
    switch (format) {
        case Q4_0: return -8u;
        case Q5_0: return -16u;
        case Q8_0: return -128u;
        default: return 1;
    }
}

template <class T>
void quantize_by_blocks_of_32(int format, const T* x, int64_t K, uint32_t* row) {
    const uint32_t factor = factor_of_sum(format);
    for (int64_t k = 0; k < K; k += 32, row += 10) {
        const Scale scale = scale_of(largest_magnitude(x + k, 32));
        row[0] =
            factor * sum_of_lanes(quantize_group<32>(x + k, 32, scale.inverse, reinterpret_cast<uint8_t*>(row + 1)));
        row[9] = word_of(scale.scale);
    }
}

// SIZE numbers per group.
template <int SIZE, class T>
void quantize_by_blocks_of_256(const T* x, int64_t K, uint32_t* row) {
    constexpr int PAIRS = 256 / SIZE / 2;
    for (int64_t block = 0; block < K; block += 256) {
        const Scale scale = scale_of(largest_magnitude(x + block, 256));
        auto* q = reinterpret_cast<uint8_t*>(row);
        uint32_t* pairs = row + 64;
        for (int k = 0; k < 256; k += 2 * SIZE) {
            const uint32_t low = sum_of_lanes(quantize_group<SIZE>(x + block + k, SIZE, scale.inverse, q + k));
            const uint32_t high =
                sum_of_lanes(quantize_group<SIZE>(x + block + k + SIZE, SIZE, scale.inverse, q + k + SIZE));
            *pairs++ = (low & 0xffffu) | high << 16;
        }
        row[64 + PAIRS] = word_of(scale.scale);
        row += 64 + PAIRS + 1;
    }
}

template <class T>
void quantize_by_blocks(int format, const T* x, int64_t K, uint32_t* row) {
    if (format == Q6_K) return quantize_by_blocks_of_256<16>(x, K, row);
    if (block_layout(format).numbers == 256) return quantize_by_blocks_of_256<32>(x, K, row);
    quantize_by_blocks_of_32(format, x, K, row);
}

}  // namespace SMOE_ISA
}  // namespace smoe
