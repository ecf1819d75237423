// The CUDA driver's functions that are called here, from the library that MLX has loaded. Names, types and values are
// those of the driver API, whose ABI is stable; its headers are not needed to build.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/arguments.h"

struct CUctx_st;
struct CUmod_st;
struct CUfunc_st;
struct CUgraph_st;
struct CUgraphNode_st;

namespace sdpa::cuda {

using CUdevice = int;
using CUresult = int;

constexpr int kMultiprocessors = 16;     // CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
constexpr int kCapabilityMajor = 75;     // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
constexpr int kCapabilityMinor = 76;     // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
constexpr int kSharedBytesOptin = 97;    // CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
constexpr int kFunctionSharedBytes = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES

// CUDA_KERNEL_NODE_PARAMS_v2
struct KernelNode {
  CUfunc_st* function;
  unsigned grid[3], block[3];
  unsigned shared_bytes;
  void** params;
  void** extra;
  void* kernel;
  CUctx_st* context;
};

struct Driver {
  CUresult (*cuGetErrorString)(CUresult, const char**);
  CUresult (*cuCtxGetDevice)(CUdevice*);
  CUresult (*cuDeviceGetAttribute)(int*, int attribute, CUdevice);
  CUresult (*cuModuleLoadData)(CUmod_st**, const void* image);
  CUresult (*cuModuleGetFunction)(CUfunc_st**, CUmod_st*, const char* name);
  CUresult (*cuFuncSetAttribute)(CUfunc_st*, int attribute, int value);
  CUresult (*cuTensorMapEncodeTiled)(TensorMap*, int type, uint32_t rank, void* address,
                                     const uint64_t* dims, const uint64_t* strides,
                                     const uint32_t* box, const uint32_t* element_strides,
                                     int interleave, int swizzle, int l2_promotion, int fill);
  CUresult (*cuGraphCreate)(CUgraph_st**, unsigned flags);
  CUresult (*cuGraphAddKernelNode_v2)(CUgraphNode_st**, CUgraph_st*, CUgraphNode_st* const* after,
                                      size_t, const KernelNode*);
  CUresult (*cuGraphDestroy)(CUgraph_st*);
};

// Throws std::runtime_error where there is no driver.
const Driver& driver();

// Throws std::runtime_error that names the call.
void check(CUresult, const char* call);

}  // namespace sdpa::cuda
