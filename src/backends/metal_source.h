// The Metal source of one kernel, put together from the files that are shipped as text.
#pragma once

#include <string>

namespace sdpa::metal {

// The folder that holds params.h, tile_bytes.h and metal/.
void set_kernel_folder(const std::string&);
std::string kernel_folder();
// How often the folder was set: kernels of different folders are different kernels.
int kernel_folder_generation();

// A kernel to compile.
struct Instance {
  std::string name;      // sdpa_prefill_float16_d256_v256_bq64_bk16_w4x2
  std::string file;      // kernels/metal/prefill.h
  std::string function;  // sdpa::prefill<half, 256, 256, 64, 16, 4, 2>
};

// The file with its includes of ours in their places, each once, and the explicit instantiation. One text, because
// Metal compiles no files. Throws std::runtime_error if a file is missing, or not ASCII, as MLX hands it on.
std::string source_of(const Instance&);

}  // namespace sdpa::metal
