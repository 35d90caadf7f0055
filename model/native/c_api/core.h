// Helpers shared by the files of the C interface.
#pragma once

#include <algorithm>
#include <new>

#include "gemm/gemm.h"
#include "group/group.h"
#include "moe/experts.h"
#include "runtime/thread_pool.h"
#include "smoe_native.h"
#include "store/expert_store.h"

namespace smoe {

inline Pool& pool_of(smoe_pool* pool) { return *reinterpret_cast<Pool*>(pool); }

inline Group* group_of(smoe_group* group) { return reinterpret_cast<Group*>(group); }

inline ExpertStore* store_of(smoe_store* store) { return reinterpret_cast<ExpertStore*>(store); }

inline Matrix matrix_of(const smoe_matrix& matrix) {
    return {static_cast<int>(matrix.format), static_cast<const uint32_t*>(matrix.panels), matrix.outputs,
            matrix.stride / 4, matrix.order};
}

inline Expert expert_of(const smoe_expert& expert) {
    return {matrix_of(expert.w1), matrix_of(expert.w3), matrix_of(expert.w2)};
}

// Row-wise work per task: below this, waking a thread costs more than it saves
constexpr int64_t NUMBERS_PER_TASK = 16384;

// Call body(first, last) over all rows, in pieces, on all threads.
template <class Body>
void for_rows(Pool& pool, int64_t num_rows, int64_t numbers_per_row, Body&& body) {
    const int64_t piece = std::max<int64_t>(1, NUMBERS_PER_TASK / numbers_per_row);
    pool.parallel_for(ceil_div(num_rows, piece),
                      [&](int64_t task) { body(task * piece, std::min(num_rows, (task + 1) * piece)); });
}

// Run the call and return 0, 1 if an allocation failed, 2 if the group has ended, or 3 if an expert cannot be read.
template <class Call>
int catch_errors(Call&& call) {
    try {
        call();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    } catch (const GroupEnded&) {
        return 2;
    } catch (const ReadFault&) {
        return 3;
    }
}

}  // namespace smoe
