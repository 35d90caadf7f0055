// Thread pool of all kernels: persistent workers beside the calling thread, which is thread 0.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace smoe {

// Scratch memory that only grows: page faults of fresh memory would cost more than the computation.
class Memory {
  public:
    // Return memory aligned to 64 bytes, valid until the next call. Throws std::bad_alloc.
    std::byte* reserve(size_t bytes);

  private:
    std::unique_ptr<std::byte[]> memory_;
    size_t bytes_ = 0;
};

// Serves one caller at a time. Any thread may run any task, so a result must not depend on it.
class Pool {
  public:
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return static_cast<int>(workers_.size()) + 1; }

    // The calling thread increments this counter with each task it runs; readers see that the work makes progress.
    void set_heartbeat(uint64_t* counter) { heartbeat_ = reinterpret_cast<std::atomic<uint64_t>*>(counter); }
    // Increment it for work that is done elsewhere. Only the calling thread may.
    void beat();

    // Run f(0) .. f(n - 1), each once, and return when all are done. f must not throw; n < 2^32 - 1.
    template <class F>
    void parallel_for(int64_t n, F&& f) {
        using Function = std::remove_reference_t<F>;
        run(
            n, [](void* context, int64_t task) { (*static_cast<Function*>(context))(task); },
            const_cast<void*>(static_cast<const void*>(&f)));
    }

    // Memory for the intermediate results of one call, valid until the next call of scratch(). Throws std::bad_alloc.
    std::byte* scratch(size_t bytes) { return scratch_.reserve(bytes); }

    // Memory that outlives calls of scratch(), valid until the next call of activations(). Throws std::bad_alloc.
    std::byte* activations(size_t bytes) { return activations_.reserve(bytes); }

  private:
    using Task = void (*)(void* context, int64_t task);

    void run(int64_t n, Task task, void* context);
    void work();
    void stop();
    uint64_t run_open_tasks(std::atomic<uint64_t>* heartbeat);
    void finish(Task task, void* context, int64_t index);
    void await_job_after(uint64_t seen);
    void await_completion();

    // High half: job number; low half: its next task, or CLOSED while the fields below are replaced. A claim compares
    // both halves at once, so a worker that wakes late never takes a task of a job that it has not read.
    std::atomic<uint64_t> ticket_;
    std::atomic<int64_t> num_tasks_{0};
    std::atomic<Task> task_{nullptr};
    std::atomic<void*> context_{nullptr};
    std::atomic<int64_t> remaining_{0};  // unfinished tasks of the job

    std::mutex mutex_;
    std::condition_variable wake_workers_;
    std::condition_variable wake_caller_;
    std::atomic<int> sleeping_workers_{0};
    std::atomic<bool> caller_sleeps_{false};
    std::atomic<bool> stopping_{false};
    std::vector<std::thread> workers_;
    std::atomic<uint64_t>* heartbeat_ = nullptr;  // only the calling thread reads and writes it

    Memory scratch_;
    Memory activations_;
};

}  // namespace smoe
