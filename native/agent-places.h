/* The agent's places: how a path of the host's words becomes a descriptor, and how what went wrong is told.
 *
 * A path that begins with / is in the agent's own root, one that does not is below the container's. Both are resolved by openat2(2), which stays below its
 * root whatever links say; what is found is used by its descriptor, never by its name again.
 */
#ifndef BULLE_AGENT_PLACES_H
#define BULLE_AGENT_PLACES_H

#include "freestanding.h"

enum {
    EPERM = 1, ESRCH = 3, E2BIG = 7, ECHILD = 10, EAGAIN = 11, EBUSY = 16, EISDIR = 21, EINVAL = 22, ENFILE = 23, EFBIG = 27, EPIPE = 32,
    ENAMETOOLONG = 36, ENOSYS = 38, ELOOP = 40, EPROTO = 71, EBADMSG = 74, EOPNOTSUPP = 95, ETIMEDOUT = 110, ECANCELED = 125,
};
#define O_RDONLY 0
#define O_WRONLY 01
#define O_EXCL 0200
#define O_NOCTTY 0400
#define O_TRUNC 01000
#define O_NONBLOCK 04000
#if defined(__aarch64__)
#define O_DIRECTORY 040000
#define O_NOFOLLOW 0100000
#else
#define O_DIRECTORY 0200000
#define O_NOFOLLOW 0400000
#endif
#define O_TMPFILE (020000000 | O_DIRECTORY)
#define AT_SYMLINK_NOFOLLOW 0x100
#define AT_EMPTY_PATH 0x1000
enum { RESOLVE_NO_MAGICLINKS = 2, RESOLVE_NO_SYMLINKS = 4, RESOLVE_IN_ROOT = 16 };
enum { S_IFMT = 0170000, S_IFSOCK = 0140000, S_IFLNK = 0120000, S_IFREG = 0100000, S_IFBLK = 060000, S_IFDIR = 040000, S_IFCHR = 020000, S_IFIFO = 010000 };
enum { STATX_BASIC_STATS = 0x7ff, TROUBLE_SIZE = 240, F_DUPFD_CLOEXEC = 1030 };

struct open_how { u64 flags, mode, resolve; };
struct timestamp { i64 seconds; u32 nanoseconds; int reserved; };
struct statx {
    u32 mask, block_size;
    u64 attributes;
    u32 links, uid, gid;
    unsigned short mode, spare;
    u64 inode, size, blocks, attributes_mask;
    struct timestamp accessed, born, changed, modified;
    u32 device_major, device_minor, on_major, on_minor;
    u64 rest[14];
};

static char trouble[TROUBLE_SIZE];         /* what failed, for the one who reads the errno that is returned with it */
static const char *root_path = "/root";    /* where the container's root is mounted, in the agent's own root */
static int own_root = -1;                  /* O_PATH of the agent's own root */
static u64 resolve_scope = RESOLVE_IN_ROOT;
static int entered;                        /* this process stands in the container's root: it is / */

