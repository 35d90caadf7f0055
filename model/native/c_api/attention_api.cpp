// C interface of attention, norm and rotation, and the division of their work into tasks.
#include <algorithm>
#include <atomic>
#include <vector>

#include "attention/attention.h"
#include "attention/kv_prefetch.h"
#include "attention/norm_rope.h"
#include "c_api/core.h"
#include "gemm/gemm.h"
#include "runtime/thread_pool.h"
#include "smoe_native.h"

namespace smoe {
namespace {

constexpr int64_t QUERIES_PER_BLOCK = 128;      // of one KV head: amortizes the unpacking of keys and values
constexpr int64_t AMX_QUERIES_PER_BLOCK = 256;  // the same on AMX, where every thread gets TASKS_PER_THREAD tasks
constexpr int64_t QUERIES_OF_HEADS = 64;        // of several KV heads: their scores stay in the caches of a core
constexpr int64_t QUERIES_PER_SPAN = 32;        // where each span is a task: each keeps its partials
constexpr int64_t TASKS_PER_THREAD = 4;

int64_t first_span(const AttentionArgs& args, const RowBlock& block) {
    return args.first_visible(block.position) / SPAN;
}
int64_t end_span(const RowBlock& block) { return ceil_div(block.position + block.num_rows, SPAN); }

int64_t most_queries(const AttentionArgs& args, const std::vector<RowBlock>& blocks) {
    int64_t queries = 1;
    for (const RowBlock& block : blocks) queries = std::max(queries, num_queries(args, block));
    return queries;
}

// Return how many queries of one KV head a block takes at most, of num_rows rows in all.
int64_t queries_per_block(const AttentionArgs& args, int isa, int64_t num_rows, int threads) {
    const bool is_bf16 = args.dtype == BFLOAT16 && args.kv_dtype != FLOAT32 && args.head_dim % 2 == 0;
    const int64_t num_tasks = num_rows * args.num_heads / AMX_QUERIES_PER_BLOCK;
    return isa == AMX && is_bf16 && num_tasks >= TASKS_PER_THREAD * threads ? AMX_QUERIES_PER_BLOCK : QUERIES_PER_BLOCK;
}

// Divide every sequence's rows into blocks of all KV heads, with up to `queries` queries of each.
std::vector<RowBlock> make_row_blocks(const AttentionArgs& args, const int32_t* query_start, const int32_t* context_len,
                                      int64_t num_sequences, int64_t queries) {
    const int64_t rows_per_block = std::max<int64_t>(1, queries / args.queries_per_row());
    std::vector<RowBlock> blocks;
    for (int64_t s = 0; s < num_sequences; ++s) {
        const int64_t end = query_start[s + 1], first_position = context_len[s] - (end - query_start[s]);
        for (int64_t row = query_start[s]; row < end; row += rows_per_block)
            blocks.push_back({s, row, std::min(rows_per_block, end - row), first_position + row - query_start[s], 0,
                              args.num_kv_heads});
    }
    return blocks;
}

// True if the blocks are too few to fill the threads: then each span of a block is a task.
bool is_by_span(int64_t num_blocks, int64_t num_queries, int threads) {
    return threads > 1 && num_blocks < 2 * threads && num_queries <= QUERIES_PER_SPAN;
}

// Return the number of KV heads that a task takes. Caches are read in the longest runs with all heads, whose keys of
// one position lie side by side; but every thread should get TASKS_PER_THREAD tasks.
int64_t heads_per_task(const AttentionArgs& args, const std::vector<RowBlock>& rows, int threads) {
    const int64_t G = args.num_kv_heads, queries = most_queries(args, rows) / G;
    int64_t num_spans = 0;
    for (const RowBlock& block : rows) num_spans += end_span(block) - first_span(args, block);
    for (int64_t heads = G; heads > 1; --heads) {
        if (G % heads || heads * queries > QUERIES_OF_HEADS) continue;
        const int64_t num_blocks = rows.size() * (G / heads);
        const bool by_span = is_by_span(num_blocks, heads * queries, threads);
        const int64_t num_tasks = by_span ? num_spans * (G / heads) : num_blocks;
        if (threads == 1 || num_tasks >= TASKS_PER_THREAD * threads) return heads;
    }
    return 1;
}

// Divide blocks of all KV heads into blocks of `heads` KV heads, adjacent in the list. Expensive blocks (many visible
// positions) come first.
std::vector<RowBlock> divide_heads(const AttentionArgs& args, const std::vector<RowBlock>& rows, int64_t heads) {
    std::vector<RowBlock> blocks;
    for (RowBlock block : rows) {
        block.num_kv_heads = heads;
        for (block.kv_head = 0; block.kv_head < args.num_kv_heads; block.kv_head += heads) blocks.push_back(block);
    }
    const auto cost = [&args](const RowBlock& block) {
        return block.num_rows * (block.position + block.num_rows - args.first_visible(block.position));
    };
    std::stable_sort(blocks.begin(), blocks.end(),
                     [&](const RowBlock& a, const RowBlock& b) { return cost(a) > cost(b); });
    return blocks;
}

// Executes one call of smoe_attention.
class Attention {
  public:
    Attention(Pool& pool, int isa, const AttentionArgs& args, std::vector<RowBlock> blocks)
        : pool_(pool), isa_(isa), args_(args), blocks_(std::move(blocks)), max_queries_(most_queries(args, blocks_)),
          partials_floats_(max_queries_ * partial_floats(args.head_dim)),
          span_floats_(span_scratch_floats(args.head_dim, max_queries_)) {}

