// Panels of int4 weights as panels of int8, and coded ones as panels of bfloat16.
#pragma once

#include <cstdint>

namespace smoe {
namespace SMOE_ISA {

// Panels that a thread unpacked to multiply several tiles of rows. A thread has at most one object at a time: they use
// one memory.
class UnpackedPanels {
  public:
    // Panels at once: a mixture multiplies each tile by a panel of w1, then by one of w3.
    static constexpr int SLOTS = 2;

    // Return a panel of coded weights or int4 unpacked, int4's K zero-padded to whole blocks: as the last call for this
    // slot unpacked it, if that was the same panel, else unpacked now.
    const uint32_t* get(int slot, int format, const uint32_t* panel, int64_t K);

  private:
    struct Slot {
        const uint32_t *panel = nullptr, *unpacked = nullptr;
    };

    Slot slots_[SLOTS];
};

}  // namespace SMOE_ISA
}  // namespace smoe
