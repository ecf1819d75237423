#include "coverage.h"

#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <utility>

namespace softmetal {

namespace {

class Lines {
 public:
  // One file per process, in $SOFTMETAL_COVERAGE: emulator/coverage.py adds them up.
  ~Lines() {
    const char* folder = std::getenv("SOFTMETAL_COVERAGE");
    const std::string lines = folder ? text() : "";
    if (lines.empty()) return;
    std::ofstream(std::string(folder) + "/" + std::to_string(getpid()) + ".lines", std::ios::app)
        << lines;
  }

  void add(const LibraryEntry* entry) {
    const std::lock_guard lock(mutex_);
    loaded_.insert(entry);
  }

  void remove(const LibraryEntry* entry) {
    const std::lock_guard lock(mutex_);
    collect(*entry);
    loaded_.erase(entry);
  }

  std::string text() {
    const std::lock_guard lock(mutex_);
    for (const LibraryEntry* entry : loaded_) collect(*entry);
    std::string all;
    for (const auto& [at, executed] : executed_) {
      all += at.first + "\t" + std::to_string(at.second) + "\t" + (executed ? "1\n" : "0\n");
    }
    return all;
  }

 private:
  void collect(const LibraryEntry& entry) {
    for (u32 i = 0; i < entry.coverage_count; ++i) {
      const CoverageEntry& at = entry.coverage[i];
      bool& executed = executed_[{at.file, at.line}];
      executed = executed || entry.covered[at.block];
    }
  }

  std::mutex mutex_;
  std::map<std::pair<std::string, u32>, bool> executed_;  // by file and line
  std::set<const LibraryEntry*> loaded_;
};

Lines& lines() {
  static Lines l;
  return l;
}

}  // namespace

void start_coverage(const LibraryEntry& entry) {
  if (entry.coverage_count) lines().add(&entry);
}

void end_coverage(const LibraryEntry& entry) {
  if (entry.coverage_count) lines().remove(&entry);
}

std::string coverage_text() { return lines().text(); }

}  // namespace softmetal
