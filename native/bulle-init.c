/* bulle-init: process 1 of a container that asked for --init, and the last step before a command whose root could write to files of the host.
 *
 * bulle-init --exec PATH NAME ARGUMENTS... only becomes PATH, with NAME as its argv[0]: executed from sealed memory, it puts nothing of the host behind
 * /proc/self/exe at the moment of execve(2).
 *
 * bulle-init [--] COMMAND ARGUMENTS... starts the command (found through PATH), passes every signal on to it, reaps whatever is orphaned, and ends with the
 * command's exit code, or 128 plus the number of the signal that ended it; 126 and 127 as a shell says that a command cannot be executed or found. Needs
 * nothing of the image: the driver binds it into the container.
 *
 * bulle-init --idle starts nothing: it reaps what is orphaned while others are executed beside it. Only signals from outside of the container count: SIGUSR1
 * kills every other process in it, SIGTERM and its like end it.
 */
#include "freestanding.h"

enum { WNOHANG = 1, TIOCSPGRP = 0x5410, TIOCGPGRP = 0x540F, SI_USER = 0 };

static int execute(char **arguments, char **environment)
{
    static char path[2 * PATH_SIZE];
    const char *directories = environment_value(environment, "PATH"), *end = path + sizeof path;
    int found = 0;
    i64 result;
    for (const char *c = arguments[0]; *c; c++)
        if (*c == '/') {
            result = CALL3(execve, arguments[0], arguments, environment);
            return result == -ENOENT || result == -ENOTDIR ? 127 : 126;
        }
    if (!directories)
        directories = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    while (*directories) {
        char *at = path;
        while (*directories && *directories != ':' && at < path + PATH_SIZE - 1)
            *at++ = *directories++;
        *at = 0;
        if (*directories == ':')
            directories++;
        at = append(append(at == path ? append(path, end, ".") : at, end, "/"), end, arguments[0]);
        if (!at)
            continue;
        result = CALL3(execve, path, arguments, environment);
        if (result != -ENOENT && result != -ENOTDIR)
            found = 1;
    }
    return found ? 126 : 127;
}

static int same(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

/* The first fields of siginfo_t; a sender outside of our pid namespace has the number 0 here, which nobody inside can pretend. */
struct signal_information {
    int number, error, code, padding, sender, rest[27];
};

static int idle(void)
{
    u64 all = ~0ul;
    CALL4(rt_sigprocmask, SIG_SETMASK, &all, 0, 8);
    for (;;) {
        struct signal_information information;
        int status;
        i64 number = CALL4(rt_sigtimedwait, &all, &information, 0, 8);
        while (CALL4(wait4, -1, &status, WNOHANG, 0) > 0)
            ;
        if (number <= 0 || information.code != SI_USER || information.sender != 0)
            continue;
        if (number == SIGUSR1)
            CALL2(kill, -1, SIGKILL);
        else if (number == SIGTERM || number == SIGINT || number == SIGQUIT || number == SIGHUP)
            return 0;
    }
}

static int run(int count, char **arguments, char **environment)
{
    u64 all = ~(SIGNAL_BIT(SIGTTIN) | SIGNAL_BIT(SIGTTOU)), before = 0, ignore[4] = {1, 0, 0, 0};
    i64 child;
    int first = 1, status;
    if (count == 2 && same(arguments[first], "--idle"))
        return idle();
    if (count > 3 && same(arguments[first], "--exec")) {
        i64 result = CALL3(execve, arguments[2], arguments + 3, environment);
        say("bulle-init: ");
        say(arguments[2]);
        say(result == -ENOEXEC ? ": exec format error\n" : ": cannot be executed\n");
        return result == -ENOENT || result == -ENOTDIR ? 127 : 126;
    }
    if (count > first && arguments[first][0] == '-' && arguments[first][1] == '-' && !arguments[first][2])
        first++;
    if (count <= first) {
        say("bulle-init: a command is missing\n");
        return 125;
    }
    CALL4(rt_sigprocmask, SIG_SETMASK, &all, &before, 8);
    child = fork_process();
    if (child < 0) {
        say("bulle-init: the kernel refused a process\n");
        return 125;
    }
    if (child == 0) {
        int code, group = (int)CALL1(getpid, 0);
        CALL2(setpgid, 0, 0);
        /* A shell wants to be in the foreground of its terminal; without one this fails, and nothing is lost. All signals are blocked: no SIGTTOU. */
        CALL4(rt_sigprocmask, SIG_BLOCK, &(u64){~0ul}, 0, 8);
        CALL3(ioctl, 0, TIOCSPGRP, &group);
        CALL4(rt_sigprocmask, SIG_SETMASK, &before, 0, 8);
        code = execute(arguments + first, environment);
        say("bulle-init: ");
        say(arguments[first]);
        say(code == 127 ? ": command not found\n" : ": cannot be executed\n");
        quit(code);
    }
    /* This process must never stop for touching the terminal. */
    CALL4(rt_sigaction, SIGTTIN, ignore, 0, 8);
    CALL4(rt_sigaction, SIGTTOU, ignore, 0, 8);
    for (;;) {
        u64 set = ~0ul;
        i64 number = CALL4(rt_sigtimedwait, &set, 0, 0, 8), ended;
        if (number > 0 && number != SIGCHLD)
            CALL2(kill, child, number);
        while ((ended = CALL4(wait4, -1, &status, WNOHANG, 0)) > 0)
            if (ended == child)
                return status & 0x7f ? 128 + (status & 0x7f) : status >> 8 & 0xff;
    }
}
