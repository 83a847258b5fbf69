/* Steps: what the host tells the guest to set up, one small thing each. docs/vm-agent.md has the list. */
#ifndef BULLE_AGENT_STEPS_H
#define BULLE_AGENT_STEPS_H

#include "agent-network.h"

enum { MS_RDONLY = 1, MS_NOSUID = 2, MS_NODEV = 4, MS_NOEXEC = 8, MS_REMOUNT = 32, MS_BIND = 4096, MS_MOVE = 8192, MS_REC = 16384 };
enum { MS_UNBINDABLE = 1 << 17, MS_PRIVATE = 1 << 18, MS_SLAVE = 1 << 19, MS_SHARED = 1 << 20 };
enum { MOVE_MOUNT_F_EMPTY_PATH = 4, MOVE_MOUNT_T_EMPTY_PATH = 0x40, OPEN_TREE_CLONE = 1, AT_RECURSIVE = 0x8000 };
enum { FSCONFIG_SET_FLAG = 0, FSCONFIG_SET_STRING = 1, FSCONFIG_CMD_CREATE = 6, FSMOUNT_CLOEXEC = 1 };
enum { CLONE_NEWNS = 0x20000, CLONE_NEWCGROUP = 0x2000000, CLONE_NEWUTS = 0x4000000, CLONE_NEWIPC = 0x8000000, CLONE_NEWPID = 0x20000000 };
enum { RNDADDENTROPY = 0x40085203, RNDRESEEDCRNG = 0x5207, MOST_WORDS = 8, LONGEST_WAIT_MS = 60000 };
#define MS_PROPAGATION ((u64)(MS_UNBINDABLE | MS_PRIVATE | MS_SLAVE | MS_SHARED))

static int prepared_mount = -1; /* a detached mount that was made before a namespace was joined */
static int in_new_namespaces;   /* the steps of a FIRST */

/* attr of mount_setattr(2) as far as mount(2)'s flags ask for it */
static i64 change_mount(i64 target, u64 flags)
{
    struct { u64 set, clear, propagation, user_namespace; } attributes = {flags & 15, ~flags & 15, 0, 0};
    return CALL(mount_setattr, target, "", AT_EMPTY_PATH, &attributes, sizeof attributes, 0);
}

static i64 copy_mount(const char *source, u64 flags)
{
    i64 tree, from = resolve(source, O_PATH, 0);
    if (from < 0)
        return failed(from, "mount", source);
    tree = CALL3(open_tree, from, "", OPEN_TREE_CLONE | O_CLOEXEC | AT_EMPTY_PATH | (flags & MS_REC ? AT_RECURSIVE : 0));
    CALL1(close, from);
    return tree;
}

/* A file system that is mounted nowhere yet. Needed where its device is in the agent's own root and its place is in the container's mount namespace. */
static i64 new_file_system(const char *source, const char *type, u64 flags, char *data)
{
    i64 result, made, context = CALL2(fsopen, type, 1);
    if (context < 0)
        return context;
    result = CALL(fsconfig, context, FSCONFIG_SET_STRING, "source", source, 0, 0);
    if (result >= 0 && flags & MS_RDONLY)
        result = CALL(fsconfig, context, FSCONFIG_SET_FLAG, "ro", 0, 0, 0);
    while (result >= 0 && *data) {
        char *key = data, *value = 0;
        for (; *data && *data != ','; data++)
            if (*data == '=' && !value) {
                *data = 0;
                value = data + 1;
            }
        if (*data)
            *data++ = 0;
        if (*key)
            result = CALL(fsconfig, context, value ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, key, value, 0, 0);
    }
    if (result >= 0)
        result = CALL(fsconfig, context, FSCONFIG_CMD_CREATE, 0, 0, 0, 0);
    made = result < 0 ? result : CALL3(fsmount, context, FSMOUNT_CLOEXEC, flags & 15);
    CALL1(close, context);
    return made;
}

