/* bulle-gauge: the work that `bulle compare` has done at every level and on the bare host. Needs nothing of an image: it is a layer on top of it.
 *
 * bulle-gauge --once writes a line and ends: the shortest work that there is.
 * bulle-gauge --idle SECONDS does nothing for so long, and ends.
 * bulle-gauge --serve ADDRESS is the other end of measured connections, on the host: it listens on a port that it names, and ends with its standard input.
 * bulle-gauge says "ready", then does what the lines of its standard input ask for, and ends with it. Each answer is lines, the last of them "done", or
 * "failed ERRNO STAGE". Times are nanoseconds of CLOCK_MONOTONIC inside.
 *
 *   facts               release, version, machine and name of the system, boot_id, namespaces, the root, uid_map, processes in sight, devices
 *   processor MIB       SHA-256 over so much            call COUNT          so many getppid(2)
 *   disk DIR MIB        one file, written and brought to the disk; then read, when its pages were given up
 *   files DIR COUNT     so many files of 4 KiB, made, read and removed      sync DIR COUNT      so many times 4 KiB and fsync(2)
 *   network ADDRESS PORT MIB COUNT      received, sent, and so many round trips of a byte
 *   calls               each system call, tried in a child with arguments that cannot do anything: '.' refused with ENOSYS, 'p' with EPERM,
 *                       'k' killed by a filter, 'r' reached
 */
#include "freestanding.h"

/* Numbers of this program's own, so that the table of all programs stays short; those of aarch64 are of every later architecture as well. */
#if defined(__x86_64__)
enum {
    N_socket = 41, N_connect = 42, N_accept = 43, N_bind = 49, N_listen = 50, N_getsockname = 51, N_setsockopt = 54, N_fsync = 74, N_fdatasync = 75,
    N_uname = 63, N_prctl = 157, N_setsid = 112, N_getppid = 110, N_fadvise64 = 221, N_setitimer = 38, N_clock_gettime = 228, N_unlinkat = 263,
    N_getdents64 = 217, N_mmap = 9, N_statx = 332, N_msgget = 68, N_semget = 64, N_shmget = 29, N_modify_ldt = 154, N_futex = 202, N_clone = 56,
    N_vfork = 58, N_sync = 162, N_exit = 60, N_personality = 135,
};
#else
enum {
    N_socket = 198, N_connect = 203, N_accept = 202, N_bind = 200, N_listen = 201, N_getsockname = 204, N_setsockopt = 208, N_fsync = 82,
    N_fdatasync = 83, N_uname = 160, N_prctl = 167, N_setsid = 157, N_getppid = 173, N_fadvise64 = 223, N_setitimer = 103, N_clock_gettime = 113,
    N_unlinkat = 35, N_getdents64 = 61, N_mmap = 222, N_statx = 291, N_msgget = 186, N_semget = 190, N_shmget = 194, N_modify_ldt = -2, N_futex = 98,
    N_clone = 220, N_vfork = -3, N_sync = 81, N_exit = 93, N_personality = 92,
};
#endif
#define DO(number, a, b, c, d, e, f) call6(N_##number, (i64)(a), (i64)(b), (i64)(c), (i64)(d), (i64)(e), (i64)(f))
#define DO3(number, a, b, c) DO(number, a, b, c, 0, 0, 0)

enum { REFUSED = 1, NO_SUCH_CALL = 38, BLOCK = 65536, PAGE = 4096, CALLS = 512, WORDS = 8 };
enum { O_WRITE = 01, O_TRUNCATE = 01000 };
#if defined(__aarch64__)
enum { DIRECTORY_ONLY = 040000, NO_LINK = 0100000 };
#else
enum { DIRECTORY_ONLY = 0200000, NO_LINK = 0400000 };
#endif

static char block[BLOCK], line[PAGE] __attribute__((aligned(16)));

/* Output */

static char output[PAGE];
static u64 waiting;

/* What was said so far, in one write(2): also a reader that reads once has a line whole. */
static void flush(void)
{
    for (u64 at = 0; at < waiting;) {
        i64 written = CALL3(write, 1, output + at, waiting - at);
        if (written <= 0)
            quit(1);
        at += (u64)written;
    }
    waiting = 0;
}

