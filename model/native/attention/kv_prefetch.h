// Keys and values that are asked for before they are wanted.
#pragma once

#include <algorithm>
#include <cstdint>

#include "attention/attention.h"

namespace smoe {

// What some KV heads have at the positions that a row block sees of a span.
struct KvPrefetchSpan {
    KvPrefetchSpan() = default;  // of nothing

    // Of `heads` KV heads from the block's on, and the span from position span_start on.
    KvPrefetchSpan(const AttentionArgs& args, const RowBlock& block, int64_t heads, int64_t span_start)
        : args(&args), table(args.block_tables + block.sequence * args.max_blocks), kv_head(block.kv_head),
          heads(heads), begin(std::max(span_start, args.first_visible(block.position))),
          end(std::min(span_start + SPAN, block.position + block.num_rows)) {}

    // The positions of part i of `count` equal ones.
    KvPrefetchSpan part(int64_t i, int64_t count) const {
        KvPrefetchSpan part = *this;
        part.begin = begin + (end - begin) * i / count;
        part.end = begin + (end - begin) * (i + 1) / count;
        return part;
    }

    const AttentionArgs* args = nullptr;
    const int32_t* table = nullptr;
    int64_t kv_head = 0, heads = 0;
    int64_t begin = 0, end = 0;  // positions
};

// Asks memory for them: in equal parts, one with each step of other work.
//
// A head's numbers of one position are two or four cache lines among those of other heads, in blocks that lie anywhere:
// no hardware prefetcher follows them. A core keeps some 20 requests in flight; who makes more of them at once stands
// still until memory has taken them. So a step asks for one position's keys, or its values, at a time.
class KvPrefetcher {
  public:
    // To be done with the last of `num_steps` steps.
    KvPrefetcher(const KvPrefetchSpan& ahead, int64_t num_steps)
        : ahead_(ahead), num_steps_(num_steps), num_rows_(2 * (ahead.end - ahead.begin)), left_(num_rows_) {
        if (!left_) return;
        const AttentionArgs& args = *ahead.args;
        const int64_t row_bytes = args.kv_row_bytes();
        position_bytes_ = args.num_kv_heads * row_bytes;
        first_byte_ = ahead.kv_head * row_bytes;
        num_bytes_ = ahead.heads * row_bytes;
        index_ = ahead.begin / args.block_size;
        slot_ = ahead.begin % args.block_size;
    }

    void step() {
        if (!left_) return;
        for (due_ += num_rows_; due_ >= num_steps_ && left_; due_ -= num_steps_) prefetch_row();
    }

  private:
    void prefetch_row() {
        const AttentionArgs& args = *ahead_.args;
        const void* cache = is_values_ ? args.v_cache : args.k_cache;
        const int64_t offset = (ahead_.table[index_] * args.block_size + slot_) * position_bytes_ + first_byte_;
        for (int64_t byte = 0; byte < num_bytes_; byte += 64)
            __builtin_prefetch(static_cast<const char*>(cache) + offset + byte, 0, 2);
        --left_;
        if (is_values_ && ++slot_ == args.block_size) slot_ = 0, ++index_;
        is_values_ = !is_values_;
    }

    const KvPrefetchSpan ahead_;
    const int64_t num_steps_;
    const int64_t num_rows_;  // a row: one position's keys, or its values
    int64_t left_;            // of the rows
    int64_t due_ = 0;         // num_steps times the rows that should have been asked for by now, and were not
    int64_t position_bytes_ = 0;
    int64_t first_byte_ = 0;  // of the heads, in a position's
    int64_t num_bytes_ = 0;
    int64_t index_ = 0, slot_ = 0;  // of the next row: place in the table, and in the block
    bool is_values_ = false;
};

}  // namespace smoe
