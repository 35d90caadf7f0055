// From logits to tokens and log probabilities, row by row: what model/ops/reference/sampling.py defines.
#pragma once

#include <cstdint>

#include "runtime/isa.h"
#include "smoe_native.h"

namespace smoe {

enum RowStatus { ROW_SAMPLED = 0, ROW_NOT_FINITE = 1, ROW_NO_TOKEN = 2 };

// What one thread works in, for a vocabulary of V.
struct SamplingMemory {
    double* masses;   // [V]
    float* shaped;    // [V]
    uint32_t* keys;   // [V]
    int32_t* ids;     // [V]
    int32_t* counts;  // [V], zeros between rows
};

inline int64_t sampling_memory_bytes(int64_t V) { return (V * 24 + 127) / 64 * 64; }

inline SamplingMemory sampling_memory(void* memory, int64_t V) {
    auto* masses = static_cast<double*>(memory);
    auto* shaped = reinterpret_cast<float*>(masses + V);
    auto* keys = reinterpret_cast<uint32_t*>(shaped + V);
    auto* ids = reinterpret_cast<int32_t*>(keys + V);
    return {masses, shaped, keys, ids, ids + V};
}

// Numbers of one row that may be drawn, by ascending id. `keys` order as the logits do.
struct Candidates {
    double* masses;
    uint32_t* keys;
    int32_t* ids;
    int64_t count;
};

// Keeps the first `limit` by descending logit, ties by ascending id.
void keep_top_k(Candidates& candidates, int64_t limit);
// Keeps the fewest, in that order, whose mass reaches `limit`; always one.
void keep_top_p(Candidates& candidates, double limit);

// The uniform number in [0, 1) of a seed and a counter: Philox4x32-10 (Salmon et al. 2011), its first word.
double philox_uniform(uint64_t seed, uint32_t position, uint32_t prompt, uint32_t choice);

SMOE_PER_ISA(void sample_row(const smoe_sampling& args, int64_t row, const SamplingMemory& memory))

}  // namespace smoe
