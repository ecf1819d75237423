#include "src/backends/cpu_pool.h"

#include <algorithm>

#if defined(__linux__)
#include <sched.h>
#endif

namespace sdpa::cpu {

int available_threads() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

struct Pool::Job {
  const std::function<void(int64_t, int)>* work;
  int64_t tasks;
  int places;       // threads that may still join, under Pool::mutex_
  int next_worker;  // under Pool::mutex_
  std::atomic<int64_t> next{0};
  int active = 0;  // threads at work, under Pool::mutex_
  std::condition_variable done;

  void drain(int worker) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) (*work)(i, worker);
  }
};

// Never destroyed: MLX's stream threads can outlive static destructors.
Pool& Pool::instance() {
  static Pool* pool = new Pool;
  return *pool;
}

void Pool::reserve(int threads) {
  std::lock_guard lock(mutex_);
  while (int(workers_.size()) < threads - 1) {
    workers_.emplace_back([this] { loop(); });
    workers_.back().detach();
  }
}

void Pool::run(int64_t tasks, int threads, const std::function<void(int64_t, int)>& work) {
  if (tasks <= 0) return;
  if (threads <= 1 || tasks == 1) {
    for (int64_t i = 0; i < tasks; ++i) work(i, 0);
    return;
  }
  auto job = std::make_shared<Job>();
  job->work = &work;
  job->tasks = tasks;
  job->places = int(std::min<int64_t>(threads, tasks)) - 1;
  job->next_worker = 1;
  {
    std::lock_guard lock(mutex_);
    jobs_.push_back(job);
  }
  wake_.notify_all();
  job->drain(0);
  std::unique_lock lock(mutex_);
  jobs_.remove(job);  // nobody joins from here on
  job->done.wait(lock, [&] { return job->active == 0; });
}

void Pool::loop() {
  std::unique_lock lock(mutex_);
  for (;;) {
    std::shared_ptr<Job> job;
    wake_.wait(lock, [&] {
      for (auto& candidate : jobs_) {
        if (candidate->places > 0) {
          job = candidate;
          return true;
        }
      }
      return false;
    });
    const int worker = job->next_worker++;
    --job->places;
    ++job->active;
    lock.unlock();
    job->drain(worker);
    lock.lock();
    if (--job->active == 0) job->done.notify_all();
  }
}

}  // namespace sdpa::cpu