    // The merge order of spans is always the same.
    void run() { is_by_span(blocks_.size(), max_queries_, pool_.threads()) ? by_span() : by_block(); }

  private:
    int64_t num_queries(const RowBlock& block) const { return smoe::num_queries(args_, block); }
    int64_t first_span(const RowBlock& block) const { return smoe::first_span(args_, block); }

    // Run body(task, next, memory) for every task. `next` is what the thread's next task reads first, given by
    // first_read(task); `memory` has `floats` floats that no concurrent task uses.
    template <class FirstRead, class Body>
    void for_tasks(int64_t num_tasks, int64_t floats, float* memory, FirstRead&& first_read, Body&& body) {
        std::atomic<int64_t> unclaimed{0};
        pool_.parallel_for(std::min<int64_t>(pool_.threads(), num_tasks), [&](int64_t worker) {
            int64_t task = unclaimed++;
            if (task < num_tasks) KvPrefetcher(first_read(task).start(), 1).step();
            while (task < num_tasks) {
                const int64_t next = unclaimed++;
                body(task, next < num_tasks ? first_read(next) : KvPrefetchSpan(), memory + worker * floats);
                task = next;
            }
        });
    }

    KvPrefetchSpan prefetch(const RowBlock& block, int64_t span) const { return {args_, block, span * SPAN}; }

    float* scratch(int64_t floats) { return reinterpret_cast<float*>(pool_.scratch(floats * sizeof(float))); }

    void start(const RowBlock& block, float* partials) const {
        for (int64_t i = 0; i < num_queries(block); ++i) partials[i * partial_floats(args_.head_dim) + 1] = 0;
    }

    void attend_span(const RowBlock& block, int64_t span, const KvPrefetchSpan& prefetch, float* partials,
                     float* memory) const {
        SMOE_CALL(isa_, attend_span(args_, block, span * SPAN, prefetch, partials, memory));
    }

    void merge(const RowBlock& block, float* into, const float* later) const {
        SMOE_CALL(isa_, merge_partials(args_.head_dim, num_queries(block), into, later));
    }

    void finish(const RowBlock& block, const float* partials) const {
        SMOE_CALL(isa_, finish_attention(args_, block, partials));
    }

    void by_block() {
        const int64_t floats = 2 * partials_floats_ + span_floats_;
        const auto first_read = [&](int64_t task) { return prefetch(blocks_[task], first_span(blocks_[task])); };
        for_tasks(
            blocks_.size(), floats, scratch(pool_.threads() * floats), first_read,
            [&](int64_t task, const KvPrefetchSpan& next, float* memory) { attend(blocks_[task], next, memory); });
    }

    // Attend a block from the first span to the last.
    void attend(const RowBlock& block, const KvPrefetchSpan& next, float* memory) {
        float *merged = memory, *latest = merged + partials_floats_, *rest = latest + partials_floats_;
        start(block, merged);
        for (int64_t span = first_span(block), end = end_span(block); span < end; ++span) {
            attend_span(block, span, span + 1 < end ? prefetch(block, span + 1) : next, latest, rest);
            merge(block, merged, latest);
        }
        finish(block, merged);
    }