/* What of a mount has to be done before the container's namespaces are joined: afterwards the agent's own root is out of sight. */
static i64 prepare_mount(int count, char **words)
{
    u64 flags;
    i64 made = -1;
    if (count != 6 || !same(words[0], "mount") || !number_of(words[4], 10, &flags) || flags & (MS_REMOUNT | MS_MOVE | MS_PROPAGATION))
        return 0;
    if (!(flags & MS_BIND))
        made = new_file_system(words[1], words[3], flags, words[5]);
    else if (*words[1] == '/')
        made = copy_mount(words[1], flags);
    else
        return 0;
    prepared_mount = (int)made;
    return failed(made < 0 ? made : 0, "mount", words[2]);
}

static i64 step_mount(char **words)
{
    u64 flags;
    i64 result, target, tree;
    if (!number_of(words[3], 10, &flags))
        return -EINVAL;
    target = resolve(words[1], O_PATH, 0);
    if (target < 0)
        return target;
    if (prepared_mount >= 0 || (flags & MS_BIND && !(flags & MS_REMOUNT))) {
        tree = prepared_mount >= 0 ? prepared_mount : copy_mount(words[0], flags);
        if (tree < 0)
            return tree;
        result = CALL(move_mount, tree, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH, 0);
        CALL1(close, tree);
    } else if (flags & MS_MOVE) {
        tree = resolve(words[0], O_PATH, 0);
        if (tree < 0)
            return tree;
        result = CALL(move_mount, tree, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH, 0);
        CALL1(close, tree);
    } else {
        result = CALL1(fchdir, target);
        if (result == 0)
            result = CALL(mount, words[0], ".", words[2], flags, *words[4] ? words[4] : 0, 0);
        else if (result == -ENOTDIR && flags & MS_REMOUNT && flags & MS_BIND)
            result = change_mount(target, flags);
        CALL1(chdir, "/");
    }
    CALL1(close, target);
    return result;
}

static i64 step_umount(const char *path, const char *flag_text)
{
    u64 flags;
    i64 result, parent;
    const char *name;
    if (!number_of(flag_text, 10, &flags))
        return -EINVAL;
    parent = open_parent(path, &name);
    if (parent < 0)
        return parent;
    result = CALL1(fchdir, parent);
    if (result == 0)
        result = CALL2(umount2, name, flags | 8 /* UMOUNT_NOFOLLOW */);
    CALL1(chdir, "/");
    CALL1(close, parent);
    return result;
}

static i64 step_write(int count, char **words)
{
    i64 result, file = resolve(words[0], O_WRONLY | O_NOCTTY | (count == 3 ? O_CREAT | O_TRUNC : 0), count == 3 ? 0644 : 0);
    if (file < 0)
        return file;
    /* One write(2): what the kernel reads from its own files it wants whole. */
    result = CALL3(write, file, words[1], length_of(words[1]));
    CALL1(close, file);
    return result < 0 ? result : 0;
}

static i64 step_wait(const char *path, const char *time)
{
    u64 left;
    if (!number_of(time, 10, &left))
        return -EINVAL;
    if (left > LONGEST_WAIT_MS)
        left = LONGEST_WAIT_MS;
    for (;; left--) {
        i64 there = resolve(path, O_PATH, 0);
        if (there >= 0) {
            CALL1(close, there);
            return 0;
        }
        if (there != -ENOENT && there != -ENOTDIR)
            return there;
        if (!left)
            return -ETIMEDOUT;
        sleep_milliseconds(1);
    }
}

static i64 step_entropy(const char *text)
{
    struct { int bits, size; u8 data[512]; } pool = {0, 0, {0}};
    u64 size = length_of(text);
    i64 result, device;
    if (!size || size % 2 || size / 2 > sizeof pool.data)
        return -EINVAL;
    for (u64 i = 0; i < size / 2; i++) {
        int high = hexadecimal(text[2 * i]), low = hexadecimal(text[2 * i + 1]);
        if (high < 0 || low < 0)
            return -EINVAL;
        pool.data[i] = (u8)(high << 4 | low);
    }
    pool.size = (int)(size / 2);
    pool.bits = pool.size * 8;
    device = resolve("/dev/urandom", O_WRONLY, 0);
    if (device < 0)
        return device;
    result = CALL3(ioctl, device, RNDADDENTROPY, &pool);
    if (result >= 0)
        result = CALL3(ioctl, device, RNDRESEEDCRNG, 0);
    CALL1(close, device);
    return result;
}

