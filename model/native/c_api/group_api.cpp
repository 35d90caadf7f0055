// C interface of groups of ranks.
#include <new>

#include "c_api/core.h"
#include "group/shared_group.h"
#include "group/socket_group.h"

using namespace smoe;

namespace {

smoe_group* handle_of(Group* group) { return reinterpret_cast<smoe_group*>(group); }

SharedGroup* shared(smoe_group* group) { return static_cast<SharedGroup*>(group_of(group)); }

}  // namespace

int64_t smoe_group_bytes(int size, int64_t buffer_bytes) {
    return static_cast<int64_t>(SharedGroup::memory_bytes(size, buffer_bytes));
}

smoe_group* smoe_group_create(void* memory, int rank, int size, int64_t buffer_bytes) {
    return handle_of(new (std::nothrow) SharedGroup(memory, rank, size, buffer_bytes));
}

smoe_group* smoe_group_of_sockets(smoe_sockets* sockets) {
    Group* group = nullptr;
    catch_errors([&] { group = new SocketGroup(sockets); });
    return handle_of(group);
}

void smoe_group_destroy(smoe_group* group) { delete group_of(group); }

int smoe_group_gather(smoe_group* group, const void* part, void* whole, int64_t T, int64_t whole_bytes,
                      int64_t first_byte, int64_t part_bytes, int64_t unit_bytes) {
    return catch_errors(
        [&] { group_of(group)->gather(part, whole, T, {whole_bytes, first_byte, part_bytes, unit_bytes}); });
}

void smoe_group_end(smoe_group* group) { shared(group)->end(); }

uint32_t smoe_group_arrivals(const smoe_group* group, int rank) {
    return static_cast<const SharedGroup*>(reinterpret_cast<const Group*>(group))->num_arrivals(rank);
}
