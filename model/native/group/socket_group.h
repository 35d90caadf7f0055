// A group of ranks that are connected by sockets, each to every other one: for hosts that share only a network.
//
// Parts are sent as they are, without headers: all ranks make the same calls in the same order, so each knows how many
// bytes come next. A rank may be one gather ahead of another; its bytes then wait in the socket.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "group/group.h"
#include "smoe_native.h"

namespace smoe {

class SocketGroup : public Group {
  public:
    // `sockets` stays the caller's. Throws std::bad_alloc.
    explicit SocketGroup(smoe_sockets* sockets);

    // Throws GroupEnded after it has written to the struct which rank was lost, and has ended all connections.
    void gather(const void* part, void* whole, int64_t rows, const Columns& columns) override;

  private:
    // Another rank, and what of this gather is still to be sent to it and received from it.
    struct Peer {
        int rank, socket;
        const std::byte* rest;  // of this rank's part
        int64_t num_unsent;
        std::byte* whole;                                  // at the first column of the other rank's part
        int64_t whole_bytes, part_bytes, num_parts_bytes;  // of a row, of a row's part, of the parts of all rows
        int64_t num_received;

        bool is_done() const { return !num_unsent && num_received == num_parts_bytes; }
    };

    bool exchange();
    void send_rest(Peer& peer);
    void receive_rest(Peer& peer);
    void wait();
    [[noreturn]] void lose(const Peer& peer, bool is_late);

    smoe_sockets* const sockets_;
    std::vector<Peer> peers_;
};

}  // namespace smoe