static i64 load_module(const char *path)
{
    i64 result, file = resolve(path, 0, 0);
    if (file < 0)
        return file;
    result = CALL3(finit_module, file, "", 0);
    CALL1(close, file);
    return result == -EEXIST ? 0 : result;
}

static i64 step_clock(const char *seconds, const char *nanoseconds)
{
    u64 time[2];
    if (!number_of(seconds, 10, &time[0]) || !number_of(nanoseconds, 10, &time[1]))
        return -EINVAL;
    return CALL2(clock_settime, 0, time);
}

static i64 step_chown(char **words)
{
    u64 uid, gid;
    i64 result, file;
    if (!number_of(words[1], 10, &uid) || !number_of(words[2], 10, &gid))
        return -EINVAL;
    file = resolve(words[0], O_PATH | O_NOFOLLOW, 0);
    if (file < 0)
        return file;
    result = CALL(fchownat, file, "", uid, gid, AT_EMPTY_PATH, 0);
    CALL1(close, file);
    return result;
}

/* This process goes into a control group; a FIRST's is the root of those that it sees. */
static i64 step_cgroup(const char *path)
{
    i64 result, procs, directory = resolve(path, O_PATH | O_DIRECTORY, 0);
    if (directory < 0)
        return directory;
    procs = open_below(directory, "cgroup.procs", O_WRONLY, 0);
    CALL1(close, directory);
    if (procs < 0)
        return procs;
    result = CALL3(write, procs, "0", 1);
    CALL1(close, procs);
    if (result < 0)
        return result;
    return in_new_namespaces ? CALL1(unshare, CLONE_NEWCGROUP) : 0;
}

/* Whatever makes a new name: in a directory that was resolved once. mkdir also makes those above. */
static i64 step_make(int count, char **words)
{
    const char *name, *kind = words[0];
    u64 mode = 0, major = 0, minor = 0;
    i64 result, parent;
    if (same(kind, "mkdir")) {
        if (count == 4) { /* no link to one either: what is mounted there would be mounted elsewhere */
            parent = open_parent(words[1], &name);
            if (parent < 0)
                return parent;
            result = CALL4(openat, parent, name, O_PATH | O_NOFOLLOW | O_DIRECTORY | O_CLOEXEC, 0);
            CALL1(close, parent);
            if (result >= 0)
                CALL1(close, result);
            if (result != -ENOENT)
                return result < 0 ? -ENOTDIR : 0;
        }
        if (!number_of(words[2], 8, &mode) || (parent = open_root_of(words[1])) < 0)
            return -EINVAL;
        result = make_directories_below(parent, words[1], mode & 07777);
        if (result >= 0)
            CALL1(close, result);
        CALL1(close, parent);
        return result < 0 ? result : 0;
    }
    if (same(kind, "symlink")) {
        parent = open_parent(words[2], &name);
        if (parent < 0)
            return parent;
        result = CALL3(symlinkat, words[1], parent, name);
    } else {
        if (!number_of(words[2], 8, &mode))
            return -EINVAL;
        mode = (mode & 07777) | S_IFREG;
        if (count == 6) {
            if (!number_of(words[4], 10, &major) || !number_of(words[5], 10, &minor) || (!same(words[3], "c") && !same(words[3], "b")))
                return -EINVAL;
            mode = (mode & 07777) | (*words[3] == 'c' ? S_IFCHR : S_IFBLK);
        }
        parent = open_parent(words[1], &name);
        if (parent < 0)
            return parent;
        result = CALL4(mknodat, parent, name, mode, (minor & 0xff) | (major & 0xfff) << 8 | (minor & ~0xfful) << 12);
        if (result == -EEXIST && count == 3)
            result = 0;
    }
    CALL1(close, parent);
    return result;
}

