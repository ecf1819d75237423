#include "src/backends/cpu_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <thread>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace sdpa::cpu {

namespace {

int affine_threads() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, int(std::thread::hardware_concurrency()));
}

// Linux control group v2: "<microseconds of CPU time> <per period>", or "max <period>".
int quota_threads(int all) {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  double time = 0, period = 0;
  if (!(file >> time >> period) || period <= 0) return all;
  return std::max(1, int(time / period + 0.999));
}

// A core that sleeps takes 40 us to wake up on a virtual machine, as long as a core reads 1 MB; so a thread whose own
// work is done waits this long, for the others or for the next job, before it sleeps. Elsewhere than on Linux that was
// never measured.
template <class F>
void wait_awake([[maybe_unused]] F ready) {
#if defined(__linux__)
  const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(100);
  while (!ready() && std::chrono::steady_clock::now() < end) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
  }
#endif
}

// A mutex that is taken for an instant only; to sleep until it is free would cost as much.
void lock_awake(std::unique_lock<std::mutex>& lock) {
  wait_awake([&] { return lock.try_lock(); });
  if (!lock.owns_lock()) lock.lock();
}

}  // namespace

int available_threads() {
  const int all = affine_threads();
  return std::min(all, quota_threads(all));
}

struct Pool::Job {
  Call call;
  const void* work;
  int64_t tasks;
  int places;  // threads that may still join, under Pool::mutex_
  std::atomic<int64_t> next{0};
  int next_worker = 1;         // under Pool::mutex_
  std::atomic<int> active{0};  // workers on it; written under Pool::mutex_
  std::condition_variable done{};
  Job* link = nullptr;

  void drain(int worker) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;)
      call(work, i, worker);
  }
};

// Never destroyed: MLX's stream threads can outlive static destructors.
Pool& Pool::instance() {
  static Pool* pool = new Pool;
  return *pool;
}

void Pool::reserve(int threads) {
  std::lock_guard lock(mutex_);
  for (; int(workers_.size()) < threads - 1; callers_core_ = -1) {
    workers_.reserve(workers_.size() + 1);
    std::thread worker([this] { loop(); });
    workers_.push_back(worker.native_handle());
    worker.detach();
  }
}

// Linux wakes a thread on the waker's core where it sees no idle one, and on a virtual machine it takes a core that
// sleeps for a busy one: after a pause, 7 decode steps of 10 had both threads of 2 cores on one of them.
void Pool::keep_off_callers_core() {
#if defined(__linux__)
  const int core = sched_getcpu();
  if (core < 0 || core == callers_core_) return;
  callers_core_ = core;
  cpu_set_t others;
  if (sched_getaffinity(0, sizeof(others), &others) != 0) return;
  CPU_CLR(core, &others);
  if (CPU_COUNT(&others) == 0) return;
  for (const auto worker : workers_) pthread_setaffinity_np(worker, sizeof(others), &others);
#endif
}

void Pool::run(int64_t tasks, int threads, Call call, const void* work) {
  if (threads <= 1 || tasks <= 1) {
    for (int64_t i = 0; i < tasks; ++i) call(work, i, 0);
    return;
  }
  Job job{.call = call,
          .work = work,
          .tasks = tasks,
          .places = int(std::min<int64_t>(threads, tasks)) - 1};
  std::unique_lock lock(mutex_, std::defer_lock);
  lock_awake(lock);
  keep_off_callers_core();
  job.link = jobs_;
  jobs_ = &job;
  posted_.fetch_add(1, std::memory_order_relaxed);
  lock.unlock();
  wake_.notify_all();
  job.drain(0);
  lock_awake(lock);
  Job** at = &jobs_;
  while (*at != &job) at = &(*at)->link;
  *at = job.link;  // nobody joins from here on
  lock.unlock();
  wait_awake([&] { return job.active.load(std::memory_order_relaxed) == 0; });
  lock_awake(lock);
  job.done.wait(lock, [&] { return job.active == 0; });
}

void Pool::loop() {
  std::unique_lock lock(mutex_);
  for (;;) {
    Job* job = nullptr;
    const auto find = [&] {
      for (job = jobs_; job && job->places == 0;) job = job->link;
      return job != nullptr;
    };
    if (!find()) {
      const unsigned before = posted_.load(std::memory_order_relaxed);
      lock.unlock();
      wait_awake([&] { return posted_.load(std::memory_order_relaxed) != before; });
      lock_awake(lock);
      wake_.wait(lock, find);
    }
    const int worker = job->next_worker++;
    --job->places;
    ++job->active;
    lock.unlock();
    job->drain(worker);
    lock_awake(lock);
    if (--job->active == 0) job->done.notify_all();
  }
}

}  // namespace sdpa::cpu
