// A device modelled on the host: the functions of the CUDA driver that mlpack calls, over the same kernels compiled for the
// host. Nothing is done when it is asked for: copies and launches wait in their stream until somebody waits for the stream,
// so that a missing wait shows as wrong bytes. Failures and sizes are set by mlpack_model_set.
#include "list.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define SUCCESS 0
#define INVALID_VALUE 1
#define OUT_OF_MEMORY 2
#define NO_DEVICE 100
#define INVALID_DEVICE 101
#define NOT_FOUND 500
#define LAUNCH_FAILED 719

typedef void (*host_kernel)(const void *args, uint32_t block, uint32_t threads);

#define BLOCK(NAME, FUNCTION, VALUES, BYTES, WEIGHTED) \
    static void run_##NAME(const void *args, uint32_t block, uint32_t threads) { \
        const struct encode_args *a = args; \
        for (uint32_t t = 0; t < threads; t++) { \
            const uint64_t i = (uint64_t)block * threads + t; \
            if (i < a->blocks) { \
                const struct block b = block_at(a, i, VALUES, BYTES, WEIGHTED); \
                FUNCTION(&b, WEIGHTED); \
            } \
        } \
    }
BLOCK_KERNELS(BLOCK)

// Lanes take turns in one order or the other: none may need what another has just written in the same phase.
#define LANES_OF_BLOCKS(NAME, SHARED, STEPS, STEP, LANES, BYTES, WEIGHTED) \
    static void run_##NAME(const void *args, uint32_t block, uint32_t threads) { \
        const struct encode_args *a = args; \
        for (uint32_t t = 0; t < threads / LANES; t++) { \
            const uint64_t i = (uint64_t)block * (threads / LANES) + t; \
            if (i >= a->blocks) { \
                continue; \
            } \
            struct SHARED s; \
            memset(&s, 0xa5, sizeof s); \
            const float *x = a->x + 256 * i, *importance = importance_at(a, i, WEIGHTED); \
            for (int phase = 0; phase < STEPS; phase++) { \
                for (int turn = 0; turn < LANES; turn++) { \
                    const int lane = (i + (uint64_t)phase) % 2 ? LANES - 1 - turn : turn; \
                    STEP; \
                } \
            } \
            memcpy(a->out + (uint64_t)BYTES * i, s.out, BYTES); \
        } \
    }
#define SUPER_BLOCK(NAME, FUNCTION, LANES, BYTES, WEIGHTED) \
    LANES_OF_BLOCKS(NAME, super_block, PHASES, FUNCTION(phase, lane, WEIGHTED, x, importance, &s), LANES, BYTES, WEIGHTED)
SUPER_BLOCK_KERNELS(SUPER_BLOCK)

#define GRID_BLOCK(NAME, FUNCTION, LANES, BYTES, WEIGHTED) \
    LANES_OF_BLOCKS( \
        NAME, grid_block, GRID_PHASES, FUNCTION(phase, lane, WEIGHTED, x, importance, &a->grid, &s), LANES, BYTES, WEIGHTED)
GRID_KERNELS(GRID_BLOCK)

#define FLAT(NAME, ARGS, COUNT, UNIT) \
    static void run_##NAME(const void *args, uint32_t block, uint32_t threads) { \
        const struct ARGS *a = args; \
        for (uint32_t t = 0; t < threads; t++) { \
            const uint64_t i = (uint64_t)block * threads + t; \
            if (i < (COUNT)) { \
                UNIT; \
            } \
        } \
    }
FLAT(widen, widen_args, a->count, widen_unit(a, i))
FLAT(narrow, narrow_args, a->count, narrow_unit(a, i))
FLAT(mean_squares, mean_args, a->rows, mean_unit(a, i))
FLAT(merge, merge_args, (a->rows + MERGE_ROWS - 1) / MERGE_ROWS * a->cols, merge_unit(a, i / a->cols, i % a->cols))

struct function {
    const char *name;
    host_kernel run;
    size_t args;
};

#define ROW(NAME, FUNCTION, VALUES, BYTES, WEIGHTED) {#NAME, run_##NAME, sizeof(struct encode_args)},
#define SUPER_ROW(NAME, FUNCTION, LANES, BYTES, WEIGHTED) {#NAME, run_##NAME, sizeof(struct encode_args)},
static const struct function FUNCTIONS[] = {
    BLOCK_KERNELS(ROW) SUPER_BLOCK_KERNELS(SUPER_ROW) GRID_KERNELS(SUPER_ROW)
    {"widen", run_widen, sizeof(struct widen_args)},
    {"narrow", run_narrow, sizeof(struct narrow_args)},
    {"mean_squares", run_mean_squares, sizeof(struct mean_args)},
    {"merge", run_merge, sizeof(struct merge_args)},
};

