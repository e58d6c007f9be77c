// AMX's tiles: leave to use them, and their shapes.
#ifndef LLMIR_AMX_H
#define LLMIR_AMX_H

#include "simd.h"

#define AMX_ROWS 16

#if defined(__AMX_TILE__)

// The kernel lets a process use tiles only after it has asked; asking again costs 0.1 µs, and
// there is no memory here to remember an answer in.
INLINE void amx_ask(void) {
  const long arch_prctl = 158, request = 0x1023, tile_data = 18;
  long result = arch_prctl;
  __asm__ volatile("syscall"
                   : "+a"(result)
                   : "D"(request), "S"(tile_data)
                   : "rcx", "r11", "memory");
}

typedef struct {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes_per_row[16];
  uint8_t rows[16];
} AmxConfig;

INLINE AmxConfig amx_config(void) {
  AmxConfig config;
  for (size_t i = 0; i < 8; i++) ((volatile uint64_t *)&config)[i] = 0;  // volatile: no memset
  config.palette = 1;
  return config;
}

#endif
#endif
