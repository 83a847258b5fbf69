/* From a fork of the agent to the container's command: namespaces, steps, root, terminal, identity, privileges, execve(2). docs/vm-agent.md */
#ifndef BULLE_AGENT_EXECUTION_H
#define BULLE_AGENT_EXECUTION_H

#include "agent-steps.h"

enum { TERMINAL = 1, STDIN_OPEN = 2, FIRST = 4, NO_NEW_PRIVILEGES = 8, INIT = 16, IDLE = 32, LOG_REFUSALS = 64, ALL_FLAGS = 127 };
enum { AF_UNIX = 1, SOCK_SEQPACKET = 5, SOL_SOCKET = 1, SCM_RIGHTS = 1, MSG_NOSIGNAL = 0x4000, MSG_CMSG_CLOEXEC = 0x40000000, MSG_DONTWAIT = 0x40 };
enum { PR_SET_PDEATHSIG = 1, PR_SET_DUMPABLE = 4, PR_CAPBSET_DROP = 24, PR_SET_NO_NEW_PRIVS = 38, SECCOMP_SET_MODE_FILTER = 1, SECCOMP_FILTER_FLAG_LOG = 2 };
enum { TIOCSPTLCK = 0x40045431, TIOCGPTPEER = 0x5441, TIOCSWINSZ = 0x5414, TIOCSCTTY = 0x540E, TIOCSPGRP = 0x5410 };
enum { WNOHANG = 1, SI_USER = 0, RLIMIT_NOFILE = 7, MOST_STRINGS = 32768, EXECUTION_HEADER = 52 };
enum { REPORT_FAILED = 1, REPORT_TERMINAL = 2, REPORT_PREPARED = 3 };

struct vector { void *base; u64 length; };
struct message { void *name; u32 name_length; u32 pad; struct vector *vectors; u64 vector_count; void *control; u64 control_length; u32 flags; u32 pad2; };
struct control { u64 length; int level; int type; int descriptor; int pad; };
struct report { int kind, error; char text[TROUBLE_SIZE]; }; /* from a child to the agent */
struct limit { u32 number; u64 soft, hard; };

/* An EXEC, taken apart: pointers into its payload. */
struct execution {
    u32 flags, uid, gid, umask, rows, columns;
    u64 capabilities;
    u32 group_count, limit_count, argument_count, environment_count, step_count, filter_bytes;
    u8 *groups, *limits, *filter;
    char *directory, *steps;
    char **arguments, **environment;
    u64 steps_size;
};

static int report_line = -1; /* a child's line to the agent; close-on-exec: its end tells that the command was executed */
static int dies_with_agent;  /* not the machine's init: its children end with it */
static u64 own_limit[2];     /* of descriptors, before the agent raised its own */
static char *argument_list[MOST_STRINGS + 1], *environment_list[MOST_STRINGS + 1];

static u32 read32(const u8 *at)
{
    u32 value;
    memcpy(&value, at, 4);
    return value;
}

static u64 read64(const u8 *at)
{
    u64 value;
    memcpy(&value, at, 8);
    return value;
}

static void send_report(int kind, i64 error, const char *text, int descriptor)
{
    static struct report report;
    struct vector vector = {&report, sizeof report};
    struct control control = {16 + sizeof(int), SOL_SOCKET, SCM_RIGHTS, descriptor, 0};
    struct message message = {0, 0, 0, &vector, 1, descriptor >= 0 ? &control : 0, descriptor >= 0 ? sizeof control : 0, 0, 0};
    report.kind = kind;
    report.error = (int)-error;
    append(report.text, report.text + sizeof report.text, text);
    while (CALL3(sendmsg, report_line, &message, MSG_NOSIGNAL) == -EINTR)
        ;
}

/* What a child said; 0 at its end. A descriptor that came along, or -1. */
static i64 take_report(int line, struct report *report, int *descriptor, u32 flags)
{
    struct control control;
    struct vector vector = {report, sizeof *report};
    struct message message = {0, 0, 0, &vector, 1, &control, sizeof control, 0, 0};
    i64 got;
    do
        got = CALL3(recvmsg, line, &message, MSG_CMSG_CLOEXEC | flags);
    while (got == -EINTR);
    *descriptor = -1;
    if (got > 0 && message.control_length >= 16 + sizeof(int) && control.level == SOL_SOCKET && control.type == SCM_RIGHTS)
        *descriptor = control.descriptor;
    return got;
}

