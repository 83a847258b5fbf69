/* bulle: the command, as far as it can be had in a few KB.
 *
 * It hands its whole self (arguments, environment, working directory, limits, stdin, stdout, stderr) to the warm spawner, passes signals on, and ends as
 * the command ended. The command itself is Python, forked by the spawner with everything already loaded: bulle.spawner.server. Where no spawner lives,
 * one is started; where it does not serve this caller, the command runs in this process: python3 -I -m bulle. The protocol is described in
 * src/bulle/spawner/protocol.py; src/bulle/spawner/stub.py is the twin of this file: change both.
 */
#include "freestanding.h"

enum { REQUEST_MAGIC = 0x31525542, REPLY_MAGIC = 0x31535542, ATTACHED = 1 };
enum { ACCEPTED = 1, CHILD = 2, EXITED = 3, SIGNALED = 4, BYPASS = 5 };
enum { ATTEMPTS = 3, LIMIT_COUNT = 16, START_TIMEOUT_S = 20, BODY_LIMIT = 8 << 20 };
enum { MSG_NOSIGNAL = 0x4000, MSG_CMSG_CLOEXEC = 0x40000000, SCM_RIGHTS = 1, SOL_SOCKET = 1, AF_UNIX = 1, SOCK_STREAM = 1 };
enum { POLLIN = 1, F_GETFD = 1, F_DUPFD_CLOEXEC = 1030, LOCK_EX = 2, RLIMIT_CORE = 4, X_OK = 1, AT_EXECFN = 31 };

struct address { unsigned short family; char path[108]; };
struct vector { const void *base; u64 length; };
struct message { void *name; u32 name_length; u32 pad; struct vector *vectors; u64 vector_count; void *control; u64 control_length; u32 flags; u32 pad2; };
struct control { u64 length; int level; int type; int descriptors[4]; };
struct reply { u32 magic; u32 kind; int value; u32 reserved; };
struct waiting { int descriptor; short events; short happened; };
struct header { u32 magic, length, flags, argument_count, environment_count, descriptor_count, reserved[2]; u64 limits[LIMIT_COUNT][2]; };

static const u64 DEADLY = SIGNAL_BIT(SIGINT) | SIGNAL_BIT(SIGQUIT) | SIGNAL_BIT(SIGTERM) | SIGNAL_BIT(SIGHUP)
    | SIGNAL_BIT(SIGUSR1) | SIGNAL_BIT(SIGUSR2) | SIGNAL_BIT(SIGALRM); /* the last three because `run` passes them on to the container */
static const u64 FORWARDED = DEADLY | SIGNAL_BIT(SIGTSTP) | SIGNAL_BIT(SIGCONT) | SIGNAL_BIT(SIGWINCH);

static char home[PATH_SIZE];
static char interpreter[PATH_SIZE];           /* path of python3 */
static char interpreter_directory[PATH_SIZE]; /* names the installation */
static const char *isolation = "-I";          /* of Python from its environment */
static char **environment;

/* BULLE_HOME, else /var/lib/bulle for root, else the user's XDG data directory. */
static int find_home(void)
{
    const char *end = home + PATH_SIZE, *asked = environment_value(environment, "BULLE_HOME"), *data, *user;
    char *at = home;
    if (asked && *asked) {
        if (*asked != '/') {
            if (CALL2(getcwd, home, PATH_SIZE) <= 1 || *home != '/')
                return 0;
            at = append(home + length_of(home), end, "/");
        }
        at = append(at, end, asked);
        /* As Python's Path would say it. */
        while (at && at > home + 1 && at[-1] == '/')
            *--at = 0;
        return at != 0;
    }
    if (CALL1(geteuid, 0) == 0)
        return append(home, end, "/var/lib/bulle") != 0;
    data = environment_value(environment, "XDG_DATA_HOME");
    if (data && *data == '/')
        return append(append(home, end, data), end, "/bulle") != 0;
    user = environment_value(environment, "HOME");
    return user && *user == '/' && append(append(home, end, user), end, "/.local/share/bulle") != 0;
}

static int executable(const char *path)
{
    return CALL3(faccessat, AT_FDCWD, path, X_OK) == 0;
}

