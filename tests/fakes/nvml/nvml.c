/* libnvidia-ml.so.1 that plays GPUs from a text file, so that an unmodified pynvml, and an unmodified sidecar, see them.
 *
 * The file is named by FAKE_NVML_STATE and read again at every call; write it anew by rename(2). Without a file there
 * is no driver. One directive a line, sizes in MB (2^20), `#` begins a comment line:
 *
 *   init CODE              what nvmlInit returns (0; 9 = driver not loaded)
 *   generation N           a session opened under another N is over: every call returns 1 (uninitialised)
 *   latch                  a GPU once lost stays so until the session ends
 *   gpu UUID               begins a GPU, the next index; what follows is about it
 *   instance UUID          begins a MIG instance of the GPU above; what follows is about it
 *   mig                    MIG mode is on
 *   name TEXT
 *   memory TOTAL RESERVED USED
 *   utilisation PERCENT
 *   temperature CELSIUS
 *   power MILLIWATTS
 *   compute|graphics|mps PID MB     a process; MB is `-` where the driver cannot tell
 *   fail CALL CODE         a call of this device returns CODE; CALL is a word of call_names below, or `*`
 *   hang CALL MS           a call of this device sleeps before it answers
 *
 * What is not said is not supported. Layouts are those of nvml.h and of pynvml's ctypes definitions.
 */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EXPORT __attribute__((visibility("default")))
#define LENGTH(a) ((int)(sizeof(a) / sizeof((a)[0])))
#define MB (1ULL << 20)
#define NOT_AVAILABLE (~0ULL)
#define MIG_SLOTS 7

enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
       DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15, VERSION_MISMATCH = 25 };

enum call { HANDLE, UUID, NAME, MEMORY, MEMORY_V2, MIG, INSTANCE, UTILISATION, TEMPERATURE, POWER,
            COMPUTE, COMPUTE_V2, GRAPHICS, GRAPHICS_V2, MPS, MPS_V2 };
static const char *const call_names[] = { "handle", "uuid", "name", "memory", "memory_v2", "mig", "instance",
    "utilisation", "temperature", "power", "compute", "compute_v2", "graphics", "graphics_v2", "mps", "mps_v2" };

struct process { enum call list; unsigned pid; unsigned long long bytes; };
struct fault { char call[16]; int code; int sleep_ms; };
struct device {
    int gpu, instance; /* instance is -1 for the GPU itself */
    char uuid[96], name[96];
    unsigned long long total, reserved, used;
    int has_memory, mig, utilisation, temperature, power; /* -1: not supported */
    struct process processes[64];
    int process_count;
    struct fault faults[16];
    int fault_count;
};
struct state { int init, generation, latch, gpu_count, device_count; struct device devices[32]; };

