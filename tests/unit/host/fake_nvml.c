/* A driver library for tests. The file named by $FAKE_NVML says what is in the machine; it is read anew by every
 * nvmlInit, so that cards can fall ill under a process that runs. Lines are "key = value"; "[card]" and "[mig]" (an
 * instance of the card before it) begin a device. tests/unit/host/nvml.py writes it. Only what the clients that our
 * tests drive ask for is here. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST 64
#define MIB (1ULL << 20)

typedef int Result;
typedef unsigned long long u64;
enum {
    SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, TIMEOUT = 10,
    GPU_IS_LOST = 15
};

typedef struct { unsigned pid; u64 memory; unsigned gpu_instance, compute_instance; } Process;
typedef struct { char call[64]; int code; } Failure;
typedef struct Device {
    int parent; /* index into devices of an instance's card; -1: it is a card */
    char uuid[96], name[96], pci[32], profile[32];
    u64 memory, used, throttled, ecc;
    int no_memory, lost, mig, minor, numa, major_cc, minor_cc, temperature, utilization, switch_links, retired;
    int power, power_limit, rows[4], slices, compute_slices, xid;
    int links_to[MOST], ancestor[MOST];
    Process compute[MOST], graphics[MOST];
    int computes, graphicses, failures;
    Failure failed[16];
} Device;

static Device devices[MOST];
static int count, init_code, count_code, shutdown_code, cuda;
static char driver[64];
static u64 watched[MOST];

/* -- what is in the machine ------------------------------------------------------------------------------------- */

static Device *begin(int parent) {
    Device *device = &devices[count++];
    memset(device, 0, sizeof *device);
    device->parent = parent;
    device->minor = device->numa = device->temperature = device->utilization = device->power = -1;
    device->power_limit = device->rows[0] = device->major_cc = -1;
    memset(device->ancestor, -1, sizeof device->ancestor);
    return device;
}

static void add(Process *processes, int *number, const char *value) {
    long long memory = -1;
    Process *process = &processes[*number];
    if (sscanf(value, "%u %lld", &process->pid, &memory) < 1) return;
    process->memory = memory < 0 ? ~0ULL : (u64)memory * MIB;
    process->gpu_instance = process->compute_instance = ~0u;
    ++*number;
}

static void set(Device *device, const char *key, const char *value) {
    int a, b;
    if (!strcmp(key, "uuid")) snprintf(device->uuid, sizeof device->uuid, "%s", value);
    else if (!strcmp(key, "name")) snprintf(device->name, sizeof device->name, "%s", value);
    else if (!strcmp(key, "pci")) snprintf(device->pci, sizeof device->pci, "%s", value);
    else if (!strcmp(key, "profile")) snprintf(device->profile, sizeof device->profile, "%s", value);
    else if (!strcmp(key, "memory")) device->memory = strtoull(value, NULL, 10) * MIB;
    else if (!strcmp(key, "used")) device->used = strtoull(value, NULL, 10) * MIB;
    else if (!strcmp(key, "throttled")) device->throttled = strtoull(value, NULL, 0);
    else if (!strcmp(key, "ecc")) device->ecc = strtoull(value, NULL, 10) + 1; /* 0: a card without */
    else if (!strcmp(key, "no_memory")) device->no_memory = 1;
    else if (!strcmp(key, "lost")) device->lost = 1;
    else if (!strcmp(key, "mig")) device->mig = 1;
    else if (!strcmp(key, "minor")) device->minor = atoi(value);
    else if (!strcmp(key, "numa")) device->numa = atoi(value);
    else if (!strcmp(key, "temperature")) device->temperature = atoi(value);
    else if (!strcmp(key, "utilization")) device->utilization = atoi(value);
    else if (!strcmp(key, "power")) device->power = atoi(value);
    else if (!strcmp(key, "power_limit")) device->power_limit = atoi(value);
    else if (!strcmp(key, "retired")) device->retired = atoi(value);
    else if (!strcmp(key, "slices")) sscanf(value, "%d %d", &device->slices, &device->compute_slices);
    else if (!strcmp(key, "xid")) device->xid = atoi(value);
    else if (!strcmp(key, "switch_links")) device->switch_links = atoi(value);
    else if (!strcmp(key, "cc")) sscanf(value, "%d %d", &device->major_cc, &device->minor_cc);
    else if (!strcmp(key, "rows"))
        sscanf(value, "%d %d %d %d", &device->rows[0], &device->rows[1], &device->rows[2], &device->rows[3]);
    else if (!strcmp(key, "links") && sscanf(value, "%d %d", &a, &b) == 2) device->links_to[a] = b;
    else if (!strcmp(key, "ancestor") && sscanf(value, "%d %d", &a, &b) == 2) device->ancestor[a] = b;
    else if (!strcmp(key, "process")) add(device->compute, &device->computes, value);
    else if (!strcmp(key, "graphics")) add(device->graphics, &device->graphicses, value);
    else if (!strcmp(key, "fail")) {
        Failure *failure = &device->failed[device->failures++];
        sscanf(value, "%63s %d", failure->call, &failure->code);
    } else {
        fprintf(stderr, "fake NVML: what is %s?\n", key);
        abort();
    }
}

