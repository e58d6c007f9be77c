// Calls of kernels, read from standard input; what they wrote, to standard output; until the
// input ends.  For each kernel:
//
//   input   header u64[6] (see Header), for each buffer u64[2] (bytes, whether its end or its
//           beginning touches the forbidden page), u64[args] the kind of each argument, for each
//           call u64[args] its value, then the buffers one after the other
//   output  the buffers that may be written, and u64 that all went well
//
// The machine that runs this is emulated: bytes are moved by the kernel of the system wherever
// they can be, which is not.
//
// A pointer's value is a buffer's number plus, in its upper half, how many bytes before the
// buffer it points.  Integers and floats go where AAPCS64 wants them whatever their order: so
// one type of function fits every kernel.  Nothing of a C library is used.
#include <stddef.h>
#include <stdint.h>

enum { POINTER, INTEGER, FLOAT };
enum { MOST_INTEGERS = 32, MOST_FLOATS = 4, MOST_BUFFERS = 16, PAGE = 4096, DONE = 0x600D };
enum { READ = 63, WRITE = 64, EXIT = 93, MUNMAP = 215, MMAP = 222, MPROTECT = 226 };

typedef void (*Kernel)(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                       uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                       uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                       uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                       uint64_t, uint64_t, uint64_t, uint64_t, float, float, float, float);

#define KERNEL(name) void name(void);
#include "kernels.inc"
#undef KERNEL
#define KERNEL(name) (Kernel)(void *)name,
static const Kernel kernels[] = {
#include "kernels.inc"
};

typedef struct {
  uint64_t kernel, buffers, args, calls, written, unused;
} Header;

static long sys(long number, long a, long b, long c, long d, long e, long f) {
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = d;
  register long x4 __asm__("x4") = e;
  register long x5 __asm__("x5") = f;
  __asm__ volatile("svc 0"
                   : "+r"(x0)
                   : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                   : "memory");
  return x0;
}

static void fail(int code) {
  for (;;) sys(EXIT, code, 0, 0, 0, 0, 0);
}

static uint8_t *map(size_t bytes) {
  long at = sys(MMAP, 0, (long)bytes, 3, 0x22, -1, 0);
  if (at < 0) fail(10);
  return (uint8_t *)at;
}

static void transfer(long call, int file, uint8_t *at, size_t bytes) {
  while (bytes) {
    long done = sys(call, file, (long)at, (long)bytes, 0, 0, 0);
    if (done <= 0) fail(11);
    at += done;
    bytes -= (size_t)done;
  }
}

typedef struct {
  uint8_t *inside, *at;
  size_t length, bytes;
} Buffer;

static void fill(uint8_t *from, const uint8_t *end) {
  for (volatile uint8_t *p = from; p < end; p++) *p = 0xA5;
}

// A buffer of the input between pages that cannot be accessed; 0xA5 where it does not fill its
// own.
static Buffer guarded(size_t bytes, int at_end, int writable) {
  const size_t length = (bytes + PAGE - 1) / PAGE * PAGE + (bytes == 0) * PAGE;
  uint8_t *base = map(length + 2 * PAGE);
  Buffer buffer = {.inside = base + PAGE, .length = length, .bytes = bytes};
  buffer.at = buffer.inside + (at_end ? length - bytes : 0);
  fill(buffer.inside, buffer.at);
  transfer(READ, 0, buffer.at, bytes);
  fill(buffer.at + bytes, buffer.inside + length);
  if (sys(MPROTECT, (long)base, PAGE, 0, 0, 0, 0)) fail(12);
  if (sys(MPROTECT, (long)(base + PAGE + length), PAGE, 0, 0, 0, 0)) fail(12);
  if (sys(MPROTECT, (long)buffer.inside, (long)length, writable ? 3 : 1, 0, 0, 0)) fail(12);
  return buffer;
}

static int is_filled(const uint8_t *from, const uint8_t *end) {
  for (const uint8_t *p = from; p < end; p++)
    if (*p != 0xA5) return 0;
  return 1;
}

static int is_intact(const Buffer *buffer) {
  return is_filled(buffer->inside, buffer->at) &&
         is_filled(buffer->at + buffer->bytes, buffer->inside + buffer->length);
}

static void unmap(uint8_t *at, size_t bytes) {
  if (sys(MUNMAP, (long)at, (long)bytes, 0, 0, 0, 0)) fail(15);
}

static void call(const Header *header, const Buffer *buffers, const uint64_t *kinds,
                 const uint64_t *values) {
  uint64_t n[MOST_INTEGERS];
  float f[MOST_FLOATS];
  size_t integers = 0, floats = 0;
  for (size_t i = 0; i < header->args; i++) {
    if (kinds[i] == FLOAT) {
      if (floats == MOST_FLOATS) fail(13);
      union { uint32_t bits; float value; } u = {(uint32_t)values[i]};
      f[floats++] = u.value;
      continue;
    }
    if (integers == MOST_INTEGERS) fail(13);
    const uint32_t before = (uint32_t)(values[i] >> 32);
    n[integers++] = kinds[i] == INTEGER
                        ? values[i]
                        : (uint64_t)(buffers[(uint32_t)values[i]].at - before);
  }
  for (; integers < MOST_INTEGERS; integers++) ((volatile uint64_t *)n)[integers] = 0;
  for (; floats < MOST_FLOATS; floats++) ((volatile float *)f)[floats] = 0;
  kernels[header->kernel](n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10],
                          n[11], n[12], n[13], n[14], n[15], n[16], n[17], n[18], n[19], n[20],
                          n[21], n[22], n[23], n[24], n[25], n[26], n[27], n[28], n[29], n[30],
                          n[31], f[0], f[1], f[2], f[3]);
}

// One kernel's calls; 0 where the input ends in place of a header.
static int serve(void) {
  Header header;
  Buffer buffers[MOST_BUFFERS];
  const long first = sys(READ, 0, (long)&header, sizeof header, 0, 0, 0);
  if (!first) return 0;
  if (first < 0) fail(11);
  transfer(READ, 0, (uint8_t *)&header + first, sizeof header - (size_t)first);
  if (header.buffers > MOST_BUFFERS) fail(13);
  const size_t numbers = 2 * header.buffers + header.args + header.args * header.calls;
  uint64_t *shapes = (uint64_t *)map(numbers * 8);
  transfer(READ, 0, (uint8_t *)shapes, numbers * 8);
  const uint64_t *kinds = shapes + 2 * header.buffers, *values = kinds + header.args;
  for (size_t i = 0; i < header.buffers; i++) {
    const int writable = (int)(header.written >> i & 1);
    buffers[i] = guarded(shapes[2 * i], shapes[2 * i + 1] != 0, writable);
  }
  for (size_t i = 0; i < header.calls; i++)
    call(&header, buffers, kinds, values + i * header.args);
  for (size_t i = 0; i < header.buffers; i++)
    if (!is_intact(&buffers[i])) fail(14);
  for (size_t i = 0; i < header.buffers; i++) {
    if (header.written >> i & 1) transfer(WRITE, 1, buffers[i].at, buffers[i].bytes);
    unmap(buffers[i].inside - PAGE, buffers[i].length + 2 * PAGE);
  }
  unmap((uint8_t *)shapes, numbers * 8);
  uint64_t done = DONE;
  transfer(WRITE, 1, (uint8_t *)&done, sizeof done);
  return 1;
}

void _start(void) {
  while (serve()) {}
  fail(0);
}
