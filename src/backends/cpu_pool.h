// A persistent pool of worker threads. The caller of run() works too; several callers may run jobs at once.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace sdpa::cpu {

// Cores this process may use: its affinity and, in a container, its quota.
int available_threads();

class Pool {
 public:
  // Starts workers so that, with the caller, `threads` can work at once. May throw std::system_error.
  void reserve(int threads);

  // work(task, worker) for every task in [0, tasks), taken in that order; worker < threads names the scratch to use.
  // Returns when all are done. Allocates nothing and throws nothing; nor may `work`.
  template <class Work>
  void run(int64_t tasks, int threads, const Work& work) {
    const Call call = [](const void* w, int64_t task, int worker) {
      (*static_cast<const Work*>(w))(task, worker);
    };
    run(tasks, threads, call, &work);
  }

  static Pool& instance();

 private:
  using Call = void (*)(const void* work, int64_t task, int worker);
  struct Job;

  void run(int64_t tasks, int threads, Call call, const void* work);
  void loop();
  void keep_off_callers_core();  // under mutex_

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread::native_handle_type> workers_;
  std::atomic<unsigned> posted_{0};  // jobs so far
  int callers_core_ = -1;            // that the workers keep off
  Job* jobs_ = nullptr;              // those that run(), linked; each lies on its caller's stack
};

}  // namespace sdpa::cpu
