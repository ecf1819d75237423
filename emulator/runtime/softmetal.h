// A software Metal device: MSL text in, kernels that run on the CPU out, with checks and counters.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#define SOFTMETAL_API __attribute__((visibility("default")))

namespace softmetal {

// One binding. `data` includes the offset that it was bound with, `bytes` reaches from there to the
// end of the allocation and `before` from its start: an access outside is a finding.
struct Buffer {
  void* data = nullptr;
  size_t bytes = 0;
  bool writable = false;
  // Metal aligns allocations to pages and the CPU does not: whether a vector load is aligned is
  // judged by `before`, not by `data`.
  size_t before = 0;
};

struct Size {
  size_t x = 1, y = 1, z = 1;
};

class Library;
class Kernel;

// Limits of the device, the same on every Apple GPU since the M1.
inline constexpr int kMaxThreads = 1024;                   // of one threadgroup
inline constexpr size_t kMaxThreadgroupBytes = 32 * 1024;  // of one threadgroup
inline constexpr int kMaxBuffers = 31;                     // indices 0 to 30

// Throws std::runtime_error with the compiler's text. The result is kept on disk, by content.
SOFTMETAL_API std::shared_ptr<Library> compile(const std::string& source);

// The host names of the library's kernels.
SOFTMETAL_API std::vector<std::string> kernel_names(const Library& library);

// Values of function constants, as bytes. Throws for an unknown kernel, for a constant that the
// source declares and that is missing here, or that has another size.
SOFTMETAL_API std::shared_ptr<Kernel> specialise(
    std::shared_ptr<Library> library, const std::string& name,
    const std::map<int, std::vector<uint8_t>>& constants);

// The buffer indices that the kernel declares.
SOFTMETAL_API std::vector<int> buffer_indices(const Kernel& kernel);

// What the pipeline's maxTotalThreadsPerThreadgroup says: 1024, or what a test lowered it to for the
// kernels whose name contains `name_part`. An empty `name_part` is every kernel; threads = 0 undoes.
SOFTMETAL_API int max_threads(const Kernel& kernel);
SOFTMETAL_API void set_max_threads(const std::string& name_part, int threads);

// Runs `grid` threadgroups of `group` threads and returns when all are done. What a kernel does wrong
// is recorded as a finding; what the host does wrong (an index that the kernel declares and that is
// not bound, too many threads or bytes of threadgroup memory) throws std::invalid_argument.
SOFTMETAL_API void run(const Kernel& kernel, Size grid, Size group,
                       const std::map<int, Buffer>& buffers);

// Fills memory with NaN bytes and remembers that it holds nothing: until a kernel writes a byte of it,
// in this dispatch or an earlier one, reading it is a finding. forget() ends that (the memory is
// freed, or the CPU writes to it); both take any part of any range.
SOFTMETAL_API void poison(void* data, size_t bytes);
SOFTMETAL_API void forget(void* data, size_t bytes);

struct Counters {
  uint64_t dispatches = 0;
  uint64_t threadgroups = 0;
  uint64_t threads = 0;
  uint64_t multiplies = 0;         // 8x8x8 products of a simdgroup
  uint64_t device_read_bytes = 0;  // all threads together, constant memory not included
  uint64_t device_write_bytes = 0;
  uint64_t constant_read_bytes = 0;     // `constant` buffers
  uint64_t threadgroup_read_bytes = 0;  // all threads together
  uint64_t threadgroup_write_bytes = 0;
  uint64_t threadgroup_barriers = 0;      // one for a threadgroup that passes one
  uint64_t simdgroup_barriers = 0;        // one for a simdgroup that passes one
  uint64_t shuffles = 0;                  // one for a simdgroup
  uint64_t reductions = 0;                // simd_sum, simd_max, simd_any ...: one for a simdgroup
  uint64_t exp2 = 0;                      // one for a thread
  uint64_t threadgroup_memory_bytes = 0;  // of one threadgroup, the largest seen
};

// One thing that a kernel did wrong. The same kind at the same place is one finding, with its first
// thread and the number of times it happened.
struct Finding {
  std::string kind;           // "out-of-bounds", "race", ...: emulator/README.md has the list
  std::string kernel;         // host name
  std::string where;          // "kernels/metal/prefill.h:123", or empty
  std::string message;        // a sentence
  Size threadgroup{0, 0, 0};  // position in the grid
  Size thread{0, 0, 0};       // position in the threadgroup
  uint64_t count = 1;
};

// A finding of somebody else (the double of MLX's classes), for the same report.
SOFTMETAL_API void note(const Finding& finding);

struct Report {
  Counters counters;                        // of all kernels
  std::map<std::string, Counters> kernels;  // by host name
  std::vector<Finding> findings;
};

// What happened since the last call, in all threads.
SOFTMETAL_API Report take_report();

}  // namespace softmetal
