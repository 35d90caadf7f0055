// Runs jobs on thread pools of many sizes; prints nothing and returns 0 if each task ran once and its effects are seen.
//
// Most pools have more threads than the machine has cores: threads are delayed anywhere, and sleep and wake at any
// time.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "runtime/thread_pool.h"

namespace {

uint64_t next(uint64_t& state) { return (state = state * 6364136223846793005u + 1442695040888963407u) >> 33; }

// Arithmetic that takes long enough for others to fall asleep, sometimes.
uint64_t busy(uint64_t rounds) {
    uint64_t state = rounds;
    for (uint64_t i = 0; i < rounds; ++i) next(state);
    return state;
}

bool run(int threads, int num_jobs, uint64_t seed) {
    smoe::Pool pool(threads);
    uint64_t beats = 0;
    pool.set_heartbeat(&beats);
    std::vector<int> counts;  // no atomics: the pool must order what tasks write before what the caller reads
    std::vector<uint64_t> results;
    for (int job = 0; job < num_jobs; ++job) {
        const int64_t n = next(seed) % (job % 3 ? 5 * threads : 2 * threads / 3 + 2);
        counts.assign(n, 0);
        results.assign(n, 0);
        const uint64_t rounds = next(seed) % 8 ? 0 : next(seed) % 60000;
        pool.parallel_for(n, [&](int64_t task) {
            results[task] = task % 7 ? task : busy(rounds) + task;
            ++counts[task];
        });
        for (int64_t task = 0; task < n; ++task) {
            const uint64_t expected = task % 7 ? task : busy(rounds) + task;
            if (counts[task] == 1 && results[task] == expected) continue;
            std::fprintf(stderr, "%d threads, job %d: task %ld of %ld ran %d times\n", threads, job,
                         static_cast<long>(task), static_cast<long>(n), counts[task]);
            return false;
        }
        if (job % 5 == 0) seed += busy(next(seed) % 200000);  // workers go to sleep
    }
    return true;
}

}  // namespace

int main(int, char** arguments) {
    const int num_jobs = std::atoi(arguments[1]);
    const uint64_t seed = std::strtoull(arguments[2], nullptr, 10);
    for (const int threads : {1, 2, 3, 32, 33, 64, 100})
        if (!run(threads, num_jobs, seed + threads)) {
            std::fprintf(stderr, "seed %s\n", arguments[2]);
            return 1;
        }
    return 0;
}
