// C interface of the store of experts.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cerrno>
#include <new>
#include <system_error>

#include "c_api/core.h"
#include "smoe_native.h"
#include "store/expert_store.h"

using namespace smoe;

namespace {

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
constexpr int64_t PAGE_BYTES = 4096;

// Map and read pages by reading a byte of each.
int64_t touch(const void* memory, int64_t bytes) {
    const auto* first = static_cast<const volatile std::byte*>(memory);
    for (int64_t offset = 0; offset < bytes; offset += PAGE_BYTES) (void)first[offset];
    return bytes;
}

}  // namespace

int64_t smoe_read_file(void* context, void* memory, int64_t bytes, int64_t position) {
    const auto file = static_cast<int>(reinterpret_cast<intptr_t>(context));
    const ssize_t count = pread(file, memory, bytes, position);
    return count < 0 ? -errno : count;
}

int64_t smoe_populate(void* context, void* memory, int64_t bytes, int64_t position) {
    const auto file = static_cast<int>(reinterpret_cast<intptr_t>(context));
    if (madvise(memory, bytes, MADV_POPULATE_READ) == 0) return bytes;
    if (errno == EINVAL) return touch(memory, bytes);  // before Linux 5.14
    struct stat status;
    if (fstat(file, &status) == 0 && position + bytes > status.st_size) return 0;
    return errno == EINTR ? -EINTR : -EIO;
}

void smoe_unpopulate(void* context, void* memory, int64_t bytes, int64_t position) {
    const auto file = static_cast<int>(reinterpret_cast<intptr_t>(context));
    madvise(memory, bytes, MADV_DONTNEED);
    posix_fadvise(file, position, bytes, POSIX_FADV_DONTNEED);
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
