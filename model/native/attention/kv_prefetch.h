// Software prefetch of keys and values.
#pragma once

#include <algorithm>
#include <cstdint>

#include "attention/attention.h"

namespace smoe {

// Keys and values to prefetch: some KV heads at the positions of a span that a row block sees.
struct KvPrefetchSpan {
    KvPrefetchSpan() = default;  // empty

    // The block's KV heads over the span that starts at span_start.
    KvPrefetchSpan(const AttentionArgs& args, const RowBlock& block, int64_t span_start)
        : args(&args), table(args.block_tables + block.sequence * args.max_blocks), kv_head(block.kv_head),
          heads(block.num_kv_heads), begin(std::max(span_start, args.first_visible(block.position))),
          end(std::min(span_start + SPAN, block.position + block.num_rows)) {}

    // Part i when the positions are divided into `count` equal parts.
    KvPrefetchSpan part(int64_t i, int64_t count) const {
        KvPrefetchSpan part = *this;
        part.begin = begin + (end - begin) * i / count;
        part.end = begin + (end - begin) * (i + 1) / count;
        return part;
    }

    // What is read first.
    KvPrefetchSpan start() const {
        KvPrefetchSpan start = *this;
        start.heads = std::min<int64_t>(heads, 1);
        start.end = std::min(end, begin + 64);
        return start;
    }

    const AttentionArgs* args = nullptr;
    const int32_t* table = nullptr;
    int64_t kv_head = 0, heads = 0;
    int64_t begin = 0, end = 0;  // positions
};

// Issues the prefetches of a KvPrefetchSpan in equal parts, one part per step of other work.
//
// What lies together is the keys, or the values, of some heads at one position, or in one tile of positions: a chunk.
// Chunks are scattered over memory, where no hardware prefetcher follows them. A core keeps about 20 requests in flight
// and stalls when more are issued at once. Therefore a chunk is requested in pieces of at most PIECE_LINES cache lines.
class KvPrefetcher {
  public:
    // The last of `num_steps` steps issues the last prefetch.
    KvPrefetcher(const KvPrefetchSpan& prefetch, int64_t num_steps) : prefetch_(prefetch), num_steps_(num_steps) {
        if (prefetch.begin >= prefetch.end || num_steps <= 0) return;
        const AttentionArgs& args = *prefetch.args;
        positions_ = args.in_tiles() ? KV_TILE : 1;
        const int64_t head_bytes = positions_ * args.kv_row_bytes();
        stride_ = args.num_kv_heads * head_bytes;
        first_byte_ = prefetch.kv_head * head_bytes;
        num_bytes_ = prefetch.heads * head_bytes;
        chunk_ = prefetch.begin / positions_;
        const int64_t num_chunks = (prefetch.end + positions_ - 1) / positions_ - chunk_;
        left_ = pieces_ = 2 * num_chunks * ((num_bytes_ + PIECE - 1) / PIECE);
        place();
    }

    __attribute__((always_inline)) void step(int64_t count = 1) {
        due_ += count * pieces_;
        if (due_ >= num_steps_) issue();
    }

  private:
    static constexpr int64_t LINE_BYTES = 64, PIECE_LINES = 8, PIECE = PIECE_LINES * LINE_BYTES;

    // Inlined, so that no caller saves its vector registers.
    __attribute__((always_inline)) void issue() {
        for (; due_ >= num_steps_ && left_; due_ -= num_steps_) prefetch_piece();
        if (!left_) pieces_ = due_ = 0;
    }

    __attribute__((always_inline)) void prefetch_piece() {
        const char* end = std::min(next_ + PIECE, end_);
        for (; next_ < end; next_ += LINE_BYTES) __builtin_prefetch(next_, 0, 3);
        if (--left_ == 0 || next_ < end_) return;
        chunk_ += is_values_;
        is_values_ = !is_values_;
        place();
    }

    // Begin the chunk.
    __attribute__((always_inline)) void place() {
        const AttentionArgs& args = *prefetch_.args;
        const int64_t per_block = args.block_size / positions_;
        const int64_t number = prefetch_.table[chunk_ / per_block] * per_block + chunk_ % per_block;
        const void* cache = is_values_ ? args.v_cache : args.k_cache;
        next_ = static_cast<const char*>(cache) + number * stride_ + first_byte_;
        end_ = next_ + num_bytes_;
    }

    const KvPrefetchSpan prefetch_;
    const int64_t num_steps_;
    int64_t pieces_ = 0;      // to request in all; 0 when all are
    int64_t left_ = 0;        // pieces still to request
    int64_t due_ = 0;         // num_steps times the pieces that are due and not yet requested
    int64_t positions_ = 1;   // of a chunk
    int64_t stride_ = 0;      // bytes from a chunk of keys to the next in a block
    int64_t first_byte_ = 0;  // of the heads among all heads
    int64_t num_bytes_ = 0;   // of a chunk
    int64_t chunk_ = 0;       // index of the chunk among the sequence's
    bool is_values_ = false;  // the chunk is of values
    const char* next_ = nullptr;
    const char* end_ = nullptr;  // of the chunk
};

}  // namespace smoe
