// Reads the keys and values of one KV head and one span from rows, through the block table. Included by kernel files
// only.
#pragma once

#include "attention/attention.h"
#include "attention/bf16_dot_products.h"
#include "attention/kv_row.h"
#include "attention/kv_tile_prefetch.h"
#include "attention/span_softmax.h"
#include "simd/transpose.h"
#include "simd/vec.h"
#include "simd/vec_tail.h"

namespace smoe {
namespace SMOE_ISA {

// Number of LANES x LANES squares of words in a panel of `width` keys.
inline int64_t key_squares(int64_t width, int64_t words) { return width / LANES * ((words + LANES - 1) / LANES); }

// Positions begin .. end - 1 of the span that starts at span_start; reads no other slot. Packing one square of keys
// or one position's values counts as one step of `prefetcher`.
template <class Number>
class KvSpan {
  public:
    using Prefetcher = KvSpanPrefetcher;

    KvSpan(const AttentionArgs& args, const RowBlock& block, int64_t span_start, int64_t begin, int64_t end)
        : args_(args), begin_(begin), end_(end) {
        const int32_t* table = args.block_tables + block.sequence * args.max_blocks;
        int64_t index = (span_start + begin) / args.block_size, slot = (span_start + begin) % args.block_size;
        for (int64_t j = begin; j < end; ++j) {
            const int64_t row = table[index] * args.block_size + slot;
            offsets_[j] = (row * args.num_kv_heads + block.kv_head) * args.kv_row_bytes();
            if (++slot == args.block_size) slot = 0, ++index;
        }
    }

    // Pack keys of positions first .. first + WIDTH - 1 (WIDTH a multiple of LANES) into panel [K, WIDTH]; zeros where
    // a position is absent.
    template <int WIDTH>
    void pack_keys(int64_t first, float* panel, Prefetcher& prefetcher) const {
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
                prefetcher.step();
            }
    }

#if defined(__AVX512BF16__)
    // Return the keys of positions first .. first + TILE_WIDTH - 1 as columns of pairs, packed in `panel`; zeros from
    // K/2 to a multiple of LANES. For even K. int8 rows give their bytes, which bfloat16 holds exactly, without their
    // scale.
    KeyColumns<uint32_t> key_columns(int64_t head, int64_t first, uint32_t* panel) const {
        KeyColumns<uint32_t> columns{{}, TILE_WIDTH};
        for (int n = 0; n < TILE_VECS; ++n) {
            columns.groups[n] = panel + n * LANES;
            pack_key_pairs(head, first + n * LANES, panel + n * LANES);
        }
        return columns;
    }

    // Return the values of positions first .. first + 2 * depth - 1 (first even) as pairs, packed in `panel`: pairs of
    // neighbouring positions, the even one in the low half; zeros for absent positions and dims past K.
    template <bool MAY_POINT>
    ValueRows<uint32_t> value_rows(int64_t head, int64_t first, int64_t depth, uint32_t* panel) const {
        const int64_t stride = padded_dim(args_.head_dim);
        pack_value_pairs(head, first, first + 2 * depth, panel);
        ValueRows<uint32_t> values{{}, stride};
        for (const uint32_t*& run : values.runs) run = panel, panel += VALUE_RUN * stride;
        return values;
    }

    // Write the scales of the rows of `cache` at positions range.begin .. range.end - 1 to scales; 0 for absent ones.
    void scales(const void* cache, int64_t head, Range range, float* scales) const {
        for (int64_t j = range.begin; j < range.end; ++j, ++scales) {
            *scales = 0;
            if (exists(j)) std::memcpy(scales, row_of(cache, head, j) + args_.head_dim, sizeof(float));
        }
    }

    static constexpr bool HAS_PAIRS_IN_PLACE = false;
#endif

    // None: there are no tiles.
    KvTiles tiles(const void*, int64_t, int64_t) const { return {}; }

    static constexpr bool HAS_PAIRS = false;

    // Pack values of positions first .. last - 1 into panel [last - first, value_dims(K)]; zeros past dim K.
    void pack_values(int64_t first, int64_t last, float* panel, Prefetcher& prefetcher) const {
        const int64_t stride = value_dims(args_.head_dim);
        for (int64_t j = first; j < last; ++j) {
            const KvRow<Number> values(static_cast<const char*>(args_.v_cache) + offsets_[j], args_.head_dim);
            for (int64_t k = 0; k < stride; k += LANES)
                store(panel + (j - first) * stride + k, k < args_.head_dim ? values.load(k) : Vec{});
            prefetcher.step();
        }
    }

