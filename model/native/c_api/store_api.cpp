// C interface of the store of experts.
#include <unistd.h>
#include <cerrno>
#include <new>
#include <system_error>

#include "c_api/core.h"
#include "smoe_native.h"
#include "store/expert_store.h"

using namespace smoe;

int64_t smoe_read_file(void* context, void* memory, int64_t bytes, int64_t position) {
    const auto file = static_cast<int>(reinterpret_cast<intptr_t>(context));
    const ssize_t count = pread(file, memory, bytes, position);
    return count < 0 ? -errno : count;
}

smoe_store* smoe_store_create(const smoe_store_layout* layout) {
    try {
        return reinterpret_cast<smoe_store*>(new ExpertStore(*layout));
    } catch (const std::bad_alloc&) {
        return nullptr;
    } catch (const std::system_error&) {
        return nullptr;
    }
}

void smoe_store_destroy(smoe_store* store) { delete store_of(store); }

void smoe_store_get_counts(const smoe_store* store, smoe_store_counts* counts) {
    *counts = reinterpret_cast<const ExpertStore*>(store)->counts();
}

void smoe_store_get_fault(const smoe_store* store, int64_t fault[4]) {
    const ReadFault found = reinterpret_cast<const ExpertStore*>(store)->fault();
    fault[0] = found.layer;
    fault[1] = found.expert;
    fault[2] = found.position;
    fault[3] = found.error;
}
