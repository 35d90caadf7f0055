// Row-wise operations: RMSNorm, rotary angles, rotation, and writes to the KV cache. Each call handles rows first ..
// last - 1. Shape letters: model/ops/interface.py.
#pragma once

#include <cstdint>

#include "runtime/isa.h"

namespace smoe {

struct NormArgs {
    int dtype;
    const void* x;       // [T, D]
    const void* weight;  // [D]
    void* y;             // [T, D]
    int64_t dim;
    float eps;
};

struct RotationArgs {
    int dtype;             // of qkv
    int q_dtype;           // of q: dtype or bfloat16
    int kv_dtype;          // of the caches
    const void* qkv;       // [T, (H + 2G) * K]
    void* q;               // [T, H, K]
    void* k_cache;         // [num_blocks, block_size, G] rows, or the same bytes as tiles: kv_in_tiles()
    void* v_cache;         // as k_cache
    const float* cos;      // [T, K/2]
    const float* sin;      // [T, K/2]
    const int64_t* slots;  // [T]
    float* spare;          // scratch [T, 2K]
    int64_t num_heads;
    int64_t num_kv_heads;
    int64_t head_dim;
    int64_t block_size;
};

// x += y for numbers first .. last - 1; each sum is rounded to dtype.
SMOE_PER_ISA(void add(int dtype, void* x, const void* y, int64_t first, int64_t last))
SMOE_PER_ISA(void rms_norm(const NormArgs& args, int64_t first, int64_t last))
SMOE_PER_ISA(void rope_and_store_kv(const RotationArgs& args, int64_t first, int64_t last))
// Write cos and sin [num_pairs] of the float32 products position * inverse_frequency[i], each within 0.51 units in the
// last place for products up to 2^20, and then times `factor`.
SMOE_PER_ISA(void rotary_angles(int64_t position, const float* inverse_frequency, int64_t num_pairs, float factor,
                                float* cos, float* sin))

}  // namespace smoe
