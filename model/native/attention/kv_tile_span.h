// Reads the keys and values of one KV head and one span from tiles. Included by kernel files only.
#pragma once

#include "attention/attention.h"
#include "attention/bf16_dot_products.h"
#include "attention/kv_row.h"
#include "attention/kv_tile.h"
#include "attention/kv_tile_prefetch.h"
#include "attention/span_softmax.h"
#include "simd/vec.h"

namespace smoe {
namespace SMOE_ISA {

// As KvSpan: positions begin .. end - 1 of the span that starts at span_start. Where a panel has a position outside of
// them, its keys may be any numbers, and its values are zeros.
template <class Number>
class KvTileSpan {
  public:
    using Prefetcher = KvTilePrefetcher;

#if defined(__AVX512BF16__)
    static constexpr bool HAS_PAIRS_IN_PLACE = sizeof(Number) == 1;
#endif

    static constexpr bool IS_SCALED = sizeof(Number) == 1;

    KvTileSpan(const AttentionArgs& args, const RowBlock& block, int64_t span_start, int64_t begin, int64_t end)
        : args_(args), begin_(begin), end_(end), first_tile_(begin / KV_TILE), last_tile_((end - 1) / KV_TILE),
          tile_bytes_(KV_TILE * args.kv_row_bytes()) {
        const int32_t* table = args.block_tables + block.sequence * args.max_blocks;
        const int64_t tiles_per_block = args.block_size / KV_TILE;
        for (int64_t i = first_tile_; i <= last_tile_; ++i) {
            const int64_t index = span_start / KV_TILE + i;
            const int64_t tile = table[index / tiles_per_block] * tiles_per_block + index % tiles_per_block;
            offsets_[i] = (tile * args.num_kv_heads + block.kv_head) * tile_bytes_;
        }
    }

    static constexpr bool HAS_PAIRS = true;

    // Keys of LANES positions: at(k) has those of dims k and k + 1, k even.
    struct KeyPairs {
        const Number* pairs;
        Vec scale;

        PairVecs at(int64_t k) const {
            const PairVecs loaded = load_pairs(pairs + k * KV_TILE);
            return IS_SCALED ? PairVecs{loaded.first * scale, loaded.second * scale} : loaded;
        }
    };

    // The keys of positions from `position`, a multiple of LANES, on.
    KeyPairs key_pairs(int64_t position) const {
        const int64_t tile = existing(position / KV_TILE), place = position % KV_TILE;
        return {numbers(args_.k_cache, tile) + 2 * place,
                IS_SCALED ? load(scales_of(args_.k_cache, tile) + place) : Vec{}};
    }

    // Values of two positions, from one dim on.
    struct ValuePair {
        const Number* pairs;
        const float* scales;
        int64_t head_dim;

        // Load TILE_WIDTH dims, which exist, of both positions.
        [[gnu::always_inline]] inline void load(Vec (&first)[TILE_VECS], Vec (&second)[TILE_VECS]) const {
#pragma GCC unroll 4
            for (int n = 0; n < TILE_VECS; ++n) {
                const PairVecs loaded = load_pairs(pairs + 2 * n * LANES);
                first[n] = IS_SCALED ? loaded.first * broadcast(scales[0]) : loaded.first;
                second[n] = IS_SCALED ? loaded.second * broadcast(scales[1]) : loaded.second;
            }
        }

        // Go on to the next pair of the tile.
        void advance() { pairs += 2 * head_dim, scales += 2; }
    };

    // The values of an even position and of the next one, from dim k on.
    ValuePair value_pair(int64_t position, int64_t k) const {
        const int64_t tile = position / KV_TILE, place = position % KV_TILE, K = args_.head_dim;
        return {numbers(args_.v_cache, tile) + place * K + 2 * k, scales_of(args_.v_cache, tile) + place, K};
    }

    // Pack keys of positions first .. first + WIDTH - 1 (WIDTH a multiple of LANES) into panel [K, WIDTH].
    template <int WIDTH>
    void pack_keys(int64_t first, float* panel, Prefetcher& prefetcher) const {
        for (int64_t group = 0; group < WIDTH; group += LANES) {
            const KeyPairs keys = key_pairs(first + group);
            for (int64_t k = 0; k < args_.head_dim; k += 2) {
                const PairVecs loaded = keys.at(k);
                store(panel + k * WIDTH + group, loaded.first);
                store(panel + (k + 1) * WIDTH + group, loaded.second);
                if (k % LANES == 0) prefetcher.step();
            }
        }
    }

