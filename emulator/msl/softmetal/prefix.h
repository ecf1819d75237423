// Put before every kernel source in mode X (execution). From here on the words of MSL are keywords.
#pragma once

#include "conversions.h"
#include "entry.h"
#include "runtime.h"

extern "C" {
inline unsigned softmetal_lane() { return softmetal_context->thread->lane; }
inline void softmetal_count_exp2() { ++softmetal_context->counts.exp2; }
}

#define thread
#define device __attribute__((address_space(1)))
#define constant const __attribute__((address_space(2)))
#define threadgroup __attribute__((address_space(3)))
#define kernel