static int same(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

/* Notes what failed and returns the error, so that it can be handed on in one line; an earlier, more exact note stays. */
static i64 failed(i64 error, const char *what, const char *name)
{
    const char *end = trouble + sizeof trouble;
    char *at;
    if (error >= 0 || *trouble)
        return error;
    at = append(trouble, end, what);
    if (at && name) {
        *at++ = ' ';
        while (*name && at + 1 < end)
            *at++ = *name++;
        *at = 0;
    }
    return error;
}

static i64 status_of(i64 descriptor, struct statx *status)
{
    return CALL(statx, descriptor, "", AT_EMPTY_PATH, STATX_BASIC_STATS, status, 0);
}

/* The same where there is no openat2(2) (before Linux 5.6; emulated processors): name by name, and no link is followed at all. */
static i64 walk_below(i64 root, const char *path, u64 flags, u64 mode)
{
    char name[256];
    i64 here = CALL3(fcntl, root, F_DUPFD_CLOEXEC, 3), next;
    while (here >= 0) {
        struct statx status;
        u64 length = 0;
        int last;
        while (*path && *path != '/' && length < sizeof name - 1)
            name[length++] = *path++;
        name[length] = 0;
        if ((*path && *path != '/') || same(name, "..")) {
            CALL1(close, here);
            return *path && *path != '/' ? -ENAMETOOLONG : -EINVAL;
        }
        while (*path == '/')
            path++;
        last = !*path;
        next = CALL4(openat, here, length ? name : ".", last ? flags | O_NOFOLLOW | O_CLOEXEC : O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, mode);
        CALL1(close, here);
        if (next == -ENOTDIR && !last)
            return -ELOOP; /* perhaps only a file, but that leads nowhere either */
        if (next >= 0 && last && !(flags & O_NOFOLLOW) && (status_of(next, &status) < 0 || (status.mode & S_IFMT) == S_IFLNK)) {
            CALL1(close, next);
            return -ELOOP;
        }
        if (next < 0 || last)
            return next;
        here = next;
    }
    return here;
}

static i64 open_below(i64 root, const char *path, u64 flags, u64 mode)
{
    struct open_how how = {flags | O_CLOEXEC, mode, resolve_scope | RESOLVE_NO_MAGICLINKS};
    i64 result;
    while (*path == '/')
        path++;
    /* EAGAIN: something was renamed meanwhile, and the kernel is not sure that the way stays below the root. */
    do
        result = CALL4(openat2, root, *path ? path : ".", &how, sizeof how);
    while (result == -EAGAIN || result == -EINTR);
    return result == -ENOSYS ? walk_below(root, path, flags, mode) : result;
}

/* O_PATH of the container's root; opened anew each time, since a step may mount over it. */
static i64 open_container(void)
{
    return entered ? CALL4(openat, AT_FDCWD, "/", O_PATH | O_DIRECTORY | O_CLOEXEC, 0) : open_below(own_root, root_path, O_PATH | O_DIRECTORY, 0);
}

static i64 open_root_of(const char *path)
{
    return *path == '/' ? CALL3(fcntl, own_root, F_DUPFD_CLOEXEC, 3) : open_container();
}

static i64 resolve(const char *path, u64 flags, u64 mode)
{
    i64 result, root = open_root_of(path);
    if (root < 0)
        return root;
    result = open_below(root, path, flags, mode);
    CALL1(close, root);
    return result;
}

/* The directory that a path's last name is in, below a root; *name is the last name. */
static i64 open_parent_below(i64 root, const char *path, const char **name)
{
    static char directory[PATH_SIZE];
    u64 length = length_of(path), start;
    if (length >= sizeof directory)
        return -ENAMETOOLONG;
    while (length && path[length - 1] == '/')
        length--;
    for (start = length; start && path[start - 1] != '/';)
        start--;
    if (start == length || path[length] || same(path + start, ".") || same(path + start, ".."))
        return -EINVAL; /* nothing, or not a name of its own */
    memcpy(directory, path, start);
    directory[start] = 0;
    *name = path + start;
    return open_below(root, directory, O_PATH | O_DIRECTORY, 0);
}

static i64 open_parent(const char *path, const char **name)
{
    i64 result, root = open_root_of(path);
    if (root < 0)
        return root;
    result = open_parent_below(root, path, name);
    CALL1(close, root);
    return result;
}

/* A directory, and those above it that are missing (0755); O_PATH of it. */
static i64 make_directories_below(i64 root, const char *path, u64 mode)
{
    static char part[PATH_SIZE];
    u64 length = length_of(path), at = 0;
    i64 here = open_below(root, path, O_PATH | O_DIRECTORY, 0);
    while (length && path[length - 1] == '/')
        length--;
    if (here != -ENOENT)
        return here;
    if (length >= sizeof part)
        return -ENAMETOOLONG;
    for (;;) {
        const char *name;
        i64 parent, made = 0;
        while (at < length && path[at] == '/')
            at++;
        if (at >= length)
            return open_below(root, path, O_PATH | O_DIRECTORY, 0);
        while (at < length && path[at] != '/')
            at++;
        memcpy(part, path, at);
        part[at] = 0;
        here = open_below(root, part, O_PATH | O_DIRECTORY, 0);
        if (here >= 0) {
            CALL1(close, here);
            continue;
        }
        if (here != -ENOENT)
            return here;
        parent = open_parent_below(root, part, &name);
        if (parent < 0)
            return parent;
        made = CALL3(mkdirat, parent, name, at < length ? 0755 : mode);
        CALL1(close, parent);
        if (made < 0 && made != -EEXIST)
            return made;
        if (made == -EEXIST && (here = open_below(root, part, O_PATH | O_DIRECTORY, 0)) < 0)
            return here; /* a link into nothing */
        if (made == -EEXIST)
            CALL1(close, here);
    }
}

static i64 write_all(i64 descriptor, const void *data, u64 size)
{
    const u8 *at = data;
    while (size) {
        i64 written = CALL3(write, descriptor, at, size);
        if (written == -EINTR)
            continue;
        if (written < 0)
            return written;
        at += written;
        size -= (u64)written;
    }
    return 0;
}

/* A number in base 8, 10 or 16; 0 where there is something else, or too much. */
static int number_of(const char *text, u32 base, u64 *number)
{
    u64 value = 0;
    if (!*text)
        return 0;
    for (; *text; text++) {
        u32 digit = *text >= 'a' ? (u32)(*text - 'a' + 10) : (u32)(*text - '0');
        if (digit >= base || value > (~0ul - digit) / base)
            return 0;
        value = value * base + digit;
    }
    *number = value;
    return 1;
}

static void sleep_milliseconds(i64 milliseconds)
{
    i64 duration[2] = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    CALL2(nanosleep, duration, 0);
}

#endif
