/* The floor: what one container costs when C makes the system calls that Bulle's `container` level makes, and nothing else.
 *
 * One clone3 into six namespaces with a user namespace among them, a control group in each hierarchy given, id maps, an id-mapped overlay over the given
 * layers, /dev with its nodes, /proc, /sys, masked and read-only paths, pivot_root, a seccomp filter, dropped capabilities, execve, wait, and the removal of
 * what the kernel does not remove. bench/run.py builds and runs it; it is a yardstick, not a product: it checks that each call works and nothing about
 * its input.
 *
 * usage: floor ROUNDS STATE_DIRECTORY FIRST_ID FILTER_FILE LAYERS(a:b, lowest first) GROUP_PARENTS(a:b) COMMAND [ARGUMENT...]
 * Prints the nanoseconds of each round, one per line.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/if.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* <sys/mount.h> and <linux/mount.h> cannot both be included with every C library. */
int mount(const char *, const char *, const char *, unsigned long, const void *);
int umount2(const char *, int);
#define DETACH 2
#define AT_RECURSIVE_FLAG 0x8000
#define CLONE_TREE (OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
#define LOCKED (MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)
#define MAXIMUM 64

static long ok(long result, const char *what) {
    if (result < 0) {
        fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
        exit(1);
    }
    return result;
}
#define OK(call) ok((call), #call)

static const char *state, *command, **arguments;
static const char *layers[MAXIMUM], *groups[MAXIMUM];
static int layer_count, group_count;
static unsigned first_id;
static struct sock_fprog filter;

static int split(char *text, const char **into) {
    int count = 0;
    for (char *word = strtok(text, ":"); word && count < MAXIMUM; word = strtok(NULL, ":")) into[count++] = word;
    return count;
}

static void put(int at, const char *path, const char *text) {
    int file = OK(openat(at, path, O_WRONLY | O_CLOEXEC));
    OK(write(file, text, strlen(text)));
    close(file);
}

static int clone_tree(int at, const char *path, unsigned flags) { return OK(syscall(SYS_open_tree, at, path, CLONE_TREE | flags)); }

static void set_attributes(int tree, unsigned flags, unsigned long long set, int user_namespace) {
    struct mount_attr attributes = {.attr_set = set, .userns_fd = user_namespace};
    OK(syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | flags, &attributes, sizeof attributes));
}

static void attach(int tree, int at, const char *path) {
    OK(syscall(SYS_move_mount, tree, "", at, path, MOVE_MOUNT_F_EMPTY_PATH | (*path ? 0 : MOVE_MOUNT_T_EMPTY_PATH)));
}

static int beneath(int at, const char *path) {
    struct open_how how = {.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC, .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS};
    return syscall(SYS_openat2, at, path, &how, sizeof how);
}

/* A detached mount of a new file system; options are key, value, ..., NULL (value NULL: a flag). */
static int new_mount(const char *type, unsigned attributes, const char **options) {
    int context = OK(syscall(SYS_fsopen, type, FSOPEN_CLOEXEC));
    for (; *options; options += 2) OK(syscall(SYS_fsconfig, context, options[1] ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, options[0], options[1], 0));
    OK(syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
    int tree = OK(syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, attributes));
    close(context);
    return tree;
}
#define OPTIONS(...) (const char *[]){__VA_ARGS__ __VA_OPT__(, ) NULL}

static int mount_in(int root, const char *name, const char *type, unsigned attributes, const char **options) {
    mkdirat(root, name, 0755);
    int target = OK(beneath(root, name)), tree = new_mount(type, attributes, options);
    attach(tree, target, "");
    close(target);
    return tree;
}

