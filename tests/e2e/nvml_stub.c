/* A driver that believes a file: the part of NVML that dynorch asks, for machines without a GPU.
 *
 * $NVML_STUB names the file, which is read again at each call. One line per fact:
 *     init CODE                              every nvmlInit answers so; 0 is success
 *     gpu UUID NAME TOTAL USED CODE          in the order of the indices; CODE: how questions end
 *     mig INDEX UUID NAME TOTAL USED         an instance of the GPU at INDEX, which it cuts
 *     user UUID PID BYTES                    a process that computes there
 *     at UUID BUS NODE                       its address on the PCI bus, and its NUMA node
 *     nvlink UUID BUS COUNT                  links to the GPU with that address, or to a "switch"
 *     near UUID UUID LEVEL                   the common ancestor of two (nvmlGpuTopologyLevel_t)
 *     xid UUID NUMBER                        an error; each line is told once to each event set
 * A CODE of -1 hangs for ever.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MAX = 16, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7 };

struct device { int parent, code; char uuid[80], name[64]; unsigned long long total, used; };
struct user { char uuid[80]; unsigned pid; unsigned long long bytes; };
struct place { char uuid[80], bus[32]; int node; };
struct wire { char uuid[80], end[80]; int number; };
struct memory { unsigned long long total, free, used; };
struct process { unsigned pid; unsigned long long bytes; unsigned gpu, compute; };

static struct device devices[MAX];
static struct user users[MAX];
static struct place places[MAX];
static struct wire links[MAX], nears[MAX];
static int count, user_count, place_count, link_count, near_count, init_code;

static void load(void) {
    char line[512];
    const char *path = getenv("NVML_STUB");
    FILE *file = path ? fopen(path, "r") : NULL;
    count = user_count = place_count = link_count = near_count = init_code = 0;
    while (file && fgets(line, sizeof line, file) && count < MAX && user_count < MAX
           && place_count < MAX && link_count < MAX && near_count < MAX) {
        struct device *d = &devices[count];
        struct user *u = &users[user_count];
        struct place *p = &places[place_count];
        struct wire *l = &links[link_count], *n = &nears[near_count];
        d->parent = -1;
        d->code = 0;
        if (sscanf(line, "gpu %79s %63s %llu %llu %d", d->uuid, d->name, &d->total, &d->used,
                   &d->code) == 5
            || sscanf(line, "mig %d %79s %63s %llu %llu", &d->parent, d->uuid, d->name, &d->total,
                      &d->used) == 5)
            count++;
        else if (sscanf(line, "user %79s %u %llu", u->uuid, &u->pid, &u->bytes) == 3)
            user_count++;
        else if (sscanf(line, "at %79s %31s %d", p->uuid, p->bus, &p->node) == 3)
            place_count++;
        else if (sscanf(line, "nvlink %79s %79s %d", l->uuid, l->end, &l->number) == 3)
            link_count++;
        else if (sscanf(line, "near %79s %79s %d", n->uuid, n->end, &n->number) == 3)
            near_count++;
        else
            sscanf(line, "init %d", &init_code);
    }
    if (file) fclose(file);
}

static int answer(int code) {
    while (code == -1) pause();
    return code;
}

/* A handle is a device's place in the file, from 1. */
static struct device *of(void *handle) {
    load();
    long place = (long)handle - 1;
    return place >= 0 && place < count ? &devices[place] : NULL;
}

static int nth(int parent, unsigned index, void **handle) {
    for (int place = 0; place < count; place++)
        if (devices[place].parent == parent && index-- == 0) {
            *handle = (void *)(long)(place + 1);
            return answer(devices[place].code);
        }
    return NOT_FOUND;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; load(); return answer(init_code); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { (void)code; return "as the stub was told"; }

int nvmlDeviceGetCount_v2(unsigned *number) {
    load();
    *number = 0;
    for (int place = 0; place < count; place++) *number += devices[place].parent < 0;
    return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    load();
    return nth(-1, index, handle);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    load();
    for (int place = 0; place < count; place++)
        if (!strcmp(devices[place].uuid, uuid)) {
            *handle = (void *)(long)(place + 1);
            return answer(devices[place].code);
        }
    return NOT_FOUND;
}

int nvmlDeviceGetUUID(void *handle, char *out, unsigned size) {
    struct device *d = of(handle);
    return d ? (snprintf(out, size, "%s", d->uuid), answer(d->code)) : INVALID;
}

int nvmlDeviceGetName(void *handle, char *out, unsigned size) {
    struct device *d = of(handle);
    return d ? (snprintf(out, size, "%s", d->name), answer(d->code)) : INVALID;
}

int nvmlDeviceGetMinorNumber(void *handle, unsigned *minor) {
    *minor = 255 + (unsigned)(long)handle; /* no such device file exists */
    return of(handle) ? 0 : INVALID;
}

int nvmlDeviceGetMemoryInfo(void *handle, struct memory *out) {
    struct device *d = of(handle);
    if (!d) return INVALID;
    *out = (struct memory){d->total, d->total - d->used, d->used};
    return answer(d->code);
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *room, struct process *out) {
    struct device *d = of(handle);
    unsigned found = 0;
    for (int i = 0; d && i < user_count; i++)
        if (!strcmp(users[i].uuid, d->uuid)) {
            if (out && found < *room)
                out[found] = (struct process){users[i].pid, users[i].bytes, 0, 0};
            found++;
        }
    int fits = found <= (out ? *room : 0);
    *room = found;
    return d ? (fits ? 0 : TOO_SMALL) : INVALID;
}

static int is_cut(void *handle) {
    if (!of(handle)) return 0;
    for (int place = 0; place < count; place++)
        if (devices[place].parent == (long)handle - 1) return 1;
    return 0;
}

int nvmlDeviceGetMigMode(void *handle, unsigned *now, unsigned *next) {
    *now = *next = (unsigned)is_cut(handle);
    return is_cut(handle) ? 0 : NOT_SUPPORTED;
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *slots) {
    *slots = is_cut(handle) ? 7 : 0;
    return 0;
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **instance) {
    load();
    return nth((int)((long)handle - 1), index, instance);
}

struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char address[32]; };