/* A child's end: what failed is told to the agent. */
static void must(i64 result, const char *what)
{
    if (result >= 0)
        return;
    failed(result, what, 0);
    send_report(REPORT_FAILED, result, trouble, -1);
    quit(127);
}

/* Strings of a payload, into a list; where they end, or 0. */
static char *take_strings(char *at, const char *end, u32 count, char **list)
{
    for (u32 i = 0; i < count; i++) {
        list[i] = at;
        while (at < end && *at)
            at++;
        if (at++ >= end)
            return 0;
    }
    list[count] = 0;
    return at;
}

/* Whether there are so many steps, and nothing else. */
static int are_steps(const char *at, const char *end, u32 count)
{
    for (u32 i = 0; i < count; i++) {
        u32 length;
        if ((u64)(end - at) < 4)
            return 0;
        length = read32((const u8 *)at);
        if ((u64)(end - at - 4) < length)
            return 0;
        at += 4 + length;
    }
    return at == end;
}

/* Takes an EXEC's payload apart; 0 where it is not one. */
static int parse_execution(u8 *at, u64 size, struct execution *wanted)
{
    u8 *end = at + size;
    char *strings, *directory[2];
    if (size < EXECUTION_HEADER)
        return 0;
    wanted->flags = read32(at);
    wanted->uid = read32(at + 4);
    wanted->gid = read32(at + 8);
    wanted->umask = read32(at + 12);
    wanted->rows = at[16] | (u32)at[17] << 8;
    wanted->columns = at[18] | (u32)at[19] << 8;
    wanted->capabilities = read64(at + 20);
    wanted->group_count = read32(at + 28);
    wanted->limit_count = read32(at + 32);
    wanted->argument_count = read32(at + 36);
    wanted->environment_count = read32(at + 40);
    wanted->step_count = read32(at + 44);
    wanted->filter_bytes = read32(at + 48);
    at += EXECUTION_HEADER;
    if (wanted->flags & ~(u32)ALL_FLAGS || wanted->umask > 0777 || wanted->uid == ~0u || wanted->gid == ~0u || wanted->group_count > 65536
        || wanted->limit_count > 64 || wanted->argument_count > MOST_STRINGS || wanted->environment_count > MOST_STRINGS || wanted->step_count > 4096
        || wanted->filter_bytes > 65535 * 8 || wanted->filter_bytes % 8)
        return 0;
    if ((u64)(end - at) < 4ul * wanted->group_count + 20ul * wanted->limit_count + wanted->filter_bytes)
        return 0;
    wanted->groups = at;
    wanted->limits = wanted->groups + 4ul * wanted->group_count;
    wanted->filter = wanted->limits + 20ul * wanted->limit_count;
    strings = (char *)wanted->filter + wanted->filter_bytes;
    strings = take_strings(strings, (char *)end, 1, directory);
    if (strings)
        strings = take_strings(strings, (char *)end, wanted->argument_count, argument_list);
    if (strings)
        strings = take_strings(strings, (char *)end, wanted->environment_count, environment_list);
    if (!strings || *directory[0] != '/')
        return 0;
    wanted->directory = directory[0];
    wanted->arguments = argument_list;
    wanted->environment = environment_list;
    wanted->steps = strings;
    wanted->steps_size = (u64)((char *)end - strings);
    return are_steps(wanted->steps, (char *)end, wanted->step_count) && (wanted->argument_count || wanted->flags & IDLE)
        && (wanted->flags & (INIT | IDLE)) != (INIT | IDLE) && (wanted->flags & FIRST || !(wanted->flags & (INIT | IDLE)));
}

static void do_steps(char *at, u32 step_count)
{
    char *words[MOST_WORDS];
    for (u32 i = 0; i < step_count; i++) {
        u32 length = read32((u8 *)at);
        int count = split_words(at + 4, length, words);
        must(count < 1 ? -EPROTO : do_step(count, words), "step");
        at += 4 + length;
    }
}