/* The parent's part: the overlay of id-mapped layers and upper directory, as a detached mount. */
static int overlay(const char *directory, int user_namespace) {
    int lower[MAXIMUM];
    for (int i = 0; i < layer_count; i++) {
        lower[i] = clone_tree(AT_FDCWD, layers[i], 0);
        set_attributes(lower[i], 0, MOUNT_ATTR_RDONLY | MOUNT_ATTR_IDMAP, user_namespace);
    }
    int writable = clone_tree(AT_FDCWD, directory, 0);
    set_attributes(writable, 0, MOUNT_ATTR_IDMAP, user_namespace);
    long bits = prctl(PR_GET_SECUREBITS);
    OK(prctl(PR_SET_SECUREBITS, bits | SECBIT_NO_SETUID_FIXUP));
    setfsuid(first_id);
    setfsgid(first_id);
    int upper = OK(openat(writable, "upper", O_PATH | O_CLOEXEC)), work = OK(openat(writable, "work", O_PATH | O_CLOEXEC));
    int context = OK(syscall(SYS_fsopen, "overlay", FSOPEN_CLOEXEC));
    const char *strings[] = {"source", "overlay", "redirect_dir", "off", "metacopy", "off", "index", "off"};
    for (int i = 0; i < 8; i += 2) OK(syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, strings[i], strings[i + 1], 0));
    OK(syscall(SYS_fsconfig, context, FSCONFIG_SET_FLAG, "volatile", NULL, 0));
    for (int i = layer_count - 1; i >= 0; i--) OK(syscall(SYS_fsconfig, context, FSCONFIG_SET_FD, "lowerdir+", NULL, lower[i]));
    OK(syscall(SYS_fsconfig, context, FSCONFIG_SET_FD, "upperdir", NULL, upper));
    OK(syscall(SYS_fsconfig, context, FSCONFIG_SET_FD, "workdir", NULL, work));
    OK(syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
    int tree = OK(syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, 0));
    setfsuid(0);
    setfsgid(0);
    OK(prctl(PR_SET_SECUREBITS, bits));
    for (int i = 0; i < layer_count; i++) close(lower[i]);
    close(upper), close(work), close(writable), close(context);
    return tree;
}

static void loopback_up(void) {
    int device = OK(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    struct ifreq request = {.ifr_name = "lo"};
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    OK(ioctl(device, 0x8914 /* SIOCSIFFLAGS */, &request));
    close(device);
}

static void hide(int proc, int sys) {
    static const char *masked[] = {"asound", "acpi", "interrupts", "kcore", "keys", "latency_stats", "timer_list", "timer_stats", "sched_debug", "scsi", NULL};
    static const char *masked_sys[] = {"firmware", "devices/virtual/powercap", NULL};
    static const char *read_only[] = {"bus", "fs", "irq", "sys", "sysrq-trigger", NULL};
    int null = OK(syscall(SYS_open_tree, AT_FDCWD, "/dev/null", CLONE_TREE));
    int empty = new_mount("tmpfs", LOCKED | MOUNT_ATTR_RDONLY, OPTIONS("size", "0k", "mode", "755"));
    for (const char **name = read_only; *name; name++) {
        int target = beneath(proc, *name);
        if (target < 0) continue;
        int tree = clone_tree(target, "", AT_EMPTY_PATH | AT_RECURSIVE_FLAG);
        set_attributes(tree, AT_RECURSIVE_FLAG, MOUNT_ATTR_RDONLY, 0);
        attach(tree, target, "");
        close(tree), close(target);
    }
    for (int pass = 0; pass < 2; pass++)
        for (const char **name = pass ? masked_sys : masked; *name; name++) {
            int target = beneath(pass ? sys : proc, *name);
            struct stat found;
            if (target < 0) continue;
            OK(fstat(target, &found));
            int tree = clone_tree(S_ISDIR(found.st_mode) ? empty : null, "", AT_EMPTY_PATH);
            attach(tree, target, "");
            close(tree), close(target);
        }
    close(null), close(empty);
}

static void control_groups_view(int sys) {
    int target = beneath(sys, "fs/cgroup");
    if (target < 0) return;
    int tmpfs = new_mount("tmpfs", LOCKED, OPTIONS("mode", "755", "size", "64k"));
    attach(tmpfs, target, "");
    for (int i = 0; i < group_count; i++) {
        const char *name = strrchr(groups[i], '/') + 1;
        if (strcmp(name, "systemd") && strcmp(name, "unified")) {
            char joined[64];
            snprintf(joined, sizeof joined, "%s", name);
            close(mount_in(tmpfs, name, "cgroup", LOCKED | MOUNT_ATTR_RDONLY, OPTIONS(joined, NULL)));
        }
    }
    set_attributes(tmpfs, 0, LOCKED | MOUNT_ATTR_RDONLY, 0);
    close(tmpfs), close(target);
}

static int build_dev(int root) {
    static const char *nodes[] = {"null", "zero", "full", "random", "urandom", "tty", NULL};
    static const char *links[] = {"fd", "/proc/self/fd", "stdin", "/proc/self/fd/0", "stdout", "/proc/self/fd/1", "stderr", "/proc/self/fd/2",
                                  "ptmx", "pts/ptmx", "core", "/proc/kcore", NULL};
    int dev = mount_in(root, "dev", "tmpfs", MOUNT_ATTR_NOSUID, OPTIONS("mode", "755", "size", "65536k"));
    umask(0);
    for (const char **name = nodes; *name; name++) {
        char path[32];
        snprintf(path, sizeof path, "/dev/%s", *name);
        int source = clone_tree(AT_FDCWD, path, 0);
        OK(mknodat(dev, *name, S_IFREG | 0666, 0));
        attach(source, dev, *name);
        close(source);
    }
    for (const char **link = links; *link; link += 2) OK(symlinkat(link[1], dev, link[0]));
    umask(022);
    close(mount_in(dev, "pts", "devpts", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, OPTIONS("newinstance", NULL, "mode", "0620", "ptmxmode", "0666", "gid", "5")));
    close(mount_in(dev, "shm", "tmpfs", LOCKED, OPTIONS("mode", "1777", "size", "67108864")));
    close(mount_in(dev, "mqueue", "mqueue", LOCKED, OPTIONS()));
    return dev;
}

static void drop_privileges(void) {
    static const unsigned long long kept = 0xa80425fbULL; /* Docker's fourteen */
    for (int number = 0; number < 64 && prctl(PR_CAPBSET_READ, number) >= 0; number++)
        if (!(kept >> number & 1)) OK(prctl(PR_CAPBSET_DROP, number));
    if (filter.len) OK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_LOG, &filter));
    OK(setgroups(0, NULL));
    OK(setresgid(0, 0, 0));
    OK(setresuid(0, 0, 0));
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{kept, kept, 0}, {0, 0, 0}};
    OK(syscall(SYS_capset, &header, data));
}

