#include "src/backends/cuda/driver.h"

#include <string>

#include "src/backends/cuda/symbol.h"

namespace sdpa::cuda {

namespace {

Driver load_driver() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) throw std::runtime_error(std::string("there is no CUDA driver here: ") + dlerror());
  Driver d;
  const auto load = [&](auto& f, const char* name) {
    load_symbol(f, library, "the CUDA driver", name);
  };
  load(d.cuGetErrorString, "cuGetErrorString");
  load(d.cuCtxGetDevice, "cuCtxGetDevice");
  load(d.cuDeviceGetAttribute, "cuDeviceGetAttribute");
  load(d.cuModuleLoadData, "cuModuleLoadData");
  load(d.cuModuleGetFunction, "cuModuleGetFunction");
  load(d.cuFuncSetAttribute, "cuFuncSetAttribute");
  load(d.cuTensorMapEncodeTiled, "cuTensorMapEncodeTiled");
  load(d.cuGraphCreate, "cuGraphCreate");
  load(d.cuGraphAddKernelNode_v2, "cuGraphAddKernelNode_v2");
  load(d.cuGraphDestroy, "cuGraphDestroy");
  return d;
}

}  // namespace

const Driver& driver() {
  static const Driver one = load_driver();
  return one;
}

void check(CUresult result, const char* call) {
  if (result == 0) return;
  const char* text = nullptr;
  driver().cuGetErrorString(result, &text);
  throw std::runtime_error(std::string(call) + ": " +
                           (text ? text : ("CUDA error " + std::to_string(result)).c_str()));
}

}  // namespace sdpa::cuda
