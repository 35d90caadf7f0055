// A group of processes (ranks) that compute one network together, each a part of the outputs of every matrix.
//
// A gather is the only operation: nothing is summed across ranks, so a number is the same for any number of ranks.
#pragma once

#include <cstdint>

namespace smoe {

// Thrown by a gather that failed: another rank is gone.
struct GroupEnded {};

class Group {
  public:
    virtual ~Group();

    // Columns of a gathered row: this rank contributes `part_bytes` from byte `first_byte` of `whole_bytes`. Parts are
    // whole units of `unit_bytes`, except at the end of the row.
    struct Columns {
        int64_t whole_bytes, first_byte, part_bytes, unit_bytes;
    };

    // Join part [rows, part_bytes] of each rank to whole [rows, whole_bytes], which every rank gets. All ranks make the
    // same calls in the same order, over disjoint columns. Throws GroupEnded.
    virtual void gather(const void* part, void* whole, int64_t rows, const Columns& columns) = 0;
};

}  // namespace smoe
