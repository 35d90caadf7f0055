// One KV head's keys and values of one span, read through the block table. Included by kernel files only.
#pragma once

#include "attention.h"
#include "kv_row.h"
#include "transpose.h"
#include "vec.h"
#include "vec_part.h"

namespace smoe {
namespace SMOE_ISA {

// Positions begin .. end - 1 of the span that starts at span_start; no other slot is read.
//
// A head's numbers of one position are two or four cache lines among those of other heads, which no hardware prefetcher
// follows; so all of them are asked for at once, and arrive while the first are worked on.
template <class Number>
class SpanCache {
  public:
    SpanCache(const AttentionArgs& args, const RowBlock& block, int64_t span_start, int64_t begin, int64_t end)
        : args_(args), begin_(begin), end_(end) {
        const int64_t row_bytes = kv_row_bytes<Number>(args.head_dim);
        const int32_t* table = args.block_tables + block.sequence * args.max_blocks;
        int64_t index = (span_start + begin) / args.block_size, slot = (span_start + begin) % args.block_size;
        for (int64_t j = begin; j < end; ++j) {
            const int64_t row = table[index] * args.block_size + slot;
            offsets_[j] = (row * args.num_kv_heads + block.kv_head) * row_bytes;
            prefetch(args.k_cache, offsets_[j], row_bytes);
            if (++slot == args.block_size) slot = 0, ++index;
        }
        for (int64_t j = begin; j < end; ++j) prefetch(args.v_cache, offsets_[j], row_bytes);
    }

    // Keys of positions first .. first + WIDTH - 1, WIDTH a multiple of LANES -> panel [K, WIDTH]; zeros where there
    // is none.
    template <int WIDTH>
    void pack_keys(int64_t first, float* panel) const {
        for (int64_t group = 0; group < WIDTH; group += LANES)
            for (int64_t k = 0; k < args_.head_dim; k += LANES) {
                Vec square[LANES];
#pragma GCC unroll 16
                for (int i = 0; i < LANES; ++i) square[i] = key(first + group + i, k);
                transpose(square);
                const int64_t dims = args_.head_dim - k;
#pragma GCC unroll 16
                for (int i = 0; i < LANES; ++i)
                    if (i < dims) store(panel + (k + i) * WIDTH + group, square[i]);
            }
    }

    // Values of positions first .. last - 1 -> panel [last - first, padded K]; zeros behind dim K.
    void pack_values(int64_t first, int64_t last, float* panel) const {
        const int64_t stride = padded_dim(args_.head_dim);
        for (int64_t j = first; j < last; ++j) {
            const KvRow<Number> values(static_cast<const char*>(args_.v_cache) + offsets_[j], args_.head_dim);
            for (int64_t k = 0; k < stride; k += LANES)
                store(panel + (j - first) * stride + k, k < args_.head_dim ? values.load(k) : Vec{});
        }
    }

  private:
    static void prefetch(const void* cache, int64_t offset, int64_t row_bytes) {
        const char* row = static_cast<const char*>(cache) + offset;
        for (int64_t byte = 0; byte < row_bytes; byte += 64) __builtin_prefetch(row + byte, 0, 2);
    }

    Vec key(int64_t j, int64_t k) const {
        if (j < begin_ || j >= end_) return Vec{};
        return KvRow<Number>(static_cast<const char*>(args_.k_cache) + offsets_[j], args_.head_dim).load(k);
    }

    const AttentionArgs& args_;
    const int64_t begin_;
    const int64_t end_;
    int64_t offsets_[SPAN];  // in bytes, from the start of a cache
};

}  // namespace SMOE_ISA
}  // namespace smoe