// What the model is like.
static struct {
    uint64_t init, version, devices, major, minor, slow_doubles, memory;
    // Launches that succeed before one fails and all after it.
    uint64_t launches;
    uint64_t used, allocations, launched;
    int failed;
} model = {0, 13000, 1, 9, 0, 2, 1ull << 32, UINT64_MAX, 0, 0, 0, 0};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static const struct {
    const char *name;
    uint64_t *value;
} SETTINGS[] = {
    {"init", &model.init},     {"version", &model.version},           {"devices", &model.devices},
    {"major", &model.major},   {"minor", &model.minor},               {"slow_doubles", &model.slow_doubles},
    {"memory", &model.memory}, {"launches", &model.launches},         {"used", &model.used},
    {"launched", &model.launched}, {"allocations", &model.allocations},
};

int mlpack_model_set(const char *name, uint64_t value) {
    for (size_t i = 0; i < sizeof SETTINGS / sizeof *SETTINGS; i++) {
        if (strcmp(SETTINGS[i].name, name) == 0) {
            *SETTINGS[i].value = value;
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

int mlpack_model_get(const char *name, uint64_t *value) {
    for (size_t i = 0; i < sizeof SETTINGS / sizeof *SETTINGS; i++) {
        if (strcmp(SETTINGS[i].name, name) == 0) {
            *value = *SETTINGS[i].value;
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

// What a stream has to do: a launch, or a copy, or the filling of a word.
struct work {
    struct work *next;
    const struct function *function;
    uint32_t blocks, threads;
    void *to;
    const void *from;
    size_t len;
    uint8_t args[512];
};

struct stream {
    struct work *first, **last;
};

static void append(struct stream *s, struct work *w) {
    w->next = NULL;
    *s->last = w;
    s->last = &w->next;
}

int cuInit(unsigned flags) {
    (void)flags;
    return (int)model.init;
}

int cuDriverGetVersion(int *version) {
    *version = (int)model.version;
    return SUCCESS;
}

int cuDeviceGetCount(int *count) {
    *count = (int)model.devices;
    return SUCCESS;
}

int cuDeviceGet(int *device, int index) {
    *device = index;
    return index >= 0 && (uint64_t)index < model.devices ? SUCCESS : INVALID_DEVICE;
}

int cuDeviceGetName(char *name, int len, int device) {
    snprintf(name, (size_t)len, "host model %d", device);
    return SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    switch (attribute) {
        case 75: *value = (int)model.major; return SUCCESS;
        case 76: *value = (int)model.minor; return SUCCESS;
        case 87: *value = (int)model.slow_doubles; return SUCCESS;
        default: return INVALID_VALUE;
    }
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    (void)device;
    *context = &model;
    return SUCCESS;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
    (void)device;
    return SUCCESS;
}

int cuCtxSetCurrent(void *context) {
    return context == &model ? SUCCESS : INVALID_VALUE;
}

int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    *free_bytes = model.memory - model.used;
    *total = model.memory;
    return SUCCESS;
}

// Memory begins with its length, and holds no zeros that nobody wrote.
static int allocate(void **at, size_t len, int counted) {
    uint8_t *memory = malloc(len + 256);
    if (memory == NULL) {
        return OUT_OF_MEMORY;
    }
    memcpy(memory, &len, sizeof len);
    memset(memory + 256, 0xcd, len);
    pthread_mutex_lock(&lock);
    const int fits = !counted || len <= model.memory - model.used;
    if (fits && counted) {
        model.used += len;
        model.allocations++;
    }
    pthread_mutex_unlock(&lock);
    if (!fits) {
        free(memory);
        return OUT_OF_MEMORY;
    }
    *at = memory + 256;
    return SUCCESS;
}

int cuMemAlloc_v2(uint64_t *at, size_t len) {
    void *memory = NULL;
    const int result = len == 0 ? INVALID_VALUE : allocate(&memory, len, 1);
    *at = (uint64_t)(uintptr_t)memory;
    return result;
}

int cuMemFree_v2(uint64_t at) {
    uint8_t *memory = (uint8_t *)(uintptr_t)at - 256;
    size_t len;
    memcpy(&len, memory, sizeof len);
    pthread_mutex_lock(&lock);
    model.used -= len;
    pthread_mutex_unlock(&lock);
    free(memory);
    return SUCCESS;
}

int cuMemHostAlloc(void **at, size_t len, unsigned flags) {
    (void)flags;
    return len == 0 ? INVALID_VALUE : allocate(at, len, 0);
}

int cuMemFreeHost(void *at) {
    free((uint8_t *)at - 256);
    return SUCCESS;
}

int cuStreamCreate(void **stream, unsigned flags) {
    (void)flags;
    struct stream *s = calloc(1, sizeof *s);
    s->last = &s->first;
    *stream = s;
    return SUCCESS;
}

static int copy(void *to, const void *from, size_t len, struct stream *s) {
    struct work *w = calloc(1, sizeof *w);
    w->to = to;
    w->from = from;
    w->len = len;
    append(s, w);
    return model.failed ? LAUNCH_FAILED : SUCCESS;
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t len, void *stream) {
    return copy((void *)(uintptr_t)to, from, len, stream);
}

int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t len, void *stream) {
    return copy(to, (const void *)(uintptr_t)from, len, stream);
}

// A word is copied from its own arguments.
int cuMemsetD32Async(uint64_t at, unsigned value, size_t count, void *stream) {
    if (count != 1) {
        return INVALID_VALUE;
    }
    struct work *w = calloc(1, sizeof *w);
    w->to = (void *)(uintptr_t)at;
    memcpy(w->args, &value, 4);
    w->from = w->args;
    w->len = 4;
    append(stream, w);
    return model.failed ? LAUNCH_FAILED : SUCCESS;
}

int cuModuleLoadData(void **module, const void *image) {
    // What nvcc makes begins so; its kernels are not looked at.
    static const uint8_t FATBIN[4] = {0x50, 0xed, 0x55, 0xba};
    *module = &model;
    return memcmp(image, FATBIN, 4) == 0 || strcmp(image, "host") == 0 ? SUCCESS : 200;
}

int cuModuleGetFunction(void **function, void *module, const char *name) {
    (void)module;
    for (size_t i = 0; i < sizeof FUNCTIONS / sizeof *FUNCTIONS; i++) {
        if (strcmp(FUNCTIONS[i].name, name) == 0) {
            *function = (void *)&FUNCTIONS[i];
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **params, void **extra) {
    if (gx == 0 || bx != THREADS || gy != 1 || gz != 1 || by != 1 || bz != 1 || shared != 0 || extra != NULL) {
        return INVALID_VALUE;
    }
    pthread_mutex_lock(&lock);
    if (model.launches == 0) {
        model.failed = 1;
    } else {
        model.launches--;
        model.launched++;
    }
    const int failed = model.failed;
    pthread_mutex_unlock(&lock);
    if (failed) {
        return LAUNCH_FAILED;
    }
    struct work *w = calloc(1, sizeof *w);
    w->function = function;
    w->blocks = gx;
    w->threads = bx;
    memcpy(w->args, params[0], w->function->args);
    append(stream, w);
    return SUCCESS;
}

int cuStreamSynchronize(void *stream) {
    struct stream *s = stream;
    struct work *next = s->first;
    s->first = NULL;
    s->last = &s->first;
    while (next != NULL) {
        struct work *w = next;
        next = w->next;
        if (!model.failed && w->function != NULL) {
            for (uint32_t block = 0; block < w->blocks; block++) {
                w->function->run(w->args, block, w->threads);
            }
        } else if (!model.failed) {
            memcpy(w->to, w->from, w->len);
        }
        free(w);
    }
    return model.failed ? LAUNCH_FAILED : SUCCESS;
}

int cuStreamDestroy_v2(void *stream) {
    cuStreamSynchronize(stream);
    free(stream);
    return SUCCESS;
}

int cuGetErrorName(int error, const char **name) {
    switch (error) {
        case OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; break;
        case NO_DEVICE: *name = "CUDA_ERROR_NO_DEVICE"; break;
        case LAUNCH_FAILED: *name = "CUDA_ERROR_LAUNCH_FAILED"; break;
        default: *name = "CUDA_ERROR_UNKNOWN"; break;
    }
    return SUCCESS;
}