/* As in nvml.h. */
struct memory { unsigned long long total, free, used; };
struct memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };
struct process_info { unsigned pid; unsigned long long bytes; unsigned gpu_instance, compute_instance; };
struct utilisation { unsigned gpu, memory; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* never held while a call hangs */
static struct state state;
static int sessions, generation, lost[32];

static void read_process(struct device *device, enum call list, const char *rest)
{
    char mb[32] = "";
    struct process *process = &device->processes[device->process_count];
    if (device->process_count == LENGTH(device->processes) || sscanf(rest, "%u %31s", &process->pid, mb) != 2) return;
    process->list = list;
    process->bytes = mb[0] == '-' ? NOT_AVAILABLE : strtoull(mb, NULL, 10) * MB;
    device->process_count++;
}

static void read_fault(struct device *device, int hangs, const char *rest)
{
    struct fault *fault = &device->faults[device->fault_count];
    if (device->fault_count == LENGTH(device->faults)) return;
    if (sscanf(rest, "%15s %d", fault->call, hangs ? &fault->sleep_ms : &fault->code) == 2) device->fault_count++;
}

static struct device *begin_device(const char *uuid, int is_instance)
{
    if (state.device_count == LENGTH(state.devices)) return NULL;
    struct device *device = &state.devices[state.device_count++];
    const struct device *before = state.device_count > 1 ? device - 1 : NULL;
    memset(device, 0, sizeof *device);
    device->gpu = is_instance ? state.gpu_count - 1 : state.gpu_count++;
    device->instance = is_instance && before ? before->instance + 1 : -1;
    device->utilisation = device->temperature = device->power = -1;
    snprintf(device->uuid, sizeof device->uuid, "%s", uuid);
    return device;
}

static void read_detail(struct device *device, const char *word, const char *rest)
{
    if (!strcmp(word, "name")) snprintf(device->name, sizeof device->name, "%s", rest);
    else if (!strcmp(word, "mig")) device->mig = 1;
    else if (!strcmp(word, "utilisation")) device->utilisation = atoi(rest);
    else if (!strcmp(word, "temperature")) device->temperature = atoi(rest);
    else if (!strcmp(word, "power")) device->power = atoi(rest);
    else if (!strcmp(word, "compute")) read_process(device, COMPUTE, rest);
    else if (!strcmp(word, "graphics")) read_process(device, GRAPHICS, rest);
    else if (!strcmp(word, "mps")) read_process(device, MPS, rest);
    else if (!strcmp(word, "fail")) read_fault(device, 0, rest);
    else if (!strcmp(word, "hang")) read_fault(device, 1, rest);
    else if (!strcmp(word, "memory"))
        device->has_memory = sscanf(rest, "%llu %llu %llu", &device->total, &device->reserved, &device->used) == 3;
}

static void read_line(char *line, struct device **device)
{
    char *word = line, *rest = line + strcspn(line, " \n");
    if (*rest) *rest++ = 0;
    rest[strcspn(rest, "\n")] = 0;
    if (!strcmp(word, "init")) state.init = atoi(rest);
    else if (!strcmp(word, "generation")) state.generation = atoi(rest);
    else if (!strcmp(word, "latch")) state.latch = 1;
    else if (!strcmp(word, "gpu")) *device = begin_device(rest, 0);
    else if (!strcmp(word, "instance")) *device = begin_device(rest, 1);
    else if (*device) read_detail(*device, word, rest);
}

static void read_state(void)
{
    const char *path = getenv("FAKE_NVML_STATE");
    FILE *file = path ? fopen(path, "re") : NULL;
    struct device *device = NULL;
    char line[256];
    memset(&state, 0, sizeof state);
    state.init = file ? 0 : DRIVER_NOT_LOADED;
    while (file && fgets(line, sizeof line, file)) read_line(line, &device);
    if (file) fclose(file);
}

/* A handle says which GPU, and which instance of it, and outlives changes of the file. */
static void *to_handle(int gpu, int instance) { return (void *)(size_t)((gpu + 1) * 256 + instance + 1); }

static struct device *find(int gpu, int instance)
{
    for (int i = 0; i < state.device_count; i++)
        if (state.devices[i].gpu == gpu && state.devices[i].instance == instance) return &state.devices[i];
    return NULL;
}

static int faults_of(const struct device *device, const char *call, int *sleep_ms)
{
    int code = OK;
    for (int i = 0; i < device->fault_count; i++) {
        const struct fault *fault = &device->faults[i];
        if (strcmp(fault->call, "*") && strcmp(fault->call, call)) continue;
        if (fault->code) code = fault->code;
        *sleep_ms += fault->sleep_ms;
    }
    return code;
}

static int session_state(void)
{
    read_state();
    if (sessions && generation != state.generation) sessions = 0;
    return sessions ? OK : UNINITIALIZED;
}

static int look_up(int gpu, int instance, enum call call, struct device *copy, int *sleep_ms)
{
    int code = session_state(), ignored = 0;
    if (code) return code;
    struct device *device = find(gpu, instance), *whole = find(gpu, -1);
    if (!device || !whole) return instance < 0 ? INVALID_ARGUMENT : NOT_FOUND;
    *copy = *device;
    code = faults_of(device, call_names[call], sleep_ms);
    if (instance >= 0 && !code) code = faults_of(whole, "*", &ignored); /* what befalls the GPU befalls its instances */
    if (code == GPU_IS_LOST) lost[gpu] = 1;
    return state.latch && lost[gpu] ? GPU_IS_LOST : code;
}

/* Every call of a device begins here: a copy of it as the file says now, and the code that the file wants. */
static int enter(void *handle, enum call call, struct device *copy)
{
    int place = (int)(size_t)handle, sleep_ms = 0;
    pthread_mutex_lock(&lock);
    int code = look_up(place / 256 - 1, place % 256 - 1, call, copy, &sleep_ms);
    pthread_mutex_unlock(&lock);
    struct timespec pause = { sleep_ms / 1000, sleep_ms % 1000 * 1000000L };
    if (sleep_ms) nanosleep(&pause, NULL);
    return code;
}

EXPORT int nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    pthread_mutex_lock(&lock);
    session_state();
    int code = state.init;
    if (!code && !sessions++) {
        generation = state.generation;
        memset(lost, 0, sizeof lost);
    }
    pthread_mutex_unlock(&lock);
    return code;
}

EXPORT int nvmlShutdown(void)
{
    pthread_mutex_lock(&lock);
    int code = session_state();
    if (!code) sessions--;
    pthread_mutex_unlock(&lock);
    return code;
}

EXPORT const char *nvmlErrorString(int code) { return code == VERSION_MISMATCH ? "Version mismatch" : "Some error"; }

