// C interface of groups of ranks.
#include "c_api/core.h"
#include "group/group.h"

using namespace smoe;

int64_t smoe_group_bytes(int size, int64_t buffer_bytes) {
    return static_cast<int64_t>(Group::memory_bytes(size, buffer_bytes));
}

smoe_group* smoe_group_create(void* memory, int rank, int size, int64_t buffer_bytes) {
    return reinterpret_cast<smoe_group*>(new (std::nothrow) Group(memory, rank, size, buffer_bytes));
}

void smoe_group_destroy(smoe_group* group) { delete group_of(group); }

int smoe_group_gather(smoe_group* group, const void* part, void* whole, int64_t T, int64_t whole_bytes,
                      int64_t first_byte, int64_t part_bytes) {
    return catch_errors([&] { group_of(group)->gather(part, whole, T, {whole_bytes, first_byte, part_bytes}); });
}

void smoe_group_end(smoe_group* group) { group_of(group)->end(); }

uint32_t smoe_group_arrivals(const smoe_group* group, int rank) {
    return reinterpret_cast<const Group*>(group)->num_arrivals(rank);
}
