// Paged grouped-query attention: types shared by the driver (c_api/attention_api.cpp) and the kernels of each
// instruction set.
//
// Letters as in model/ops/interface.py: T rows, S sequences, M the widest block table, H heads, G KV heads, K head dim;
// R = H / G query heads share a KV head. Q = queries of a row block: KV head by KV head, row by row, R of each.
//
// A row's result depends on that row alone. Keys are always processed in spans of SPAN absolute positions. Each span
// yields its own softmax state (maximum score m, sum of weights l, weighted sum of values o); states are merged in
// ascending order. Within a span the order of additions is fixed: scores over ascending dims, o over ascending
// positions.
#pragma once

#include <cstdint>

#include "runtime/isa.h"

namespace smoe {

constexpr int SPAN = 256;

// Bytes that one position of one KV head takes in a cache.
inline int64_t kv_row_bytes(int kv_dtype, int64_t head_dim) {
    return kv_dtype == INT8 ? head_dim + sizeof(float) : head_dim * (kv_dtype == BFLOAT16 ? 2 : 4);
}

// Caches consist of tiles of this many positions (attention/kv_tile.h) if kv_in_tiles(), otherwise of rows
// (attention/kv_row.h).
constexpr int64_t KV_TILE = 16;

inline bool kv_in_tiles(int kv_dtype, int64_t block_size) { return kv_dtype != FLOAT32 && block_size % KV_TILE == 0; }

// Arguments of one attention call.
struct AttentionArgs {
    int dtype;                    // of q
    int out_dtype;                // of out
    int kv_dtype;                 // of the caches
    const void* q;                // [T, H, K]
    const void* k_cache;          // [num_blocks, block_size, G] rows, or the same bytes as tiles
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

    bool in_tiles() const { return kv_in_tiles(kv_dtype, block_size); }

    // First position visible to the row at `position`.
    int64_t first_visible(int64_t position) const {
        return window > 0 && position >= window ? position - window + 1 : 0;
    }
};

// Queries of KV heads kv_head .. kv_head + num_kv_heads - 1 for rows first_row .. first_row + num_rows - 1: rows of one
// sequence at ascending positions, starting at `position`.
struct RowBlock {
    int64_t sequence;
    int64_t first_row;
    int64_t num_rows;
    int64_t position;
    int64_t kv_head;
    int64_t num_kv_heads;
};

inline int64_t num_queries(const AttentionArgs& args, const RowBlock& block) {
    return block.num_kv_heads * block.num_rows * args.queries_per_row();
}

// Row and head of query i of the block, as an index into [T, H].
inline int64_t query_number(const AttentionArgs& args, const RowBlock& block, int64_t i) {
    const int64_t R = args.queries_per_row(), queries = block.num_rows * R, kv_head = block.kv_head + i / queries;
    return (block.first_row + i % queries / R) * args.num_heads + kv_head * R + i % R;
}

// Intermediate results pad the head dim to a multiple of this.
constexpr int64_t DIM_PANEL = 64;
inline int64_t padded_dim(int64_t head_dim) { return (head_dim + DIM_PANEL - 1) / DIM_PANEL * DIM_PANEL; }

// Result of one query over one or more spans: m, l, then o from float 16 on; those between are the kernel's. A query
// that saw no position has l = 0.
constexpr int64_t PARTIAL_HEADER = 16;
inline int64_t partial_floats(int64_t head_dim) { return PARTIAL_HEADER + padded_dim(head_dim); }

// Scratch floats that attend_span needs besides its results: queries and scores, at least of the queries that AMX
// multiplies at once, then keys and values of a span in bfloat16.
constexpr int64_t MAX_KEY_PANEL = 64;
constexpr int64_t AMX_QUERIES = 32;
inline int64_t span_scratch_floats(int64_t head_dim, int64_t num_queries) {
    const int64_t queries = num_queries > AMX_QUERIES ? num_queries : AMX_QUERIES;
    return queries * (padded_dim(head_dim) + SPAN) + SPAN * padded_dim(head_dim);
}

struct KvPrefetchSpan;

// Write the Q partials of the block over the span that begins at position span_start; meanwhile prefetch `prefetch`; of
// tiles the first panel only, except with many queries on AMX.
// Pointers are 64-byte aligned.
SMOE_PER_ISA(void attend_span(const AttentionArgs& args, const RowBlock& block, int64_t span_start,
                              const KvPrefetchSpan& prefetch, float* partials, float* scratch))
// Merge the Q partials of a later span into those of earlier ones.
SMOE_PER_ISA(void merge_partials(int64_t head_dim, int64_t num_queries, float* into, const float* later))
// Write o / l of the block's partials to args.out.
SMOE_PER_ISA(void finish_attention(const AttentionArgs& args, const RowBlock& block, const float* partials))

}  // namespace smoe
