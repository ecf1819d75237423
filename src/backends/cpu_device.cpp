#include "src/backends/cpu_device.h"

#include <atomic>
#include <stdexcept>

#include "src/backends/cpu_pool.h"

namespace sdpa::cpu {

#define SDPA_DECLARE(isa)       \
  namespace isa {               \
  extern const Kernels kernels; \
  }
#if SDPA_HAS_BASELINE
SDPA_DECLARE(baseline)
#endif
#if SDPA_HAS_AVX2
SDPA_DECLARE(avx2)
#endif
#if SDPA_HAS_AVX512
SDPA_DECLARE(avx512)
#endif
#if SDPA_HAS_NEON
SDPA_DECLARE(neon)
#endif
#undef SDPA_DECLARE

namespace {

// Kernels this machine can run, best first.
const std::vector<const Kernels*>& runnable() {
  static const std::vector<const Kernels*> found = [] {
    std::vector<const Kernels*> k;
#if SDPA_HAS_AVX512
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      k.push_back(&avx512::kernels);
#endif
#if SDPA_HAS_AVX2
    // every CPU with AVX2 converts float16 (F16C), which came a generation before it
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
      k.push_back(&avx2::kernels);
#endif
#if SDPA_HAS_NEON
    k.push_back(&neon::kernels);
#endif
#if SDPA_HAS_BASELINE
    k.push_back(&baseline::kernels);
#endif
    return k;
  }();
  return found;
}

std::atomic<const Kernels*> chosen_kernels{nullptr};
std::atomic<int> chosen_threads{0};

}  // namespace

const Kernels& kernels_in_use() {
  const Kernels* chosen = chosen_kernels.load();
  return chosen ? *chosen : *runnable().front();
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* k : runnable()) names.push_back(k->isa);
  return names;
}

void use_instruction_set(const std::string& name) {
  if (name.empty()) {
    chosen_kernels = nullptr;
    return;
  }
  std::string known;
  for (const Kernels* k : runnable()) {
    if (name == k->isa) {
      chosen_kernels = k;
      return;
    }
    known += (known.empty() ? "" : ", ") + std::string(k->isa);
  }
  throw std::invalid_argument("instruction set '" + name + "': this machine and build run " +
                              known);
}

void use_threads(int n) {
  if (n < 0)
    throw std::invalid_argument("threads: got " + std::to_string(n) +
                                ", expected 0 (all cores) or more");
  chosen_threads = n;
}

Device device() {
  static const int available = available_threads();
  const int chosen = chosen_threads.load();
  return {.backend = Backend::cpu,
          .arch = kernels_in_use().isa,
          .threads = chosen > 0 ? chosen : available};
}

}  // namespace sdpa::cpu