static struct place *place_of(void *handle) {
    struct device *d = of(handle);
    for (int i = 0; d && i < place_count; i++)
        if (!strcmp(places[i].uuid, d->uuid)) return &places[i];
    return NULL;
}

int nvmlDeviceGetPciInfo_v3(void *handle, struct pci *out) {
    struct place *p = place_of(handle);
    memset(out, 0, sizeof *out);
    if (p) strcpy(out->address, p->bus);
    return p ? 0 : NOT_SUPPORTED;
}

int nvmlDeviceGetMemoryAffinity(void *handle, unsigned size, unsigned long long *out, unsigned scope) {
    struct place *p = place_of(handle);
    (void)scope;
    memset(out, 0, size * sizeof *out);
    if (p) out[0] = 1ull << p->node;
    return p ? 0 : NOT_SUPPORTED;
}

/* The links of a device are numbered through, line by line. */
static struct wire *wire_of(void *handle, unsigned link) {
    struct device *d = of(handle);
    for (int i = 0; d && i < link_count; i++) {
        if (strcmp(links[i].uuid, d->uuid)) continue;
        if (link < (unsigned)links[i].number) return &links[i];
        link -= (unsigned)links[i].number;
    }
    return NULL;
}

int nvmlDeviceGetNvLinkState(void *handle, unsigned link, unsigned *active) {
    return *active = wire_of(handle, link) != NULL, *active ? 0 : INVALID;
}

int nvmlDeviceGetNvLinkRemoteDeviceType(void *handle, unsigned link, unsigned *type) {
    struct wire *l = wire_of(handle, link);
    *type = l && !strcmp(l->end, "switch") ? 2 : 0;
    return l ? 0 : INVALID;
}

int nvmlDeviceGetNvLinkRemotePciInfo_v2(void *handle, unsigned link, struct pci *out) {
    struct wire *l = wire_of(handle, link);
    memset(out, 0, sizeof *out);
    if (l) snprintf(out->address, sizeof out->address, "%.31s", l->end);
    return l ? 0 : INVALID;
}

int nvmlDeviceGetTopologyCommonAncestor(void *one, void *other, unsigned *level) {
    struct device *a = of(one), *b = of(other);
    for (int i = 0; a && b && i < near_count; i++)
        if (!strcmp(nears[i].uuid, a->uuid) && !strcmp(nears[i].end, b->uuid))
            return *level = (unsigned)nears[i].number, 0;
    return NOT_SUPPORTED;
}

/* Errors. Who waits is another thread, so this looks into the file by itself, and at nothing else. */
struct event { void *device; unsigned long long type, data; unsigned gi, ci; };
struct ear { int told; long heard[MAX]; int count; };

int nvmlEventSetCreate(void **set) { return *set = calloc(1, sizeof(struct ear)), 0; }
int nvmlEventSetFree(void *set) { return free(set), 0; }

int nvmlDeviceRegisterEvents(void *handle, unsigned long long types, void *set) {
    struct ear *ear = set;
    (void)types;
    ear->heard[ear->count++] = (long)handle;
    return 0;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *instance, void **handle) {
    struct device *d = of(instance);
    return d && d->parent >= 0 ? nvmlDeviceGetHandleByIndex_v2((unsigned)d->parent, handle) : INVALID;
}

static int next_error(struct ear *ear, struct event *out) {
    char line[512], uuids[MAX][80], uuid[80];
    const char *path = getenv("NVML_STUB");
    FILE *file = path ? fopen(path, "r") : NULL;
    int place = 0, seen = 0, number, found = 0;
    while (file && !found && fgets(line, sizeof line, file)) {
        if (place < MAX && sscanf(line, "gpu %79s", uuids[place]) == 1) place++;
        else if (place < MAX && sscanf(line, "mig %*d %79s", uuids[place]) == 1) place++;
        else if (sscanf(line, "xid %79s %d", uuid, &number) == 2 && seen++ == ear->told) {
            ear->told++;
            for (long i = 0; i < place; i++)
                for (int j = 0; j < ear->count; j++)
                    if (!strcmp(uuids[i], uuid) && ear->heard[j] == i + 1) {
                        *out = (struct event){(void *)(i + 1), 8, (unsigned long long)number, 0, 0};
                        found = 1;
                    }
        }
    }
    if (file) fclose(file);
    return found;
}

int nvmlEventSetWait_v2(void *set, struct event *out, unsigned timeout_ms) {
    struct timespec pause = {0, 20 * 1000 * 1000};
    for (unsigned ms = 0; ms < timeout_ms; ms += 20) {
        if (next_error(set, out)) return 0;
        nanosleep(&pause, NULL);
    }
    return 10;
}
