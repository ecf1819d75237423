// What one run found and counted.
#pragma once

#include <map>
#include <string>
#include <utility>

#include "softmetal.h"

namespace softmetal {

// Adds a finding, or counts it with one of the same kind at the same line.
void merge(std::vector<Finding>& all, const Finding& finding);

class Findings {
 public:
  // The same kind at the same site is one finding; `describe` makes the others' fields when it is new.
  // A line may have several sites: loops are unrolled, functions inlined.
  template <class Describe>
  void add(const char* kind, unsigned site, Describe describe) {
    auto [at, is_new] = known_.try_emplace({kind, site}, found_.size());
    if (is_new) {
      Finding finding = describe();
      finding.kind = kind;
      found_.push_back(std::move(finding));
    } else {
      ++found_[at->second].count;
    }
  }

  std::vector<Finding> take() {
    known_.clear();
    std::vector<Finding> merged;
    for (const Finding& finding : std::exchange(found_, {})) merge(merged, finding);
    return merged;
  }

 private:
  std::map<std::pair<std::string, unsigned>, size_t> known_;
  std::vector<Finding> found_;
};

// Adds a run to what take_report() returns.
void publish(const std::string& kernel, const Counters& counters,
             const std::vector<Finding>& findings);

void add(Counters& sum, const Counters& more);

}  // namespace softmetal
