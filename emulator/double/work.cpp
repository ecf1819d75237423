#include "work.h"

#include <exception>
#include <mutex>

namespace mlx::core::metal {

namespace {

std::mutex commits_mutex;
std::vector<int> commits;

void run_job(const Job& job) {
  std::map<int, softmetal::Buffer> buffers;
  std::vector<std::shared_ptr<array::Data>> alive;
  for (const auto& [index, b] : job.table) {
    if (b.bytes) {
      buffers[index] = {.data = b.bytes->data(), .bytes = b.bytes->size()};
      continue;
    }
    alive.push_back(b.owner.lock());
    if (!alive.back()) {
      found("host-lifetime", job.pipeline->name,
            "index " + std::to_string(index) + " was freed before the kernel ran");
      return;
    }
    buffers[index] = {.data = b.begin + b.offset,
                      .bytes = b.size - size_t(b.offset),
                      .writable = b.writable,
                      .before = size_t(b.offset)};
  }
  try {
    softmetal::run(*job.pipeline->kernel, {job.grid.width, job.grid.height, job.grid.depth},
                   {job.group.width, job.group.height, job.group.depth}, buffers);
  } catch (const std::exception& error) {
    found("host-run", job.pipeline->name, error.what());
  }
}

}  // namespace

void record_commit(int dispatches) {
  std::lock_guard lock(commits_mutex);
  commits.push_back(dispatches);
}

std::vector<int> take_commits() {
  std::lock_guard lock(commits_mutex);
  return std::exchange(commits, {});
}

void found(const char* kind, const std::string& kernel, const std::string& message) {
  softmetal::Finding finding;
  finding.kind = kind;
  finding.kernel = kernel;
  finding.message = message;
  softmetal::note(finding);
}

// An exception would end the process here: what goes wrong is a finding, and NaN in the result.
void Work::run() {
  for (const Binding& b : fresh)
    if (const auto alive = b.owner.lock()) softmetal::poison(b.begin, b.size);
  for (Job& job : jobs) {
    if (job.pipeline) {
      run_job(job);
    } else {
      for (auto& handler : job.handlers) handler(job.buffer.get());
      job.handlers.clear();
    }
  }
  for (const Binding& b : fresh) softmetal::forget(b.begin, b.size);
  jobs.clear();
  kept.clear();
}

}  // namespace mlx::core::metal
