// Sampling: from logits to tokens and log probabilities, row by row, as model/ops/reference/sampling.py defines it.
#pragma once

#include <cstdint>

#include "runtime/isa.h"
#include "smoe_native.h"

namespace smoe {

enum RowStatus { ROW_SAMPLED = 0, ROW_NOT_FINITE = 1, ROW_NO_TOKEN = 2 };

// Scratch memory of one thread for a vocabulary of V.
struct SamplingMemory {
    double* probs;    // [V]
    float* shaped;    // [V]
    uint32_t* keys;   // [V]
    int32_t* ids;     // [V]
    int32_t* counts;  // [V], zeros between rows
};

inline int64_t sampling_memory_bytes(int64_t V) { return (V * 24 + 127) / 64 * 64; }

inline SamplingMemory sampling_memory(void* memory, int64_t V) {
    auto* probs = static_cast<double*>(memory);
    auto* shaped = reinterpret_cast<float*>(probs + V);
    auto* keys = reinterpret_cast<uint32_t*>(shaped + V);
    auto* ids = reinterpret_cast<int32_t*>(keys + V);
    return {probs, shaped, keys, ids, ids + V};
}

// Tokens of one row that may be drawn, by ascending id. `keys` are ordered as the logits are.
struct Candidates {
    double* probs;
    uint32_t* keys;
    int32_t* ids;
    int64_t count;
};

// Keep the first `limit` by descending logit, ties by ascending id.
void keep_top_k(Candidates& candidates, int64_t limit);
// Keep the fewest, in that order, whose total probability reaches `limit`; at least one.
void keep_top_p(Candidates& candidates, double limit);

// Uniform number in [0, 1) for a seed and a counter: first word of Philox4x32-10 (Salmon et al. 2011).
double philox_uniform(uint64_t seed, uint32_t position, uint32_t prompt, uint32_t choice);

SMOE_PER_ISA(void sample_row(const smoe_sampling& args, int64_t row, const SamplingMemory& memory))

}  // namespace smoe
