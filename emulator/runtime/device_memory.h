// Who touched which byte of writable device memory, in one dispatch.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "abi.h"
#include "ordering.h"
#include "poison.h"
#include "softmetal.h"

namespace softmetal {

inline constexpr u32 kSeveralGroups = ~0u;

struct DeviceCell {
  u32 writer_group, writer;  // threadgroup + 1 (0: nobody), stamp
  u32 reader_group, reader;
};

// Cells for a range of addresses, zero at first. Pages that nobody touches take no memory.
class CellRange {
 public:
  CellRange(uintptr_t start, size_t bytes);
  ~CellRange();
  CellRange(const CellRange&) = delete;
  CellRange& operator=(const CellRange&) = delete;

  DeviceCell* at(uintptr_t address) { return cells_ + (address - start_); }
  bool contains(uintptr_t address) const { return address - start_ < bytes_; }

 private:
  uintptr_t start_;
  size_t bytes_;
  DeviceCell* cells_;
};

class DeviceMemory {
 public:
  void bind(const std::map<int, Buffer>& buffers);
  void clear();

  // Writable, or holding nothing in places: each access has to be looked at.
  bool tracked(int buffer) const;

  enum class Conflict {
    None,
    Uninitialised,
    WriterOfOtherGroup,
    ReaderOfOtherGroup,
    Writer,  // a thread of the same threadgroup
    Reader,
  };
  struct Result {
    Conflict conflict = Conflict::None;
    u32 group = 0, stamp = 0;  // of the other one
  };
  Result access(int buffer, uintptr_t address, u32 bytes, bool store, u32 group, const Order& now);

 private:
  struct Tracking {
    std::vector<CellRange*> ranges;
    std::vector<std::shared_ptr<Poisoned>> poisoned;
  };
  std::vector<std::unique_ptr<CellRange>> ranges_;
  std::vector<Tracking> tracking_;  // by buffer
};

}  // namespace softmetal
