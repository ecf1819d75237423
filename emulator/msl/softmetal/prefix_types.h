// Put before every kernel source in mode T (types): the address spaces are OpenCL C++'s, which are
// as strict as Metal's.
#pragma once

#pragma OPENCL EXTENSION cl_khr_fp16 : enable

#include "runtime.h"

#define thread __private
#define device __global
#define constant __constant
#define threadgroup __local
#undef kernel
#define kernel
