// Memory that holds nothing yet, over several dispatches.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace softmetal {

struct Poisoned {
  uintptr_t start = 0;
  std::vector<uint8_t> written;  // one per byte

  uintptr_t end() const { return start + written.size(); }
};

// Those that overlap with the memory.
std::vector<std::shared_ptr<Poisoned>> poisoned(const void* data, size_t bytes);

}  // namespace softmetal
