#include "gemm/packing/unpacked_panels.h"

#include <vector>

#include "gemm/coded/coded_panel.h"
#include "gemm/int4/int4_weights.h"

namespace smoe {
namespace SMOE_ISA {
namespace {

// Memory of this thread for a slot: `words` words on a cache line. noexcept: tasks of the pool must not throw, so
// without memory the process ends here.
uint32_t* memory_of(int slot, int64_t words) noexcept {
    struct alignas(64) Line {
        uint32_t words[LINE_WORDS];
    };
    thread_local std::vector<Line> memory[UnpackedPanels::SLOTS];
    const auto lines = static_cast<size_t>(ceil_div(words, LINE_WORDS));
    if (memory[slot].size() < lines) memory[slot].resize(lines);
    return memory[slot].data()->words;
}

void unpack_int4(const uint32_t* panel, int64_t K, uint32_t* units) {
    for (int64_t block = int4_blocks(K); block; --block) {
        unpack_block(panel, units);
        panel += INT4_BLOCK_WORDS;
        units += INT4_UNITS * PANEL;
    }
    std::memcpy(units, panel, PANEL * 4);  // the scales
}

}  // namespace

const uint32_t* UnpackedPanels::get(int slot, int format, const uint32_t* panel, int64_t K) {
    Slot& found = slots_[slot];
    if (found.panel == panel) return found.unpacked;
    uint32_t* to;
    if (format == INT4) {
        to = memory_of(slot, panel_words(INT8, int4_blocks(K) * INT4_BLOCK));
        unpack_int4(panel, K, to);
    } else {
        to = memory_of(slot, 2 * coded_pairs(K) * PANEL);
        CodedPanel(panel, K).unpack(coded_pairs(K), to);
    }
    found = {panel, to};
    return to;
}

}  // namespace SMOE_ISA
}  // namespace smoe