/* The path that this program was executed by: what the kernel passes behind the environment. getauxval(3) */
static const char *executed_path(void)
{
    u64 *auxiliary = (u64 *)environment;
    while (*auxiliary++)
        ;
    for (; auxiliary[0]; auxiliary += 2)
        if (auxiliary[0] == AT_EXECFN)
            return (const char *)auxiliary[1];
    return "";
}

/* python3 beside this program, as in every venv, else from PATH. */
static int find_interpreter(void)
{
    const char *path, *end = interpreter + PATH_SIZE;
    i64 length = CALL4(readlinkat, AT_FDCWD, "/proc/self/exe", interpreter_directory, PATH_SIZE - 1);
    if (length <= 0 && append(interpreter_directory, interpreter_directory + PATH_SIZE, executed_path()))
        length = (i64)length_of(interpreter_directory); /* a chroot without /proc */
    if (length > 0 && *interpreter_directory == '/') {
        while (length > 1 && interpreter_directory[length - 1] != '/')
            length--;
        interpreter_directory[length - 1] = 0;
        if (append(append(interpreter, end, interpreter_directory), end, "/python3") && executable(interpreter))
            return 1;
    }
    /* Installed for one user beside a system's Python: -I would hide the user's packages. */
    isolation = "-EP";
    path = environment_value(environment, "PATH");
    while (path && *path) {
        char *at = interpreter_directory;
        while (*path && *path != ':' && at < interpreter_directory + PATH_SIZE - 1)
            *at++ = *path++;
        *at = 0;
        if (*path == ':')
            path++;
        if (*interpreter_directory == '/' && append(append(interpreter, end, interpreter_directory), end, "/python3") && executable(interpreter))
            return 1;
    }
    return 0;
}

/* A connection to the living spawner, or a negative number. */
static int connect_spawner(void)
{
    struct address address = {AF_UNIX, {0}};
    char text[PATH_SIZE + 32];
    const char *end = address.path + sizeof address.path;
    i64 result, directory = -1, connection = CALL3(socket, AF_UNIX, SOCK_STREAM | O_CLOEXEC, 0);
    if (connection < 0)
        return -1;
    if (!append(append(address.path, end, home), end, "/run/spawner.sock")) {
        /* A longer path than a socket address holds: through the descriptor of its directory. */
        char number[12], *digit = number + sizeof number - 1;
        if (!append(append(text, text + sizeof text, home), text + sizeof text, "/run"))
            return -1;
        directory = CALL4(openat, AT_FDCWD, text, O_PATH | O_CLOEXEC, 0);
        if (directory < 0) {
            CALL1(close, connection);
            return -1;
        }
        *digit = 0;
        result = directory;
        do
            *--digit = (char)('0' + result % 10);
        while ((result /= 10));
        append(append(append(address.path, end, "/proc/self/fd/"), end, digit), end, "/spawner.sock");
    }
    result = CALL3(connect, connection, &address, sizeof address);
    if (directory >= 0)
        CALL1(close, directory);
    if (result < 0) {
        CALL1(close, connection);
        return -1;
    }
    return (int)connection;
}

static void make_directories(char *path)
{
    char *at = path;
    if (CALL3(mkdirat, AT_FDCWD, path, 0700) != -ENOENT)
        return;
    while (*++at)
        if (*at == '/') {
            *at = 0;
            CALL3(mkdirat, AT_FDCWD, path, 0700);
            *at = '/';
        }
    CALL3(mkdirat, AT_FDCWD, path, 0700);
}