static _Noreturn void child(int channel, int *group_files) {
    setsid();
    for (int i = 0; i < group_count; i++) OK(write(group_files[i], "0", 1));
    OK(syscall(SYS_unshare, CLONE_NEWCGROUP));
    OK(mount(NULL, "/", NULL, (1 << 14) | (1 << 19) /* MS_REC | MS_SLAVE */, NULL));
    loopback_up();
    char byte, control[CMSG_SPACE(sizeof(int))];
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    OK(recvmsg(channel, &message, MSG_CMSG_CLOEXEC));
    int root;
    memcpy(&root, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof root);
    OK(setgroups(0, NULL));
    OK(setresgid(0, 0, 0));
    OK(setresuid(0, 0, 0));
    attach(root, AT_FDCWD, "/tmp");
    close(build_dev(root));
    int proc = mount_in(root, "proc", "proc", LOCKED, OPTIONS());
    int sys = mount_in(root, "sys", "sysfs", LOCKED | MOUNT_ATTR_RDONLY, OPTIONS());
    control_groups_view(sys);
    hide(proc, sys);
    OK(fchdir(root));
    OK(syscall(SYS_pivot_root, ".", "."));
    OK(umount2(".", DETACH));
    OK(chdir("/"));
    OK(sethostname("floor", 5));
    int nowhere = OK(open("/dev/null", O_RDWR | O_CLOEXEC));
    for (int number = 0; number < 3; number++) dup2(nowhere, number);
    drop_privileges();
    OK(syscall(SYS_close_range, 3, ~0U, CLOSE_RANGE_CLOEXEC));
    execve(command, (char *const *)arguments, (char *const[]){"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", NULL});
    _exit(127);
}

