// Writes of one row's keys and values to the caches. Included by kernel files only.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "attention/attention.h"
#include "attention/kv_row.h"
#include "attention/kv_tile.h"
#include "attention/norm_rope.h"
#include "simd/vec.h"
#include "simd/vec_tail.h"

namespace smoe {
namespace SMOE_ISA {

// Requests the cache lines that a row's keys and values are written to, some with each step of other work.
//
// In a tile one position's keys touch every line: 64 lines a head in bfloat16, which no other access has fetched.
class StorePrefetcher {
  public:
    StorePrefetcher() = default;  // nothing to request

    // Lines for `row` within num_steps steps; none if the row before is written to the same tiles, or into rows.
    StorePrefetcher(const RotationArgs& args, int64_t row, bool is_first, int64_t num_steps) {
        const int64_t tile = args.slots[row] / KV_TILE, K = args.head_dim;
        if (!kv_in_tiles(args.kv_dtype, args.block_size)) return;
        if (!is_first && args.slots[row - 1] / KV_TILE == tile) return;
        const int64_t row_bytes = kv_row_bytes(args.kv_dtype, K), pair_bytes = args.kv_dtype == INT8 ? 2 : 4;
        tile_bytes_ = KV_TILE * row_bytes;
        keys_ = static_cast<const char*>(args.k_cache) + tile * args.num_kv_heads * tile_bytes_;
        values_ = static_cast<const char*>(args.v_cache) + tile * args.num_kv_heads * tile_bytes_ +
                  args.slots[row] % KV_TILE / 2 * K * pair_bytes;
        key_lines_ = (tile_bytes_ + LINE_BYTES - 1) / LINE_BYTES;
        lines_ = key_lines_ + (K * pair_bytes + LINE_BYTES - 1) / LINE_BYTES;
        left_ = args.num_kv_heads * lines_;
        lines_per_step_ = (left_ + num_steps - 1) / num_steps;
    }

    void step() { request(lines_per_step_); }
    void finish() { request(left_); }

  private:
    static constexpr int64_t LINE_BYTES = 64;

    void request(int64_t count) {
        for (count = std::min(count, left_), left_ -= count; count; --count) {
            const char* line =
                next_ < key_lines_ ? keys_ + next_ * LINE_BYTES : values_ + (next_ - key_lines_) * LINE_BYTES;
            __builtin_prefetch(line, 1, 3);
            if (++next_ == lines_) next_ = 0, keys_ += tile_bytes_, values_ += tile_bytes_;
        }
    }

    const char* keys_ = nullptr;    // of a head
    const char* values_ = nullptr;  // of a head
    int64_t tile_bytes_ = 0;
    int64_t key_lines_ = 0;
    int64_t lines_ = 0;  // of a head
    int64_t next_ = 0;   // line of a head
    int64_t left_ = 0;
    int64_t lines_per_step_ = 0;
};

// Destination of one row's keys or values in one cache: G rows, or the row's place in G tiles.
template <class T, class Number>
class CacheRows {
  public:
    CacheRows(const RotationArgs& args, void* cache, int64_t row, bool is_keys, float* spare)
        : head_dim_(args.head_dim), row_bytes_(kv_row_bytes(args.kv_dtype, args.head_dim)),
          in_tiles_(kv_in_tiles(args.kv_dtype, args.block_size)), is_keys_(is_keys), place_(args.slots[row] % KV_TILE),
          head_bytes_((in_tiles_ ? KV_TILE : 1) * row_bytes_),
          heads_(static_cast<char*>(cache) +
                 args.slots[row] / (in_tiles_ ? KV_TILE : 1) * args.num_kv_heads * head_bytes_),
          spare_(spare) {}

    // Buffer for K numbers before they are stored: the cache row itself if it has the same type.
    T* target(int64_t head) const {
        if constexpr (std::is_same_v<T, Number>)
            if (!in_tiles_) return reinterpret_cast<T*>(heads_ + head * head_bytes_);
        return reinterpret_cast<T*>(spare_);
    }

    void write(int64_t head, const T* numbers) const {
        char* to = heads_ + head * head_bytes_;
        if (!in_tiles_) return write_row(to, numbers);
        if constexpr (std::is_same_v<T, Number>) {
            write_to_tile<Number>(to, place_, reinterpret_cast<const char*>(numbers), head_dim_, is_keys_);
        } else {
            char* row = reinterpret_cast<char*>(spare_ + head_dim_);
            write_row(row, numbers);
            write_to_tile<Number>(to, place_, row, head_dim_, is_keys_);
        }
    }

  private:
    // Write K numbers in the form of attention/kv_row.h.
    void write_row(char* to, const T* numbers) const {
        const auto number = [&](int64_t k) { return load_first(numbers + k, head_dim_ - k); };
        if constexpr (std::is_same_v<Number, int8_t>)
            write_int8_row(to, head_dim_, number);
        else if constexpr (!std::is_same_v<T, Number>)
            for (int64_t k = 0; k < head_dim_; k += LANES)
                store_first(reinterpret_cast<Number*>(to) + k, number(k), head_dim_ - k);
        else if (static_cast<const void*>(numbers) != to)
            std::memcpy(to, numbers, row_bytes_);
    }

    const int64_t head_dim_;
    const int64_t row_bytes_;
    const bool in_tiles_;
    const bool is_keys_;
    const int64_t place_;       // in the tile
    const int64_t head_bytes_;  // of a head's row or tile
    char* const heads_;
    float* const spare_;  // K numbers before they are stored, then K numbers in the form of the cache
};

}  // namespace SMOE_ISA
}  // namespace smoe
