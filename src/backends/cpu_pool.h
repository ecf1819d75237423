// A persistent pool of worker threads. The caller of run() works too; several callers may run jobs at once.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace sdpa::cpu {

// Cores this process may use.
int available_threads();

class Pool {
 public:
  // Starts workers so that, with the caller, `threads` can work at once. May throw std::system_error.
  void reserve(int threads);

  // work(task, worker) for every task in [0, tasks), in order of start; worker < threads names the scratch to use.
  // Returns when all are done. `work` must not throw.
  void run(int64_t tasks, int threads, const std::function<void(int64_t, int)>& work);

  static Pool& instance();

 private:
  struct Job;
  void loop();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
  std::list<std::shared_ptr<Job>> jobs_;
};

}  // namespace sdpa::cpu
