// SwiGLU experts, w2(silu(w1 x) * (w3 x)), over rows sorted by expert.
#pragma once

#include <cstdint>

#include "gemm/gemm.h"
#include "moe/routing.h"

namespace smoe {

struct Expert {
    Matrix w1, w3;  // [F, D]
    Matrix w2;      // [D, F]
};

// E experts. Each of the three matrices has one format in all of them.
struct Experts {
    const Expert* experts;
    int64_t E, D, F;

    const Expert& operator[](int64_t expert) const { return experts[expert]; }
};

// Return the outputs [P, D] of the sorted (row, expert) pairs, in the pool's scratch memory.
SMOE_PER_ISA(const float* multiply_experts(Pool& pool, int dtype, const void* x, const Experts& weights,
                                           const Pairs& pairs))

}  // namespace smoe
