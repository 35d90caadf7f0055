#include "group/socket_group.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "runtime/spin.h"

namespace smoe {
namespace {

// A thread that sleeps in poll() is woken some 50 us late, as often as 33 times a step.
constexpr auto NETWORK_SPIN_TIME = std::chrono::microseconds(200);
constexpr int MAX_SPANS = 64;  // rows that one system call receives

#if defined(MSG_NOSIGNAL)
constexpr int SEND_FLAGS = MSG_DONTWAIT | MSG_NOSIGNAL;
#else
constexpr int SEND_FLAGS = MSG_DONTWAIT;  // the caller ignores SIGPIPE
#endif

bool would_block() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

// First column of a rank: model/cut.py.
int64_t first_byte(int rank, int size, const Group::Columns& columns) {
    const int64_t num_units = (columns.whole_bytes + columns.unit_bytes - 1) / columns.unit_bytes;
    return std::min(num_units * rank / size * columns.unit_bytes, columns.whole_bytes);
}

}  // namespace

SocketGroup::SocketGroup(smoe_sockets* sockets) : sockets_(sockets) {
    for (int rank = 0; rank < sockets->size; ++rank) {
        Peer peer{};
        peer.rank = rank;
        peer.socket = sockets->sockets[rank];
        if (rank != sockets->rank) peers_.push_back(peer);
    }
}

void SocketGroup::gather(const void* part, void* whole, int64_t rows, const Columns& columns) {
    const auto* from = static_cast<const std::byte*>(part);
    auto* to = static_cast<std::byte*>(whole);
    for (int64_t row = 0; row < rows; ++row)
        std::memcpy(to + row * columns.whole_bytes + columns.first_byte, from + row * columns.part_bytes,
                    columns.part_bytes);
    for (Peer& peer : peers_) {
        const int64_t first = first_byte(peer.rank, sockets_->size, columns);
        peer.rest = from;
        peer.num_unsent = rows * columns.part_bytes;
        peer.whole = to + first;
        peer.whole_bytes = columns.whole_bytes;
        peer.part_bytes = first_byte(peer.rank + 1, sockets_->size, columns) - first;
        peer.num_parts_bytes = rows * peer.part_bytes;
        peer.num_received = 0;
    }
    while (!spin([this] { return exchange(); }, NETWORK_SPIN_TIME)) wait();
}

// Send and receive what is possible at once; return true if the gather is complete.
bool SocketGroup::exchange() {
    for (Peer& peer : peers_) send_rest(peer);
    for (Peer& peer : peers_) receive_rest(peer);
    return std::all_of(peers_.begin(), peers_.end(), [](const Peer& peer) { return peer.is_done(); });
}

void SocketGroup::send_rest(Peer& peer) {
    while (peer.num_unsent) {
        const ssize_t count = send(peer.socket, peer.rest, peer.num_unsent, SEND_FLAGS);
        if (count < 0 && would_block()) return;
        if (count < 0) lose(peer, errno == ETIMEDOUT);
        peer.rest += count;
        peer.num_unsent -= count;
    }
}

void SocketGroup::receive_rest(Peer& peer) {
    while (peer.num_received < peer.num_parts_bytes) {
        iovec spans[MAX_SPANS];
        int num_spans = 0;
        for (int64_t at = peer.num_received; at < peer.num_parts_bytes && num_spans < MAX_SPANS;) {
            const int64_t row = at / peer.part_bytes, column = at % peer.part_bytes;
            const int64_t num_bytes = peer.part_bytes - column;
            spans[num_spans++] = {peer.whole + row * peer.whole_bytes + column, static_cast<size_t>(num_bytes)};
            at += num_bytes;
        }
        msghdr message{};
        message.msg_iov = spans;
        message.msg_iovlen = num_spans;
        const ssize_t count = recvmsg(peer.socket, &message, MSG_DONTWAIT);
        if (count < 0 && would_block()) return;
        if (count <= 0) lose(peer, count < 0 && errno == ETIMEDOUT);
        peer.num_received += count;
    }
}

// Sleep until a socket has received something or can send again.
void SocketGroup::wait() {
    std::vector<pollfd> polled;
    for (const Peer& peer : peers_) {
        const bool sends = peer.num_unsent, receives = peer.num_received < peer.num_parts_bytes;
        if (sends || receives)
            polled.push_back({peer.socket, static_cast<short>((sends ? POLLOUT : 0) | (receives ? POLLIN : 0)), 0});
    }
    if (poll(polled.data(), polled.size(), sockets_->timeout_ms)) return;  // also after a signal
    lose(*std::find_if(peers_.begin(), peers_.end(), [](const Peer& peer) { return !peer.is_done(); }), true);
}

// End the group: the other ranks must not wait for this one.
void SocketGroup::lose(const Peer& peer, bool is_late) {
    sockets_->lost_rank = peer.rank;
    sockets_->is_late = is_late;
    for (const Peer& each : peers_) shutdown(each.socket, SHUT_RDWR);
    throw GroupEnded{};
}

}  // namespace smoe
