// Marks what the shared library btr_core offers to the others; everything else is hidden.
#pragma once

#define BTR_EXPORT __attribute__((visibility("default")))
