// Threads that get no signals.
#pragma once

#include <pthread.h>
#include <signal.h>

namespace smoe {

// Block signals for threads started while the object lives: signals belong to the calling thread.
class SignalsBlocked {
  public:
    SignalsBlocked() {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before_);
    }
    ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

  private:
    sigset_t before_;
};

}  // namespace smoe
