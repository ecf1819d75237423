// What the launch sizes of all kernels have in common, for the host and for NVRTC.
#pragma once

#ifdef __CUDACC_RTC__  // which takes no host functions
#define SDPA_SIZE __device__ constexpr
#else
#define SDPA_SIZE constexpr
#endif

namespace sdpa {

// Shared memory of a multiprocessor in bytes, by compute capability (major * 10 + minor).
SDPA_SIZE int shared_bytes_of(int capability) {
  if (capability == 80 || capability == 87) return 164 * 1024;
  if (capability >= 90 && capability < 120) return 228 * 1024;
  return 100 * 1024;
}

// What a block can have of it.
SDPA_SIZE int block_bytes_of(int capability) { return shared_bytes_of(capability) - 1024; }

}  // namespace sdpa
