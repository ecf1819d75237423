// The parts of the module _ext.
#pragma once

#include <nanobind/nanobind.h>

void bind_plan(nanobind::module_&);  // tiles, plan: pure
void bind_gpu(nanobind::module_&);   // the GPU backend
