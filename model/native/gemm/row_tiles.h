// Division of rows into tiles and of products into tasks. Each row is multiplied by one matrix: the same for all rows
// (linear), or by expert (moe).
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "gemm/gemm.h"

namespace smoe {

// Rows first_row .. first_row + rows - 1. Packed with `words` words per row, they start at word first_row * words.
struct Tile {
    int64_t first_row;
    int rows;
    int expert;
};

// Unit of work of one thread: neighbouring panels of one expert's matrix times some of its tiles.
struct Task {
    int expert;
    int64_t first_panel, end_panel;
    int64_t first_tile, end_tile;
};

// Neighbouring tiles of one expert.
struct TileGroup {
    const Tile* first;
    int64_t count;

    const Tile* begin() const { return first; }
    const Tile* end() const { return first + count; }
};

// The order in which a task's tiles meet its panels: `pass` tiles are multiplied by one panel and then by the next,
// until the panels end; `group` of them in one call, which keeps their sums. Both are at least 1.
struct PassOrder {
    int64_t pass, group;
};

// The panel that a thread multiplies next. A product before it prefetches parts `part` .. `end_part` - 1 of its `parts`
// equal parts; 0 parts: nothing. Before it `tiles` tiles are multiplied by the present panel, one after the other.
struct NextPanel {
    int expert = 0;
    int64_t panel = 0, part = 0, end_part = 0, parts = 0, tiles = 1;
};

// Divide rows first .. first + count - 1 into tiles of nearly equal size. Example: 25 rows, at most 12 per tile, give 9
// + 8 + 8.
void append_tiles(std::vector<Tile>& tiles, int64_t first, int64_t count, int expert, int max_rows);

// Divide the product of every tile with every panel of its expert's matrix into tasks: enough tasks to fill the threads
// several times, and few enough panels per task to stay in the second-level cache while the tiles pass.
std::vector<Task> make_tasks(const std::vector<Tile>& tiles, int64_t num_panels, int64_t words_per_panel, int threads);

// Tasks that threads run beside those of other work, so as not to wait for both: run(0) .. run(count - 1).
struct SideTasks {
    int64_t count = 0;
    std::function<void(int64_t)> run;
};

// Call pack(tile) for every tile, and run the tasks beside; `words` is the tiles' total size.
template <class Pack>
void for_each_tile(Pool& pool, const std::vector<Tile>& tiles, int64_t words, const SideTasks& beside, Pack&& pack) {
    constexpr int64_t FEW_WORDS = 1 << 14;  // below this one thread packs all: waking another costs more
    const auto num_tiles = static_cast<int64_t>(tiles.size());
    const int64_t num_tasks = words < FEW_WORDS ? 1 : num_tiles;
    pool.parallel_for(num_tasks + beside.count, [&](int64_t task) {
        if (task >= num_tasks) return beside.run(task - num_tasks);
        for (int64_t i = task; i < num_tiles; i += num_tasks) pack(tiles[i]);
    });
}

// The panel that follows `panel` of tasks[index] in a pass of `tiles` tiles: of this task, or the first one of
// tasks[index + stride], which the thread takes next if all tasks take as long.
NextPanel next_panel(const std::vector<Task>& tasks, int64_t index, int64_t stride, int64_t panel, int64_t tiles);

// Divide tiles first .. end - 1 into runs of nearly equal length, at most `most`, and call run(group) for each.
template <class Run>
void for_each_run(const Tile* first, const Tile* end, int64_t most, Run&& run) {
    for (int64_t left = ceil_div(end - first, most); left; --left) {
        const int64_t count = ceil_div(end - first, left);
        run(TileGroup{first, count});
        first += count;
    }
}

// Call product(state, group, panel, next) for every group of tiles and panel; each task has its own State.
template <class State, class Product>
void for_each_product(Pool& pool, const std::vector<Tile>& tiles, int64_t num_panels, int64_t words_per_panel,
                      const PassOrder& order, Product&& product) {
    const std::vector<Task> tasks = make_tasks(tiles, num_panels, words_per_panel, pool.threads());
    pool.parallel_for(static_cast<int64_t>(tasks.size()), [&](int64_t index) {
        const Task& task = tasks[index];
        State state;
        const auto pass_panels = [&](const TileGroup& pass) {
            for (int64_t panel = task.first_panel; panel < task.end_panel; ++panel) {
                NextPanel next;
                if (pass.count > 1) next = next_panel(tasks, index, pool.stride(), panel, pass.count);
                for_each_run(pass.begin(), pass.end(), order.group, [&](const TileGroup& group) {
                    next.end_part = next.part + (next.parts ? group.count : 0);
                    product(state, group, panel, next);
                    next.part = next.end_part;
                });
            }
        };
        for_each_run(&tiles[task.first_tile], &tiles[task.end_tile - 1] + 1, order.pass, pass_panels);
    });
}

}  // namespace smoe
