// A libcuda.so.1 for tests: it knows the calls that the GPU runtime makes, runs nothing, and writes down each launch.
// FAKE_CUDA_STATUS is what cuLaunchKernel answers; FAKE_CUDA_TYPES says how to read its arguments: p, i or f each.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int version(int *out) { *out = 13050; return 0; }
static int error_string(int status, const char **out) { *out = status ? "fake trouble" : "no error"; return 0; }
static int get_context(void **out) { *out = (void *)0x1; return 0; }
static int succeed(void) { return 0; }

static int launch(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                  unsigned shared, void *stream, void **arguments, void **extra) {
    const char *types = getenv("FAKE_CUDA_TYPES"), *status = getenv("FAKE_CUDA_STATUS");
    fprintf(stderr, "launch %lx %u %u %u %u %u %u %u %lx", (unsigned long)(uintptr_t)function, gx, gy, gz, bx, by, bz,
            shared, (unsigned long)(uintptr_t)stream);
    for (int i = 0; types && types[i] && arguments; i++) {
        if (types[i] == 'p') fprintf(stderr, " %ld", (long)*(intptr_t *)arguments[i]);
        if (types[i] == 'i') fprintf(stderr, " %d", *(int *)arguments[i]);
        if (types[i] == 'f') fprintf(stderr, " %g", (double)*(float *)arguments[i]);
    }
    fprintf(stderr, "\n");
    return status ? atoi(status) : 0;
}

int cuGetProcAddress_v2(const char *symbol, void **out, int wanted, uint64_t flags, int *found) {
    *out = !strcmp(symbol, "cuLaunchKernel") ? (void *)launch
         : !strcmp(symbol, "cuDriverGetVersion") ? (void *)version
         : !strcmp(symbol, "cuGetErrorString") ? (void *)error_string
         : !strcmp(symbol, "cuCtxGetCurrent") ? (void *)get_context
         : !strncmp(symbol, "cuGetProcAddress", 16) ? (void *)cuGetProcAddress_v2
                                                    : (void *)succeed;
    if (found) *found = 0;
    return 0;
}
int cuGetProcAddress(const char *symbol, void **out, int wanted, uint64_t flags) {
    return cuGetProcAddress_v2(symbol, out, wanted, flags, 0);
}
int cuDriverGetVersion(int *out) { return version(out); }
int cuInit(unsigned flags) { return 0; }
