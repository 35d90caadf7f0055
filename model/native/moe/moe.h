// SwiGLU experts, w2(silu(w1 x) * (w3 x)), and the gate that routes rows to them.
#pragma once

#include <cstdint>

#include "moe/experts.h"

namespace smoe {

// Dense FFN: one expert for all rows. y [T, num_outputs()], for moe too.
SMOE_PER_ISA(void ffn(Pool& pool, int dtype, const void* x, const Experts& weights, void* y, int64_t T))
// Mixture of experts; gate [E, D]. The outputs of a row's k experts are summed in float32, by ascending id.
SMOE_PER_ISA(void moe(Pool& pool, int dtype, const void* x, const float* gate, const Experts& weights, void* y,
                      int64_t T, const Routing& routing))

// Compute the routing only.
SMOE_PER_ISA(void choose_experts(Pool& pool, int dtype, const void* x, const float* gate, int64_t E, int64_t D,
                                 int64_t T, const Routing& routing))

}  // namespace smoe
