// Kernels of merging.h, compiled once for each instruction set.

#include "merging/match.inl"
#include "merging/merge.inl"
#include "merging/merging.h"
