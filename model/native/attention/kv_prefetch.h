// Software prefetch of keys and values.
#pragma once

#include <algorithm>
#include <cstdint>

#include "attention/attention.h"

namespace smoe {

// Keys and values to prefetch: some KV heads at the positions of a span that a row block sees.
struct KvPrefetchSpan {
    KvPrefetchSpan() = default;  // empty

    // `heads` KV heads starting at the block's, over the span that starts at span_start.
    KvPrefetchSpan(const AttentionArgs& args, const RowBlock& block, int64_t heads, int64_t span_start)
        : args(&args), table(args.block_tables + block.sequence * args.max_blocks), kv_head(block.kv_head),
          heads(heads), begin(std::max(span_start, args.first_visible(block.position))),
          end(std::min(span_start + SPAN, block.position + block.num_rows)) {}

    // Part i when the positions are divided into `count` equal parts.
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

// Issues the prefetches of a KvPrefetchSpan in equal parts, one part per step of other work.
//
// One position of a head occupies two or four cache lines between those of other heads, in blocks scattered over
// memory: no hardware prefetcher follows them. A core keeps about 20 requests in flight and stalls when more are issued
// at once. Therefore each step requests the keys, or the values, of one position.
class KvPrefetcher {
  public:
    // The last of `num_steps` steps issues the last prefetch.
    KvPrefetcher(const KvPrefetchSpan& prefetch, int64_t num_steps)
        : prefetch_(prefetch), num_steps_(num_steps), num_rows_(2 * (prefetch.end - prefetch.begin)), left_(num_rows_) {
        if (!left_) return;
        const AttentionArgs& args = *prefetch.args;
        const int64_t row_bytes = args.kv_row_bytes();
        position_bytes_ = args.num_kv_heads * row_bytes;
        first_byte_ = prefetch.kv_head * row_bytes;
        num_bytes_ = prefetch.heads * row_bytes;
        index_ = prefetch.begin / args.block_size;
        slot_ = prefetch.begin % args.block_size;
    }

    void step() {
        if (!left_) return;
        for (due_ += num_rows_; due_ >= num_steps_ && left_; due_ -= num_steps_) prefetch_row();
    }

  private:
    void prefetch_row() {
        const AttentionArgs& args = *prefetch_.args;
        const void* cache = is_values_ ? args.v_cache : args.k_cache;
        const int64_t offset = (prefetch_.table[index_] * args.block_size + slot_) * position_bytes_ + first_byte_;
        for (int64_t byte = 0; byte < num_bytes_; byte += 64)
            __builtin_prefetch(static_cast<const char*>(cache) + offset + byte, 0, 2);
        --left_;
        if (is_values_ && ++slot_ == args.block_size) slot_ = 0, ++index_;
        is_values_ = !is_values_;
    }

    const KvPrefetchSpan prefetch_;
    const int64_t num_steps_;
    const int64_t num_rows_;  // a row is the keys, or the values, of one position
    int64_t left_;            // rows still to prefetch
    int64_t due_ = 0;         // num_steps times the rows that are due and not yet requested
    int64_t position_bytes_ = 0;
    int64_t first_byte_ = 0;  // offset of the heads within a position
    int64_t num_bytes_ = 0;
    int64_t index_ = 0, slot_ = 0;  // next row: index in the block table, slot in the block
    bool is_values_ = false;
};

}  // namespace smoe