static void set_system(const char *key, const char *value) {
    if (!strcmp(key, "driver")) snprintf(driver, sizeof driver, "%s", value);
    else if (!strcmp(key, "cuda")) cuda = atoi(value);
    else if (!strcmp(key, "init")) init_code = atoi(value);
    else if (!strcmp(key, "count")) count_code = atoi(value);
    else if (!strcmp(key, "shutdown")) shutdown_code = atoi(value);
    else abort();
}

static void read_machine(void) {
    char line[512], key[64], value[256];
    Device *device = NULL;
    int card = -1;
    FILE *file = fopen(getenv("FAKE_NVML"), "r");
    if (!file) abort();
    count = init_code = count_code = shutdown_code = cuda = 0;
    while (fgets(line, sizeof line, file)) {
        if (!strncmp(line, "[card]", 6)) card = count, device = begin(-1);
        else if (!strncmp(line, "[mig]", 5)) device = begin(card);
        else if (sscanf(line, "%63s = %255[^\n]", key, value) == 2) {
            if (device) set(device, key, value);
            else set_system(key, value);
        }
    }
    fclose(file);
}

static Device *numbered(unsigned number, int parent) {
    for (int i = 0; i < count; i++)
        if (devices[i].parent == parent && number-- == 0) return &devices[i];
    return NULL;
}

static Result checked(const Device *device, const char *call) {
    const Device *card = device->parent < 0 ? device : &devices[device->parent];
    if (card->lost) return GPU_IS_LOST;
    for (int i = 0; i < device->failures; i++)
        if (!strcmp(device->failed[i].call, call)) return device->failed[i].code;
    return SUCCESS;
}

#define CHECK(device) do { Result checked_ = checked(device, __func__); if (checked_) return checked_; } while (0)
#define TELL(device, is_said, to, value) do { CHECK(device); if (!(is_said)) return NOT_SUPPORTED; \
    *(to) = (value); return SUCCESS; } while (0)

/* -- the library ------------------------------------------------------------------------------------------------ */

Result nvmlInit_v2(void) { read_machine(); return init_code; }
Result nvmlInitWithFlags(unsigned flags) { (void)flags; return nvmlInit_v2(); }
Result nvmlShutdown(void) { return shutdown_code; }
const char *nvmlErrorString(Result result) { return result == GPU_IS_LOST ? "GPU is lost" : "Unknown Error"; }

Result nvmlSystemGetDriverVersion(char *text, unsigned length) { snprintf(text, length, "%s", driver); return SUCCESS; }
Result nvmlSystemGetNVMLVersion(char *text, unsigned length) { snprintf(text, length, "12.%s", driver); return SUCCESS; }
Result nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = cuda; return cuda ? SUCCESS : NOT_SUPPORTED; }
Result nvmlSystemGetCudaDriverVersion(int *version) { return nvmlSystemGetCudaDriverVersion_v2(version); }

Result nvmlDeviceGetCount_v2(unsigned *number) {
    *number = 0;
    for (int i = 0; i < count; i++) *number += devices[i].parent < 0;
    return count_code;
}
Result nvmlDeviceGetHandleByIndex_v2(unsigned number, Device **device) {
    Device *found = numbered(number, -1);
    if (!found) return INVALID_ARGUMENT;
    CHECK(found);
    *device = found;
    return SUCCESS;
}

