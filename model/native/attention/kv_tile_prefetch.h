// Software prefetch of caches that are read panel by panel. Included by kernel files only.
#pragma once

#include "attention/attention.h"
#include "attention/kv_prefetch.h"

namespace smoe {
namespace SMOE_ISA {

constexpr int64_t PANEL_TILES = MAX_KEY_PANEL / KV_TILE;

// Tiles of keys or of values: neighbouring positions of one KV head.
struct KvTiles {
    const char* first[PANEL_TILES];
    int64_t bytes;  // of each; 0: no tiles
};

// Return the tiles that are read first in a span: keys of its first panel. None if the caches consist of rows.
inline KvTiles first_tiles(const KvPrefetchSpan& span) {
    if (span.begin >= span.end || !span.args->in_tiles()) return {};
    const AttentionArgs& args = *span.args;
    const int64_t per_block = args.block_size / KV_TILE;
    const int64_t begin = span.begin / KV_TILE, last = (span.end - 1) / KV_TILE;
    KvTiles tiles{{}, KV_TILE * args.kv_row_bytes()};
    for (int64_t n = 0; n < PANEL_TILES; ++n) {
        const int64_t tile = std::min(last, std::max(begin, begin / PANEL_TILES * PANEL_TILES + n));
        const int64_t number = span.table[tile / per_block] * per_block + tile % per_block;
        tiles.first[n] =
            static_cast<const char*>(args.k_cache) + (number * args.num_kv_heads + span.kv_head) * tiles.bytes;
    }
    return tiles;
}

// Prefetches tiles, one line of each at a time, in step with other work.
//
// A panel's tiles lie far from each other, those of its KV heads side by side: PANEL_TILES ascending streams, which the
// hardware's prefetchers follow. What is requested here is one panel of one head ahead.
class KvTilePrefetcher {
  public:
    static constexpr bool IS_BY_PANEL = true;

    KvTilePrefetcher(const KvPrefetchSpan&, int64_t) {}

    // Prefetch `tiles` within the next num_steps steps.
    void begin(const KvTiles& tiles, int64_t num_steps) {
        tiles_ = tiles;
        num_steps_ = num_steps;
        next_ = due_ = 0;
        lines_ = (tiles.bytes + LINE_BYTES - 1) / LINE_BYTES;
    }

    __attribute__((always_inline)) void step(int64_t count = 1) {
        due_ += count * lines_;
        for (; due_ >= num_steps_ && lines_; due_ -= num_steps_) {
#pragma GCC unroll 4
            for (int n = 0; n < PANEL_TILES; ++n) __builtin_prefetch(tiles_.first[n] + next_, 0, 3);
            next_ += LINE_BYTES;
            if (next_ >= tiles_.bytes) lines_ = due_ = 0;
        }
    }

  private:
    static constexpr int64_t LINE_BYTES = 64;

    KvTiles tiles_{};
    int64_t num_steps_ = 1;
    int64_t lines_ = 0;  // of a tile; 0 when all are requested
    int64_t due_ = 0;    // num_steps times the lines that are due and not yet requested
    int64_t next_ = 0;   // byte of the tiles
};

// Prefetches caches in rows: the whole next span, whatever is multiplied.
struct KvSpanPrefetcher : KvPrefetcher {
    static constexpr bool IS_BY_PANEL = false;

    using KvPrefetcher::KvPrefetcher;

    void begin(const KvTiles&, int64_t) {}
};

}  // namespace SMOE_ISA
}  // namespace smoe
