// A libcuda.so.1 for tests: it knows the calls that the GPU runtime makes, runs nothing, and writes down each launch.
// FAKE_CUDA_STATUS is what cuLaunchKernel answers; FAKE_CUDA_TYPES says how to read its arguments: p, i or f each.
// FAKE_CUDA_LOAD is what cuLibraryLoadData answers; FAKE_CUDA_VERSION is the driver's, 12020 for 12.2.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int number(const char *name, int otherwise) { return getenv(name) ? atoi(getenv(name)) : otherwise; }
static int version(int *out) { *out = number("FAKE_CUDA_VERSION", 13050); return 0; }
static int error_string(int status, const char **out) { *out = status ? "fake trouble" : "no error"; return 0; }
static int get_context(void **out) { *out = (void *)0x1; return 0; }
static int get_kernel(void **out) { *out = (void *)0x88; return 0; }
static int get_function(void **out) { *out = (void *)0xabc; return 0; }
static int succeed(void) { return 0; }

static int load(void **out, const char *code) {
    fprintf(stderr, "load %.3s\n", code + (*code == 0x7f));  // ELF, or the begin of PTX: //
    *out = (void *)0x77;
    return number("FAKE_CUDA_LOAD", 0);
}

static int launch(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                  unsigned shared, void *stream, void **arguments, void **extra) {
    const char *types = getenv("FAKE_CUDA_TYPES");
    fprintf(stderr, "launch %lx %u %u %u %u %u %u %u %lx", (unsigned long)(uintptr_t)function, gx, gy, gz, bx, by, bz,
            shared, (unsigned long)(uintptr_t)stream);
    for (int i = 0; types && types[i] && arguments; i++) {
        if (types[i] == 'p') fprintf(stderr, " %ld", (long)*(intptr_t *)arguments[i]);
        if (types[i] == 'i') fprintf(stderr, " %d", *(int *)arguments[i]);
        if (types[i] == 'f') fprintf(stderr, " %g", (double)*(float *)arguments[i]);
    }
    fprintf(stderr, "\n");
    return number("FAKE_CUDA_STATUS", 0);
}

int cuGetProcAddress_v2(const char *symbol, void **out, int wanted, uint64_t flags, int *found) {
    *out = !strcmp(symbol, "cuLaunchKernel") ? (void *)launch
         : !strcmp(symbol, "cuDriverGetVersion") ? (void *)version
         : !strncmp(symbol, "cuGetError", 10) ? (void *)error_string
         : !strcmp(symbol, "cuLibraryLoadData") ? (void *)load
         : !strcmp(symbol, "cuLibraryGetKernel") ? (void *)get_kernel
         : !strcmp(symbol, "cuKernelGetFunction") ? (void *)get_function
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
// NVRTC asks for the driver's own cache through this and crashes where it is missing.
int cuGetExportTable(const void **table, const void *id) { *table = 0; return 801; }