Result nvmlDeviceGetUUID(Device *device, char *text, unsigned length) {
    CHECK(device); snprintf(text, length, "%s", device->uuid); return SUCCESS;
}
Result nvmlDeviceGetName(Device *device, char *text, unsigned length) {
    CHECK(device); snprintf(text, length, "%s", device->name); return SUCCESS;
}
Result nvmlDeviceGetIndex(Device *device, unsigned *number) {
    CHECK(device);
    *number = 0;
    for (Device *before = devices; before < device; before++) *number += before->parent == device->parent;
    return SUCCESS;
}
typedef struct {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char bus_id[32];
} Pci;
static Result pci(const Device *device, Pci *info) {
    memset(info, 0, sizeof *info);
    snprintf(info->bus_id, sizeof info->bus_id, "%s", device->pci);
    snprintf(info->legacy, sizeof info->legacy, "%s", device->pci + (strlen(device->pci) > 12 ? 4 : 0));
    sscanf(device->pci, "%x:%x:%x", &info->domain, &info->bus, &info->device);
    info->id = 0x233510de;
    return *device->pci ? SUCCESS : NOT_SUPPORTED;
}
Result nvmlDeviceGetPciInfo_v3(Device *device, Pci *info) {
    CHECK(device);
    return pci(device->parent < 0 ? device : &devices[device->parent], info);
}
Result nvmlDeviceGetCudaComputeCapability(Device *device, int *major, int *minor) {
    CHECK(device);
    const Device *card = device->parent < 0 ? device : &devices[device->parent];
    if (card->major_cc < 0) return NOT_SUPPORTED;
    *major = card->major_cc; *minor = card->minor_cc;
    return SUCCESS;
}
Result nvmlDeviceGetMinorNumber(Device *device, unsigned *to) { TELL(device, device->minor >= 0, to, device->minor); }
Result nvmlDeviceGetNumaNodeId(Device *device, int *to) { TELL(device, device->numa >= 0, to, device->numa); }

typedef struct { u64 total, free, used; } Memory;
typedef struct { unsigned version; u64 total, reserved, free, used; } Memory2;
Result nvmlDeviceGetMemoryInfo(Device *device, Memory *memory) {
    CHECK(device);
    if (device->no_memory) return NOT_SUPPORTED;
    memory->total = device->memory; memory->used = device->used; memory->free = device->memory - device->used;
    return SUCCESS;
}
Result nvmlDeviceGetMemoryInfo_v2(Device *device, Memory2 *memory) {
    CHECK(device);
    if (device->no_memory) return NOT_SUPPORTED;
    memory->total = device->memory; memory->reserved = 0; memory->used = device->used;
    memory->free = device->memory - device->used;
    return SUCCESS;
}
Result nvmlDeviceGetUtilizationRates(Device *device, unsigned *rates) {
    CHECK(device);
    if (device->utilization < 0) return NOT_SUPPORTED;
    rates[0] = (unsigned)device->utilization; rates[1] = 0;
    return SUCCESS;
}
Result nvmlDeviceGetTemperature(Device *device, int sensor, unsigned *to) {
    (void)sensor; TELL(device, device->temperature >= 0, to, device->temperature);
}
Result nvmlDeviceGetPowerUsage(Device *device, unsigned *to) { TELL(device, device->power >= 0, to, device->power); }
Result nvmlDeviceGetEnforcedPowerLimit(Device *device, unsigned *to) {
    TELL(device, device->power_limit >= 0, to, device->power_limit);
}
Result nvmlDeviceGetPowerManagementLimit(Device *device, unsigned *to) {
    TELL(device, device->power_limit >= 0, to, device->power_limit);
}
Result nvmlDeviceGetPowerManagementDefaultLimit(Device *device, unsigned *to) {
    TELL(device, device->power_limit >= 0, to, device->power_limit);
}
Result nvmlDeviceGetCurrentClocksEventReasons(Device *device, u64 *to) { TELL(device, 1, to, device->throttled); }
Result nvmlDeviceGetNumGpuCores(Device *device, unsigned *to) { TELL(device, 1, to, 16896); }
Result nvmlDeviceGetArchitecture(Device *device, unsigned *to) { TELL(device, 1, to, 9); }

/* -- health */

Result nvmlDeviceGetEccMode(Device *device, unsigned *current, unsigned *pending) {
    CHECK(device);
    if (!device->ecc) return NOT_SUPPORTED;
    *current = *pending = 1;
    return SUCCESS;
}
Result nvmlDeviceGetTotalEccErrors(Device *device, int kind, int since, u64 *to) {
    TELL(device, device->ecc, to, kind == 1 && since == 0 ? device->ecc - 1 : 0);
}
Result nvmlDeviceGetMemoryErrorCounter(Device *device, int kind, int since, int where, u64 *to) {
    TELL(device, device->ecc, to, kind == 1 && since == 0 && where == 2 ? device->ecc - 1 : 0);
}
Result nvmlDeviceGetRemappedRows(Device *device, unsigned *soft, unsigned *hard, unsigned *pending, unsigned *failed) {
    CHECK(device);
    if (device->rows[0] < 0) return NOT_SUPPORTED;
    *soft = device->rows[0]; *hard = device->rows[1]; *pending = device->rows[2]; *failed = device->rows[3];
    return SUCCESS;
}
Result nvmlDeviceGetRetiredPages(Device *device, int cause, unsigned *number, u64 *pages) {
    CHECK(device);
    unsigned wanted = cause == 1 ? (unsigned)device->retired : 0;
    if (pages) memset(pages, 0, wanted * sizeof *pages);
    Result result = !pages && wanted ? INSUFFICIENT_SIZE : SUCCESS;
    *number = wanted;
    return result;
}
typedef struct { Device *device; u64 kind, number; unsigned gpu_instance, compute_instance; } Event;
Result nvmlEventSetCreate(void **set) { *set = watched; return SUCCESS; }
Result nvmlEventSetFree(void *set) { memset(set, 0, sizeof watched); return SUCCESS; }
Result nvmlDeviceRegisterEvents(Device *device, u64 kinds, u64 *set) {
    CHECK(device); set[device - devices] = kinds; return SUCCESS;
}
Result nvmlEventSetWait_v2(u64 *set, Event *event, unsigned milliseconds) {
    (void)milliseconds;
    for (int i = 0; i < count; i++)
        if (devices[i].xid && set[i]) {
            *event = (Event){&devices[i], 8, (u64)devices[i].xid, 0, 0};
            devices[i].xid = 0;
            return SUCCESS;
        }
    return TIMEOUT;
}

