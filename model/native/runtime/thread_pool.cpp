#include "runtime/thread_pool.h"

#include "runtime/signals_blocked.h"
#include "runtime/spin.h"

namespace smoe {
namespace {

constexpr uint64_t CLOSED = 0xffffffffu;
constexpr size_t ALIGNMENT = 64;

uint64_t job_of(uint64_t ticket) { return ticket >> 32; }
uint64_t index_of(uint64_t ticket) { return ticket & 0xffffffffu; }

// One thread writes, so a plain load and store lose no count and no other core waits for the cache line.
void increment(std::atomic<uint64_t>* heartbeat) {
    if (heartbeat) heartbeat->store(heartbeat->load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

}  // namespace

Pool::Pool(int threads) : ticket_(CLOSED) {
    const SignalsBlocked blocked;
    try {
        for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
    } catch (...) {
        stop();
        throw;
    }
}

Pool::~Pool() { stop(); }

void Pool::beat() { increment(heartbeat_); }

void Pool::stop() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
    }
    wake_workers_.notify_all();
    for (auto& worker : workers_) worker.join();
    workers_.clear();
}

std::byte* Memory::reserve(size_t bytes) {
    if (bytes > bytes_) {
        memory_.reset();
        bytes_ = 0;
        memory_.reset(new std::byte[bytes + ALIGNMENT]);
        bytes_ = bytes;
    }
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    return memory_.get() + (ALIGNMENT - address % ALIGNMENT) % ALIGNMENT;
}

void Pool::run(int64_t n, Task task, void* context) {
    if (n <= 1 || workers_.empty()) {
        for (int64_t i = 0; i < n; ++i) {
            task(context, i);
            increment(heartbeat_);
        }
        return;
    }
    const uint64_t previous = job_of(ticket_.load());
    ticket_.store(previous << 32 | CLOSED);
    num_tasks_.store(n, std::memory_order_release);
    task_.store(task, std::memory_order_release);
    context_.store(context, std::memory_order_release);
    remaining_.store(n, std::memory_order_relaxed);
    ticket_.store((previous + 1) << 32);
    if (sleeping_workers_.load() > 0) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
        }
        wake_workers_.notify_all();
    }
    run_open_tasks(heartbeat_);
    await_completion();
}

// Run tasks until the current job has none left; return that job.
uint64_t Pool::run_open_tasks(std::atomic<uint64_t>* heartbeat) {
    uint64_t ticket = ticket_.load();
    while (index_of(ticket) != CLOSED) {
        const int64_t n = num_tasks_.load(std::memory_order_acquire);
        const Task task = task_.load(std::memory_order_acquire);
        void* context = context_.load(std::memory_order_acquire);
        const auto index = static_cast<int64_t>(index_of(ticket));
        if (index < n) {
            if (ticket_.compare_exchange_weak(ticket, ticket + 1)) {
                finish(task, context, index);
                increment(heartbeat);
            }
        } else if (ticket_.load() == ticket) {
            break;  // n belongs to this job
        }
        ticket = ticket_.load();
    }
    return job_of(ticket);
}

void Pool::finish(Task task, void* context, int64_t index) {
    task(context, index);
    if (remaining_.fetch_sub(1) > 1 || !caller_sleeps_.load()) return;
    {
        std::lock_guard<std::mutex> lock(mutex_);
    }
    wake_caller_.notify_one();
}

void Pool::await_completion() {
    const auto complete = [this] { return remaining_.load() == 0; };
    if (spin(complete)) return;
    caller_sleeps_ = true;
    std::unique_lock<std::mutex> lock(mutex_);
    wake_caller_.wait(lock, complete);
    caller_sleeps_ = false;
}

void Pool::work() {
    do {
        await_job_after(run_open_tasks(nullptr));
    } while (!stopping_);
}

void Pool::await_job_after(uint64_t seen) {
    const auto arrived = [this, seen] { return stopping_.load() || job_of(ticket_.load()) != seen; };
    if (spin(arrived)) return;
    std::unique_lock<std::mutex> lock(mutex_);
    ++sleeping_workers_;
    wake_workers_.wait(lock, arrived);
    --sleeping_workers_;
}

}  // namespace smoe
