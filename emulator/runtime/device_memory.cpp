#include "device_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

namespace softmetal {

namespace {

using Span = std::pair<uintptr_t, uintptr_t>;  // begin, end

Span span_of(const Buffer& buffer) {
  const auto data = reinterpret_cast<uintptr_t>(buffer.data);
  return {data - buffer.before, data + buffer.bytes};
}

}  // namespace

CellRange::CellRange(uintptr_t start, size_t bytes) : start_(start), bytes_(bytes) {
  void* memory = mmap(nullptr, bytes * sizeof(DeviceCell), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  cells_ = static_cast<DeviceCell*>(memory);
}

CellRange::~CellRange() { munmap(cells_, bytes_ * sizeof(DeviceCell)); }

void DeviceMemory::clear() {
  ranges_.clear();
  tracking_.clear();
}

void DeviceMemory::bind(const std::map<int, Buffer>& buffers) {
  clear();
  tracking_.resize(kMaxBuffers);
  // Memory may be bound twice, also partly: one cell per address, not per binding.
  std::vector<Span> spans;
  for (const auto& [index, buffer] : buffers) {
    const auto [start, end] = span_of(buffer);
    if (buffer.writable && start < end) spans.emplace_back(start, end);
  }
  std::sort(spans.begin(), spans.end());
  std::vector<Span> merged;
  for (const auto& span : spans) {
    if (!merged.empty() && span.first < merged.back().second) {
      merged.back().second = std::max(merged.back().second, span.second);
    } else {
      merged.push_back(span);
    }
  }
  for (const auto& [start, end] : merged) {
    ranges_.push_back(std::make_unique<CellRange>(start, end - start));
  }
  for (const auto& [index, buffer] : buffers) {
    const auto [start, end] = span_of(buffer);
    Tracking& tracking = tracking_[index];
    for (size_t i = 0; i < merged.size(); ++i) {
      if (merged[i].first < end && start < merged[i].second) {
        tracking.ranges.push_back(ranges_[i].get());
      }
    }
    tracking.poisoned = poisoned(reinterpret_cast<void*>(start), end - start);
  }
}

bool DeviceMemory::tracked(int buffer) const {
  return !tracking_[buffer].ranges.empty() || !tracking_[buffer].poisoned.empty();
}

DeviceMemory::Result DeviceMemory::access(int buffer, uintptr_t address, u32 bytes, bool store,
                                          u32 group, const Order& now) {
  Tracking& tracking = tracking_[buffer];
  Result result;
  const auto conflict = [&](Conflict kind, u32 other, u32 stamp) {
    if (result.conflict == Conflict::None) result = {kind, other, stamp};
  };
  for (const auto& range : tracking.poisoned) {
    const uintptr_t low = std::max(address, range->start);
    const uintptr_t high = std::min<uintptr_t>(address + bytes, range->end());
    for (uintptr_t at = low; at < high; ++at) {
      uint8_t& written = range->written[at - range->start];
      if (store) {
        written = 1;
      } else if (!written) {
        conflict(Conflict::Uninitialised, 0, 0);
      }
    }
  }
  for (CellRange* range : tracking.ranges) {
    for (uintptr_t at = address; at < address + bytes; ++at) {
      if (!range->contains(at)) continue;
      DeviceCell& cell = *range->at(at);
      if (cell.writer_group && cell.writer_group != group) {
        conflict(Conflict::WriterOfOtherGroup, cell.writer_group, cell.writer);
      } else if (cell.writer_group && unordered(cell.writer, now)) {
        conflict(Conflict::Writer, group, cell.writer);
      }
      if (!store) {
        if (cell.reader_group == 0) {
          cell.reader_group = group;
          cell.reader = now.stamp;
        } else if (cell.reader_group == group) {
          cell.reader = with_reader(cell.reader, now);
        } else {
          cell.reader_group = kSeveralGroups;
        }
        continue;
      }
      if (cell.reader_group && cell.reader_group != group) {
        conflict(Conflict::ReaderOfOtherGroup, cell.reader_group, cell.reader);
      } else if (cell.reader_group && unordered(cell.reader, now)) {
        conflict(Conflict::Reader, group, cell.reader);
      }
      cell.writer_group = group;
      cell.writer = now.stamp;
    }
  }
  return result;
}

}  // namespace softmetal