/* Start a spawner and wait until it listens (it writes one byte) or has failed. The caller holds the lock. */
static int start_spawner(void)
{
    struct waiting waiting = {0, POLLIN, 0};
    i64 timeout[2] = {START_TIMEOUT_S, 0};
    const char *arguments[] = {interpreter, isolation, "-m", "bulle", "--spawner", home, "--ready", "3", 0};
    int pipe[2];
    char byte = 0;
    i64 child;
    if (CALL2(pipe2, pipe, O_CLOEXEC) < 0)
        return 0;
    child = fork_process();
    if (child == 0) {
        i64 write_end = CALL3(fcntl, pipe[1], F_DUPFD_CLOEXEC, 10), null = CALL4(openat, AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC, 0);
        for (int number = 0; number < 3; number++)
            if (null != number)
                CALL3(dup3, null, number, 0);
        CALL3(dup3, write_end, 3, 0);
        CALL3(close_range, 4, ~0u, 0);
        CALL3(execve, interpreter, arguments, environment);
        quit(127);
    }
    CALL1(close, pipe[1]);
    if (child > 0) {
        /* What was started forks the spawner and ends. */
        while (CALL4(wait4, child, 0, 0, 0) == -EINTR)
            ;
        waiting.descriptor = pipe[0];
        if (CALL(ppoll, &waiting, 1, timeout, 0, 8, 0) > 0)
            CALL3(read, pipe[0], &byte, 1);
    }
    CALL1(close, pipe[0]);
    return byte == 1;
}

