#include <algorithm>
#include <mutex>
#include <utility>

#include "findings.h"

namespace softmetal {

namespace {

struct Global {
  std::mutex mutex;
  Report report;
};

Global& global() {
  static Global g;
  return g;
}

}  // namespace

// Where no line is known, the message tells findings apart.
void merge(std::vector<Finding>& all, const Finding& finding) {
  const auto same = std::find_if(all.begin(), all.end(), [&](const Finding& other) {
    return other.kind == finding.kind && other.kernel == finding.kernel &&
           other.where == finding.where &&
           (!finding.where.empty() || other.message == finding.message);
  });
  if (same == all.end()) {
    all.push_back(finding);
  } else {
    same->count += finding.count;
  }
}

void add(Counters& sum, const Counters& more) {
  sum.dispatches += more.dispatches;
  sum.threadgroups += more.threadgroups;
  sum.threads += more.threads;
  sum.multiplies += more.multiplies;
  sum.device_read_bytes += more.device_read_bytes;
  sum.device_write_bytes += more.device_write_bytes;
  sum.constant_read_bytes += more.constant_read_bytes;
  sum.threadgroup_read_bytes += more.threadgroup_read_bytes;
  sum.threadgroup_write_bytes += more.threadgroup_write_bytes;
  sum.threadgroup_barriers += more.threadgroup_barriers;
  sum.simdgroup_barriers += more.simdgroup_barriers;
  sum.shuffles += more.shuffles;
  sum.reductions += more.reductions;
  sum.exp2 += more.exp2;
  sum.threadgroup_memory_bytes =
      std::max(sum.threadgroup_memory_bytes, more.threadgroup_memory_bytes);
}

void publish(const std::string& kernel, const Counters& counters,
             const std::vector<Finding>& findings) {
  Global& g = global();
  const std::lock_guard lock(g.mutex);
  add(g.report.counters, counters);
  add(g.report.kernels[kernel], counters);
  for (const Finding& finding : findings) merge(g.report.findings, finding);
}

void note(const Finding& finding) {
  Global& g = global();
  const std::lock_guard lock(g.mutex);
  merge(g.report.findings, finding);
}

Report take_report() {
  Global& g = global();
  const std::lock_guard lock(g.mutex);
  return std::exchange(g.report, {});
}

}  // namespace softmetal
