// Paged grouped-query attention: what the driver (attention/attention.cpp) and the kernels of each instruction set
// share.
//
// Letters as in model/ops/interface.py: T rows, S sequences, M the widest block table, H heads, G KV heads, K head dim;
// R = H / G query heads share a KV head. Q = R times the rows of a row block, row by row.
//
// A row's result depends on the row alone. Its keys are always taken in spans of SPAN absolute positions; each span
// gives a softmax of its own (largest score m, sum of weights l, weighted sum of values o), and those are merged in
// ascending order. Within a span every number is made in one order: a score over ascending dims, o over ascending
// positions.
#pragma once

#include <cstdint>

#include "runtime/isa.h"

namespace smoe {

constexpr int SPAN = 256;

// Of one row of a KV cache: attention/kv_row.h.
inline int64_t kv_row_bytes(int kv_dtype, int64_t head_dim) {
    return kv_dtype == INT8 ? head_dim + sizeof(float) : head_dim * (kv_dtype == BFLOAT16 ? 2 : 4);
}

// One call's arguments.
struct AttentionArgs {
    int dtype;                    // of q and out
    int kv_dtype;                 // of the caches
    const void* q;                // [T, H, K]
    const void* k_cache;          // [num_blocks, block_size, G] rows of attention/kv_row.h
    const void* v_cache;          // as k_cache
    void* out;                    // [T, H, K]
    const int32_t* block_tables;  // [S, M]
    int64_t max_blocks;           // M
    int64_t block_size;
    int64_t num_heads;     // H
    int64_t num_kv_heads;  // G
    int64_t head_dim;      // K
    int64_t window;        // 0: none

    int64_t queries_per_row() const { return num_heads / num_kv_heads; }

    int64_t kv_row_bytes() const { return smoe::kv_row_bytes(kv_dtype, head_dim); }

    // The first position that the row at `position` sees.
    int64_t first_visible(int64_t position) const {
        return window > 0 && position >= window ? position - window + 1 : 0;
    }
};

// The queries of one KV head of rows first_row .. first_row + num_rows - 1: rows of one sequence at ascending positions
// from `position` on.
struct RowBlock {
    int64_t sequence;
    int64_t first_row;
    int64_t num_rows;
    int64_t position;
    int64_t kv_head;
};

// Head dims are filled up to a multiple of this in intermediate results.
constexpr int64_t DIM_PANEL = 64;
inline int64_t padded_dim(int64_t head_dim) { return (head_dim + DIM_PANEL - 1) / DIM_PANEL * DIM_PANEL; }

// One query's result over one or more spans: m, l, then from the 16th float on o. A query that saw nothing has l = 0.
constexpr int64_t PARTIAL_HEADER = 16;
inline int64_t partial_floats(int64_t head_dim) { return PARTIAL_HEADER + padded_dim(head_dim); }

// Floats that attend_span works in, beside its results.
constexpr int64_t MAX_KEY_PANEL = 64;
inline int64_t span_scratch_floats(int64_t head_dim, int64_t num_queries) {
    return num_queries * (padded_dim(head_dim) + SPAN) + MAX_KEY_PANEL * padded_dim(head_dim);
}

struct KvPrefetchSpan;

// Writes the Q partials of the block over the span that begins at position span_start, and asks for `ahead` meanwhile.
// Pointers are 64-byte aligned.
SMOE_PER_ISA(void attend_span(const AttentionArgs& args, const RowBlock& block, int64_t span_start,
                              const KvPrefetchSpan& ahead, float* partials, float* scratch))
// Merges the Q partials of a later span into those of earlier ones.
SMOE_PER_ISA(void merge_partials(int64_t head_dim, int64_t num_queries, float* into, const float* later))
// Writes o / l of the block's partials to args.out.
SMOE_PER_ISA(void finish_attention(const AttentionArgs& args, const RowBlock& block, const float* partials))

}  // namespace smoe
