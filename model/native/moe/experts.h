// SwiGLU experts, w2(silu(w1 x) * (w3 x)), of rows that are sorted by expert.
#pragma once

#include <cstdint>

#include "gemm/gemm.h"
#include "moe/routing.h"

namespace smoe {

// The experts' packed matrices, one expert's after the other's.
struct Experts {
    int format;
    const uint32_t* w13;  // E of pack_pair(w1, w3), [F, D] each
    const uint32_t* w2;   // E of pack(w2), [D, F]
    int64_t E, D, F;
};

// The outputs [P, D] of the sorted pairs of rows of x and experts; in the pool's scratch memory.
SMOE_PER_ISA(const float* multiply_experts(Pool& pool, int dtype, const void* x, const Experts& weights,
                                           const Pairs& pairs))

}  // namespace smoe