/* -- MIG */

Result nvmlDeviceGetMigMode(Device *device, unsigned *current, unsigned *pending) {
    CHECK(device); *current = *pending = (unsigned)device->mig; return SUCCESS;
}
Result nvmlDeviceGetMaxMigDeviceCount(Device *device, unsigned *to) { TELL(device, 1, to, device->mig ? 7 : 0); }
Result nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned number, Device **instance) {
    CHECK(device);
    Device *found = numbered(number, (int)(device - devices));
    if (!found) return NOT_FOUND;
    *instance = found;
    return SUCCESS;
}
Result nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Device *device, Device **card) {
    if (device->parent < 0) return INVALID_ARGUMENT;
    *card = &devices[device->parent];
    return SUCCESS;
}
Result nvmlDeviceIsMigDeviceHandle(Device *device, unsigned *to) { *to = device->parent >= 0; return SUCCESS; }
Result nvmlDeviceGetGpuInstanceId(Device *device, unsigned *to) { *to = (unsigned)(device - devices); return SUCCESS; }
Result nvmlDeviceGetComputeInstanceId(Device *device, unsigned *to) { (void)device; *to = 0; return SUCCESS; }
typedef struct { unsigned processors, others[5], slices, compute_slices; u64 memory; } Attributes;
Result nvmlDeviceGetAttributes_v2(Device *device, Attributes *to) {
    CHECK(device);
    if (device->parent < 0) return NOT_SUPPORTED;
    memset(to, 0, sizeof *to);
    to->slices = (unsigned)device->slices; to->compute_slices = (unsigned)device->compute_slices;
    to->memory = device->memory / MIB;
    return SUCCESS;
}

/* -- processes and links */

static Result listed(const Process *processes, int number, unsigned *size, Process *to) {
    if ((unsigned)number > *size || !to) {
        *size = (unsigned)number;
        return number ? INSUFFICIENT_SIZE : SUCCESS;
    }
    memcpy(to, processes, (size_t)number * sizeof *to);
    *size = (unsigned)number;
    return SUCCESS;
}
Result nvmlDeviceGetComputeRunningProcesses_v3(Device *device, unsigned *size, Process *to) {
    CHECK(device); return listed(device->compute, device->computes, size, to);
}
Result nvmlDeviceGetGraphicsRunningProcesses_v3(Device *device, unsigned *size, Process *to) {
    CHECK(device); return listed(device->graphics, device->graphicses, size, to);
}

/* Links are numbered card after card; those to switches come last. -1: no such link, -2: a switch. */
static int far_end(const Device *device, unsigned link) {
    for (int other = 0; other < MOST; other++)
        for (int i = 0; i < device->links_to[other]; i++)
            if (link-- == 0) return other;
    return link < (unsigned)device->switch_links ? -2 : -1;
}
Result nvmlDeviceGetNvLinkState(Device *device, unsigned link, unsigned *to) {
    TELL(device, far_end(device, link) != -1, to, 1);
}
Result nvmlDeviceGetNvLinkRemoteDeviceType(Device *device, unsigned link, unsigned *to) {
    TELL(device, far_end(device, link) != -1, to, far_end(device, link) == -2 ? 2 : 0);
}
Result nvmlDeviceGetNvLinkRemotePciInfo_v2(Device *device, unsigned link, Pci *info) {
    CHECK(device);
    int other = far_end(device, link);
    const Device *card = other < 0 ? NULL : numbered((unsigned)other, -1);
    return card ? pci(card, info) : NOT_SUPPORTED;
}
Result nvmlDeviceGetTopologyCommonAncestor(Device *one, Device *other, unsigned *to) {
    unsigned number = 0;
    nvmlDeviceGetIndex(other, &number);
    TELL(one, one->ancestor[number] >= 0, to, (unsigned)one->ancestor[number]);
}
