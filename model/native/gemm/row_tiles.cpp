#include "gemm/row_tiles.h"

#include <algorithm>

namespace smoe {
namespace {

constexpr int64_t CACHED_WORDS = (512 << 10) / 4;
constexpr int64_t TASKS_PER_THREAD = 4;

int64_t end_of_expert(const std::vector<Tile>& tiles, int64_t first) {
    int64_t end = first;
    while (end < static_cast<int64_t>(tiles.size()) && tiles[end].expert == tiles[first].expert) ++end;
    return end;
}

}  // namespace

void append_tiles(std::vector<Tile>& tiles, int64_t first, int64_t count, int expert, int max_rows) {
    for (int64_t left = ceil_div(count, max_rows); left; --left) {
        const int64_t rows = ceil_div(count, left);
        tiles.push_back({first, static_cast<int>(rows), expert});
        first += rows;
        count -= rows;
    }
}

std::vector<Task> make_tasks(const std::vector<Tile>& tiles, int64_t num_panels, int64_t words_per_panel, int threads) {
    const int64_t target_tasks = threads == 1 ? 1 : TASKS_PER_THREAD * threads;
    const int64_t fitting = std::max<int64_t>(1, CACHED_WORDS / words_per_panel);
    const int64_t panels = std::clamp<int64_t>(num_panels / target_tasks, 1, fitting);
    // Parts into which the tiles of one expert are divided
    const int64_t parts = ceil_div(target_tasks, ceil_div(num_panels, panels));
    std::vector<Task> tasks;
    for (int64_t first = 0, end; first < static_cast<int64_t>(tiles.size()); first = end) {
        end = end_of_expert(tiles, first);
        const int64_t step = std::max<int64_t>(1, (end - first) / parts);
        for (int64_t tile = first; tile < end; tile += step)
            for (int64_t panel = 0; panel < num_panels; panel += panels)
                tasks.push_back({tiles[first].expert, panel, std::min(panel + panels, num_panels), tile,
                                 std::min(tile + step, end)});
    }
    return tasks;
}

NextPanel next_panel(const std::vector<Task>& tasks, int64_t index, int64_t stride, int64_t panel, int64_t tiles) {
    const Task& task = tasks[index];
    NextPanel next;
    next.tiles = tiles;
    if (panel + 1 < task.end_panel) {
        next.expert = task.expert, next.panel = panel + 1, next.parts = tiles;
    } else if (index + stride < static_cast<int64_t>(tasks.size())) {
        const Task& later = tasks[index + stride];
        next.expert = later.expert, next.panel = later.first_panel, next.parts = tiles;
    }
    return next;
}

}  // namespace smoe