/* The root of new namespaces becomes the container's. Moved over /, not pivoted: the first root of a machine (an initramfs) cannot be pivoted away. */
static void enter_root(void)
{
    i64 root = open_below(own_root, root_path, O_PATH | O_DIRECTORY, 0);
    must(root, "root");
    must(CALL1(fchdir, root), "root");
    must(CALL(mount, ".", "/", 0, MS_MOVE, 0, 0), "root: it is no mount of its own");
    must(CALL1(chroot, "."), "root");
    must(CALL1(chdir, "/"), "root");
    entered = 1;
}

/* The agent's fork joins the container; its pid namespace was chosen by the agent before the fork. */
static void join_container(i64 first)
{
    must(CALL2(setns, first, CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWCGROUP), "join");
    entered = 1;
}

static void take_terminal(struct execution *wanted)
{
    unsigned short size[4] = {(unsigned short)wanted->rows, (unsigned short)wanted->columns, 0, 0};
    struct statx status;
    i64 console, tree, slave, master = resolve("dev/pts/ptmx", O_RDWR | O_NOCTTY | O_NOFOLLOW, 0);
    must(master, "terminal");
    must(status_of(master, &status), "terminal");
    must((status.mode & S_IFMT) == S_IFCHR && status.device_major == 5 && status.device_minor == 2 ? 0 : -ENOTDIR, "terminal: /dev/pts is none");
    must(CALL3(ioctl, master, TIOCSPTLCK, &(int){0}), "terminal");
    slave = CALL3(ioctl, master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    must(slave, "terminal");
    if (wanted->rows && wanted->columns)
        must(CALL3(ioctl, master, TIOCSWINSZ, size), "terminal");
    if (wanted->uid)
        CALL3(fchown, slave, wanted->uid, -1);
    must(CALL3(ioctl, slave, TIOCSCTTY, 0), "terminal");
    for (int number = 0; number < 3; number++)
        CALL3(dup3, slave, number, 0);
    send_report(REPORT_TERMINAL, 0, "", (int)master);
    if (wanted->flags & FIRST && (console = resolve("dev/console", O_PATH | O_NOFOLLOW, 0)) >= 0) {
        tree = CALL3(open_tree, 0, "", OPEN_TREE_CLONE | O_CLOEXEC | AT_EMPTY_PATH);
        if (tree >= 0)
            CALL(move_mount, tree, "", console, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH, 0);
    }
}

static void enter_directory(const char *path)
{
    i64 directory = open_root_of(""); /* the container's: this process is in it */
    must(directory, "directory");
    directory = make_directories_below(directory, path, 0755);
    failed(directory, "directory", path);
    must(directory, "directory");
    must(CALL1(fchdir, directory), "directory");
}

static i64 install_filter(struct execution *wanted)
{
    struct { unsigned short count; void *program; } filter = {(unsigned short)(wanted->filter_bytes / 8), wanted->filter};
    u32 flags = wanted->flags & LOG_REFUSALS ? SECCOMP_FILTER_FLAG_LOG : 0;
    return wanted->filter_bytes ? CALL3(seccomp, SECCOMP_SET_MODE_FILTER, flags, &filter) : 0;
}

/* Bounding set, filter, ids, capabilities, in the only order that works with and without no_new_privs. */
static void drop_privileges(struct execution *wanted)
{
    static u32 groups[65536];
    struct { u32 version; int pid; } head = {0x20080522, 0};
    struct { u32 effective, permitted, inheritable; } sets[2] = {{0, 0, 0}, {0, 0, 0}};
    u32 no_new_privileges = wanted->flags & NO_NEW_PRIVILEGES;
    for (int number = 0; number < 64; number++)
        if (!(wanted->capabilities >> number & 1)) {
            i64 result = CALL(prctl, PR_CAPBSET_DROP, number, 0, 0, 0, 0);
            if (result == -EINVAL)
                break; /* this kernel knows no more */
            must(result, "capabilities");
        }
    if (no_new_privileges)
        must(CALL(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0), "no_new_privs");
    else
        must(install_filter(wanted), "seccomp");
    memcpy(groups, wanted->groups, 4ul * wanted->group_count);
    must(CALL2(setgroups, wanted->group_count, groups), "groups");
    must(CALL3(setresgid, wanted->gid, wanted->gid, wanted->gid), "group");
    must(CALL3(setresuid, wanted->uid, wanted->uid, wanted->uid), "user");
    if (!wanted->uid) {
        u64 known = 0;
        /* capset(2) takes no number that the kernel does not know. */
        for (int number = 0; number < 64 && CALL(prctl, 23 /* PR_CAPBSET_READ */, number, 0, 0, 0, 0) >= 0; number++)
            known |= 1ul << number;
        known &= wanted->capabilities;
        sets[0].effective = sets[0].permitted = (u32)known;
        sets[1].effective = sets[1].permitted = (u32)(known >> 32);
    }
    must(CALL2(capset, &head, sets), "capabilities");
    if (no_new_privileges)
        must(install_filter(wanted), "seccomp");
}

/* Links of /proc such as /proc/self/exe lead to what this process has open, which is the agent's: neither a command nor the interpreters that first lines
 * name may lead through one. */
static i64 check_program(const char *path, int depth)
{
    struct open_how how = {O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0, RESOLVE_NO_MAGICLINKS};
    char head[256], *at = head + 2, *end;
    i64 size, program = CALL4(openat2, AT_FDCWD, path, &how, sizeof how);
    if (program < 0)
        return program == -ELOOP ? program : 0; /* execve(2) says it, or executes what cannot be read */
    size = CALL3(read, program, head, sizeof head - 1);
    CALL1(close, program);
    if (size < 3 || head[0] != '#' || head[1] != '!' || !depth)
        return 0;
    head[size] = 0;
    while (*at == ' ' || *at == '\t')
        at++;
    for (end = at; *end && *end != ' ' && *end != '\t' && *end != '\n'; end++)
        ;
    *end = 0;
    return *at ? check_program(at, depth - 1) : 0;
}

static i64 execute_file(const char *path, struct execution *wanted)
{
    i64 result = check_program(path, 5);
    return result < 0 ? result : CALL3(execve, path, wanted->arguments, wanted->environment);
}

static i64 execute(struct execution *wanted)
{
    static char path[2 * PATH_SIZE];
    const char *directories = environment_value(wanted->environment, "PATH"), *end = path + sizeof path, *name = wanted->arguments[0];
    i64 result, worst = -ENOENT;
    for (const char *c = name; *c; c++)
        if (*c == '/') {
            result = execute_file(name, wanted);
            return result == -ENOTDIR ? -ENOENT : result;
        }
    if (!directories)
        directories = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    while (*name && *directories) {
        char *at = path;
        while (*directories && *directories != ':' && at < path + PATH_SIZE - 1)
            *at++ = *directories++;
        *at = 0;
        while (*directories && *directories != ':')
            directories++;
        if (*directories == ':')
            directories++;
        at = append(append(at == path ? append(path, end, ".") : at, end, "/"), end, name);
        if (!at)
            continue;
        result = execute_file(path, wanted);
        if (result != -ENOENT && result != -ENOTDIR)
            worst = result;
        if (worst != -ENOENT && worst != -EACCES)
            break;
    }
    return worst;
}

static void become_command(struct execution *wanted)
{
    u64 none = 0;
    if (dies_with_agent && !(wanted->flags & INIT))
        CALL(prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0, 0);
    CALL4(rt_sigprocmask, SIG_SETMASK, &none, 0, 8);
    must(execute(wanted), "exec");
}

/* The first fields of siginfo_t; a sender outside of our pid namespace has the number 0 here, which nobody inside can pretend. */
struct signal_information { int number, error, code, padding, sender, rest[27]; };

/* Process 1 of a container that asked for one: passes signals on to its child and ends as that does; without a child (idle) it only reaps, SIGUSR1 from
 * outside kills all the others, SIGTERM and its like end it. */
static void be_init(i64 child)
{
    u64 ignore[4] = {1, 0, 0, 0}, all = ~0ul;
    int status;
    CALL4(rt_sigaction, SIGTTIN, ignore, 0, 8);
    CALL4(rt_sigaction, SIGTTOU, ignore, 0, 8);
    if (dies_with_agent)
        CALL(prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0, 0);
    CALL3(close_range, child ? 3 : 0, ~0u, 0);
    for (;;) {
        struct signal_information information;
        i64 ended, number = CALL4(rt_sigtimedwait, &all, &information, 0, 8);
        while ((ended = CALL4(wait4, -1, &status, WNOHANG, 0)) > 0)
            if (ended == child)
                quit(status & 0x7f ? 128 + (status & 0x7f) : status >> 8 & 0xff);
        if (number <= 0 || number == SIGCHLD)
            continue;
        if (child)
            CALL2(kill, child, number);
        else if (information.code == SI_USER && information.sender == 0) {
            if (number == SIGUSR1)
                CALL2(kill, -1, SIGKILL);
            else if (number == SIGTERM || number == SIGINT || number == SIGQUIT || number == SIGHUP)
                quit(0);
        }
    }
}

static void make_namespaces(void)
{
    in_new_namespaces = 1;
    must(CALL1(unshare, CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWCGROUP), "namespaces");
    must(CALL(mount, "", "/", 0, MS_REC | MS_PRIVATE, 0, 0), "namespaces");
    CALL1(close, own_root);
    own_root = (int)CALL4(openat, AT_FDCWD, "/", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    must(own_root, "namespaces");
}

/* The child's way from its namespaces on, or to those that it joins; `first` is the pidfd of the container's process 1, -1 for a FIRST. Never returns. */
static void run_execution(struct execution *wanted, i64 first)
{
    i64 child;
    do_steps(wanted->steps, wanted->step_count);
    if (first < 0)
        enter_root();
    else
        join_container(first);
    /* From here on the container's processes may look at this one: it has nothing of the agent's any more. */
    CALL1(close, own_root);
    if (first >= 0)
        CALL1(close, first);
    if (wanted->flags & TERMINAL)
        take_terminal(wanted);
    else if (wanted->uid)
        /* The user may open /dev/stdout by name. */
        for (int number = 0; number < 3; number++) {
            struct statx status;
            if (status_of(number, &status) == 0 && (status.mode & S_IFMT) == S_IFIFO)
                CALL3(fchown, number, wanted->uid, -1);
        }
    CALL1(umask, 022);
    enter_directory(wanted->directory);
    CALL4(prlimit64, 0, RLIMIT_NOFILE, own_limit, 0);
    for (u32 i = 0; i < wanted->limit_count; i++) {
        const u8 *at = wanted->limits + 20 * i;
        u64 pair[2] = {read64(at + 4), read64(at + 12)};
        must(CALL4(prlimit64, 0, read32(at), pair, 0), "limit");
    }
    CALL1(umask, wanted->umask);
    drop_privileges(wanted);
    if (wanted->flags & IDLE)
        be_init(0);
    if (!(wanted->flags & INIT))
        become_command(wanted);
    child = fork_process();
    must(child, "fork");
    if (child)
        be_init(child);
    CALL2(setpgid, 0, 0);
    if (wanted->flags & TERMINAL) {
        int group = (int)CALL1(getpid, 0);
        CALL3(ioctl, 0, TIOCSPGRP, &group); /* all signals are blocked: no SIGTTOU */
    }
    become_command(wanted);
}

/* A FIRST ahead of its EXEC: does steps in new namespaces, says so, and waits for the rest, which comes in parts after its size. All its streams are open. */
static void run_prepared(char *steps, u32 step_count, u8 *buffer, u64 most)
{
    static struct execution wanted;
    u32 size = 0;
    CALL2(setsid, 0, 0);
    make_namespaces();
    do_steps(steps, step_count);
    send_report(REPORT_PREPARED, 0, "", (int)CALL4(openat, AT_FDCWD, "/proc/self/ns/mnt", O_CLOEXEC, 0));
    if (CALL3(read, report_line, &size, sizeof size) != sizeof size || size > most)
        quit(127);
    for (u32 got = 0; got < size;) {
        i64 part = CALL3(read, report_line, buffer + got, size - got);
        if (part <= 0)
            quit(127);
        got += (u32)part;
    }
    if (!parse_execution(buffer, size, &wanted))
        quit(127);
    if (!(wanted.flags & STDIN_OPEN)) {
        i64 null = CALL4(openat, AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC, 0);
        must(null, "/dev/null");
        CALL3(dup3, null, 0, 0);
        CALL1(close, null);
    }
    run_execution(&wanted, -1);
}

#endif