EXPORT int nvmlDeviceGetCount_v2(unsigned *count)
{
    pthread_mutex_lock(&lock);
    int code = session_state();
    *count = (unsigned)state.gpu_count;
    pthread_mutex_unlock(&lock);
    return code;
}

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle)
{
    struct device device;
    *handle = to_handle((int)index, -1);
    return enter(*handle, HANDLE, &device);
}

static int text(void *handle, enum call call, char *to, unsigned length)
{
    struct device device;
    int code = enter(handle, call, &device);
    if (!code) snprintf(to, length, "%s", call == UUID ? device.uuid : device.name);
    return code;
}

EXPORT int nvmlDeviceGetUUID(void *handle, char *to, unsigned length) { return text(handle, UUID, to, length); }
EXPORT int nvmlDeviceGetName(void *handle, char *to, unsigned length) { return text(handle, NAME, to, length); }

EXPORT int nvmlDeviceGetMemoryInfo(void *handle, struct memory *memory)
{
    struct device device;
    int code = enter(handle, MEMORY, &device);
    if (code || !device.has_memory) return code ? code : NOT_SUPPORTED;
    memory->total = device.total * MB;
    memory->used = (device.reserved + device.used) * MB;
    memory->free = memory->total - memory->used;
    return OK;
}

EXPORT int nvmlDeviceGetMemoryInfo_v2(void *handle, struct memory_v2 *memory)
{
    struct device device;
    int code = enter(handle, MEMORY_V2, &device);
    if (memory->version != (sizeof *memory | 2U << 24)) return VERSION_MISMATCH;
    if (code || !device.has_memory) return code ? code : NOT_SUPPORTED;
    memory->total = device.total * MB;
    memory->reserved = device.reserved * MB;
    memory->used = device.used * MB;
    memory->free = memory->total - memory->reserved - memory->used;
    return OK;
}

EXPORT int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending)
{
    struct device device;
    int code = enter(handle, MIG, &device);
    if (!code) *current = *pending = (unsigned)device.mig;
    return code;
}

EXPORT int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count)
{
    (void)handle;
    *count = MIG_SLOTS;
    return OK;
}

EXPORT int nvmlDeviceGetMigDeviceHandleByIndex(void *gpu, unsigned index, void **handle)
{
    struct device device;
    *handle = (char *)gpu + index + 1;
    return enter(*handle, INSTANCE, &device);
}

/* A reading of the whole GPU: MIG instances have none. */
static int sensor(void *handle, enum call call, unsigned *value)
{
    struct device device;
    int code = enter(handle, call, &device);
    if (code) return code;
    int found = call == UTILISATION ? device.utilisation : call == TEMPERATURE ? device.temperature : device.power;
    *value = (unsigned)found;
    return found < 0 || device.instance >= 0 ? NOT_SUPPORTED : OK;
}

EXPORT int nvmlDeviceGetUtilizationRates(void *handle, struct utilisation *rates)
{
    rates->memory = 0;
    return sensor(handle, UTILISATION, &rates->gpu);
}

EXPORT int nvmlDeviceGetTemperature(void *handle, int which, unsigned *celsius)
{
    return which ? INVALID_ARGUMENT : sensor(handle, TEMPERATURE, celsius);
}

EXPORT int nvmlDeviceGetPowerUsage(void *handle, unsigned *milliwatts) { return sensor(handle, POWER, milliwatts); }

/* `list` says which processes, `call` under which name it may be told to fail. */
static int list(void *handle, enum call call, enum call list, unsigned *count, struct process_info *to)
{
    struct device device;
    unsigned found = 0, room = *count;
    int code = enter(handle, call, &device);
    if (code) return code;
    for (int i = 0; i < device.process_count; i++) {
        const struct process *process = &device.processes[i];
        if (process->list != list) continue;
        if (to && found < room) to[found] = (struct process_info){ process->pid, process->bytes, ~0U, ~0U };
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : OK;
}

#define LISTING(function, call, processes) \
    EXPORT int function(void *handle, unsigned *count, struct process_info *to) \
    { return list(handle, call, processes, count, to); }
LISTING(nvmlDeviceGetComputeRunningProcesses_v3, COMPUTE, COMPUTE)
LISTING(nvmlDeviceGetComputeRunningProcesses_v2, COMPUTE_V2, COMPUTE)
LISTING(nvmlDeviceGetGraphicsRunningProcesses_v3, GRAPHICS, GRAPHICS)
LISTING(nvmlDeviceGetGraphicsRunningProcesses_v2, GRAPHICS_V2, GRAPHICS)
LISTING(nvmlDeviceGetMPSComputeRunningProcesses_v3, MPS, MPS)
LISTING(nvmlDeviceGetMPSComputeRunningProcesses_v2, MPS_V2, MPS)