  private:
    bool exists(int64_t j) const { return j >= begin_ && j < end_; }

#if defined(__AVX512BF16__)
    // Pack the keys of LANES positions into columns [K/2 rounded up to LANES] that are TILE_WIDTH words apart.
    void pack_key_pairs(int64_t head, int64_t first, uint32_t* columns) const {
        const int64_t pairs = args_.head_dim / 2;
        for (int64_t k = 0; k < pairs; k += LANES) {
            Vec square[LANES];
            if (first >= begin_ && first + LANES <= end_ && k + LANES <= pairs) {
#pragma GCC unroll 16
                for (int i = 0; i < LANES; ++i) square[i] = (Vec)all_numbers(args_.k_cache, head, first + i, 2 * k);
            } else {
                for (int i = 0; i < LANES; ++i) square[i] = (Vec)numbers(args_.k_cache, head, first + i, 2 * k);
            }
            transpose(square);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; ++i) std::memcpy(columns + (k + i) * TILE_WIDTH, &square[i], sizeof square[i]);
        }
    }

    void pack_value_pairs(int64_t head, int64_t first, int64_t last, uint32_t* panel) const {
        const int64_t stride = padded_dim(args_.head_dim);
        const Words low = ZIPPED_LANES, high = ZIPPED_LANES + ZIPPED_HALF;
        for (int64_t j = first; j < last; j += 2, panel += stride)
            for (int64_t k = 0; k < stride; k += 2 * LANES) {
                const __m512i even = numbers(args_.v_cache, head, j, k), odd = numbers(args_.v_cache, head, j + 1, k);
                _mm512_storeu_si512(panel + k, _mm512_permutex2var_epi16(even, (__m512i)low, odd));
                _mm512_storeu_si512(panel + k + LANES, _mm512_permutex2var_epi16(even, (__m512i)high, odd));
            }
    }

    // Lane order that interleaves two vectors: first lanes 0 .. LANES - 1 of both, then the rest.
    static constexpr Words ZIPPED_LANES = {0x200000, 0x210001, 0x220002, 0x230003, 0x240004, 0x250005,
                                           0x260006, 0x270007, 0x280008, 0x290009, 0x2a000a, 0x2b000b,
                                           0x2c000c, 0x2d000d, 0x2e000e, 0x2f000f};
    static constexpr uint32_t ZIPPED_HALF = 0x100010;

    // Numbers k .. k + 2 * LANES - 1 of the row of position j, as bfloat16; zeros where absent.
    __m512i numbers(const void* cache, int64_t head, int64_t j, int64_t k) const {
        const int64_t count = exists(j) ? args_.head_dim - k : 0;
        if (count <= 0) return __m512i{};
        const __mmask32 present = count >= 2 * LANES ? ~0u : (1u << count) - 1;
        const void* row = row_of(cache, head, j) + k * sizeof(Number);
        if constexpr (sizeof(Number) == 1) return widened(_mm256_maskz_loadu_epi8(present, row));
        return _mm512_maskz_loadu_epi16(present, row);
    }

    // The same, where all of them are present.
    __m512i all_numbers(const void* cache, int64_t head, int64_t j, int64_t k) const {
        const void* row = row_of(cache, head, j) + k * sizeof(Number);
        if constexpr (sizeof(Number) == 1) return widened(_mm256_loadu_si256(static_cast<const __m256i*>(row)));
        return _mm512_loadu_si512(row);
    }

    // Row of one of the block's KV heads.
    const char* row_of(const void* cache, int64_t head, int64_t j) const {
        return static_cast<const char*>(cache) + offsets_[j] + head * args_.kv_row_bytes();
    }
#endif

    Vec key(int64_t j, int64_t k) const {
        if (!exists(j)) return Vec{};
        return KvRow<Number>(static_cast<const char*>(args_.k_cache) + offsets_[j], args_.head_dim).load(k);
    }

    const AttentionArgs& args_;
    const int64_t begin_;
    const int64_t end_;
    int64_t offsets_[SPAN];  // bytes from the start of a cache, of the block's first KV head
};

}  // namespace SMOE_ISA
}  // namespace smoe
