// SwiGLU experts, w2(silu(w1 x) * (w3 x)), and the gate that chooses among them.
#pragma once

#include <cstdint>

#include "moe/experts.h"

namespace smoe {

// One expert that takes every row.
SMOE_PER_ISA(void ffn(Pool& pool, int dtype, const void* x, const Experts& weights, void* y, int64_t T))
// gate [E, D]. The outputs of a row's k experts are summed in ascending id, in float32.
SMOE_PER_ISA(void moe(Pool& pool, int dtype, const void* x, const float* gate, const Experts& weights, void* y,
                      int64_t T, const Routing& routing))

// The choices alone.
SMOE_PER_ISA(void choose_experts(Pool& pool, int dtype, const void* x, const float* gate, int64_t E, int64_t D,
                                 int64_t T, const Routing& routing))

}  // namespace smoe
