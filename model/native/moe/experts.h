// SwiGLU experts, w2(silu(w1 x) * (w3 x)), over rows sorted by expert.
#pragma once

#include <cstdint>

#include "gemm/gemm.h"
#include "group/group.h"
#include "moe/routing.h"

namespace smoe {

struct Expert {
    Matrix w1, w3;  // [F, D]
    Matrix w2;      // [D, F]
};

// E experts. Each of the three matrices has one format in all of them. In a group w1 and w3 have the outputs of F from
// first_F on, and w2 some of D.
struct Experts {
    const Expert* experts;
    int64_t E, D, F;
    Group* group;  // null: one rank
    int64_t first_F;
    LowRankTerms low_rank;  // three of each expert: of w1, w3 and w2

    int64_t num_hidden() const { return experts[0].w1.outputs; }   // F, or this rank's part
    int64_t num_outputs() const { return experts[0].w2.outputs; }  // D, or this rank's part
    const Expert& operator[](int64_t expert) const { return experts[expert]; }
};

// Return the outputs [P, num_outputs()] of the sorted (row, expert) pairs, in the pool's scratch memory.
SMOE_PER_ISA(const float* multiply_experts(Pool& pool, int dtype, const void* x, const Experts& weights,
                                           const Pairs& pairs))

}  // namespace smoe