    void by_span() {
        std::vector<int64_t> first_task{0}, owners;  // block b owns tasks first_task[b] .. first_task[b + 1] - 1
        for (const RowBlock& block : blocks_) {
            owners.insert(owners.end(), end_span(block) - first_span(block), first_task.size() - 1);
            first_task.push_back(owners.size());
        }
        const int64_t num_tasks = owners.size();
        float* partials = scratch(num_tasks * partials_floats_ + pool_.threads() * span_floats_);
        const auto span_of = [&](int64_t task) {
            return first_span(blocks_[owners[task]]) + task - first_task[owners[task]];
        };
        const auto first_read = [&](int64_t task) { return prefetch(blocks_[owners[task]], span_of(task)); };
        for_tasks(num_tasks, span_floats_, partials + num_tasks * partials_floats_, first_read,
                  [&](int64_t task, const KvPrefetchSpan& next, float* memory) {
                      attend_span(blocks_[owners[task]], span_of(task), next, partials + task * partials_floats_,
                                  memory);
                  });
        for (size_t b = 0; b < blocks_.size(); ++b) {
            float* merged = partials + first_task[b] * partials_floats_;
            for (int64_t task = first_task[b] + 1; task < first_task[b + 1]; ++task)
                merge(blocks_[b], merged, partials + task * partials_floats_);
            finish(blocks_[b], merged);
        }
    }

    Pool& pool_;
    const int isa_;
    const AttentionArgs& args_;
    std::vector<RowBlock> blocks_;
    const int64_t max_queries_;
    const int64_t partials_floats_;  // floats of one block's partials over one span
    const int64_t span_floats_;      // scratch floats of attend_span
};

}  // namespace
}  // namespace smoe

using namespace smoe;

void smoe_rms_norm(smoe_pool* pool, int isa, int dtype, const void* x, const void* weight, void* y, int64_t T,
                   int64_t D, float eps) {
    const NormArgs args{dtype, x, weight, y, D, eps};
    for_rows(pool_of(pool), T, D, [&](int64_t first, int64_t last) { SMOE_CALL(isa, rms_norm(args, first, last)); });
}

void smoe_add_rms_norm(smoe_pool* pool, int isa, int dtype, void* x, const void* y, const void* weight, void* out,
                       int64_t T, int64_t D, float eps) {
    const NormArgs args{dtype, x, weight, out, D, eps};
    for_rows(pool_of(pool), T, D, [&](int64_t first, int64_t last) {
        SMOE_CALL(isa, add(dtype, x, y, first * D, last * D));
        SMOE_CALL(isa, rms_norm(args, first, last));
    });
}

void smoe_rotary_angles(smoe_pool* pool, int isa, const int64_t* positions, const float* inverse_frequency, float* cos,
                        float* sin, int64_t T, int64_t K, float factor) {
    const int64_t pairs = K / 2;
    for_rows(pool_of(pool), T, 16 * pairs, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row)
            SMOE_CALL(isa, rotary_angles(positions[row], inverse_frequency, pairs, factor, cos + row * pairs,
                                         sin + row * pairs));
    });
}

int smoe_rope_and_store_kv(smoe_pool* pool, int isa, int dtype, int q_dtype, int kv_dtype, const void* qkv, void* q_out,
                           void* k_cache, void* v_cache, const float* cos, const float* sin, const int64_t* slots,
                           int64_t T, int64_t H, int64_t G, int64_t K, int64_t block_size) {
    return catch_errors([&] {
        auto* spare = reinterpret_cast<float*>(pool_of(pool).scratch(T * 2 * K * sizeof(float)));
        const RotationArgs args{dtype, q_dtype, kv_dtype, qkv, q_out, k_cache, v_cache,   cos,
                                sin,   slots,   spare,    H,   G,     K,       block_size};
        for_rows(pool_of(pool), T, (H + 2 * G) * K,
                 [&](int64_t first, int64_t last) { SMOE_CALL(isa, rope_and_store_kv(args, first, last)); });
    });
}

int smoe_attention(smoe_pool* pool, int isa, int dtype, int out_dtype, int kv_dtype, const void* q, const void* k_cache,
                   const void* v_cache, void* out, const int32_t* query_start, const int32_t* context_len,
                   const int32_t* block_tables, int64_t S, int64_t M, int64_t block_size, int64_t H, int64_t G,
                   int64_t K, int64_t window) {
    const AttentionArgs args{dtype,        out_dtype, kv_dtype,   q, k_cache, v_cache, out,
                             block_tables, M,         block_size, H, G,       K,       window};
    return catch_errors([&] {
        const int threads = pool_of(pool).threads();
        const int64_t queries = queries_per_block(args, isa, query_start[S], threads);
        const std::vector<RowBlock> rows = make_row_blocks(args, query_start, context_len, S, queries);
        const int64_t heads = heads_per_task(args, rows, threads);
        Attention(pool_of(pool), isa, args, divide_heads(args, rows, heads)).run();
    });
}
