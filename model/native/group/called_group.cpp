#include "group/called_group.h"

namespace smoe {

Group::~Group() = default;

void CalledGroup::gather(const void* part, void* whole, int64_t rows, const Columns& columns) {
    if (function_(context_, part, whole, rows, columns.whole_bytes, columns.first_byte, columns.part_bytes,
                  columns.unit_bytes))
        throw GroupEnded{};
}

}  // namespace smoe