static void put(const char *text, u64 size)
{
    while (size--) {
        if (waiting == sizeof output)
            flush();
        output[waiting++] = *text++;
    }
}

static void say_out(const char *text)
{
    put(text, length_of(text));
}

static char *decimal(char *end, u64 number)
{
    *--end = 0;
    do
        *--end = (char)('0' + number % 10);
    while (number /= 10);
    return end;
}

static void say_number(u64 number)
{
    char text[24];
    say_out(decimal(text + sizeof text, number));
}

static void say_value(const char *name, u64 number)
{
    say_out(name);
    say_out(" ");
    say_number(number);
    say_out("\n");
}

static int failed(i64 error, const char *stage)
{
    say_out("failed ");
    say_number((u64)(error < 0 ? -error : error));
    say_out(" ");
    say_out(stage);
    say_out("\n");
    return 0;
}

static u64 now(void)
{
    i64 time[2] = {0, 0};
    DO3(clock_gettime, 1, time, 0);
    return (u64)time[0] * 1000000000ul + (u64)time[1];
}

static u64 number_of(const char *text)
{
    u64 number = 0;
    while (*text >= '0' && *text <= '9')
        number = number * 10 + (u64)(*text++ - '0');
    return number;
}

static int equal(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

/* The processor: SHA-256 as FIPS 180-4 says it. */

static const u32 constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3,
    0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
    0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static inline u32 turned(u32 value, int by)
{
    return value >> by | value << (32 - by);
}

static void digest_block(u32 state[8], const u8 *data)
{
    u32 words[64], s[8];
    for (int i = 0; i < 16; i++)
        words[i] = (u32)data[4 * i] << 24 | (u32)data[4 * i + 1] << 16 | (u32)data[4 * i + 2] << 8 | data[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        u32 a = words[i - 15], b = words[i - 2];
        words[i] = words[i - 16] + words[i - 7] + (turned(a, 7) ^ turned(a, 18) ^ a >> 3) + (turned(b, 17) ^ turned(b, 19) ^ b >> 10);
    }
    for (int i = 0; i < 8; i++)
        s[i] = state[i];
    for (int i = 0; i < 64; i++) {
        u32 one = s[7] + (turned(s[4], 6) ^ turned(s[4], 11) ^ turned(s[4], 25)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) + constants[i] + words[i];
        u32 two = (turned(s[0], 2) ^ turned(s[0], 13) ^ turned(s[0], 22)) + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        for (int k = 7; k > 0; k--)
            s[k] = s[k - 1];
        s[4] += one;
        s[0] = one + two;
    }
    for (int i = 0; i < 8; i++)
        state[i] += s[i];
}

static int processor(u64 mebibytes)
{
    u32 state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    u64 begin, took;
    memset(block, 'b', BLOCK);
    begin = now();
    for (u64 round = 0; round < mebibytes * (1048576 / BLOCK); round++)
        for (u64 at = 0; at < BLOCK; at += 64)
            digest_block(state, (const u8 *)block + at);
    took = now() - begin;
    /* Said, so that no compiler may leave the work out. */
    say_value("state", state[0]);
    say_value("took", took);
    return 1;
}

static int call(u64 count)
{
    u64 begin = now();
    for (u64 i = 0; i < count; i++)
        DO3(getppid, 0, 0, 0);
    say_value("took", now() - begin);
    return 1;
}

/* The disk */

static char path[PATH_SIZE];

static const char *path_of(const char *directory, const char *name, u64 number)
{
    char text[24];
    char *end = path + sizeof path, *at = append(append(append(path, end, directory), end, "/bulle-gauge-"), end, name);
    return append(at, end, decimal(text + sizeof text, number)) ? path : "";
}

static i64 opened(const char *name, int flags)
{
    return CALL4(openat, AT_FDCWD, name, flags | O_CLOEXEC, 0600);
}

static i64 whole(i64 descriptor, u64 size, int writing)
{
    u64 done = 0;
    while (done < size) {
        i64 moved = writing ? CALL3(write, descriptor, block + done, size - done) : CALL3(read, descriptor, block + done, size - done);
        if (moved <= 0)
            return moved ? moved : -1;
        done += (u64)moved;
    }
    return 0;
}

static int disk(const char *directory, u64 mebibytes)
{
    const char *name = path_of(directory, "disk", 0), *stage = "openat";
    u64 begin = now(), written, read_back;
    i64 descriptor = opened(name, O_CREAT | O_RDWR | O_TRUNCATE), error = descriptor;
    if (descriptor < 0)
        return failed(error, stage);
    memset(block, 'd', BLOCK);
    stage = "write";
    for (u64 i = 0; i < mebibytes * (1048576 / BLOCK) && error >= 0; i++)
        error = whole(descriptor, BLOCK, 1);
    if (error >= 0) {
        stage = "fdatasync";
        error = DO3(fdatasync, descriptor, 0, 0);
    }
    written = now() - begin;
    DO(fadvise64, descriptor, 0, 0, 4, 0, 0);
    CALL3(lseek, descriptor, 0, 0);
    begin = now();
    for (u64 i = 0; i < mebibytes * (1048576 / BLOCK) && error >= 0; i++) {
        stage = "read";
        error = whole(descriptor, BLOCK, 0);
    }
    read_back = now() - begin;
    CALL1(close, descriptor);
    DO3(unlinkat, AT_FDCWD, name, 0);
    if (error < 0)
        return failed(error, stage);
    say_value("written", written);
    say_value("read", read_back);
    return 1;
}

static int files(const char *directory, u64 count)
{
    u64 begin = now();
    i64 error = 0;
    const char *stage = "openat";
    memset(block, 'f', PAGE);
    for (int turn = 0; turn < 2; turn++)
        for (u64 i = 0; i < count && error >= 0; i++) {
            const char *name = path_of(directory, "file", i);
            i64 descriptor = error = opened(name, turn ? 0 : O_CREAT | O_WRITE | O_TRUNCATE);
            if (descriptor < 0)
                break;
            error = whole(descriptor, PAGE, !turn);
            stage = turn ? "read" : "write";
            CALL1(close, descriptor);
        }
    for (u64 i = 0; i < count; i++)
        DO3(unlinkat, AT_FDCWD, path_of(directory, "file", i), 0);
    if (error < 0)
        return failed(error, stage);
    say_value("took", now() - begin);
    return 1;
}

static int syncs(const char *directory, u64 count)
{
    const char *name = path_of(directory, "sync", 0);
    i64 descriptor = opened(name, O_CREAT | O_RDWR | O_TRUNCATE), error = 0;
    if (descriptor < 0)
        return failed(descriptor, "openat");
    memset(block, 's', PAGE);
    for (u64 i = 0; i < count && error >= 0; i++) {
        u64 begin = now();
        error = whole(descriptor, PAGE, 1);
        if (error >= 0)
            error = DO3(fsync, descriptor, 0, 0);
        if (error >= 0)
            say_value("each", now() - begin);
    }
    CALL1(close, descriptor);
    DO3(unlinkat, AT_FDCWD, name, 0);
    return error < 0 ? failed(error, "fsync") : 1;
}

/* The network: a request is a byte (receive, send, echo) and a number of MiB or of bytes. */

static void socket_address(u8 address[16], const char *text, u64 port)
{
    memset(address, 0, 16);
    address[0] = 2;
    address[2] = (u8)(port >> 8), address[3] = (u8)port;
    for (int i = 4; i < 8; i++) {
        address[i] = (u8)number_of(text);
        while (*text && *text++ != '.')
            ;
    }
}

static i64 tcp_socket(void)
{
    int yes = 1;
    i64 descriptor = DO3(socket, 2, 1 | O_CLOEXEC, 0);
    if (descriptor >= 0)
        DO(setsockopt, descriptor, 6, 1, &yes, sizeof yes, 0);
    return descriptor;
}

static i64 request(i64 connection, char what, u64 count)
{
    char text[9] = {what};
    memcpy(text + 1, &count, 8);
    return CALL3(write, connection, text, 9) == 9 ? 0 : -1;
}

static i64 moved(i64 connection, u64 mebibytes, int writing)
{
    i64 error = 0;
    for (u64 i = 0; i < mebibytes * (1048576 / BLOCK) && error >= 0; i++)
        error = whole(connection, BLOCK, writing);
    return error;
}

static int network(const char *to, u64 port, u64 mebibytes, u64 count)
{
    u8 address[16];
    u64 begin, received, sent;
    i64 error, connection = tcp_socket();
    const char *stage = "connect";
    if (connection < 0)
        return failed(connection, "socket");
    socket_address(address, to, port);
    error = DO3(connect, connection, address, sizeof address);
    if (error < 0)
        goto end;
    stage = "receive";
    begin = now();
    error = request(connection, 'r', mebibytes) < 0 ? -1 : moved(connection, mebibytes, 0);
    received = now() - begin;
    if (error < 0)
        goto end;
    stage = "send";
    begin = now();
    error = request(connection, 's', mebibytes) < 0 || moved(connection, mebibytes, 1) < 0 ? -1 : whole(connection, 1, 0);
    sent = now() - begin;
    if (error < 0)
        goto end;
    stage = "echo";
    error = request(connection, 'e', count);
    for (u64 i = 0; i < count && error >= 0; i++) {
        begin = now();
        error = whole(connection, 1, 1) < 0 ? -1 : whole(connection, 1, 0);
        if (error >= 0)
            say_value("each", now() - begin);
    }
    if (error >= 0) {
        say_value("received", received);
        say_value("sent", sent);
    }
end:
    CALL1(close, connection);
    return error < 0 ? failed(error, stage) : 1;
}

static void answer(i64 connection)
{
    int yes = 1;
    DO(setsockopt, connection, 6, 1, &yes, sizeof yes, 0);
    while (whole(connection, 9, 0) >= 0) {
        char what = block[0];
        u64 count;
        i64 error = 0;
        memcpy(&count, block + 1, 8);
        if (what == 'r')
            error = moved(connection, count, 1);
        else if (what == 's')
            error = moved(connection, count, 0) < 0 ? -1 : whole(connection, 1, 1);
        else
            for (u64 i = 0; i < count && error >= 0; i++)
                error = whole(connection, 1, 0) < 0 ? -1 : whole(connection, 1, 1);
        if (error < 0)
            return;
    }
}

static int serve(const char *at)
{
    u8 address[16];
    int size = sizeof address;
    i64 listening = tcp_socket(), parent;
    socket_address(address, at, 0);
    if (listening < 0 || DO3(bind, listening, address, sizeof address) < 0 || DO3(listen, listening, 16, 0) < 0)
        return 1;
    DO3(getsockname, listening, address, &size);
    say_value("port", (u64)address[2] << 8 | address[3]);
    flush();
    parent = CALL1(getpid, 0);
    /* The listening end is a child: this one waits for the end of its input, and takes that child, and whom it answers to, with it. */
    if (fork_process() == 0) {
        u64 ignore[4] = {1, 0, 0, 0};
        CALL4(rt_sigaction, SIGCHLD, ignore, 0, 8);
        DO(prctl, 1, SIGKILL, 0, 0, 0, 0);
        while (DO3(getppid, 0, 0, 0) == parent) {
            i64 connection = DO3(accept, listening, 0, 0);
            if (connection < 0)
                quit(0);
            if (fork_process() == 0) {
                DO(prctl, 1, SIGKILL, 0, 0, 0, 0);
                answer(connection);
                quit(0);
            }
            CALL1(close, connection);
        }
        quit(0);
    }
    CALL1(close, listening);
    while (CALL3(read, 0, block, BLOCK) > 0)
        ;
    return 0;
}

/* What this process sees of the system */

static void say_file(const char *name, const char *file)
{
    i64 descriptor = opened(file, 0), size;
    if (descriptor < 0)
        return;
    say_out(name);
    say_out(" ");
    size = CALL3(read, descriptor, block, PAGE);
    for (i64 i = 0; i < size; i++)
        if (block[i] == '\n')
            block[i] = i + 1 < size ? ',' : ' ';
    if (size > 0)
        put(block, (u64)size);
    say_out("\n");
    CALL1(close, descriptor);
}

struct entry {
    u64 inode;
    i64 offset;
    unsigned short size;
    u8 kind;
    char name[];
};

static void say_processes(void)
{
    static char names[BLOCK];
    i64 descriptor = opened("/proc", DIRECTORY_ONLY), size;
    u64 count = 0;
    if (descriptor < 0)
        return;
    while ((size = DO3(getdents64, descriptor, names, sizeof names)) > 0)
        for (i64 at = 0; at < size; at += ((struct entry *)(names + at))->size)
            count += ((struct entry *)(names + at))->name[0] >= '1' && ((struct entry *)(names + at))->name[0] <= '9';
    CALL1(close, descriptor);
    if (count)
        say_value("processes", count);
}

/* Devices below a directory as c1:3 and b8:0, two directories deep; that they can be opened is not tried: some do something then. */
static void say_devices(i64 at, const char *name, int depth)
{
    static char names[2][BLOCK];
    i64 descriptor = CALL4(openat, at, name, DIRECTORY_ONLY | NO_LINK | O_CLOEXEC, 0), size;
    if (descriptor < 0)
        return;
    while ((size = DO3(getdents64, descriptor, names[depth], BLOCK)) > 0)
        for (i64 here = 0; here < size; here += ((struct entry *)(names[depth] + here))->size) {
            struct entry *found = (struct entry *)(names[depth] + here);
            u32 information[64];
            if (found->name[0] == '.' && (!found->name[1] || (found->name[1] == '.' && !found->name[2])))
                continue;
            if (DO(statx, descriptor, found->name, 0x100, 0x7ff, information, 0) < 0)
                continue;
            switch (information[7] & 0170000) {
            case 0040000:
                if (!depth)
                    say_devices(descriptor, found->name, 1);
                break;
            case 0020000:
            case 0060000:
                say_out((information[7] & 0170000) == 0020000 ? " c" : " b");
                say_number(information[32]);
                say_out(":");
                say_number(information[33]);
            }
        }
    CALL1(close, descriptor);
}

static int facts(void)
{
    static char names[6][65];
    static const char *const fields[] = {"system", "name", "release", "version", "machine"};
    static const char *const spaces[] = {"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"};
    i64 error = DO3(uname, names, 0, 0);
    if (error < 0)
        return failed(error, "uname");
    for (int i = 0; i < 5; i++) {
        say_out(fields[i]);
        say_out(" ");
        say_out(names[i]);
        say_out("\n");
    }
    for (u64 i = 0; i < sizeof spaces / sizeof *spaces; i++) {
        char *end = path + sizeof path;
        i64 size;
        append(append(path, end, "/proc/self/ns/"), end, spaces[i]);
        size = CALL4(readlinkat, AT_FDCWD, path, line, sizeof line);
        if (size > 0) {
            say_out("namespace ");
            put(line, (u64)size);
            say_out("\n");
        }
    }
    if (DO(statx, AT_FDCWD, "/", 0, 0x7ff, line, 0) >= 0) {
        say_out("root ");
        say_number(((u32 *)line)[34]);
        say_out(":");
        say_number(((u32 *)line)[35]);
        say_out(":");
        say_number(((u64 *)line)[4]);
        say_out("\n");
    }
    say_file("boot", "/proc/sys/kernel/random/boot_id");
    say_file("users", "/proc/self/uid_map");
    say_processes();
    say_out("devices");
    say_devices(AT_FDCWD, "/dev", 0);
    say_out("\n");
    return 1;
}

/* Which system calls are there */

static i64 try_call(i64 number)
{
    /* What would do something, or say ENOSYS, for arguments that are wrong in every way: fork in place of clone, no key that is made. */
    if (number == N_clone)
        return call6(number, SIGCHLD, 0, 0, 0, 0, 0);
    if (number == N_msgget || number == N_semget || number == N_shmget)
        return call6(number, 0x7fffffff, number == N_msgget ? 0 : -1, 0, 0, 0, 0);
    if (number == N_modify_ldt)
        return call6(number, 0, -1, 0, 0, 0, 0);
    if (number == N_personality)
        return call6(number, 0xffffffff, 0, 0, 0, 0, 0); /* only asks */
    if (number == N_futex)
        return call6(number, (i64)block, 1, 1, 0, 0, 0);
    return call6(number, -1, -1, -1, -1, -1, -1);
}

static int calls(void)
{
    i64 *result = (i64 *)DO(mmap, 0, PAGE, 3, 0x21, -1, 0);
    static char found[CALLS + 2];
    if ((u64)result > (u64)-PAGE)
        return failed((i64)result, "mmap");
    for (i64 number = 0; number < CALLS; number++) {
        int status = 0;
        i64 child;
        if (number == N_sync || number == N_exit || number == SYS_exit_group || number == N_vfork) {
            found[number] = number == N_sync ? '.' : 'r'; /* One would disturb the whole machine, the others are in use or share this stack. */
            continue;
        }
        *result = 1;
        child = fork_process();
        if (child < 0)
            return failed(child, "clone");
        if (child == 0) {
            i64 moment[4] = {0, 0, 0, 50000}, answer;
            DO(prctl, 4, 0, 0, 0, 0, 0); /* no core of what dies */
            if (number != N_setsid)
                DO3(setsid, 0, 0, 0); /* no terminal to hang up */
            DO3(setitimer, 0, moment, 0); /* what waits was reached */
            answer = try_call(number);
            *result = answer;
            quit(0);
        }
        while (CALL4(wait4, child, &status, 0x40000000, 0) == -EINTR)
            ;
        if ((status & 0x7f) == 31)
            found[number] = 'k';
        else
            found[number] = *result == -NO_SUCH_CALL ? '.' : *result == -REFUSED ? 'p' : 'r';
    }
    found[CALLS] = '\n';
    say_out("calls ");
    put(found, CALLS + 1);
    return 1;
}

/* What is asked for */

static int done(char **words, int count)
{
    const char *verb = words[0];
    if (equal(verb, "facts"))
        return facts();
    if (equal(verb, "calls"))
        return calls();
    if (equal(verb, "processor") && count == 2)
        return processor(number_of(words[1]));
    if (equal(verb, "call") && count == 2)
        return call(number_of(words[1]));
    if (equal(verb, "disk") && count == 3)
        return disk(words[1], number_of(words[2]));
    if (equal(verb, "files") && count == 3)
        return files(words[1], number_of(words[2]));
    if (equal(verb, "sync") && count == 3)
        return syncs(words[1], number_of(words[2]));
    if (equal(verb, "network") && count == 5)
        return network(words[1], number_of(words[2]), number_of(words[3]), number_of(words[4]));
    return failed(22, "words");
}

static int work(void)
{
    static char asked[PAGE];
    u64 filled = 0;
    say_out("ready\n");
    flush();
    for (;;) {
        char *words[WORDS];
        int count = 0;
        u64 end = 0;
        while (end < filled && asked[end] != '\n')
            end++;
        if (end == filled) {
            i64 size = filled < sizeof asked ? CALL3(read, 0, asked + filled, sizeof asked - filled) : 0;
            if (size <= 0)
                return 0;
            filled += (u64)size;
            continue;
        }
        asked[end] = 0;
        for (u64 i = 0; i < end && count < WORDS;) {
            words[count++] = asked + i;
            while (i < end && asked[i] != ' ')
                i++;
            asked[i++] = 0;
        }
        if (count && done(words, count))
            say_out("done\n");
        flush();
        end++;
        for (u64 i = end; i < filled; i++)
            asked[i - end] = asked[i];
        filled -= end;
    }
}

static int run(int count, char **arguments, char **environment)
{
    (void)environment, (void)environment_value, (void)say;
    if (count == 2 && equal(arguments[1], "--once")) {
        say_out("ready\n");
        flush();
        return 0;
    }
    if (count == 3 && equal(arguments[1], "--idle")) {
        i64 time[2] = {(i64)number_of(arguments[2]), 0};
        CALL(ppoll, 0, 0, time, 0, 0, 0);
        return 0;
    }
    if (count == 3 && equal(arguments[1], "--serve"))
        return serve(arguments[2]);
    return work();
}
