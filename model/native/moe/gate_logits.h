// Gate logits for reports. The gate that routes (moe/moe.h) computes its own: no choice depends on a report.
#pragma once

#include <cstdint>

#include "runtime/thread_pool.h"

namespace smoe {

// logits [P, E]: of rows[p] of x [T, D], or of row p if rows is null; gate [E, D]. Each logit is a sum in float64 in
// the same order on every CPU.
void report_gate_logits(Pool& pool, int dtype, const void* x, const int64_t* rows, const float* gate, float* logits,
                        int64_t P, int64_t D, int64_t E);

}  // namespace smoe
