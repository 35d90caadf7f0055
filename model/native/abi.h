// What the files of the C interface share.
#pragma once

#include <new>

#include "pool.h"
#include "smoe_native.h"

namespace smoe {

inline Pool& pool_of(smoe_pool* pool) { return *reinterpret_cast<Pool*>(pool); }

// What a function of the interface returns: 0, or 1 where the call found no memory.
template <class Call>
int out_of_memory(Call&& call) {
    try {
        call();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

}  // namespace smoe
