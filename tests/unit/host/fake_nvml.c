/* A driver library for tests. $CARDS is one letter per card: 'o' is a sound one, 'e' cannot be asked for its memory,
 * 'l' has fallen off the bus. $CARDS_OF is part of their names. $DRIVER=broken: the library is there and the driver is
 * not. $SHUTDOWN=broken: it cannot be let go. Only what our detection calls is here. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
typedef struct { unsigned number; } Card;
typedef struct { unsigned long long total, free, used; } Memory;
enum { SUCCESS = 0, INVALID_ARGUMENT = 2, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15, UNKNOWN = 999 };

static Card cards[16];

static int is(const char *name, const char *value) {
    const char *given = getenv(name);
    return given && strcmp(given, value) == 0;
}

static char kind(unsigned number) { return getenv("CARDS")[number]; }

Result nvmlInit_v2(void) { return is("DRIVER", "broken") ? DRIVER_NOT_LOADED : SUCCESS; }
Result nvmlInitWithFlags(unsigned flags) { (void)flags; return nvmlInit_v2(); }
Result nvmlShutdown(void) { return is("SHUTDOWN", "broken") ? UNKNOWN : SUCCESS; }
const char *nvmlErrorString(Result result) { return result == GPU_IS_LOST ? "GPU is lost" : "Unknown Error"; }

Result nvmlSystemGetDriverVersion(char *text, unsigned length) { snprintf(text, length, "575.57.08"); return SUCCESS; }
Result nvmlDeviceGetCount_v2(unsigned *count) { *count = (unsigned)strlen(getenv("CARDS")); return SUCCESS; }

Result nvmlDeviceGetHandleByIndex_v2(unsigned number, Card **card) {
    if (number >= strlen(getenv("CARDS"))) return INVALID_ARGUMENT;
    if (kind(number) == 'l') return GPU_IS_LOST;
    cards[number].number = number;
    *card = &cards[number];
    return SUCCESS;
}

Result nvmlDeviceGetCudaComputeCapability(Card *card, int *major, int *minor) {
    (void)card; *major = 9; *minor = 0; return SUCCESS;
}
Result nvmlDeviceGetUUID(Card *card, char *text, unsigned length) {
    const char *host = getenv("CARDS_OF");
    snprintf(text, length, "GPU-%s%u", host ? host : "", card->number); return SUCCESS;
}
Result nvmlDeviceGetName(Card *card, char *text, unsigned length) {
    (void)card; snprintf(text, length, "NVIDIA H200"); return SUCCESS;
}
Result nvmlDeviceGetMemoryInfo(Card *card, Memory *memory) {
    if (kind(card->number) == 'e') return UNKNOWN;
    memory->total = 141ULL << 30; memory->used = 1ULL << 30; memory->free = 140ULL << 30;
    return SUCCESS;
}