/* target SOURCE TARGET: what a bind of SOURCE can be mounted on, a directory or an empty file, with the directories above it. */
static i64 step_target(const char *source, const char *target)
{
    struct statx status;
    char *words[3] = {"mkdir", (char *)target, "755"};
    const char *name;
    i64 result, there, from = resolve(source, O_PATH, 0);
    if (from < 0)
        return from;
    result = status_of(from, &status);
    CALL1(close, from);
    if (result < 0)
        return result;
    there = resolve(target, O_PATH, 0);
    if (there >= 0) {
        CALL1(close, there);
        return 0;
    }
    if ((status.mode & S_IFMT) == S_IFDIR)
        return step_make(3, words);
    name = target + length_of(target);
    while (name > target && name[-1] != '/')
        name--;
    if (name > target) {
        char directory[4096];
        u64 size = (u64)(name - target);
        if (size >= sizeof directory)
            return -ENAMETOOLONG;
        memcpy(directory, target, size);
        directory[size - 1] = 0;
        words[1] = directory;
        result = step_make(3, words);
        if (result < 0)
            return result;
    }
    words[0] = "file";
    words[1] = (char *)target;
    words[2] = "644";
    return step_make(3, words);
}

static i64 one_step(int count, char **words)
{
    const char *name = words[0];
    if (count == 6 && same(name, "mount"))
        return step_mount(words + 1);
    if (count == 3 && (same(name, "mkdir") || same(name, "file") || same(name, "symlink")))
        return step_make(count, words);
    if (count == 4 && same(name, "mkdir") && same(words[3], "itself"))
        return step_make(count, words);
    if (count == 6 && same(name, "mknod"))
        return step_make(count, words);
    if (count == 3 && same(name, "umount"))
        return step_umount(words[1], words[2]);
    if (count == 3 && same(name, "write"))
        return step_write(2, words + 1);
    if (count == 4 && same(name, "write") && same(words[3], "create"))
        return step_write(3, words + 1);
    if (count == 3 && same(name, "target"))
        return step_target(words[1], words[2]);
    if (count == 2 && same(name, "hostname"))
        return CALL2(sethostname, words[1], length_of(words[1]));
    if (count == 2 && same(name, "module"))
        return load_module(words[1]);
    if (count == 3 && same(name, "wait"))
        return step_wait(words[1], words[2]);
    if ((count == 3 || count == 4) && same(name, "link"))
        return change_link(words + 1, count - 1);
    if (count == 3 && same(name, "address"))
        return change_address(RTM_NEWADDR, words[1], words[2]);
    if (count == 4 && same(name, "address") && same(words[3], "remove"))
        return change_address(RTM_DELADDR, words[1], words[2]);
    if (count == 3 && same(name, "route"))
        return add_route(words[1], words[2]);
    if (count == 3 && same(name, "clock"))
        return step_clock(words[1], words[2]);
    if (count == 2 && same(name, "entropy"))
        return step_entropy(words[1]);
    if (count == 4 && same(name, "chown"))
        return step_chown(words + 1);
    if (count == 2 && same(name, "cgroup"))
        return step_cgroup(words[1]);
    if (count == 1 && same(name, "sync"))
        return CALL2(sync, 0, 0);
    return -EPROTO;
}

/* The words of a step's payload, in place; how many, or -1. */
static int split_words(char *payload, u64 size, char **words)
{
    int count = 0;
    if (!size || payload[size - 1])
        return -1;
    for (u64 at = 0; at < size; at += length_of(payload + at) + 1) {
        if (count == MOST_WORDS)
            return -1;
        words[count++] = payload + at;
    }
    return count;
}

/* A step that begins with ? may fail. */
static i64 do_step(int count, char **words)
{
    /* Of a mount the target says more than the source. */
    i64 result;
    if (*words[0] == '?') {
        words[0]++;
        result = one_step(count, words);
        if (result == -EPROTO)
            return failed(result, words[0], 0);
        *trouble = 0;
        return 0;
    }
    result = one_step(count, words);
    return failed(result < 0 ? result : 0, words[0], count > 2 && same(words[0], "mount") ? words[2] : count > 1 ? words[1] : 0);
}

#endif
