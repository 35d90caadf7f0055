// A group whose gathers are calls of a function of the caller: for ranks that share no memory.
#pragma once

#include <cstdint>

#include "group/group.h"
#include "smoe_native.h"

namespace smoe {

class CalledGroup : public Group {
  public:
    CalledGroup(smoe_gather* function, void* context) : function_(function), context_(context) {}

    // Throws GroupEnded if the function does not return 0.
    void gather(const void* part, void* whole, int64_t rows, const Columns& columns) override;

  private:
    smoe_gather* const function_;
    void* const context_;
};

}  // namespace smoe
