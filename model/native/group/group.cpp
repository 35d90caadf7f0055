#include "group/group.h"

namespace smoe {

Group::~Group() = default;

}  // namespace smoe