    // Pack values of positions first .. last - 1, which exist, into panel [last - first, value_dims(K)]; zeros past dim
    // K.
    void pack_values(int64_t first, int64_t last, float* panel, Prefetcher& prefetcher) const {
        const int64_t K = args_.head_dim, stride = value_dims(K);
        for (int64_t j = first / 2 * 2; j < last; j += 2) {
            const ValuePair pair = value_pair(j, 0);
            const Vec scales[2] = {IS_SCALED ? broadcast(pair.scales[0]) : Vec{},
                                   IS_SCALED ? broadcast(pair.scales[1]) : Vec{}};
            for (int64_t k = 0; k < stride; k += LANES) {
                const PairVecs loaded = load_first_pairs(pair.pairs + 2 * k, K - k);
                float* to = panel + (j - first) * stride + k;
                if (j >= first) store(to, IS_SCALED ? loaded.first * scales[0] : loaded.first);
                if (j + 1 < last) store(to + stride, IS_SCALED ? loaded.second * scales[1] : loaded.second);
            }
            prefetcher.step(2);
        }
    }

#if defined(__AVX512BF16__)
    // Return the keys of positions first .. first + TILE_WIDTH - 1 as columns of pairs, without scales; from K/2 to a
    // multiple of LANES they are zeros. They lie in the cache or in `panel`.
    KeyColumns<uint32_t> key_columns(int64_t head, int64_t first, uint32_t* panel) const {
        const int64_t depth = args_.head_dim / 2;
        KeyColumns<uint32_t> columns{{}, KV_TILE};
        if (!IS_SCALED && depth % LANES == 0) {
            for (int64_t n = 0; n < TILE_VECS; ++n)
                columns.groups[n] = words(args_.k_cache, head, existing(first / KV_TILE + n));
            return columns;
        }
        columns.stride = TILE_WIDTH;
        for (int64_t n = 0; n < TILE_VECS; ++n) {
            const int64_t tile = existing(first / KV_TILE + n);
            uint32_t* group = panel + n * LANES;
            columns.groups[n] = group;
            for (int64_t k = 0; k < depth; ++k)
                _mm512_storeu_si512(group + k * TILE_WIDTH, pairs(args_.k_cache, head, tile, k * KV_TILE));
            for (int64_t k = depth; k % LANES; ++k) _mm512_storeu_si512(group + k * TILE_WIDTH, __m512i{});
        }
        return columns;
    }

    // Return the values of positions first .. first + 2 * depth - 1 (first a multiple of TILE_WIDTH) as pairs, without
    // scales; zeros past dim K. If MAY_POINT they may lie in the cache, otherwise they are in `panel`.
    template <bool MAY_POINT>
    ValueRows<uint32_t> value_rows(int64_t head, int64_t first, int64_t depth, uint32_t* panel) const {
        const int64_t stride = padded_dim(args_.head_dim), rows = KV_TILE / 2;
        const bool is_whole = MAY_POINT && !IS_SCALED && args_.head_dim == stride;
        ValueRows<uint32_t> values{{}, stride};
        for (int64_t n = 0; n * rows < depth; ++n, panel += rows * stride) {
            const int64_t position = first + n * KV_TILE;
            if (is_whole && position >= begin_ && position + KV_TILE <= end_) {
                values.runs[n] = words(args_.v_cache, head, position / KV_TILE);
                continue;
            }
            values.runs[n] = panel;
            pack_tile(head, position, min(rows, depth - n * rows), panel);
        }
        return values;
    }

    // int8 pairs that lie as products read them: whole vectors of dims.
    bool has_pairs_in_place() const { return IS_SCALED && args_.head_dim == padded_dim(args_.head_dim); }

    // As key_columns(), where has_pairs_in_place().
    KeyColumns<uint16_t> key_columns_in_place(int64_t head, int64_t first) const {
        KeyColumns<uint16_t> columns{{}, KV_TILE};
        for (int64_t n = 0; n < TILE_VECS; ++n)
            columns.groups[n] =
                reinterpret_cast<const uint16_t*>(bytes(args_.k_cache, existing(first / KV_TILE + n), head));
        return columns;
    }

    // As value_rows(), where has_pairs_in_place(); any numbers, which are finite, instead of zeros.
    ValueRows<uint16_t> value_rows_in_place(int64_t head, int64_t first) const {
        ValueRows<uint16_t> values{{}, args_.head_dim};
        for (int64_t n = 0; n < TILE_WIDTH / KV_TILE; ++n)
            values.runs[n] =
                reinterpret_cast<const uint16_t*>(bytes(args_.v_cache, existing(first / KV_TILE + n), head));
        return values;
    }

