// A group of processes (ranks) that compute one network together, each a part of the outputs of every matrix. They
// exchange these parts through memory that all of them map.
//
// A gather is the only operation: nothing is summed across ranks, so a number is the same for any number of ranks.
// Memory: one cache line per rank with the number of its last gather, a line with the flag `ended`, and two buffers
// that gathers use in turn. Two suffice: a rank writes into a buffer again only after all ranks have reached the gather
// in between, and so have read what the buffer held.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace smoe {

// Thrown by a gather after end(): another rank is gone.
struct GroupEnded {};

class Group {
  public:
    static size_t memory_bytes(int size, int64_t buffer_bytes);

    // `memory`: memory_bytes() that all ranks share, aligned to 64 bytes, zeros before the first rank uses it.
    Group(void* memory, int rank, int size, int64_t buffer_bytes);

    int size() const { return size_; }

    // Columns of a gathered row: this rank contributes `part_bytes` from byte `first_byte` of `whole_bytes`.
    struct Columns {
        int64_t whole_bytes, first_byte, part_bytes;
    };

    // Join part [rows, part_bytes] of each rank to whole [rows, whole_bytes], which every rank gets. All ranks make the
    // same calls in the same order, over disjoint columns. whole_bytes is at most buffer_bytes. Throws GroupEnded.
    void gather(const void* part, void* whole, int64_t rows, const Columns& columns);

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
