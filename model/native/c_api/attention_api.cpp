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

constexpr int64_t QUERIES_PER_BLOCK = 64;  // amortizes the unpacking of keys and values
constexpr int64_t TASKS_PER_THREAD = 4;

// Divide every sequence's rows into blocks, one per KV head, adjacent in the list. Expensive blocks (many visible
// positions) come first.
std::vector<RowBlock> make_row_blocks(const AttentionArgs& args, const int32_t* query_start, const int32_t* context_len,
                                      int64_t num_sequences) {
    const int64_t rows_per_block = std::max<int64_t>(1, QUERIES_PER_BLOCK / args.queries_per_row());
    std::vector<RowBlock> blocks;
    for (int64_t s = 0; s < num_sequences; ++s) {
        const int64_t end = query_start[s + 1], first_position = context_len[s] - (end - query_start[s]);
        for (int64_t row = query_start[s]; row < end; row += rows_per_block)
            for (int64_t kv_head = 0; kv_head < args.num_kv_heads; ++kv_head)
                blocks.push_back(
                    {s, row, std::min(rows_per_block, end - row), first_position + row - query_start[s], kv_head});
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
        : pool_(pool), isa_(isa), args_(args), blocks_(std::move(blocks)),
          max_queries_(args.queries_per_row() * max_rows(blocks_)),
          partials_floats_(max_queries_ * partial_floats(args.head_dim)),
          span_floats_(span_scratch_floats(args.head_dim, max_queries_)) {}

    // With too few blocks to fill the threads, each span of a block is a task. The merge order of spans stays the same.
    void run() {
        const bool fill = static_cast<int64_t>(blocks_.size()) >= 2 * pool_.threads() || pool_.threads() == 1;
        fill || max_queries_ > QUERIES_PER_BLOCK / 2 ? by_block() : by_span();
    }

  private:
    static int64_t max_rows(const std::vector<RowBlock>& blocks) {
        int64_t rows = 1;
        for (const RowBlock& block : blocks) rows = std::max(rows, block.num_rows);
        return rows;
    }

    int64_t num_queries(const RowBlock& block) const { return block.num_rows * args_.queries_per_row(); }
    int64_t first_span(const RowBlock& block) const { return args_.first_visible(block.position) / SPAN; }
    int64_t end_span(const RowBlock& block) const { return ceil_div(block.position + block.num_rows, SPAN); }

    // Run body(task, next, memory) for every task. `next` is what the thread's next task reads first, given by
    // first_read(task); `memory` has `floats` floats that no concurrent task uses.
    template <class FirstRead, class Body>
    void for_tasks(int64_t num_tasks, int64_t floats, float* memory, FirstRead&& first_read, Body&& body) {
        std::atomic<int64_t> unclaimed{0};
        pool_.parallel_for(std::min<int64_t>(pool_.threads(), num_tasks), [&](int64_t worker) {
            int64_t task = unclaimed++;
            if (task < num_tasks) KvPrefetcher(first_read(task), 1).step();
            while (task < num_tasks) {
                const int64_t next = unclaimed++;
                body(task, next < num_tasks ? first_read(next) : KvPrefetchSpan(), memory + worker * floats);
                task = next;
            }
        });
    }

    KvPrefetchSpan prefetch(const RowBlock& block, int64_t heads, int64_t span) const {
        return {args_, block, heads, span * SPAN};
    }

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

    // With enough rows, one task handles all KV heads of the same rows if the keys of one position lie side by side.
    void by_block() {
        const int64_t num_blocks = blocks_.size(), G = args_.num_kv_heads;
        const bool is_alone = num_blocks / G < TASKS_PER_THREAD * pool_.threads();
        const int64_t heads = is_alone ? 1 : G;
        const int64_t floats = (heads + 1) * partials_floats_ + span_floats_;
        const auto first_read = [&](int64_t task) {
            const RowBlock& block = blocks_[task * heads];
            return prefetch(block, heads, first_span(block));
        };
        for_tasks(num_blocks / heads, floats, scratch(pool_.threads() * floats), first_read,
                  [&](int64_t task, const KvPrefetchSpan& next, float* memory) {
                      attend(&blocks_[task * heads], heads, next, memory);
                  });
    }

    // Attend `count` KV heads of the same rows, from the first span to the last.
    void attend(const RowBlock* blocks, int64_t count, const KvPrefetchSpan& next, float* memory) {
        float *merged = memory, *latest = merged + count * partials_floats_, *rest = latest + partials_floats_;
        for (int64_t i = 0; i < count; ++i) start(blocks[i], merged + i * partials_floats_);
        for (int64_t span = first_span(*blocks), end = end_span(*blocks); span < end; ++span) {
            const KvPrefetchSpan after = span + 1 < end ? prefetch(*blocks, count, span + 1) : next;
            for (int64_t i = 0; i < count; ++i) {
                attend_span(blocks[i], span, after.part(i, count), latest, rest);
                merge(blocks[i], merged + i * partials_floats_, latest);
            }
        }
        for (int64_t i = 0; i < count; ++i) finish(blocks[i], merged + i * partials_floats_);
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
        const auto first_read = [&](int64_t task) { return prefetch(blocks_[owners[task]], 1, span_of(task)); };
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
                        float* sin, int64_t T, int64_t K) {
    const int64_t pairs = K / 2;
    for_rows(pool_of(pool), T, 16 * pairs, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row)
            SMOE_CALL(isa,
                      rotary_angles(positions[row], inverse_frequency, pairs, cos + row * pairs, sin + row * pairs));
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
    return catch_errors(
        [&] { Attention(pool_of(pool), isa, args, make_row_blocks(args, query_start, context_len, S)).run(); });
}
