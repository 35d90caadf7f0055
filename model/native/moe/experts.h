// SwiGLU experts, w2(silu(w1 x) * (w3 x)), over rows sorted by expert.
#pragma once

#include <cstdint>

#include "gemm/gemm.h"
#include "moe/routing.h"

namespace smoe {

// Packed matrices of all experts, consecutive by expert.
struct Experts {
    int format;
    const uint32_t* w13;  // E times pack_pair(w1, w3), [F, D] each
    const uint32_t* w2;   // E times pack(w2), [D, F]
    int64_t E, D, F;
};

// Return the outputs [P, D] of the sorted (row, expert) pairs, in the pool's scratch memory.
SMOE_PER_ISA(const float* multiply_experts(Pool& pool, int dtype, const void* x, const Experts& weights,
                                           const Pairs& pairs))

}  // namespace smoe