static int connect_or_start(void)
{
    char path[PATH_SIZE + 32], *end = path + sizeof path;
    int connection = connect_spawner();
    i64 lock;
    if (connection >= 0)
        return connection;
    make_directories(home);
    if (!append(append(path, end, home), end, "/run"))
        return -1;
    CALL3(mkdirat, AT_FDCWD, path, 0700);
    append(path + length_of(path), end, "/start.lock");
    lock = CALL4(openat, AT_FDCWD, path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (lock < 0)
        return -1;
    while (CALL2(flock, lock, LOCK_EX) == -EINTR)
        ;
    connection = connect_spawner();
    if (connection < 0 && start_spawner())
        connection = connect_spawner();
    CALL1(close, lock);
    return connection;
}

static int begins(const char *text, const char *with)
{
    while (*with)
        if (*text++ != *with++)
            return 0;
    return 1;
}

/* Whether the command may be for another machine: a flag, a variable or a context in use says so. Then it runs ssh, which wants this process's terminal
 * and session: bulle.fleet. */
static int is_for_elsewhere(int count, char **arguments)
{
    char path[PATH_SIZE + 32];
    const char *asked;
    if (count > 1 && begins(arguments[1], "--fleet"))
        return 0; /* another machine meant this one */
    for (int i = 1; i < count && arguments[i][0] == '-'; i++) {
        if (begins(arguments[i], "-H") || begins(arguments[i], "-c") || begins(arguments[i], "--host") || begins(arguments[i], "--context"))
            return 1;
        if (begins(arguments[i], "--home") && !arguments[i][6])
            i++;
    }
    if (((asked = environment_value(environment, "BULLE_HOST")) && *asked) || ((asked = environment_value(environment, "BULLE_CONTEXT")) && *asked))
        return 1;
    return append(append(path, path + sizeof path, home), path + sizeof path, "/context") && CALL3(faccessat, AT_FDCWD, path, 0) == 0;
}

/* The whole request; 1: sent, 0: the connection ended, -1: it cannot be said. */
static int send_request(int connection, int count, char **arguments)
{
    static struct header header;
    static char strings[2 * PATH_SIZE + 32];
    struct control control = {16 + 4 * sizeof(int), SOL_SOCKET, SCM_RIGHTS, {0}};
    struct vector vectors[3];
    struct message message = {0, 0, 0, vectors, 3, &control, sizeof control, 0, 0};
    char *at = strings, *next, *first = count > 1 ? arguments[1] : environment[0];
    u64 left;
    u32 variables = 0;
    i64 sent;

    /* The kernel lays arguments and environment out as one run of NUL-ended strings, just as the request wants them. */
    next = first;
    for (int i = 1; i < count; i++) {
        if (arguments[i] != next)
            return -1;
        next += length_of(next) + 1;
    }
    for (; environment[variables]; variables++) {
        if (environment[variables] != next)
            return -1;
        next += length_of(next) + 1;
    }
    memcpy(at, "command", 8);
    at += 8;
    at = append(at, strings + sizeof strings, interpreter_directory) + 1;
    *at++ = 0; /* whichever package this interpreter has */
    sent = CALL2(getcwd, at, PATH_SIZE);
    if (sent > 1 && *at == '/')
        at += sent;
    else
        *at++ = 0;

    vectors[0].base = &header;
    vectors[0].length = sizeof header;
    vectors[1].base = strings;
    vectors[1].length = (u64)(at - strings);
    vectors[2].base = first;
    vectors[2].length = (u64)(next - first);
    left = vectors[1].length + vectors[2].length;
    if (left > BODY_LIMIT)
        return -1;
    header.magic = REQUEST_MAGIC;
    header.length = (u32)left;
    header.flags = ATTACHED;
    header.argument_count = (u32)(count - 1);
    header.environment_count = variables;
    header.descriptor_count = 4;
    for (int i = 0; i < LIMIT_COUNT; i++)
        CALL4(prlimit64, 0, i, 0, header.limits[i]);
    for (int i = 0; i < 3; i++)
        control.descriptors[i] = CALL2(fcntl, i, F_GETFD) >= 0 ? i : (int)CALL4(openat, AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC, 0);
    control.descriptors[3] = (int)CALL4(openat, AT_FDCWD, ".", O_PATH | O_CLOEXEC, 0);
    left += sizeof header;
    while (left) {
        sent = CALL3(sendmsg, connection, &message, MSG_NOSIGNAL);
        if (sent == -EINTR)
            continue;
        if (sent <= 0)
            return 0;
        left -= (u64)sent;
        message.control = 0;
        message.control_length = 0;
        for (int i = 0; i < 3; i++) {
            u64 part = (u64)sent < vectors[i].length ? (u64)sent : vectors[i].length;
            vectors[i].base = (const char *)vectors[i].base + part;
            vectors[i].length -= part;
            sent -= (i64)part;
        }
    }
    CALL1(close, control.descriptors[3]);
    return 1;
}

/* End by the signal that the child ended by, without a second core dump. */
static void die(int number)
{
    u64 action[4] = {0, 0, 0, 0}, bit = SIGNAL_BIT(number), none[2] = {0, 0};
    CALL4(prlimit64, 0, RLIMIT_CORE, none, 0);
    CALL4(rt_sigaction, number, action, 0, 8);
    CALL4(rt_sigprocmask, SIG_UNBLOCK, &bit, 0, 8);
    CALL2(kill, CALL1(getpid, 0), number);
    quit(128 + number);
}

static void pass_on(int number, int child, int pid)
{
    if (child >= 0)
        CALL4(pidfd_send_signal, child, number, 0, 0);
    else if (pid)
        CALL2(kill, pid, number);
    else if (SIGNAL_BIT(number) & DEADLY)
        die(number);
    if (number == SIGTSTP)
        CALL2(kill, CALL1(getpid, 0), SIGSTOP);
}

/* The signals to pass on: those that this process was not told to ignore (nohup, background jobs). A blocked signal would be read all the same. */
static u64 signals_to_forward(void)
{
    u64 result = 0, action[4];
    for (int number = 1; number < 32; number++)
        if (SIGNAL_BIT(number) & FORWARDED && CALL4(rt_sigaction, number, 0, action, 8) == 0 && action[0] != SIG_IGN)
            result |= SIGNAL_BIT(number);
    return result;
}

/* One reply; returns 0 at the end of the connection. A descriptor that came with it goes to *descriptor. */
static int receive_reply(int connection, struct reply *reply, int *descriptor)
{
    struct control control;
    u64 have = 0;
    while (have < sizeof *reply) {
        struct vector vector = {(char *)reply + have, sizeof *reply - have};
        struct message message = {0, 0, 0, &vector, 1, &control, 16 + sizeof(int), 0, 0};
        i64 got = CALL3(recvmsg, connection, &message, MSG_CMSG_CLOEXEC);
        if (got == -EINTR)
            continue;
        if (got <= 0)
            return 0;
        if (message.control_length >= 16 + sizeof(int) && control.level == SOL_SOCKET && control.type == SCM_RIGHTS)
            *descriptor = control.descriptors[0];
        have += (u64)got;
    }
    return reply->magic == REPLY_MAGIC;
}

/* Pass signals on and wait for the end; returns only where the command did not start: BYPASS, or 0 to ask again. Where another machine asked for the
 * command (remote), it ends with the connection: the kernel says on standard error that nobody reads it any more. */
static int follow(int connection, int signals, int remote)
{
    struct waiting waiting[3] = {{remote ? 2 : -1, 0, 0}, {connection, POLLIN, 0}, {signals, POLLIN, 0}};
    int child = -1, pid = 0, accepted = 0, descriptor = -1;
    struct reply reply;
    for (;;) {
        /* Between the two replies a signal waits: the child may live already. */
        int watched = accepted && !pid ? 2 : 3;
        if (CALL(ppoll, waiting, watched, 0, 0, 8, 0) < 0)
            continue;
        /* Replies first: a signal that came together with one is for the child that it tells of. */
        if (!waiting[1].happened) {
            u32 information[32]; /* struct signalfd_siginfo begins with the number */
            if (waiting[0].happened)
                quit(125);
            if (watched == 3 && waiting[2].happened && CALL3(read, signals, information, sizeof information) == sizeof information)
                pass_on((int)information[0], child, pid);
            continue;
        }
        if (!receive_reply(connection, &reply, &descriptor)) {
            if (!accepted)
                return 0;
            say("bulle: the spawner was killed together with this command; what it did is unknown\n");
            quit(125);
        }
        if (reply.kind == ACCEPTED)
            accepted = 1;
        else if (reply.kind == CHILD) {
            child = descriptor;
            pid = reply.value;
        }
        else if (reply.kind == EXITED)
            quit(reply.value);
        else if (reply.kind == SIGNALED)
            die(reply.value);
        else
            return BYPASS;
    }
}

/* The command in this process. */
static void run_here(int count, char **arguments)
{
    /* python3 -I -m bulle takes the place of argv[0], with three more: the pointers are copied, the strings are not. */
    static const char *line[4 + 4096];
    const char **all = line;
    int place = 0;
    if (count > 4096) {
        say("bulle: too many arguments to run without the spawner\n");
        quit(125);
    }
    all[place++] = interpreter;
    all[place++] = isolation;
    all[place++] = "-m";
    all[place++] = "bulle";
    for (int i = 1; i < count; i++)
        all[place++] = arguments[i];
    all[place] = 0;
    CALL3(execve, interpreter, all, environment);
    say("bulle: its Python could not be executed; install it anew\n");
    quit(125);
}

/* Whether systemd opened descriptors for this very process: nobody else could take them. sd_listen_fds(3) */
static int is_given_sockets(void)
{
    const char *text = environment_value(environment, "LISTEN_PID");
    long pid = 0;
    while (text && *text >= '0' && *text <= '9' && pid < 1L << 40)
        pid = pid * 10 + (*text++ - '0');
    return text && !*text && pid && pid == CALL1(getpid, 0);
}

static int run(int count, char **arguments, char **variables)
{
    const char *asked;
    u64 before = 0;
    environment = variables;
    if (!find_interpreter()) {
        say("bulle: there is no python3 beside this program nor in PATH\n");
        return 125;
    }
    asked = environment_value(environment, "BULLE_NO_SPAWNER");
    if ((!asked || !*asked || (*asked == '0' && !asked[1])) && !is_given_sockets() && find_home() && !is_for_elsewhere(count, arguments))
        for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
            int outcome, signals, connection = connect_or_start();
            if (connection < 0)
                break;
            u64 forwarded = signals_to_forward();
            CALL4(rt_sigprocmask, SIG_BLOCK, &forwarded, &before, 8);
            signals = (int)CALL4(signalfd4, -1, &forwarded, 8, O_CLOEXEC);
            outcome = send_request(connection, count, arguments);
            if (outcome == 1)
                outcome = follow(connection, signals, count > 1 && begins(arguments[1], "--fleet") && !arguments[1][7]);
            CALL4(rt_sigprocmask, SIG_SETMASK, &before, 0, 8);
            CALL1(close, signals);
            CALL1(close, connection);
            if (outcome)
                break;
        }
    run_here(count, arguments);
    return 125;
}