static void one_round(int round) {
    char path[4096], text[64];
    int group_files[MAXIMUM];
    snprintf(path, sizeof path, "%s/%d", state, round);
    OK(mkdir(path, 0700));
    int directory = OK(open(path, O_DIRECTORY | O_RDONLY | O_CLOEXEC));
    OK(mkdirat(directory, "upper", 0755));
    OK(mkdirat(directory, "work", 0755));
    for (int i = 0; i < group_count; i++) {
        char group[4096];
        snprintf(group, sizeof group, "%s/bulle/floor-%d", groups[i], getpid());
        OK(mkdir(group, 0755));
        strcat(group, "/tasks");
        group_files[i] = open(group, O_WRONLY | O_CLOEXEC);
        if (group_files[i] < 0) {
            snprintf(group, sizeof group, "%s/bulle/floor-%d/cgroup.procs", groups[i], getpid());
            group_files[i] = OK(open(group, O_WRONLY | O_CLOEXEC));
        }
    }
    int channel[2], pidfd = -1, status;
    OK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, channel));
    struct clone_args wanted = {
        .flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_PIDFD,
        .pidfd = (unsigned long)&pidfd,
        .exit_signal = SIGCHLD,
    };
    pid_t pid = OK(syscall(SYS_clone3, &wanted, sizeof wanted));
    if (pid == 0) child(channel[1], group_files);
    close(channel[1]);
    snprintf(text, sizeof text, "0 %u 65536", first_id);
    snprintf(path, sizeof path, "/proc/%d/uid_map", pid);
    put(AT_FDCWD, path, text);
    snprintf(path, sizeof path, "/proc/%d/gid_map", pid);
    put(AT_FDCWD, path, text);
    snprintf(path, sizeof path, "/proc/%d/ns/user", pid);
    int user_namespace = OK(open(path, O_RDONLY | O_CLOEXEC));
    snprintf(path, sizeof path, "%s/%d", state, round);
    int root = overlay(path, user_namespace);
    close(user_namespace);
    char byte = 0, control[CMSG_SPACE(sizeof root)] = {0};
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    *rights = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof root)};
    memcpy(CMSG_DATA(rights), &root, sizeof root);
    OK(sendmsg(channel[0], &message, 0));
    close(root);
    OK(waitpid(pid, &status, 0));
    if (status) {
        fprintf(stderr, "floor: the command ended with status %#x\n", status);
        exit(1);
    }
    close(pidfd), close(channel[0]);
    for (int i = 0; i < group_count; i++) {
        char group[4096];
        close(group_files[i]);
        snprintf(group, sizeof group, "%s/bulle/floor-%d", groups[i], getpid());
        OK(rmdir(group));
    }
    unlinkat(directory, "work/work/incompat/volatile/dirty", 0);
    unlinkat(directory, "work/work/incompat/volatile", AT_REMOVEDIR);
    unlinkat(directory, "work/work/incompat", AT_REMOVEDIR);
    unlinkat(directory, "work/work", AT_REMOVEDIR);
    unlinkat(directory, "work", AT_REMOVEDIR);
    for (const char **name = (const char *[]){"dev", "proc", "sys", NULL}; *name; name++) {
        snprintf(path, sizeof path, "upper/%s", *name);
        unlinkat(directory, path, AT_REMOVEDIR);
    }
    unlinkat(directory, "upper", AT_REMOVEDIR);
    close(directory);
    snprintf(path, sizeof path, "%s/%d", state, round);
    OK(rmdir(path));
}

int main(int count, char **words) {
    if (count < 8) {
        fprintf(stderr, "usage: floor ROUNDS STATE_DIRECTORY FIRST_ID FILTER_FILE LAYERS GROUP_PARENTS COMMAND [ARGUMENT...]\n");
        return 2;
    }
    state = words[2];
    first_id = atoi(words[3]);
    static struct sock_filter instructions[BPF_MAXINSNS];
    int file = OK(open(words[4], O_RDONLY | O_CLOEXEC));
    filter = (struct sock_fprog){.len = OK(read(file, instructions, sizeof instructions)) / sizeof *instructions, .filter = instructions};
    close(file);
    layer_count = split(words[5], layers);
    group_count = split(words[6], groups);
    command = words[7];
    arguments = (const char **)words + 7;
    for (int round = 0; round < atoi(words[1]); round++) {
        struct timespec begin, end;
        clock_gettime(CLOCK_MONOTONIC, &begin);
        one_round(round);
        clock_gettime(CLOCK_MONOTONIC, &end);
        printf("%lld\n", (end.tv_sec - begin.tv_sec) * 1000000000LL + end.tv_nsec - begin.tv_nsec);
        fflush(stdout);
    }
    return 0;
}
