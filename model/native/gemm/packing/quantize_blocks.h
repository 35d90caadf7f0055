// Rows of x for the block formats: int8 with a scale per block. Included by gemm/packing/quantize_activations.cpp only.
#pragma once

#include "gemm/block_formats.h"
#include "gemm/packed_row_layout.h"
#include "gemm/packing/quantize_common.h"

namespace smoe {
namespace SMOE_ISA {

// Factor of a block's sum P in a packed row: minus the number that stands for zero; 1 if the format has minima, -1 if
// it has zero points.
inline uint32_t factor_of_sum(int format) {
    if (is_affine(format)) return 1;
    switch (format) {
        case Q4_0: return -8u;
        case Q5_0: return -16u;
        case Q8_0:
        case IQ4_NL: return -128u;
        case Q4_1:
        case Q5_1: return 1;
        default: return -1u;
    }
}

// One block: [factor times P, units, s].
template <class T>
void quantize_small_block(const T* x, int numbers, uint32_t factor, uint32_t* row) {
    const Scale scale = scale_of(largest_magnitude(x, numbers));
    auto* q = reinterpret_cast<uint8_t*>(row + 1);
    Words total = {};
    for (int k = 0; k < numbers; k += 32) total += quantize_group<32>(x + k, 32, scale.inverse, q + k);
    row[0] = factor * sum_of_lanes(total);
    row[1 + numbers / 4] = word_of(scale.scale);
}

template <class T>
void quantize_by_small_blocks(int format, const T* x, int64_t K, const int32_t* order, uint32_t* row) {
    const uint32_t factor = factor_of_sum(format);
    const int numbers = block_layout(format).numbers;
    for (int64_t block = 0; block < K; block += numbers, row += numbers / 4 + 2) {
        if (!order) {
            quantize_small_block(x + block, numbers, factor, row);
            continue;
        }
        T gathered[128];
        for (int k = 0; k < numbers; ++k) gathered[k] = x[order[block + k]];
        quantize_small_block(gathered, numbers, factor, row);
    }
}

// Words at which the sums of Q6_K's products start: -32 times sums of the group's numbers, so that a sum of products
// with q becomes one with q - 32. The lanes are those of quantize_group().
inline void store_starts(Words group, uint32_t* starts) {
    uint32_t low = 0, high = 0;
    if constexpr (STARTS_PER_GROUP == 1) {  // of bytes 0 and 1 of each unit, and of bytes 2 and 3
        for (int i = 0; i < LANES; i += 4) {
            low += group[i] + group[i + 1];
            high += group[i + 2] + group[i + 3];
        }
        starts[0] = (-32 * low & 0xffffu) | -32 * high << 16;
    } else {  // of the first two units, and of the others
        for (int i = 0; i < LANES / 2; ++i) {
            low += group[i];
            high += group[i + LANES / 2];
        }
        starts[0] = -32 * low;
        starts[1] = -32 * high;
    }
}

// Groups of 16 numbers with the starts of their sums.
template <class T>
void quantize_with_starts(const T* x, int64_t K, uint32_t* row) {
    constexpr int STARTS = 16 * STARTS_PER_GROUP;
    for (int64_t block = 0; block < K; block += 256, row += 64 + STARTS + 1) {
        const Scale scale = scale_of(largest_magnitude(x + block, 256));
        auto* q = reinterpret_cast<uint8_t*>(row);
        for (int k = 0; k < 256; k += 16)
            store_starts(quantize_group<16>(x + block + k, 16, scale.inverse, q + k),
                         row + 64 + k / 16 * STARTS_PER_GROUP);
        row[64 + STARTS] = word_of(scale.scale);
    }
}

// SIZE numbers per group.
template <int SIZE, class T>
void quantize_by_superblocks(const T* x, int64_t K, uint32_t* row) {
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

// `order`: of a matrix in groups, or null.
template <class T>
void quantize_by_blocks(int format, const T* x, int64_t K, const int32_t* order, uint32_t* row) {
    if constexpr (has_starts(Q6_K))
        if (format == Q6_K) return quantize_with_starts(x, K, row);
    if (block_layout(format).row_words == 73) return quantize_by_superblocks<16>(x, K, row);
    if (block_layout(format).row_words == 69) return quantize_by_superblocks<32>(x, K, row);
    quantize_by_small_blocks(format, x, K, order, row);
}

}  // namespace SMOE_ISA
}  // namespace smoe
