#include "src/backends/cpu_device.h"

#include <atomic>
#include <stdexcept>

#include "src/backends/cpu_pool.h"

#if defined(__linux__)
#include <unistd.h>
#if SDPA_HAS_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#endif
#endif

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
#if SDPA_HAS_AVX512BF16
SDPA_DECLARE(avx512bf16)
#endif
#if SDPA_HAS_AMX
SDPA_DECLARE(amx)
#endif
#if SDPA_HAS_NEON
SDPA_DECLARE(neon)
#endif
#undef SDPA_DECLARE

namespace {

#if SDPA_HAS_AMX
// Whether the CPU multiplies tiles of bfloat16, and the kernel lets this process keep them: 8 KiB a thread that it
// would otherwise not save. Linux 5.16 and later; arch/x86/include/uapi/asm/prctl.h and the Intel SDM, leaf 7.
bool amx_usable() {
#if defined(__linux__)
  constexpr unsigned kBf16 = 1u << 22, kTiles = 1u << 24;  // EDX
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (kBf16 | kTiles)) != (kBf16 | kTiles))
    return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

// Kernels this machine can run, best first.
const std::vector<const Kernels*>& runnable() {
  static const std::vector<const Kernels*> found = [] {
    std::vector<const Kernels*> k;
#if SDPA_HAS_AVX512
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    // every CPU with AVX-512 BF16 has VNNI, which came before it
    const bool pairs =
        avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
#if SDPA_HAS_AMX
    if (pairs && amx_usable()) k.push_back(&amx::kernels);
#endif
#if SDPA_HAS_AVX512BF16
    if (pairs) k.push_back(&avx512bf16::kernels);
#endif
    if (avx512) k.push_back(&avx512::kernels);
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

// Of one core; on Apple silicon the cores of a cluster share 4 MiB and more among at most 6.
int64_t l2_bytes() {
#if defined(__linux__)
  static const int64_t found = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (found > 0) return found;
#endif
  return Device{}.l2_bytes;
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
          .threads = chosen > 0 ? chosen : available,
          .l2_bytes = l2_bytes()};
}

}  // namespace sdpa::cpu
