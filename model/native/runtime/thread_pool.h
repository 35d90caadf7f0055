// Thread pool of all kernels: persistent workers beside the calling thread, which is thread 0.
//
// Threads claim tasks one by one. With many threads a single counter of tasks would be a queue of its own: each claim
// moves its cache line to another core. So threads form groups; the tasks of a job are dealt out to the groups, and a
// group that has done its own takes those of others.
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

    // From a task to the one that its thread takes next, if all take as long.
    int64_t stride() const { return threads() / static_cast<int64_t>(shares_.size()); }

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

    static constexpr size_t LINE = 128;  // bytes; two cache lines, because cores fetch them in pairs

    // Tasks of a job that a group of threads runs first. What its threads write is on lines of its own.
    struct Share {
        // High half: job number; low half: the next task, or CLOSED while the job is replaced. A claim compares both
        // halves at once, so a worker that wakes late never takes a task of a job that it has not read.
        alignas(LINE) std::atomic<uint64_t> ticket;
        std::atomic<int64_t> end{0};                 // of its tasks
        alignas(LINE) std::atomic<int64_t> done{0};  // tasks, of any share, that the group's threads finished
    };

    void run(int64_t n, Task task, void* context);
    void open_job(int64_t n, Task task, void* context);
    void work(size_t share);
    void stop();
    uint64_t run_open_tasks(size_t home, std::atomic<uint64_t>* heartbeat);
    uint64_t run_share(Share& share, int64_t& finished, std::atomic<uint64_t>* heartbeat);
    void add_finished(Share& home, int64_t count);
    bool is_complete() const;
    void await_job_after(uint64_t seen, const Share& home);
    void await_completion();

    std::vector<Share> shares_;  // thread i belongs to share i * shares / threads

    // Written by the caller, when it opens a job
    alignas(LINE) std::atomic<Task> task_{nullptr};
    std::atomic<void*> context_{nullptr};
    std::atomic<int64_t> num_tasks_{0};

    // Read often, written rarely
    alignas(LINE) std::atomic<int> sleeping_workers_{0};
    std::atomic<bool> caller_sleeps_{false};
    std::atomic<bool> stopping_{false};

    alignas(LINE) std::mutex mutex_;
    std::condition_variable wake_workers_;
    std::condition_variable wake_caller_;
    std::vector<std::thread> workers_;
    std::atomic<uint64_t>* heartbeat_ = nullptr;  // only the calling thread reads and writes it

    Memory scratch_;
    Memory activations_;
};

}  // namespace smoe