    // Write the scales of `cache` at positions range.begin .. range.end - 1, all of a tile, to scales; of positions
    // that do not exist any numbers.
    void scales(const void* cache, int64_t head, Range range, float* scales) const {
        for (int64_t j = range.begin; j < range.end; j += KV_TILE, scales += KV_TILE)
            std::memcpy(scales, scales_of(cache, existing(j / KV_TILE), head), KV_TILE * sizeof(float));
    }
#endif

    // PANEL_TILES tiles, from that of position `first` on.
    KvTiles tiles(const void* cache, int64_t head, int64_t first) const {
        KvTiles tiles{{}, tile_bytes_};
        for (int64_t n = 0; n < PANEL_TILES; ++n) tiles.first[n] = bytes(cache, existing(first / KV_TILE + n), head);
        return tiles;
    }

  private:
    // The tile itself, or another one of the span if no position of it exists.
    int64_t existing(int64_t tile) const {
        return tile < first_tile_ ? first_tile_ : tile > last_tile_ ? last_tile_ : tile;
    }

    // Bytes of the tile of one of the block's KV heads.
    const char* bytes(const void* cache, int64_t tile, int64_t head = 0) const {
        return static_cast<const char*>(cache) + offsets_[tile] + head * tile_bytes_;
    }

    const Number* numbers(const void* cache, int64_t tile, int64_t head = 0) const {
        return reinterpret_cast<const Number*>(bytes(cache, tile, head));
    }

    const float* scales_of(const void* cache, int64_t tile, int64_t head = 0) const {
        return reinterpret_cast<const float*>(bytes(cache, tile, head) + KV_TILE * args_.head_dim);
    }

#if defined(__AVX512BF16__)
    const uint32_t* words(const void* cache, int64_t head, int64_t tile) const {
        return reinterpret_cast<const uint32_t*>(bytes(cache, tile, head));
    }

    // Pairs first .. first + LANES - 1 of a tile as bfloat16.
    __m512i pairs(const void* cache, int64_t head, int64_t tile, int64_t first) const {
        const Number* from = numbers(cache, tile, head) + 2 * first;
        if constexpr (IS_SCALED) {
            const auto* halves = reinterpret_cast<const __m128i*>(from);
            return widened(_mm_loadu_si128(halves), _mm_loadu_si128(halves + 1));
        } else {
            return _mm512_loadu_si512(from);
        }
    }

    // Pairs first .. first + count - 1 of a tile as bfloat16, count at most LANES; zeros after them.
    __m512i pairs(const void* cache, int64_t head, int64_t tile, int64_t first, int64_t count) const {
        const Number* from = numbers(cache, tile, head) + 2 * first;
        const auto present = static_cast<__mmask16>((1u << count) - 1);
        if constexpr (IS_SCALED) return widened(_mm256_maskz_loadu_epi16(present, from));
        return _mm512_maskz_loadu_epi32(present, from);
    }

    // Pack num_rows pairs of positions from `position` on, the first of a tile, into panel [num_rows, padded K].
    void pack_tile(int64_t head, int64_t position, int64_t num_rows, uint32_t* panel) const {
        const int64_t K = args_.head_dim, stride = padded_dim(K), tile = existing(position / KV_TILE);
        if (K == stride && position >= begin_ && position + KV_TILE <= end_) {
            for (int64_t i = 0; i < num_rows * K; i += LANES)
                _mm512_storeu_si512(panel + i, pairs(args_.v_cache, head, tile, i));
            return;
        }
        for (int64_t row = 0; row < num_rows; ++row, position += 2) {
            const uint32_t low = exists(position) ? 0xffffu : 0, high = exists(position + 1) ? 0xffff0000u : 0;
            const __m512i present = _mm512_set1_epi32(static_cast<int>(low | high));
            for (int64_t k = 0; k < stride; k += LANES) {
                const int64_t count = max(0, min(K - k, LANES));
                const __m512i loaded = pairs(args_.v_cache, head, tile, row * K + k, count);
                _mm512_storeu_si512(panel + row * stride + k, _mm512_and_si512(loaded, present));
            }
        }
    }

    bool exists(int64_t j) const { return j >= begin_ && j < end_; }
#endif

    const AttentionArgs& args_;
    const int64_t begin_;
    const int64_t end_;
    const int64_t first_tile_;  // of the span
    const int64_t last_tile_;
    const int64_t tile_bytes_;
    int64_t offsets_[SPAN / KV_TILE];  // bytes from the start of a cache, of the block's first KV head
};

}  // namespace SMOE_ISA
}  // namespace smoe
