// A stand-in for NVIDIA's driver: it runs kernels that were compiled for this machine's processor,
// in the file that the environment variable KERNELS names, and prints how they were launched.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>

namespace {
enum Result { SUCCESS = 0, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NOT_FOUND = 500 };
char primary;                          // the one context that kernels run in
thread_local void* current = nullptr;  // a new thread has none
}  // namespace

extern "C" {

int cuCtxGetCurrent(void** context) { return *context = current, SUCCESS; }
int cuCtxSetCurrent(void* context) { return current = context, SUCCESS; }
int cuDeviceGet(int* device, int number) { return *device = number, SUCCESS; }
int cuDevicePrimaryCtxRetain(void** context, int) { return *context = &primary, SUCCESS; }

int cuModuleLoadData(void** module, const char* image) {
    if (current != &primary) return INVALID_CONTEXT;
    if (std::memcmp(image, "\x7f" "ELF", 4) != 0) return INVALID_IMAGE;
    *module = dlopen(std::getenv("KERNELS"), RTLD_NOW);
    return *module ? SUCCESS : INVALID_IMAGE;
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
    *function = dlsym(module, name);
    return *function ? SUCCESS : NOT_FOUND;
}

int cuLaunchKernel(void* kernel, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned,
                   unsigned, unsigned, void* stream, void** arguments, void**) {
    if (current != &primary) return INVALID_CONTEXT;
    std::printf("launch %u %u %u %u %zu\n", x, y, z, threads, reinterpret_cast<size_t>(stream));
    std::fflush(stdout);
    reinterpret_cast<void (*)(void*)>(kernel)(arguments[0]);
    return SUCCESS;
}

int cuGetProcAddress_v2(const char* name, void** function, int, unsigned long long, int* status) {
    *function = dlsym(dlopen("libcuda.so.1", RTLD_NOW), name);
    if (status) *status = *function ? 0 : 1;
    return *function ? SUCCESS : NOT_FOUND;
}

}  // extern "C"
