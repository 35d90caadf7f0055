// A group of ranks on one host, which exchange rows through memory that all of them map.
//
// Memory: one cache line per rank with the number of its last gather, a line with the flag `ended`, and two buffers
// that gathers use in turn. Two suffice: a rank writes into a buffer again only after all ranks have reached the gather
// in between, and so have read what the buffer held.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "group/group.h"

namespace smoe {

class SharedGroup : public Group {
  public:
    static size_t memory_bytes(int size, int64_t buffer_bytes);

    // `memory`: memory_bytes() that all ranks share, aligned to 64 bytes, zeros before the first rank uses it.
    SharedGroup(void* memory, int rank, int size, int64_t buffer_bytes);

    // A row has at most buffer_bytes. Throws GroupEnded after end().
    void gather(const void* part, void* whole, int64_t rows, const Columns& columns) override;

    // Let the gathers of all ranks fail, those that wait as well.
    void end();
    bool has_ended() const;
    // Number of buffers that a rank has filled since the start, modulo 2^32.
    uint32_t num_arrivals(int rank) const;

  private:
    // Published by one rank, read by all.
    struct alignas(64) Line {
        std::atomic<uint32_t> arrivals;
        std::atomic<uint32_t> sleepers;  // ranks that wait for this one in the kernel
    };

    void meet();
    void await_rank(Line& line, uint32_t arrival);

    Line* const lines_;  // [size], then one whose `arrivals` is 1 once the group has ended
    std::byte* const buffers_;
    const int rank_, size_;
    const int64_t buffer_bytes_;
    uint32_t arrivals_;
};

}  // namespace smoe
