// The runtime's functions that shim headers call. All of them are convergent: no pass of the compiler
// may copy a call into a branch, so that two threads at two calls are two places in the source.
#pragma once

#include "operations.h"

#define SOFTMETAL_CONVERGENT __attribute__((convergent, nothrow))
#define SOFTMETAL_SITE 1409286211u  // becomes the number of the call (emulator/instrument.py)

extern "C" {
SOFTMETAL_CONVERGENT void softmetal_threadgroup_barrier(unsigned flags, unsigned site);
SOFTMETAL_CONVERGENT void softmetal_simdgroup_barrier(unsigned flags, unsigned site);
SOFTMETAL_CONVERGENT unsigned long long softmetal_shuffle(unsigned long long value, unsigned by,
                                                          softmetal::Shuffle kind, unsigned site);
SOFTMETAL_CONVERGENT float softmetal_reduce_float(float value, softmetal::Reduction kind,
                                                  unsigned site);
SOFTMETAL_CONVERGENT long long softmetal_reduce_integer(long long value, softmetal::Reduction kind,
                                                        unsigned is_unsigned, unsigned site);
SOFTMETAL_CONVERGENT float softmetal_scan_float(float value, unsigned inclusive, unsigned site);
SOFTMETAL_CONVERGENT long long softmetal_scan_integer(long long value, unsigned inclusive,
                                                      unsigned site);
SOFTMETAL_CONVERGENT unsigned softmetal_ballot(unsigned value, unsigned site);
SOFTMETAL_CONVERGENT softmetal::Pair softmetal_multiply(float a0, float a1, float b0, float b1,
                                                        float c0, float c1, unsigned site);
SOFTMETAL_CONVERGENT void softmetal_together(unsigned site);  // all lanes are here
unsigned long long softmetal_threadgroup_array(unsigned key, unsigned long long bytes,
                                               unsigned align, unsigned element, unsigned site);
unsigned softmetal_lane();
void softmetal_count_exp2();
}
