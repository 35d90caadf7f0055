// C interface of the roofline measurements.
#include "c_api/core.h"
#include "roofline/roofline.h"

using namespace smoe;

uint32_t smoe_read_all(smoe_pool* pool, int isa, const void* buffer, int64_t num_bytes) {
    return SMOE_CALL(isa, read_all(pool_of(pool), buffer, num_bytes));
}

int64_t smoe_peak_operations(smoe_pool* pool, int isa, int arithmetic, int64_t rounds) {
    return SMOE_CALL(isa, peak_operations(pool_of(pool), arithmetic, rounds));
}
