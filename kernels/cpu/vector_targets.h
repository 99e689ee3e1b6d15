// SPDX-License-Identifier: Apache-2.0
// How the portable vector code reaches each instruction set.
//
// Code that Google Highway writes once lives in *.inc files. foreach_target.h includes such a file
// once per target, between pragmas that switch the target on for its functions alone. The .cc file
// then picks N_AVX2 or N_AVX3 by the backend's Isa: the choice belongs to each Backend object,
// which Highway's own dispatch (one choice per process) cannot give. Nothing is compiled with
// -march, as an inline function of a standard header compiled so could replace the portable copy at
// link time.
#pragma once

// The baseline x86-64 target is left out by never compiling the .inc files for it.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
