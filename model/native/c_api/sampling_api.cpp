// C interface of sampling: rows are distributed over the threads.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "c_api/core.h"
#include "sampling/sampling.h"

using namespace smoe;

int smoe_sample(smoe_pool* handle, int isa, const smoe_sampling* args) {
    return catch_errors([&] {
        Pool& pool = pool_of(handle);
        const int64_t bytes = sampling_memory_bytes(args->V), workers = std::min<int64_t>(pool.threads(), args->N);
        std::byte* scratch = pool.scratch(workers * bytes);
        std::atomic<int64_t> next{0};
        pool.parallel_for(workers, [&](int64_t worker) {
            const SamplingMemory memory = sampling_memory(scratch + worker * bytes, args->V);
            std::memset(memory.counts, 0, args->V * sizeof(int32_t));
            for (int64_t row = next++; row < args->N; row = next++) SMOE_CALL(isa, sample_row(*args, row, memory));
        });
    });
}
