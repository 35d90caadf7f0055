// Rows that are multiplied with one matrix each: all with the same (linear), or by expert (moe). In tiles and tasks.
#pragma once

#include <cstdint>
#include <vector>

#include "gemm/gemm.h"

namespace smoe {

// Rows first_row .. first_row + rows - 1. Packed, with so many words a row, they start at word first_row * words.
struct Tile {
    int64_t first_row;
    int rows;
    int expert;
};

// What one thread does in one go: some neighbouring panels of one expert's matrix times some of its tiles.
struct Task {
    int expert;
    int64_t first_panel, end_panel;
    int64_t first_tile, end_tile;
};

// Cuts rows first .. first + count - 1 into tiles of nearly equal size. Example: 25 rows, 12 at most, make 9 + 8 + 8.
void append_tiles(std::vector<Tile>& tiles, int64_t first, int64_t count, int expert, int max_rows);

// Every tile times every panel of its expert's matrix, once: enough tasks to fill the threads several times over, and
// few enough panels in each to stay in the second-level cache while the tiles pass by.
std::vector<Task> cut_tasks(const std::vector<Tile>& tiles, int64_t num_panels, int64_t words_per_panel, int threads);

// pack(tile) for every tile; `words` in all.
template <class Pack>
void for_each_tile(Pool& pool, const std::vector<Tile>& tiles, int64_t words, Pack&& pack) {
    constexpr int64_t FEW_WORDS = 1 << 14;  // packed by one thread: waking another costs more
    const auto num_tiles = static_cast<int64_t>(tiles.size());
    const int64_t num_tasks = words < FEW_WORDS ? 1 : num_tiles;
    pool.parallel_for(num_tasks, [&](int64_t task) {
        for (int64_t i = task; i < num_tiles; i += num_tasks) pack(tiles[i]);
    });
}

// product(state, tile, panel) for every tile and panel, each task's with a State of its own.
template <class State, class Product>
void for_each_product(Pool& pool, const std::vector<Tile>& tiles, int64_t num_panels, int64_t words_per_panel,
                      Product&& product) {
    const std::vector<Task> tasks = cut_tasks(tiles, num_panels, words_per_panel, pool.threads());
    pool.parallel_for(static_cast<int64_t>(tasks.size()), [&](int64_t index) {
        const Task& task = tasks[index];
        State state;
        for (int64_t tile = task.first_tile; tile < task.end_tile; ++tile)
            for (int64_t panel = task.first_panel; panel < task.end_panel; ++panel) product(state, tiles[tile], panel);
    });
}

}  // namespace smoe
