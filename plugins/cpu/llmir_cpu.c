// Every kernel of llmir for CPUs, one translation unit: one object per ISA level.
//
// Each file opens with the formula and the ABI of the functions it exports.  They are
// freestanding: no libc, no globals that can be written, no calls that the compiler invents.
#include "matmul.c"
#include "attention.c"
#include "rows.c"
#include "team.c"
